"""What is asked of a study, and what it measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from atlasnet.cohort.spacing import WantedSpacing, require_spacing
from atlasnet.cohort.structures import Values, structures_of
from atlasnet.errors import InputError
from atlasnet.evaluation import PatchCounts, PatchProtocol
from atlasnet.prediction import PredictOptions
from atlasnet.study.methods import METHOD, Method, chosen_methods
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing

_FOLDER = re.compile(
    r"runs/(?P<method>[a-z-]+?)(-(?P<atlases>\d+))?/(?P<percent>\d+(\.\d+)?(e-\d+)?)(?P<slices>-slices)?"
    r"/seed(?P<seed>\d+)(-epoch(?P<epoch>\d+))?"
)

OfSubjects = Mapping[str, PatchCounts]
"""Test subject to its patches."""


@dataclass(frozen=True)
class StudyOptions:
    """What a study compares and how its networks are trained.

    Args:
        atlases: how many to choose among the training subjects (None: 6, or all of fewer), or the names of subjects.
        methods: names of `atlasnet.study.methods.METHODS`; None: all.
        seeds: repetitions of everything that is trained, with the seeds 0, 1 and so on after that of the execution.
        fractions: shares of the training data, in (0, 1], beside the whole; below 1, only the methods
            `OVER_FRACTIONS`.
        fraction_of: whether a share is one of the subjects, or one of the slices of every subject's annotation.
        curve_epochs: epochs after which the networks are tested too, beside those at the end of their training; those
            that are trained longer than AtlasNet's, at the same share of their training; those that are tuned, by what
            they start from.
        preset: training recipe, a name or one of one's own.
        epochs: of every network that is trained from scratch; None takes the recipe's.
        sharing: of AtlasNet's networks, see `FitOptions`.
        network: see `FitOptions`.
        allow_module: see `FitOptions`.
        width: see `FitOptions`.
        spacing: see `FitOptions`; of the networks of all methods.
        operator: name of the registration operator.
        operator_settings: passed to it, over what the plan says.
        fusion: how the networks of an ensemble, and those of the atlases, are fused; see
            `atlasnet.prediction.fusion`.
        loss_weights: see `FitOptions`; of the networks of all methods.
        observers: folders of other people's segmentations of the test subjects, CASE.nii.gz each.
        patches: classify patches too, of every row of the main table and of the observers.

    Raises:
        InputError: a value that makes no sense.
    """

    atlases: int | tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    seeds: int = 3
    fractions: tuple[float, ...] = (1.0,)
    fraction_of: Literal["subjects", "slices"] = "subjects"
    curve_epochs: tuple[int, ...] = ()
    preset: str | Recipe = "default"
    epochs: int | None = None
    sharing: str | Sharing | None = None
    network: str | None = None
    allow_module: bool = False
    width: float | None = None
    spacing: WantedSpacing | None = None
    operator: str = "mrf"
    operator_settings: dict[str, Any] = field(default_factory=dict)
    fusion: str = "mean"
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    observers: tuple[Path, ...] = ()
    patches: PatchProtocol | None = None

    def __post_init__(self) -> None:
        chosen_methods(self.methods)
        require_spacing(self.spacing)
        sharing = self.shared().kind
        if sharing == "model":
            raise InputError("a study trains its models anew", expected="sharing independent, first or common")
        PredictOptions(fusion=self.fusion)
        if self.fusion == "learnt":
            raise InputError(
                "a study's models are not cross-validated, so that they learn no weights for their atlases",
                expected="another fusion than learnt",
            )
        if isinstance(self.atlases, int) and self.atlases < 1:
            raise InputError("at least one atlas is needed", found=str(self.atlases))
        if self.seeds < 1:
            raise InputError("a study needs at least one seed", found=str(self.seeds))
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise InputError(
                "the shares of the training data cannot be used",
                expected="numbers above 0, at most 1",
                found=", ".join(map(str, self.fractions)) or "none",
            )
        if self.fraction_of not in ("subjects", "slices"):
            raise InputError("a share must be one of subjects or slices", found=str(self.fraction_of))

    def recipe(self) -> Recipe:
        """That of AtlasNet's networks."""
        return Recipe.of(self.preset, self.epochs)

    def shared(self) -> Sharing:
        """What AtlasNet's networks have in common."""
        return Sharing.of(self.sharing, self.recipe())


@dataclass(frozen=True)
class Run:
    """One method, trained once.

    Args:
        method: what is done.
        fraction: share of the training data.
        seed: of the training.
        atlases: how many have a say; None where the method has none.
        fraction_of: what it is a share of; ``"subjects"`` where it is the whole.
        epoch: of a training as long as AtlasNet's, after which the networks are tested; None: at its end.
    """

    method: Method
    fraction: float
    seed: int
    atlases: int | None = None
    fraction_of: Literal["subjects", "slices"] = "subjects"
    epoch: int | None = None

    @property
    def share(self) -> str:
        """The share of the training data as part of a path, in percent."""
        percent = f"{100 * self.fraction:.10g}"
        return percent if self.fraction_of == "subjects" else f"{percent}-{self.fraction_of}"

    @property
    def details(self) -> str:
        """Seed, share and epoch, for people."""
        share = "" if self.fraction == 1 else f", {self.fraction:.0%} of the {self.fraction_of}"
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return f"seed {self.seed}{share}{epoch}"

    @property
    def model(self) -> str:
        """Where its model lies, relative to the study; several methods may use one."""
        return f"models/{self.method.models}/{self.share}/seed{self.seed}"

    @property
    def folder(self) -> str:
        """Where its results lie, relative to the study."""
        name = self.method.name if self.atlases is None else f"{self.method.name}-{self.atlases}"
        epoch = "" if self.epoch is None else f"-epoch{self.epoch}"
        return f"runs/{name}/{self.share}/seed{self.seed}{epoch}"

    @classmethod
    def of_folder(cls, name: str) -> Run | None:
        """The run whose `folder` has this name; None where it is no run's."""
        found = _FOLDER.fullmatch(name)
        if found is None or found["method"] not in METHOD:
            return None
        atlases, epoch = (None if found[part] is None else int(found[part]) for part in ("atlases", "epoch"))
        of: Literal["subjects", "slices"] = "slices" if found["slices"] else "subjects"
        run = cls(METHOD[found["method"]], float(found["percent"]) / 100, int(found["seed"]), atlases, of, epoch)
        return run if run.folder == name else None

    def networks(self, most: int) -> int:
        """How many segment a scan, with ``most`` atlases in the study."""
        if self.method.space == "labels":
            return 0
        return most if self.method.members else self.atlases or 1

    def is_main(self, most: int) -> bool:
        """Whether it makes a row of the main table: all data, to the end of its training, with ``most`` atlases."""
        return self.fraction == 1 and self.epoch is None and self.atlases == self.method.atlases(most)

    def with_atlases(self, most: int) -> list[Run]:
        """One run for each number of atlases that can be asked, of ``most``; during a training, for one and all."""
        count = self.method.atlases(most)
        if count is None:
            return [self]
        counts = range(1, count + 1) if self.epoch is None else sorted({1, count})
        return [replace(self, atlases=number) for number in counts]


@dataclass(frozen=True)
class CaseResult:
    """How one run did on one scan.

    Args:
        run: which.
        case: the scan.
        scores: fields of `LabelScores`, per label.
        details: see `atlasnet.study.certainty.describe`; empty where there was no result.
        versions: of the software that trained its networks and segmented with them, several where they differ; empty
            for one of before they were recorded.
    """

    run: Run
    case: str
    scores: tuple[dict[str, Any], ...]
    details: dict[str, Any]
    versions: tuple[dict[str, str], ...] = ()


def known(results: Iterable[CaseResult], detail: str) -> list[Any]:
    """A detail of every scan that has it."""
    return [value for result in results if (value := result.details.get(detail)) is not None]


@dataclass(frozen=True)
class Study:
    """Everything that was measured.

    Args:
        folder: of the study.
        labels: name to value, without the background.
        cases: the test subjects.
        atlases: names, in the order in which they are asked.
        training: how many subjects there were to train on.
        recipe: of AtlasNet's networks.
        sharing: what these have in common, see `atlasnet.training.sharing.Sharing`.
        results: of all runs; a scan that a run could not segment has no scores there.
        observers: per observer, its scores of every scan that it holds.
        organ_mask: whether everything was done within organ masks.
        protocol: which patches were classified, if any.
        patches: those of every method of the main table, for each seed.
        observer_patches: those of every observer.
        regions: of the cohort; what was scored, where there are any.
        unannotated: by structure, the test subjects in which nobody annotated it; see `atlasnet.evaluation.Table`.
        how: it was done, see `atlasnet.study.how.how`; empty for one that was put together otherwise.
    """

    folder: Path
    labels: dict[str, int]
    cases: tuple[str, ...]
    atlases: tuple[str, ...]
    training: int
    recipe: Recipe
    sharing: str
    results: tuple[CaseResult, ...]
    observers: tuple[tuple[dict[str, Any], ...], ...]
    organ_mask: bool = False
    protocol: PatchProtocol | None = None
    patches: Mapping[str, Sequence[OfSubjects]] = field(default_factory=dict)
    observer_patches: tuple[OfSubjects, ...] = ()
    regions: Mapping[str, Values] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    unannotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def structures(self) -> dict[str, Values]:
        """What was scored, name to values."""
        return structures_of(self.labels, self.regions)

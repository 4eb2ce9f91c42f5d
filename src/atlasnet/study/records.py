"""What is asked of a study, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlasnet.errors import InputError
from atlasnet.prediction import PredictOptions
from atlasnet.study.methods import Method, chosen_methods
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing


@dataclass(frozen=True)
class StudyOptions:
    """What a study compares and how its networks are trained.

    Args:
        atlases: how many to choose among the training subjects (None: 6, or all of fewer), or the names of subjects.
        methods: names of `atlasnet.study.methods.METHODS`; None: all.
        seeds: repetitions of everything that is trained, with the seeds 0, 1 and so on after that of the execution.
        fractions: shares of the training subjects, in (0, 1], beside the whole; below 1, only the methods
            `OVER_FRACTIONS`.
        preset: training recipe, a name or one of one's own.
        epochs: of every network that is trained from scratch; None takes the recipe's.
        sharing: of AtlasNet's networks, see `FitOptions`.
        network: see `FitOptions`.
        allow_module: see `FitOptions`.
        width: see `FitOptions`.
        operator: name of the registration operator.
        operator_settings: passed to it, over what the plan says.
        fusion: how the networks of an ensemble, and those of the atlases, are fused; see
            `atlasnet.prediction.fusion`.
        observers: folders of other people's segmentations of the test subjects, CASE.nii.gz each.

    Raises:
        InputError: a value that makes no sense.
    """

    atlases: int | tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    seeds: int = 3
    fractions: tuple[float, ...] = (1.0,)
    preset: str | Recipe = "default"
    epochs: int | None = None
    sharing: str | Sharing = "independent"
    network: str | None = None
    allow_module: bool = False
    width: float | None = None
    operator: str = "mrf"
    operator_settings: dict[str, Any] = field(default_factory=dict)
    fusion: str = "mean"
    observers: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        chosen_methods(self.methods)
        Sharing.of(self.sharing)
        PredictOptions(fusion=self.fusion)
        if isinstance(self.atlases, int) and self.atlases < 1:
            raise InputError("at least one atlas is needed", found=str(self.atlases))
        if self.seeds < 1:
            raise InputError("a study needs at least one seed", found=str(self.seeds))
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise InputError(
                "the shares of the training subjects cannot be used",
                expected="numbers above 0, at most 1",
                found=", ".join(map(str, self.fractions)) or "none",
            )


def share_name(fraction: float) -> str:
    """A share of the subjects as part of a path, in percent."""
    return f"{100 * fraction:.10g}"


@dataclass(frozen=True)
class Run:
    """One method, trained once.

    Args:
        method: what is done.
        fraction: share of the training subjects.
        seed: of the training.
        atlases: how many have a say; None where the method has none.
    """

    method: Method
    fraction: float
    seed: int
    atlases: int | None = None

    @property
    def folder(self) -> str:
        """Where its results lie, relative to the study."""
        name = self.method.name if self.atlases is None else f"{self.method.name}-{self.atlases}"
        return f"runs/{name}/{share_name(self.fraction)}/seed{self.seed}"


@dataclass(frozen=True)
class CaseResult:
    """How one run did on one scan.

    Args:
        run: which.
        case: the scan.
        scores: fields of `LabelScores`, per label.
        details: seconds, agreement and certainty; empty where there was no result.
    """

    run: Run
    case: str
    scores: tuple[dict[str, Any], ...]
    details: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Everything that was measured.

    Args:
        folder: of the study.
        labels: name to value of what was scored.
        cases: the test subjects.
        atlases: names, in the order in which they are asked.
        results: of all runs; a scan that a run could not segment has no scores there.
        observers: per observer, its scores of every scan that it holds.
    """

    folder: Path
    labels: dict[str, int]
    cases: tuple[str, ...]
    atlases: tuple[str, ...]
    results: tuple[CaseResult, ...]
    observers: tuple[tuple[dict[str, Any], ...], ...]

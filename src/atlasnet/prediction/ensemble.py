"""`Ensemble`: the models that segment a scan together, one or several, and how several lie on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atlasnet.cohort import Subject
from atlasnet.cohort.segments import Segment
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import digest, read_json, write_json
from atlasnet.prediction.prediction import PredictOptions
from atlasnet.prediction.verdict import require_verdict
from atlasnet.registration import Operator
from atlasnet.training.model import Model

MANIFEST = "ensemble.json"
FORMAT = 1
_SHOWN = 10  # names of a sentence


@dataclass(frozen=True)
class Ensemble:
    """Models with the same labels and channels, whose fused probabilities are fused by the mean.

    Args:
        models: at least one.
        names: of the models, in their order, no two alike; how records and pages call them.

    Raises:
        ModelError: there is none, one is there twice, or labels or channels differ.
    """

    models: tuple[Model, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.models:
            raise ModelError("there is no model", expected="at least one")
        first = self.models[0]
        for model, name in zip(self.models[1:], self.names[1:], strict=True):
            for what, expected, found in (
                ("channels", list(first.channels), list(model.channels)),
                ("labels", _labels(first), _labels(model)),
            ):
                if expected != found:
                    raise ModelError(
                        f"models of different {what} cannot segment together",
                        path=model.folder,
                        expected=f"{expected}, as {self.names[0]}",
                        found=f"{found} in {name}",
                        remedy="predict with each by itself",
                    )
        checksums = [checksum(model) for model in self.models]
        twice = [n for i, n in enumerate(self.names) if checksums[i] in checksums[:i]]
        if twice:
            raise ModelError("a model is named twice", found=", ".join(twice), remedy="name each once")

    @classmethod
    def of(cls, models: Model | Ensemble) -> Ensemble:
        """A single model as one that needs no others."""
        return models if isinstance(models, Ensemble) else cls((models,), (models.folder.name,))

    @classmethod
    def load(cls, paths: Sequence[str | Path]) -> Ensemble:
        """Read models and verify them.

        Args:
            paths: folders and zips of models, and folders of models that belong together, such as the
                ``cross_validation`` of ``atlasnet train --folds --ensemble``.

        Raises:
            ModelError: one is not there, not finished, damaged or tampered with, or they do not fit each other.
        """
        found: list[tuple[str, Model]] = []
        for path in map(Path, paths):
            found += _members(path) if path.is_dir() else [(path.stem, Model.load(path))]
        names = [name for name, _ in found]
        if len(set(names)) < len(names):  # folders of different models may be called alike
            names = [f"{number}-{name}" for number, name in enumerate(names, start=1)]
        return cls(tuple(model for _, model in found), tuple(names))

    def __len__(self) -> int:
        return len(self.models)

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names in the order of the arrays."""
        return self.models[0].channels

    @property
    def values(self) -> tuple[int, ...]:
        """The label value of each class index."""
        return self.models[0].values

    @property
    def class_names(self) -> list[str]:
        """The name of each class index, background first."""
        by_value = {value: name for name, value in self.models[0].labels.items()}
        return [by_value.get(value, str(value)) for value in self.values]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every label as other software is told of it, as the first model has it."""
        return self.models[0].segments

    @property
    def checksum(self) -> str:
        """Of all models in their order; of a single one, its own."""
        checksums = [checksum(model) for model in self.models]
        return checksums[0] if len(self) == 1 else digest(checksums)

    @property
    def organ_mask(self) -> bool:
        """Whether a scan needs an organ mask."""
        return any(model.organ_mask for model in self.models)

    @property
    def pairs(self) -> int:
        """How often a scan is registered: once onto every atlas, however many models share it."""
        return len({key for model in self.models for key in pair_keys(model)})

    def atlas_name(self, model: int, atlas: str) -> str:
        """How records call an atlas of a model."""
        return atlas if len(self) == 1 else f"{self.names[model]}/{atlas}"

    def check_masks(self, cases: Iterable[Subject]) -> None:
        """Find out before any work that scans lack an organ mask.

        Raises:
            ModelError: they need one and have none.
        """
        without = [case.name for case in cases if case.mask is None]
        if self.organ_mask and without:
            raise ModelError(
                "the model was trained within an organ mask, and says nothing of what lies outside",
                path=self.models[0].folder,
                expected="an organ mask of every scan",
                found="none for " + ", ".join(without[:_SHOWN]),
                remedy="give a folder with a mask CASE.nii.gz of each with --organ-mask",
            )

    def check(self, options: PredictOptions) -> None:
        """Find out before any work what cannot be asked of these models.

        Raises:
            ModelError: ``strict``, and there is one with which no scan can be judged.
            InputError: several models, and another fusion than the mean.
        """
        if len(self) > 1 and options.fusion != "mean":
            raise InputError(
                "several models are fused by the mean of their probabilities",
                expected="the fusion mean",
                found=options.fusion,
                remedy="leave the fusion out, or predict with one model",
            )
        if options.strict:
            for model in self.models:
                require_verdict(model)


def checksum(model: Model) -> str:
    """Of a model, as `Model.summary` gives it."""
    return digest(dict(model.checksums))


def atlas_keys(model: Model) -> list[str]:
    """Of every atlas of a model: the checksum of its file, equal for equal atlases whatever models call them."""
    return [model.checksums[model.atlas_path(atlas).relative_to(model.folder).as_posix()] for atlas in model.atlases]


def pair_keys(model: Model, operator: Operator | None = None) -> list[str]:
    """Of every atlas of a model: what a scan's map onto it depends on besides the scan.

    Args:
        model: whose atlases they are.
        operator: registers instead of the model's own.
    """
    how = [model.operator, dict(model.operator_settings)] if operator is None else [operator.name, operator.settings()]
    references = [[atlas.labels_key] if atlas.labels_key else [] for atlas in model.atlases]
    return [digest([*how, key, *own]) for key, own in zip(atlas_keys(model), references, strict=True)]


def write_ensemble(folder: Path, members: Sequence[str]) -> Path:
    """Note that the models in ``folder`` belong together; `Ensemble.load` reads the folder then.

    Args:
        folder: gets ``ensemble.json``, with the checksum of every model.
        members: names of the models' folders in it.

    Raises:
        ModelError: a model is not finished, or they do not fit each other.
    """
    ensemble = Ensemble(tuple(Model.load(folder / name) for name in members), tuple(members))
    models = [{"folder": n, "checksum": checksum(m)} for n, m in zip(members, ensemble.models, strict=True)]
    write_json(folder / MANIFEST, {"format": FORMAT, "models": models})
    return folder / MANIFEST


def _members(folder: Path) -> list[tuple[str, Model]]:
    """The models of a folder, by name: those of its manifest, or the one that it is."""
    path = folder / MANIFEST
    if not path.exists():
        if (folder / "folds.json").exists():
            raise ModelError(
                "the models of this cross-validation were not asked for as an ensemble",
                path=folder,
                remedy="run the same atlasnet train command with --ensemble; what is finished is not done again",
            )
        return [(folder.resolve().name, Model.load(folder))]
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        listed = {str(entry["folder"]): str(entry["checksum"]) for entry in content["models"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{MANIFEST} cannot be read", path=path, found=f"{type(error).__name__}: {error}") from error
    found = []
    for name, expected in listed.items():
        if PurePosixPath(name).name != name or name in ("", ".", ".."):
            raise ModelError("a model of an ensemble has a name that is no folder's", path=path, found=repr(name[:80]))
        model = Model.load(folder / name)
        if checksum(model) != expected:
            raise ModelError(
                "the model is not the one that the ensemble was made of",
                path=folder / name,
                expected=f"the checksum in {path}",
                remedy="run the same atlasnet train command with --ensemble again, or copy the folder again",
            )
        found.append((name, model))
    return found


def _labels(model: Model) -> dict[str, int]:
    """The labels that a network gives."""
    return {name: value for name, value in model.labels.items() if value in model.values[1:]}

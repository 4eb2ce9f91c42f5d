"""`Ensemble`: the models that segment a scan together, one or several."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasnet.cohort import Subject
from atlasnet.cohort.segments import Segment
from atlasnet.cohort.structures import all_values
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import atomic_folder, digest, pack, require_absent, write_json
from atlasnet.prediction.decision import Decision
from atlasnet.prediction.members import Named, manifest, read_members, shipped
from atlasnet.prediction.prediction import PredictOptions
from atlasnet.prediction.verdict import require_verdict
from atlasnet.registration import Operator
from atlasnet.training.fusion_weights import FEWEST
from atlasnet.training.model import TOGETHER, Model

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
                ("regions", dict(first.regions), dict(model.regions)),
            ):
                if expected != found:
                    raise ModelError(
                        f"models of different {what} cannot segment together",
                        path=model.place,
                        expected=f"{expected}, as {self.names[0]}",
                        found=f"{found} in {name}",
                        remedy="predict with each by itself",
                    )
        checksums = [model.checksum for model in self.models]
        twice = [str(model.place) for i, model in enumerate(self.models) if checksums[i] in checksums[:i]]
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
            paths: folders and zips of models, and of models that belong together, such as the ``cross_validation``
                of ``atlasnet train --folds --ensemble``.

        Raises:
            ModelError: one is not there, not finished, damaged or tampered with, or they do not fit each other.
        """
        found = [named for path in paths for named in read_members(Path(path))]
        names = [name for name, _ in found]
        if len(set(names)) < len(names):  # folders of different models may be called alike
            names = [f"{number}-{name}" for number, name in enumerate(names, start=1)]
        return cls(tuple(model for _, model in found), tuple(names))

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(self.names)})"

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
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Name to class indices of all that is reported."""
        index = {value: place for place, value in enumerate(self.values)}
        found = self.models[0].structures
        return {name: tuple(index[value] for value in all_values(values)) for name, values in found.items()}

    @property
    def decision(self) -> Decision:
        """How probabilities decide which class a voxel is."""
        return Decision.of(len(self.values), self.structures.values())

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every label as other software is told of it, as the first model has it."""
        return self.models[0].segments

    @property
    def region_segments(self) -> tuple[Segment, ...]:
        """Every region of several labels likewise."""
        return self.models[0].region_segments

    @property
    def checksum(self) -> str:
        """Of all models in their order; of a single one, its own."""
        checksums = [model.checksum for model in self.models]
        return checksums[0] if len(self) == 1 else digest(checksums)

    @property
    def members(self) -> list[Named]:
        """The models with their names."""
        return list(zip(self.names, self.models, strict=True))

    @property
    def seen(self) -> frozenset[tuple[str, ...]]:
        """The images that any of the models was trained on; see `Model.seen`."""
        return frozenset[tuple[str, ...]]().union(*(model.seen for model in self.models))

    @property
    def organ_mask(self) -> bool:
        """Whether a scan needs an organ mask."""
        return any(model.organ_mask for model in self.models)

    @property
    def pairs(self) -> int:
        """How often a scan is registered: once onto every atlas, however many models share it."""
        return len({key for model in self.models for key in pair_keys(model)})

    @property
    def shipped(self) -> dict[str, Path | str]:
        """What of them is carried elsewhere, by its name in the folder or zip that it is carried in.

        Raises:
            ModelError: several, called what folders cannot be.
        """
        return dict(self.models[0].shipped) if len(self) == 1 else shipped(self.members)

    def summary(self) -> dict[str, Any]:
        """What a user asks of them, JSON-able: of a single one `Model.summary`, of several that of each too."""
        if len(self) == 1:
            return self.models[0].summary()
        models = [{"name": name, **model.summary()} for name, model in self.members]
        return {
            "labels": models[0]["labels"],
            "regions": models[0]["regions"],
            "channels": list(self.channels),
            "organ_mask": self.organ_mask,
            "registrations": self.pairs,
            "bytes": sum(model["bytes"] for model in models),
            "checksum": self.checksum,
            "models": models,
        }

    def export(self, path: str | Path) -> None:
        """Write them, without work folders and predictions, as one zip, whole or not at all; `load` reads it."""
        pack(path, self.shipped)

    def copy(self, folder: str | Path) -> None:
        """Write what `export` would into a new folder.

        Raises:
            InputError: it exists.
        """
        with atomic_folder(folder) as whole:
            for name, content in self.shipped.items():
                place = whole / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, place)
                else:
                    place.write_text(content, encoding="utf-8", newline="\n")

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
                path=self.models[0].place,
                expected="an organ mask of every scan",
                found="none for " + ", ".join(without[:_SHOWN]),
                remedy="give a folder with a mask CASE.nii.gz of each with --organ-mask",
            )

    def check(self, options: PredictOptions) -> None:
        """Find out before any work what cannot be asked of these models.

        Raises:
            ModelError: ``strict``, and there is one with which no scan can be judged; or learnt weights are asked for,
                and there are none.
            InputError: several models, and another fusion than the mean.
        """
        if len(self) > 1 and options.fusion != "mean":
            raise InputError(
                "several models are fused by the mean of their probabilities",
                expected="the fusion mean",
                found=options.fusion,
                remedy="leave the fusion out, or predict with one model",
            )
        if options.fusion == "learnt" and self.models[0].fusion_weights is None:
            raise ModelError(
                "the model has learnt no weights for its atlases",
                path=self.models[0].place,
                expected=f"a cross-validation (train --folds) that mapped {FEWEST} subjects onto two atlases at least",
                remedy="leave the fusion out, or add --folds to the command that trained it: it goes on from there",
            )
        if options.strict:
            for model in self.models:
                require_verdict(model)


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
    write_json(folder / TOGETHER, manifest(ensemble.members))
    return folder / TOGETHER


def import_models(archive: str | Path, folder: str | Path) -> Ensemble:
    """Unpack and verify a zip of a model, or of several that segment together, into a new folder.

    Raises:
        InputError: the folder exists.
        ModelError: the archive is no model, or damaged.
    """
    archive, folder = Path(archive), Path(folder)
    require_absent(folder)
    if archive.is_dir():
        raise ModelError("this is a folder", path=archive, expected="a zip of a model")
    Ensemble.load([archive]).copy(folder)
    return Ensemble.load([folder])


def _labels(model: Model) -> dict[str, int]:
    """The labels that a network gives."""
    return {name: value for name, value in model.labels.items() if value in model.values[1:]}

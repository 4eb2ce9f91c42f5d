"""The model on disk: a folder, or its zip, of JSON, images and safetensors with checksums. Nothing in it is executed.

model.json               format, labels, channels, plan, registration, network, atlases, provenance, checksums
atlases/NAME.nii.gz      the reference anatomies, canonical orientation
atlas_labels/NAME.nii.gz their references, where the registration's metric weights depend on the tissue
networks/NAME.safetensors
log/NAME.csv             one row an epoch
log/common/log.csv       likewise of the network that those of the atlases were tuned from, where they share one
epochs/E/NAME.safetensors  weights after epoch E, where they were asked for; never shipped
plan.json                the plan as it can be edited before training; model.json holds the one that was used
work/                    registrations, mapped cases, checkpoints: may be deleted, never shipped
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atlasnet import __version__
from atlasnet.cohort import Plan
from atlasnet.cohort.segments import Segment, label_segments, region_segments
from atlasnet.cohort.structures import Hidden, Values, all_values, annotated_counts, read_regions, structures_of
from atlasnet.cohort.subject import HIDDEN
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Unpacked, digest, file_digest, pack, read_json, write_json
from atlasnet.network import NetworkSpec
from atlasnet.training.estimate import DiceEstimate
from atlasnet.training.fusion_weights import FusionWeights
from atlasnet.training.mapping import slice_order, volume_order, working_grid
from atlasnet.training.region import Region
from atlasnet.training.sharing import Sharing
from atlasnet.training.typical import Typical
from atlasnet.volume import Grid, Volume, canonical, read_labels, read_volume
from atlasnet.volume.names import is_file_name
from atlasnet.wording import counted

T = TypeVar("T")

FORMAT = 2
READABLE = (1, FORMAT)  # format 1 has no record of the training subjects
EARLIER = "earlier"  # in the provenance of an update: the images of subjects that only models before were trained on
UNLIKE = "unlike"  # in the provenance: what `atlasnet.training.outliers` found, if anything
TOGETHER = "ensemble.json"  # in a folder of several models; see `atlasnet.prediction.members`
PARTS = ("atlases", "atlas_labels", "networks", "log", "epochs")  # folders that a training fills
LARGEST_ARCHIVE = 64 * 2**30  # bytes unpacked; a zip that claims more is not a model


@dataclass(frozen=True)
class Atlas:
    """One reference anatomy of a model.

    Args:
        name: unique in the model; names its files.
        subject: the training subject that it is, or was before an update; None for an image from elsewhere.
        quality: the lowest, median and highest registration quality of the training subjects onto it, without its own.
        region: the part of its working grid on which its network works; None: all of it.
        labels_key: stands for its reference, which the model keeps where metric weights depend on the tissue; empty: it
            keeps none.
    """

    name: str
    subject: str | None
    quality: Mapping[str, float] = field(default_factory=dict)
    region: Region | None = None
    labels_key: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Atlas:
        """Read what `to_json` wrote; models from before there were regions have none.

        Raises:
            KeyError: a field is absent.
            InputError: the region is no box.
        """
        box = value.get("region")
        region = None if box is None else Region.from_json(box)
        return cls(
            str(value["name"]), value["subject"], dict(value["quality"]), region, str(value.get("labels_key", ""))
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        region = None if self.region is None else self.region.to_json()
        own = {"name": self.name, "subject": self.subject, "quality": dict(self.quality), "region": region}
        return own | ({"labels_key": self.labels_key} if self.labels_key else {})


@dataclass(frozen=True)
class Model:
    """What prediction needs, read from ``folder``.

    Args:
        folder: where the files lie.
        channels: channel names in the order of the arrays.
        labels: class name to the value in label files, background 0 included; the network's classes are these in the
            order of their values.
        ignore_label: the value that marked unannotated voxels, or None.
        plan: spacing, normalisation and intensity ranges.
        operator: name of the registration operator; ``operator_settings`` rebuild it.
        network: architecture of every network.
        atlases: in the order of training.
        provenance: versions, seed, hashes of the training data.
        checksums: SHA-256 by relative path, verified on load.
        segment_table: codes and colours by label name, where the cohort had them.
        typical: what the training subjects are like, for the verdict on a scan; None in a model of format 1.
        dice_estimate: what tells the Dice of a result, where the model was cross-validated.
        fusion_weights: how much an atlas counts at a voxel in the fusion ``learnt``, likewise.
        organ_mask: whether it was trained within organ masks, so that a scan needs its own.
        regions: name to values of all structures, where some have several values; else empty.
    """

    folder: Path
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    ignore_label: int | None
    plan: Plan
    operator: str
    operator_settings: Mapping[str, Any]
    network: NetworkSpec
    atlases: tuple[Atlas, ...]
    provenance: Mapping[str, Any]
    checksums: Mapping[str, str] = field(default_factory=dict)
    segment_table: Mapping[str, Any] = field(default_factory=dict)
    typical: Typical | None = None
    dice_estimate: DiceEstimate | None = None
    fusion_weights: FusionWeights | None = None
    organ_mask: bool = False
    regions: Mapping[str, Values] = field(default_factory=dict)
    _unpacked: Unpacked | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        labels = ", ".join(self.structures)
        return (
            f"Model({self.place}: {counted(len(self.atlases), 'atlas')}, {self.network.name}, labels {labels}, "
            f"channels {', '.join(self.channels)}, {counted(len(self.provenance.get('data', {})), 'training subject')})"
        )

    @property
    def values(self) -> tuple[int, ...]:
        """The label value of each class index: background first, then ascending."""
        return class_values(self.labels, self.ignore_label)

    @property
    def structures(self) -> dict[str, Values]:
        """What was learnt, is scored and reported: name to values, of the regions where there are any, or labels."""
        return structures_of(self._not_ignored, self.regions)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every label but the background as other software is told of it, in the order of their values."""
        return label_segments(self._not_ignored, self.segment_table, self.regions)

    @property
    def region_segments(self) -> tuple[Segment, ...]:
        """Every region of several labels likewise, in their order."""
        return region_segments(self._not_ignored, self.segment_table, self.regions)

    @property
    def _not_ignored(self) -> dict[str, int]:
        """Name to value of every label but the one that is ignored."""
        return {name: value for name, value in self.labels.items() if value != self.ignore_label}

    @property
    def place(self) -> Path:
        """Where the user knows it to lie: its folder, or the archive instead of what that was unpacked to."""
        return self.folder if self._unpacked is None else self._unpacked.known(self.folder)

    @property
    def checksum(self) -> str:
        """Stands for all its files but model.json."""
        return digest(dict(self.checksums))

    @property
    def seen(self) -> frozenset[tuple[str, ...]]:
        """The images, each by the SHA-256 of its files, that its networks were trained on, in updates before too."""
        earlier = self.provenance.get("update", {}).get(EARLIER, ())  # updates of before do not know
        own = self.provenance.get("data", {}).values()
        return frozenset(tuple(files["images"]) for files in own) | frozenset(map(tuple, earlier))

    @property
    def annotated_in(self) -> dict[str, int]:
        """By structure, in how many training subjects it was annotated; empty where all were in all."""
        try:
            hidden = [_hidden(files.get(HIDDEN, ())) for files in self.provenance["data"].values()]
        except (AttributeError, KeyError, TypeError, ValueError):  # a record that somebody has changed
            return {}
        return annotated_counts(self.structures, hidden) if any(hidden) else {}

    @property
    def unlike(self) -> tuple[str, ...]:
        """Training subjects and atlases that are not like the others, a sentence each."""
        found = self.provenance.get(UNLIKE, ())
        return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()

    @property
    def shipped(self) -> dict[str, Path]:
        """The files that are carried elsewhere, by their names in the model; all else stays behind."""
        # An earlier training may have left logs of others.
        logs = sorted(log_path(self.folder, name) for name in (None, *(atlas.name for atlas in self.atlases)))
        names = [
            "model.json",
            *self.checksums,
            *(log.relative_to(self.folder).as_posix() for log in logs if log.is_file()),
        ]
        return {name: self.folder / name for name in names}

    def atlas_path(self, atlas: Atlas) -> Path:
        """Where the atlas image lies."""
        return self.folder / "atlases" / f"{atlas.name}.nii.gz"

    def atlas_labels(self, atlas: Atlas) -> Volume | None:
        """The atlas's reference, (1, z, y, x), canonical orientation, where its tissue decides on metric weights."""
        return canonical(read_labels(atlas_labels_path(self.folder, atlas.name)))[0] if atlas.labels_key else None

    def files(self, atlas: Atlas) -> list[Path]:
        """Those that the model keeps of an atlas."""
        labels = [atlas_labels_path(self.folder, atlas.name)] if atlas.labels_key else []
        return [self.atlas_path(atlas), *labels, self.weights_path(atlas)]

    def weights_path(self, atlas: Atlas, epoch: int | None = None) -> Path:
        """Where the weights of the atlas's network lie, those after an epoch where it is given."""
        return weights_path(self.folder, atlas, epoch)

    def atlas_image(self, atlas: Atlas) -> Volume:
        """The atlas, (c, z, y, x), canonical orientation."""
        return read_volume(self.atlas_path(atlas), channels=len(self.channels) > 1)

    def seen_mm(self, atlas: Atlas) -> list[float] | None:
        """How wide along (x, y, z), mm, the part of the atlas's space is that its network sees; None: all of it."""
        if atlas.region is None:
            return None
        size = np.subtract(atlas.region.stop, atlas.region.start).tolist()
        voxels = volume_order(size, self.plan.slice_axis)[::-1]
        return [round(n * mm, 1) for n, mm in zip(voxels, self.plan.spacing, strict=True)]

    def check_region(self, atlas: Atlas, grid: Grid) -> None:
        """Check that the atlas's region lies in the grid of its network.

        Args:
            atlas: of this model.
            grid: of its image.

        Raises:
            ModelError: it does not.
        """
        slices = slice_order(working_grid(grid, self.plan).shape, self.plan.slice_axis)
        if atlas.region is not None and not atlas.region.fits(slices):
            raise ModelError(
                f"the region of atlas {atlas.name} does not lie in its image",
                path=self.folder / "model.json",
                expected="at most " + " x ".join(map(str, slices)),
                found=str(atlas.region.to_json()),
                remedy="copy the model again",
            )

    def save(self) -> None:
        """Write model.json with the checksums of the other files; it comes last: a model that has it is whole."""
        files = [path for atlas in self.atlases for path in self.files(atlas)]
        content = {
            "format": FORMAT,
            "atlasnet": __version__,
            "channels": list(self.channels),
            "labels": dict(self.labels),
            "ignore_label": self.ignore_label,
            "segments": dict(self.segment_table),
            **({"regions": dict(self.regions)} if self.regions else {}),
            "plan": self.plan.to_json(),
            "registration": {"operator": self.operator, "settings": dict(self.operator_settings)},
            "network": self.network.to_json(),
            "atlases": [atlas.to_json() for atlas in self.atlases],
            "typical": None if self.typical is None else self.typical.to_json(),
            "dice_estimate": None if self.dice_estimate is None else self.dice_estimate.to_json(),
            "fusion_weights": None if self.fusion_weights is None else self.fusion_weights.to_json(),
            "organ_mask": self.organ_mask,
            "provenance": dict(self.provenance),
            "checksums": {p.relative_to(self.folder).as_posix(): file_digest(p) for p in files},
        }
        write_json(self.folder / "model.json", content | {"digest": _own_digest(content)})

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True, unpacked: Unpacked | None = None) -> Model:
        """Read a model.

        Args:
            path: its folder or zip.
            verify: whether every file is compared with its checksum.
            unpacked: the archive in whose content the folder lies, if it does.

        Raises:
            ModelError: it is not there, not finished, of another format, damaged, or tampered with.
        """
        folder = Path(path)
        if unpacked is None and not folder.exists():
            raise ModelError("there is no model", path=path, remedy="train one with: atlasnet train DATA -o MODEL")
        if unpacked is None and folder.is_file():
            unpacked = unpacked_archive(folder)
            folder = unpacked.folder
        model = cls._read(folder if unpacked is None else unpacked.known(folder), folder, unpacked)
        if verify:
            model.verify()
        return model

    @classmethod
    def _read(cls, path: Path, folder: Path, unpacked: Unpacked | None) -> Model:
        try:
            content = read_json(folder / "model.json")
        except FileNotFoundError as error:
            if (folder / "plan.json").exists():
                raise ModelError(
                    "the model has no model.json: it is not finished",
                    path=path,
                    remedy="run the same atlasnet train command again; it goes on where it stopped",
                ) from error
            if (folder / TOGETHER).exists():
                raise ModelError(
                    "these are several models that segment together, and one is needed",
                    path=path,
                    remedy="name the folder of one of them; atlasnet model import unpacks a zip",
                ) from error
            raise ModelError("this is not a model", path=path, expected="a folder or zip with model.json") from error
        except (OSError, ValueError) as error:
            raise ModelError("model.json cannot be read", path=path, found=str(error)) from error
        found = content.get("format") if isinstance(content, dict) else None
        if found not in READABLE:
            raise ModelError(
                "the model's format is not one that this version reads",
                path=path,
                expected=" or ".join(f"format {number}" for number in READABLE),
                found=f"format {found}",
                remedy=_way_to_read(content.get("atlasnet") if isinstance(content, dict) else None),
            )
        if "digest" in content and content["digest"] != _own_digest(content):  # models of before have none
            raise ModelError(
                "model.json is not as it was written",
                path=path,
                expected=f"what has the digest {content['digest']}",
                found=_own_digest(content),
                remedy="copy the model again; labels and plan are changed before a training, not in a model",
            )
        try:
            model = cls(
                folder=folder,
                channels=tuple(str(name) for name in content["channels"]),
                labels={str(name): int(value) for name, value in content["labels"].items()},
                ignore_label=None if content["ignore_label"] is None else int(content["ignore_label"]),
                plan=Plan.from_json(content["plan"]),
                operator=str(content["registration"]["operator"]),
                operator_settings=dict(content["registration"]["settings"]),
                network=NetworkSpec.from_json(content["network"]),
                atlases=tuple(Atlas.from_json(atlas) for atlas in content["atlases"]),
                provenance=_provenance(content["provenance"]),
                checksums={str(name): str(value) for name, value in content["checksums"].items()},
                segment_table=content.get("segments", {}),
                typical=_optional(content, "typical", lambda value: Typical.from_json(value, len(content["channels"]))),
                dice_estimate=_optional(content, "dice_estimate", DiceEstimate.from_json),
                fusion_weights=_optional(content, "fusion_weights", FusionWeights.from_json),
                organ_mask=bool(content.get("organ_mask", False)),
                regions=read_regions(content.get("regions", {})),
                _unpacked=unpacked,
            )
            _ = model.segments, model.region_segments  # what it says of the labels is understood
            if not {value for values in model.regions.values() for value in all_values(values)} <= {*model.values[1:]}:
                raise ValueError("a region has a value that no label has")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(
                "model.json is not complete", path=path, found=f"{type(error).__name__}: {error}"
            ) from error
        except InputError as error:
            raise ModelError(f"model.json cannot be used: {error}", path=path) from error
        for atlas in model.atlases:
            if not is_file_name(atlas.name):
                raise ModelError("an atlas has a name that is not a file name", path=path, found=repr(atlas.name[:80]))
        own = {p.relative_to(folder).as_posix() for atlas in model.atlases for p in model.files(atlas)}
        if set(model.checksums) != own:
            raise ModelError(
                "model.json has not the checksums of the model's files",
                path=path,
                expected=", ".join(sorted(own)),
                found=", ".join(sorted(model.checksums)) or "none",
            )
        return model

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ModelError: a file is absent or not what was written.
        """
        files = [file for atlas in self.atlases for file in self.files(atlas)]
        with self.named():
            for file in files:
                name = file.relative_to(self.folder).as_posix()
                if not file.is_file():
                    raise ModelError("a file of the model is absent", path=file, remedy="copy the model again")
                if self.checksums.get(name) != file_digest(file):
                    raise ModelError(
                        "a file of the model is not what was written: its checksum differs",
                        path=file,
                        remedy="copy the model again",
                    )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors inside name a file of an archive as the user knows it, not by the place that it was unpacked to."""
        try:
            yield
        except InputError as error:
            place = Path(error.path or ".")
            if self._unpacked is None or not place.is_relative_to(self.folder):
                raise
            raise error.told(path=self._unpacked.known(place)) from error

    def summary(self) -> dict[str, Any]:
        """What a user asks of a model, JSON-able: nothing of it names a patient but the subjects that are atlases."""
        recipe = self.provenance.get("recipe")
        return {
            "labels": dict(self.labels),
            "ignore_label": self.ignore_label,
            "regions": dict(self.regions),
            "channels": list(self.channels),
            "network": self.network.to_json(),
            "epochs": recipe.get("epochs") if isinstance(recipe, Mapping) else None,
            "epochs_of_networks": self._epochs(),
            "organ_mask": self.organ_mask,
            "registration": self.operator,
            "network_spacing_mm": list(self.plan.spacing),
            "registration_spacing_mm": list(self.plan.registration_spacing),
            **_similarity(self.operator_settings),
            "training_subjects": len(self.provenance.get("data", {})),
            "annotated_in": self.annotated_in,
            "atlases": [atlas.to_json() | {"network_sees_mm": self.seen_mm(atlas)} for atlas in self.atlases],
            "bytes": sum((self.folder / name).stat().st_size for name in self.checksums),
            "versions": dict(self.provenance.get("versions", {})),
            "checksum": self.checksum,
        }

    def _epochs(self) -> str | None:
        """For how many epochs which network was trained, in words; None of a model that does not say."""
        try:
            recipe, sharing = self.provenance["recipe"], self.provenance["sharing"]
            return Sharing(kind=sharing["kind"], tuning=sharing["tuning"]).described(
                recipe["epochs"], len(self.atlases)
            )
        except (KeyError, TypeError, InputError):
            return None

    def export(self, path: str | Path) -> None:
        """Write the model, without its work folder, as one zip."""
        pack(path, self.shipped)


def _hidden(texts: Sequence[str]) -> Hidden:
    """What nobody annotated in a subject, from `Subject.hashes`."""
    pairs = (text.split(" as ") for text in texts)
    return tuple((int(value), int(stands)) for value, stands in pairs)


def unpacked_archive(path: Path) -> Unpacked:
    """The content of a zip of a model, or of several.

    Raises:
        ModelError: it is no zip, damaged, or not to be trusted.
    """
    return Unpacked(path, largest=LARGEST_ARCHIVE, error=ModelError, what="a model archive")


def atlas_labels_path(folder: Path, name: str) -> Path:
    """Where a model in ``folder`` keeps the reference of the atlas of this name."""
    return folder / "atlas_labels" / f"{name}.nii.gz"


def weights_path(folder: Path, atlas: Atlas, epoch: int | None = None) -> Path:
    """Where a model in ``folder`` keeps the weights of the atlas's network; after an epoch, where it is given."""
    place = folder / "networks" if epoch is None else folder / "epochs" / str(epoch)
    return place / f"{atlas.name}.safetensors"


def log_path(folder: Path, atlas: str | None) -> Path:
    """Where a model in ``folder`` keeps the log of this atlas's network; None: of the one that is common to all."""
    # No atlas is called so: what its name begins with would be a folder.
    return folder / "log" / f"{'common/log' if atlas is None else atlas}.csv"


def class_values(labels: Mapping[str, int], ignore_label: int | None) -> tuple[int, ...]:
    """The label value of each class index: background 0 first, then the others in ascending order."""
    return (
        0,
        *sorted({int(v) for v in labels.values()} - {0} - ({ignore_label} if ignore_label is not None else set())),
    )


def _own_digest(content: Mapping[str, Any]) -> str:
    """Of all that model.json holds beside it, as it comes back from the file."""
    own = {name: value for name, value in content.items() if name != "digest"}
    try:
        return digest(json.loads(json.dumps(own)))
    except ValueError:  # a number that is none
        return ""


def _way_to_read(version: Any) -> str:
    """The commands that help with a model of another format, which this version of atlasnet wrote."""
    again = "train it again: atlasnet train DATA -o MODEL"
    if not isinstance(version, str) or not re.fullmatch(r"\d+(\.\w+){1,4}", version) or version == __version__:
        return again
    return f"pip install 'atlasnet=={version}', which wrote it, or {again}"


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a model was made of, by whatever version; what is read of it is as it should be.

    Raises:
        TypeError, ValueError: it is not.
    """
    known = {name: content[name] for name in ("data", "versions", "loss_weights") if name in content}
    return dict(content) | {name: dict(value) for name, value in known.items()}


def _similarity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By which metrics a registration was told to register, and for which tissues they were learnt, if it was."""
    metrics, classes = settings.get("metrics"), settings.get("classes")
    told = isinstance(metrics, Mapping) and all(isinstance(weight, int | float) for weight in metrics.values())
    several = classes if isinstance(classes, Sequence) else ()
    return {
        "registration_metrics": metrics if told else None,
        "registration_classes": [str(one["name"]) for one in several if isinstance(one, Mapping) and "name" in one],
    }


def _optional(content: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    """A part of model.json that may be null or, in format 1, absent."""
    return None if content.get(name) is None else read(content[name])

"""A model that goes on with what a cohort holds now: its plan, its atlases and what its networks have learnt stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlasnet.atlas import AtlasSource
from atlasnet.cohort import Cohort, Plan
from atlasnet.cohort.masks import are_masked
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Reporter, digest, file_digest
from atlasnet.training.model import EARLIER, Model, atlas_labels_path
from atlasnet.training.options import FitOptions
from atlasnet.training.region import Region
from atlasnet.training.typical import NOBODY, Earlier
from atlasnet.volume import read_grid
from atlasnet.wording import counted, shortened

ATLAS_KEYS = "atlas_keys"  # in a model's provenance: by name, the key of an atlas's voxels
LOSS_WEIGHTS = "loss_weights"  # likewise: what was said of labels in the loss, if anything was


@dataclass(frozen=True)
class Changes:
    """How a cohort differs from what a model was trained on, by the names of the subjects.

    Args:
        added: the model has not seen them.
        changed: their files are not what they were.
        removed: they are not in the cohort.
        same: the others.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    same: tuple[str, ...]

    @classmethod
    def between(cls, before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
        """What has become of subjects, by the hashes of their files then and now."""
        return cls(
            added=tuple(name for name in now if name not in before),
            changed=tuple(name for name in now if name in before and before[name] != now[name]),
            removed=tuple(name for name in before if name not in now),
            same=tuple(name for name in now if before.get(name) == now[name]),
        )

    def summary(self) -> str:
        """One line."""
        parts = [
            f"{what} {shortened(names)}"
            for what, names in (
                ("added:", self.added),
                ("with other files than then, and treated as new:", self.changed),
                ("not there any more:", self.removed),
            )
            if names
        ]
        return "; ".join([f"{counted(len(self.same), 'subject')} as the model knows them", *parts])

    def tell(self, reporter: Reporter, *, tuned: bool) -> None:
        """Say what becomes of them.

        Args:
            reporter: is told.
            tuned: whether the networks go on from the model's weights.
        """
        reporter.note(self.summary())
        if self.removed:
            reporter.warn(
                f"the model was trained on these too, which are not in the cohort and do not train it now: "
                f"{shortened(self.removed)}"
            )
        if tuned and (self.changed or self.removed):
            reporter.warn(
                "the weights that the networks start from have learnt from subjects that have changed or are gone; "
                "--sharing independent trains without them"
            )

    def to_json(self) -> dict[str, list[str]]:
        """The names, but of those that are the same."""
        return {"added": list(self.added), "changed": list(self.changed), "removed": list(self.removed)}


@dataclass(frozen=True)
class Update:
    """The model that is updated; its folder is only read.

    Args:
        model: finished, verified.
        cohort: what the new model is trained on.
    """

    model: Model
    cohort: Cohort

    @property
    def data(self) -> Mapping[str, Mapping[str, list[str]]]:
        """The hashes of the files that the model was trained on, by subject."""
        return dict(self.model.provenance["data"])

    def check(self, folder: Path) -> None:
        """Whether the cohort can be given to the model's networks.

        Args:
            folder: of the new model.

        Raises:
            InputError: ``folder`` is that of the model.
            ModelError: the model has other channels or labels, or does not say what it was trained on.
        """
        model = self.model
        data, keys = model.provenance.get("data"), model.provenance.get(ATLAS_KEYS, {})
        known = isinstance(data, Mapping) and all(
            isinstance(files, Mapping) and isinstance(files.get("images"), list) for files in data.values()
        )
        if not known or not isinstance(keys, Mapping):
            raise ModelError(
                "model.json does not say what the model was trained on",
                path=model.place,
                expected="hashes of files by subject in its provenance",
                remedy="copy the model again, or train a new one, without --update",
            )
        if folder.resolve() == model.folder.resolve():
            raise InputError(
                "a model is not updated in its own folder",
                path=folder,
                remedy="name another with -o, and remove this one when you trust the new one",
            )
        if model.organ_mask != are_masked(self.cohort):
            raise ModelError(
                "the cohort has organ masks and the model was trained without"
                if not model.organ_mask
                else "the model was trained within organ masks and the cohort has none",
                path=self.cohort.root,
                remedy="give --organ-mask as it was given then; else train a new model, without --update",
            )
        for what, expected, found, declared in (
            ("channels", list(model.channels), list(self.cohort.channels), "channel_names"),
            ("labels", dict(model.labels), self.cohort.labels, "labels"),
            ("regions", dict(model.regions), dict(self.cohort.regions), "labels"),
        ):
            if expected != found:
                raise ModelError(
                    f"the cohort's {what} are not the model's",
                    path=self.cohort.root,
                    expected=str(expected),
                    found=str(found),
                    remedy=f"where they mean the same, declare them like the model's under {declared!r} in "
                    "dataset.json; else train a new model, without --update",
                )

    def completed(self, options: FitOptions) -> FitOptions:
        """The options, with the model's own where they leave the choice.

        Raises:
            InputError: they ask for something that the model has otherwise.
        """
        model, own = self.model, dict(self.model.operator_settings)
        asked = dict(options.operator_settings)
        for what, wanted, there in (
            ("network", options.network, model.network.name),
            ("width", options.width, model.network.width),
            ("registration", options.operator, model.operator),
            ("registration's settings", asked or None, {name: own.get(name) for name in asked}),
        ):
            if wanted not in (None, there) and digest(wanted) != digest(there):  # lists of JSON are tuples elsewhere
                raise InputError(
                    f"the {what} of a model that is updated stays as it is",
                    expected=str(there),
                    found=str(wanted),
                    remedy="leave the option out, or train a new model, without --update",
                )
        return replace(
            options,
            network=model.network.name,
            width=model.network.width,
            operator=model.operator,
            operator_settings=own,
            sharing="model" if options.sharing is None else options.sharing,
            loss_weights=options.loss_weights or model.provenance.get(LOSS_WEIGHTS, {}),
        )

    def plan(self, path: Path) -> Plan:
        """The model's plan.

        Args:
            path: of the new model's plan.json, which may be there already.

        Raises:
            InputError: that is another plan.
        """
        plan = self.model.plan
        if path.exists() and Plan.read(path) != plan:
            raise InputError(
                "the plan of a model that is updated stays as it is",
                path=path,
                remedy="delete the file, or train a new model by it, without --update",
            )
        return plan

    def changes(self, hashes: Mapping[str, Any], atlases: int) -> Changes:
        """How the cohort differs from what the model was trained on.

        Args:
            hashes: of the cohort's files, by subject.
            atlases: of the new model.

        Raises:
            InputError: it does not, and there are no more atlases.
        """
        changes = Changes.between(self.data, hashes)
        if not (changes.added or changes.changed or changes.removed) and atlases == len(self.model.atlases):
            raise InputError(
                "there is nothing to update: the model was trained on these very subjects",
                path=self.cohort.root,
                remedy="add subjects to the folder, or atlases with --atlas or --atlases",
            )
        return changes

    @property
    def atlases(self) -> list[AtlasSource]:
        """The model's atlases."""
        channels = len(self.model.channels)
        return [AtlasSource(a.name, (self.model.atlas_path(a),), a.subject, channels) for a in self.model.atlases]

    @property
    def atlas_labels(self) -> dict[str, tuple[str, Path]]:
        """By name, the key and the place of the references of atlases that the model keeps."""
        folder = self.model.folder
        return {
            atlas.name: (atlas.labels_key, atlas_labels_path(folder, atlas.name))
            for atlas in self.model.atlases
            if atlas.labels_key
        }

    @property
    def atlas_keys(self) -> dict[str, str]:
        """By name, what stands for the voxels of each of the model's atlases, as when it was trained."""
        written = self.model.provenance.get(ATLAS_KEYS, {})  # models of before have none
        found = {}
        for atlas in self.model.atlases:
            subject = self.data.get(atlas.subject or "")
            files = [file_digest(self.model.atlas_path(atlas))] if subject is None else subject["images"]
            found[atlas.name] = written.get(atlas.name, digest(files))
        return found

    def starts(self, names: Sequence[str]) -> list[tuple[Path, str]]:
        """Per atlas of the new model, the weights from which its network starts, and their checksum.

        The network of an atlas that is new starts from that of the first.
        """
        own = {atlas.name: atlas for atlas in self.model.atlases}
        paths = [self.model.weights_path(own.get(name, self.model.atlases[0])) for name in names]
        return [(path, self.model.checksums[path.relative_to(self.model.folder).as_posix()]) for path in paths]

    @property
    def regions(self) -> dict[str, Region | None]:
        """By name, the region of each of the model's atlases: what its network has learnt, it has learnt there.

        Raises:
            ModelError: one does not lie in its atlas.
        """
        model = self.model
        for atlas in model.atlases:
            model.check_region(atlas, read_grid(model.atlas_path(atlas)))
        return {atlas.name: atlas.region for atlas in model.atlases}

    def earlier(self, hashes: Mapping[str, Mapping[str, list[str]]], reporter: Reporter) -> Earlier:
        """What the model knows of training subjects whose images are not in the cohort; of nobody, if all are.

        Args:
            hashes: of the cohort's files, by subject.
            reporter: is told where the model knows nothing of them.
        """
        record = self.model.typical
        known = frozenset(digest(files["images"]) for files in self.data.values())
        there = sum(digest(files["images"]) in known for files in hashes.values())
        if record is None and there < len(known):
            reporter.warn(
                "the model has no record of what its training subjects are like, so that scans will be compared with "
                "those in the cohort alone: those that are gone are not known"
            )
        # Those of an update before the last are in the record only.
        return Earlier(record, known) if record is not None and record.subjects > there else NOBODY

    def record(self, hashes: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """What was updated, and by what, for the provenance of the new model.

        Args:
            hashes: of the cohort's files, by subject.
            names: of the new model's atlases.
        """
        old = {atlas.name for atlas in self.model.atlases}
        atlases = [name for name in names if name not in old]
        earlier = self.model.seen - {tuple(files["images"]) for files in hashes.values()}
        return {
            "model": self.model.checksum,
            **Changes.between(self.data, hashes).to_json(),
            "atlases": atlases,
            EARLIER: sorted(map(list, earlier)),
        }

    @property
    def work(self) -> Path:
        """Where the model's own work folder lies, if it has been kept there."""
        return self.model.folder / "work"

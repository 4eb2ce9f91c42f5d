"""The atlases of a training: named, chosen among the subjects, or those of the model that is updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlasnet.atlas import CHOICE_REVISION, AtlasSource, choose_atlases, resolve_atlases
from atlasnet.cohort import Cohort
from atlasnet.errors import InputError
from atlasnet.execution import (
    Execution,
    WorkFolder,
    copy_file,
    digest,
    read_json,
    reading_back,
    write_json,
)
from atlasnet.training.model import atlas_labels_path
from atlasnet.training.pairs import REVISION
from atlasnet.training.sources import Keyed, keyed_atlas
from atlasnet.training.update import Update
from atlasnet.volume import Volume, canonical, volume_digest, write_labels, write_volume
from atlasnet.volume.names import is_file_name
from atlasnet.wording import counted

DEFAULT_ATLASES = 6  # the published number; Dice levels off after five


def atlas_count(wanted: int | tuple[str, ...] | None, subjects: int) -> int:
    """How many atlases there are; ``wanted`` as in `FitOptions`."""
    return len(wanted) if isinstance(wanted, tuple) else min(wanted or DEFAULT_ATLASES, subjects)


def chosen_names(path: Path, everyone: Sequence[str], count: int) -> tuple[str, ...] | None:
    """The names of the atlases that are chosen among the subjects, None where that is still to be done.

    Args:
        path: the names that an earlier call chose, if it did.
        everyone: the subjects.
        count: how many are wanted.

    Raises:
        InputError: the file is damaged.
    """
    if path.exists():
        with reading_back(path):
            names = tuple(read_json(path))
            if unknown := [name for name in names if name not in everyone]:
                raise ValueError(f"{unknown[0]!r} is no subject")
            return names
    return tuple(sorted(everyone)) if count == len(everyone) else None


@dataclass(frozen=True)
class AtlasSet:
    """Which atlases a model gets.

    Args:
        cohort: the subjects.
        wanted: how many to choose among them (None: 6, or all of fewer), or their names: subjects or image files. In
            an update, how many there are to be in all (None: as many as there are), or the names of those to be added.
        work: where a choice is kept.
        execution: device, threads, progress.
        update: the model whose atlases come first.
        images: files of images beside the subjects among which they are chosen too.
    """

    cohort: Cohort
    wanted: int | tuple[str, ...] | None
    work: WorkFolder
    execution: Execution
    update: Update | None = None
    images: tuple[str, ...] = ()

    @property
    def old(self) -> list[AtlasSource]:
        """Those of the model that is updated."""
        return [] if self.update is None else self.update.atlases

    @cached_property
    def beside(self) -> dict[str, AtlasSource]:
        """The images beside the subjects among which atlases are chosen, by name."""
        old = {source.name for source in self.old}
        found = self._named(self.images) if self.images else []
        return {source.name: source for source in found if source.subject is None and source.name not in old}

    @cached_property
    def keys_beside(self) -> dict[str, str]:
        """What stands for their voxels."""
        return {name: _key(source) for name, source in self.beside.items()}

    @property
    def count(self) -> int:
        """How many atlases there are, the old ones included."""
        old = {source.name for source in self.old}
        if isinstance(self.wanted, tuple):
            return len(old) + len(self.wanted)
        if self.update is not None and self.wanted is None:
            return len(old)
        others = sum(subject.name not in old for subject in self.cohort) + len(self.beside)
        return atlas_count(self.wanted, len(old) + others)

    def check(self) -> None:
        """Find what is wrong with those that were asked for.

        Raises:
            CohortError: one that was named is not there, see `resolve_atlases`.
            InputError: too few are asked for, an old one's name is given again, or all are named and yet to be chosen
                among further images.
        """
        least = max(1, len(self.old))
        if isinstance(self.wanted, int) and self.wanted < least:
            raise InputError(
                "at least one atlas is needed" if self.update is None else "a model that is updated keeps its atlases",
                expected=f"{least} or more",
                found=str(self.wanted),
            )
        if isinstance(self.wanted, int) and self.wanted > self.count:
            there = self._there(self.count - len(self.beside))
            self.execution.reporter.warn(
                f"{self.wanted} atlases were asked for and there are {there}: all of them are atlases"
            )
        if self.wanted is None and self.update is None and not self.images and self.count < DEFAULT_ATLASES:
            few = f"{counted(self.count, 'subject')}, {counted(self.count, 'atlas')}"
            self.execution.reporter.note(f"{few}; scans that nobody annotated can be further atlases: --atlas-images")
        if isinstance(self.wanted, tuple) and self.images:
            raise InputError(
                "atlases are either named or chosen among further images",
                found=", ".join(self.wanted),
                remedy="say how many to choose, or name those images as well",
            )
        named = self._named(self.wanted) if isinstance(self.wanted, tuple) else []
        unfit = [source for source in (*named, *self.beside.values()) if not is_file_name(source.name)]
        if unfit:
            raise InputError(
                "the name of an atlas cannot be that of the model's file, which it gets",
                path=unfit[0].paths[0],
                expected="printable characters, no slash, at most 200 bytes",
                found=repr(unfit[0].name),
                remedy="rename the file",
            )
        if named:
            taken = {source.name for source in self.old} & {source.name for source in named}
            if taken:
                raise InputError(
                    "the model that is updated has atlases of these names already",
                    found=", ".join(sorted(taken)),
                    remedy="leave them out, or give another image under a name of its own",
                )

    def identity(self) -> Any:
        """What was asked for, as JSON; an image is what it holds, wherever it lies."""
        if not isinstance(self.wanted, tuple):
            return self.wanted
        names = {subject.name for subject in self.cohort}
        asked: list[Any] = []
        for atlas in self.wanted:
            if atlas in names or not Path(atlas).exists():
                asked.append(atlas)
                continue
            (source,) = self._named([atlas])
            files = [volume_digest(path) for path in source.paths]
            asked.append([Path(atlas).name, files[0] if len(files) == 1 else digest(files)])
        return asked

    def known(self, subjects: Sequence[Keyed]) -> list[AtlasSource] | None:
        """The atlases, the old ones first; None where choosing is still to be done."""
        if isinstance(self.wanted, tuple):
            return [*self.old, *self._named(self.wanted)]
        if self.count == len(self.old):
            return self.old
        names = chosen_names(self._choice(subjects), list(self._candidates(subjects)), self.count)
        return None if names is None else self._chosen(names)

    def found(self, subjects: Sequence[Keyed]) -> list[AtlasSource]:
        """The same, chosen now if they have not been.

        Raises:
            RegistrationError: too few subjects can be compared, see `choose_atlases`.
        """
        if isinstance(self.wanted, tuple):
            return [*self.old, *self._named(self.wanted)]
        if self.count == len(self.old):
            return self.old
        say, path = self.execution.reporter, self._choice(subjects)
        key = path.parent.name
        if not self.work.finished("choice", key, say.warn):
            say.note(f"choosing {counted(self.count - len(self.old), 'atlas')} among {self._there(len(subjects))}")
            chosen = choose_atlases(
                self._candidates(subjects),
                self.count,
                included=[source.name for source in self.old],
                execution=self.execution,
            )
            with self.work.making("choice", key) as folder:
                write_json(folder / path.name, chosen)
        return self._chosen(read_json(path))

    def keys(self, sources: Sequence[AtlasSource], subjects: Sequence[Keyed]) -> dict[str, str]:
        """By name, what stands for an atlas's voxels: the key of the subject that it is, or the hash of its files."""
        keys = {} if self.update is None else self.update.atlas_keys
        known = self.keys_beside | {subject.name: subject.key for subject in subjects} | keys
        return keys | {source.name: known.get(source.name) or _key(source) for source in sources}

    def written(
        self, sources: Sequence[AtlasSource], subjects: Sequence[Keyed], folder: Path, *, labelled: bool = False
    ) -> list[Keyed]:
        """The atlases, written into the model's folder, where prediction will read them too.

        Args:
            sources: the atlases.
            subjects: of the cohort.
            folder: of the model.
            labelled: whether the registration looks at the references of atlases, which are written then too.
        """
        keys, targets, old = self.keys(sources, subjects), [], self.old
        for source in sources:
            path = folder / "atlases" / f"{source.name}.nii.gz"
            # Written anew by every call: what an earlier one left may come from a file that has changed since.
            if source in old:
                copy_file(source.paths[0], path)
            else:
                write_volume(path, canonical(source.read())[0])
            labels = self._labels(source, subjects, folder) if labelled else None
            targets.append(keyed_atlas(source.name, keys[source.name], path, len(self.cohort.channels), labels))
        return targets

    def labels_key(self, source: AtlasSource, subjects: Sequence[Keyed]) -> str:
        """What stands for the reference of an atlas; empty where it has none, or not all labels were annotated."""
        if self.update is not None and source in self.old:
            return self.update.atlas_labels.get(source.name, ("", None))[0]
        own = next((s for s in subjects if s.name == source.subject and s.read_labels is not None), None)
        return "" if own is None or own.hidden else own.labels_key

    def _labels(self, source: AtlasSource, subjects: Sequence[Keyed], folder: Path) -> tuple[str, Path] | None:
        """Write an atlas's reference: its key and its place; None where it has none."""
        key, place = self.labels_key(source, subjects), atlas_labels_path(folder, source.name)
        if not key:
            return None
        if self.update is not None and source in self.old:
            copy_file(self.update.atlas_labels[source.name][1], place)
        else:
            (reading,) = (s.read_labels for s in subjects if s.name == source.subject)
            assert reading is not None
            write_labels(place, reading())
        return key, place

    def _there(self, subjects: int) -> str:
        """Among how many images atlases are chosen."""
        beside = f" and {counted(len(self.beside), 'further image')}" if self.beside else ""
        return counted(subjects, "subject") + beside

    def _named(self, names: Sequence[str]) -> list[AtlasSource]:
        return resolve_atlases(self.cohort, names)

    def _chosen(self, names: Sequence[str]) -> list[AtlasSource]:
        old = {source.name for source in self.old}
        new = [name for name in names if name not in old]
        return [*self.old, *(self.beside.get(name) or self._named([name])[0] for name in new)]

    def _candidates(self, subjects: Sequence[Keyed]) -> dict[str, Callable[[], Volume]]:
        """How the images are read that may be atlases, and of those that are."""
        others = {source.name: source.read for source in (*self.old, *self.beside.values())}
        return {subject.name: subject.read for subject in subjects} | others

    def _choice(self, subjects: Sequence[Keyed]) -> Path:
        """Where the names of the chosen atlases are kept."""
        depends_on: dict[str, Any] = {
            "revision": [REVISION, CHOICE_REVISION],
            "count": self.count,
            "images": {s.name: s.key for s in subjects} | self.keys_beside,
        }
        if self.update is not None:
            depends_on["old"] = self.update.atlas_keys
        return self.work.entry("choice", digest(depends_on)) / "atlases.json"


def _key(source: AtlasSource) -> str:
    """What stands for the voxels of an image that is no subject's."""
    return digest([volume_digest(path) for path in source.paths])

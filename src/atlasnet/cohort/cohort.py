"""`Cohort`: a checked list of subjects with their channels and labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort.declaration import BACKGROUND, Declaration, read_declaration, unnamed_label
from atlasnet.cohort.layout import list_subjects
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.structures import Values, structures_of
from atlasnet.cohort.subject import Subject
from atlasnet.errors import CohortError, VolumeError, require_folder
from atlasnet.volume.io import read_labels
from atlasnet.volume.names import case_and_channel, composed, image_stem
from atlasnet.wording import counted

UNNAMED_CHANNEL = "image"
_SHOWN = 20


@dataclass(frozen=True)
class Cohort:
    """Subjects that are segmented alike.

    Args:
        root: their folder.
        subjects: in the order of their names.
        channels: channel names in the order of the arrays; ``CT`` means Hounsfield units.
        labels: label name to value in the reference files, background 0 included, the ignore label not.
        ignore_label: the value of voxels that nobody annotated, or None.
        format: ``"nnU-Net"``, ``"Decathlon"`` or ``"plain"``.
        segments: codes and colours by label name, as ``dataset.json`` has them; see `atlasnet.cohort.segments`.
        regions: name to values of all structures, where some are declared as several values; else empty.
    """

    root: Path
    subjects: tuple[Subject, ...]
    channels: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    format: str
    segments: Mapping[str, Any] = field(default_factory=dict)
    regions: Mapping[str, Values] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, *, labelled: bool = True) -> Cohort:
        """Read a cohort's layout and ``dataset.json``; the images stay on disk.

        Where no ``dataset.json`` declares labels, every reference is read for the values in it, named ``label 1`` and
        so on.

        Args:
            path: a folder in one of the three layouts (see `atlasnet.cohort.layout.list_subjects`).
            labelled: whether every subject must have a reference.

        Raises:
            CohortError: no layout is recognised, or files are missing, surplus or misnamed: all of them are named.
        """
        cohort, problems = scan(path, labelled=labelled)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors or not cohort.subjects:
            lines = [f"\n  {problem}" for problem in errors[:_SHOWN]]
            more = f"\n  and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
            raise CohortError(
                f"the cohort has {counted(len(errors), 'problem')}" if errors else "the cohort has no subjects",
                path=path,
                remedy=f"see them all with: atlasnet check {path}" + "".join(lines) + more,
            )
        return cohort

    def select(self, names: Sequence[str]) -> Cohort:
        """The cohort of these subjects only, in the order of ``names``.

        Raises:
            CohortError: a name is unknown, or there twice, or there is none.
        """
        known = {composed(subject.name): subject for subject in self.subjects}
        names = [composed(name) for name in names]
        unknown = [name for name in names if name not in known]
        if unknown or not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            raise CohortError(
                "these are not subjects of the cohort" if unknown else "each subject must be named once",
                path=self.root,
                expected=", ".join([*known][:6]) + (", ..." if len(known) > 6 else ""),
                found=", ".join((unknown or twice)[:_SHOWN]) or "no name",
                remedy=_shorter(unknown, known),
            )
        return replace(self, subjects=tuple(known[name] for name in names))

    @property
    def structures(self) -> dict[str, Values]:
        """What is learnt and scored: the regions where there are any, else every label but the background."""
        return structures_of(self.labels, self.regions)

    @property
    def declared(self) -> frozenset[int]:
        """The values that a voxel of a reference may have."""
        return frozenset({0, *self.labels.values()} | ({self.ignore_label} if self.ignore_label is not None else set()))

    def __len__(self) -> int:
        return len(self.subjects)

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects)

    def __getitem__(self, name: str) -> Subject:
        for subject in self.subjects:
            if subject.name == composed(name):
                return subject
        raise KeyError(name)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        several = {name: values for name, values in self.regions.items() if name not in self.labels}
        regions = "".join(f", region {name}={values}" for name, values in several.items())
        return (
            f"Cohort({counted(len(self), 'subject')}, {self.format} layout, channels {', '.join(self.channels)}, "
            f"labels {listed}{regions})"
        )


def _shorter(unknown: Sequence[str], known: Collection[str]) -> str | None:
    """What mends names that are those of files: without suffix and channel they are known."""
    for name in unknown:
        stem = image_stem(Path(name)) or name
        for short in (stem, case_and_channel(stem)[0]):
            if short in known:
                return f"name subjects without suffix and channel, as {short}"
    return None


def scan(path: str | Path, *, labelled: bool = True) -> tuple[Cohort, list[Problem]]:
    """What `Cohort.read` reads, with every problem of the layout instead of an exception for them.

    The cohort holds the subjects whose files are complete.

    Raises:
        CohortError: the folder or its ``dataset.json`` cannot be read, or no layout is recognised.
    """
    root = Path(path)
    require_folder(root)
    file = root / "dataset.json"
    declaration = read_declaration(file) if file.is_file() else Declaration()
    listing = list_subjects(root, declaration, labelled=labelled)
    count = max((subject.channels for subject in listing.subjects), default=1)
    channels = declaration.channels
    if channels is None:
        channels = (UNNAMED_CHANNEL,) if count == 1 else tuple(f"{UNNAMED_CHANNEL} {i}" for i in range(count))
    labels = declaration.labels
    if labels is None:
        labels = _found_labels(listing.subjects)
    cohort = Cohort(
        root,
        tuple(listing.subjects),
        channels,
        labels,
        declaration.ignore_label,
        listing.format,
        declaration.segments,
        declaration.regions,
    )
    return cohort, listing.problems


def _found_labels(subjects: Sequence[Subject]) -> dict[str, int]:
    """Every value in the references; a reference that cannot be read is the check's business."""
    values: set[int] = set()
    for subject in subjects:
        if subject.labels is not None:
            try:
                values.update(np.unique(read_labels(subject.labels).array).tolist())
            except VolumeError:
                continue
    return {BACKGROUND: 0} | {unnamed_label(value): value for value in sorted(values - {0})}

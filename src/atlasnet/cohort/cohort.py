"""`Cohort`: a checked list of subjects with their channels and labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort.annotated import ANNOTATED, hidden_values
from atlasnet.cohort.declaration import BACKGROUND, Declaration, read_declaration, unnamed_label
from atlasnet.cohort.layout import list_subjects
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.structures import Hidden, Values, annotated_counts, annotated_structures, structures_of
from atlasnet.cohort.subject import Subject
from atlasnet.errors import CohortError, VolumeError, require_folder
from atlasnet.execution import Reporter
from atlasnet.volume.io import read_labels
from atlasnet.volume.names import case_and_channel, composed, image_stem
from atlasnet.wording import counted, shortened

DATASET = "dataset.json"
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
    def read(cls, path: str | Path, *, labelled: bool = True, reporter: Reporter | None = None) -> Cohort:
        """Read a cohort's layout and ``dataset.json``; the images stay on disk.

        Where no ``dataset.json`` declares labels, every reference is read for the values in it, named ``label 1`` and
        so on.

        Args:
            path: a folder in one of the three layouts (see `atlasnet.cohort.layout.list_subjects`).
            labelled: whether every subject must have a reference.
            reporter: is warned of what in ``dataset.json`` may be meant otherwise than it is taken.

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
        for problem in problems:
            if reporter is not None and problem.path == cohort.root / DATASET:
                reporter.warn(str(problem))
        return cohort

    def select(self, names: Sequence[str]) -> Cohort:
        """The cohort of these subjects only, in the order of ``names``.

        Raises:
            CohortError: a name is unknown, or there twice, or there is none.
        """
        if isinstance(names, str):
            raise CohortError(
                "one name is no list of names", path=self.root, found=names, remedy=f"select([{names!r}])"
            )
        known = {composed(subject.name): subject for subject in self.subjects}
        names = [composed(name) for name in names]
        unknown = [name for name in names if name not in known]
        if unknown or not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CohortError(
                "these are not subjects of the cohort" if unknown else "each subject must be named once",
                path=self.root,
                expected=", ".join([*known][:6]) + (", ..." if len(known) > 6 else ""),
                found=", ".join((unknown or twice)[:_SHOWN]) or "no name",
                remedy=_shorter(unknown, known),
            )
        return replace(self, subjects=tuple(known[name] for name in names))

    def annotated(self, names: Mapping[str, Sequence[str]]) -> Cohort:
        """The cohort with what was annotated in some of its subjects, as ``annotated`` in ``dataset.json`` says it.

            cohort.annotated({"case_b": ["liver"]})  # where case_b is background, there may be a spleen

        See `atlasnet.cohort.annotated.hidden_values` for what a reference tells then.

        Args:
            names: by subject, the names of the labels and regions that were annotated in it; those of all others stay
                as they are.

        Raises:
            CohortError: a name is unknown, or a list is empty.
        """
        hidden = hidden_values(names, self.labels, self.regions, self.root)
        self.select([*names] or [subject.name for subject in self])  # says which are unknown
        return replace(self, subjects=tuple(replace(s, hidden=hidden.get(s.name, s.hidden)) for s in self))

    @property
    def hidden(self) -> dict[str, Hidden]:
        """By subject, what nobody annotated in it, see `Subject`; of those alone in whom that is something."""
        return {subject.name: subject.hidden for subject in self if subject.hidden}

    def annotated_in(self, subjects: Iterable[Subject] | None = None) -> dict[str, int]:
        """In how many subjects with a reference each structure was annotated; None: of the cohort."""
        of_whom = self if subjects is None else subjects
        return annotated_counts(self.structures, (subject.hidden for subject in of_whom if subject.labels is not None))

    def told_of(self, subject: Subject) -> dict[str, Values]:
        """The labels, background included, and regions that the reference of a subject tells."""
        return annotated_structures({**self.labels, **self.regions}, subject.hidden)

    @property
    def annotation(self) -> str:
        """In how many subjects which label was annotated, for a person; empty where all labels were in all."""
        if not self.hidden:
            return ""
        counts = ", ".join(f"{name} in {count}" for name, count in self.annotated_in().items())
        return f"annotated: {counts} of {counted(len(self), 'subject')}"

    def require_annotated(self, subjects: Iterable[Subject] | None = None, what: str = "the cohort") -> None:
        """Refuse subjects none of whom has some structure annotated: nothing can be learnt of it.

        Args:
            subjects: those who are learnt from; None: all.
            what: they are called.

        Raises:
            CohortError: so it is.
        """
        learnt_from = [subject for subject in (self if subjects is None else subjects) if subject.labels is not None]
        nowhere = [name for name, count in self.annotated_in(learnt_from).items() if count == 0]
        if nowhere and any(subject.hidden for subject in learnt_from):
            raise CohortError(
                f"in no subject of {what} was annotated: {', '.join(nowhere)}",
                path=self.root,
                expected=f"every label and region in some subject; see {ANNOTATED!r} in dataset.json",
                remedy="add subjects that have them, or take them out of 'labels' and out of the references",
            )

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

    def __contains__(self, asked: object) -> bool:
        """Whether it has that subject, or one of that name."""
        name = composed(asked) if isinstance(asked, str) else None
        return any(subject.name == name or subject == asked for subject in self.subjects)

    def __getitem__(self, name: str) -> Subject:
        if not isinstance(name, str):
            raise CohortError(
                "subjects are known by their names",
                path=self.root,
                found=repr(name),
                remedy="cohort.subjects is a list",
            )
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


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The known names, first those that are most like this one."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def scan(path: str | Path, *, labelled: bool = True) -> tuple[Cohort, list[Problem]]:
    """What `Cohort.read` reads, with every problem of the layout instead of an exception for them.

    The cohort holds the subjects whose files are complete.

    Raises:
        CohortError: the folder or its ``dataset.json`` cannot be read, or no layout is recognised.
    """
    root = Path(path)
    require_folder(root)
    file = root / DATASET
    declaration = read_declaration(file) if file.is_file() else Declaration()
    listing = list_subjects(root, declaration, labelled=labelled)
    for doubt in declaration.doubts:
        listing.add(doubt, path=file, warning=True)
    count = max((subject.channels for subject in listing.subjects), default=1)
    channels = declaration.channels
    if channels is None:
        channels = (UNNAMED_CHANNEL,) if count == 1 else tuple(f"{UNNAMED_CHANNEL} {i}" for i in range(count))
    labels = declaration.labels
    if labels is None:
        labels = _found_labels(listing.subjects)
    known = [subject.name for subject in listing.subjects]
    for name in unknown_cases(root, declaration, known):
        remedy = _shorter([name], known) or f"name cases as they are called here: {shortened(_nearest(name, known), 3)}"
        listing.add(f"{ANNOTATED!r} in dataset.json names {name}, which is no case; to mend it: {remedy}", path=file)
    cohort = Cohort(
        root,
        tuple(replace(s, hidden=declaration.hidden.get(s.name, ())) for s in listing.subjects),
        channels,
        labels,
        declaration.ignore_label,
        listing.format,
        declaration.segments,
        declaration.regions,
    )
    return cohort, listing.problems


def unknown_cases(root: Path, declaration: Declaration, known: Iterable[str]) -> list[str]:
    """Names under `ANNOTATED` of no case: neither ``known`` ones nor those of other references, as of tests."""
    others = set(declaration.hidden).difference(known)
    folders = [root / part for part in ("labelsTr", "labelsTs", "labels")] if others else []
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return sorted(others - {composed(stem) for file in files if (stem := image_stem(file)) is not None})


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

"""Which subjects a cross-validation leaves out together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from atlasnet.atlas import resolve_atlases
from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.declaration import Declaration, read_declaration
from atlasnet.cohort.duplicates import same_scans
from atlasnet.cohort.layout import list_subjects
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import Execution, Reporter, read_json, reading_back
from atlasnet.training.memory import measuring_bytes
from atlasnet.training.options import FitOptions
from atlasnet.training.place import VALIDATION, require_no_other
from atlasnet.volume.names import composed
from atlasnet.wording import counted, shortened

Folds = int | Sequence[Sequence[str]]
"""How many groups, or the groups themselves, each of subjects that are left out together."""

FOLDS = "folds.json"
DEFAULT_FOLDS = 5
# With fewer subjects each one is left out in turn: a model of four fifths of them would say little about one of all.
LEAVE_ONE_OUT_BELOW = 10


def split(
    names: Sequence[str], folds: int | None, seed: int, hidden: Mapping[str, Hidden] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Which subjects are left out together.

    Args:
        names: of the subjects.
        folds: how many groups; None: 5, or one per subject with fewer than 10.
        seed: of the shuffle.
        hidden: by name, what nobody annotated in a subject: those who have the same labels are dealt out evenly.

    Returns:
        Groups whose sizes differ by at most one; every name is in exactly one.

    Raises:
        InputError: fewer than 2 folds, or more than subjects.
    """
    if folds is None:
        folds = len(names) if len(names) < LEAVE_ONE_OUT_BELOW else DEFAULT_FOLDS
    if not 2 <= folds <= len(names):
        raise InputError(
            "the subjects cannot be divided into so many folds", expected=f"2 to {len(names)}", found=str(folds)
        )
    shuffled = np.random.default_rng(seed).permutation(sorted(names)).tolist()
    shuffled.sort(key=lambda name: (hidden or {}).get(name, ()))
    return tuple(tuple(sorted(shuffled[fold::folds])) for fold in range(folds))


def fold_name(number: int) -> str:
    """The folder of a fold's model, of folds that are counted from 1."""
    return f"fold_{number}"


def plan_folds(
    cohort: Cohort, folder: str | Path, options: FitOptions, folds: Folds | None, execution: Execution
) -> tuple[tuple[str, ...], ...]:
    """The folds of a cohort, with everything checked that can be before hours of training; see `cross_validate`.

    Args:
        cohort: the subjects.
        folder: of the cross-validation; where one was begun, it must have these folds.
        options: of the trainings.
        folds: how many groups, see `split`; or the groups, of which a subject is in one at most. Who is in none is
            trained on in every fold; those who lie in the cohort's folder and were not selected are taken out.
        execution: the seed of the shuffle, progress.

    Raises:
        CohortError: in nobody on whom a fold is trained some label was annotated.
        InputError: the groups cannot be used, ``folder`` holds others, or no cross-validation but a model, an atlas
            would be left out, under whatever name, a scan is in two groups, or memory does not suffice to find out.
    """
    names = [subject.name for subject in cohort]
    if folds is None or isinstance(folds, int):
        groups = split(names, folds, execution.seed, cohort.hidden)
    else:
        groups = _checked(folds, cohort, execution.reporter)
    group = {name: number for number, fold in enumerate(groups) for name in fold}
    for number, fold in enumerate(groups, start=1):
        cohort.require_annotated([subject for subject in cohort if subject.name not in fold], f"those of fold {number}")
    atlases = resolve_atlases(cohort, options.named) if options.named else []
    left_out = [atlas.subject for atlas in atlases if atlas.subject in group]
    if left_out:
        raise InputError(
            "a subject that is an atlas cannot be left out",
            expected="a number of atlases, or image files that are no subjects",
            found=", ".join(left_out),
        )
    require_no_other(Path(folder), VALIDATION)
    require_same_folds(Path(folder), groups)
    needed = measuring_bytes([subject.read_grid() for subject in cohort], len(cohort.channels))
    execution.require_memory(needed, "crop or resample the largest scans", cohort.root)
    execution.reporter.note("looking for scans that are there twice")
    twice = [
        f"{subject.name} is {same.name}"
        for subject, same in same_scans(tuple(cohort))
        if group.get(subject.name) != group.get(same.name)
    ]
    images = [Subject(s.name, s.paths, channels=s.channels) for s in atlases if s.subject is None]
    twice += [f"{image.name} is {same.name}" for image, same in same_scans(images, tuple(cohort))]
    if twice:
        raise InputError(
            "a scan is there twice, and would be segmented by a model that has seen it",
            path=cohort.root,
            found=shortened(twice),
            remedy="leave one of each out (subjects: --subjects), or put both into one fold of a file for --folds",
        )
    return groups


def require_same_folds(folder: Path, groups: Sequence[Sequence[str]]) -> None:
    """Find out that a folder holds a cross-validation with other folds.

    Raises:
        InputError: it does, or its folds cannot be read.
    """
    path = folder / FOLDS
    with reading_back(path):
        before = read_json(path) if path.exists() else None
        difference = None if before is None else _difference(before, groups)
    if difference is not None:
        raise InputError(
            "the folder holds a cross-validation with other folds",
            path=path,
            found=difference,
            remedy="give another folder, or the folds, the subjects and the seed of before",
        )


def _difference(before: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> str | None:
    """How folds that were begun differ from those that are asked for; None where they do not."""
    if len(before) != len(groups):
        return f"{len(before)} folds there, {len(groups)} asked for"
    there, asked = ({name: number for number, fold in enumerate(f, 1) for name in fold} for f in (before, groups))
    only = {"there": sorted(there.keys() - asked), "asked for": sorted(asked.keys() - there)}
    if any(only.values()):
        return "; ".join(f"only {where}: {shortened(names)}" for where, names in only.items() if names)
    moved = [f"{n} in fold {there[n]} there, in {asked[n]} as asked for" for n in sorted(asked) if there[n] != asked[n]]
    return shortened(moved, 2) or None


def _checked(folds: Sequence[Sequence[str]], cohort: Cohort, reporter: Reporter) -> tuple[tuple[str, ...], ...]:
    """The groups of those who take part, after all that is wrong with them."""
    path, trained = (folds.path, folds.trained) if isinstance(folds, FoldsFile) else (None, (None,) * len(folds))
    single = [fold for fold in folds if isinstance(fold, str)]
    if single:
        raise InputError("a fold is no list of names", expected='[["a1", "a2"], ["b"]]', found=shortened(single))
    part = {subject.name for subject in cohort}
    absent = {name for fold in (*folds, *filter(None, trained)) for name in fold} - part
    if absent:
        _check_known(absent, cohort, path)
        reporter.note(f"those who take no part are taken out of the folds: {shortened(sorted(absent))}")
    times = Counter(name for fold in folds for name in fold)
    twice = [f"{name} {count} times" for name, count in sorted(times.items()) if count > 1]
    if twice:
        raise InputError(
            "a subject is left out more than once",
            path=path,
            expected="every subject in one validation set at most: of each, one result is kept",
            found=shortened(twice),
            remedy="let the validation sets share nobody",
        )
    if not folds or not all(folds):
        raise InputError(
            "a fold leaves nobody out" if folds else "there is no fold",
            path=path,
            expected="of every fold, the names of those whom it leaves out",
        )
    groups = [tuple(sorted(part.intersection(fold))) for fold in folds]
    if not any(groups):
        raise InputError(
            "nobody whom the folds leave out takes part",
            path=path,
            remedy="let some of them take part, or give the folds of those who do",
        )
    for number, (group, learnt) in enumerate(zip(groups, trained, strict=True)):
        if len(group) == len(part):
            raise InputError(
                f"fold {number} leaves nobody to train on",
                path=path,
                found=shortened(group),
                remedy="divide the subjects into more folds, or let more of them take part",
            )
        idle = sorted(part.difference(group, learnt)) if group and learnt is not None else ()
        if idle:
            raise InputError(
                f"fold {number} is not trained on everybody whom it does not leave out",
                path=path,
                expected="of every fold, each subject either in train or in val",
                found=f"in neither: {shortened(idle)}",
                remedy="add them to its train, or leave those from whom no fold may learn out of the cohort "
                "(--subjects); there are no folds that learn from fewer",
            )
    rest = part - {*times}
    if rest and path is not None:  # once: what is cross-validated then are the groups
        reporter.warn(
            f"{len(rest)} of {counted(len(part), 'subject')} are left out by no fold: every fold is trained on them, "
            "and they get no score"
        )
    return tuple(filter(None, groups))


def _check_known(absent: Collection[str], cohort: Cohort, path: Path | None) -> None:
    """Refuse names that are not those of subjects who lie in the cohort's folder and were not selected."""
    try:
        file = cohort.root / "dataset.json"
        declaration = read_declaration(file) if file.is_file() else Declaration()
        there = {subject.name for subject in list_subjects(cohort.root, declaration, labelled=True).subjects}
    except (CohortError, OSError):  # a cohort that was put together otherwise
        there = set()
    unknown = sorted({*absent} - there)
    if unknown:
        raise InputError(
            "the folds name somebody who is no subject",
            path=path,
            expected=f"subjects of {cohort.root}, such as {shortened(sorted(s.name for s in cohort)[:3])}",
            found=shortened(unknown),
            remedy="correct these names, or take them out of the folds",
        )


@dataclass(frozen=True)
class FoldsFile(Sequence[tuple[str, ...]]):
    """The folds of a file: the groups of names that are left out together.

    Args:
        path: of the file.
        groups: who is left out.
        trained: by group, whom the file trains on; None where it says nothing of it.
    """

    path: Path
    groups: tuple[tuple[str, ...], ...]
    trained: tuple[frozenset[str] | None, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, ...], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        return self.groups[index]


def read_folds(path: str | Path) -> FoldsFile:
    """Read groups of subjects that are left out together.

    Args:
        path: JSON: a list of lists of names, or nnU-Net's ``splits_final.json``, whose ``val`` are the groups.

    Raises:
        InputError: the file cannot be read or holds something else, or a fold trains on whom it leaves out.
    """
    path = Path(path)
    expected = "a number, or JSON: a list of lists of names, or nnU-Net's splits_final.json"
    if not path.is_file():
        raise InputError(
            "the folds are no number and no file" if not path.exists() else "the folds are no file",
            path=path,
            expected=expected,
            remedy="give --folds 5, or --folds alone for a number that suits the cohort",
        )
    try:
        content = read_json(path)
        groups = [fold["val"] if isinstance(fold, Mapping) else fold for fold in content]
        trained = [fold.get("train") if isinstance(fold, Mapping) else None for fold in content]
        lists = [*groups, *(fold for fold in trained if fold is not None)]
        if not all(isinstance(fold, list) and all(isinstance(name, str) for name in fold) for fold in lists):
            raise TypeError("a fold is no list of names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the folds cannot be read", path=path, expected=expected, found=f"{type(error).__name__}: {error}"
        ) from error
    for number, (fold, learnt) in enumerate(zip(groups, trained, strict=True)):
        seen = sorted({*fold}.intersection(learnt or ()))
        if seen:
            raise InputError(
                f"fold {number} is trained on subjects whom it leaves out",
                path=path,
                expected="nobody both in train and in val",
                found=shortened(seen),
                remedy="take them out of one of the two",
            )
    return FoldsFile(
        path,
        tuple(tuple(map(composed, fold)) for fold in groups),
        tuple(None if learnt is None else frozenset(map(composed, learnt)) for learnt in trained),
    )

"""Which subjects a cross-validation leaves out together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from atlasnet.atlas import resolve_atlases
from atlasnet.cohort import Cohort
from atlasnet.cohort.duplicates import same_scans
from atlasnet.errors import InputError
from atlasnet.execution import Execution, read_json, reading_back
from atlasnet.training.memory import measuring_bytes
from atlasnet.training.options import FitOptions
from atlasnet.wording import shortened

Folds = int | Sequence[Sequence[str]]
"""How many groups, or the groups themselves, each of subjects that are left out together."""

FOLDS = "folds.json"
DEFAULT_FOLDS = 5
# With fewer subjects each one is left out in turn: a model of four fifths of them would say little about one of all.
LEAVE_ONE_OUT_BELOW = 10


def split(names: Sequence[str], folds: int | None, seed: int) -> tuple[tuple[str, ...], ...]:
    """Which subjects are left out together.

    Args:
        names: of the subjects.
        folds: how many groups; None: 5, or one per subject with fewer than 10.
        seed: of the shuffle.

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
        folds: how many groups, see `split`; or the groups, of which every subject is in exactly one.
        execution: the seed of the shuffle, progress.

    Raises:
        InputError: the groups cannot be used, ``folder`` holds others, an atlas would be left out, a scan is in two
            groups, or memory does not suffice to find that out.
    """
    names = [subject.name for subject in cohort]
    if isinstance(options.atlases, tuple):
        sources = resolve_atlases(cohort, options.atlases)
        left_out = [source.subject for source in sources if source.subject is not None]
        if left_out:
            raise InputError(
                "a subject that is an atlas cannot be left out",
                expected="a number of atlases, or image files that are no subjects",
                found=", ".join(left_out),
            )
    groups = split(names, folds, execution.seed) if folds is None or isinstance(folds, int) else _checked(folds, names)
    path = Path(folder) / FOLDS
    with reading_back(path):
        before = read_json(path) if path.exists() else None
    if before not in (None, [list(fold) for fold in groups]):
        raise InputError(
            "the folder holds a cross-validation with other folds",
            path=path,
            remedy="give another folder, or the folds, the subjects and the seed of before",
        )
    group = {name: number for number, fold in enumerate(groups) for name in fold}
    needed = measuring_bytes([subject.read_grid() for subject in cohort], len(cohort.channels))
    execution.require_memory(needed, "crop or resample the largest scans", cohort.root)
    execution.reporter.note("looking for scans that are there twice")
    twice = [
        f"{subject.name} is {same.name}"
        for subject, same in same_scans(tuple(cohort))
        if group[subject.name] != group[same.name]
    ]
    if twice:
        raise InputError(
            "a scan is there twice, and would be segmented by a model that has seen it",
            path=cohort.root,
            found=shortened(twice),
            remedy="leave one of each out with --subjects, or put both into one fold of a file for --folds",
        )
    return groups


def _checked(folds: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    groups = tuple(tuple(sorted(fold)) for fold in folds)
    times = Counter(name for fold in groups for name in fold)
    wrong = [f"{name} in {times[name]}" for name in names if times[name] != 1]
    wrong += [f"{name}, who is no subject" for name in times if name not in names]
    if len(groups) < 2 or not all(groups) or wrong:
        raise InputError(
            "the folds do not divide the subjects",
            expected="two or more groups, none empty, every subject in exactly one",
            found=shortened(wrong) if wrong else f"{len(groups)} groups, {sum(map(bool, groups))} not empty",
        )
    return groups


def read_folds(path: str | Path) -> tuple[tuple[str, ...], ...]:
    """Read groups of subjects that are left out together.

    Args:
        path: JSON: a list of lists of names, or nnU-Net's ``splits_final.json``, whose ``val`` are the groups.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        content = read_json(Path(path))
        groups = [fold["val"] if isinstance(fold, Mapping) else fold for fold in content]
        trained = [fold["train"] for fold in content if isinstance(fold, Mapping) and "train" in fold]
        if not all(isinstance(fold, list) and all(isinstance(name, str) for name in fold) for fold in groups + trained):
            raise TypeError("a fold is no list of names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the folds cannot be read",
            path=path,
            expected="a number, or JSON: a list of lists of names, or nnU-Net's splits_final.json",
            found=f"{type(error).__name__}: {error}",
        ) from error
    everyone = {name for fold in groups for name in fold}
    for number, fold in enumerate(content):
        if isinstance(fold, Mapping) and "train" in fold and {*fold["train"]} != everyone - {*fold["val"]}:
            raise InputError(
                f"fold {number} is not trained on everybody whom it does not leave out",
                path=path,
                expected=shortened(sorted(everyone - {*fold["val"]})),
                found=shortened(sorted(fold["train"])),
                remedy="leave subjects that no fold may learn from out of the cohort with --subjects",
            )
    return tuple(tuple(fold) for fold in groups)

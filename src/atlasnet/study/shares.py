"""A share of the training data, in whole subjects or in slices of every subject's annotation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import InputError
from atlasnet.training.mapping import to_slices
from atlasnet.volume import Volume, canonical, write_labels

FEWEST_SUBJECTS = 2
# Multiples of the golden ratio, without their whole parts, fill the unit interval more evenly than those of any other
# number (Knuth, The Art of Computer Programming 3, 6.4).
GOLDEN = (np.sqrt(5) - 1) / 2


def share_of_subjects(cohort: Cohort, fraction: float, seed: int) -> Cohort:
    """A share of the subjects, at least two, drawn at random; a smaller share is part of a larger one."""
    if fraction == 1:
        return cohort
    names = sorted(subject.name for subject in cohort)
    order = np.random.default_rng(seed).permutation(names).tolist()
    return cohort.select(sorted(order[: share_size(fraction, len(names))]))


def share_size(fraction: float, subjects: int) -> int:
    """How many of the subjects a share of them is."""
    return max(FEWEST_SUBJECTS, round(fraction * subjects))


def real_share(of: str, share: float, subjects: int) -> float:
    """How large a share really is: of so many ``subjects`` in whole ones, of their ``slices`` as it was asked for."""
    return share_size(share, subjects) / subjects if of == "subjects" else share


def check_shares(fractions: Sequence[float], subjects: int) -> None:
    """Whether all shares of so many subjects, and the whole, differ.

    Raises:
        InputError: two are the same subjects.
    """
    same = _alike([{1.0, *fractions}], lambda fraction: share_size(fraction, subjects))
    if same:
        raise InputError(
            f"shares of the {subjects} training subjects are the same subjects",
            expected=f"shares that differ by a subject, of {FEWEST_SUBJECTS} or more",
            found="; ".join(f"{_listed(shares)} are {share_size(min(shares), subjects)}" for shares in same),
        )


def check_shares_of_slices(fractions: Sequence[float], cohort: Cohort, axis: Literal["z", "y", "x"]) -> None:
    """Whether all shares of the slices of the subjects' annotation, and the whole, differ in a subject.

    Args:
        fractions: the shares.
        cohort: subjects with references; they are read until all shares are known to differ.
        axis: across which slices are counted, of the canonical axes.

    Raises:
        InputError: two are the same slices.
    """
    same = _alike([{1.0, *fractions}], lambda _: 1)
    for subject in cohort:
        if not same:
            return
        slices = to_slices(canonical(subject.read_labels())[0].array, axis)
        count = len(_annotated(slices, cohort.ignore_label))
        same = _alike(same, partial(slice_share_size, slices=count))
    if same:
        raise InputError(
            "shares of the slices of the training subjects are the same slices",
            expected="shares that differ by a slice in a subject",
            found="; ".join(map(_listed, same)),
        )


def _alike(groups: Sequence[set[float]], size: Callable[[float], int]) -> list[set[float]]:
    """Those of each group that have one size, where these are several."""
    found: list[set[float]] = []
    for group in groups:
        of_size: dict[int, set[float]] = {}
        for fraction in sorted(group):
            of_size.setdefault(size(fraction), set()).add(fraction)
        found += [shares for shares in of_size.values() if len(shares) > 1]
    return found


def _listed(shares: Iterable[float]) -> str:
    return ", ".join(map(str, sorted(shares)))


def share_of_slices(cohort: Cohort, fraction: float, seed: int, axis: Literal["z", "y", "x"], folder: Path) -> Cohort:
    """Every subject with a share of the slices of its annotation; the other slices become unannotated.

    The references are what a person would have left who annotated no more than these slices, with an ignore label, and
    are trained on like any other such references. See `spread` for which slices they are.

    Args:
        cohort: subjects with references; slices in which nothing is annotated are not counted.
        fraction: share of the slices, at least one of each subject.
        seed: decides which.
        axis: across which slices are counted, of the canonical axes.
        folder: gets the references, NAME.nii.gz each; those that are there already are taken.
    """
    ignore = max(cohort.labels.values()) + 1 if cohort.ignore_label is None else cohort.ignore_label
    subjects = []
    for number, subject in enumerate(sorted(cohort, key=lambda subject: subject.name)):
        path = folder / f"{subject.name}.nii.gz"
        if not path.exists():
            write_labels(path, _thinned(subject, fraction, np.random.default_rng([seed, number]), axis, ignore))
        subjects.append(replace(subject, labels=path))
    return replace(cohort, subjects=tuple(subjects), ignore_label=ignore)


def _thinned(
    subject: Subject, fraction: float, random: np.random.Generator, axis: Literal["z", "y", "x"], ignore: int
) -> Volume:
    """The reference with the value ``ignore`` in all but a share of its annotated slices."""
    reference = subject.read_labels()
    turned, orientation = canonical(reference)
    array = turned.array.astype(np.promote_types(turned.array.dtype, np.min_scalar_type(ignore)))
    slices = to_slices(array, axis)  # a view
    annotated = _annotated(slices, ignore)
    kept = annotated[spread(len(annotated), fraction, random)]
    slices[:, np.setdiff1d(annotated, kept)] = ignore
    return Volume(orientation.restore(array), reference.grid)


def _annotated(slices: NDArray[Any], ignore: int | None) -> NDArray[np.intp]:
    """Which of the slices (1, slices, rows, columns) anybody annotated."""
    return np.flatnonzero((slices != ignore).any(axis=(0, 2, 3)) if ignore is not None else np.ones(slices.shape[1]))


def slice_share_size(fraction: float, slices: int) -> int:
    """How many of a subject's slices a share of them is."""
    return max(1, round(fraction * slices))


def spread(count: int, fraction: float, random: np.random.Generator) -> NDArray[np.intp]:
    """Which of ``count`` slices a share of them has, at least one: spread evenly, and all of any smaller share's.

    Neighbouring slices show almost the same: drawn at random they would clump and leave gaps, and say less than the
    effort of annotating so many; whoever chooses slices spaces them. Strictly regular shares would not lie in one
    another, and may beat with a coarser working grid. So slice i has the place i * (golden ratio) + a random number,
    without its whole part, and the slices of the lowest places are taken: gaps of three lengths at most.

    Args:
        count: how many there are.
        fraction: share, in (0, 1].
        random: draws where the places begin; the same for every share.

    Returns:
        Ascending indices.
    """
    place = (np.arange(count) * GOLDEN + random.random()) % 1
    return np.sort(np.argsort(place)[: slice_share_size(fraction, count)])

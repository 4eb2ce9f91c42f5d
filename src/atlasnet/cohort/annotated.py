"""Which labels were annotated in which case, where not all of them were in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort.structures import Hidden, Values, all_values, structures_of
from atlasnet.errors import CohortError
from atlasnet.volume.names import composed
from atlasnet.volume.volume import Volume
from atlasnet.wording import counted, shortened

ANNOTATED = "annotated"  # in dataset.json


def hidden_values(
    annotated: Any, labels: Mapping[str, int] | None, regions: Mapping[str, Values], path: Path
) -> dict[str, Hidden]:
    """By the name of a case, the label values that nobody annotated in it, and what stands for them.

    Two values are told apart where a label or region that was annotated holds one of them and not the other. Of those
    that are not, the one that the fewest labels and regions hold stands for all: the background, or what of an organ is
    no tumour. Where all structures were annotated, values are what they are.

    Args:
        annotated: by the name of a case, the names of the labels and regions that were annotated in it.
        labels: name to value, None where they are not declared.
        regions: name to values.
        path: of the file that says so.

    Raises:
        CohortError: it is no lists of names of labels, or one is empty.
    """
    expected = '{"CASE": ["liver"], ...}, by the name of a case the labels that were annotated in it'
    if not isinstance(annotated, Mapping):
        raise CohortError(
            f"{ANNOTATED!r} is not an object", path=path, expected=expected, found=type(annotated).__name__
        )
    if annotated and labels is None:
        raise CohortError(f"{ANNOTATED!r} names labels, and none are declared", path=path, remedy="declare 'labels'")
    named = {name: value for name, value in (labels or {}).items() if value != 0} | dict[str, Values](regions)
    values = {name: {*all_values(several)} for name, several in named.items()}
    hidden: dict[str, Hidden] = {}
    for case, names in annotated.items():
        if not isinstance(names, list | tuple) or not names:
            remedy = (
                f'write ["{names}"]'
                if isinstance(names, str) and names
                else "leave the case out of the cohort if nothing was annotated in it, and out of "
                f"{ANNOTATED!r} if everything was"
            )
            raise CohortError(
                f"the labels that were annotated in {case} are not a list of names",
                path=path,
                expected=expected,
                found="an empty list" if names == [] else repr(names)[:80],
                remedy=remedy,
            )
        unknown = [name for name in names if not isinstance(name, str) or name not in values]
        if unknown:
            raise CohortError(
                f"{ANNOTATED!r} names what is no label",
                path=path,
                expected="some of " + ", ".join(values),
                found=f"{unknown[0]!r} in {case}",
            )
        if composed(case) in hidden:
            raise CohortError(f"{ANNOTATED!r} names {composed(case)} twice", path=path)
        whole = structures_of(labels or {}, regions).keys() <= {*names}
        hidden[composed(case)] = () if whole else _stand_ins([values[name] for name in names], [*values.values()])
    return hidden


def _stand_ins(annotated: Sequence[set[int]], every: Sequence[set[int]]) -> Hidden:
    """The values that no ``annotated`` one of ``every`` set tells from another, and that other one."""
    together: dict[tuple[bool, ...], list[int]] = {}
    for value in sorted({0}.union(*every), key=lambda value: (sum(value in one for one in every), value)):
        together.setdefault(tuple(value in one for one in annotated), []).append(value)
    return tuple(sorted((value, first) for first, *others in together.values() for value in others))


def lost_values(values: Sequence[int], every: Sequence[Hidden], left: Sequence[Hidden]) -> list[int]:
    """The values that some of ``every`` subject's references tell from another value, and none of those that are left.

    Args:
        values: of all labels, the background first.
        every: of each subject, what nobody annotated in it.
        left: those of the subjects that are left.
    """

    def together(subjects: Sequence[Hidden]) -> set[tuple[int, int]]:
        stand_ins = [dict(hidden) for hidden in subjects]
        return {
            pair
            for pair in combinations(values, 2)
            if all(own.get(pair[0], pair[0]) == own.get(pair[1], pair[1]) for own in stand_ins)
        }

    return sorted({value for _, value in together(left) - together(every)}) if any(every) else []


def check_hidden(labels: Volume, hidden: Hidden, case: str, path: Path | None = None) -> None:
    """Whether a reference holds none of the labels that nobody is said to have annotated in it.

    Args:
        labels: the reference.
        hidden: values of these labels, and what stands for them.
        case: whose it is.
        path: of its file.

    Raises:
        CohortError: it does.
    """
    if not hidden:
        return
    there = np.isin(labels.array, [value for value, _ in hidden])
    if there.any():
        values = zip(*np.unique(labels.array[there], return_counts=True), strict=True)
        raise CohortError(
            f"the reference of {case} holds labels that {ANNOTATED!r} in dataset.json does not name",
            path=path,
            found=shortened([f"{value} ({counted(count, 'voxel')})" for value, count in values]),
            remedy=f"name all labels that were annotated in {case}, or mend the reference",
        )

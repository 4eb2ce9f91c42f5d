"""Structures: what is learnt, scored and reported. Each is one value of the label files or, as a region, several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = int | tuple[int, ...]
"""Of a structure: the value of a label, or those that a region is made of, in ascending order."""


Hidden = tuple[tuple[int, int], ...]
"""Values, or classes, that nobody annotated in a subject, each with the one that the reference has where it may be:
``((2, 0),)`` where the background may be 2."""


def structures_of(labels: Mapping[str, int], regions: Mapping[str, Values]) -> dict[str, Values]:
    """Name to values: the regions where some are declared, as nnU-Net has it, else every label but the background."""
    ordered = sorted(labels.items(), key=lambda item: item[1])
    return dict(regions) or {name: value for name, value in ordered if value != 0}


def all_values(values: Values | Sequence[int]) -> tuple[int, ...]:
    """The values of a structure, also where it is a single one."""
    return (values,) if isinstance(values, int) else tuple(values)


def annotated_structures(structures: Mapping[str, Values], hidden: Hidden) -> dict[str, Values]:
    """Those that a reference tells: with a ``hidden`` value they hold its stand-in too, or neither of the two."""
    return {
        name: values
        for name, values in structures.items()
        if all((value in all_values(values)) == (stands in all_values(values)) for value, stands in hidden)
    }


def annotated_counts(structures: Mapping[str, Values], hidden: Iterable[Hidden]) -> dict[str, int]:
    """In how many references each structure was annotated, of each of which ``hidden`` has what was not."""
    told = [annotated_structures(structures, own) for own in hidden]
    return {name: sum(name in own for own in told) for name in structures}


def regions_shown(regions: Mapping[str, Values]) -> dict[str, str]:
    """Those of several values, by name, for a person."""
    return {name: shown(values) for name, values in regions.items() if isinstance(values, tuple)}


def shown(values: Values) -> str:
    """A structure's values for a person, as ``2 + 3``."""
    return " + ".join(map(str, all_values(values)))


def where(array: NDArray[Any], values: Values | Sequence[int]) -> NDArray[np.bool_]:
    """Where a label map holds a structure."""
    several = all_values(values)
    return np.asarray(array == several[0] if len(several) == 1 else np.isin(array, several))


def read_regions(content: Mapping[str, Any]) -> dict[str, Values]:
    """Regions as JSON has them, where tuples are lists.

    Raises:
        TypeError, ValueError: they are no names of whole numbers.
    """
    return {
        str(name): int(values) if isinstance(values, int | str) else tuple(int(value) for value in values)
        for name, values in content.items()
    }

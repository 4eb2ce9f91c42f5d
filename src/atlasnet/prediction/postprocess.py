"""Cleaning a label map: the largest component and a minimum size of every structure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.volume import Grid

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
_ROUNDING = 1e-9


def postprocess(
    labels: NDArray[Any],
    grid: Grid,
    *,
    largest_component: bool = False,
    minimum_size_mm3: float = 0.0,
    structures: Iterable[Sequence[int]] = (),
) -> NDArray[Any]:
    """Remove loose parts of a label map.

    Components are 26-connected: voxels that share a corner belong together, so that thin oblique parts stay whole. What
    is removed becomes background; of a structure within another one, such as the core of a tumour, the label that the
    other has beside it. Structures are cleaned from the outside in, each as a whole. The result does not depend on the
    order or direction of the axes.

    Args:
        labels: (z, y, x) integers, 0 being background; left as they are.
        grid: of the labels.
        largest_component: keep only the largest component of every structure; several of exactly the largest size are
            all kept.
        minimum_size_mm3: components smaller than this are removed.
        structures: the labels of each structure, where some have several; by default every label is one.

    Returns:
        The cleaned (z, y, x) labels; ``labels`` itself where nothing is asked for.
    """
    if not largest_component and minimum_size_mm3 == 0:
        return labels
    cleaned = labels.copy()
    minimum_voxels = minimum_size_mm3 / float(np.prod(grid.spacing))
    groups = {frozenset(group) for group in structures} or {
        frozenset((label,)) for label in np.unique(labels).tolist() if label != 0
    }
    for group in sorted(groups, key=lambda group: (-len(group), sorted(group))):
        _clean(cleaned, group, largest_component, minimum_voxels, _around(group, groups))
    return cleaned


def _around(group: frozenset[int], groups: Collection[frozenset[int]]) -> int:
    """What a voxel is that is no part of a structure: of the one around it the label that lies in fewest others."""
    outer = min(
        (other for other in groups if group < other), key=lambda other: (len(other), sorted(other)), default=None
    )
    if outer is None:
        return 0
    return min(outer - group, key=lambda label: (sum(label in other for other in groups), label))


def _clean(labels: NDArray[Any], group: frozenset[int], largest: bool, minimum_voxels: float, instead: int) -> None:
    """Remove components of one structure, in place."""
    mask = np.isin(labels, sorted(group))
    if not mask.any():
        return
    box = ndimage.find_objects(mask.view(np.int8))[0]
    components, count = ndimage.label(mask[box], structure=_NEIGHBOURS)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    removed = sizes < minimum_voxels * (1 - _ROUNDING)
    if largest:
        removed |= sizes < sizes.max()
    labels[box][np.concatenate([[False], removed])[components]] = instead

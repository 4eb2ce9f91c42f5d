"""Cleaning a label map: the largest component and a minimum size per label."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.errors import InputError
from atlasnet.volume import Grid

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
_ROUNDING = 1e-9


def postprocess(
    labels: NDArray[Any],
    grid: Grid,
    *,
    largest_component: bool | Collection[int] = False,
    minimum_size_mm3: float | Mapping[int, float] = 0.0,
) -> NDArray[Any]:
    """Remove loose parts of a label map.

    Components are 26-connected: voxels that share a corner belong together, so that thin oblique parts stay whole. What
    is removed becomes background. The result does not depend on the order or direction of the axes.

    Args:
        labels: (z, y, x) integers, 0 being background; left as they are.
        grid: of the labels.
        largest_component: keep only the largest component of every label (true), or of these labels; several of exactly
            the largest size are all kept.
        minimum_size_mm3: components smaller than this are removed, of every label or as given for each.

    Returns:
        The cleaned (z, y, x) labels; ``labels`` itself where nothing is asked for.

    Raises:
        InputError: a minimum size is negative or not finite.
    """
    sizes = minimum_size_mm3.values() if isinstance(minimum_size_mm3, Mapping) else [minimum_size_mm3]
    for size in sizes:
        if not (np.isfinite(size) and size >= 0):
            raise InputError("the minimum size cannot be used", expected="0 mm³ or more", found=str(size))
    if not largest_component and not any(size > 0 for size in sizes):
        return labels
    cleaned = labels.copy()
    voxel_mm3 = float(np.prod(grid.spacing))
    for label in np.unique(labels).tolist():
        if label == 0:
            continue
        largest = largest_component if isinstance(largest_component, bool) else label in largest_component
        minimum = minimum_size_mm3.get(label, 0.0) if isinstance(minimum_size_mm3, Mapping) else minimum_size_mm3
        if largest or minimum > 0:
            _clean_label(cleaned, label, largest, minimum / voxel_mm3)
    return cleaned


def _clean_label(labels: NDArray[Any], label: int, largest: bool, minimum_voxels: float) -> None:
    """Remove components of one label that occurs, in place."""
    mask = labels == label
    box = ndimage.find_objects(mask.view(np.int8))[0]
    components, count = ndimage.label(mask[box], structure=_NEIGHBOURS)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    removed = sizes < minimum_voxels * (1 - _ROUNDING)
    if largest:
        removed |= sizes < sizes.max()
    labels[box][np.concatenate([[False], removed])[components]] = 0

"""Which values a label map holds, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.volume.sampling import grown

_TABLE_SIZE = 2**20
_Box = tuple[slice, ...]


def label_values(array: NDArray[Any]) -> set[int]:
    """The distinct values of an integer array, without sorting it where their range is small."""
    low, high = int(array.min()), int(array.max())
    if high - low >= _TABLE_SIZE:
        return {int(value) for value in np.unique(array)}
    seen = np.zeros(high - low + 1, dtype=bool)
    # Slice by slice: the index array is 8 bytes a voxel.
    for part in array.reshape(-1, array.shape[-1] * array.shape[-2]):
        seen[part.astype(np.int64) - low] = True
    return {int(index) + low for index in np.flatnonzero(seen)}


def label_boxes(labels: NDArray[Any]) -> dict[int, _Box]:
    """The box around every value but 0 of a label map (z, y, x), in one pass."""
    values = label_values(labels)
    numbered = {value: value for value in values}
    if labels.dtype.kind not in "iu" or min(values) < 0 or max(values) >= _TABLE_SIZE:
        order = np.array(sorted(values))
        labels, numbered = np.searchsorted(order, labels) + 1, {value: n for n, value in enumerate(order.tolist(), 1)}
    found = ndimage.find_objects(labels)
    return {value: found[number - 1] for value, number in numbered.items() if value != 0}


def around(boxes: Sequence[_Box], margin: int | Sequence[int], shape: tuple[int, ...]) -> _Box:
    """The box around boxes and ``margin`` voxels more, as `grown`; an empty one around none."""
    if not boxes:
        return (slice(0, 0),) * len(shape)
    sides = zip(*boxes, strict=True)
    box = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    return grown(box, margin, shape)

"""How volumes are cut into what a network takes: neighbouring slices side by side, sides padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def neighbours(centres: Sequence[int] | NDArray[np.integer], context: int, depth: int) -> NDArray[np.intp]:
    """Slice indices (b, 2 * context + 1) around each centre; beyond the volume its outermost slice repeats."""
    offsets = np.arange(-context, context + 1)
    return np.clip(np.asarray(centres)[:, None] + offsets, 0, depth - 1).astype(np.intp)


def padded_side(side: int, divisibility: int) -> int:
    """The least multiple of ``divisibility`` that holds ``side``, and two of it: normalisation needs several pixels."""
    return max(2, -(-side // divisibility)) * divisibility


def edge_indices(side: int, padded: int) -> NDArray[np.intp]:
    """Indices that extend an axis of ``side`` to ``padded`` by repeating its last element."""
    return np.minimum(np.arange(padded), side - 1)

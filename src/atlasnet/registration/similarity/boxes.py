"""Sums over the box around every voxel."""

from __future__ import annotations

from torch import Tensor

# Of a slab, whose arrays stay in the processor's cache.
VOXELS_AT_ONCE = 1 << 17


def box_sums(values: Tensor, radii: tuple[int, int, int]) -> Tensor:
    """The sum of the voxels around each of (..., z, y, x) that are at most ``radii`` away along (z, y, x).

    Shifted copies are added, axis after axis: for so small boxes faster than a product with a band matrix, and the bits
    do not depend on the number of threads.
    """
    for axis, radius in zip((-1, -2, -3), reversed(radii), strict=True):
        count, result = values.shape[axis], values.clone()
        for step in range(1, min(radius, count - 1) + 1):
            result.narrow(axis, step, count - step).add_(values.narrow(axis, 0, count - step))
            result.narrow(axis, 0, count - step).add_(values.narrow(axis, step, count - step))
        values = result
    return values

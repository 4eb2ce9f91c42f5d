"""Masks and label maps brought onto the grid of their image without interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import GRID_TOLERANCE, Grid

V = TypeVar("V", bound=np.generic)


def placed(mask: NDArray[V], grid: Grid, target: Grid, path: Path) -> NDArray[V]:
    """Put a mask where it lies on another grid of the same voxels: other axes, another field of view.

    Args:
        mask: (z, y, x) on ``grid``, or a label map; what lies beyond it is 0.
        grid: of the mask.
        target: of the result.
        path: of the mask, for messages.

    Returns:
        (z, y, x) on ``target``.

    Raises:
        VolumeError: the voxels are not the same, or a voxel of the mask lies outside the target.
    """
    if grid.matches(target):
        return mask
    matrix = np.linalg.inv(grid.affine) @ target.affine
    turn = np.rint(matrix[:3, :3]).astype(int)  # from target's index (x, y, z) to the mask's
    off = np.abs(matrix[:3, :3] - turn) @ target.size
    if np.any(np.abs(turn).sum(axis=0) != 1) or np.any(np.abs(turn).sum(axis=1) != 1) or off.max() > GRID_TOLERANCE:
        raise _not_the_same(grid, target, path)
    axes = np.abs(turn).argmax(axis=0)  # of the mask, for each axis of the target
    signs = turn[axes, range(3)]
    shift = matrix[axes, 3]
    if np.abs(shift - np.rint(shift)).max() > GRID_TOLERANCE:
        raise _not_the_same(grid, target, path)
    size = grid.size[axes]
    # Where the mask's first voxel lies along each axis of the target, once the mask runs the same way.
    start = np.where(signs > 0, -np.rint(shift), np.rint(shift) - size + 1).astype(int)
    turned = mask.T.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
    begin, end = np.maximum(start, 0), np.minimum(start + size, target.size)
    part = turned[tuple(slice(max(b - s, 0), max(e - s, 0)) for b, e, s in zip(begin, end, start, strict=True))]
    outside = int(np.count_nonzero(mask)) - int(np.count_nonzero(part))
    if outside:
        raise VolumeError(
            "the structure reaches out of the image",
            path=path,
            expected="every voxel of it within the image",
            found=f"{outside} voxels outside",
            remedy="give the image on which it was drawn",
        )
    result = np.zeros(target.size, dtype=mask.dtype)
    if part.size:
        result[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))] = part
    return result.T


def _not_the_same(grid: Grid, target: Grid, path: Path) -> VolumeError:
    return VolumeError(
        "the structure is not drawn on the voxels of the image",
        path=path,
        expected=f"the voxels of {target!r}, or a part of them",
        found=repr(grid),
        remedy="give the image on which it was drawn, of several channels as the first, or resample the structure onto "
        "the image with nearest neighbours",
    )

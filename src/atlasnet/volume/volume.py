"""`Volume`: an image or a label map that knows where its voxels are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import Grid


def all_finite(array: NDArray[Any]) -> bool:
    """Whether every voxel is finite; minimum and maximum pass NaN and infinity on, and need no mask as large."""
    return array.dtype.kind != "f" or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The box around a mask of any shape and one voxel more, where the array has one; None for an empty mask."""
    box = []
    for axis, length in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not found.size:
            return None
        box.append(slice(max(int(found[0]) - 1, 0), min(int(found[-1]) + 2, length)))
    return tuple(box)


def require_volume(image: object, what: str = "the image", *, path: bool = False) -> None:
    """Refuse an array without geometry where a `Volume` is expected.

    Args:
        image: what was given.
        what: it is to be.
        path: whether the path of a file will do.

    Raises:
        VolumeError: it is something else.
    """
    if not isinstance(image, (Volume, str, os.PathLike) if path else Volume):
        raise VolumeError(
            f"{what} is not given as a Volume",
            expected="a Volume, or a path" if path else "a Volume",
            found=type(image).__name__,
            remedy="Volume(array, grid) says where the voxels of an array lie; read_volume reads a file",
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their geometry.

    Args:
        array: (c, z, y, x), c = 1 for plain images and label maps, a singleton z for 2-D images; (z, y, x) is taken as
            c = 1.
        grid: the lattice on which the voxels lie.

    Raises:
        VolumeError: the array's shape is not that of the grid, which is a `Grid`, or its voxels are no real numbers, or
            it has none.
    """

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if not isinstance(self.grid, Grid):
            raise VolumeError(
                "where the voxels lie is not given as a Grid",
                found=type(self.grid).__name__,
                remedy="Grid.from_ras(shape, affine) takes the affine of NIfTI, Grid.from_parts spacing and origin",
            )
        if array.dtype.kind not in "biuf":
            raise VolumeError("the voxels are no real numbers", found=str(array.dtype))
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.shape[1:] != self.grid.shape:
            raise VolumeError(
                "the voxel array does not fit its grid",
                expected=f"(c, z, y, x) with (z, y, x) = {self.grid.shape}",
                found=str(array.shape),
            )
        if array.size == 0:
            raise VolumeError("the image is empty", expected="at least one voxel", found=f"shape {array.shape}")
        object.__setattr__(self, "array", array)

    @property
    def channels(self) -> int:
        """How many channels the array has."""
        return int(self.array.shape[0])

    def replace(self, array: NDArray[Any]) -> Volume:
        """Other voxels on the same grid."""
        return Volume(array, self.grid)

    def __repr__(self) -> str:
        return f"Volume({self.channels} x {self.array.dtype}, {self.grid!r})"

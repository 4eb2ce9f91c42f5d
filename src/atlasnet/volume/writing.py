"""Writing volumes: NIfTI, NRRD and MetaImage files, by SimpleITK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.execution import atomic_path
from atlasnet.volume.io import itk_reason, quiet_itk
from atlasnet.volume.volume import Volume

WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

_STORED_TYPES = tuple(np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume in the format that the suffix names: .nii, .nii.gz, .nrrd, .mha or .mhd.

    All but .nii and .mhd are compressed. The file appears whole or not at all (of the two files of .mhd, the voxels
    come first). Several channels become NIfTI's fourth axis, and a vector per voxel in the other formats. bool is
    stored as uint8, float16 as float32, 64-bit integers in the smallest integer type that holds every value.

    Raises:
        VolumeError: an unknown suffix, or a voxel type that no format keeps faithfully.
    """
    path = Path(path)
    suffix = next((s for s in WRITABLE_SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise VolumeError(
            "the format cannot be written", path=path, expected="a name ending in " + ", ".join(WRITABLE_SUFFIXES)
        )
    image = to_sitk(Volume(_storable(path, volume.array), volume.grid), vector=not suffix.startswith(".nii"))
    with atomic_path(path) as temporary, quiet_itk():
        try:
            sitk.WriteImage(image, str(temporary), useCompression=suffix not in (".nii", ".mhd"))
        except RuntimeError as error:
            raise VolumeError("the image cannot be written", path=path, found=itk_reason(error)) from error
        if suffix == ".mhd":
            voxels = temporary.with_suffix(".raw")
            os.replace(voxels, path.with_suffix(".raw"))


def to_sitk(volume: Volume, *, vector: bool = True) -> sitk.Image:
    """A SimpleITK image of the volume: 3-D; with several channels a vector image, or 4-D where ``vector`` is false."""
    grid, array = volume.grid, volume.array
    if volume.channels == 1:
        image = sitk.GetImageFromArray(array[0])
    elif vector:
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)), isVector=True)
    else:
        image = sitk.GetImageFromArray(array, isVector=False)
    extra = image.GetDimension() - 3
    direction = np.eye(3 + extra)
    direction[:3, :3] = grid.direction
    image.SetSpacing([*grid.spacing.tolist(), *[1.0] * extra])
    image.SetOrigin([*grid.origin.tolist(), *[0.0] * extra])
    image.SetDirection(direction.ravel().tolist())
    return image


def _storable(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    kind, dtype = array.dtype.kind, array.dtype
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "f" and dtype.itemsize == 2:
        return array.astype(np.float32)
    native = dtype.newbyteorder("=")
    if native in _STORED_TYPES:
        return np.ascontiguousarray(array, dtype=native)
    if kind in "iu":
        low, high = int(array.min()), int(array.max())
        for candidate in _STORED_TYPES[:6]:
            limits = np.iinfo(candidate)
            if limits.min <= low and high <= limits.max:
                return array.astype(candidate)
        raise VolumeError(
            "the values do not fit 32 bits", path=path, found=f"{low} to {high}", remedy="write them as float64"
        )
    raise VolumeError(
        "this voxel type cannot be written", path=path, expected="integers or floats of up to 64 bits", found=str(dtype)
    )

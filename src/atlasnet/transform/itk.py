"""Displacement fields as ITK and ANTs read them: vector images of LPS mm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
import torch

from atlasnet.errors import TransformError, VolumeError
from atlasnet.execution import atomic_path
from atlasnet.transform.field import displacement_on
from atlasnet.transform.maps import DisplacementMap, PointMap, check_field
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import read_sitk
from atlasnet.volume.volume import Volume
from atlasnet.volume.writing import to_sitk, write_sitk

if TYPE_CHECKING:
    from torch import Tensor

# Formats of one file each, which can replace an old one in one step.
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def itk_field(displacement: Tensor, grid: Grid) -> sitk.Image:
    """A displacement field (3, z, y, x) in LPS mm as an ITK vector image of float32.

    ``sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))`` is the transform that resamples a
    source onto ``grid``.
    """
    check_field(displacement, grid)
    return to_sitk(Volume(displacement.detach().to("cpu", torch.float32).numpy(), grid))


def write_itk_field(path: str | Path, point_map: PointMap, grid: Grid) -> None:
    """Write map(p) - p at the voxels of ``grid`` as an ITK vector image: float32, components (x, y, z), LPS mm.

    SimpleITK, ITK and ANTs apply the file as a displacement field. Sampled linearly between voxels and cut off at the
    grid's edge, as they do, it is the map; what lies outside the grid is not in the file. Of a single slice, which ITK
    would take for an image of two axes in NIfTI, the file holds another one on either side.

    Args:
        path: ends in .nii, .nii.gz, .nrrd or .mha; written atomically.
        point_map: for resampling onto the target, ``transform.forward`` on the target grid.
        grid: the voxels.

    Raises:
        TransformError: the suffix is none of these.
        OSError: the file cannot be written whole.
    """
    name = Path(path).name.lower()
    if not name.endswith(SUFFIXES):
        raise TransformError(
            "a displacement field needs the suffix of an image format", path=path, expected=" ".join(SUFFIXES)
        )
    if grid.shape[0] == 1 and name.endswith((".nii", ".nii.gz")):
        grid = grid.padded((0, 0, 1), (0, 0, 1))
    image = itk_field(displacement_on(point_map, grid), grid)
    with atomic_path(path) as temporary:
        write_sitk(temporary, image, Path(path))


def read_itk_field(path: str | Path) -> DisplacementMap:
    """Read a displacement field that ITK, ANTs, elastix or `write_itk_field` wrote.

    Raises:
        TransformError: the file is absent, unreadable, or not a 3-D image of finite 3-vectors.
    """
    if not Path(path).is_file():
        raise TransformError("there is no such file", path=path)
    try:
        image, grid = read_sitk(Path(path))
    except VolumeError as error:
        raise TransformError("this displacement field cannot be read", path=path, found=str(error)) from error
    return field_of(image, grid, path)


def field_of(image: sitk.Image, grid: Grid, path: str | Path) -> DisplacementMap:
    """A displacement field of ITK on its grid as a map.

    Raises:
        TransformError: what was read from ``path`` is not a 3-D image of finite 3-vectors.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise TransformError(
            "this is no displacement field",
            path=path,
            expected="a 3-D image of vectors with 3 components in LPS mm",
            found=f"{image.GetDimension()}-D with {image.GetNumberOfComponentsPerPixel()} components",
        )
    vectors = np.moveaxis(sitk.GetArrayFromImage(image).astype(np.float32), -1, 0)
    try:
        return DisplacementMap(torch.from_numpy(np.ascontiguousarray(vectors)), grid)
    except TransformError as error:
        raise error.told(path=path) from error

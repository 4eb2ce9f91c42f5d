"""Maps as ITK, SimpleITK, ANTs and 3D Slicer apply them: composite transforms in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch.nn.functional as F
from numpy.typing import NDArray

from atlasnet.errors import TransformError
from atlasnet.execution import atomic_path
from atlasnet.transform.field import displacement_on
from atlasnet.transform.itk import itk_field
from atlasnet.transform.maps import AffineMap, CompositeMap, DisplacementMap, PointMap
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import quiet_itk

SUFFIX = ".h5"


def itk_transform(point_map: PointMap, grid: Grid) -> sitk.CompositeTransform:
    """A point map as an ITK transform that is the same at every point within ``grid``, and linear in between as it is.

    Affine maps and displacement fields stay what they are, at their own resolution. ITK's fields displace nothing
    outside their voxels, where ours go on as at their edge: a field is enlarged by as much as ``grid`` reaches beyond
    it. A map of another kind is sampled at the voxels of ``grid``.

    Args:
        point_map: for resampling a source onto the target, ``transform.forward``.
        grid: where points are taken from: then that of the target.

    Raises:
        TransformError: the map is no point map, as a whole `Transform`, which has one in each direction, is none.
    """
    if not isinstance(point_map, PointMap):
        raise TransformError(
            "the map is not that of one direction",
            expected="a PointMap",
            found=type(point_map).__name__,
            remedy="give transform.forward and the grid of the target",
        )
    parts = point_map.parts if isinstance(point_map, CompositeMap) else (point_map,)
    if not all(isinstance(part, AffineMap | DisplacementMap) for part in parts):
        parts = (DisplacementMap(displacement_on(point_map, grid), grid),)
    found: list[sitk.Transform] = []
    reached = grid.corners()  # (8, 3) LPS mm, between which all points lie that a part is asked for
    for part in parts:
        if isinstance(part, AffineMap):
            matrix = part.matrix
            found.append(sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist()))
            reached = reached @ matrix[:3, :3].T + matrix[:3, 3]
        elif isinstance(part, DisplacementMap):
            field, reached = _enlarged(part, reached)
            found.append(_itk(field))
    # ITK applies first what was added last.
    return sitk.CompositeTransform(found[::-1]) if found else sitk.CompositeTransform(3)


def write_itk_transform(path: str | Path, point_map: PointMap, grid: Grid) -> None:
    """Write what `itk_transform` gives.

    Args:
        path: ends in .h5; written atomically.
        point_map: as for `itk_transform`.
        grid: likewise.

    Raises:
        TransformError: the suffix is another, or the map is none.
        OSError: the file cannot be written whole.
    """
    if Path(path).suffix.lower() != SUFFIX:
        raise TransformError("an ITK transform needs the suffix of HDF5", path=path, expected=SUFFIX)
    transform = itk_transform(point_map, grid)
    with atomic_path(path) as temporary:
        try:
            with quiet_itk():
                sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise OSError(
                f"{path}: the transform could not be written: {str(error).strip().splitlines()[-1]}"
            ) from error


def _enlarged(part: DisplacementMap, reached: NDArray[np.float64]) -> tuple[DisplacementMap, NDArray[np.float64]]:
    """The field on a grid that holds all points between the given ones, and between which points these come to lie."""
    index = part.grid.to_index(reached)
    low, high = index.min(0), index.max(0)
    before = np.maximum(np.ceil(-low), 0).astype(int)
    after = np.maximum(np.ceil(high - (part.grid.size - 1)), 0).astype(int)
    # A point on the very edge may fall outside by rounding; ITK has no field of a single voxel along an axis.
    before, after = before + 1, after + 1
    sides = [int(side) for pair in zip(before, after, strict=True) for side in pair]
    field = F.pad(part.displacement[None].to("cpu"), sides, mode="replicate")[0]
    margin = part.displacement.abs().max().item() * np.sqrt(3) / part.grid.spacing
    box = np.array(np.meshgrid(*zip(low - margin, high + margin, strict=True))).reshape(3, -1).T
    return DisplacementMap(field, part.grid.padded(before, after)), part.grid.to_world(box)


def _itk(part: DisplacementMap) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(sitk.Cast(itk_field(part.displacement, part.grid), sitk.sitkVectorFloat64))

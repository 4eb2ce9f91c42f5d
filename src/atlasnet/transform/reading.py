"""Maps from files, whoever wrote them: this package, ITK and what is built on it, or a displacement field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from atlasnet.errors import TransformError
from atlasnet.transform.field import displacement_on
from atlasnet.transform.itk import read_itk_field
from atlasnet.transform.maps import AffineMap, DisplacementMap, compose
from atlasnet.transform.repair import RepairRecord, repair
from atlasnet.transform.transform import Transform
from atlasnet.volume.io import itk_reason, quiet_itk
from atlasnet.volume.names import image_suffix

ITK_SUFFIXES = (".tfm", ".txt", ".mat", ".h5", ".hdf5", ".xfm")
# At most this many voxels of a field, at regular distances, say what its linear part is.
FITTED_VOXELS = 1 << 16


def read_transform(path: str | Path) -> tuple[Transform, RepairRecord | None]:
    """A map of target points into the source, with its inverse, from a file.

    What resamples the source onto the target is read in ITK's convention: LPS mm, target to source. SimpleITK and ANTs
    store their transforms so, and so does 3D Slicer when it writes them in ITK's formats.

    Args:
        path: a ``transform.safetensors`` of `Transform.save`; a linear 3-D transform of ITK (.tfm, .txt, .mat, .h5,
            .xfm); or an image of displacements (see `read_itk_field`).

    Returns:
        The map; and, of a displacement field, which may fold and has no inverse there, what `repair` did to it.

    Raises:
        TransformError: the file is absent, damaged, no such map, or mirrors.
    """
    path = Path(path)
    if image_suffix(path) is not None:
        return _from_field(path)
    if path.suffix.lower() not in ITK_SUFFIXES:
        return Transform.load(path), None
    if not path.is_file():
        raise TransformError("there is no such file", path=path)
    try:
        with quiet_itk():
            found = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise TransformError(
            "this transform cannot be read", path=path, expected="a transform that ITK wrote", found=itk_reason(error)
        ) from error
    if found.GetDimension() != 3 or not found.IsLinear():
        raise TransformError(
            "this transform is not linear in three dimensions",
            path=path,
            found=f"{found.GetName()} in {found.GetDimension()} dimensions",
            remedy="sample it as a displacement field on the target's grid and give that image",
        )
    matrix = np.eye(4)
    matrix[:3, 3] = found.TransformPoint((0.0, 0.0, 0.0))
    for axis, point in enumerate(np.eye(3)):
        matrix[:3, axis] = np.subtract(found.TransformPoint(point.tolist()), matrix[:3, 3])
    _check_sides(path, matrix)
    return Transform.affine(matrix), None


def _from_field(path: Path) -> tuple[Transform, RepairRecord]:
    """The map of a displacement field: a linear part, which goes on beyond the grid, and what is left without folds."""
    field = read_itk_field(path)
    matrix = _linear_part(field)
    _check_sides(path, matrix)
    left = displacement_on(compose(field, AffineMap(matrix).inverse), field.grid)
    steps, record = repair(left, field.grid)
    return Transform.from_displacement(DisplacementMap(steps, field.grid), matrix, measure=False), record


def _linear_part(field: DisplacementMap) -> np.ndarray:
    """(4, 4) the affine map with the least squared distance from a field; none along an axis of one voxel."""
    step = max(1, round((field.grid.voxels / FITTED_VOXELS) ** (1 / 3)))
    index = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in field.grid.shape), indexing="ij"), -1).reshape(-1, 3)
    z, y, x = index.T
    points = field.grid.to_world(index[:, ::-1])
    moved = field.displacement[:, z, y, x].double().numpy().T
    middle, shift = points.mean(0), moved.mean(0)
    slope = np.linalg.lstsq(points - middle, moved - shift, rcond=1e-9)[0].T
    matrix = np.eye(4)
    matrix[:3, :3] += slope
    matrix[:3, 3] = shift - slope @ middle
    return matrix


def _check_sides(path: Path, matrix: np.ndarray) -> None:
    determinant = float(np.linalg.det(matrix[:3, :3]))
    if not (np.isfinite(matrix).all() and determinant > 1e-6):
        raise TransformError(
            "this map mirrors, or has no inverse",
            path=path,
            expected="a positive determinant of its linear part",
            found=f"{determinant:.3g}",
        )

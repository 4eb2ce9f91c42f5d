"""Maps from files, whoever wrote them: this package, ITK and what is built on it, or a displacement field."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from atlasnet.errors import TransformError
from atlasnet.transform.field import displacement_on
from atlasnet.transform.itk import field_of, read_itk_field
from atlasnet.transform.maps import AffineMap, DisplacementMap, compose
from atlasnet.transform.repair import RepairRecord, repair
from atlasnet.transform.transform import Transform
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import itk_reason, quiet_itk
from atlasnet.volume.names import image_suffix

ITK_SUFFIXES = (".tfm", ".txt", ".mat", ".h5", ".hdf5", ".xfm")
_FIELD = "DisplacementFieldTransform"
# At most this many voxels of a field, at regular distances, say what its linear part is.
FITTED_VOXELS = 1 << 16


def read_transform(path: str | Path) -> tuple[Transform, RepairRecord | None]:
    """A map of target points into the source, with its inverse, from a file.

    What resamples the source onto the target is read in ITK's convention: LPS mm, target to source. SimpleITK and ANTs
    store their transforms so, and so does 3D Slicer when it writes them in ITK's formats. Beyond its grid a field goes
    on in its linear part; in ITK it has no displacement there.

    Args:
        path: a ``transform.safetensors`` of `Transform.save`; a 3-D transform of ITK (.tfm, .txt, .mat, .h5, .xfm) that
            is linear, a displacement field, or a composite of these, as `write_itk_transform` and ANTs write it; or an
            image of displacements (see `read_itk_field`).

    Returns:
        The map; and, of displacement fields, which may fold and have no inverse there, what `repair` did to them.

    Raises:
        TransformError: the file is absent, damaged, no such map, or mirrors.
    """
    path = Path(path)
    if image_suffix(path) is not None:
        return _of_field(path, read_itk_field(path))
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
    parts = [found] if found.IsLinear() else _parts(found)
    strange = [part.GetName() for part in parts if not (part.IsLinear() or part.GetName() == _FIELD)]
    if found.GetDimension() != 3 or strange:
        raise TransformError(
            "this transform is not linear in three dimensions, nor made of linear ones and displacement fields",
            path=path,
            found=f"{', '.join(strange) or found.GetName()} in {found.GetDimension()} dimensions",
            remedy="sample it as a displacement field on the target's grid and give that image",
        )
    steps, records = [], []
    for part in parts:
        if part.IsLinear():
            steps.append(_linear(path, part))
        else:
            step, record = _of_field(path, _field(path, part))
            steps.append(step)
            records.append(record)
    return reduce(Transform.then, steps), _together(records)


def _parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """What a transform of ITK applies, first to last; ITK applies first what was added last."""
    if transform.GetName() != "CompositeTransform":
        return [transform]
    composite = sitk.CompositeTransform(transform)
    return [composite.GetNthTransform(place) for place in reversed(range(composite.GetNumberOfTransforms()))]


def _linear(path: Path, transform: sitk.Transform) -> Transform:
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis, point in enumerate(np.eye(3)):
        matrix[:3, axis] = np.subtract(transform.TransformPoint(point.tolist()), matrix[:3, 3])
    _check_sides(path, matrix)
    return Transform.affine(matrix)


def _field(path: Path, transform: sitk.Transform) -> DisplacementMap:
    image = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    x, y, z = image.GetSize()
    direction = np.reshape(image.GetDirection(), (3, 3))
    return field_of(image, Grid.from_parts((z, y, x), image.GetSpacing(), image.GetOrigin(), direction), path)


def _together(records: Sequence[RepairRecord]) -> RepairRecord | None:
    """What was done to several fields; None without any."""
    if not records:
        return None
    return RepairRecord(
        min(record.minimum_before for record in records),
        min(record.minimum_after for record in records),
        sum(record.changed for record in records),
        max(record.rounds for record in records),
    )


def _of_field(path: Path, field: DisplacementMap) -> tuple[Transform, RepairRecord]:
    """The map of a displacement field: a linear part, which goes on beyond the grid, and what is left without folds."""
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

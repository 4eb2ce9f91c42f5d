"""Maps that other software wrote, against SimpleITK's resampling with the same file."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError
from atlasnet.transform import (
    Transform,
    corner_jacobians,
    itk_field,
    read_transform,
    write_itk_field,
    write_itk_transform,
)
from atlasnet.transform.maps import AffineMap, DisplacementMap, compose
from atlasnet.volume import Grid, Volume

TURNED = Rotation.from_euler("xyz", (12, -7, 25), degrees=True).as_matrix()
TARGET = Grid.from_parts((12, 14, 13), (1.3, 2.2, 2.9), (20.0, -35.0, 300.0), TURNED)
SOURCE = Grid.from_parts((18, 20, 22), (1.7, 2.1, 3.0), (10.0, -40.0, 290.0), np.diag((-1.0, -1.0, 1.0)) @ TURNED.T)
NOISE = Volume(np.random.default_rng(1).standard_normal(SOURCE.shape).astype(np.float32), SOURCE)


def as_itk(array, grid):
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


def resampled_by_simpleitk(transform):
    like = as_itk(np.zeros(TARGET.shape, np.float32), TARGET)
    return sitk.GetArrayFromImage(sitk.Resample(as_itk(NOISE.array[0], SOURCE), like, transform, sitk.sitkLinear, -9.0))


def linear_transform():
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((TURNED @ np.diag((1.1, 0.95, 1.05))).ravel().tolist())
    affine.SetCenter(TARGET.centre.tolist())
    affine.SetTranslation((SOURCE.centre - TARGET.centre).tolist())
    return affine


def rough_field(amplitude):
    rng = np.random.default_rng(2)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(TARGET.shape), 2.5) for _ in range(3)])
    return DisplacementMap(torch.from_numpy((field / np.abs(field).max() * amplitude).astype(np.float32)), TARGET)


def as_itk_transform(field):
    image = itk_field(field.displacement, field.grid)
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def mirroring_field():
    mirror = Transform.affine(np.diag((-1.0, 1, 1, 1)))
    return as_itk_transform(DisplacementMap(mirror.displacement(TARGET), TARGET))


@pytest.mark.parametrize("suffix", ["tfm", "txt", "mat", "h5", "xfm"])
def test_a_linear_transform_of_itk_warps_as_simpleitk_does(suffix, tmp_path):
    path = tmp_path / f"map.{suffix}"
    sitk.WriteTransform(linear_transform(), str(path))
    expected = resampled_by_simpleitk(sitk.ReadTransform(str(path)))
    assert (expected != -9).mean() > 0.5
    transform, repaired = read_transform(path)
    assert repaired is None
    np.testing.assert_allclose(transform.warp(NOISE, TARGET, fill=-9.0).array[0], expected, atol=1e-3)
    back = transform.forward(transform.backward(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)))
    np.testing.assert_allclose(back, [[1.0, 2.0, 3.0]], atol=1e-9)


def test_transforms_that_are_applied_one_after_the_other_are_one_linear_map(tmp_path):
    both = sitk.CompositeTransform([linear_transform(), sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, -0.1, (4, 5, 6))])
    sitk.WriteTransform(both, str(tmp_path / "both.h5"))
    got = read_transform(tmp_path / "both.h5")[0].warp(NOISE, TARGET, fill=-9.0).array[0]
    np.testing.assert_allclose(got, resampled_by_simpleitk(both), atol=1e-3)


def test_a_transform_that_was_exported_to_itk_is_read_again(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = TURNED @ np.diag((1.1, 0.95, 1.05))
    matrix[:3, 3] = SOURCE.centre - matrix[:3, :3] @ TARGET.centre
    made = Transform.from_displacement(rough_field(2.0), matrix)
    write_itk_transform(tmp_path / "map.h5", made.forward, TARGET)
    found, repaired = read_transform(tmp_path / "map.h5")
    assert repaired is not None
    assert repaired.changed == 0
    points = TARGET.to_world(np.random.default_rng(3).uniform(0, TARGET.size - 1, (200, 3)))
    np.testing.assert_allclose(found.map_points(points), made.map_points(points), atol=1e-3)
    np.testing.assert_allclose(found.inverse.map_points(found.map_points(points)), points, atol=0.3)


def test_parts_of_a_composite_of_itk_are_applied_in_its_order(tmp_path):
    """As ANTs writes: a linear map and a field in one file, in whichever order."""
    field = as_itk_transform(rough_field(3.0))
    shift = sitk.TranslationTransform(3, (2.0, -1.0, 3.0))
    inner = sitk.CompositeTransform([linear_transform(), field])  # what was added last is applied first
    outer = sitk.CompositeTransform([linear_transform(), field, shift])
    for name, both in {"one": inner, "two": outer}.items():
        sitk.WriteTransform(both, str(tmp_path / f"{name}.h5"))
        transform, repaired = read_transform(tmp_path / f"{name}.h5")
        assert repaired is not None
        inside = TARGET.to_world(np.random.default_rng(3).uniform(3, TARGET.size - 4, (100, 3)))
        expected = [both.TransformPoint(point) for point in inside.tolist()]
        np.testing.assert_allclose(transform.map_points(inside), expected, atol=0.02)


def test_the_folds_of_a_field_in_a_composite_are_smoothed_and_counted(tmp_path):
    write_itk_transform(tmp_path / "map.h5", compose(rough_field(12.0), AffineMap(np.eye(4))), TARGET)
    transform, repaired = read_transform(tmp_path / "map.h5")
    assert repaired.minimum_before < 0 < repaired.changed
    assert float(corner_jacobians(transform.displacement(TARGET), TARGET).min()) > 0


def test_what_was_done_to_the_fields_of_a_composite_is_told_together(tmp_path):
    fields = [as_itk_transform(rough_field(amplitude)) for amplitude in (12.0, 2.0, 9.0)]
    for name, transform in [("all", sitk.CompositeTransform(fields)), *zip("abc", fields, strict=True)]:
        sitk.WriteTransform(transform, str(tmp_path / f"{name}.h5"))
    together, *each = (read_transform(tmp_path / f"{name}.h5")[1] for name in ("all", *"abc"))
    assert together.minimum_before == min(record.minimum_before for record in each)
    assert together.minimum_after == min(record.minimum_after for record in each)
    assert together.changed == sum(record.changed for record in each) > max(record.changed for record in each)
    assert together.rounds == max(record.rounds for record in each)


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
def test_a_displacement_field_with_a_large_linear_part_warps_as_simpleitk_does(suffix, tmp_path):
    """The linear part goes on beyond the grid: a field that ended there would fold at its edge."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", 80, degrees=True).as_matrix()
    matrix[:3, 3] = SOURCE.centre - matrix[:3, :3] @ TARGET.centre
    path = tmp_path / f"field.{suffix}"
    write_itk_field(path, compose(rough_field(2.0), AffineMap(matrix)), TARGET)
    field = sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64))
    expected = resampled_by_simpleitk(field)
    assert (expected != -9).mean() > 0.3
    transform, repaired = read_transform(path)
    assert repaired.changed == 0
    differs = np.abs(transform.warp(NOISE, TARGET, fill=-9.0).array[0] - expected) > 1e-3
    assert differs.sum() <= 1  # a voxel at the border of the field of view may fall on either side
    assert transform.measured(TARGET, SOURCE).residual["target"]["mean"] < 0.1


def test_the_folds_of_a_field_are_smoothed_and_counted(tmp_path):
    write_itk_field(tmp_path / "field.nii.gz", rough_field(12.0), TARGET)
    transform, repaired = read_transform(tmp_path / "field.nii.gz")
    assert repaired.minimum_before < 0 < repaired.changed < TARGET.voxels
    assert float(corner_jacobians(transform.displacement(TARGET), TARGET).min()) > 0


def test_a_stored_transform_is_read_as_it_was(tmp_path):
    stored = Transform.from_displacement(rough_field(2.0))
    stored.save(tmp_path / "transform.safetensors")
    found, repaired = read_transform(tmp_path / "transform.safetensors")
    assert repaired is None
    assert torch.equal(found.displacement(TARGET), stored.displacement(TARGET))


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (sitk.Euler2DTransform(), "not linear in three dimensions"),
        (sitk.BSplineTransformInitializer(as_itk(NOISE.array[0], SOURCE), [4, 4, 4]), "not linear"),
        (sitk.ScaleTransform(3, (-1.0, 1.0, 1.0)), "mirrors"),
        (mirroring_field(), "mirrors"),
    ],
)
def test_what_is_no_map_of_two_volumes_is_refused_by_name(transform, said, tmp_path):
    sitk.WriteTransform(transform, str(tmp_path / "map.h5"))
    with pytest.raises(TransformError, match=rf"map\.h5: .*{said}"):
        read_transform(tmp_path / "map.h5")


@pytest.mark.parametrize("name", ["map.tfm", "map.mat", "map.h5", "map.txt", "map.nii.gz", "map.safetensors"])
@pytest.mark.parametrize("content", [None, b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"])
def test_a_file_that_is_absent_or_something_else_is_refused_by_name(name, content, tmp_path, capfd):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TransformError, match=name):
        read_transform(tmp_path / name)
    assert capfd.readouterr() == ("", "")

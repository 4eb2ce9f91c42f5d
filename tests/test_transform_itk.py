"""Warping and written fields against SimpleITK's own transforms."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError
from atlasnet.transform import (
    AffineMap,
    BSplineMap,
    DisplacementMap,
    Transform,
    compose,
    displacement_on,
    itk_field,
    read_itk_field,
    write_itk_field,
)
from atlasnet.volume import Grid, Volume

ORIENTATIONS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = Rotation.from_euler("xyz", (12, -7, 25), degrees=True).as_matrix()


def centred_grid(shape, spacing, direction, centre=(20.0, -35.0, 300.0)) -> Grid:
    origin = np.array(centre) - direction @ ((np.array(shape[::-1]) - 1) / 2 * spacing)
    return Grid.from_parts(shape, spacing, origin, direction)


def random_field(grid: Grid, amplitude: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(grid.shape), 2.5) for _ in range(3)])
    return torch.from_numpy((field / np.abs(field).max() * amplitude).astype(np.float32))


def as_itk(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


def itk_affine(matrix: np.ndarray) -> sitk.AffineTransform:
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def itk_displacement(image: sitk.Image) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def itk_warp(volume: Volume, grid: Grid, transform: sitk.Transform, kind=sitk.sitkLinear) -> np.ndarray:
    like = as_itk(np.zeros(grid.shape, np.float32), grid)
    return sitk.GetArrayFromImage(sitk.Resample(as_itk(volume.array[0], volume.grid), like, transform, kind, -9.0))


SOURCE = centred_grid((18, 16, 20), (1.7, 2.1, 3.0), OBLIQUE)
NOISE = Volume(np.random.default_rng(1).standard_normal(SOURCE.shape).astype(np.float32), SOURCE)
MATRIX = np.eye(4)
MATRIX[:3, :3] = Rotation.from_euler("xyz", (5, 9, -12), degrees=True).as_matrix() * (1.1, 0.95, 1.05)
MATRIX[:3, 3] = np.array((21.0, -33.0, 301.0)) - MATRIX[:3, :3] @ (20.0, -35.0, 300.0)


@pytest.mark.parametrize(
    "orientation", ORIENTATIONS, ids=lambda m: "".join("xyz"[abs(r).argmax()] + "+-"[int(r.sum() < 0)] for r in m)
)
def test_warping_through_a_written_field_agrees_with_simpleitk_in_every_orientation(orientation, tmp_path):
    grid = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T @ orientation)
    transform = Transform(
        compose(DisplacementMap(random_field(grid, 4.0), grid), AffineMap(MATRIX)), AffineMap(np.linalg.inv(MATRIX))
    )
    write_itk_field(tmp_path / "field.nii.gz", transform.forward, grid)
    expected = itk_warp(NOISE, grid, itk_displacement(sitk.ReadImage(str(tmp_path / "field.nii.gz"))))
    got = transform.warp(NOISE, grid, fill=-9.0).array[0]
    assert (expected != -9).mean() > 0.3
    # A voxel exactly at the border of the field of view may fall on either side of it.
    differs = np.abs(got - expected) > 1e-3
    assert differs.sum() <= 1


@pytest.mark.parametrize(
    ("interpolation", "kind"), [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)]
)
def test_an_affine_warp_agrees_with_simpleitk(interpolation, kind):
    grid = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T)
    expected = itk_warp(NOISE, grid, itk_affine(MATRIX), kind)
    got = Transform.affine(MATRIX).warp(NOISE, grid, interpolation=interpolation, fill=-9.0).array[0]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_chain_is_interpolated_once_as_simpleitks_composite_is():
    grid = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T)
    middle = centred_grid((20, 22, 24), (2.0, 2.0, 2.5), np.eye(3))
    first = Transform(DisplacementMap(random_field(grid, 3.0, 1), grid), AffineMap(np.eye(4)))
    second = Transform.affine(MATRIX)
    third = Transform(DisplacementMap(random_field(middle, 3.0, 2), middle), AffineMap(np.eye(4)))
    chain = first.then(second).then(third)
    # ITK applies what was added last first.
    fields = [itk_displacement(itk_field(t.forward.displacement, t.forward.grid)) for t in (third, first)]
    expected = itk_warp(NOISE, grid, sitk.CompositeTransform([fields[0], itk_affine(MATRIX), fields[1]]))
    got = chain.warp(NOISE, grid, fill=-9.0).array[0]
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_a_b_spline_agrees_with_simpleitk():
    domain = as_itk(np.zeros(SOURCE.shape, np.float32), SOURCE)
    spline = sitk.BSplineTransformInitializer(domain, [4, 3, 5], 3)
    rng = np.random.default_rng(3)
    spline.SetParameters(rng.uniform(-4, 4, len(spline.GetParameters())).tolist())
    images = spline.GetCoefficientImages()
    control = Grid.from_parts(
        images[0].GetSize()[::-1], images[0].GetSpacing(), images[0].GetOrigin(), images[0].GetDirection()
    )
    coefficients = np.stack([sitk.GetArrayFromImage(image) for image in images]).astype(np.float32)
    ours = BSplineMap(torch.from_numpy(coefficients), control)
    points = SOURCE.to_world(rng.uniform(0.01, SOURCE.size - 1.01, (500, 3)))
    expected = np.array([spline.TransformPoint(point.tolist()) for point in points])
    np.testing.assert_allclose(ours(torch.from_numpy(points)).numpy(), expected, atol=1e-5)

    inner = SOURCE.padded((-1, -1, -1), (-1, -1, -1))
    warped = Transform(ours, AffineMap(np.eye(4))).warp(NOISE, inner, fill=-9.0).array[0]
    np.testing.assert_allclose(warped, itk_warp(NOISE, inner, spline), atol=2e-3)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_field_survives_every_format(suffix, tmp_path):
    grid = centred_grid((5, 6, 7), (1.3, 2.2, 2.9), OBLIQUE)
    field = random_field(grid, 4.0)
    path = tmp_path / f"field{suffix}"
    write_itk_field(path, DisplacementMap(field, grid), grid)
    back = read_itk_field(path)
    assert back.grid.matches(grid)
    np.testing.assert_allclose(back.displacement.numpy(), field.numpy(), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_labels_are_warped_as_the_arg_max_of_simpleitks_warped_one_hot_maps():
    grid = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T)
    values = np.array([0, 1, 4])
    labels = Volume(
        values[np.clip(np.digitize(ndimage.gaussian_filter(NOISE.array[0], 1.5), (-0.03, 0.05)), 0, 2)], SOURCE
    )
    field = random_field(grid, 4.0)
    transform = itk_displacement(itk_field(field, grid))
    shares = np.stack(
        [itk_warp(labels.replace((labels.array == v).astype(np.float32)), grid, transform) for v in values]
    )
    ranked = np.sort(shares, axis=0)
    clear = (ranked[-1] - ranked[-2] > 1e-2) & (ranked[0] != -9)
    got = Transform(DisplacementMap(field, grid), AffineMap(np.eye(4))).warp(labels, grid, interpolation="label")
    assert got.array.dtype == labels.array.dtype
    np.testing.assert_array_equal(got.array[0][clear], values[shares.argmax(0)][clear])
    np.testing.assert_array_equal(got.array[0][ranked[0] == -9], 0)


def test_an_affine_field_holds_the_displacement_of_simpleitks_affine():
    grid = centred_grid((5, 6, 7), (1.3, 2.2, 2.9), OBLIQUE)
    like = as_itk(np.zeros(grid.shape, np.float32), grid)
    expected = sitk.TransformToDisplacementField(
        itk_affine(MATRIX),
        sitk.sitkVectorFloat64,
        like.GetSize(),
        like.GetOrigin(),
        like.GetSpacing(),
        like.GetDirection(),
    )
    got = displacement_on(AffineMap(MATRIX), grid).numpy()
    np.testing.assert_allclose(np.moveaxis(got, 0, -1), sitk.GetArrayFromImage(expected), atol=1e-5)


def test_fields_that_cannot_be_used_are_refused(tmp_path):
    grid = centred_grid((5, 6, 7), (1.3, 2.2, 2.9), OBLIQUE)
    with pytest.raises(TransformError, match="suffix"):
        write_itk_field(tmp_path / "field.txt", AffineMap(MATRIX), grid)
    with pytest.raises(TransformError, match="no such file"):
        read_itk_field(tmp_path / "absent.nii.gz")
    sitk.WriteImage(as_itk(np.zeros(grid.shape, np.float32), grid), str(tmp_path / "scalar.nii.gz"))
    with pytest.raises(TransformError, match="no displacement field"):
        read_itk_field(tmp_path / "scalar.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(TransformError, match="cannot be read"):
        read_itk_field(tmp_path / "broken.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".NII.GZ"])
def test_the_field_of_a_single_slice_is_one_that_itk_applies(tmp_path: Path, suffix: str) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = (3, -2, 0)
    path = tmp_path / f"field{suffix}"
    write_itk_field(path, Transform.affine(matrix).forward, Grid.from_parts((1, 20, 24), (1.0, 1.5, 2.0)))
    kind = "NrrdImageIO" if suffix == ".nrrd" else "NiftiImageIO"  # ITK knows no suffixes in capitals
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64, kind)
    np.testing.assert_allclose(sitk.DisplacementFieldTransform(field).TransformPoint((5.0, 6.0, 0.0)), (8, 4, 0))
    moved = read_itk_field(path)(torch.tensor([[5.0, 6.0, 0.0]], dtype=torch.float64))
    np.testing.assert_allclose(moved.numpy(), [[8, 4, 0]], atol=1e-5)

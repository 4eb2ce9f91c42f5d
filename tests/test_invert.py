from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError
from atlasnet.transform import (
    DisplacementMap,
    Transform,
    corner_jacobians,
    inverse_grid,
    invert,
    repair,
    write_itk_field,
)
from atlasnet.volume import Grid

TURN = Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()
GRID = Grid.from_parts((24, 36, 40), (1.9, 2.1, 3.0), (-30.0, 40.0, 500.0), TURN)


def smooth_field(grid: Grid, amplitude: float, sigma: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(grid.shape), sigma) for _ in range(3)])
    return torch.from_numpy((field / np.abs(field).max() * amplitude).astype(np.float32))


def scipy_displaced(field: torch.Tensor, grid: Grid, points: np.ndarray) -> np.ndarray:
    index = grid.to_index(points).T[::-1]
    parts = [ndimage.map_coordinates(c.double().numpy(), index, order=1, mode="nearest") for c in field]
    return points + np.stack(parts, -1)


def voxels_of(grid: Grid) -> np.ndarray:
    z, y, x = np.meshgrid(*map(np.arange, grid.shape), indexing="ij")
    return grid.to_world(np.stack([x, y, z], -1).reshape(-1, 3))


def test_the_inverse_of_a_monotone_stretch_is_that_of_the_interpolated_curve():
    # Along x the map is a curve with slopes from 0.05 to 6, so |grad u| is 5 in places and 0.95 in others.
    rng = np.random.default_rng(0)
    slopes = np.exp(ndimage.gaussian_filter1d(rng.uniform(-9, 9, 120), 1.5))
    slopes = np.clip(slopes, 0.05, 6.0)
    curve = np.concatenate([[0.0], np.cumsum(slopes[:-1])]) - 20.0
    grid = Grid.from_parts((3, 4, 120), (2.0, 1.0, 1.0))
    field = torch.zeros(3, 3, 4, 120)
    field[0] = torch.from_numpy((curve - np.arange(120)) * 2.0).float()
    assert slopes.max() > 4
    assert slopes.min() < 0.1
    inverse, residual = invert(DisplacementMap(field, grid), grid)
    where = np.arange(120.0)
    inner = (where > curve[0]) & (where < curve[-1])
    expected = np.interp(where[inner], curve, np.arange(120))
    got = inverse.displacement[0, 1, 2].numpy() / 2.0 + where
    # The map misses its goal by the tolerance at most; where it is flat, that is 20 times as much in the inverse.
    np.testing.assert_allclose(got[inner], expected, atol=2e-3 / 0.05)
    assert residual["source"]["max"] < 0.01


def test_the_inverse_of_a_rotation_by_70_degrees_is_the_rotation_back():
    grid = Grid.from_parts((12, 21, 21), (2.0, 2.0, 2.0), (-20.0, -20.0, -11.0))
    turn = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    points = voxels_of(grid)
    field = (points @ turn.T - points).T.reshape(3, *grid.shape)
    inverse, _ = invert(DisplacementMap(torch.from_numpy(field), grid), grid)
    # Inside the inscribed cylinder the rotation never leaves the grid.
    within = np.linalg.norm(points[:, :2], axis=1) < 20
    got = points + inverse.displacement.reshape(3, -1).T.numpy()
    np.testing.assert_allclose(got[within], (points @ turn)[within], atol=0.01)


def test_points_at_which_the_search_is_stuck_start_again_elsewhere():
    # From where the coarser grid put them, a few of these end a voxel and a half away.
    grid = Grid.from_parts((20, 24, 28))
    field, _ = repair(smooth_field(grid, 14, 2.5, seed=9), grid)
    inverse, residual = invert(DisplacementMap(field, grid))
    goals = voxels_of(inverse.grid)
    reached = scipy_displaced(field, grid, goals + inverse.displacement.reshape(3, -1).T.numpy())
    assert np.linalg.norm(reached - goals, axis=1).max() < 0.01
    assert residual["source"]["max"] < 0.01


@pytest.mark.parametrize(("amplitude", "sigma"), [(8, 3), (20, 4), (14, 2.5)])
def test_every_voxel_of_a_strong_fold_free_field_is_inverted(amplitude, sigma):
    field, _ = repair(smooth_field(GRID, amplitude, sigma), GRID)
    gradient = max(float(np.abs(np.diff(field.numpy(), axis=axis)).max()) / 2 for axis in (1, 2, 3))
    assert gradient > (0.5 if amplitude == 8 else 1)
    inverse, residual = invert(DisplacementMap(field, GRID))
    goals = voxels_of(inverse.grid)
    reached = scipy_displaced(field, GRID, goals + inverse.displacement.reshape(3, -1).T.numpy())
    assert np.linalg.norm(reached - goals, axis=1).max() < 0.02
    assert residual["source"]["max"] < 0.02


def test_the_inverse_is_right_far_outside_its_own_grid():
    field, _ = repair(smooth_field(GRID, 10, 4), GRID)
    inverse, _ = invert(DisplacementMap(field, GRID))
    points = GRID.to_world(np.random.default_rng(0).uniform(-40, GRID.size + 40, (4000, 3)))
    there = torch.from_numpy(scipy_displaced(field, GRID, points))
    assert np.linalg.norm(inverse(there).numpy() - points, axis=1).mean() < 0.1


def test_the_inverse_grid_holds_the_image_of_every_voxel():
    field = smooth_field(GRID, 15, 4)
    larger = inverse_grid(DisplacementMap(field, GRID))
    index = larger.to_index(scipy_displaced(field, GRID, GRID.corners()))
    assert (index >= 0).all()
    assert (index <= larger.size - 1).all()
    assert np.array_equal(larger.spacing.round(9), GRID.spacing.round(9))


def test_the_inverse_grid_reaches_as_far_as_each_face_is_pushed_out_and_a_voxel_more():
    grid = Grid.from_parts((6, 7, 8), (1.0, 2.0, 3.0))
    field = torch.zeros(3, 6, 7, 8)
    field[0, :, :, 0], field[0, :, :, -1] = -2.5, 1.5
    field[1, :, 0], field[1, :, -1] = 3.0, -5.0  # inwards
    field[2, -1] = 7.0
    larger = inverse_grid(DisplacementMap(field, grid))
    assert larger.shape == (6 + 1 + 4, 7 + 2, 8 + 4 + 3)
    assert larger.matches(grid.padded((4, 1, 1), (3, 1, 4)))


def test_a_field_that_leaves_its_grid_altogether_does_not_fill_the_memory():
    grid = Grid.from_parts((5, 6, 7))
    far = torch.full((3, 5, 6, 7), 1e6)
    far[2] *= -1
    assert inverse_grid(DisplacementMap(far, grid)).voxels < 3**3 * 6 * 7 * 8


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 1, 30), (2, 3, 2), (1, 1, 1)])
def test_thin_grids_are_inverted(shape):
    grid = Grid.from_parts(shape, (1.0, 1.0, 5.0))
    field = torch.full((3, *shape), 0.25)
    inverse, residual = invert(DisplacementMap(field, grid))
    np.testing.assert_allclose(inverse.displacement.numpy(), -0.25, atol=1e-5)
    assert residual["source"]["max"] < 1e-4


def test_a_folded_field_still_gives_a_finite_inverse_and_an_honest_residual():
    field = smooth_field(GRID, 40, 3)
    assert corner_jacobians(field, GRID).min() < 0
    inverse, residual = invert(DisplacementMap(field, GRID))
    assert torch.isfinite(inverse.displacement).all()
    points = voxels_of(GRID)
    back = inverse(torch.from_numpy(scipy_displaced(field, GRID, points)))
    assert residual["target"]["max"] == pytest.approx(np.linalg.norm(back.numpy() - points, axis=1).max(), rel=0.05)
    assert residual["target"]["max"] > 1


def test_the_written_fields_undo_each_other_when_simpleitk_composes_them(tmp_path):
    target = Grid.from_parts((30, 48, 48), (2.0, 2.0, 3.0), (-48.0, -48.0, -45.0))
    source = Grid.from_parts(
        (28, 46, 50), (2.2, 2.1, 3.2), (-50.0, -46.0, -40.0), Rotation.from_euler("z", 8, degrees=True).as_matrix()
    )
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (4, -3, 8), degrees=True).as_matrix() * (1.05, 0.95, 1.1)
    matrix[:3, 3] = (4, -3, 6)
    field, _ = repair(smooth_field(target, 12, 5), target)
    transform = Transform.from_displacement(DisplacementMap(field, target), matrix)
    write_itk_field(tmp_path / "forward.nii.gz", transform.forward, target)
    write_itk_field(tmp_path / "backward.nii.gz", transform.backward, source)
    measured = transform.measured(target, source).residual
    for first, second, name in (("forward", "backward", "target"), ("backward", "forward", "source")):
        one, two = (
            sitk.ReadImage(str(tmp_path / f"{part}.nii.gz"), sitk.sitkVectorFloat64) for part in (first, second)
        )
        # WarpImageFilter-free composition: u2(p + u1(p)) is the second field resampled through the first.
        there = sitk.DisplacementFieldTransform(sitk.Image(one))
        outside = 1e6
        moved = sitk.Resample(two, one, there, sitk.sitkLinear, outside)
        total = sitk.GetArrayFromImage(moved) + sitk.GetArrayFromImage(one)
        lengths = np.linalg.norm(total[np.abs(total).max(-1) < outside / 2], axis=-1)
        assert len(lengths) > 0.5 * total[..., 0].size
        assert lengths.mean() < 0.2
        assert np.quantile(lengths, 0.999) < 1.0
        assert measured[name]["mean"] < 0.1
        assert measured[name]["share"] == pytest.approx(len(lengths) / total[..., 0].size, abs=0.01)


@pytest.mark.parametrize(("slope", "least"), [(-3.0, "-0.5"), (-2.0, "0")])
def test_a_map_is_not_made_of_a_field_that_folds(slope, least):
    grid = Grid.from_parts((4, 5, 12), (2.0, 1.0, 1.0))
    field = torch.zeros(3, *grid.shape)
    field[0] = torch.arange(12) * slope  # (2 mm a voxel - 3 mm) / 2 mm
    with pytest.raises(TransformError, match=rf"folds, and has no inverse.*found {least} at least, 240 voxels.*repair"):
        Transform.from_displacement(DisplacementMap(field, grid))
    repaired, _ = repair(field, grid)
    assert Transform.from_displacement(DisplacementMap(repaired, grid)).jacobian(grid)["minimum"] > 0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError
from atlasnet.transform import AffineMap, Transform, corner_jacobians, displacement_on, jacobian_determinant, repair
from atlasnet.transform.jacobian import jacobian_summary
from atlasnet.transform.repair import _smooth_regions, smooth_at
from atlasnet.volume import Grid

GRID = Grid.from_parts(
    (6, 5, 7), (1.3, 2.0, 3.1), (1, 2, 3), Rotation.from_euler("xyz", (10, 40, -70), degrees=True).as_matrix()
)

PERMUTED = Grid.from_parts((6, 5, 7), (1.3, 2.0, 3.1), direction=np.eye(3)[[1, 2, 0]])


def noise(grid: Grid, amplitude: float, sigma: float = 0.0, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((3, *grid.shape))
    if sigma:
        field = np.stack([ndimage.gaussian_filter(part, sigma) for part in field])
        field /= np.abs(field).max()
    return torch.from_numpy((field * amplitude).astype(np.float32))


def least_corner_by_loops(field: np.ndarray, grid: Grid) -> np.ndarray:
    """Each voxel's cells, one by one, in world coordinates."""
    least = np.full(grid.shape, np.inf)
    for k, j, i in itertools.product(*map(range, grid.shape)):
        for signs in itertools.product((-1, 1), repeat=3):
            neighbours = [(k, j, i + signs[0]), (k, j + signs[1], i), (k + signs[2], j, i)]
            if any(n < 0 or n >= size for near in neighbours for n, size in zip(near, grid.shape, strict=True)):
                continue
            edges = np.stack([grid.to_world(near[::-1]) - grid.to_world((i, j, k)) for near in neighbours], 1)
            moved = edges + np.stack([field[:, *near] - field[:, k, j, i] for near in neighbours], 1)
            least[k, j, i] = min(least[k, j, i], np.linalg.det(moved) / np.linalg.det(edges))
    return least


@pytest.mark.parametrize("at_once", [1, 70, 1000])
@pytest.mark.parametrize("grid", [GRID, PERMUTED], ids=["oblique", "permuted axes"])
def test_corner_jacobians_are_the_least_over_the_cells_at_a_voxel(grid, at_once, monkeypatch):
    monkeypatch.setattr("atlasnet.transform.jacobian.VOXELS_AT_ONCE", at_once)  # slabs of one slice, of two, and all
    field = noise(grid, 0.8)
    np.testing.assert_allclose(
        corner_jacobians(field, grid).numpy(), least_corner_by_loops(field.numpy(), grid), atol=1e-4
    )


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_a_linear_map_has_its_determinant_everywhere(seed):
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(seed).normal(0, 0.3, (3, 4))
    if abs(np.linalg.det(matrix[:3, :3])) < 0.01:
        return
    field = displacement_on(AffineMap(matrix), GRID)
    for measured in (corner_jacobians(field, GRID), jacobian_determinant(field, GRID)):
        np.testing.assert_allclose(measured.numpy(), np.linalg.det(matrix[:3, :3]), atol=1e-3)


@pytest.mark.parametrize("at_once", [1, 250, 1000])
def test_the_central_determinant_agrees_with_simpleitk(at_once, monkeypatch):
    monkeypatch.setattr("atlasnet.transform.jacobian.VOXELS_AT_ONCE", at_once)
    grid = Grid.from_parts((9, 10, 11), (1.3, 2.0, 3.1))
    field = noise(grid, 3, 1.5)
    image = sitk.GetImageFromArray(np.moveaxis(field.double().numpy(), 0, -1), isVector=True)
    image.SetSpacing(grid.spacing.tolist())
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(jacobian_determinant(field, grid).numpy()[inner], expected[inner], atol=1e-4)


def test_the_summary_of_a_transform_counts_folded_voxels():
    mirror = Transform.affine(np.diag([-1.2, 1.0, 1.0, 1.0])).jacobian(GRID)
    assert mirror["folded"] == 1
    assert mirror["minimum"] == pytest.approx(-1.2, abs=1e-3)
    growth = Transform.affine(np.diag([1.2, 1.0, 1.0, 1.0])).jacobian(GRID)
    assert growth["folded"] == 0
    assert growth["mean"] == pytest.approx(1.2, abs=1e-3)
    assert growth["log_sd"] == pytest.approx(0, abs=1e-3)


def test_the_summary_is_that_of_numpy_over_the_voxels():
    field = noise(GRID, 0.9)
    found = jacobian_summary(field, GRID)
    corners, central = (of(field, GRID).double().numpy() for of in (corner_jacobians, jacobian_determinant))
    assert 0 < found["folded"] == pytest.approx((corners <= 0).mean())
    assert found["minimum"] == corners.min()
    assert found["mean"] == pytest.approx(central.mean())
    assert found["maximum"] == central.max()
    assert found["log_sd"] == pytest.approx(np.log(central[central > 0]).std())


def test_what_is_pressed_into_a_plane_is_folded():
    grid = Grid.from_parts((3, 4, 5))
    pressed = torch.zeros(3, *grid.shape)
    pressed[2] = -torch.arange(3.0)[:, None, None]
    assert jacobian_summary(pressed, grid)["folded"] == 1


def test_repair_leaves_a_fold_free_field_bit_for_bit():
    grid = Grid.from_parts((12, 14, 16), (2, 2, 3))
    field = noise(grid, 2, 3)
    repaired, record = repair(field, grid)
    assert torch.equal(repaired, field)
    assert (record.changed, record.rounds) == (0, 0)
    repaired.zero_()
    assert field.any()  # of its own


def test_repair_changes_a_field_only_around_its_fold():
    grid = Grid.from_parts((30, 30, 30), (2, 2, 3))
    field = noise(grid, 2, 4)
    folded = field.clone()
    folded[0, 15, 15, 15] += 6
    repaired, record = repair(folded, grid, floor=0.05)
    changed = (repaired != folded).any(0)
    assert record.changed == int(changed.sum())
    assert 0 < record.changed < 1000
    assert torch.equal(repaired[:, :5], folded[:, :5])
    assert corner_jacobians(repaired, grid).min() > 0.05
    assert record.minimum_before < 0 < 0.05 < record.minimum_after


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_smoothing_reaches_as_far_to_every_side_of_a_voxel(reach):
    grid = Grid.from_parts((21, 21, 21))
    field = noise(grid, 1)
    where = torch.zeros(grid.shape, dtype=torch.bool)
    where[10, 10, 10] = True
    places = (smooth_at(field, grid, where, reach=reach) != field).any(0).nonzero()
    far = reach + reach // 2  # where the weights have fallen to 0
    assert places.amin(0).tolist() == [10 - far] * 3
    assert places.amax(0).tolist() == [10 + far] * 3


def test_a_round_of_smoothing_leaves_no_determinant_out_of_date():
    grid = Grid.from_parts((14, 15, 16), (2, 2, 3))
    folded = noise(grid, 6, 1.5)
    folded[0, 6, 6, 6] += 12
    folded[2, 10, 3, 11] -= 12
    least = corner_jacobians(folded, grid, outside=True)
    assert 0 < int((least <= 0.05).sum()) < 100
    for reach in (1, 2, 5):
        _smooth_regions(folded, least, grid, 0.05, reach)
        torch.testing.assert_close(least, corner_jacobians(folded, grid, outside=True))


def test_a_turn_that_folds_beyond_the_grid_only_is_repaired():
    grid = Grid.from_parts((3, 9, 9), origin=(-4.0, -4.0, -1.0))
    turn = Transform.affine(
        np.pad(Rotation.from_euler("z", 100, degrees=True).as_matrix(), (0, 1)) + np.diag([0, 0, 0, 1])
    )
    field = turn.displacement(grid)
    assert corner_jacobians(field, grid).min() > 0.9
    repaired, record = repair(field, grid)
    assert record.minimum_before < 0
    assert corner_jacobians(repaired, grid, outside=True).min() > 0.05


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.floats(-1, 30),
    st.floats(0.0, 0.9),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=25)
def test_repair_always_ends_above_the_floor(shape, exponent, floor, seed):
    grid = Grid.from_parts(shape, (1.0, 2.0, 3.0))
    repaired, record = repair(noise(grid, 10**exponent, seed=seed), grid, floor=floor)
    assert corner_jacobians(repaired, grid).min() > floor
    assert corner_jacobians(repaired, grid, outside=True).min() > floor
    assert record.minimum_after > floor


def test_a_wrong_shape_or_floor_is_refused():
    with pytest.raises(TransformError, match="does not fit"):
        corner_jacobians(torch.zeros(3, 2, 2, 2), GRID)
    with pytest.raises(TransformError, match="finite"):
        repair(torch.full((3, *GRID.shape), torch.inf), GRID)
    with pytest.raises(ValueError, match="floor"):
        repair(torch.zeros(3, *GRID.shape), GRID, floor=1.0)

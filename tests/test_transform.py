from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError, VolumeError
from atlasnet.transform import (
    AffineMap,
    BSplineMap,
    CompositeMap,
    DisplacementMap,
    Transform,
    compose,
    itk_transform,
    length_summary,
)
from atlasnet.volume import Grid, Volume

GRID = Grid.from_parts(
    (8, 10, 12), (1.5, 2.0, 2.5), (-10.0, 5.0, 200.0), Rotation.from_euler("z", 20, degrees=True).as_matrix()
)


def field(seed: int = 0, amplitude: float = 2.0, grid: Grid = GRID) -> DisplacementMap:
    rng = np.random.default_rng(seed)
    values = np.stack([ndimage.gaussian_filter(rng.standard_normal(grid.shape), 2) for _ in range(3)])
    return DisplacementMap(torch.from_numpy(values / np.abs(values).max() * amplitude), grid)


def rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
    matrix[:3, 3] = rng.uniform(-5, 5, 3)
    return matrix


def world_points(count: int = 300, beyond: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(9)
    return GRID.to_world(rng.uniform(-beyond, GRID.size - 1 + beyond, (count, 3)))


def scipy_displaced(displacement: DisplacementMap, points: np.ndarray) -> np.ndarray:
    index = displacement.grid.to_index(points).T[::-1]
    parts = [
        ndimage.map_coordinates(c.double().numpy(), index, order=1, mode="nearest") for c in displacement.displacement
    ]
    return points + np.stack(parts, -1)


def test_a_displacement_is_linear_inside_and_that_of_the_nearest_edge_outside():
    points = world_points(beyond=6.0)
    np.testing.assert_allclose(field()(torch.from_numpy(points)).numpy(), scipy_displaced(field(), points), atol=1e-4)


def test_single_precision_points_far_from_the_origin_stay_accurate():
    far = Grid(GRID.shape, np.array(GRID.affine) + np.array([[0, 0, 0, 900.0]] * 3 + [[0, 0, 0, 0]]))
    points = far.to_world(np.random.default_rng(0).uniform(0, far.size - 1, (300, 3))).astype(np.float32)
    moved = field(grid=far)(torch.from_numpy(points)).numpy()
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, scipy_displaced(field(grid=far), points.astype(float)), atol=5e-4)


def test_parts_of_a_composite_are_applied_first_to_last():
    points = world_points()
    a, b = AffineMap(rigid(1)), field(2)
    expected = scipy_displaced(b, points @ a.matrix[:3, :3].T + a.matrix[:3, 3])
    np.testing.assert_allclose(compose(a, b)(torch.from_numpy(points)).numpy(), expected, atol=1e-4)


def test_composites_are_flattened_and_neighbouring_affines_multiplied():
    a, b = rigid(1), rigid(2)
    chain = compose(CompositeMap((field(), AffineMap(a))), CompositeMap((AffineMap(b), field(1))))
    assert isinstance(chain, CompositeMap)
    assert [type(part) for part in chain.parts] == [DisplacementMap, AffineMap, DisplacementMap]
    np.testing.assert_allclose(chain.parts[1].matrix, b @ a)
    alone = compose(AffineMap(a), AffineMap(b))
    assert isinstance(alone, AffineMap)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_affine_maps_and_their_inverses_cancel(seed, other):
    points = torch.from_numpy(world_points(20))
    chain = Transform.affine(rigid(seed)).then(Transform.affine(rigid(other)))
    np.testing.assert_allclose(chain.backward(chain.forward(points)).numpy(), points.numpy(), atol=1e-9)


def test_an_affine_map_stays_when_the_array_it_was_made_of_changes():
    matrix = rigid(1)
    transform = Transform.affine(matrix)
    matrix[:3, 3] += 100
    np.testing.assert_array_equal(transform.forward.matrix, rigid(1))


def test_the_identity_warp_returns_every_voxel():
    array = np.random.default_rng(0).standard_normal((2, *GRID.shape)).astype(np.float32)
    warped = Transform.identity().warp(Volume(array, GRID), GRID)
    np.testing.assert_allclose(warped.array, array, atol=1e-4)


def test_a_shift_by_whole_voxels_moves_the_array_and_fills_what_comes_from_outside():
    array = np.random.default_rng(0).integers(1, 9, GRID.shape).astype(np.int16)
    shift = np.eye(4)
    shift[:3, 3] = GRID.affine[:3, :3] @ (2, 0, 0)
    for mode in ("linear", "nearest", "label"):
        warped = Transform.affine(shift).warp(Volume(array, GRID), GRID, interpolation=mode, fill=0).array[0]
        np.testing.assert_allclose(warped[..., :-2], array[..., 2:], atol=1e-3)
        assert (warped[..., -2:] == 0).all()


def test_slabs_put_together_are_the_warped_volume():
    volume = Volume(np.random.default_rng(0).standard_normal((3, *GRID.shape)).astype(np.float32), GRID)
    target = Grid.from_parts((9, 7, 8), (2, 2, 2), (-8.0, 8.0, 203.0))
    transform = Transform(compose(field(), AffineMap(rigid(3))), AffineMap(np.eye(4)))
    whole = transform.warp(volume, target, fill=-1).array
    array = torch.from_numpy(volume.array)
    parts = [transform.warp_slab(array, GRID, target, z, z + 3, fill=-1) for z in (0, 3, 6)]
    np.testing.assert_array_equal(torch.cat(parts, 1).numpy(), whole)


def test_the_displacement_of_a_field_on_its_own_grid_is_the_field():
    np.testing.assert_allclose(
        Transform(field(), field()).displacement(GRID).numpy(), field().displacement.numpy(), atol=1e-5
    )


@pytest.mark.parametrize("affine", [rigid(4), None])
def test_the_inverse_swaps_directions_and_residuals(affine):
    transform = Transform.from_displacement(field(), affine)
    swapped = transform.inverse
    assert swapped.forward is transform.backward
    assert swapped.backward is transform.forward
    assert swapped.residual["target"] == transform.residual["source"]


def test_a_chain_of_deformations_is_undone_by_its_backward_direction():
    chain = Transform.from_displacement(field(0, 1.5), rigid(4)).then(Transform.from_displacement(field(1, 1.0)))
    there = chain.forward(torch.from_numpy(world_points()))
    assert np.abs(there.numpy() - world_points()).max() > 1
    np.testing.assert_allclose(chain.backward(there).numpy(), world_points(), atol=0.2)


def test_measured_residuals_count_only_voxels_that_reach_the_other_grid():
    shift = np.eye(4)
    shift[:3, 3] = GRID.affine[:3, :3] @ (6, 0, 0)
    measured = Transform.affine(shift).measured(GRID, GRID)
    assert measured.residual["target"]["share"] == pytest.approx(0.5)
    assert measured.residual["target"]["max"] < 1e-3
    # A source of which each voxel is reached, and whose own image under the forward map lies elsewhere.
    there = Grid(GRID.shape, shift @ shift @ shift @ GRID.affine)
    apart = Transform.affine(np.linalg.matrix_power(shift, 3)).measured(GRID, there)
    assert [apart.residual[side]["share"] for side in ("target", "source")] == [1, 1]


@pytest.mark.parametrize("count", [1, 7, 1001, 1999])
def test_lengths_are_summarised_as_numpy_does(count):
    lengths = torch.from_numpy(np.random.default_rng(count).random(count))
    found = length_summary(lengths)
    assert found["mean"] == pytest.approx(lengths.numpy().mean())
    assert found["p999"] == np.percentile(lengths.numpy(), 99.9, method="inverted_cdf")
    assert found["max"] == lengths.numpy().max()


def test_a_b_spline_with_equal_control_points_is_a_translation_everywhere():
    control = Grid.from_parts((5, 5, 5), (10, 10, 10))
    spline = BSplineMap(torch.tensor([1.0, -2.0, 3.0])[:, None, None, None].expand(3, 5, 5, 5), control)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-100, 150, (200, 3)))
    np.testing.assert_allclose((spline(points) - points).numpy(), np.tile([1.0, -2.0, 3.0], (200, 1)), atol=1e-5)


def test_maps_that_make_no_sense_are_refused():
    with pytest.raises(TransformError, match="does not fit"):
        DisplacementMap(torch.zeros(3, 2, 2, 2), GRID)
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = torch.zeros(3, *GRID.shape)
        broken[0, 1, 1, 1] = value
        for kind in (DisplacementMap, BSplineMap):
            with pytest.raises(TransformError, match="finite"):
                kind(broken, GRID)
    with pytest.raises(TransformError, match="do not fit"):
        BSplineMap(torch.zeros(3, 3, 5, 5), Grid.from_parts((3, 5, 5)))
    with pytest.raises(TransformError, match="invertible"):
        AffineMap(np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(TransformError, match="affine"):
        AffineMap(np.eye(3))
    with pytest.raises(TransformError, match="cubic"):
        Transform.identity().warp(Volume(np.zeros(GRID.shape), GRID), GRID, interpolation="cubic")


def test_the_overlap_is_the_share_of_the_target_that_reads_the_source():
    shift = np.eye(4)
    shift[:3, 3] = GRID.direction @ (4 * 1.5, 0.0, 0.0)
    assert Transform.identity().overlap(GRID, GRID) == 1
    assert Transform.affine(shift).overlap(GRID, GRID) == pytest.approx(8 / 12)  # 4 of 12 columns are beyond
    fine = GRID.with_spacing(GRID.spacing / 50)  # a hundred times as many voxels as are looked at
    assert Transform.affine(shift).overlap(fine, GRID) == pytest.approx(8 / 12, abs=0.005)
    shift[:3, 3] *= 100
    assert Transform.affine(shift).overlap(GRID, GRID) == 0


def test_points_are_mapped_as_simpleitk_maps_them_and_back():
    transform = Transform.from_displacement(field(), rigid(3))
    points = world_points(40).reshape(8, 5, 3)
    moved = transform.map_points(points)
    assert moved.shape == points.shape
    assert moved.dtype == np.float64
    itk = itk_transform(transform.forward, GRID)
    expected = [itk.TransformPoint(point) for point in points.reshape(-1, 3).tolist()]
    np.testing.assert_allclose(moved.reshape(-1, 3), expected, atol=1e-3)
    np.testing.assert_allclose(transform.inverse.map_points(moved), points, atol=0.2)
    np.testing.assert_array_equal(transform.map_points(points[0, 0].tolist()), moved[0, 0])


@pytest.mark.parametrize("points", [3.0, [[1, 2]], np.zeros((3, 4)), ["left", "right", "top"], [[1, 2, 3], [4, 5]]])
def test_what_is_no_list_of_points_is_refused(points):
    with pytest.raises(TransformError, match=r"no points; expected \(\.\.\., 3\)"):
        Transform.identity().map_points(points)


def test_warping_takes_a_volume_and_a_grid():
    volume = Volume(np.zeros(GRID.shape), GRID)
    with pytest.raises(VolumeError, match=r"the source is not given as a Volume.*found ndarray"):
        Transform.identity().warp(volume.array, GRID)
    with pytest.raises(TransformError, match=r"not given as a Grid; found Volume; to mend it: .*target\.grid"):
        Transform.identity().warp(volume, volume)

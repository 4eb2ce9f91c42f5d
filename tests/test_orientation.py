"""Canonical orientation, checked against SimpleITK's orientation filter and over all 48 ways to store an image."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from atlasnet.volume import Grid, Volume, canonical, read_volume, write_volume
from atlasnet.volume.orientation import common_slice_axis, slices_along, turned_grid
from atlasnet.volume.writing import WRITABLE_SUFFIXES, to_sitk

STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))


def stored(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same image with its array axes permuted and flipped, and the affine with them."""
    array, affine = volume.array[0].transpose(axes), np.eye(4)
    columns = [2 - axis for axis in axes[::-1]]
    affine[:3, :3] = volume.grid.affine[:3, :3][:, columns]
    corner = np.zeros(3)
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 2 - axis] *= -1
            corner[2 - axes[axis]] = volume.grid.shape[axes[axis]] - 1
    affine[:3, 3] = volume.grid.to_world(corner)
    return Volume(np.ascontiguousarray(array), Grid(array.shape, affine))


def example(
    direction: NDArray[np.float64] | None = None, origin: tuple[float, ...] = (-152.461, -148.986, -1432)
) -> Volume:
    array = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    return Volume(array, Grid.from_parts((4, 5, 6), (2.732, 2.732, 5.0), origin, direction))


@pytest.mark.parametrize("suffix", WRITABLE_SUFFIXES)
@pytest.mark.parametrize("direction", [np.eye(3), Rotation.from_rotvec([0.3, -0.2, 0.25]).as_matrix()])
def test_all_48_stored_orientations_give_one_canonical_volume(
    tmp_path: Path, direction: NDArray[np.float64], suffix: str
) -> None:
    volume = example(direction)
    results = []
    for axes, flips in STORAGES:
        write_volume(tmp_path / f"v{suffix}", stored(volume, axes, flips))
        results.append(canonical(read_volume(tmp_path / f"v{suffix}"))[0])
    for result in results:
        np.testing.assert_array_equal(result.array, results[0].array)
        np.testing.assert_array_equal(result.grid.affine, results[0].grid.affine)
    assert results[0].grid.matches(volume.grid, 2e-3)
    np.testing.assert_array_equal(results[0].array, volume.array)


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_restoring_gives_the_stored_array_back(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = stored(example(), axes, flips)
    turned, orientation = canonical(volume)
    np.testing.assert_array_equal(orientation.restore(turned.array), volume.array)
    np.testing.assert_array_equal(orientation.apply(volume.array), turned.array)
    assert orientation.restore(turned.array).flags.c_contiguous


@pytest.mark.parametrize(("axes", "flips"), STORAGES[::5])
def test_agrees_with_simpleitk_reoriented_to_lps(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = stored(example(Rotation.from_rotvec([0.1, 0.2, -0.3]).as_matrix()), axes, flips)
    ours = canonical(volume, snap=False)[0]
    theirs = sitk.DICOMOrient(to_sitk(volume), "LPS")
    np.testing.assert_array_equal(ours.array[0], sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.grid.origin, theirs.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(ours.grid.direction.ravel(), theirs.GetDirection(), atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rotation=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.02, 8)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3),
)
def test_every_voxel_keeps_its_place(rotation: tuple, spacing: tuple, origin: tuple) -> None:
    grid = Grid.from_parts((4, 5, 6), spacing, origin, Rotation.from_rotvec(rotation).as_matrix())
    places = np.moveaxis(np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"))[::-1], 0, -1)
    world = np.moveaxis(grid.to_world(places), -1, 0)
    exact, orientation = canonical(grid, snap=False)
    np.testing.assert_allclose(
        np.moveaxis(exact.to_world(np.moveaxis(np.indices(exact.shape)[::-1], 0, -1)), -1, 0),
        orientation.apply(world),
        atol=1e-9,
    )
    near, _ = canonical(grid)
    assert near.matches(exact, 5e-3)
    np.testing.assert_allclose(near.direction.T @ near.direction, np.eye(3), atol=1e-12)


def test_voxels_of_less_than_a_micrometre_keep_their_places_too() -> None:
    grid = Grid.from_parts((300, 400, 500), (0.00065432, 0.00065432, 0.0007777), (0.123456789, -0.2, 0.3))
    assert canonical(grid)[0].matches(grid, 5e-3)


@pytest.mark.parametrize("denominator", [1, 2, 4, 8, 16, 32, 64, 128])
def test_origins_at_binary_fractions_are_not_torn_apart_by_noise(denominator: int) -> None:
    origin = np.arange(1, 129, 2)[:, None] / denominator * np.ones(3)
    for place in origin:
        grids = [Grid.from_parts((2, 3, 4), (1, 1, 1), place + noise) for noise in (-2e-6, 0, 2e-6)]
        snapped = {canonical(grid)[0].affine.tobytes() for grid in grids}
        assert len(snapped) == 1


def test_header_noise_in_the_direction_is_removed() -> None:
    noise = np.array([[1, 3e-5, 0], [-3e-5, 1, 2e-5], [0, -2e-5, 1]])
    np.testing.assert_array_equal(canonical(example(noise))[0].grid.direction, np.eye(3))


def test_the_middle_stays_in_place_while_a_direction_is_turned_to_the_axes() -> None:
    tilted = Rotation.from_rotvec([4e-5, -5e-5, 6e-5]).as_matrix()
    long = Grid.from_parts((600, 512, 512), (0.7, 0.7, 1.0), (-180.0, -190.0, -700.0), tilted)
    near = canonical(long)[0]
    np.testing.assert_array_equal(near.direction, np.eye(3))
    np.testing.assert_allclose(near.centre, long.centre, atol=1e-3)


@pytest.mark.parametrize("axis", range(3))
def test_axes_half_way_between_the_patients_are_told_apart_however_they_are_stored(axis: int) -> None:
    halfway = example(Rotation.from_rotvec(np.radians(45) * np.eye(3)[axis]).as_matrix())
    turned = [canonical(stored(halfway, axes, flips))[0] for axes, flips in STORAGES]
    assert len({(image.array.tobytes(), image.grid.affine.tobytes()) for image in turned}) == 1


@pytest.mark.parametrize("angle", [0.3, 5e-4])
def test_an_oblique_direction_is_kept(angle: float) -> None:
    direction = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    np.testing.assert_allclose(canonical(example(direction))[0].grid.direction, direction, atol=2e-5)


def test_labels_keep_their_leading_axes() -> None:
    volume = stored(example(), (2, 0, 1), (True, False, True))
    _, orientation = canonical(volume)
    two = np.stack([volume.array[0], volume.array[0] + 1])
    np.testing.assert_array_equal(orientation.restore(orientation.apply(two)), two)


def test_a_single_voxel_along_a_flipped_axis_has_no_negative_stride() -> None:
    direction = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    coronal = Volume(
        np.arange(480, dtype=np.float32).reshape(1, 20, 1, 24), Grid.from_parts((20, 1, 24), direction=direction)
    )
    turned, orientation = canonical(coronal)
    assert min(turned.array.strides) > 0
    assert min(orientation.restore(turned.array).strides) > 0


def short_axis(seed: int, side: int) -> Grid:
    """Thick slices whose normal lies between all axes of the patient, a few degrees off from one seed to the next."""
    random = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", np.array([-40 * side, 35, 25 * side]) + random.uniform(-9, 9, 3), degrees=True)
    return canonical(Grid.from_parts((9, 120, 128), (1.4, 1.4, 8.0), random.uniform(-50, 50, 3), turn.as_matrix()))[0]


@pytest.mark.parametrize("side", [1, -1])
def test_slices_between_the_axes_of_the_patient_lie_along_one_in_all_subjects(side: int) -> None:
    grids = [short_axis(seed, side) for seed in range(12)]
    assert len({int(grid.spacing.argmax()) for grid in grids}) > 1  # the nearest axis is another in some
    axis = common_slice_axis(grids)
    assert axis is not None
    turned = [turned_grid(grid, slices_along(grid, axis)) for grid in grids]
    assert {int(grid.spacing.argmax()) for grid in turned} == {axis}
    for grid, before in zip(turned, grids, strict=True):
        assert np.linalg.det(grid.direction) > 0  # nothing is mirrored
        assert grid.direction[:, axis] @ turned[0].direction[:, axis] > 0.8  # as far apart as they were acquired
        corners = [{tuple(corner) for corner in (np.round(g.corners(), 3) + 0.0).tolist()} for g in (grid, before)]
        assert corners[0] == corners[1]


def test_a_sagittal_scan_among_axial_ones_stays_sagittal() -> None:
    tilted = Rotation.from_rotvec([0.2, 0, 0.1]).as_matrix()
    axial, sagittal = (
        Grid.from_parts((20, 20, 20), spacing, direction=tilted) for spacing in ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0))
    )
    assert common_slice_axis([axial, axial, sagittal]) == 2
    assert turned_grid(sagittal, slices_along(sagittal, 2)).spacing.tolist() == sagittal.spacing.tolist()


def test_voxels_that_are_not_thick_have_no_slices() -> None:
    for spacing in ((1.0, 1.0, 1.1), (0.5, 3.0, 3.0)):
        assert common_slice_axis([Grid.from_parts((20, 20, 20), spacing)]) is None


def test_the_axis_of_the_slices_is_one_that_most_are_near_to() -> None:
    oblique, _ = Rotation.align_vectors([[0.38, 0.68, 0.63]], [[0, 0, 1]])
    grids = [Grid.from_parts((9, 50, 50), (1, 1, 8), direction=oblique.as_matrix())] * 3
    assert common_slice_axis(grids) == 1
    sagittal = Grid.from_parts((50, 50, 9), (8, 1, 1))
    assert common_slice_axis([*grids, sagittal, sagittal]) == 1  # though the cosines of x have the largest sum

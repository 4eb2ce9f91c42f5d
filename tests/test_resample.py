from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import VolumeError
from atlasnet.volume import Grid, Volume
from atlasnet.volume.resample import antialias_sigma, resample


def as_itk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array[0])
    image.SetOrigin(volume.grid.origin.tolist())
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetDirection(volume.grid.direction.ravel().tolist())
    return image


def turned_grid(shape, spacing, centre, degrees) -> Grid:
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    origin = np.array(centre) - direction @ ((np.array(shape[::-1]) - 1) / 2 * spacing)
    return Grid.from_parts(shape, spacing, origin, direction)


SOURCE = turned_grid((14, 17, 20), (1.1, 1.4, 2.5), (3.0, -40.0, 100.0), (10, -20, 30))
TARGET = turned_grid((15, 12, 18), (1.3, 2.0, 1.9), (2.0, -41.0, 102.0), (-15, 8, 70))


@pytest.mark.parametrize(
    ("affine", "fault"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "spacing is not positive"),
        (np.full((4, 4), np.nan), "affine of a grid cannot be used"),
        (np.eye(3), "affine of a grid cannot be used"),
        (np.eye(4) + np.eye(4)[3][:, None] * [1e-3, 0, 0, 0], "affine of a grid cannot be used"),
        (np.eye(4) + np.outer([1, 0, 0, 0], [0, 0.01, 0, 0]), "axes of the grid are sheared"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "axes of the grid are sheared"),
    ],
)
def test_a_geometry_in_memory_that_no_image_has_is_refused(affine, fault):
    with pytest.raises(VolumeError, match=fault) as caught:
        Grid((3, 4, 5), affine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, np.nan, 1.0)])
def test_a_spacing_that_is_not_positive_is_refused(spacing):
    with pytest.raises(VolumeError, match="spacing is not positive"):
        Grid.from_parts((3, 4, 5), spacing)


def test_a_grid_has_three_axes():
    with pytest.raises(VolumeError, match="three axes"):
        Grid((3, 4), np.eye(4))


def test_axes_off_by_rounding_and_mirrored_ones_are_taken():
    turned = SOURCE.affine.astype(np.float32)
    assert Grid(SOURCE.shape, turned).matches(SOURCE)
    assert Grid(SOURCE.shape, SOURCE.affine @ np.diag([-1, 1, 1, 1])).spacing == pytest.approx(SOURCE.spacing)


def test_a_grid_keeps_its_place_when_the_array_it_was_made_of_changes() -> None:
    affine = SOURCE.affine.copy()
    grid = Grid(SOURCE.shape, affine)
    affine[:3, 3] += 100
    np.testing.assert_array_equal(grid.affine, SOURCE.affine)


def test_a_cropped_grid_keeps_its_voxels_where_they_are() -> None:
    part = SOURCE.cropped((slice(1, 4), slice(0, 2), slice(3, 7)))
    assert part.shape == (3, 2, 4)
    for corner, index in (((0, 0, 0), (3, 0, 1)), ((3, 1, 2), (6, 1, 3))):
        np.testing.assert_allclose(part.to_world(corner), SOURCE.to_world(index), atol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.9, 2.9, 2.9), (7.3, 0.4, 40.0)])
def test_another_spacing_keeps_the_field_of_view_to_half_a_voxel_and_its_middle(spacing) -> None:
    other = SOURCE.with_spacing(spacing)
    np.testing.assert_allclose(other.centre, SOURCE.centre, atol=1e-9)
    np.testing.assert_allclose(other.direction, SOURCE.direction, atol=1e-12)
    change = other.size * other.spacing - SOURCE.size * SOURCE.spacing
    assert (np.abs(change) <= np.array(spacing) / 2 + 1e-9)[other.size > 1].all()


@pytest.mark.parametrize(("spacing", "shift", "same"), [(0.05, 0.04, False), (0.05, 0.002, True), (9.0, 0.4, True)])
def test_grids_are_compared_in_voxels_not_in_millimetres(spacing, shift, same) -> None:
    one, other = (Grid.from_parts((4, 5, 6), (1, 1, spacing), (0, 0, place)) for place in (0, shift))
    assert one.matches(other) is same
    assert other.matches(one) is same


@pytest.mark.parametrize(
    "other",
    [Grid.from_parts((4, 5, 6), (1, 1, 1.02)), Grid((4, 5, 6), np.diag([-1.0, 1, 1, 1])), Grid.from_parts((4, 5, 7))],
)
def test_grids_that_begin_at_one_place_and_end_at_another_differ(other) -> None:
    assert not Grid.from_parts((4, 5, 6)).matches(other)


@pytest.mark.parametrize(
    ("interpolation", "kind"), [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)]
)
def test_resampling_between_oblique_grids_agrees_with_simpleitk(interpolation, kind):
    array = np.random.default_rng(0).standard_normal(SOURCE.shape).astype(np.float32)
    volume = Volume(array, SOURCE)
    like = as_itk(Volume(np.zeros(TARGET.shape, np.float32), TARGET))
    expected = sitk.GetArrayFromImage(sitk.Resample(as_itk(volume), like, sitk.Transform(), kind, -5.0))
    got = resample(volume, TARGET, interpolation=interpolation, fill=-5.0, antialias=False)
    assert 0.05 < (expected == -5).mean() < 0.9
    np.testing.assert_allclose(got.array[0], expected, atol=1e-4)
    assert got.grid.matches(TARGET)


def test_resampling_onto_its_own_grid_changes_nothing():
    array = np.random.default_rng(1).integers(-1000, 1000, SOURCE.shape).astype(np.int16)
    same = resample(Volume(array, SOURCE), SOURCE)
    assert same.array.dtype == np.float32
    np.testing.assert_allclose(same.array[0], array, atol=0.1)
    for mode in ("nearest", "label"):
        exact = resample(Volume(array, SOURCE), SOURCE, interpolation=mode)
        assert exact.array.dtype == np.int16
        np.testing.assert_array_equal(exact.array[0], array)


def test_the_width_of_the_filter_is_that_of_cardoso():
    np.testing.assert_allclose(
        antialias_sigma(np.array([0.5, 1.0, 2.0, 4.0])), [0, 0, 3**0.5 / 2.35482, 15**0.5 / 2.35482], rtol=1e-6
    )


def test_a_wave_is_damped_as_the_gaussian_demands_before_taking_every_fourth_voxel():
    grid = Grid.from_parts((1, 1, 400), (1, 1, 1))
    wavelength = 10.0
    wave = np.cos(2 * np.pi * np.arange(400) / wavelength)
    coarse = grid.with_spacing((4, 1, 1))
    got = resample(Volume(wave.reshape(1, 1, 400), grid), coarse).array[0, 0, 0]
    place = grid.to_index(coarse.to_world(np.stack([np.arange(100), np.zeros(100), np.zeros(100)], -1)))[:, 0]
    damping = np.exp(-2 * np.pi**2 * 1.644705**2 / wavelength**2)
    # Samples fall midway between voxels: linear interpolation there damps by cos(pi / wavelength) as well.
    expected = damping * np.cos(np.pi / wavelength) * np.cos(2 * np.pi * place / wavelength)
    np.testing.assert_allclose(got[5:-5], expected[5:-5], atol=1e-3)


@pytest.mark.parametrize("factor", [1.25, 3.0])
def test_smoothing_continues_the_edge_as_scipy_does_and_begins_with_voxels_a_quarter_larger(factor):
    array = np.random.default_rng(4).standard_normal((1, 1, 60))
    grid = Grid.from_parts(array.shape)
    coarse = grid.with_spacing((factor, 1, 1))
    smooth = ndimage.gaussian_filter1d(np.pad(array[0, 0], 30, mode="edge"), antialias_sigma(factor), truncate=4)[
        30:-30
    ]
    places = grid.to_index(coarse.to_world([(i, 0, 0) for i in range(coarse.shape[2])]))[:, 0]
    expected = ndimage.map_coordinates(smooth, places[None], order=1, mode="nearest")
    np.testing.assert_allclose(resample(Volume(array, grid), coarse).array[0, 0, 0], expected, atol=1e-9)


def test_numbers_that_single_precision_lacks_are_interpolated_in_double():
    # Places between voxels of a long axis, and whole numbers of more than 24 bits.
    ramp = np.arange(1000.0).reshape(1, 1, -1)
    grid = Grid.from_parts(ramp.shape, (0.7, 1, 1), (-300, 0, 0))
    between = Grid.from_parts((1, 1, 998), (0.7, 1, 1), (-299.77, 0, 0))
    np.testing.assert_allclose(
        resample(Volume(ramp, grid), between).array.ravel(), np.arange(998) + 0.23 / 0.7, rtol=1e-12
    )
    large = (2**24 + 1 + np.arange(60)).reshape(3, 4, 5).astype(np.int32)
    same = resample(Volume(large, SOURCE.padded((0, 0, 0), (-15, -13, -11))), SOURCE.padded((0, 0, 0), (-15, -13, -11)))
    assert same.array.dtype == np.float64
    np.testing.assert_allclose(same.array[0], large, atol=1e-6)


def test_antialiasing_follows_the_axes_where_source_axes_are_permuted():
    array = np.random.default_rng(2).standard_normal((16, 16, 16)).astype(np.float32)
    straight = Grid.from_parts((16, 16, 16), (1, 1, 1))
    turned = Grid.from_parts((16, 16, 16), (1, 1, 1), direction=[[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    coarse = straight.with_spacing((1, 1, 4))
    # The turned grid's axes (x, y, z) point along world z, x, y: its array (z, y, x) holds world (y, x, z).
    one = resample(Volume(array, straight), coarse).array
    two = resample(Volume(array.transpose(1, 2, 0), turned), coarse).array
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_labels_shrink_to_the_majority_and_none_is_invented():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:, :, 4:] = 7
    labels[::2, ::2, ::2] = 3
    grid = Grid.from_parts((8, 8, 8))
    small = resample(Volume(labels, grid), grid.with_spacing((4, 4, 4)), interpolation="label")
    assert small.array.dtype == np.uint8
    np.testing.assert_array_equal(small.array[0, :, :, 0], 0)
    np.testing.assert_array_equal(small.array[0, :, :, 1], 7)


def test_labels_that_shrink_end_with_the_field_of_view_and_a_tie_goes_to_the_lower():
    grid = Grid.from_parts((8, 8, 8))
    coarse = grid.with_spacing((4, 4, 4)).padded((1, 1, 1), (1, 1, 1))
    labels = np.full((8, 8, 8), 9, np.int16)
    small = resample(Volume(labels, grid), coarse, interpolation="label").array[0]
    np.testing.assert_array_equal(small, np.pad(np.full((2, 2, 2), 9), 1))
    labels[:, :, 4:] = 3
    half = resample(Volume(labels, grid), Grid.from_parts((1, 1, 1), (8, 8, 8), (3.5, 3.5, 3.5)), interpolation="label")
    assert half.array.tolist() == [[[[3]]]]


def test_labels_outside_the_field_of_view_are_background_and_images_continue_their_edge():
    grid = Grid.from_parts((4, 4, 4))
    larger = grid.padded((2, 2, 2), (2, 2, 2))
    labels = resample(Volume(np.full((4, 4, 4), 5, np.int32), grid), larger, interpolation="label")
    assert labels.array.sum() == 5 * 64
    image = resample(Volume(np.full((4, 4, 4), 5, np.int32), grid), larger)
    assert (image.array == 5).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, ">i2", bool])
def test_labels_of_every_whole_type_survive(dtype):
    labels = np.random.default_rng(3).integers(0, 2, (3, 4, 5)).astype(dtype)
    if labels.dtype.kind in "iu":
        labels *= np.iinfo(dtype).max
    grid = Grid.from_parts((3, 4, 5))
    for mode in ("label", "nearest"):
        back = resample(Volume(labels, grid), grid, interpolation=mode).array[0]
        np.testing.assert_array_equal(back, labels)
    pair = Volume(np.array([[[labels.max(), 0]]], dtype), Grid.from_parts((1, 1, 2)))
    between = resample(pair, Grid.from_parts((1, 1, 1), origin=(0.5, 0, 0)), interpolation="label")
    assert between.array.item() == 0  # of two as near the lower


def test_every_channel_is_resampled():
    array = np.stack([np.full((4, 4, 4), value, np.float32) for value in (1, 2, 3)])
    grid = Grid.from_parts((4, 4, 4))
    assert resample(Volume(array, grid), grid.with_spacing((2, 2, 2))).array.mean((1, 2, 3)).tolist() == [1, 2, 3]


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(VolumeError, match="spline"):
        resample(Volume(np.zeros((2, 2, 2)), Grid.from_parts((2, 2, 2))), SOURCE, interpolation="spline")

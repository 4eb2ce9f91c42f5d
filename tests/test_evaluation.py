"""Scores of one subject against MONAI and against bodies whose overlap and distances are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import (
    DiceHelper,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.evaluation import ContourDistances, LabelScores, contour, evaluate_subject
from atlasnet.evaluation.scores import slice_axis
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

SPACING = (0.8, 1.1, 2.5)  # x, y, z


def volume(array: NDArray[np.generic], spacing: tuple[float, float, float] = SPACING) -> Volume:
    shape = np.shape(array)
    return Volume(np.asarray(array), Grid.from_parts(shape, spacing, (5.0, -3.0, 11.0)))


def score(prediction: NDArray[np.generic], reference: NDArray[np.generic], **options: object) -> LabelScores:
    spacing = options.pop("spacing", SPACING)
    (row,) = evaluate_subject(volume(prediction, spacing), volume(reference, spacing), {"a": 1}, **options).rows
    return row


def blob(seed: int, shape: tuple[int, int, int] = (14, 18, 20)) -> NDArray[np.uint8]:
    """A random shape with holes and loose parts, touching the border of the array."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (noise > 0.03).astype(np.uint8)


def ball(
    shape: tuple[int, int, int], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]
) -> NDArray[np.uint8]:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return (np.linalg.norm((index - centre) * spacing[::-1], axis=-1) <= radius).astype(np.uint8)


def one_hot(array: NDArray[np.uint8]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(array == 0), torch.from_numpy(array == 1)])[None].float()


@pytest.mark.parametrize("seed", range(5))
def test_every_score_equals_monai_on_random_shapes(seed: int) -> None:
    prediction, reference = blob(seed), blob(seed + 100)
    row = score(prediction, reference, tolerance_mm=1.2)
    pair, spacing = (one_hot(prediction), one_hot(reference)), SPACING[::-1]
    assert row.hausdorff_mm == pytest.approx(compute_hausdorff_distance(*pair, spacing=spacing).item(), rel=1e-6)
    assert row.hd95_mm == pytest.approx(
        compute_hausdorff_distance(*pair, spacing=spacing, percentile=95).item(), rel=1e-5
    )
    assert row.average_contour_distance_mm == pytest.approx(
        compute_average_surface_distance(*pair, spacing=spacing, symmetric=True).item(), rel=1e-5
    )
    assert row.surface_dice == pytest.approx(compute_surface_dice(*pair, [1.2], spacing=spacing).item(), rel=1e-6)
    dice, _ = DiceHelper(include_background=False, softmax=False)(*pair)
    assert row.dice == pytest.approx(dice.item(), rel=1e-6)


def test_sensitivity_and_precision_count_voxels() -> None:
    prediction, reference = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    reference[0, 0, :4] = 1
    prediction[0, 0, 1:4] = 1
    prediction[3, 3, :3] = 1
    row = score(prediction, reference)
    assert (row.sensitivity, row.precision, row.dice) == (3 / 4, 3 / 6, 2 * 3 / 10)


def test_concentric_balls_have_distances_of_the_difference_of_their_radii() -> None:
    spacing, shape = (0.5, 0.5, 0.5), (60, 60, 60)
    large, small = ball(shape, (29.5,) * 3, 13.0, spacing), ball(shape, (29.5,) * 3, 9.0, spacing)
    row = score(small, large, spacing=spacing)
    half_diagonal = 0.5 * np.sqrt(3) / 2
    assert row.hausdorff_mm == pytest.approx(4.0, abs=2 * half_diagonal)
    assert row.average_contour_distance_mm == pytest.approx(4.0, abs=half_diagonal)
    assert row.dice == pytest.approx(2 * 9.0**3 / (9.0**3 + 13.0**3), rel=0.01)
    assert row.volume_ml == pytest.approx(4 / 3 * np.pi * 9.0**3 / 1000, rel=0.01)
    assert row.reference_volume_ml == pytest.approx(4 / 3 * np.pi * 13.0**3 / 1000, rel=0.01)


@pytest.mark.parametrize(("axis", "step"), [(0, 2.5), (1, 1.1), (2, 0.8)])
def test_a_box_moved_along_an_axis_is_that_many_millimetres_away(axis: int, step: float) -> None:
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[5:12, 5:12, 5:12] = 1
    row = score(np.roll(reference, 3, axis), reference)
    assert row.hausdorff_mm == pytest.approx(3 * step)
    assert row.dice == pytest.approx(4 / 7)


def test_the_contour_is_made_of_voxels_with_a_face_neighbour_outside() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert contour(mask).sum() == 5**3 - 3**3


def test_the_border_of_the_array_is_a_contour() -> None:
    assert contour(np.ones((5, 5, 5), bool)).sum() == 5**3 - 3**3


def test_a_single_slice_has_the_contour_of_its_plane() -> None:
    assert contour(np.ones((1, 5, 5), bool)).sum() == 5**2 - 3**2


@pytest.mark.parametrize(("tolerance", "expected"), [(2.99, 0.0), (3.0, 1.0)])
def test_surface_dice_counts_a_deviation_of_exactly_the_tolerance(tolerance: float, expected: float) -> None:
    reference = np.zeros((1, 40, 40), np.uint8)
    prediction = reference.copy()
    reference[0, :, 10], prediction[0, :, 20] = 1, 1
    spacing = (0.3, 0.3, 1.0)
    assert score(prediction, reference, spacing=spacing, tolerance_mm=tolerance).surface_dice == expected


def test_a_label_absent_from_both_maps_is_full_agreement() -> None:
    row = score(np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8))
    assert (row.dice, row.sensitivity, row.precision, row.surface_dice) == (1, 1, 1, 1)
    assert (row.hausdorff_mm, row.hd95_mm, row.average_contour_distance_mm) == (0, 0, 0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_label_absent_from_one_map_has_no_overlap_and_no_distance(swapped: bool) -> None:
    pair = [np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), np.uint8)]
    row = score(*(pair[::-1] if swapped else pair))
    assert (row.dice, row.sensitivity, row.precision, row.surface_dice) == (0, 0, 0, 0)
    assert (row.hausdorff_mm, row.hd95_mm, row.average_contour_distance_mm) == (None, None, None)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_predicted_under_the_ignore_label_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, first, second = blob(seed), blob(seed + 10), blob(seed + 10)
    reference[:, 9:] = 7
    second[:, 9:] = rng.integers(0, 2, second[:, 9:].shape)
    assert score(first, reference, ignore_label=7) == score(second, reference, ignore_label=7)


def test_ignoring_slices_gives_overlaps_and_volumes_of_the_others() -> None:
    prediction, reference = blob(3), blob(4)
    cut = reference.copy()
    cut[6:] = 255
    ignoring, rest = score(prediction, cut, ignore_label=255), score(prediction[:6], reference[:6])
    assert (ignoring.dice, ignoring.sensitivity, ignoring.precision) == (rest.dice, rest.sensitivity, rest.precision)
    assert (ignoring.volume_ml, ignoring.reference_volume_ml) == (rest.volume_ml, rest.reference_volume_ml)


def test_the_edge_of_the_ignored_region_is_no_contour() -> None:
    reference = np.zeros((3, 20, 20), np.uint8)
    reference[:, 5:15, 5:15] = 1
    prediction = reference.copy()
    reference[:, :, 10:] = 9
    hidden = reference == 9
    distances = ContourDistances.between((prediction == 1) & ~hidden, reference == 1, (1.0, 1.0, 1.0), hidden)
    assert distances.from_reference.size == contour(prediction == 1)[:, :, :10].sum()


def test_a_structure_that_ends_where_nobody_annotated_has_no_contour_there_however_tight_its_box() -> None:
    prediction, reference = np.zeros((2, 6, 10, 14), np.uint8)
    reference[2:5, 3:7, 3:8] = prediction[2:5, 3:7, 4:8] = 1
    reference[..., 8:] = 255
    row = score(prediction, reference, ignore_label=255, spacing=(1.0, 1.0, 1.0))
    masks = [array == value for array, value in ((prediction, 1), (reference, 1), (reference, 255))]
    assert not contour(masks[0], masks[2])[3, 4:6, 7].any()
    whole = ContourDistances.between(*masks[:2], (1.0, 1.0, 1.0), masks[2])
    assert (row.average_contour_distance_mm, row.surface_dice) == (whole.average(), whole.surface_dice(1.0))


def test_scribbles_without_an_annotated_neighbour_have_no_contour_and_no_agreement_on_one() -> None:
    reference = np.full((7, 10, 10), 255, np.uint8)
    reference[3, 3, 1:9], reference[3, 7, 1:9] = 1, 0
    wrong = Volume(np.ones_like(reference), Grid.from_parts(reference.shape))
    for found, distance, surface in ((wrong, None, None), (wrong.replace(np.where(reference == 1, 1, 0)), 0, 1)):
        (row,) = evaluate_subject(found, wrong.replace(reference), {"a": 1}, case="c", ignore_label=255).rows
        assert (row.hausdorff_mm, row.average_contour_distance_mm, row.surface_dice) == (distance, distance, surface)


def test_different_grids_are_refused() -> None:
    array = blob(0)
    with pytest.raises(VolumeError, match="different grids"):
        evaluate_subject(volume(array), volume(array, (0.8, 1.1, 2.6)), {"a": 1})


def test_a_grid_off_by_header_noise_is_accepted() -> None:
    array = blob(0)
    shifted = Volume(array, Grid.from_parts(array.shape, SPACING, (5.0005, -3.0, 11.0)))
    assert evaluate_subject(shifted, volume(array), {"a": 1}).rows[0].dice == 1


def test_the_background_is_not_scored() -> None:
    rows = evaluate_subject(volume(blob(0)), volume(blob(1)), {"background": 0, "a": 1}).rows
    assert [row.label for row in rows] == ["a"]


def test_slices_are_scored_as_monai_scores_them_in_two_dimensions() -> None:
    prediction, reference = blob(5), blob(6)
    scores = evaluate_subject(volume(prediction), volume(reference), {"a": 1}, per_slice=True)
    assert [row.slice for row in scores.slices] == list(range(14))
    for row in scores.slices:
        pair = one_hot(prediction[row.slice]), one_hot(reference[row.slice])
        mm, pixels = {"spacing": (1.1, 0.8)}, {}
        assert row.hausdorff_mm == pytest.approx(compute_hausdorff_distance(*pair, **mm).item(), rel=1e-6)
        assert row.hausdorff_px == pytest.approx(compute_hausdorff_distance(*pair, **pixels).item(), rel=1e-6)
        assert row.hd95_px == pytest.approx(compute_hausdorff_distance(*pair, percentile=95).item(), rel=1e-5)
        for value, options in ((row.average_contour_distance_mm, mm), (row.average_contour_distance_px, pixels)):
            expected = compute_average_surface_distance(*pair, symmetric=True, **options).item()
            assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignore_label", [None, 255])  # of which the reference makes no use
def test_slices_without_annotation_are_not_scored(ignore_label: int | None) -> None:
    prediction, reference = blob(5), blob(6)
    reference[[0, 3, 7]] = 0
    scores = evaluate_subject(
        volume(prediction), volume(reference), {"a": 1}, per_slice=True, ignore_label=ignore_label
    )
    assert [row.slice for row in scores.slices] == [1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13]


def test_a_label_is_scored_in_the_slices_that_it_lies_in() -> None:
    prediction, reference = np.zeros((2, 14, 18, 20), np.uint8)
    for value, slices in ((1, range(2, 4)), (2, range(8, 12))):
        reference[slices, 3:9, 4:11] = prediction[slices, 5:11, 4:11] = value
    scores = evaluate_subject(volume(prediction), volume(reference), {"a": 1, "b": 2}, per_slice=True)
    assert [(row.label, row.slice) for row in scores.slices] == [("a", 2), ("a", 3), *[("b", z) for z in range(8, 12)]]
    assert {row.dice for row in scores.slices} == {2 * 4 / 12}
    assert [row.hausdorff_mm for row in scores.slices] == [pytest.approx(2 * 1.1)] * 6


def test_with_an_ignore_label_an_empty_slice_counts_as_annotated_and_an_ignored_one_does_not() -> None:
    prediction, reference = blob(5), blob(6)
    reference[3], reference[7] = 0, 255
    scores = evaluate_subject(volume(prediction), volume(reference), {"a": 1}, per_slice=True, ignore_label=255)
    assert {3, 7} & {row.slice for row in scores.slices} == {3}
    assert next(row for row in scores.slices if row.slice == 3).precision == 0


@pytest.mark.parametrize(
    ("spacing", "direction", "axis"),
    [
        ((1, 1, 3), np.eye(3), 0),
        ((1, 3, 1), np.eye(3), 1),
        ((1, 1, 1), np.eye(3), 0),
        ((1.005, 1, 1), np.eye(3), 0),
        ((1.02, 1, 1), np.eye(3), 2),
        ((1, 1, 1), np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), 1),
        ((1, 1, 1), np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), 2),
    ],
)
def test_slices_lie_across_the_thickest_axis_then_across_the_patients_length(
    spacing: tuple[float, ...], direction: NDArray[np.float64], axis: int
) -> None:
    assert slice_axis(Grid.from_parts((5, 6, 7), spacing, (0, 0, 0), direction)) == axis


@pytest.mark.parametrize("ignore_label", [None, 11])
def test_every_label_is_looked_for_where_it_is_with_the_scores_of_the_whole_scan(
    ignore_label: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(3)
    truth = np.arange(12, dtype=np.int32).reshape(3, 2, 2).repeat(4, 0).repeat(5, 1).repeat(6, 2)
    found = np.where(generator.random(truth.shape) < 0.1, generator.integers(0, 12, truth.shape), truth)
    found[found == 5] = 0
    found[0, 0, 0] = -70000  # many times as far from the others as there are values
    grid, spacing = Grid.from_parts(truth.shape, (1.0, 1.5, 2.0)), (2.0, 1.5, 1.0)
    looked_at: list[int] = []

    def where(array: NDArray[Any], value: Any) -> NDArray[np.bool_]:
        looked_at.append(array.size)
        return np.asarray(array == value)

    monkeypatch.setattr("atlasnet.evaluation.scores.where", where)
    labels = {str(value): value for value in range(1, 11)} | {"absent": 99}
    rows = evaluate_subject(
        Volume(found[None], grid), Volume(truth[None], grid), labels, ignore_label=ignore_label
    ).rows
    ignored = None if ignore_label is None else truth == ignore_label
    for row, value in zip(rows, labels.values(), strict=True):
        ours, theirs = (found == value, truth == value)
        if ignored is not None:
            ours &= ~ignored
        distances = ContourDistances.between(ours, theirs, spacing, ignored)
        assert row.hd95_mm == distances.hausdorff(95)
        assert row.average_contour_distance_mm == distances.average()
        assert row.surface_dice == distances.surface_dice(1.0)
        assert row.volume_ml == pytest.approx(ours.sum() * 0.003)
        assert row.reference_volume_ml == pytest.approx(theirs.sum() * 0.003)
    assert rows[4].presence == "reference"
    assert rows[-1].presence == "neither"
    assert looked_at[-2:] == [0, 0]
    assert all(size <= truth.size for size in looked_at)

    blocks = Volume(truth[None], grid)
    looked_at.clear()
    evaluate_subject(blocks, blocks, labels, ignore_label=ignore_label)
    assert max(looked_at) <= 6 * 6 * 7  # a block of 4 x 5 x 6 and a voxel around it within the scan

"""Fingerprint, plan and normalisation."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from atlasnet.cohort import Cohort, Fingerprint, Normalisation, Plan, check_cohort, take_fingerprint
from atlasnet.cohort.fingerprint import QUANTILES, SubjectPrint, combine, measure
from atlasnet.cohort.plan import FINER, MARGIN, NETWORK_VOXELS, REGION_VOXELS
from atlasnet.cohort.spacing import check_spacing, wanted_spacing
from atlasnet.errors import CohortError, InputError
from atlasnet.study import StudyOptions
from atlasnet.training.options import FitOptions
from atlasnet.volume import Grid, Volume, write_volume
from atlasnet.volume.orientation import turned_grid


def fingerprint(
    shape: Sequence[int], spacing: Sequence[float], channel: str = "MRI", values: tuple[float, float] = (0, 1)
) -> Fingerprint:
    """Of one subject with intensities spread evenly over ``values``; shape (z, y, x), spacing (x, y, z)."""
    z, y, x = shape
    u, v, w = spacing
    quantiles = tuple(np.linspace(*values, QUANTILES).tolist())
    subject = SubjectPrint("s", (z, y, x), (u, v, w), ((0.0,) * 7,), {})
    return Fingerprint((channel,), (subject,), (quantiles,), (quantiles,))


@pytest.mark.parametrize(
    ("spacing", "planned"),
    [((1, 1, 1), (0.7, 0.7, 1)), ((0.5, 0.8, 5), (0.35, 0.56, 5)), ((3, 0.9, 0.9), (3, 0.63, 0.63))],
)
def test_networks_see_a_small_image_finer_within_its_slices(spacing: tuple, planned: tuple) -> None:
    plan = Plan.derive(fingerprint((35, 50, 36), spacing))
    assert plan.spacing == pytest.approx(planned)
    assert Plan.derive(fingerprint((35, 50, 36), spacing), finer=False).spacing == spacing
    assert plan.registration_spacing == spacing


def labelled(known: Fingerprint, *boxes: tuple, possible: tuple | None = None) -> Fingerprint:
    """The same with a subject for each box of labels, and what may be labelled in all of them."""
    subjects = (replace(known.subjects[0], label_box=box, possible_extent=possible) for box in boxes)
    return replace(known, subjects=tuple(subjects))


def test_a_spacing_that_was_asked_for_is_planned_and_the_rest_follows() -> None:
    chest = fingerprint((130, 512, 512), (0.78, 0.78, 3.0))
    usual = Plan.derive(chest)
    own = Plan.derive(chest, spacing="scan")
    assert own.spacing == (0.78, 0.78, 3.0)
    assert own.batch_size < usual.batch_size
    assert (own.context, own.slice_axis) == (1, "z")
    asked = Plan.derive(chest, spacing=(1.5, 1.5, 2.0))
    assert asked.spacing == (1.5, 1.5, 2.0)
    assert asked.context == 2
    for field in ("registration_spacing", "normalisation", "mi_range"):
        assert getattr(asked, field) == getattr(usual, field)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(["scan"], "scan"), (["1.5"], (1.5, 1.5, 1.5)), (["0.7", "0.7", "3"], (0.7, 0.7, 3.0))],
)
def test_a_spacing_is_asked_for_in_words(words: list[str], wanted: object) -> None:
    assert wanted_spacing(words) == wanted


@pytest.mark.parametrize("words", [[], ["1", "2"], ["0"], ["-1", "1", "1"], ["nan"], ["inf"], ["scan", "1"], ["fine"]])
def test_a_spacing_that_is_none_is_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="the spacing is not understood"):
        wanted_spacing(words)


@pytest.mark.parametrize("spacing", [1.5, (1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, float("nan")), "scans", "123"])
@pytest.mark.parametrize("options", [FitOptions, StudyOptions, partial(check_cohort, "data")])
def test_a_spacing_that_is_none_is_refused_of_a_program_too(spacing: Any, options: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"the spacing is not understood; expected \(x, y, z\)"):
        options(spacing=spacing)


def test_lengths_are_compared_with_a_plan_without_measuring_the_scans(tmp_path: Path) -> None:
    def measured() -> NoReturn:
        raise AssertionError("the scans were measured")

    check_spacing((1.0, 1.0, 2.0), (1, 1, 2), measured, tmp_path)
    with pytest.raises(InputError, match="another spacing than was asked for"):
        check_spacing((1.0, 1.0, 2.0), (1.0, 1.0, 3.0), measured, tmp_path)
    check_spacing((1.0, 1.0, 2.0), "scan", lambda: (1.0, 1.0, 2.0), tmp_path)


def test_intensities_are_those_of_all_parts_of_all_subjects_alike() -> None:
    grid = Grid.from_parts((10, 60, 60), (1.0, 1.0, 5.0))
    everywhere = Volume(np.ones((1, 10, 60, 60), np.uint8), grid)
    small = everywhere.replace(np.zeros((1, 10, 60, 60), np.uint8))
    small.array[:, 4:6, 20:22, 30] = 1
    z, y, x = (side.astype(np.float32) for side in np.indices(grid.shape))
    parts = [
        measure("large", Volume(np.stack([z, z, z]), grid), everywhere, {"a": 1}, None),
        measure("small", Volume(np.stack([z, y, x]) + 100, grid), small, {"a": 1}, None),
    ]
    found = combine(("z", "y", "x"), parts)
    under, around = np.array(found.foreground), np.array(found.surroundings)
    assert (under >= 100).mean(1) == pytest.approx(0.5, abs=0.02)
    assert np.median(under[0, under[0] < 100]) == pytest.approx(4.5, abs=0.6)
    # As many millimetres on every side: two slices, ten rows and ten columns.
    sides = [(part[part >= 100].min() - 100, part.max() - 100) for part in around]
    assert sides == [(2, 7), (10, 31), (20, 40)]


def test_structures_at_different_places_are_seen_in_one_box() -> None:
    chest = fingerprint((280, 512, 512), (0.8, 0.8, 1.25))
    apart = labelled(chest, ((-100, -60, -90), (-75, -35, -65)), ((80, 50, 100), (105, 75, 125)))
    assert apart.label_extent is not None
    assert apart.label_extent.tolist() == [205, 135, 215]
    assert Plan.derive(apart).spacing[0] > 2.5
    assert Plan.derive(labelled(chest, ((-100, -60, -90), (-75, -35, -65)))).spacing[0] < 0.8


def test_what_is_not_annotated_in_every_subject_may_be_seen_too() -> None:
    box = ((-9, -16, -9), (9, 16, 9))
    head = fingerprint((180, 256, 256), (1.0, 1.0, 1.0))
    partly = labelled(head, box, box, possible=(256.0, 256.0, 90.0))
    assert partly.label_extent is not None
    assert partly.label_extent.tolist() == [256, 256, 90]
    whole = replace(partly.subjects[1], possible_extent=(18.0, 32.0, 18.0))  # annotated everywhere
    assert Plan.derive(replace(partly, subjects=(partly.subjects[0], whole))).spacing == (0.7, 0.7, 1.0)


def test_a_window_is_that_of_the_labels_its_mean_and_deviation_of_what_surrounds_them() -> None:
    ct = fingerprint((40, 200, 200), (1.0, 1.0, 2.0), "CT", (0.0, 100.0))
    known = replace(ct, surroundings=(tuple(np.linspace(-100.0, 300.0, QUANTILES).tolist()),))
    (window,) = Plan.derive(known).normalisation
    clipped = np.clip(np.linspace(-100, 300, 100_001), 0.5, 99.5)
    assert window.window == (0.5, 99.5)
    assert (window.mean, window.std) == pytest.approx((clipped.mean(), clipped.std()), abs=0.05)


def test_a_batch_has_as_many_slices_as_what_networks_see_allows() -> None:
    head = fingerprint((180, 256, 256), (1.0, 1.0, 1.0))
    part = labelled(head, ((-9, -16, -9), (9, 16, 9)))
    assert (Plan.derive(head, spacing="scan").batch_size, Plan.derive(part, spacing="scan").batch_size) == (16, 32)


def test_what_networks_see_of_a_small_structure_in_a_large_scan_is_as_fine_as_a_small_scan() -> None:
    head, cut = (180, 256, 256), (35, 50, 36)
    both = labelled(fingerprint(head, (1.0, 1.0, 1.0)), ((-9, -9, -2), (7, 20, 14)), ((-7, -11, -4), (9, 21, 12)))
    assert both.label_extent is not None
    assert both.label_extent.tolist() == [18, 32, 18]
    plan = Plan.derive(both)
    assert Plan.derive(both, registered=False) == Plan.derive(fingerprint(head, (1.0, 1.0, 1.0)))
    assert plan.spacing == Plan.derive(fingerprint(cut, (1.0, 1.0, 1.0))).spacing
    assert plan.registration_spacing[0] > 1.9  # all of the head is registered
    assert plan.margin == (MARGIN, MARGIN, MARGIN)


def test_the_margin_is_as_wide_as_a_map_of_a_large_scan_may_be_off() -> None:
    whole = fingerprint((800, 512, 512), (0.7, 0.7, 1.0))
    plan = Plan.derive(labelled(whole, ((-9, -16, -9), (9, 16, 9))))
    room = np.array(plan.margin[::-1]) * plan.spacing
    assert (room >= 4 * np.array(plan.registration_spacing) - 1e-6).all()
    assert (room < 4 * np.array(plan.registration_spacing) + plan.spacing).all()
    assert Plan.derive(whole).margin == (MARGIN, MARGIN, MARGIN)


@pytest.mark.parametrize("seed", range(40))
def test_networks_never_see_more_voxels_than_planned_nor_more_fine_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape, spacing = tuple(random.integers(1, 500, 3).tolist()), random.uniform(0.3, 4, 3)
    extent = np.array(shape[::-1]) * spacing
    known = fingerprint(shape, tuple(spacing.tolist()))
    labels = extent * random.uniform(0.05, 1, 3) if seed % 2 else None
    if labels is not None:
        known = labelled(known, (tuple(-labels / 2), tuple(labels / 2)))
    plan = Plan.derive(known)
    count = extent / plan.spacing
    if labels is not None:
        count = np.minimum(count, labels / plan.spacing + 2 * np.array(plan.margin[::-1]))
    assert np.prod(count) <= 1.05 * REGION_VOXELS or np.prod(extent / plan.spacing) <= 1.02 * NETWORK_VOXELS
    finer = np.array(plan.spacing) < spacing * (1 - 1e-9)
    assert (np.array(plan.spacing) > (FINER - 1e-9) * spacing).all()
    assert not finer["xyz".index(plan.slice_axis)]
    assert np.prod(count) <= 1.05 * REGION_VOXELS or not finer.any()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((131, 256, 256), (1.95, 1.95, 3.0)), ((30, 512, 512), (0.7, 0.7, 5.0)), ((300, 300, 300), (0.9, 0.7, 0.8))],
)
def test_a_large_image_is_made_coarser_along_its_finest_axes_first(shape: tuple, spacing: tuple) -> None:
    extent = np.array(shape[::-1]) * spacing
    planned = np.array(Plan.derive(fingerprint(shape, spacing)).spacing)
    voxels = np.prod(extent / planned)
    assert 0.95 * NETWORK_VOXELS < voxels <= NETWORK_VOXELS
    raised = planned > np.array(spacing)
    assert np.ptp(planned[raised]) == 0
    assert (planned[~raised] == np.array(spacing)[~raised]).all()
    assert raised.all() or planned[~raised].min() >= planned[raised].max()


@pytest.mark.parametrize(
    ("spacing", "axis", "context"),
    [((1, 1, 1), "z", 2), ((1, 1, 5), "z", 1), ((1, 5, 1), "y", 1), ((3, 1, 1), "x", 1), ((1.1, 1, 1), "z", 2)],
)
def test_slices_are_cut_along_the_thickest_axis(spacing: tuple, axis: str, context: int) -> None:
    plan = Plan.derive(fingerprint((20, 20, 20), spacing))
    assert (plan.slice_axis, plan.context) == (axis, context)


def test_a_2d_image_has_slices_along_its_single_voxel_and_no_neighbours() -> None:
    plan = Plan.derive(fingerprint((1, 800, 700), (0.5, 0.5, 1.0)))
    assert (plan.slice_axis, plan.context, plan.spacing) == ("z", 0, (0.5, 0.5, 1.0))


@pytest.mark.parametrize("name", ["CT", "ct", " Ct "])
def test_a_ct_of_lungs_shows_lungs_and_body(name: str) -> None:
    plan = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1), name, (-950, -100)))
    assert plan.normalisation[0].window == (-1000.0, 400.0)
    assert plan.mi_range == ((-900.0, 100.0),)


def test_a_ct_of_soft_tissue_gets_the_percentiles_under_the_labels() -> None:
    plan = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1), "CT", (0, 200)))
    assert plan.normalisation[0].window == (1.0, 199.0)
    assert plan.normalisation[0].mean == pytest.approx(100, abs=0.01)
    assert plan.normalisation[0].std == pytest.approx(200 / np.sqrt(12), rel=0.01)


def test_a_channel_without_a_scale_is_normalised_image_by_image() -> None:
    plan = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1), "T1"))
    assert (plan.normalisation[0].scheme, plan.mi_range) == ("percentiles", (None,))


def test_a_window_clips_shifts_and_scales() -> None:
    normalisation = Normalisation("CT", "window", (-1000, 400), -200.0, 300.0)
    result = normalisation.apply(np.array([-3000, -200, 100, 3000], np.int16))
    np.testing.assert_allclose(result, [-800 / 300, 0, 1, 2], rtol=1e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize("kind", ["int16", "float32", "float64"])
def test_normalising_a_ct_takes_one_copy_beside_the_result(kind: str) -> None:
    plan = replace(
        Plan.derive(fingerprint((9, 9, 9), (1, 1, 1))),
        normalisation=(Normalisation("CT", "window", (-1000, 400), -200.0, 300.0),),
    )
    scan = Volume(np.full((1, 64, 128, 128), 100, kind), Grid.from_parts((64, 128, 128)))
    tracemalloc.start()
    result = plan.normalise(scan)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.1 * result.array.nbytes
    assert (result.array == 1).all()
    assert (scan.array == 100).all()


def test_percentiles_give_mean_0_and_deviation_1_and_resist_outliers() -> None:
    values = np.random.default_rng(0).normal(500, 50, 100_000)
    values[:100] = 1e9
    result = Normalisation("MRI", "percentiles").apply(values)
    assert abs(result.mean()) < 0.02
    assert result.std() == pytest.approx(1, abs=0.05)
    assert result.max() < 4


def test_percentiles_do_not_depend_on_scale_or_offset() -> None:
    values = np.random.default_rng(0).normal(0, 1, (10, 11, 12))
    one, other = (Normalisation("MRI", "percentiles").apply(v) for v in (values, 250 * values + 3000))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_masked_background_does_not_count() -> None:
    brain = np.random.default_rng(0).normal(500, 50, 10_000).astype(np.float32)
    padded = np.concatenate([np.zeros(30_000, np.float32), brain])
    result = Normalisation("MRI", "percentiles").apply(padded)[30_000:]
    np.testing.assert_allclose(result, Normalisation("MRI", "percentiles").apply(brain), atol=1e-3)


def test_a_constant_image_becomes_zeros() -> None:
    assert not Normalisation("MRI", "percentiles").apply(np.full((3, 3), 7)).any()


def test_normalise_refuses_an_image_with_other_channels() -> None:
    plan = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1)))
    with pytest.raises(CohortError, match="channels"):
        plan.normalise(Volume(np.zeros((2, 3, 3, 3)), Grid.from_parts((3, 3, 3))))


def test_plan_json_comes_back_equal(tmp_path: Path) -> None:
    for channel in ("CT", "T1"):
        plan = Plan.derive(fingerprint((131, 256, 256), (1.95, 1.95, 3.0), channel, (-900, 200)))
        plan.write(tmp_path / "plan.json")
        assert Plan.read(tmp_path / "plan.json") == plan


def test_an_edited_plan_is_taken_as_it_is(tmp_path: Path) -> None:
    content = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1))).to_json()
    content |= {"spacing": [2, 2, 3], "mi_range": [[0, 500]], "batch_size": 3}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    plan = Plan.read(tmp_path / "plan.json")
    assert (plan.spacing, plan.mi_range, plan.batch_size) == ((2.0, 2.0, 3.0), ((0.0, 500.0),), 3)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spacng": [1, 1, 1]}, "unknown: spacng"),
        ({"spacing": [1, 1]}, "three numbers"),
        ({"spacing": [1, 1, 0]}, "spacing is impossible"),
        ({"spacing": [1, 1, "1"]}, "must be a number"),
        ({"slice_axis": "w"}, "slice_axis"),
        ({"slice_axis": 2}, "slice_axis"),
        ({"normalisation": {}}, "must be a list"),
        ({"normalisation": []}, "normalisation"),
        ({"normalisation": [{"channel": "CT", "scheme": "window"}]}, "not complete"),
        ({"normalisation": [{"channel": "CT", "scheme": "magic"}]}, "unknown scheme"),
        ({"normalisation": [{"channel": "CT", "scheme": "percentiles", "windw": 3}]}, "unknown key"),
        ({"mi_range": [[5, 5]]}, "mi_range"),
        ({"mi_range": [None, None]}, "mi_range"),
        ({"width": 0}, "width"),
        ({"width": True}, "width"),
        ({"context": 1.5}, "whole number"),
        ({"context": -1}, "context"),
        ({"batch_size": 1}, "batch_size"),
        ({"network": ""}, "network"),
        ({"format": 2}, "format"),
    ],
)
def test_an_impossible_plan_is_refused_with_its_path(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    content = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1))).to_json() | change
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match=fault) as caught:
        Plan.read(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") in str(caught.value)


def test_an_incomplete_plan_is_refused(tmp_path: Path) -> None:
    content = Plan.derive(fingerprint((9, 9, 9), (1, 1, 1))).to_json()
    del content["mi_range"]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match="absent: mi_range"):
        Plan.read(tmp_path / "plan.json")


def test_the_fingerprint_states_sizes_spacings_percentiles_and_millilitres(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        grid = Grid.from_parts((10, 12, 14), (1.0, 2.0, 5.0 + number))
        array = generator.integers(0, 1001, grid.shape).astype(np.int16)
        reference = np.zeros(grid.shape, np.uint8)
        reference[2:4, 2:7, 3:13] = 1  # 100 voxels
        reference[0, 0, 0] = 9
        array[reference == 1] = 4000
        write_volume(tmp_path / f"images/s{number}.nii.gz", Volume(array, grid))
        write_volume(tmp_path / f"labels/s{number}.nii.gz", Volume(reference, grid))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 9}}))
    found = take_fingerprint(Cohort.read(tmp_path))
    assert [subject.shape for subject in found.subjects] == [(10, 12, 14)] * 3
    np.testing.assert_allclose(found.median_spacing, (1, 2, 6))
    np.testing.assert_allclose(found.median_extent, (14, 24, 60))
    for number, subject in enumerate(found.subjects):
        assert subject.label_ml == pytest.approx({"organ": 100 * 2 * (5 + number) / 1000})
        assert subject.percentiles[0][3] == pytest.approx(500, abs=60)
    assert set(found.foreground[0]) == {4000.0}


def test_the_fingerprint_does_not_depend_on_the_stored_orientation() -> None:
    generator = np.random.default_rng(0)
    array = generator.integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    reference = (generator.random(array.shape) > 0.7).astype(np.uint8)
    grid = Grid.from_parts(array.shape, (1, 2, 3))
    results = []
    for axes in permutations(range(3)):
        columns = [2 - axis for axis in axes[::-1]]
        affine = np.eye(4)
        affine[:3, :3] = grid.affine[:3, :3][:, columns]
        turned = Grid(array.transpose(axes).shape, affine)
        image, labels = (Volume(a.transpose(axes), turned) for a in (array, reference))
        results.append(measure("s", image, labels, {"background": 0, "organ": 1}, None))
    for result in results:
        assert result.print == results[0].print
        np.testing.assert_array_equal(result.surroundings[0], results[0].surroundings[0])


def test_what_pads_an_image_is_known_where_a_few_voxels_lie_below_it() -> None:
    random = np.random.default_rng(0)
    signal = random.normal(200, 60, (16, 24, 24)).astype(np.float32)
    signal[0, 0, :3] = (-7.0, -3.0, -0.5)
    padded = np.pad(signal, ((8, 8), (20, 20), (20, 20)))
    normalised = Normalisation("MR", "percentiles").apply(padded)[8:-8, 20:-20, 20:-20]
    np.testing.assert_allclose(normalised, Normalisation("MR", "percentiles").apply(signal), atol=1e-3)


def short_axis(normal: int) -> Volume:
    """A heart on slices of 8 mm whose normal is nearest to the given axis (0 x, 1 y, 2 z), and near the others."""
    cosines = np.full(3, 0.5)
    cosines[normal] = np.sqrt(0.5)
    turn, _ = Rotation.align_vectors(cosines[None], np.array([[0.0, 0.0, 1.0]]))
    grid = Grid.from_parts((9, 40, 44), (1.4, 1.4, 8.0), direction=turn.as_matrix())
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[2:5, 10:20, 12:30] = 1
    return Volume(array, grid)


def test_oblique_slices_have_the_spacing_that_they_were_acquired_with() -> None:
    measured, middles = [], []
    for normal in (0, 1, 1, 2):
        labels = short_axis(normal)
        found = np.argwhere(labels.array[0])[:, ::-1]
        middles.append(labels.grid.to_world((found.min(0) + found.max(0)) / 2))
        image = Volume(np.random.default_rng(normal).normal(size=labels.grid.shape).astype(np.float32), labels.grid)
        measured.append(measure(f"s{len(measured)}", image, labels, {"heart": 1}, None))
    assert {int(np.argmax(part.print.spacing)) for part in measured} == {0, 1, 2}
    known = combine(("MR",), measured)
    plan = Plan.derive(known, spacing="scan")
    slices = "xyz".index(plan.slice_axis)
    assert plan.spacing[slices] == pytest.approx(8)
    assert np.delete(plan.spacing, slices) == pytest.approx([1.4, 1.4])
    for subject, part, middle in zip(known.subjects, measured, middles, strict=True):
        assert subject.spacing == pytest.approx(plan.spacing)
        assert subject.shape[2 - slices] == 9
        assert subject.label_box is not None
        size = np.subtract(subject.label_box[1], subject.label_box[0])
        assert size[slices] == pytest.approx(3 * 8)
        assert sorted(np.delete(size, slices)) == pytest.approx([10 * 1.4, 18 * 1.4])
        turned = turned_grid(part.grid, plan.turn(part.grid))
        aside = turned.direction.T @ (middle - turned.to_world((turned.size - 1) / 2))
        assert np.add(*subject.label_box) / 2 == pytest.approx(aside, abs=0.01)
        # Of nine slices, the fourth is the middle one of the label.
        assert abs(aside[slices]) == pytest.approx(8, abs=0.01)

"""The operators on images whose true map is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasnet.errors import Cancelled, InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution, SilentReporter, WorkFolder, digest
from atlasnet.prediction.scan import Scan
from atlasnet.registration import (
    MRFOperator,
    MRFSettings,
    Target,
    make_operator,
    prealign,
    regional_quality,
    register_images,
    shortcoming,
)
from atlasnet.registration.deformation import align, prepare_pair
from atlasnet.registration.intensity import _thinned
from atlasnet.registration.learning import learn
from atlasnet.registration.measured import Found, MeasuringOperator
from atlasnet.registration.mrf import _origins
from atlasnet.registration.operator import Task
from atlasnet.registration.pyramid import LevelSettings, build_levels
from atlasnet.registration.quality import geometry, quality
from atlasnet.registration.settings import (
    DEFAULT_LEVELS,
    DEFAULT_METRICS,
    DISCRETE_LEVELS,
    PLANE_LEVELS,
    PLANE_METRICS,
    SMALL_LEVELS,
    SMALL_VOXELS,
)
from atlasnet.training import pairs
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.sources import Keyed
from atlasnet.transform import DisplacementMap, Transform, corner_jacobians
from atlasnet.volume import Grid, Volume, read_labels, read_volume
from synthetic import dice

ONE = Execution(threads=1)
SHAPE = (28, 36, 40)
RECORD_KEYS = {
    "operator", "settings", "seconds", "levels", "similarity_before", "similarity_after", "jacobian_min",
    "folded_share", "inverse_residual_mm", "max_displacement_mm", "covered", "quality",
}  # fmt: skip


def anatomy(shape, seed=0):
    """Blobs of several sizes in a body, some labelled."""
    generator = np.random.default_rng(seed)
    noise = sum(ndimage.gaussian_filter(generator.normal(size=shape), s) * s**1.5 for s in (1.5, 3, 5))
    centre = [(n - 1) / 2 for n in shape]
    index = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    radius = sum(((i - c) / max(1.0, 0.42 * n)) ** 2 for i, c, n in zip(index, centre, shape, strict=True))
    return np.where(radius < 1, 100 + 60 * noise / noise.std(), 0).astype(np.float32)


def smooth_field(grid, size, seed=1):
    """(3, z, y, x) LPS mm, at most ``size`` mm."""
    generator = np.random.default_rng(seed)
    field = np.stack([ndimage.gaussian_filter(generator.normal(size=grid.shape), 7) for _ in range(3)])
    field *= size / np.sqrt((field**2).sum(0)).max()
    if grid.shape[0] == 1:
        field[2] = 0
    return torch.tensor(field, dtype=torch.float32)


@pytest.fixture(scope="module")
def pair():
    """(source, target, true displacement of target points into the source)."""
    grid = Grid.from_parts(SHAPE, (1.5, 1.5, 2.0), (10.0, -20.0, 5.0))
    source = Volume(anatomy(SHAPE), grid)
    field = smooth_field(grid, 6.0)
    truth = Transform.from_displacement(DisplacementMap(field, grid))
    return source, truth.warp(source, grid), field


def body(volume):
    return ndimage.binary_erosion(volume.array[0] > 0, iterations=2)


def error(result, truth, where, grid):
    return (result.transform.displacement(grid) - truth).norm(dim=0).numpy()[where].mean()


@pytest.mark.parametrize(
    "metrics", [{"mi": 1}, {"ncc": 1}, {"dwt": 1}, {"sad": 1}, {"mind": 1}, {"mi": 1, "ncc": 1, "dwt": 1, "sad": 1}]
)
def test_a_known_deformation_is_recovered(pair, metrics):
    source, target, truth = pair
    result = register_images(
        source, target, operator=make_operator("mrf", affine=False, metrics=metrics), execution=ONE
    )
    where = body(target)
    before = truth.norm(dim=0).numpy()[where].mean()
    assert error(result, truth, where, target.grid) < 0.5 * before


def test_self_similarity_aligns_images_of_opposite_contrast(pair):
    source, target, truth = pair
    # As between two modalities: what is bright in one is dark in the other.
    other = Volume(target.array.max() - target.array, target.grid)
    errors = {}
    for metric in ("mind", "ncc"):
        operator = make_operator("mrf", affine=False, metrics={metric: 1})
        result = register_images(source, other, operator=operator, execution=ONE)
        errors[metric] = error(result, truth, body(target), target.grid)
    before = truth.norm(dim=0).numpy()[body(target)].mean()
    assert errors["mind"] < 0.5 * before < errors["ncc"]


def test_the_record_says_what_was_done_and_is_json(pair):
    source, target, _ = pair
    record = register_images(source, target, operator=make_operator("mrf", affine=False), execution=ONE).record
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    assert set(record) >= RECORD_KEYS
    searched = [level for level in record["levels"] if level["labels"] > 1]
    assert searched
    assert all(level["energy_best_labelling"] <= level["energy_before"] for level in searched)
    assert all(level["energy_step"] > 0 for level in searched)
    assert record["levels"][-1]["jacobian_min_before_repair"] > 0
    assert record["levels"][-1]["resolution"] == pytest.approx([1.5, 1.5, 2.0])
    assert all(record["similarity_after"][m] > record["similarity_before"][m] for m in record["similarity_after"])
    assert 0 <= record["quality"] <= 1


def test_the_map_does_not_fold_and_its_inverse_undoes_it(pair):
    source, target, _ = pair
    # hardly any smoothness: belief propagation would fold without the bound on the steps and the repair
    result = register_images(source, target, operator=make_operator("mrf", affine=False, alpha=1e-3), execution=ONE)
    least = float(corner_jacobians(result.transform.displacement(target.grid), target.grid).min())
    assert least > 0
    assert result.record["jacobian_min"] == pytest.approx(least)
    assert result.record["folded_share"] == 0
    assert result.record["inverse_residual_mm"]["mean"] < 0.2
    assert result.record["inverse_residual_mm"]["p999"] < 1


def test_the_inverse_does_not_fold_either(pair):
    source, target, _ = pair
    # bulges as large as half the image: what compresses them back is too steep for the voxels of the inverse
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((((index - np.array(SHAPE)[:, None, None, None] / 2) / 8) ** 2).sum(0))
    squeezed = np.where(radius < 1, source.array[0].max() * 1.2, target.array[0]).astype(np.float32)
    result = register_images(
        source, target.replace(squeezed[None]), operator=make_operator("mrf", affine=False, alpha=1e-4), execution=ONE
    )
    assert float(corner_jacobians(result.transform.inverse.displacement(source.grid), source.grid).min()) > 0
    assert result.record["inverse"]["jacobian_min"] > 0.05
    assert result.record["jacobian_min"] > 0


def test_the_same_call_gives_the_same_bytes(pair, tmp_path):
    source, target, _ = pair
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (first, second):
        register_images(source, target, operator=make_operator("mrf"), execution=ONE).transform.save(path)
    assert first.read_bytes() == second.read_bytes()


def test_symmetric_registration_hardly_cares_which_image_is_the_target(pair):
    source, target, truth = pair
    known = Transform.from_displacement(DisplacementMap(truth, target.grid))
    apart, errors = {}, {}
    for symmetric in (False, True):
        operator = make_operator("mrf", affine=False, symmetric=symmetric)
        there = register_images(source, target, operator=operator, execution=ONE)
        back = register_images(target, source, operator=operator, execution=ONE)
        there_and_back = there.transform.then(back.transform).displacement(target.grid)
        apart[symmetric] = there_and_back.norm(dim=0).numpy()[body(target)].mean()
        errors[symmetric] = error(there, known.displacement(target.grid), body(target), target.grid)
        assert there.record["jacobian_min"] > 0
        json.dumps(there.record, allow_nan=False)
    assert apart[True] < 0.1 * apart[False]
    assert errors[True] < 0.2  # a tenth of a voxel
    assert 0 < there.record["disagreement_mm"]["mean"] < 1


def outcomes(folder, source, target, **settings):
    """What registrations on 1, 2 and 3 threads gave: the bytes of the map, and the record without the times."""
    for threads in (1, 2, 3):
        operator, path = make_operator("mrf", **settings), folder / f"{threads}.safetensors"
        result = register_images(source, target, operator=operator, execution=Execution(threads=threads))
        result.transform.save(path)
        record = {key: value for key, value in result.record.items() if not key.startswith("seconds")}
        record["levels"] = [{**level, "seconds": 0} for level in record["levels"]]
        yield path.read_bytes(), record


def test_any_number_of_threads_gives_the_same_bytes_by_every_metric(pair, tmp_path):
    metrics = {"mi": 1, "ncc": 1, "dwt": 1, "sad": 1, "mind": 1}
    one, *others = outcomes(tmp_path, *pair[:2], metrics=metrics)
    assert all(other == one for other in others)


def test_stored_orientation_of_either_image_does_not_matter(pair):
    source, target, truth = pair

    def reoriented(volume):
        grid = volume.grid
        size_z, size_y, _ = grid.shape
        # (z, y, x) stored as (x, -y, -z)
        array = volume.array.transpose(0, 3, 2, 1)[:, :, ::-1, ::-1]
        change = np.zeros((4, 4))
        change[2, 0], change[1, 1], change[0, 2], change[3, 3] = -1, -1, 1, 1
        change[2, 3], change[1, 3] = size_z - 1, size_y - 1
        return Volume(np.ascontiguousarray(array), Grid(array.shape[1:], grid.affine @ change))

    operator = make_operator("mrf", affine=False)
    where = body(target)
    plain = register_images(source, target, operator=operator, execution=ONE)
    for s, t in ((reoriented(source), target), (source, reoriented(target))):
        other = register_images(s, t, operator=operator, execution=ONE)
        difference = other.transform.displacement(target.grid) - plain.transform.displacement(target.grid)
        assert difference.norm(dim=0).numpy().max() < 1e-4  # the same, but for the rounding of the two headers
    assert error(plain, truth, where, target.grid) < 2


@pytest.mark.parametrize("how", ["oblique", "axes exchanged"])
def test_turning_both_images_turns_the_map_with_them(pair, how):
    source, target, _ = pair
    levels = (LevelSettings(2, 2, 3.5, refinements=1), LevelSettings(1, 1, 3, refinements=1))
    operator = make_operator("mrf", affine=False, levels=levels)
    straight = register_images(source, target, operator=operator, execution=ONE).transform.displacement(target.grid)
    grid, arrays = target.grid, (source.array, target.array)
    if how == "oblique":
        turn = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()
        grid = Grid.from_parts(grid.shape, grid.spacing, grid.origin, turn)
        expected = torch.einsum("ij,jzyx->izyx", torch.tensor(turn, dtype=torch.float32), straight)
    else:
        z, y, x = grid.shape
        grid = Grid.from_parts((x, z, y), grid.spacing[[1, 2, 0]], grid.origin)
        arrays = tuple(array.transpose(0, 3, 1, 2) for array in arrays)
        expected = straight[[1, 2, 0]].permute(0, 3, 1, 2)
    turned = register_images(*(Volume(array, grid) for array in arrays), operator=operator, execution=ONE)
    apart = (turned.transform.displacement(grid) - expected).norm(dim=0)
    assert apart.max() < 0.01 < 1 < straight.norm(dim=0).mean()


def test_two_dimensional_images_stay_in_their_plane():
    grid = Grid.from_parts((1, 72, 64), (1.0, 1.0, 3.0))
    source = Volume(anatomy((1, 72, 64), 3), grid)
    field = smooth_field(grid, 5.0)
    target = Transform.from_displacement(DisplacementMap(field, grid)).warp(source, grid)
    result = register_images(source, target, operator=make_operator("mrf", affine=False), execution=ONE)
    where = body(target) if body(target).any() else target.array[0] > 0
    found = result.transform.displacement(grid)
    assert float(found[2].abs().max()) == 0
    assert error(result, field, where, grid) < 0.4 * field.norm(dim=0).numpy()[where].mean()


def test_what_the_masks_hide_has_no_say(pair):
    source, target, truth = pair
    hidden = np.zeros(SHAPE, bool)
    hidden[:, :, :14] = True
    spoilt = target.array.copy()
    spoilt[0][hidden] = np.random.default_rng(0).normal(100, 60, hidden.sum())
    mask = Volume(~hidden[None], target.grid)
    result = register_images(
        source,
        target.replace(spoilt),
        operator=make_operator("mrf", affine=False),
        target_mask=mask,
        execution=ONE,
    )
    where = body(target) & ~ndimage.binary_dilation(hidden, iterations=4)
    assert error(result, truth, where, target.grid) < 0.4 * truth.norm(dim=0).numpy()[where].mean()


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_part_of_a_body_is_not_stretched_over_the_whole(pair, axis):
    whole = pair[0]
    cut = [slice(None)] * 4
    cut[axis] = slice(0, 2 * whole.array.shape[axis] // 3)
    corner = Grid.from_parts(whole.array[tuple(cut)].shape[1:], whole.grid.spacing, whole.grid.origin)
    # Two scans of one body never agree well; that must not make it worth while to cover more of the target.
    noise = np.random.default_rng(2).normal(0, 30, whole.array.shape)
    part = Volume((whole.array + noise)[tuple(cut)].astype(np.float32), corner)
    for source, target in ((part, whole), (whole, part)):
        transform = register_images(
            source, target, operator=make_operator("mrf", affine=False), execution=ONE
        ).transform
        moved = transform.displacement(target.grid).norm(dim=0).numpy()
        shared = np.zeros(target.grid.shape, dtype=bool)
        shared[tuple(cut[1:])] = whole.array[0][tuple(cut[1:])] > 0
        assert moved[shared].mean() < 1.0


def test_several_channels_are_registered_together(pair):
    source, target, truth = pair
    empty = np.zeros_like(source.array)
    two = [v.replace(np.concatenate([empty, v.array])) for v in (source, target)]
    result = register_images(*two, operator=make_operator("mrf", affine=False), execution=ONE)
    where = body(target)
    assert error(result, truth, where, target.grid) < 0.4 * truth.norm(dim=0).numpy()[where].mean()


def test_an_initial_map_replaces_the_affine_alignment(pair):
    source, target, truth = pair
    far = np.eye(4)
    far[:3, 3] = (60, -40, 50)
    affine = far.copy()
    affine[3] = (0, 0, 0, 1)
    moved = Volume(source.array, Grid(source.grid.shape, far @ source.grid.affine))
    result = register_images(moved, target, initial=Transform.affine(affine), execution=ONE)
    expected = truth + torch.tensor([60.0, -40.0, 50.0])[:, None, None, None]
    where = body(target)
    assert error(result, expected, where, target.grid) < 0.5 * truth.norm(dim=0).numpy()[where].mean()


@pytest.mark.parametrize("options", [{"operator": "identity"}, {"settings": {"affine": False}}])
def test_images_that_never_meet_are_said_to(pair, options):
    source, target, _ = pair
    far = Volume(source.array, Grid.from_parts(source.grid.shape, source.grid.spacing, (1e3, 0, 0)))
    operator = make_operator(options.get("operator", "mrf"), **options.get("settings", {}))
    with pytest.raises(RegistrationError, match="nothing of the source lies in the target's field of view"):
        operator.register(far, [target], execution=ONE)


def test_a_start_that_mirrors_is_named_as_the_cause(pair):
    source, target, _ = pair
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 2 * source.grid.corners().mean(0)[0]  # about the middle of the source
    with pytest.raises(RegistrationError, match="begins with folds or mirrors"):
        register_images(source, target, initial=Transform.affine(mirror), execution=ONE)


class Folding(MeasuringOperator):
    """What an operator of one's own may give that does not take the folds out."""

    name = "folding"

    def settings(self):
        return {}

    def find(self, source, source_mask, task, execution):
        grid = task.target.grid
        field = torch.zeros(3, *grid.shape)
        field[0, :, :, grid.shape[2] // 2 :] = -4 * float(grid.spacing[0])  # the second half goes over the first
        forward = DisplacementMap(field, grid)
        return Found(Transform(forward, forward))


def test_a_map_of_ones_own_operator_that_folds_is_refused(pair):
    source, target, _ = pair
    with pytest.raises(RegistrationError, match="operator folding folds or mirrors: its least Jacobian is -3"):
        register_images(source, target, operator=Folding(), execution=ONE)


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_a_registration_goes_on_from_the_map_of_an_earlier_one_without_folds(seed):
    """Of images that have nothing to do with each other: both maps compress as far as they may, at the same places."""
    grid = Grid.from_parts(SHAPE, (1.5, 1.5, 2.0), (10.0, -20.0, 5.0))
    source, target = (Volume(anatomy(SHAPE, number), grid) for number in (seed, seed + 50))
    first = register_images(source, target, operator=make_operator("mrf", affine=False), execution=ONE)
    second = register_images(source, target, initial=first.transform, execution=ONE)
    assert float(corner_jacobians(second.transform.displacement(grid), grid).min()) > 0
    assert second.record["quality"] > first.record["quality"]
    found = second.transform.forward.parts
    assert found[-len(first.transform.forward.parts) :] == first.transform.forward.parts  # the start stays as it is


def test_a_map_is_not_smoothed_for_a_start_that_shrinks(pair):
    """A third of the size is a Jacobian of 0.04, far from a fold."""
    _, target, _ = pair
    matrix = np.diag([0.35, 0.35, 0.35, 1])
    matrix[:3, 3] = 0.65 * target.grid.to_world(target.grid.size / 2)
    slight = DisplacementMap(torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.2, target.grid)
    start = Transform.from_displacement(slight, matrix)
    source = start.inverse.warp(
        target, Grid.from_parts(SHAPE, (0.6, 0.6, 0.8), tuple(start.map_points(target.grid.origin)))
    )
    found = register_images(source, target, initial=start, execution=ONE)
    assert found.record["inverse"]["rounds"] == 0


def test_one_source_onto_several_targets_is_as_onto_each(pair):
    source, target, _ = pair
    operator = make_operator("mrf", affine=False)
    together = operator.register(source, [target, source], execution=ONE)
    alone = operator.register(source, [source], execution=ONE)[0]
    assert len(together) == 2
    assert torch.equal(together[1].transform.displacement(source.grid), alone.transform.displacement(source.grid))


def test_identity_moves_nothing_and_measures_the_images_as_they_lie(pair):
    source, target, _ = pair
    result = register_images(source, target, operator="identity", execution=ONE)
    assert float(result.transform.displacement(target.grid).abs().max()) == 0
    assert set(result.record) >= RECORD_KEYS
    assert result.record["similarity_before"] == result.record["similarity_after"]
    assert result.record["jacobian_min"] == pytest.approx(1)


def test_centre_puts_the_middles_of_the_fields_of_view_onto_each_other(pair):
    source, _, _ = pair
    blank = Volume(
        np.zeros((1, 9, 11, 7), np.float32), Grid.from_parts((9, 11, 7), (3.0, 2.0, 4.0), (-90.0, 5.0, 70.0))
    )
    result = register_images(source, blank, operator="centre", execution=ONE)
    moved = result.transform.forward(torch.tensor(blank.grid.centre)[None])
    np.testing.assert_allclose(moved[0].numpy(), source.grid.centre, atol=1e-9)
    displacement = result.transform.displacement(blank.grid).reshape(3, -1)
    assert float((displacement - displacement[:, :1]).abs().max()) < 1e-4
    json.dumps(result.record, allow_nan=False)


def test_affine_operator_finds_a_shift(pair):
    source, _, _ = pair
    shift = np.eye(4)
    shift[:3, 3] = (7.0, -5.0, 6.0)
    moved = Volume(source.array, Grid(source.grid.shape, shift @ source.grid.affine))
    result = register_images(moved, source, operator="affine", execution=ONE)
    where = body(source)
    expected = torch.tensor([7.0, -5.0, 6.0])[:, None, None, None].expand(3, *SHAPE)
    assert error(result, expected, where, source.grid) < 0.5
    assert set(result.record) >= RECORD_KEYS


@pytest.mark.parametrize("name", ["mrf", "affine", "centre", "identity"])
def test_an_operator_is_made_again_from_its_settings(name):
    operator = make_operator(name)
    settings = json.loads(json.dumps(operator.settings()))
    assert make_operator(name, **settings).settings() == operator.settings()


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": {"ssd": 1}},
        {"metrics": {"mi": 0}},
        {"alpha": 0},
        {"levels": ()},
        {"spacing": -1},
        {"damping": 1},
        {"mi_range": [(100, -900)]},
        {"smallest_jacobian": 0},
        {"colour": "blue"},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        make_operator("mrf", **wrong)


def test_an_unknown_operator_is_refused():
    with pytest.raises(InputError, match="mrf or affine or centre or identity"):
        make_operator("demons")


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (Folding, r"found the class Folding; to mend it: .*Folding\(\)"),
        (object(), "expected a name, or an object with the methods of .*Operator; found object"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_operator_is_refused(pair, operator, said):
    source, target, _ = pair
    with pytest.raises(InputError, match=said):
        register_images(source, target, operator=operator, execution=ONE)


class Bare(Folding):
    """A map where `Found` is asked for."""

    def find(self, source, source_mask, task, execution):
        return Transform.identity()


def test_an_operator_of_ones_own_that_gives_the_map_alone_is_told_what_to_give(pair):
    source, target, _ = pair
    with pytest.raises(InputError, match=r"operator folding.*found Transform; to mend it: .*Found\(transform\)"):
        register_images(source, target, operator=Bare(), execution=ONE)


def test_images_and_masks_that_do_not_fit_are_refused_before_work(pair):
    source, target, _ = pair
    two = source.replace(np.concatenate([source.array, source.array]))
    small = Volume(np.ones((1, 4, 4, 4)), Grid.from_parts((4, 4, 4)))
    nothing = source.replace(np.zeros_like(source.array))
    for arguments in ({"source": two}, {"source_mask": small}, {"target_mask": small}, {"source_mask": nothing}):
        with pytest.raises(VolumeError):
            register_images(**{"source": source, "target": target, "execution": ONE, **arguments})


def test_work_stops_between_levels_on_request(pair):
    source, target, _ = pair
    asked = []
    execution = replace(ONE, cancelled=lambda: len(asked) > 2 or asked.append(1) is not None)
    with pytest.raises(Cancelled):
        MRFOperator(MRFSettings(affine=False)).register(source, [target], execution=execution)


def test_hippocampus_labels_are_carried_over(data_folder):
    folder = data_folder / "hippocampus"
    scores = []
    for a, b in (("hippocampus_004", "hippocampus_006"), ("hippocampus_014", "hippocampus_024")):
        source, target = (read_volume(folder / "imagesTr" / f"{n}_0000.nii.gz") for n in (a, b))
        ours, theirs = (read_labels(folder / "labelsTr" / f"{n}.nii.gz") for n in (a, b))
        warped = register_images(source, target, execution=ONE).transform.warp(ours, target.grid, interpolation="label")
        for label in (1, 2):
            one, two = warped.array == label, theirs.array == label
            scores.append(2 * (one & two).sum() / (one.sum() + two.sum()))
    assert np.mean(scores) > 0.65


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_the_record_has_the_energy_of_the_step_that_is_taken(data_folder, alpha):
    images = (read_volume(data_folder / f"hippocampus/imagesTr/hippocampus_{n}_0000.nii.gz") for n in ("024", "025"))
    record = register_images(*images, operator=make_operator("mrf", alpha=alpha), execution=ONE).record
    before, best, step = (
        np.array([level[f"energy_{what}"] for level in record["levels"]])
        for what in ("before", "best_labelling", "step")
    )
    assert (best <= before).all()
    # Of these scans some steps are worse than none, by the energy of their level, whatever the weight of smoothness.
    assert (step > before).any()
    assert (step < before).any()


@pytest.mark.parametrize(
    ("source", "target", "settings"),
    [
        pytest.param(
            "hippocampus/imagesTr/hippocampus_024", "hippocampus/imagesTr/hippocampus_025", {}, id="hippocampus"
        ),
        pytest.param(
            "chest-ct/imagesTr/chest_102",
            "chest-ct/imagesTr/chest_101",
            {"voxels": 300_000},
            id="chest",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scans_are_registered_to_the_same_bytes_on_any_number_of_threads(
    data_folder, tmp_path, source, target, settings
):
    images = (read_volume(data_folder / f"{name}_0000.nii.gz") for name in (source, target))
    one, *others = outcomes(tmp_path, *images, **settings)
    assert all(other == one for other in others)


@pytest.mark.parametrize(
    ("source", "target", "masked", "voxels"),
    [
        ("004", "006", "target", 4),
        ("024", "025", "target", 4),
        ("288", "350", "target", 2),
        ("083", "034", "target", 2),
        ("350", "288", "source", 2),
        ("332", "083", "source", 2),
        ("332", "083", "target", 1),
        ("024", "288", "source", 1),
    ],
)
def test_a_mask_around_a_structure_brings_it_in_place(data_folder, source, target, masked, voxels):
    def read(part, name):
        return data_folder / "hippocampus" / part / f"hippocampus_{name}.nii.gz"

    images = [read_volume(read("imagesTr", f"{name}_0000")) for name in (source, target)]
    labels = [read_labels(read("labelsTr", name)) for name in (source, target)]
    whose = labels[0] if masked == "source" else labels[1]
    around = ndimage.binary_dilation(whose.array[0] > 0, iterations=voxels)[None]
    masks = {f"{masked}_mask": whose.replace(around.astype(np.uint8))}
    found = register_images(*images, operator="affine", **masks, execution=ONE)
    carried = found.transform.warp(labels[0], images[1].grid, interpolation="label")
    assert dice(carried.array > 0, labels[1].array > 0) > 0.65


@pytest.mark.slow
def test_a_scan_that_shows_a_part_of_the_chest_is_not_stretched_over_the_whole(data_folder):
    chest, part = data_folder / "chest-ct", data_folder / "chest-ct-cropped"
    source, labels = read_volume(part / "cropped_0000.nii.gz"), read_labels(part / "cropped.nii.gz")
    target = read_volume(chest / "imagesTr" / "chest_103_0000.nii.gz")
    lungs = read_labels(chest / "labelsTr" / "chest_103.nii.gz").array[0] > 0
    seen = Volume(np.ones((1, *source.grid.shape), dtype=np.uint8), source.grid)
    start = prealign(source, target, execution=ONE)
    result = register_images(source, target, operator=make_operator("mrf", spacing=5.0), initial=start, execution=ONE)
    scores = []
    for transform in (start, result.transform):
        where = transform.warp(seen, target.grid, interpolation="nearest", fill=0).array[0] > 0
        carried = transform.warp(labels, target.grid, interpolation="label", fill=0).array[0] > 0
        scores.append(2 * (carried & lungs & where).sum() / ((carried & where).sum() + (lungs & where).sum()))
    assert scores[1] > scores[0] + 0.05
    assert result.record["folded_share"] == 0


def test_a_region_of_a_few_voxels_is_measured_where_it_is(pair):
    source, target, field = pair
    transform = Transform.from_displacement(DisplacementMap(field, target.grid))
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, 14, 18, 20] = 1
    labels[0, 10:13, 12:15, 16:19] = 5
    regions = regional_quality(source, target, transform, Volume(labels, target.grid), execution=ONE)
    unmoved = regional_quality(source, target, Transform.identity(), Volume(labels, target.grid), execution=ONE)
    assert set(regions) == {"1", "5"}
    assert regions["5"]["sad"] > unmoved["5"]["sad"]
    identical = regional_quality(target, target, Transform.identity(), Volume(labels, target.grid), execution=ONE)
    assert identical["5"]["sad"] == pytest.approx(1)


def test_the_overlap_of_a_region_is_that_of_the_sources_label_carried_to_the_target(pair):
    source, target, field = pair
    transform = Transform.from_displacement(DisplacementMap(field, target.grid))
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, 8:18, 10:22, 12:28] = 5
    known = source.replace(labels)
    carried = transform.warp(known, target.grid, interpolation="label")
    for given, expected in ((transform, 1.0), (Transform.identity(), dice(labels == 5, carried.array == 5))):
        found = regional_quality(source, target, given, carried, known, execution=ONE)["5"]["dice"]
        assert found == pytest.approx(expected, abs=1e-6)


def test_regions_of_large_labels_are_measured_apart(pair):
    _, target, _ = pair
    labels = np.zeros((1, *SHAPE), np.int32)
    labels[0, 10:13, 12:15, 16:19] = 1_000_001
    labels[0, 14:17, 18:21, 20:23] = 1_000_002
    still = Transform.identity()
    assert set(regional_quality(target, target, still, Volume(labels, target.grid), execution=ONE)) == {
        "1000001",
        "1000002",
    }


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_voxels_that_are_no_finite_numbers_are_refused_by_name(pair, fault):
    source, target, _ = pair
    array = target.array.copy()
    array[0, 2, 3, 4] = fault
    with pytest.raises(VolumeError, match="the target has voxels that are not finite"):
        register_images(source, target.replace(array), execution=ONE)
    with pytest.raises(VolumeError, match="voxels of the source are no numbers"):
        register_images(source.replace(source.array > 0), target, execution=ONE)


@pytest.mark.parametrize("shape", [(1024, 64, 64), (30, 512, 512), (4100, 32, 32), (3, 2048, 1024), (257, 129, 65)])
def test_percentiles_look_at_every_column(shape):
    columns = np.broadcast_to(np.arange(shape[-1], dtype=np.int16), shape)
    seen, counts = np.unique(_thinned(columns), return_counts=True)
    assert len(seen) == shape[-1]
    assert counts.max() - counts.min() <= 1 + 0.02 * counts.mean()


def test_a_change_of_what_registers_by_default_changes_the_keys_of_what_is_kept():
    """Settings that are None stand for these; work folders know them by `REVISION` alone.

    Where this fails, count up `atlasnet.training.pairs.REVISION` and `atlasnet.registration.learning.learn.REVISION`.
    """
    levels = (DEFAULT_LEVELS, SMALL_LEVELS, PLANE_LEVELS, DISCRETE_LEVELS)
    default = [[[asdict(level) for level in some] for some in levels], SMALL_VOXELS]
    default += [dict(DEFAULT_METRICS), dict(PLANE_METRICS), MRFSettings().as_json()]
    assert (pairs.REVISION, learn.REVISION, digest(default)) == (6, 6, "3eaa742c3795bf20fb15")


@pytest.mark.parametrize("pair", [("034", "045"), ("260", "125"), ("383", "088"), ("004", "006")])
def test_hippocampi_are_found_where_only_they_and_their_surroundings_count(
    data_folder: Path, pair: tuple[str, str]
) -> None:
    images, labels, masks = [], [], {}
    for side, name in zip(("source", "target"), pair, strict=True):
        images.append(read_volume(data_folder / "hippocampus" / "imagesTr" / f"hippocampus_{name}_0000.nii.gz"))
        labels.append(read_labels(data_folder / "hippocampus" / "labelsTr" / f"hippocampus_{name}.nii.gz"))
        near = ndimage.binary_dilation(labels[-1].array[0] > 0, iterations=4)[None].astype(np.uint8)
        masks[f"{side}_mask"] = Volume(near, images[-1].grid)
    start = register_images(*images, operator="affine", execution=ONE).transform
    overlap = []
    for given in ({}, {"target_mask": masks["target_mask"]}, masks):
        found = register_images(*images, initial=start, **given, execution=ONE)
        assert not found.record["deformation_lost"]
        carried = found.transform.warp(labels[0], images[1].grid, interpolation="label").array[0]
        overlap.append(np.mean([dice(carried == label, labels[1].array[0] == label) for label in (1, 2)]))
    assert min(overlap[1:]) > overlap[0] - 0.05


def test_a_chest_that_shows_a_part_only_is_judged_by_that_part(data_folder: Path) -> None:
    source = read_volume(data_folder / "chest-ct-cropped" / "cropped_0000.nii.gz")
    labels = read_labels(data_folder / "chest-ct-cropped" / "cropped.nii.gz")
    target = read_volume(data_folder / "chest-ct" / "imagesTr" / "chest_101_0000.nii.gz")
    lungs = read_labels(data_folder / "chest-ct" / "labelsTr" / "chest_101.nii.gz").array[0] > 0
    found = register_images(source, target, operator=make_operator("mrf", voxels=200_000), execution=ONE)
    record = found.record
    seen = Volume(np.ones(source.array.shape, np.uint8), source.grid)
    reached = found.transform.warp(seen, target.grid, interpolation="label").array[0] > 0
    carried = found.transform.warp(labels, target.grid, interpolation="label").array[0] > 0
    assert dice(carried, lungs & reached) > 0.9
    assert 0.02 < record["covered"] < 0.15
    assert record["quality"] > 0.3
    assert shortcoming(record, 0.05) is None
    # of voxels that it does not show, the similarities say that they are unrelated
    assert np.mean(list(record["similarity_after"].values())) < 0.1


@pytest.mark.parametrize("masked", ["source", "target"])
def test_a_mask_counts_where_it_is_not_zero_whatever_its_values_and_on_whichever_side(pair, masked):
    source, target, _ = pair
    mask = (body(target)[None]).astype(np.uint8)
    ones, many = (
        register_images(
            source, target, operator="affine", execution=ONE, **{f"{masked}_mask": target.replace(mask * value)}
        )
        for value in (1, 200)
    )
    assert ones.record["similarity_after"] == many.record["similarity_after"]
    assert torch.equal(ones.transform.displacement(target.grid), many.transform.displacement(target.grid))
    task = Task(target, target.replace(mask) if masked == "target" else None, None)
    (level,) = build_levels(target.grid, (LevelSettings(1, 1, 3),))
    there, here = prepare_pair(
        source, source.replace(mask) if masked == "source" else None, target, task.mask, target.grid, ONE
    )
    assert align(there, here, torch.zeros(3, *target.grid.shape), Transform.identity().forward, level).masked


def test_the_quality_is_that_of_the_covered_voxels_alone():
    grid = Grid.from_parts(SHAPE, (2.0, 2.0, 2.0))
    target = Volume(anatomy(SHAPE)[None], grid)
    half = grid.cropped((slice(0, SHAPE[0]), slice(0, SHAPE[1]), slice(0, 20)))
    noisy = target.array + np.random.default_rng(0).normal(0, 30, target.array.shape).astype(np.float32)
    source = Volume(np.ascontiguousarray(noisy[..., :20]), half)
    near = np.zeros((1, *SHAPE), np.uint8)
    near[..., :20] = 1
    found = {}
    for name, mask in (("all", None), ("covered", Volume(near, grid))):
        found[name] = register_images(source, target, operator="identity", target_mask=mask, execution=ONE).record
    assert found["covered"]["covered"] == 1
    assert 0.4 < found["all"]["covered"] < 0.6
    assert found["all"]["quality"] == pytest.approx(found["covered"]["quality"], abs=0.05)
    assert found["covered"]["quality"] == pytest.approx(
        np.mean(list(found["covered"]["similarity_after"].values())), abs=1e-6
    )


def test_the_disagreement_of_two_directions_is_taken_where_there_is_something():
    grid = Grid.from_parts(SHAPE, (2.0, 2.0, 2.0))
    bodies = [anatomy(SHAPE, seed) for seed in (0, 5)]
    source, target = (Volume(np.where(b != 0, b - b.min() + 200, 0).astype(np.float32)[None], grid) for b in bodies)
    mask = np.zeros((1, *SHAPE), np.uint8)
    mask[:, 10:18, 12:24, 14:26] = 1
    operator = MRFOperator(MRFSettings(affine=False, symmetric=True))
    task = Task(target, Volume(mask, grid), None)
    shown = operator._shown(source, None, task, grid, ONE).numpy()
    assert shown.any()
    assert not shown[mask[0] == 0].any()
    everywhere = operator._shown(source, None, Task(target, None, None), grid, ONE).numpy()
    assert everywhere[target.array[0] > 0].all()
    assert not everywhere[target.array[0] == 0].any()


def test_the_folds_of_an_inverse_are_mended_where_it_takes_them():
    """Between grids of another origin, spacing and order of axes."""
    grid = Grid.from_parts((10, 12, 14), (2.0, 2.0, 3.0), (-5.0, 4.0, 0.0), np.eye(3)[[1, 2, 0]])
    there = Grid.from_parts((20, 18, 16), (3.0, 2.0, 2.5), (-9.0, 0.0, -7.0))
    field, bad = torch.zeros(3, *there.shape), torch.zeros(there.shape, dtype=torch.bool)
    wanted, folds = (3, 5, 6), (9, 6, 11)  # z, y, x
    field[:, *folds] = torch.from_numpy(grid.to_world(wanted[::-1]) - there.to_world(folds[::-1]))
    bad[folds] = True
    assert _origins(DisplacementMap(field, there), bad, grid).nonzero().tolist() == [list(wanted)]


def test_the_inverse_is_judged_by_the_worse_of_its_directions():
    whole = Grid.from_parts((20, 12, 12))
    part = whole.cropped((slice(0, 10), slice(0, 12), slice(0, 12)))
    back = torch.zeros(3, *whole.shape)
    back[2, 14:] = -10  # of the source, where the map takes nothing
    record = geometry(Transform(Transform.identity().forward, DisplacementMap(back, whole)), part, whole)[1]
    residual = record["inverse_residual_mm"]
    assert (residual["target"]["max"], residual["source"]["max"], residual["max"]) == (0, 10, 10)


@pytest.mark.parametrize(
    ("similarity", "covered", "expected"),
    [
        ((0.4, 0.6), 1.0, 0.5),
        ((0.4, 0.6), 0.8, 0.625),
        ((0.5, -0.9), 1.0, 0.25),
        ((0.9,), 0.5, 1.0),
        ((0.9,), 0.0, 0.0),
    ],
)
def test_a_quality_lies_between_0_and_1_and_no_metric_takes_away_what_another_gives(similarity, covered, expected):
    assert quality({str(n): value for n, value in enumerate(similarity)}, covered) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("record", "least", "said"),
    [
        ({"quality": 0.04}, 0.05, "quality 0.040 is below 0.05"),  # of an earlier version
        ({"quality": 0.06}, 0.05, None),
        ({"quality": 0.7, "covered": 0.07}, 0.05, None),
        ({"quality": 0.7, "covered": 0.01}, 0.05, "covers 1.0%"),
        ({"quality": 0.0, "covered": 0.0}, 0.0, None),
    ],
)
def test_a_registration_that_says_too_little_is_not_used(record, least, said):
    found = shortcoming(record, least)
    assert found is None if said is None else said in found


class Fleeing(MeasuringOperator):
    """A deformation that moves everything as far as this along x, mm."""

    name = "fleeing"

    def __init__(self, shift, start=None):
        self.shift, self.start = shift, Transform.identity() if start is None else Transform.affine(start)

    def settings(self):
        return {}

    def find(self, source, source_mask, task, execution):
        away = np.eye(4)
        away[0, 3] = self.shift
        return Found(Transform.affine(away).then(self.start), self.start, {"levels": [{}], "levels_back": [{}]})


@pytest.mark.parametrize("shift", [39.0, 60.0], ids=["all but a column", "all"])
def test_a_deformation_that_loses_the_image_is_left_out(shift):
    image, bent, grid = bent_slice()
    told = SilentReporter()
    execution = Execution(threads=1, reporter=told)
    found = register_images(
        Volume(image[None], grid), Volume(bent[None], grid), operator=Fleeing(shift), execution=execution
    )
    assert found.record["deformation_lost"]
    assert found.record["similarity_after"] == found.record["similarity_prealigned"]
    # what it was discarded for is kept, and said
    assert sum(found.record["similarity_rejected"].values()) < 0.5 * sum(found.record["similarity_after"].values())
    assert all(level["rejected"] for way in ("levels", "levels_back") for level in found.record[way])
    (warning,) = told.warnings
    assert "lost the image" in warning
    assert found.record["quality"] > 0.25
    assert float(found.transform.displacement(grid).abs().max()) == 0


def test_a_warning_of_a_registration_says_of_which_pair_it_is(tmp_path):
    image, bent, grid = bent_slice()
    source, target = (Volume(array[None], grid) for array in (image, bent))
    told = SilentReporter()
    execution = Execution(threads=1, reporter=told)
    registrar = PairRegistrar(Fleeing(39.0), WorkFolder(tmp_path), execution)
    list(registrar.register(Keyed("anna", "1", lambda: source), [Keyed("bert", "2", lambda: target)]))
    list(Scan(source, execution).registered(Fleeing(39.0), {"2": Target("atlas bert", target)}))
    in_training, in_prediction = told.warnings
    assert in_training.startswith("anna onto atlas bert: the deformation lost the image")
    assert in_prediction.startswith("atlas bert: the deformation lost the image")


def test_what_never_meets_the_target_is_refused():
    image, bent, grid = bent_slice()
    away = np.eye(4)
    away[0, 3] = 60
    with pytest.raises(RegistrationError, match="nothing of the source"):
        register_images(Volume(image[None], grid), Volume(bent[None], grid), operator=Fleeing(0.0, away), execution=ONE)


def test_the_deformation_of_a_slice_does_not_leave_the_field_of_view():
    image, bent, grid = bent_slice()
    operator = make_operator("mrf", affine=False)
    found = register_images(Volume(image[None], grid), Volume(bent[None], grid), operator=operator, execution=ONE)
    assert not found.record["deformation_lost"]
    assert found.record["covered"] > 0.8  # where leaving costs nothing, it ends 39 pixels away
    assert "similarity_rejected" not in found.record
    assert not any("rejected" in level for level in found.record["levels"])
    assert found.record["quality"] > 0.45


def bent_slice():
    """A slice of texture, bent a little, with noise: (1, y, x) each, and their grid."""
    random = np.random.default_rng(104)
    shape = (1, 40, 40)
    image = ndimage.gaussian_filter(random.normal(size=shape), 2)
    image = ((image - image.min()) / np.ptp(image) * 200).astype(np.float32)
    bend = ndimage.gaussian_filter(random.normal(size=(3, *shape)), (0, 8, 8, 8))
    bend[0] = 0
    bent = ndimage.map_coordinates(image, np.indices(shape) + 1.5 / bend.std() * bend, order=1, mode="nearest")
    bent += 0.05 * random.normal(size=shape).astype(np.float32) * image.std()
    return image, bent, Grid.from_parts(shape)

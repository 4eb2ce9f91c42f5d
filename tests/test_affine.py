"""The affine pre-alignment against maps that are known analytically, and on real chests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from atlasnet.errors import Cancelled, InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings, affine_register, prealign
from atlasnet.volume import Grid, Volume, read_labels, read_volume
from scenes import SHEARED, affine, scene

RUN = Execution(threads=1)


def lattice(grid: Grid) -> np.ndarray:
    """World points (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)[..., ::-1]
    return grid.to_world(index)


def seen(grid: Grid, matrix: np.ndarray | None = None, seed: int = 0) -> Volume:
    """The scene, carried by ``matrix`` (LPS mm), as a scanner with this grid sees it."""
    points = lattice(grid)
    if matrix is not None:
        back = np.linalg.inv(matrix)
        points = points @ back[:3, :3].T + back[:3, 3]
    return Volume(scene(points, seed).astype(np.float32), grid)


def error(found: np.ndarray, wanted: np.ndarray, points: np.ndarray | None = None) -> float:
    """Mean distance in mm between two maps over the scene."""
    if points is None:
        points = np.random.default_rng(1).uniform(-35, 35, (400, 3))
    difference = found - wanted
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def registered(source: Volume, target: Volume, settings: AffineSettings | None = None) -> np.ndarray:
    return np.array(affine_register(source, target, settings=settings, execution=RUN)[1]["matrix"])


TARGET = Grid.from_parts((26, 36, 36), (2.5, 2.5, 3.5), (-44, -44, -44))
SOURCE = Grid.from_parts((40, 40, 36), (2.8, 2.5, 2.5), (-50, -50, -50))


@pytest.mark.parametrize(
    "wanted",
    [
        affine((0, 0, 0), (0, 0, 0)),
        affine((0, 0, 12), (9, -6, 4)),
        affine((15, -10, 8), (-5, 8, 6)),
        affine((4, -6, 10), (5, 3, -4), SHEARED),
    ],
    ids=["identity", "turned about one axis", "rigid", "affine"],
)
def test_a_known_map_is_recovered(wanted: np.ndarray) -> None:
    _, record = affine_register(seen(SOURCE, wanted), seen(TARGET), execution=RUN)
    assert error(np.array(record["matrix"]), wanted) < 0.25
    turn, _ = polar(wanted[:3, :3])
    assert record["turn_degrees"] == pytest.approx(np.degrees(Rotation.from_matrix(turn).magnitude()), abs=0.5)
    assert record["stretches"] == pytest.approx(np.linalg.svd(wanted[:3, :3], compute_uv=False), abs=0.02)


@pytest.mark.parametrize("turn", [(28, 0, 0), (0, -28, 0), (14, 16, -15)])
def test_contents_turned_far_are_found(turn: Sequence[float]) -> None:
    wanted = affine(turn, (6, -4, 3))
    assert error(registered(seen(SOURCE, wanted), seen(TARGET)), wanted) < 0.25


def test_the_transform_maps_target_points_to_the_source_and_back() -> None:
    wanted = affine((4, -6, 10), (5, 3, -4), SHEARED)
    transform = prealign(seen(SOURCE, wanted), seen(TARGET), execution=RUN)
    points = torch.from_numpy(np.random.default_rng(1).uniform(-35, 35, (50, 3)))
    there = transform.forward(points)
    assert np.abs(there.numpy() - (points.numpy() @ wanted[:3, :3].T + wanted[:3, 3])).max() < 0.6
    assert np.abs(transform.backward(there).numpy() - points.numpy()).max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_the_result_does_not_depend_on_where_the_header_puts_the_source(seed: int) -> None:
    random = np.random.default_rng(seed)
    source, target = seen(SOURCE, affine((4, -6, 10), (5, 3, -4), SHEARED)), seen(TARGET)
    turn, shift = random.normal(size=(2, 3))
    move = affine(25 * turn / np.linalg.norm(turn), 90 * shift / np.linalg.norm(shift))
    moved = Volume(source.array, Grid(source.grid.shape, move @ source.grid.affine))
    assert error(np.linalg.inv(move) @ registered(moved, target), registered(source, target)) < 0.3


def test_every_stored_orientation_of_the_source_gives_the_same_map() -> None:
    grid = Grid.from_parts((24, 26, 22), (3.5, 3.0, 4.0), (-40, -38, -46))
    source, target = seen(grid, affine((0, 5, 8), (4, 0, -3))), seen(TARGET)
    expected = registered(source, target)
    for axes, flips in list(itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3)))[
        ::7
    ]:
        array = source.array[0].transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
        columns, corner = [2 - a for a in axes[::-1]], np.zeros(3)
        matrix = grid.affine.copy()
        for new, old in enumerate(columns):
            flip = flips[2 - new]
            matrix[:3, new] = grid.affine[:3, old] * (-1 if flip else 1)
            corner[old] = grid.size[old] - 1 if flip else 0
        matrix[:3, 3] = grid.to_world(corner)
        stored = Volume(np.ascontiguousarray(array), Grid(array.shape, matrix))
        assert np.array_equal(registered(stored, target), expected), (axes, flips)


def test_a_true_oblique_header_is_used() -> None:
    direction = Rotation.from_euler("zyx", (38, 20, -15), degrees=True).as_matrix()
    size = np.array((40, 40, 36))
    oblique = Grid.from_parts(size[::-1], 2.6, -direction @ ((size - 1) / 2 * 2.6), direction)
    assert error(registered(seen(oblique), seen(TARGET)), np.eye(4)) < 0.25


def test_a_header_that_is_right_leaves_its_candidate_hardly_anything_to_find() -> None:
    direction = Rotation.from_rotvec(np.radians((32, -32, 32))).as_matrix()
    oblique = Grid.from_parts((36, 40, 40), (2.6,) * 3, direction @ np.full(3, -50.0), direction)
    _, record = affine_register(seen(oblique), seen(TARGET), settings=AffineSettings(turn_count=0), execution=RUN)
    *searched, claimed = record["candidates"]
    assert len(searched) == 2  # without a turn, and turned as the header says
    assert claimed["iterations"] <= 2
    assert claimed["cost"] == pytest.approx(min(candidate["cost"] for candidate in searched), abs=0.005)
    assert error(np.array(record["matrix"]), np.eye(4)) < 0.25


@pytest.mark.parametrize("axis", range(3))
def test_half_of_the_source_may_be_missing(axis: int) -> None:
    wanted = affine((5, 8, -6), (4, -5, 3))
    whole = seen(SOURCE, wanted)
    part = [slice(None)] * 3
    part[axis] = slice(0, SOURCE.shape[axis] // 2)
    array = np.ascontiguousarray(whole.array[0][tuple(part)])
    half = Volume(array, Grid(array.shape, SOURCE.affine))
    points = np.random.default_rng(1).uniform(-35, 35, (3000, 3))
    index = half.grid.to_index(points @ wanted[:3, :3].T + wanted[:3, 3])
    points = points[((index > 0) & (index < half.grid.size - 1)).all(1)]
    assert error(registered(half, seen(TARGET)), wanted, points) < 0.6


def test_swapping_the_images_inverts_the_map() -> None:
    source, target = seen(SOURCE, affine((4, -6, 10), (5, 3, -4), SHEARED)), seen(TARGET)
    assert error(registered(target, source) @ registered(source, target), np.eye(4)) < 0.3


def test_scale_and_offset_of_the_intensities_do_not_matter() -> None:
    wanted = affine((0, 0, 12), (9, -6, 4))
    source = seen(SOURCE, wanted)
    assert error(registered(source.replace(source.array * 0.01 + 7), seen(TARGET)), wanted) < 0.25


@pytest.mark.parametrize("stage", ["rigid", "similarity"])
def test_a_stage_limits_the_degrees_of_freedom(stage: str) -> None:
    wanted = affine((4, -6, 10), (5, 3, -4), 1.07 * np.eye(3))
    found = registered(seen(SOURCE, wanted), seen(TARGET), AffineSettings(stage=stage))
    gram = found[:3, :3].T @ found[:3, :3]
    size = 1.0 if stage == "rigid" else gram[0, 0]
    assert np.abs(gram - size * np.eye(3)).max() < 1e-9
    assert np.sqrt(gram[0, 0]) == pytest.approx(1.0 if stage == "rigid" else 1.07, abs=0.005)


@pytest.mark.parametrize("axis", range(3))
def test_single_slices_are_aligned_in_their_plane(axis: int) -> None:
    """``axis`` (x, y, z) is the one of the single slice."""
    turn, shift, shape, spacing = np.zeros(3), np.array([6.0, -4.0, 5.0]), [60, 60, 60], np.full(3, 1.6)
    turn[axis], shift[axis], shape[2 - axis], spacing[axis] = 14, 0, 1, 5.0
    wanted = affine(turn, shift)
    origin = -(np.array(shape[::-1]) - 1) / 2 * spacing
    grid = Grid.from_parts(shape, spacing, origin)
    points = np.random.default_rng(1).uniform(-35, 35, (300, 3))
    points[:, axis] = 0
    _, record = affine_register(seen(grid, wanted), seen(grid), execution=RUN)
    found = np.array(record["matrix"])
    assert error(found, wanted, points) < 0.3
    assert record["turn_degrees"] == pytest.approx(14, abs=0.5)
    assert np.allclose(found[axis, :3], np.eye(3)[axis], atol=1e-9)
    assert np.allclose(found[:3, axis], np.eye(3)[axis], atol=1e-9)


def test_masked_voxels_do_not_count() -> None:
    wanted = affine((0, 0, 12), (9, -6, 4))
    source, target = seen(SOURCE, wanted), seen(TARGET)
    spoilt, mask = target.array.copy(), np.ones((1, *TARGET.shape), np.uint8)
    spoilt[..., :12], mask[..., :12] = np.random.default_rng(0).normal(0, 4000, spoilt[..., :12].shape), 0
    _, record = affine_register(source, target.replace(spoilt), target_mask=target.replace(mask), execution=RUN)
    points = np.random.default_rng(1).uniform(-35, 35, (3000, 3))
    points = points[TARGET.to_index(points)[:, 0] > 12]
    assert error(np.array(record["matrix"]), wanted, points) < 0.4


@pytest.mark.parametrize("masked", ["target", "both"])
def test_a_small_part_is_aligned_by_itself(masked: str) -> None:
    wanted, centre = affine((0, 0, 12), (9, -6, 4)), np.array([10.0, 0, 0])

    def part(grid: Grid, matrix: np.ndarray) -> Volume:
        """What lies within 24 mm of the centre, a fifteenth of the view."""
        points = lattice(grid) @ np.linalg.inv(matrix)[:3, :3].T + np.linalg.inv(matrix)[:3, 3]
        return Volume((np.linalg.norm(points - centre, axis=-1) < 24).astype(np.uint8), grid)

    source, target = seen(SOURCE, wanted), seen(TARGET)
    masks = {"target_mask": part(TARGET, np.eye(4))}
    if masked == "both":
        masks["source_mask"] = part(SOURCE, wanted)
    _, record = affine_register(source, target, **masks, execution=RUN)
    points = np.random.default_rng(1).uniform(-24, 24, (3000, 3))
    points = points[np.linalg.norm(points, axis=1) < 24] + centre
    assert error(np.array(record["matrix"]), wanted, points) < 0.6


def test_a_mask_that_leaves_everything_is_none() -> None:
    source, target = seen(SOURCE, affine((4, -6, 10), (5, 3, -4))), seen(TARGET)
    masks = {f"{name}_mask": v.replace(np.ones_like(v.array)) for name, v in (("source", source), ("target", target))}
    _, record = affine_register(source, target, **masks, execution=RUN)
    assert np.array_equal(np.array(record["matrix"]), registered(source, target))


def test_channels_are_averaged() -> None:
    wanted = affine((0, 0, 12), (9, -6, 4))

    def pair(grid: Grid, matrix: np.ndarray | None) -> Volume:
        return Volume(np.concatenate([seen(grid, matrix, 0).array, -5 * seen(grid, matrix, 1).array]), grid)

    assert error(registered(pair(SOURCE, wanted), pair(TARGET, None)), wanted) < 0.25


def test_a_channel_that_was_not_acquired_leaves_the_others_to_align_by() -> None:
    wanted = affine((0, 0, 12), (9, -6, 4))

    def pair(grid: Grid, matrix: np.ndarray | None, second: np.ndarray) -> Volume:
        return Volume(np.concatenate([seen(grid, matrix, 0).array, second]), grid)

    source = pair(SOURCE, wanted, np.zeros((1, *SOURCE.shape), np.float32))
    for second in (np.zeros((1, *TARGET.shape), np.float32), seen(TARGET, None, 1).array):
        assert error(registered(source, pair(TARGET, None, second)), wanted) < 0.25


def test_a_single_level_has_all_degrees_of_freedom_too() -> None:
    wanted = affine((4, -6, 10), (5, 3, -4), SHEARED)
    assert error(registered(seen(SOURCE, wanted), seen(TARGET), AffineSettings(voxels=(10_000,))), wanted) < 0.8


def test_the_same_call_gives_the_same_bytes() -> None:
    source, target = seen(SOURCE, affine((4, -6, 10), (5, 3, -4), SHEARED)), seen(TARGET)
    assert np.array_equal(registered(source, target), registered(source, target))


def test_the_record_is_json_and_so_are_the_settings() -> None:
    settings = AffineSettings(stage="rigid", clamp=((-100, 100),))
    _, record = affine_register(seen(SOURCE), seen(TARGET), settings=settings, execution=RUN)
    back = json.loads(json.dumps(record, allow_nan=False))
    assert AffineSettings(**back["settings"]) == settings
    assert back["correlation"] > 0.95
    assert [level["stage"] for level in back["levels"]] == ["rigid"] * 3
    assert AffineSettings(**json.loads(json.dumps(asdict(AffineSettings())))) == AffineSettings()


def test_it_stops_on_request() -> None:
    with pytest.raises(Cancelled):
        prealign(seen(SOURCE), seen(TARGET), execution=Execution(threads=1, cancelled=lambda: True))


def test_images_that_do_not_fit_each_other_are_refused() -> None:
    good = seen(TARGET)
    two = Volume(np.concatenate([good.array, good.array]), TARGET)
    flat = good.replace(np.zeros_like(good.array))
    slice_grid = Grid.from_parts((1, 36, 36))
    plane = Volume(np.random.default_rng(0).normal(size=(1, 36, 36)), slice_grid)
    line = Volume(np.arange(30.0).reshape(1, 1, 30), Grid.from_parts((1, 1, 30)))
    for source, target, said in (
        (two, good, "different channels"),
        (flat, good, "source is constant"),
        (good, flat, "target is constant"),
        (plane, good, "single slice"),
        (line, line, "line of voxels"),
    ):
        with pytest.raises(VolumeError, match=said):
            prealign(source, target, execution=RUN)


def test_masks_that_do_not_fit_are_refused() -> None:
    good = seen(TARGET)
    elsewhere = Volume(np.ones((10, 10, 10)), Grid.from_parts((10, 10, 10)))
    with pytest.raises(VolumeError, match="source mask does not lie on its image's grid"):
        prealign(good, good, source_mask=elsewhere, execution=RUN)
    with pytest.raises(VolumeError, match="target mask is empty"):
        prealign(good, good, target_mask=good.replace(np.zeros(TARGET.shape)), execution=RUN)


def test_images_with_nothing_in_common_are_refused() -> None:
    good = seen(TARGET)
    far = np.zeros((1, *TARGET.shape), np.uint8)
    far[:, :2, :2, :2] = 1
    with pytest.raises(RegistrationError, match="no placement makes the images alike"):
        prealign(good, good, target_mask=good.replace(far), execution=RUN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage", "projective"),
        ("clamp", ((3.0, 3.0),)),
        ("voxels", (1000, 4000)),
        ("voxels", ()),
        ("turn_step", 0.0),
        ("candidates", 0),
        ("minimum_overlap", 0.0),
        ("missing", 1.5),
        ("regularisation", 0.0),
        ("iterations", 0),
    ],
)
def test_settings_without_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        AffineSettings(**{name: value})


def chest(folder: Path, case: str) -> tuple[Volume, Volume]:
    image = read_volume(folder / "chest-ct" / "imagesTr" / f"{case}_0000.nii.gz")
    return image, read_labels(folder / "chest-ct" / "labelsTr" / f"{case}.nii.gz")


def lungs(labels: Volume) -> np.ndarray:
    index = np.argwhere(labels.array[0] > 0)[:, ::-1]
    return labels.grid.to_world(index[:: len(index) // 3000])


def test_a_chest_deformed_by_simpleitk_is_brought_back(data_folder: Path) -> None:
    image, labels = chest(data_folder, "chest_103")
    centre = image.grid.centre
    wanted = affine((6, -5, 9), (25, -15, 20), SHEARED)
    wanted[:3, 3] += centre - wanted[:3, :3] @ centre
    stored = sitk.GetImageFromArray(image.array[0])
    stored.SetSpacing(image.grid.spacing.tolist())
    inverse = np.linalg.inv(wanted)
    transform = sitk.AffineTransform(inverse[:3, :3].ravel().tolist(), inverse[:3, 3].tolist())
    warped = sitk.Resample(stored, stored, transform, sitk.sitkLinear, -1000.0)
    source = Volume(sitk.GetArrayFromImage(warped), image.grid)
    assert error(registered(source, image), wanted, lungs(labels)) < 1.0


def test_lungs_of_another_subject_overlap_as_after_a_good_affine(data_folder: Path) -> None:
    (source, source_labels), (target, target_labels) = chest(data_folder, "chest_102"), chest(data_folder, "chest_101")
    warped = prealign(source, target, execution=RUN).warp(source_labels, target.grid, interpolation="nearest", fill=0)
    for label, least in ((1, 0.77), (2, 0.64)):
        a, b = warped.array == label, target_labels.array == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least


@pytest.mark.parametrize("masked", ["target", "source", "both"])
def test_lungs_are_aligned_where_only_they_and_their_edge_count(data_folder: Path, masked: str) -> None:
    (source, source_labels), (target, target_labels) = chest(data_folder, "chest_201"), chest(data_folder, "chest_101")

    def around(labels: Volume) -> Volume:
        """The lungs and 6 mm around them."""
        return labels.replace(ndimage.binary_dilation(labels.array[0] > 0, iterations=3)[None].astype(np.uint8))

    given = {"target": target_labels, "source": source_labels}
    masks = {f"{name}_mask": around(labels) for name, labels in given.items() if masked in (name, "both")}
    warped = prealign(source, target, **masks, execution=RUN).warp(source_labels, target.grid, interpolation="nearest")
    for label in (1, 2):
        a, b = warped.array == label, target_labels.array == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("chest_102", "chest_101"), ("chest_201", "chest_103")])
def test_fifty_starts_end_in_one_place(data_folder: Path, pair: tuple[str, str]) -> None:
    (source, _), (target, labels) = chest(data_folder, pair[0]), chest(data_folder, pair[1])
    still, points = registered(source, target), lungs(labels)
    random = np.random.default_rng(0)
    for _ in range(50):
        turn, shift = random.normal(size=(2, 3))
        move = affine(
            random.uniform(0, 15) * turn / np.linalg.norm(turn), random.uniform(0, 40) * shift / np.linalg.norm(shift)
        )
        move[:3, 3] += source.grid.centre - move[:3, :3] @ source.grid.centre
        moved = Volume(source.array, Grid(source.grid.shape, move @ source.grid.affine))
        assert error(np.linalg.inv(move) @ registered(moved, target), still, points) < 2.0

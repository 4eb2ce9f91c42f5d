"""The overview that tells the region before a scan is mapped, and the part of an atlas's space that is mapped then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from atlasnet.prediction.answers import Answer, MappedAnswer
from atlasnet.prediction.member import View
from atlasnet.training.mapping import map_image, map_labels, region_grid, to_slices
from atlasnet.training.overview import NOTHING_SEEN, STRUCTURE, VOXELS, Overview
from atlasnet.training.region import Region
from atlasnet.training.store import IGNORED
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume

VALUES = (0, 3, 7)


def turned(random: np.random.Generator, *, shift: float = 3.0) -> Transform:
    matrix = np.eye(4)
    scaled = np.diag(random.uniform(0.7, 1.6, 3))
    matrix[:3, :3] = Rotation.from_euler("xyz", random.uniform(-15, 15, 3), degrees=True).as_matrix() @ scaled
    matrix[:3, 3] = random.uniform(-shift, shift, 3)
    return Transform.affine(matrix)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((180, 256, 256), (1, 1, 1)),
        ((40, 512, 512), (0.7, 0.7, 5)),
        ((1, 3000, 2000), (1, 1, 1)),
        ((9, 9, 9), (1, 1, 1)),
    ],
)
def test_an_overview_is_every_so_many_th_voxel_of_a_grid_and_never_large(shape: tuple, spacing: tuple) -> None:
    grid = Grid.from_parts(shape, spacing, origin=(5.0, -3.0, 8.0))
    overview = Overview.of(grid)
    lattice = overview.lattice
    assert lattice.voxels <= VOXELS
    assert lattice.voxels > 0.4 * VOXELS or lattice.matches(grid)
    index = grid.to_index(lattice.corners())
    np.testing.assert_allclose(index, np.rint(index), atol=1e-9)
    assert (index >= -1e-9).all()
    assert (index <= grid.size - 1 + 1e-9).all()
    assert (grid.size - 1 - index.max(0) < overview.steps[::-1]).all()


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("seed", range(15))
def test_the_region_of_an_overview_misses_no_structure_however_small(seed: int, axis: str) -> None:
    random = np.random.default_rng(seed)
    source = Grid.from_parts((30, 34, 38), (1.3, 1.0, 0.9), origin=random.uniform(-5, 5, 3))
    labels = np.zeros((1, *source.shape), np.uint8)
    for place in random.integers(9, 24, (4, 3)):  # single voxels
        labels[0, *place] = random.choice(VALUES[1:])
    atlas = Grid.from_parts((48, 58, 60), (0.7, 0.6, 0.8), origin=random.uniform(-5, 5, 3))
    transform = turned(random)
    overview = Overview(atlas, tuple(random.integers(1, 5, 3).tolist()))
    seen = overview.map(Volume(labels, source), VALUES, transform)
    region = overview.region([seen], axis, (0, 0, 0))
    mapped = map_labels(Volume(labels, source), VALUES, transform, atlas)
    places = np.argwhere(to_slices(mapped.array, axis)[0] % IGNORED)
    assert (places >= region.start).all()
    assert (places < region.stop).all()
    # The centres of the structures lie in it, and it is no wider than their voxels and those of the overview ask for.
    centres = torch.from_numpy(source.to_world(np.argwhere(labels[0])[:, ::-1].astype(float)))
    order = ["xyz".index(side) for side in (axis, *"zyx".replace(axis, ""))]
    index = atlas.to_index(transform.backward(centres).numpy())
    shown = ((index >= 0) & (index <= atlas.size - 1)).all(1)
    everywhere = np.clip(index, 0, atlas.size - 1)[:, order]
    index = index[shown][:, order]
    assert (index >= np.array(region.start) - 0.5).all()
    assert (index <= np.array(region.stop) - 0.5).all()
    room = 3 * (overview.lattice.spacing.max() + source.spacing.max()) / atlas.spacing.min()
    assert (everywhere.min(0) - region.start <= room).all() or not shown.any()
    assert (region.stop - everywhere.max(0) <= room).all() or not shown.any()


def test_outside_of_its_organ_mask_and_its_scan_a_subject_shows_nothing() -> None:
    grid = Grid.from_parts((6, 8, 10))
    labels, mask = np.full((1, 6, 8, 10), 3, np.uint8), np.zeros((1, 6, 8, 10), np.uint8)
    mask[:, 2:] = 1
    shifted = np.eye(4)
    shifted[0, 3] = -4.0
    found = Overview(grid, (1, 1, 1)).map(Volume(labels, grid), VALUES, Transform.affine(shifted), Volume(mask, grid))
    assert (found[:, :, :4] == NOTHING_SEEN).all()  # columns that read left of the scan
    assert (found[1, :, 4:] == STRUCTURE).all()  # beside a structure: widened by a voxel
    assert (found[0, :, 4:] == NOTHING_SEEN).all()
    assert (found[2:, :, 4:] == STRUCTURE).all()


def test_what_is_not_annotated_may_hold_structures_where_organ_masks_and_scans_show_something() -> None:
    grid = Grid.from_parts((40, 8, 10))
    labels, mask = np.zeros((1, 40, 8, 10), np.uint8), np.zeros((1, 40, 8, 10), np.uint8)
    mask[:, 4:36] = 1
    labels[:, 20, 4, 5] = 3
    labels[:, 30:] = 9  # nobody annotated the upper slices
    overview = Overview(grid, (1, 1, 1))
    seen = overview.map(Volume(labels, grid), VALUES, Transform.identity(), Volume(mask, grid))
    assert set(np.unique(seen)) == {0, STRUCTURE, NOTHING_SEEN, IGNORED}
    complete = Region((17, 1, 2), (24, 8, 9))  # the voxel, widened by one, and two around it
    assert overview.region([seen], "z", (2, 2, 2)) == complete
    assert overview.region([seen], "z", (2, 2, 2), partly=True) == Region((17, 0, 0), (38, 8, 10))
    annotated = np.where(seen == IGNORED, np.uint8(0), seen)
    assert overview.region([seen, annotated], "z", (2, 2, 2), partly=True) == complete


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_the_grid_of_a_region_is_the_part_of_the_working_grid(axis: str) -> None:
    random = np.random.default_rng(1)
    oblique = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    grid = Grid.from_parts((12, 14, 16), (1.0, 1.5, 2.0), origin=(1.0, 2.0, 3.0), direction=oblique)
    region = Region((2, 3, 4), (9, 11, 10))
    part = region_grid(grid, region, axis)
    source = Volume(random.normal(size=(2, 12, 14, 16)).astype(np.float32), grid)
    transform = turned(random, shift=1.0)
    whole = region.crop(to_slices(map_image(source, transform, grid).array, axis))
    np.testing.assert_allclose(to_slices(map_image(source, transform, part).array, axis), whole, atol=1e-4)
    assert region_grid(grid, None, axis) is grid


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize(
    "region", [Region((2, 3, 4), (9, 11, 10)), Region((0, 0, 0), (5, 6, 7)), Region((4, 4, 4), (12, 12, 12)), None]
)
def test_an_answer_about_a_region_is_that_of_the_whole_atlas_with_background_around(
    region: Region | None, axis: str
) -> None:
    random = np.random.default_rng(3)
    grid = Grid.from_parts((12, 12, 12), (1.0, 1.5, 2.0), origin=(1.0, 2.0, 3.0))
    view = View.of(grid, region, axis)
    inside = region or Region.whole((12, 12, 12))
    said = random.dirichlet((1, 1, 1), size=tuple(np.subtract(inside.stop, inside.start))).transpose(3, 0, 1, 2)
    whole = inside.paste(said.astype(np.float16), (12, 12, 12))
    part = view.asked.paste(said.astype(np.float16), to_slices(np.empty((1, *view.part.shape)), axis).shape[1:])
    scan = Grid.from_parts((17, 18, 19), (1.1, 1.2, 1.6), origin=(0.0, 0.0, 2.0))
    to_atlas = turned(random)
    back = {"z": (0, 1, 2, 3), "y": (0, 2, 1, 3), "x": (0, 2, 3, 1)}[axis]
    expected, found = (
        MappedAnswer(
            Answer(torch.from_numpy(np.ascontiguousarray(array.transpose(back))), grid, to_atlas, 1.0, start=start),
            scan,
            device=torch.device("cpu"),
        ).read(0, 17)
        for array, start in ((whole, (0, 0, 0)), (part, view.start))
    )
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0][:, found[1]], expected[0][:, found[1]], atol=1e-4, rtol=0)
    assert found[1].any()
    assert not found[1].all()

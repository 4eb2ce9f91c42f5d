"""What of a scan a map takes into an atlas, and into a part of it: told without mapping every voxel, as if all were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from atlasnet.prediction import answers
from atlasnet.prediction.answers import Answer, MappedAnswer
from atlasnet.transform import Coverage, DisplacementMap, Transform, part_box, repair
from atlasnet.volume import Grid
from atlasnet.volume.sampling import inside

CPU = torch.device("cpu")
ATLAS = Grid.from_parts((22, 26, 30), (2.0, 1.5, 1.2), origin=(5.0, -10.0, 100.0))


def oblique(seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """A scan that is turned against the atlas and shares its centre but for a few millimetres."""
    random = np.random.default_rng(seed)
    turned = Rotation.random(random_state=seed).as_matrix()
    half = turned * spacing @ (np.array(shape[::-1]) - 1) / 2
    return Grid.from_parts(shape, spacing, ATLAS.centre + random.uniform(-6, 6, 3) - half, turned)


def deformed(seed: int, grid: Grid) -> Transform:
    """A smooth map without folds between two grids, several millimetres large."""
    random = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(random.standard_normal(grid.shape), 5, mode="nearest") for _ in range(3)])
    moved = torch.from_numpy((4 * field / np.abs(field).max()).astype(np.float32))
    return Transform.from_displacement(DisplacementMap(repair(moved, grid)[0], grid))


SCANS = [
    ((40, 44, 48), (1.5, 1.4, 1.6)),  # wider than the atlas
    ((14, 16, 18), (1.1, 1.3, 1.2)),  # within it
    ((9, 60, 60), (1.0, 1.0, 6.0)),  # thick slices
    ((1, 50, 40), (1.0, 1.0, 1.0)),  # a single one
    ((5, 4, 2), (20.0, 20.0, 20.0)),  # voxels as large as the atlas
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shape", "spacing"), SCANS)
def test_the_voxels_that_an_atlas_reaches_are_those_that_are_mapped_into_it(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    scan = oblique(seed, shape, spacing)
    transform = deformed(seed, scan) if min(shape) > 1 else Transform.identity()
    coverage = Coverage(transform, ATLAS, scan, device=CPU)
    thickness = 1 + seed
    slabs = [(z0, min(z0 + thickness, shape[0])) for z0 in range(0, shape[0], thickness)]
    found = torch.cat([coverage.slab(z0, z1) for z0, z1 in slabs])
    assert torch.equal(found, inside(transform.index_slab(ATLAS, scan, 0, shape[0]), ATLAS.shape))
    assert found.any()


def test_a_scan_that_lies_elsewhere_is_not_reached() -> None:
    scan = Grid.from_parts((20, 20, 20), origin=(500.0, 0.0, 0.0))
    assert not Coverage(Transform.identity(), ATLAS, scan, device=CPU).slab(0, 20).any()
    box = part_box(Transform.identity(), ATLAS, scan)
    assert any(side.start >= side.stop for side in box)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shape", "spacing"), SCANS)
def test_the_box_of_a_part_holds_every_voxel_that_is_mapped_into_it(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    scan = oblique(seed, shape, spacing)
    transform = deformed(seed, scan) if min(shape) > 1 else Transform.identity()
    part = ATLAS.padded([-8, -9, -6], [-9, -7, -5])
    index = transform.index_slab(part, scan, 0, shape[0])
    within = ((index >= 0) & (index <= index.new_tensor(part.size - 1))).all(-1)
    box = part_box(transform, part, scan)
    around = torch.ones_like(within)
    around[box] = False
    assert not (within & around).any()
    if shape == (40, 44, 48):
        assert within.any()
        assert around.float().mean() > 0.5


def answer(start: tuple[int, int, int], shape: tuple[int, int, int], transform: Transform, border: bool) -> Answer:
    """Random probabilities of a part of the atlas, with a border of background where the part does not end with it."""
    said = torch.from_numpy(np.random.default_rng(5).dirichlet((1, 1, 1), size=shape)).permute(3, 0, 1, 2).half()
    if border:
        inner = tuple(
            slice(int(first > 0), n - int(first + n < whole))
            for first, n, whole in zip(start, shape, ATLAS.shape, strict=True)
        )
        around = torch.zeros_like(said)
        around[0] = 1
        around[(slice(None), *inner)] = said[(slice(None), *inner)]
        said = around
    return Answer(said, ATLAS, transform, 1.0, start=start)


@pytest.mark.parametrize(
    ("start", "shape"), [((6, 8, 9), (8, 9, 7)), ((0, 8, 9), (8, 9, 7)), ((14, 20, 20), (8, 6, 10))]
)
def test_what_an_atlas_says_is_read_where_it_lies_and_is_background_elsewhere(
    start: tuple[int, int, int], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = oblique(1, *SCANS[0])
    asked = answer(start, shape, deformed(1, scan), border=True)
    assert asked.is_background_beyond
    in_part = MappedAnswer(asked, scan, device=CPU)
    monkeypatch.setattr(answers, "MOST", 0.0)  # no part is worth a box
    everywhere = MappedAnswer(asked, scan, device=CPU)
    for z0, z1 in [(0, 5), (5, 6), (6, 40)]:
        (found, reached, _), (expected, covered, _) = in_part.read(z0, z1), everywhere.read(z0, z1)
        assert torch.equal(reached, covered)
        torch.testing.assert_close(found[:, covered], expected[:, covered], atol=1e-5, rtol=0)
    assert (in_part.read(0, 40)[0][0] < 1).any()


def test_an_atlas_whose_part_ends_in_a_structure_says_it_beyond() -> None:
    scan = oblique(1, *SCANS[0])
    assert not answer((6, 8, 9), (8, 9, 7), Transform.identity(), border=False).is_background_beyond
    cut = answer((0, 8, 9), (8, 9, 7), Transform.identity(), border=True)
    cut.probabilities[0, -1] = 0.5
    assert not cut.is_background_beyond
    whole = answer((0, 0, 0), ATLAS.shape, Transform.identity(), border=False)
    assert whole.is_background_beyond  # it has no say beyond the atlas
    said, covered, _ = MappedAnswer(whole, scan, device=CPU).read(0, 40)
    assert (said[0][covered] < 1).all()

"""Subjects as networks see them: references that are annotated in part, and oblique slices."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from atlasnet.cohort import Normalisation, Plan
from atlasnet.training.mapping import map_labels, prepare, working_grid
from atlasnet.training.store import IGNORED
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical

SHAPE = (12, 16, 18)
NOBODY = 9


def prism() -> NDArray[np.uint8]:
    """Two labels in a round, the same in every slice."""
    _, y, x = np.indices(SHAPE)
    radius = np.hypot(y - 7.2, x - 8.6)
    return np.select([radius < 3, radius < 6], [4, 2], 0).astype(np.uint8)


def mapped(labels: NDArray[np.uint8], shift: tuple[float, float, float]) -> NDArray[np.uint8]:
    """(z, y, x) on a grid that is shifted by parts of a voxel, (x, y, z)."""
    grid = Grid.from_parts(SHAPE, (1, 1, 1), origin=shift)
    volume = Volume(labels, Grid.from_parts(SHAPE, (1, 1, 1)))
    return map_labels(volume, (0, 2, 4), Transform.identity(), grid).array[0]


@pytest.mark.parametrize("shift", [(0.5, 0.5, 0.5), (0.3, 0.5, 0.45), (0.0, 0.0, 0.0), (0.5, 0.5, 0.2)])
def test_an_annotated_slice_keeps_its_boundaries(shift: tuple[float, float, float]) -> None:
    full = prism()
    thin = np.full_like(full, NOBODY)
    thin[5] = full[5]
    expected, found = mapped(full, shift), mapped(thin, shift)
    inside = expected != IGNORED
    counted = found != IGNORED
    slices = np.flatnonzero(counted.any(axis=(1, 2)))
    assert len(slices) == 1
    assert np.array_equal(counted[slices[0]], inside[slices[0]])
    assert np.array_equal(found[counted], expected[counted])


def test_what_nobody_annotated_is_ignored_up_to_the_nearest_voxel() -> None:
    labels = prism()
    labels[:, :, 9:] = NOBODY
    for shift, first in ((0.2, 9), (-0.3, 9), (0.7, 8)):
        found = mapped(labels, (shift, 0, 0))[2:-2, 2:-2, 2:-2]
        ignored = np.flatnonzero((found == IGNORED).all(axis=(0, 1))) + 2
        assert ignored[0] == first
        assert (found[:, :, : first - 2] != IGNORED).all()


def test_whole_references_are_mapped_as_ever() -> None:
    labels = prism()
    found = mapped(labels, (0, 0, 0))
    assert np.array_equal(np.array([0, 2, 4])[found], labels)


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_networks_see_oblique_slices_as_they_were_acquired(normal: int) -> None:
    """Whichever axis of the patient is nearest to their normal."""
    cosines = np.full(3, 0.5)
    cosines[normal] = np.sqrt(0.5)
    turn, _ = Rotation.align_vectors(cosines[None], np.array([[0.0, 0.0, 1.0]]))
    grid = canonical(Grid.from_parts((9, 20, 22), (1.4, 1.4, 8.0), direction=turn.as_matrix()))[0]
    assert int(grid.spacing.argmax()) == normal
    plan = Plan((1.4, 8.0, 1.4), "y", (Normalisation("MR", "percentiles"),), (None,), (1.4, 8.0, 1.4))
    seen = working_grid(grid, plan)
    assert seen.spacing == pytest.approx([1.4, 8.0, 1.4])
    assert seen.shape[1] == 9
    assert abs(seen.direction[:, 1] @ cosines) == pytest.approx(1, abs=1e-4)
    sharp = Volume(np.random.default_rng(0).integers(0, 2, (1, *grid.shape)).astype(np.float32), grid)
    np.testing.assert_array_equal(prepare(sharp, plan).array, plan.normalise(sharp).array)

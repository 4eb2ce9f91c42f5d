"""The extremes of a map, looked for in few voxels, against those of all voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasnet.transform import (
    AffineMap,
    DisplacementMap,
    PointMap,
    Transform,
    compose,
    corner_jacobians,
    displacement_on,
    extremes_on,
)
from atlasnet.transform.extremes import _Cells
from atlasnet.volume import Grid

SHEARED = AffineMap(np.array([[1.1, 0.1, 0, 7], [0, 0.9, 0.05, -3], [0.02, 0, 1.2, 5], [0, 0, 0, 1.0]]))
# A direction of axes other than those of the patient.
TURNED = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
OBLIQUE = TURNED @ np.array([[0.8, 0.36, -0.48], [-0.6, 0.48, -0.64], [0.0, 0.8, 0.6]])


def field_of(spacing: float, strength: float, *, seed: int = 0, direction=None) -> DisplacementMap:
    """Calm, but for a few voxels in its middle: (x, y, z) vectors in mm."""
    random = np.random.default_rng(seed)
    grid = Grid.from_parts((11, 13, 12), (spacing,) * 3, (1.0, 2.0, 3.0), direction)
    field = 0.02 * spacing * random.standard_normal((3, *grid.shape))
    field[:, 5:7, 6:8, 5:7] += strength * spacing * random.standard_normal((3, 2, 2, 2))
    return DisplacementMap(torch.from_numpy(field), grid)


def finer(grid: Grid, factors: tuple[float, float, float]) -> Grid:
    """The same extent in other voxels (x, y, z)."""
    size = [max(1, round(n / f)) for n, f in zip(grid.size, factors, strict=True)]
    spacing = grid.spacing * grid.size / size
    corner = grid.to_world((grid.size / size - 1) / 2)
    return Grid.from_parts(tuple(size[::-1]), tuple(spacing), tuple(corner), grid.direction)


def of_all(point_map: PointMap, grid: Grid) -> tuple[float, int, float]:
    displacement = displacement_on(point_map, grid)
    corners = corner_jacobians(displacement, grid)
    return float(corners.min()), int((corners <= 0).sum()), float(displacement.square().sum(0).max().sqrt())


def require_bounds(point_map: PointMap, grid: Grid) -> float:
    """No voxel passes the bounds of its cell but by rounding; the most by which a Jacobian does."""
    cells = _Cells.of(point_map, grid)
    assert cells is not None
    z, y, x = cells.places
    displacement = displacement_on(point_map, grid)
    below = cells.least[z][:, y][:, :, x] - corner_jacobians(displacement, grid)
    assert float(below.max()) < cells.slack
    beyond = displacement.square().sum(0).sqrt() - cells.longest[z][:, y][:, :, x]
    assert float(beyond.max()) < cells.rounding
    return float(below.max())


@pytest.mark.parametrize(
    ("strength", "factors", "direction"),
    [(0.3, (0.25, 0.25, 0.7), None), (2.0, (0.3, 0.4, 0.5), None), (0.3, (0.2, 0.2, 1.6), TURNED)],
    ids=["smooth", "folded", "thick slices, turned"],
)
def test_extremes_are_those_of_all_voxels_of_which_few_are_looked_at(strength, factors, direction, monkeypatch):
    field = field_of(4.0, strength, direction=direction)
    grid, looked, look = finer(field.grid, factors), [], _Cells._at
    monkeypatch.setattr("atlasnet.transform.extremes.FIRST", 5)
    monkeypatch.setattr(
        _Cells, "_at", lambda cells, wanted, low: looked.append(int(wanted.sum())) or look(cells, wanted, low)
    )
    for point_map in (field, compose(field, SHEARED)):
        expected = of_all(point_map, grid)
        assert (expected[1] > 0) == (strength > 1)
        looked.clear()
        found = extremes_on(point_map, grid)
        assert (found.least, found.folded, found.furthest) == expected
        assert 0 < sum(looked) < 0.3 * grid.voxels


@pytest.mark.parametrize(
    "kind",
    [
        "mirrored",
        "two fields",
        "coarser grid",
        "beyond the field",
        "turned grid",
        "flipped grid",
        "one slice",
        "affine",
        "nothing",
    ],
)
def test_every_voxel_is_looked_at_where_no_bound_is_known(kind, monkeypatch):
    field = field_of(4.0, 0.3)
    grid, point_map = finer(field.grid, (0.25, 0.25, 0.5)), compose(field, SHEARED)
    if kind == "mirrored":
        point_map = compose(field, AffineMap(np.diag([-1.0, 1, 1, 1])))
    elif kind == "two fields":
        point_map = compose(field, field_of(4.0, 0.2, seed=1))
    elif kind == "coarser grid":
        grid = finer(field.grid, (1.3, 1.3, 1.3))
    elif kind == "beyond the field":
        grid = grid.padded((9, 0, 0), (0, 0, 0))
    elif kind == "turned grid":
        turn = Transform.affine([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).forward.matrix
        grid = Grid(grid.shape, turn @ grid.affine)
    elif kind == "flipped grid":
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = grid.shape[2] - 1
        grid = Grid(grid.shape, grid.affine @ flip)
    elif kind == "one slice":
        grid = finer(field.grid, (0.1, 0.1, 11))
    elif kind in ("affine", "nothing"):
        point_map = SHEARED if kind == "affine" else compose()
    monkeypatch.setattr("atlasnet.transform.extremes.AT_ONCE", 5 * grid.shape[1] * grid.shape[2])
    found = extremes_on(point_map, grid)
    assert (found.least, found.folded, found.furthest) == of_all(point_map, grid)
    assert _Cells.of(point_map, grid) is None


@given(st.integers(0, 1000), st.floats(0.01, 1.5), st.floats(0.2, 0.6), st.floats(0.2, 1.8))
@settings(deadline=None, max_examples=30)
def test_no_voxel_passes_the_bounds_of_its_cell(seed, strength, across, along):
    field = field_of(3.0, strength, seed=seed)
    grid = finer(field.grid, (across, across, along))
    point_map = compose(field, SHEARED)
    if grid.voxels < 4 * field.grid.voxels:
        assert _Cells.of(point_map, grid) is None
        return
    require_bounds(point_map, grid)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_what_float32_loses_of_small_voxels_that_move_far_is_allowed_for(scale):
    grid = Grid.from_parts((20, 20, 20), (0.08,) * 3, (30.0, 50.0, -90.0), OBLIQUE)
    z, y, x = np.indices(grid.shape)
    # Between the borders the Jacobian is the same everywhere, and the bounds are what it is.
    field = np.einsum("ij,j...->i...", grid.affine[:3, :3], np.stack([0.02 * x, -0.03 * y, 0.01 * z]))
    far = AffineMap(np.diag([scale] * 3 + [1]) @ (SHEARED.matrix + np.pad([[300.0], [-200], [150]], ((0, 1), (3, 0)))))
    point_map, target = compose(DisplacementMap(torch.from_numpy(field), grid), far), finer(grid, (0.25,) * 3)
    assert require_bounds(point_map, target) > 0.002


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 5, 4), (6, 2, 1), (3, 6, 5)])
@pytest.mark.parametrize("border", [False, True], ids=["anywhere", "at the border"])
def test_extremes_of_rough_fields_whose_voxels_are_not_those_of_the_grid(shape, border, monkeypatch):
    monkeypatch.setattr("atlasnet.transform.extremes.FIRST", 3)
    monkeypatch.setattr("atlasnet.transform.extremes.MOST", 1.0)
    monkeypatch.setattr("atlasnet.transform.extremes.WORTH", 0)
    monkeypatch.setattr("atlasnet.transform.extremes.CELLS_AT_ONCE", 30)
    for seed in range(10):
        random = np.random.default_rng(seed)
        grid = Grid.from_parts(shape, (0.7, 3.0, 1.3), (-30.0, 8.0, 200.0), OBLIQUE)
        field = random.standard_normal((3, *shape)) * random.uniform(0.05, 2)
        if border:
            field[:, :-1] *= 0.05
        point_map = compose(DisplacementMap(torch.from_numpy(field), grid), SHEARED)
        # Up to a voxel beyond the field, in steps of a fifth to more than one and a half of its voxels.
        steps, first = random.uniform(0.2, 1.6, 3), random.uniform(-1, -0.3, 3)
        size = np.maximum(np.floor((grid.size - first) / steps).astype(int), 2)
        steps = np.minimum(steps, (grid.size - 0.01 - first) / (size - 1))
        target = Grid.from_parts(tuple(size[::-1]), tuple(steps * grid.spacing), tuple(grid.to_world(first)), OBLIQUE)
        require_bounds(point_map, target)
        found, (least, folded, furthest) = extremes_on(point_map, target), of_all(point_map, target)
        assert found.folded == folded
        assert (found.least, found.furthest) == pytest.approx((least, furthest), rel=1e-6)

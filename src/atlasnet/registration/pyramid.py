"""The image pyramid and the control grids on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.lattice import Lattice
from atlasnet.volume import Grid

# A level with fewer voxels along its second longest axis than this holds no anatomy to align.
SMALLEST_LEVEL = 7
# Along a short axis (few thick slices) a level keeps at least this many voxels, finer than its factor asks for.
SHORTEST_AXIS = 6


@dataclass(frozen=True)
class LevelSettings:
    """What one level asks for.

    Args:
        factor: voxel size of the level in voxels of the registration grid.
        radius: largest displacement in the label space, in voxels of the level; 0: no search.
        support: control point spacing, in voxels of the level.
        refinements: Gauss-Newton steps after the search.
    """

    factor: float
    radius: int
    support: float
    refinements: int = 0


@dataclass(frozen=True)
class Level:
    """One level on one target.

    Args:
        settings: what was asked for.
        grid: image grid, concentric with the target's.
        control: lattice of control points; reaches to the edge of the image grid or beyond.
        labels: displacements to choose from.
    """

    settings: LevelSettings
    grid: Grid
    control: Lattice
    labels: LabelSpace

    @property
    def image(self) -> Lattice:
        """The image grid as a lattice."""
        return Lattice.of(self.grid)


def registration_grid(target: Grid, spacing: float | None, budget: int) -> Grid:
    """The grid on which the registration works: same field of view and axes, about isotropic, never finer than the
    target.

    Args:
        target: the target's own grid.
        spacing: wanted distance between voxels, mm; None: the smallest with at most ``budget`` voxels.
        budget: voxels.
    """
    native = target.spacing
    if spacing is not None:
        return _coarsened(target, spacing)
    low, high = float(native.min()), float((target.size * native).max())
    if target.voxels <= budget:
        return _coarsened(target, low)
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _coarsened(target, middle).voxels <= budget else (middle, high)
    return _coarsened(target, high)


def build_levels(grid: Grid, settings: tuple[LevelSettings, ...]) -> list[Level]:
    """The levels that an image of this size can carry, coarsest first; the finest is always kept."""
    levels = []
    base = finest_spacing(grid)
    for number, wanted in enumerate(settings):
        level = _coarsened(grid, base * wanted.factor)
        if number < len(settings) - 1 and sorted(level.shape)[1] < SMALLEST_LEVEL:
            continue
        count = level.shape
        radii = tuple(wanted.radius if n > 1 else 0 for n in count)
        spacing = tuple(float(s) * wanted.support for s in reversed(level.spacing))
        control = tuple(math.ceil((n - 1) / wanted.support - 1e-6) + 1 for n in count)
        levels.append(
            Level(
                wanted,
                level,
                Lattice((control[0], control[1], control[2]), (spacing[0], spacing[1], spacing[2])),
                LabelSpace((radii[0], radii[1], radii[2])),
            )
        )
    return levels


def finest_spacing(grid: Grid) -> float:
    """The smallest distance between voxels, mm, of the axes that have several."""
    return float(grid.spacing[grid.size > 1].min()) if (grid.size > 1).any() else float(grid.spacing.min())


def _coarsened(grid: Grid, spacing: float) -> Grid:
    """``grid`` with voxels of at least ``spacing`` mm, fewer only along axes too short for it."""
    extent = grid.size * grid.spacing
    wanted = np.minimum(spacing, extent / np.minimum(SHORTEST_AXIS, grid.size))
    wanted = np.where(grid.size == 1, grid.spacing, np.maximum(grid.spacing, wanted))
    return grid.with_spacing(wanted)

"""The least Jacobian and the largest displacement of a map on a grid, looked for only where they can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atlasnet.transform.field import displacement_at, displacement_on
from atlasnet.transform.jacobian import corner_jacobians, in_voxels, least_determinant, vectors_in_voxels
from atlasnet.transform.maps import AffineMap, CompositeMap, DisplacementMap, PointMap
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import slabs

AT_ONCE = 1 << 23
"""Voxels that are measured at a time: a whole scan would take much memory."""

WORTH = 4
"""Voxels of the grid for each of the field from which on bounds cost less than they save."""

MOST = 0.2
"""Share of the cells up to which their voxels are looked at one by one, which takes three times as long for each."""

FIRST = 2000
"""Cells that promise the extremes, and are looked at before it is known which others may hold some."""

ROUNDING = 16 * float(torch.finfo(torch.float32).eps)
"""Of the extent of a grid and the largest displacement: what float32 may lose of a displacement in a few steps."""

CELLS_AT_ONCE = 1 << 17

Extreme = Callable[[Tensor, Tensor], Tensor]
Range = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Extremes:
    """What a map does at its worst on the voxels of a grid.

    Args:
        least: of `corner_jacobians`, without unit.
        folded: voxels where it is not positive.
        furthest: the largest displacement, mm.
    """

    least: float
    folded: int
    furthest: float

    def __or__(self, other: Extremes) -> Extremes:
        """Those of the voxels of both, which share none."""
        return Extremes(min(self.least, other.least), self.folded + other.folded, max(self.furthest, other.furthest))


def extremes_on(point_map: PointMap, grid: Grid) -> Extremes:
    """What a map does at its worst on the voxels of a grid.

    In every cell between the voxels of an interpolated field both are bounded, and voxels of the grid in cells whose
    bounds exclude an extreme are not looked at: the result is that of all voxels.

    Args:
        point_map: any map.
        grid: every voxel of it counts.
    """
    on_cpu = point_map.device is None or point_map.device.type == "cpu"
    cells = _Cells.of(point_map, grid) if on_cpu else None
    if cells is None:
        return _of_all(point_map, grid)
    first = cells.promising(FIRST)
    found = cells.look(first)
    # Bounds beyond the range of float32 compare false with everything, and exclude nothing.
    without = cells.least > max(found.least, 0) + cells.slack
    without &= cells.longest < found.furthest - cells.rounding
    if float(without.double().mean()) < 1 - MOST:
        return _of_all(point_map, grid)
    return found | cells.look(~(without | first))


def _of_all(point_map: PointMap, grid: Grid) -> Extremes:
    """Every voxel is looked at, a slab at a time."""
    found = Extremes(np.inf, 0, 0.0)
    for z0, z1 in slabs(grid.shape, AT_ONCE):
        low, high = max(z0 - 1, 0), min(z1 + 1, grid.shape[0])  # what the outermost Jacobians look at
        displacement = displacement_on(point_map, grid, low, high)
        part = grid.padded((0, 0, -low), (0, 0, high - grid.shape[0]))
        corners = corner_jacobians(displacement, part)[z0 - low : z1 - low]
        furthest = float(displacement.square().sum(0).max().sqrt())
        found |= Extremes(float(corners.min()), int((corners <= 0).sum()), furthest)
    return found


@dataclass(frozen=True, eq=False)
class _Cells:
    """What is known of the cells (z, y, x) between the voxels of a field, and of one voxel more around it.

    Args:
        point_map: made of the field.
        grid: whose voxels are looked at.
        expected: about the least corner Jacobian there: that of the field's own voxels.
        least: below which no corner Jacobian of a voxel in the cell is.
        longest: above which no displacement is, mm.
        places: for (z, y, x) the cell in which every voxel of the grid lies.
        stretch: how much longer the affine maps make a vector at most.
    """

    point_map: PointMap
    grid: Grid
    expected: Tensor
    least: Tensor
    longest: Tensor
    places: tuple[Tensor, ...]
    stretch: float

    @classmethod
    def of(cls, point_map: PointMap, grid: Grid) -> _Cells | None:
        """None where nothing is known, or little is to be saved.

        Known are bounds of one field, with affine maps behind it, whose axes are those of the grid and whose voxels,
        with one more around them, hold it. Along an axis of one voxel the grid has no differences to bound.
        """
        parts = point_map.parts if isinstance(point_map, CompositeMap) else ()
        field, *behind = parts or (point_map,)
        affine = [part for part in behind if isinstance(part, AffineMap)]
        if not isinstance(field, DisplacementMap) or len(affine) < len(behind):
            return None
        if min(grid.shape) == 1 or grid.voxels < WORTH * field.grid.voxels:
            return None
        around = field.grid.padded((1, 1, 1), (1, 1, 1))
        matrix = np.linalg.inv(around.affine) @ grid.affine
        step, first = matrix[:3, :3].diagonal(), matrix[:3, 3]
        last = first + step * (grid.size - 1)
        parallel = np.abs(matrix[:3, :3] - np.diag(step)).max() < 1e-9 and (step > 0).all()
        linear = affine[0].matrix[:3, :3] if affine else np.eye(3)  # a composite has multiplied several
        scale = float(np.linalg.det(linear))
        if not parallel or scale <= 0 or (first < 0).any() or (last > around.size - 1).any():
            return None
        padded = F.pad(field.displacement[None], (1,) * 6, mode="replicate")[0]
        expected = scale * corner_jacobians(padded, around)
        longest = displacement_on(point_map, around).square().sum(0).sqrt()
        for axis in range(3):
            expected, longest = _of_ends(torch.minimum, expected, axis), _of_ends(torch.maximum, longest, axis)
        places = tuple(
            torch.from_numpy(np.clip((first[axis] + step[axis] * np.arange(n)).astype(int), 0, around.size[axis] - 2))
            for axis, n in zip((2, 1, 0), grid.shape, strict=True)
        )
        least = scale * _least_in_cells(in_voxels(padded, around), np.ceil(step).astype(int).tolist())
        return cls(point_map, grid, expected, least, longest, places, float(np.linalg.norm(linear, 2)))

    @property
    def rounding(self) -> float:
        """How far the displacement of a voxel may pass the bounds for want of precision, mm."""
        return ROUNDING * (float(np.linalg.norm(self.grid.size * self.grid.spacing)) + float(self.longest.max()))

    @property
    def slack(self) -> float:
        """How far a Jacobian may pass its bound therefore: each derivative counts by the area that the others span."""
        return self.rounding / float(self.grid.spacing.min()) * max(1.0, self.stretch) ** 2

    def promising(self, count: int) -> Tensor:
        """Of so many cells those that are likely to hold an extreme: bool."""
        result = torch.zeros(self.least.shape, dtype=torch.bool)
        for values in (-self.expected.flatten(), self.longest.flatten()):
            result.view(-1)[values.topk(min(count, len(values))).indices] = True
        return result

    def look(self, cells: Tensor) -> Extremes:
        """The extremes of the voxels in some cells, bool."""
        found = Extremes(np.inf, 0, 0.0)
        z, y, x = self.places
        for z0, z1 in slabs(self.grid.shape, AT_ONCE // 8):
            low, high = max(z0 - 1, 0), min(z1 + 1, self.grid.shape[0])  # with those that the outermost are compared to
            wanted = cells[z[low:high]][:, y][:, :, x]
            wanted[: z0 - low] = False
            wanted[z1 - low :] = False
            if bool(wanted.any()):
                found |= self._at(wanted, low)
        return found

    def _at(self, wanted: Tensor, low: int) -> Extremes:
        """The extremes of ``wanted`` voxels, (z, y, x) bool, of slices from ``low`` on, which hold their neighbours.

        Where these are wanted as well, as most are, the map is asked for each once.
        """
        around = wanted.clone()
        for axis, n in enumerate(wanted.shape):
            around.narrow(axis, 1, n - 1).logical_or_(wanted.narrow(axis, 0, n - 1))
            around.narrow(axis, 0, n - 1).logical_or_(wanted.narrow(axis, 1, n - 1))
        places, index = (torch.from_numpy(np.flatnonzero(mask.numpy())) for mask in (around, wanted))
        displacement = displacement_at(self.point_map, self.grid, self._points(places, low).float()).T
        steps = torch.empty((wanted.numel(), 3)).index_copy_(0, places, vectors_in_voxels(displacement, self.grid).T)
        furthest = float(displacement.square().sum(0)[wanted.flatten()[places]].max().sqrt())
        sides, own, points = [], steps.index_select(0, index).T, self._points(index, low)
        for axis, (n, stride) in enumerate(zip(self.grid.size.tolist(), reversed(wanted.stride()), strict=True)):
            at_end, at_start = points[:, axis] == n - 1, points[:, axis] == 0
            # At the border there is one difference, or none.
            after = steps.index_select(0, torch.where(at_end, index, index + stride)).T - own
            before = own - steps.index_select(0, torch.where(at_start, index, index - stride)).T
            sides.append(torch.stack([torch.where(at_end, before, after), torch.where(at_start, after, before)]))
        corners = least_determinant(*sides)
        return Extremes(float(corners.min()), int((corners <= 0).sum()), furthest)

    def _points(self, places: Tensor, low: int) -> Tensor:
        """The index points (n, 3), x first, of positions in the flattened slices from ``low`` on."""
        _, height, width = self.grid.shape
        return torch.stack([places % width, places // width % height, places // (width * height) + low], 1)


def _least_in_cells(steps: Tensor, reach: list[int]) -> Tensor:
    """What no corner Jacobian of points in a cell is below, (z, y, x) of the cells between the voxels of a field.

    The interpolation is linear: a column of the matrix is a mean of differences along edges of the field, of this cell
    and of those that a step from its points reaches. The determinant is bounded by interval arithmetic.

    Args:
        steps: (3, z, y, x) in voxels of the field.
        reach: cells along (x, y, z) that a step reaches.
    """
    depth, height, width = (n - 1 for n in steps.shape[1:])
    result = torch.empty((depth, height, width), dtype=steps.dtype)
    for z0, z1 in slabs((depth, height, width), CELLS_AT_ONCE):
        low, high = max(z0 - reach[2], 0), min(z1 + reach[2], depth)
        x, y, z = (list(zip(*_ranges(steps[:, low : high + 1], axis, reach[axis]), strict=True)) for axis in range(3))
        least = torch.zeros((high - low, height, width), dtype=steps.dtype)
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            (low_a, high_a), (low_b, high_b) = _times(y[j], z[k]), _times(y[k], z[j])
            least += _times(x[i], (low_a - high_b, high_a - low_b))[0]
        result[z0:z1] = least[z0 - low : z1 - low]
    return result


def _ranges(steps: Tensor, own: int, reach: int) -> Range:
    """Least and greatest of each component of the map's derivative along (x, y, z)[own] in every cell."""
    edges = steps.diff(dim=3 - own)
    edges[own] += 1
    found = []
    for extreme in (torch.minimum, torch.maximum):
        values = edges
        for axis in (1, 2, 3):
            if axis != 3 - own:
                values = _of_ends(extreme, values, axis)
        n = values.shape[3 - own]
        ends = values.narrow(3 - own, 0, 1), values.narrow(3 - own, n - 1, 1)
        values = torch.cat([*[ends[0]] * reach, values, *[ends[1]] * reach], 3 - own)
        for _ in range(2 * reach):
            values = _of_ends(extreme, values, 3 - own)
        found.append(values)
    return found[0], found[1]


def _of_ends(extreme: Extreme, values: Tensor, axis: int) -> Tensor:
    """The extreme of each two neighbours along an axis."""
    n = values.shape[axis] - 1
    return extreme(values.narrow(axis, 0, n), values.narrow(axis, 1, n))


def _times(a: Range, b: Range) -> Range:
    """The product of numbers from two ranges."""
    ends = [p * q for p in a for q in b]
    least = torch.minimum(torch.minimum(ends[0], ends[1]), torch.minimum(ends[2], ends[3]))
    return least, torch.maximum(torch.maximum(ends[0], ends[1]), torch.maximum(ends[2], ends[3]))

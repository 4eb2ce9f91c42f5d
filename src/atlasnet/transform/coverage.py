"""What of a scan a map takes into another grid, or a part of it, without mapping every voxel."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from atlasnet.transform.maps import FramedPoints
from atlasnet.transform.transform import Transform
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import Box, inside

CELL = 4
"""Voxels of a cell along each axis."""

CLEAR = 1.0
"""Voxels of the other grid by which the corners of a cell are inside, or beyond one face, where all of it is."""

AROUND = 2.0
"""Voxels, of the coarser of two grids, around what a part's surface is mapped to: the two directions of a map differ by
less, and so does the surface between the points that are mapped."""

_BOTH, _WITHIN, _BEYOND = 0, 1, 2  # what is known of the voxels of a cell


class Coverage:
    """Which voxels of a grid read inside the field of view of an array.

    They are told by cells of `CELL` voxels a side: where the corners of one lie clearly inside, or clearly beyond one
    face, so does all of it, because the map is smooth. In the other cells, along the border, every voxel is mapped.

    Args:
        transform: its forward map takes points of ``grid`` to the array.
        array_grid: of the array.
        grid: whose voxels are asked for.
        device: where to compute; it must be that of the transform.
    """

    def __init__(self, transform: Transform, array_grid: Grid, grid: Grid, *, device: torch.device) -> None:
        self._transform, self._array_grid, self._grid, self._device = transform, array_grid, grid, device
        corners = [[*range(0, max(n - 1, 1), CELL), n - 1] for n in grid.shape]
        z, y, x = (torch.tensor(places, dtype=torch.float32, device=device) for places in corners)
        points = torch.stack(torch.meshgrid(x, y, z, indexing="ij"), -1).permute(2, 1, 0, 3)
        index = transform.index_at(array_grid, grid, points)
        last = index.new_tensor([n - 0.5 for n in reversed(array_grid.shape)])
        depth = torch.cat([index + 0.5, last - index], -1)  # of a corner below each of the six faces
        within, beyond = _all_corners(depth >= CLEAR).all(-1), _all_corners(depth <= -CLEAR).any(-1)
        self._state = torch.where(within, _WITHIN, torch.where(beyond, _BEYOND, _BOTH)).to(torch.uint8)

    def slab(self, z0: int, z1: int) -> Tensor:
        """Slices ``z0 <= z < z1``: bool (z1 - z0, y, x)."""
        ranges = [(z0, z1), (0, self._grid.shape[1]), (0, self._grid.shape[2])]
        z, y, x = (
            (torch.arange(start, stop, device=self._device) // CELL).clamp(max=count - 1)
            for (start, stop), count in zip(ranges, self._state.shape, strict=True)
        )
        state = self._state[z][:, y][:, :, x]  # of the cell of every voxel
        covered, places = state == _WITHIN, (state == _BOTH).nonzero()
        points = (places + places.new_tensor([z0, 0, 0])).flip(-1).float()
        index = self._transform.index_at(self._array_grid, self._grid, points)
        covered[tuple(places.T)] = inside(index, self._array_grid.shape)
        return covered


def part_box(transform: Transform, part: Grid, grid: Grid) -> Box:
    """The box (z, y, x) of a grid outside of which no voxel reads between the outermost voxels of a part.

    A map without folds takes what a surface encloses to what the mapped surface encloses: only that is mapped.

    Args:
        transform: its forward map takes points of ``grid`` to the part, its backward map the part to ``grid``.
        part: of another space.
        grid: whose voxels are asked for.
    """
    device = transform.backward.device or torch.device("cpu")
    ranges = [torch.arange(n, dtype=torch.float32, device=device) for n in part.size.tolist()]
    ends = [places[[0, -1]] for places in ranges]
    faces = [
        torch.cartesian_prod(*(ends[axis] if axis == own else ranges[axis] for axis in range(3))) for own in range(3)
    ]
    moved = transform.backward.advance(FramedPoints(torch.cat(faces), part.affine)).relative_to(grid.affine)
    coarser = max(part.spacing.max(), grid.spacing.max())
    around = AROUND * coarser / grid.spacing
    low = np.floor(moved.amin(0).cpu().numpy() - around).astype(int)
    high = np.ceil(moved.amax(0).cpu().numpy() + around).astype(int) + 1
    z, y, x = (
        slice(*np.clip([start, stop], 0, n).tolist())
        for start, stop, n in zip(low[::-1], high[::-1], grid.shape, strict=True)
    )
    return z, y, x


def _all_corners(state: Tensor) -> Tensor:
    """Whether something holds at all eight corners of a cell: bool (z + 1, y + 1, x + 1, ...) to (z, y, x, ...)."""
    z, y, x = (n - 1 for n in state.shape[:3])
    found = state[:z, :y, :x].clone()
    for k, j, i in product((0, 1), repeat=3):
        found &= state[k : k + z, j : j + y, i : i + x]
    return found

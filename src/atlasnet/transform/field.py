"""Dense displacement fields of any point map, and how well two maps undo each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.transform.maps import FramedPoints, PointMap
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import apply_affine, inside, lattice, linear_part, slabs


def displacement_on(point_map: PointMap, grid: Grid, low: int = 0, high: int | None = None) -> Tensor:
    """map(p) - p at every voxel of a grid, or of its slices ``low <= z < high``.

    Args:
        point_map: any map.
        grid: the voxels.
        low: first slice.
        high: one past the last slice; None: all.

    Returns:
        (3, z, y, x) float32 on the map's device, components (x, y, z) in LPS mm.
    """
    device = point_map.device or torch.device("cpu")
    depth, height, width = grid.shape
    shape = ((depth if high is None else high) - low, height, width)
    result = torch.empty((3, *shape), dtype=torch.float32, device=device)
    for z0, z1 in slabs(shape, device=device):
        points = lattice(grid.shape, low + z0, low + z1, device=device)
        result[:, z0:z1] = displacement_at(point_map, grid, points).movedim(-1, 0)
    return result


def displacement_at(point_map: PointMap, grid: Grid, points: Tensor) -> Tensor:
    """map(p) - p at index points (..., 3) of a grid, in (x, y, z) order: (..., 3) in LPS mm."""
    moved = point_map.advance(FramedPoints(points, grid.affine))
    # moved.frame @ moved.index - grid.affine @ points, arranged so that float32 never holds world coordinates: what is
    # lost is that of index coordinates, and equal frames subtract without rounding.
    step = apply_affine(linear_part(moved.frame), moved.index - points)
    step += apply_affine(moved.frame - grid.affine, points)
    return step


def consistency(first: PointMap, second: PointMap, grid: Grid, other: Grid) -> dict[str, float]:
    """|second(first(p)) - p| in mm over the voxels p of ``grid`` whose image first(p) lies inside ``other``.

    Returns:
        ``mean``, ``p999`` (99.9th percentile), ``max``, and ``share``, the part of the voxels that were counted; all
        0 where none was.
    """
    device = first.device or second.device or torch.device("cpu")
    lengths = []
    for z0, z1 in slabs(grid.shape, device=device):
        points = lattice(grid.shape, z0, z1, device=device)
        there = first.advance(FramedPoints(points, grid.affine))
        counted = inside(there.relative_to(other.affine), other.shape)
        back = second.advance(FramedPoints(there.index[counted], there.frame)).relative_to(grid.affine)
        missed = apply_affine(linear_part(grid.affine), back - points[counted])
        lengths.append(missed.contiguous().norm(dim=-1))
    return {**length_summary(torch.cat(lengths)), "share": sum(map(len, lengths)) / grid.voxels}


def length_summary(lengths: Tensor) -> dict[str, float]:
    """``mean``, ``p999`` and ``max`` of lengths (n,) in mm; 0 for none."""
    if not len(lengths):
        return {"mean": 0.0, "p999": 0.0, "max": 0.0}
    rank = max(1, int(np.ceil(0.999 * len(lengths))))
    return {
        "mean": float(ordered_sum(lengths.double()) / len(lengths)),
        "p999": float(lengths.kthvalue(rank).values),
        "max": float(lengths.max()),
    }

"""From a subject to what a network sees: normalised, mapped into an atlas's space, cut along the slice axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from atlasnet.cohort import Plan
from atlasnet.training.region import Region
from atlasnet.training.store import IGNORED
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume
from atlasnet.volume.orientation import turned_grid
from atlasnet.volume.resample import antialias_sigma, smooth

T = TypeVar("T")
Device = torch.device | str | None

_SLICE_AXIS = {"z": 1, "y": 2, "x": 3}  # of arrays (c, z, y, x)


def working_grid(atlas: Grid, plan: Plan) -> Grid:
    """The lattice in the atlas's space on which networks work: the atlas's field of view at the plan's spacing.

    The grid of the atlas is canonical. Thick oblique slices lie along the plan's slice axis, see `Plan.turn`.
    """
    return turned_grid(atlas, plan.turn(atlas)).with_spacing(plan.spacing)


def along_own_axes(planned: Sequence[float], grid: Grid, plan: Plan) -> NDArray[np.float64]:
    """Lengths along the (x, y, z) of a plan as those along the (x, y, z) of a canonical grid; see `working_grid`."""
    z, y, x = plan.turn(grid).axes
    own = np.empty(3)
    own[[2 - x, 2 - y, 2 - z]] = planned
    return own


def region_grid(grid: Grid, region: Region | None, slice_axis: str) -> Grid:
    """The part of an atlas's working grid that is a region; all of it where there is none."""
    if region is None:
        return grid
    start, stop = (volume_order(corner, slice_axis) for corner in (region.start, region.stop))
    return grid.padded([-n for n in start[::-1]], [a - b for a, b in zip(stop[::-1], grid.size.tolist(), strict=True)])


def prepare(source: Volume, plan: Plan) -> Volume:
    """Normalise a canonical volume and smooth it as far as the plan's spacing is coarser than its own.

    Smoothing instead of resampling leaves the mapping as the only interpolation.
    """
    normalised = plan.normalise(source)
    sigma = antialias_sigma(along_own_axes(plan.spacing, source.grid, plan) / source.grid.spacing)
    if (sigma == 0).all():
        return normalised
    for channel in normalised.array:
        smooth(channel, sigma)
    return normalised


def map_image(prepared: Volume, transform: Transform, grid: Grid, *, device: Device = None) -> Volume:
    """A prepared source (c, z, y, x) in an atlas's space; beyond the source's field of view its edge continues."""
    return transform.warp(prepared, grid, device=device)


def class_indices(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.uint8]:
    """The class index of every voxel, `IGNORED` where its value is not among the classes' ``values``."""
    indices = np.full(labels.shape, IGNORED, dtype=np.uint8)
    for index, value in enumerate(values):
        indices[labels == value] = index
    return indices


def map_labels(
    labels: Volume,
    values: tuple[int, ...],
    transform: Transform,
    grid: Grid,
    mask: Volume | None = None,
    *,
    device: Device = None,
) -> Volume:
    """A reference in an atlas's space as class indices, uint8 (1, z, y, x).

    Args:
        labels: whole numbers; those not in ``values`` (the ignore label) become `IGNORED`.
        values: the label value of each class index.
        transform: maps points of ``grid`` into the labels' space.
        grid: the atlas's working grid.
        mask: on the labels' grid, (1, z, y, x); where it is zero, voxels become `IGNORED` too.
        device: where to compute; None is the CPU.

    Returns:
        Class indices; `IGNORED` where the nearest voxel of the labels is, and where ``grid`` reaches outside their
        field of view.
    """
    indices = class_indices(labels.array, values)
    if mask is not None:
        indices[mask.array == 0] = IGNORED
    annotated = indices != IGNORED
    if annotated.all():
        return transform.warp(labels.replace(indices), grid, interpolation="label", fill=IGNORED, device=device)
    continued, known = labels.replace(_continued(indices)), labels.replace(annotated.astype(np.uint8))
    mapped = transform.warp(continued, grid, interpolation="label", fill=IGNORED, device=device)
    counted = transform.warp(known, grid, interpolation="nearest", fill=0, device=device)
    return mapped.replace(np.where(counted.array == 1, mapped.array, np.uint8(IGNORED)))


def _continued(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class indices (1, z, y, x), those of annotated voxels continued by one voxel into what is `IGNORED`.

    In a vote of neighbours, a single annotated slice would lose the voxels around boundaries: there its classes share
    the weight that what is ignored has whole.
    """
    result = indices.copy()
    for axis in (1, 2, 3):
        before, after = np.moveaxis(result.copy(), axis, 0), np.moveaxis(result, axis, 0)
        np.copyto(after[1:], before[:-1], where=after[1:] == IGNORED)
        np.copyto(after[:-1], before[1:], where=after[:-1] == IGNORED)
    return result


def to_slices(array: NDArray[Any], slice_axis: str) -> NDArray[Any]:
    """Bring the slice axis of an array (c, z, y, x) to the place of z."""
    return np.moveaxis(array, _SLICE_AXIS[slice_axis], 1)


def from_slices(array: NDArray[Any], slice_axis: str) -> NDArray[Any]:
    """Undo `to_slices`."""
    return np.moveaxis(array, 1, _SLICE_AXIS[slice_axis])


def volume_order(corner: Sequence[int], slice_axis: str) -> tuple[int, int, int]:
    """Slice, row and column of a place in slices as its (z, y, x) in the volume."""
    rest = list(corner[1:])
    rest.insert("zyx".index(slice_axis), corner[0])
    z, y, x = rest
    return z, y, x


def slice_order(sides: Sequence[T], slice_axis: str) -> tuple[T, T, T]:
    """What belongs to (z, y, x) of a volume, for the slices, rows and columns that `to_slices` makes of it."""
    rest = list(sides)
    slices = rest.pop("zyx".index(slice_axis))
    rows, columns = rest
    return slices, rows, columns

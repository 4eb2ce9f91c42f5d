"""Taking the folds out of a displacement field by smoothing it where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from atlasnet.errors import TransformError
from atlasnet.execution.reductions import on_one_thread
from atlasnet.transform.jacobian import corner_jacobians, least_corners, vectors_in_voxels
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import Matrices, along_axes, grown

Box = tuple[slice, ...]

# Regions grow by a voxel every so many rounds; after the last round the whole field is smoothed instead.
ROUNDS_PER_VOXEL = 3
LOCAL_ROUNDS = 60
# Of a Gaussian, in its standard deviations.
TRUNCATE = 4.0
# Numbers of a field on which one thread is done before others are awake.
SMALL = 1 << 15


@dataclass(frozen=True)
class RepairRecord:
    """What `repair` did.

    Args:
        minimum_before: least one-sided corner Jacobian of the field given, with its continuation outside the grid.
        minimum_after: the same of the field returned.
        changed: voxels whose displacement is another one now.
        rounds: how often the regions were smoothed.
    """

    minimum_before: float
    minimum_after: float
    changed: int
    rounds: int


def repair(displacement: Tensor, grid: Grid, *, floor: float = 0.05) -> tuple[Tensor, RepairRecord]:
    """Smooth a displacement field around its folds until every one-sided corner Jacobian exceeds ``floor``.

    Around each connected region of voxels whose `corner_jacobians` do not exceed the floor, the field is blended with
    its own Gaussian average, by weights that fall to 0 a few voxels away; this is repeated with regions and Gaussians
    that grow slowly. A field that resists is smoothed as a whole, with ever wider Gaussians, towards a translation:
    the Jacobian tends to 1 everywhere, so this ends for every finite field and every floor below 1.

    The continuation of the field beyond its grid counts too, so that the map has an inverse everywhere.

    Args:
        displacement: (3, z, y, x), components (x, y, z) in LPS mm.
        grid: where the voxels lie.
        floor: what every corner Jacobian must exceed, in [0, 1).

    Returns:
        The field, float32 on the device of the input and bit for bit the input where nothing was wrong, and the record.

    Raises:
        ValueError: the floor is outside [0, 1).
        TransformError: the field does not fit its grid, or is not finite.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"the floor of the Jacobian must lie in [0, 1), not {floor}")
    displacement = displacement.detach().to(torch.float32)
    if not bool(torch.isfinite(displacement).all()):
        raise TransformError("a displacement field that is not finite cannot be repaired")
    least = corner_jacobians(displacement.contiguous(), grid, outside=True)
    before = float(least.min())
    if bool((least > floor).all()):
        return displacement.clone(), RepairRecord(before, before, 0, 0)
    field, rounds = displacement.clone(memory_format=torch.contiguous_format), 0
    while rounds < LOCAL_ROUNDS and not bool((least > floor).all()):
        _smooth_regions(field, least, grid, floor, reach=1 + rounds // ROUNDS_PER_VOXEL)
        rounds += 1
    while not bool((least > floor).all()):
        sigma = 2.0 ** (rounds - LOCAL_ROUNDS)
        field = _smoothed(field, sigma)
        least = _least(field, grid)
        rounds += 1
    changed = int((field != displacement).any(0).sum())
    return field, RepairRecord(before, float(least.min()), changed, rounds)


def smooth_at(displacement: Tensor, grid: Grid, where: Tensor, *, reach: int = 1) -> Tensor:
    """Blend a displacement field with its own Gaussian average around chosen voxels, as `repair` does around folds.

    Args:
        displacement: (3, z, y, x), components (x, y, z) in LPS mm.
        grid: where the voxels lie.
        where: (z, y, x) bool, the voxels.
        reach: how many voxels around them change; the Gaussian grows with it.

    Returns:
        The field, float32 on the device of the input.
    """
    field = displacement.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
    wanted = torch.where(where.to(field.device), -1.0, 1.0)
    _smooth_regions(field, wanted, grid, 0.0, reach)
    return field


def _smooth_regions(field: Tensor, least: Tensor, grid: Grid, floor: float, reach: int) -> None:
    """One round, in place: blend every bad region with its surroundings and bring ``least`` up to date there."""
    # A determinant beyond the range of float32 compares false with everything, and is bad.
    bad = ~(least > floor)
    beyond = reach // 2
    even = _bands(np.full(2 * beyond + 1, 1 / (2 * beyond + 1)), grid.shape, field.device)
    kernel = _gaussian(0.5 + 0.5 * reach)
    bands = _bands(kernel, grid.shape, field.device)
    regions, boxes = _regions(_dilated(bad, reach))
    for number, box in enumerate(boxes, start=1):
        changed, seen = (grown(box, margin, grid.shape) for margin in (beyond, 2 * beyond))
        wide = grown(changed, len(kernel) // 2, grid.shape)
        with on_one_thread(field[:, *changed].numel() < SMALL):
            inside = (regions[seen] == number).to(field.dtype)
            weight = _convolved(inside[None], even, changed, seen)
            part = field[:, *changed]
            part += weight * (_convolved(field[:, *wide], bands, changed, wide) - part)
            # A determinant depends on the next voxels, those of the halo on voxels that it does not hold.
            stale = grown(changed, 1, grid.shape)
            halo = grown(stale, 1, grid.shape)
            least[stale] = _least(field[:, *halo], grid)[_within(stale, halo)]


def _within(inner: Box, outer: Box) -> Box:
    """The slices of ``inner`` in an array cut out by ``outer``."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))


def _regions(mask: Tensor) -> tuple[Tensor, list[Box]]:
    """What is to be smoothed together: the number of the region at every voxel, from 1, and a box around each.

    On a CPU a region is what is connected, for most fields fold in a few places. On a GPU all is one: the whole field
    is smoothed there before a second region would have begun.
    """
    if mask.device.type != "cpu":
        return mask.to(torch.uint8), [tuple(slice(0, n) for n in mask.shape)]
    regions, _ = ndimage.label(mask.numpy())
    return torch.from_numpy(regions), ndimage.find_objects(regions)


def _dilated(mask: Tensor, reach: int) -> Tensor:
    """The mask (z, y, x) and all voxels up to ``reach`` away along every axis.

    Shifted copies are an order of magnitude faster than filters on so small a range.
    """
    for axis in range(3):
        seen, mask = mask.movedim(axis, 0), mask.clone()
        result = mask.movedim(axis, 0)
        for step in range(1, min(reach, len(seen) - 1) + 1):
            result[step:] |= seen[:-step]
            result[:-step] |= seen[step:]
    return mask


def _smoothed(field: Tensor, sigma: float) -> Tensor:
    """Gaussian average of every component; beyond the size of the field, its mean."""
    if sigma > max(field.shape[1:]):
        return field.mean((1, 2, 3), dtype=torch.float64, keepdim=True).to(field.dtype).expand_as(field).contiguous()
    return along_axes(_bands(_gaussian(sigma), field.shape[1:], field.device), field)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    reach = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum())


def _bands(kernel: NDArray[np.float64], shape: Sequence[int], device: torch.device) -> Matrices:
    """The matrices that convolve the axes (z, y, x) of an array; the value at an edge continues beyond it.

    Several times faster than SciPy's filters, which compute in double precision on one thread.
    """
    z, y, x = (_band(kernel, n).to(device) for n in shape)
    return z, y, x


def _band(kernel: NDArray[np.float64], count: int) -> Tensor:
    """(count, count) weights of the voxels of an axis in the filtered value of each."""
    matrix, reach, rows = np.zeros((count, count), dtype=np.float32), len(kernel) // 2, np.arange(count)[:, None]
    columns = np.clip(rows + np.arange(-reach, reach + 1), 0, count - 1)
    np.add.at(matrix, (rows, columns), kernel.astype(np.float32))
    return torch.from_numpy(matrix)


def _convolved(values: Tensor, bands: Matrices, box: Box, seen: Box) -> Tensor:
    """What `_bands` make in a box of a grid of ``values`` (c, z, y, x), the voxels that they read: those ``seen``."""
    z, y, x = (band[rows, columns].contiguous() for band, rows, columns in zip(bands, box, seen, strict=True))
    return along_axes((z, y, x), values.contiguous())


def _least(field: Tensor, grid: Grid) -> Tensor:
    """The least corner Jacobians of a field, or of a part of one, on a grid with these axes."""
    return least_corners(vectors_in_voxels(field.contiguous(), grid), outside=True)

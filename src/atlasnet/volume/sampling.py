"""Reading an array between its voxels: the one interpolation everything else is built on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlasnet.errors import VolumeError
from atlasnet.execution.reductions import batched_product

# Points taken at a time where an operation needs several temporaries per point; 3 float32 coordinates are 3 MiB. Larger
# ones are given back to the system and fetched anew at every operation, which takes longer than most operations do.
POINTS_AT_ONCE = 1 << 18
# On a GPU, where starting an operation takes longer than most operations on fewer points, at least so many.
POINTS_ON_GPU = 1 << 21
# One-hot weights closer than this are a tie: far above float32 rounding of a weight, far below any weight that matters.
TIE = 1e-4
Matrices = tuple[Tensor, Tensor, Tensor]
Box = tuple[slice, slice, slice]  # voxels along (z, y, x)


def apply_affine(matrix: ArrayLike, points: Tensor) -> Tensor:
    """Take points (..., 3) through a 4 x 4 matrix, in the points' own precision and on their device."""
    full = np.asarray(matrix, dtype=np.float64)
    linear, shift = full[:3, :3], points.new_tensor(full[:3, 3])
    diagonal = np.diagonal(linear)
    if np.array_equal(linear, np.diag(diagonal)):
        return (points * points.new_tensor(diagonal.copy())).add_(shift)
    return (points.new_tensor(linear) @ points.reshape(-1, 3).T).add_(shift[:, None]).T.reshape(points.shape)


def linear_part(matrix: ArrayLike) -> NDArray[np.float64]:
    """A 4 x 4 matrix without its shift: what it does to vectors."""
    result = np.array(matrix, dtype=np.float64)
    result[:3, 3] = 0
    return result


def lattice(
    shape: tuple[int, int, int],
    z0: int,
    z1: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The index points (x, y, z) of slices ``z0 <= z < z1`` of an array (z, y, x): a tensor (z1 - z0, y, x, 3).

    In memory all x come first, then all y and all z: arithmetic on points that lie so is several times faster.
    """
    _, y, x = shape
    points = torch.empty((3, z1 - z0, y, x), dtype=dtype, device=device)
    points[0] = torch.arange(x, dtype=dtype, device=device)
    points[1] = torch.arange(y, dtype=dtype, device=device)[:, None]
    points[2] = torch.arange(z0, z1, dtype=dtype, device=device)[:, None, None]
    return points.movedim(0, -1)


def along_axes(matrices: Matrices, array: Tensor) -> Tensor:
    """Multiply the last three axes (z, y, x) of ``array`` by one matrix (out, in) each.

    Slice by slice, and along z row by row or array by array, so that the bits do not depend on the number of threads.
    """
    along_z, along_y, along_x = matrices
    *lead, depth, height, width = array.shape
    slices = array.reshape(-1, height, width)
    slices = batched_product(slices, along_x.T.expand(len(slices), -1, -1))
    slices = batched_product(along_y.expand(len(slices), -1, -1), slices)
    height, width = slices.shape[1:]
    if len(slices) == depth:
        product = batched_product(along_z.expand(height, -1, -1), slices.transpose(0, 1)).transpose(0, 1)
    else:
        stacks = slices.view(-1, depth, height * width)
        product = batched_product(along_z.expand(len(stacks), -1, -1), stacks)
    return product.reshape(*lead, len(along_z), height, width)


def grown(box: tuple[slice, ...], margin: int | Sequence[int], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box and ``margin`` voxels around it, one number or one for each axis, as far as there are any."""
    margins = [margin] * len(box) if isinstance(margin, int) else margin
    sides = zip(box, margins, shape, strict=True)
    return tuple(slice(max(side.start - m, 0), min(side.stop + m, n)) for side, m, n in sides)


def slabs(
    shape: tuple[int, int, int], points: int = POINTS_AT_ONCE, *, device: torch.device | None = None
) -> list[tuple[int, int]]:
    """Ranges (z0, z1) of slices that cover an array (z, y, x) with about ``points`` voxels each, one slice at least.

    Where the work is done on a ``device`` that is no CPU, about `POINTS_ON_GPU` if those are more.
    """
    z, y, x = shape
    if device is not None and device.type != "cpu":
        points = max(points, POINTS_ON_GPU)
    thickness = max(1, points // (y * x))
    return [(z0, min(z0 + thickness, z)) for z0 in range(0, z, thickness)]


def inside(index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether index points (..., 3) lie in the field of view of an array (z, y, x): bool (...).

    The field of view ends half a voxel beyond the outermost voxel centres, as in ITK, and holds its faces, of which ITK
    leaves out the far ones.
    """
    last = index.new_tensor([n - 0.5 for n in reversed(shape)])
    x, y, z = ((index >= -0.5) & (index <= last)).unbind(-1)
    return x & y & z


def sample(array: Tensor, index: Tensor, *, mode: str = "linear", fill: float | None = None) -> Tensor:
    """Read ``array`` at continuous index points.

    Args:
        array: (c, z, y, x), floating; whole numbers are taken as float32 by ``"linear"`` and stay as they are in the
            other modes.
        index: (..., 3) index points in (x, y, z) order, on the same device.
        mode: ``"linear"``; ``"nearest"`` (halves upwards, as ITK); or ``"label"``, the arg max over labels of their
            linearly interpolated one-hot maps, ties to the lower label.
        fill: the value of points outside the field of view (see `inside`). None continues the nearest edge value;
            within half a voxel of the edge, points are inside and read the edge value in any case.

    Returns:
        (c, ...) in the array's type. Coordinates are good to about 1e-4 voxel along an axis of 1000 voxels.

    Raises:
        VolumeError: the array is not (c, z, y, x), the points are not (..., 3), or there is no such mode.
    """
    if array.ndim != 4 or index.shape[-1:] != (3,):
        raise VolumeError(
            "cannot sample",
            expected="an array (c, z, y, x) and index points (..., 3)",
            found=f"{tuple(array.shape)} and {tuple(index.shape)}",
        )
    if mode not in _MODES:
        raise VolumeError(f"no interpolation is called {mode!r}", expected=" or ".join(_MODES))
    points = index.reshape(-1, 3)
    values = _MODES[mode](array, points)
    if fill is not None:
        z, y, x = array.shape[1:]
        values.masked_fill_(~inside(points, (z, y, x)), fill)
    return values.reshape(array.shape[:1] + index.shape[:-1])


def _linear(array: Tensor, points: Tensor) -> Tensor:
    """(c, n) by ``grid_sample``; n is cut along the batch axis, where its 3-D CPU kernel runs parallel."""
    if not array.is_floating_point() or array.dtype in (torch.float16, torch.bfloat16):
        array = array.float()
    size = points.new_tensor(list(reversed(array.shape[1:])))
    # align_corners=False keeps an axis of one voxel well defined.
    scaled = ((2 * points).add_(1) / size).sub_(1).to(array.dtype)
    parts = min(torch.get_num_threads(), max(1, len(scaled) // 4096)) if scaled.device.type == "cpu" else 1
    each = -(-len(scaled) // parts)
    if each * parts != len(scaled):
        scaled = F.pad(scaled, (0, 0, 0, each * parts - len(scaled)))
    # Clamping by "border" happens at the outermost centres.
    values = F.grid_sample(
        array[None].expand(parts, -1, -1, -1, -1),
        scaled.view(parts, 1, 1, each, 3),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return values.view(parts, len(array), each).transpose(0, 1).reshape(len(array), -1)[:, : len(points)]


def _flat_index(corner: Tensor, shape: torch.Size) -> Tensor:
    """Whole index points (n, 3), clamped to the array, as positions in its flattened (z, y, x)."""
    z, y, x = shape
    i, j, k = (corner[:, axis].clamp(0, n - 1) for axis, n in enumerate((x, y, z)))
    return (k * y + j) * x + i


def _nearest(array: Tensor, points: Tensor) -> Tensor:
    flat = array.reshape(len(array), -1)
    return flat[:, _flat_index((points + 0.5).floor().long(), array.shape[1:])]


def _label(array: Tensor, points: Tensor) -> Tensor:
    """(c, n): each of a point's 8 corners votes for its label with its linear weight, however many labels there are."""
    result = torch.empty((len(array), len(points)), dtype=array.dtype, device=array.device)
    _, height, width = array.shape[1:]
    corners = [torch.tensor([b & 1, b >> 1 & 1, b >> 2], device=points.device) for b in range(8)]
    for start in range(0, len(points), POINTS_AT_ONCE):
        part = points[start : start + POINTS_AT_ONCE]
        base = part.floor()
        # Clamped to the array, the lower and the upper neighbours along each axis as steps in its flattened (z, y, x).
        x, y, z = (
            [(base[:, axis].long() + upper).clamp_(0, n - 1).mul_(stride) for upper in (0, 1)]
            for axis, (n, stride) in enumerate(zip(reversed(array.shape[1:]), (1, width, height * width), strict=True))
        )
        rows = [c + b for c in z for b in y]
        for channel, values in enumerate(array.reshape(len(array), -1)):
            labels = [values.index_select(0, row + a) for row in rows for a in x]
            winner, mixed = labels[0], torch.zeros(len(part), dtype=torch.bool, device=part.device)
            for other in labels[1:]:
                mixed |= other != winner
            places = mixed.nonzero()[:, 0]
            if len(places):
                votes = torch.stack([label.index_select(0, places) for label in labels])
                winner = winner.index_copy(0, places, _vote(votes, part[places] - base[places], corners))
            result[channel, start : start + len(part)] = winner
    return result


def _vote(labels: Tensor, fraction: Tensor, corners: list[Tensor]) -> Tensor:
    """The label (n,) with the largest sum of linear weights among the 8 corners' labels (8, n)."""
    weights = torch.stack([torch.where(corner == 1, fraction, 1 - fraction).prod(-1) for corner in corners])
    labels, order = labels.sort(dim=0, stable=True)
    weights = weights.gather(0, order)
    best, winner = torch.full_like(weights[0], -1.0), labels[0].clone()
    for label in labels:
        total = (weights * (labels == label)).sum(0)
        better = total > best + TIE
        best, winner = torch.where(better, total, best), torch.where(better, label, winner)
    return winner


_MODES = {"linear": _linear, "nearest": _nearest, "label": _label}

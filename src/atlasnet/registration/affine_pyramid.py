"""The two images of an affine registration at decreasing resolution, in frames that belong to their contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float64]

# Local contrast is taken over this share of the edge of a cube as large as the field of view: 37 mm in a chest, 3 mm
# around a hippocampus. On pairs of both, it gave better overlap than plain intensities, which the outline of the body
# dominates.
LOCALITY = 0.08
# In standard deviations of the image: where the local contrast is far below, it is noise and stays small.
CONTRAST_FLOOR = 0.1
EDGE_POWER = 4
# The finest level has at most one voxel for so many of the image's; no level is planned with fewer than FEWEST_VOXELS.
OVERSAMPLING = 4
FEWEST_VOXELS = 1000
# A mask makes the levels finer, so that what counts has as many voxels as an image without one, but no finer than if it
# left this share: a thin mask must not take any memory.
LEAST_COUNTED = 0.05


@dataclass(frozen=True, eq=False)
class Level:
    """One image at one resolution. Points are in mm, (x, y[, z]), from the middle of the field of view along its axes.

    Args:
        image: (c, [z,] y, x) float32.
        weight: (1, [z,] y, x) float32 in [0, 1]; 0 where the voxel shall not count.
        spacing: mm along (x, y[, z]).
    """

    image: Tensor
    weight: Tensor
    spacing: tuple[float, ...]

    @property
    def dims(self) -> int:
        """2 or 3."""
        return self.image.ndim - 1

    @property
    def size(self) -> Float:
        """(d,) voxels along (x, y[, z])."""
        return np.array(self.image.shape[:0:-1], dtype=float)

    @property
    def extent(self) -> Float:
        """(d,) edges of the field of view, mm."""
        return np.asarray(self.size * np.array(self.spacing))

    @property
    def masked(self) -> bool:
        """Whether there are voxels that do not count; one number in memory says that there are none."""
        return any(self.weight.stride())

    def tensor(self, values: Float | tuple[float, ...]) -> Tensor:
        """A small float32 tensor beside the image."""
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.image.device)

    def points(self) -> Tensor:
        """(voxels, d) positions of the voxel centres, mm, in the order of the flattened image."""
        return lattice_points(self.image.shape[1:], self.spacing, self.image.device)

    @cached_property
    def _frame(self) -> tuple[Tensor, Tensor, Tensor]:
        """(d,) each: spacing, index of the middle, and how far the field of view reaches; asked for again and again."""
        return self.tensor(self.spacing), self.tensor((self.size - 1) / 2), self.tensor(self.size - 0.5)

    def index(self, points: Tensor) -> Tensor:
        """Continuous index points (..., d) in (x, y[, z]) order of points in mm."""
        spacing, middle, _ = self._frame
        return points / spacing + middle

    def inside(self, index: Tensor) -> Tensor:
        """Whether index points (n, d) lie in the field of view, up to half a voxel beyond the outermost centres."""
        return ((index >= -0.5) & (index <= self._frame[2])).all(-1)

    def gradient(self) -> Tensor:
        """(c * d, [z,] y, x) derivatives along (x, y[, z]) per mm, by central differences; the axis varies fastest."""
        parts = []
        for axis, spacing in enumerate(self.spacing):
            dimension = self.dims - axis
            if self.image.shape[dimension] < 2:
                parts.append(torch.zeros_like(self.image))
            else:
                parts.append(torch.gradient(self.image, spacing=spacing, dim=dimension)[0])
        return torch.stack(parts, 1).flatten(0, 1)


def lattice_points(shape: torch.Size | tuple[int, ...], spacing: tuple[float, ...], device: torch.device) -> Tensor:
    """(voxels, d) centres of a lattice of ``shape`` ([z,] y, x) around the origin, mm, (x, y[, z])."""
    axes = [
        (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * step
        for n, step in zip(shape, spacing[::-1], strict=True)
    ]
    return torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")][::-1], -1)


def interpolate(array: Tensor, index: Tensor) -> Tensor:
    """Read (c, [z,] y, x) linearly at index points (n, d) in (x, y[, z]) order; (c, n), nearest edge value outside."""
    last = torch.tensor([max(n - 1, 1) for n in array.shape[:0:-1]], dtype=index.dtype, device=index.device)
    unit = 2 * index / last - 1
    if min(array.shape[1:]) == 1:
        # A single voxel along an axis has no extent to normalise by; every position along it is that voxel.
        single = torch.tensor([n == 1 for n in array.shape[:0:-1]], device=index.device)
        unit = torch.where(single, torch.zeros_like(index), unit)
    places = unit.reshape(1, *([1] * (array.ndim - 2)), *index.shape)
    values = torch.nn.functional.grid_sample(array[None], places, padding_mode="border", align_corners=True)
    return values.reshape(len(array), -1)


def _along_axes(array: Tensor, matrices: list[Tensor | None]) -> Tensor:
    """Apply one (out, in) matrix per spatial axis, given in (x, y[, z]) order; None leaves an axis alone."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            dimension = array.ndim - 1 - axis
            array = torch.movedim(torch.tensordot(matrix, array, dims=([1], [dimension])), 0, dimension)
    return array


def _averaging(count: int, spacing: float, wanted: float) -> tuple[Float | None, float]:
    """(out, in) tent weights from ``spacing`` to about ``wanted`` mm over the same extent, and the spacing reached."""
    out = max(min(count, 2), round(count * spacing / wanted))
    if out >= count:
        return None, spacing
    step = count / out
    centres = (np.arange(out) + 0.5) * step - 0.5
    weights = np.clip(1 - np.abs(np.arange(count) - centres[:, None]) / step, 0, None)
    return weights / weights.sum(1, keepdims=True), spacing * step


def coarser(level: Level, spacing: float) -> Level:
    """The same field of view at about ``spacing`` mm, averaged over what counts; coarser axes stay as they are."""
    parts = [_averaging(int(n), s, spacing) for n, s in zip(level.size, level.spacing, strict=True)]
    matrices = [None if matrix is None else level.tensor(matrix) for matrix, _ in parts]
    weight = _along_axes(level.weight, matrices)
    counted = level.image * level.weight if level.masked else level.image  # no copy where all counts
    image = _along_axes(counted, matrices) / weight.clamp(min=1e-3)
    return Level(image.contiguous(), weight.contiguous(), tuple(reached for _, reached in parts))


def standardised(level: Level) -> Level:
    """Zero mean and unit variance per channel over what counts: similarity does not depend on it, rounding does."""
    axes = tuple(range(1, level.image.ndim))
    total = level.weight.sum().clamp(min=1e-6)
    mean = (level.image * level.weight).sum(axes, keepdim=True) / total
    variance = ((level.image - mean) ** 2 * level.weight).sum(axes, keepdim=True) / total
    return replace(level, image=(level.image - mean) / variance.sqrt().clamp(min=1e-12))


def gaussian_contrast(level: Level, width: float) -> Level:
    """Intensity relative to the mean and the standard deviation under a Gaussian of ``width`` mm, over what counts.

    Takes out slow changes of brightness (a coil's field in MR, a body against air), so that edges everywhere count
    alike.
    """

    def kernel(count: int, spacing: float) -> Tensor:
        offsets = np.arange(count)[:, None] - np.arange(count)
        return level.tensor(np.exp(-0.5 * (offsets * spacing / width) ** 2))

    matrices: list[Tensor | None] = [kernel(int(n), s) for n, s in zip(level.size, level.spacing, strict=True)]
    total = _along_axes(level.weight, matrices).clamp(min=1e-6)

    def mean(image: Tensor) -> Tensor:
        return _along_axes(image * level.weight, matrices) / total

    centre = mean(level.image)
    spread = (mean(level.image**2) - centre**2).clamp(min=0).sqrt()
    # Near the edge of what counts, contrast depends on where that edge is, which would pull the edges of both together.
    weight = level.weight * (total / total.max()) ** EDGE_POWER
    return replace(level, image=(level.image - centre) / (spread + CONTRAST_FLOOR), weight=weight)


def build_pyramid(
    target: Level, source: Level, voxels: tuple[int, ...], checkpoint: Callable[[], None]
) -> list[tuple[Level, Level]]:
    """Both images at common spacings, finest first.

    ``voxels`` is the budget at each level of the larger image, or of what the smaller mask leaves.
    """
    dims = target.dims
    whole = max(float(np.prod(level.extent)) for level in (target, source))
    counted = [float(np.prod(level.extent)) * float(level.weight.mean()) for level in (target, source) if level.masked]
    volume = max(min([whole, *counted]), LEAST_COUNTED * whole)
    # Single voxels of a small image are noise: its levels are as much coarser than it as those of a large one are.
    share = min(1.0, max(float(np.prod(target.size)), float(np.prod(source.size))) / (OVERSAMPLING * voxels[0]))
    pair, levels = (target, source), []
    for position, budget in enumerate(voxels):
        checkpoint()
        spacing = (volume / max(budget * share, FEWEST_VOXELS)) ** (1 / dims)
        pair = (coarser(pair[0], spacing), coarser(pair[1], spacing))
        if position == 0:
            pair = (standardised(pair[0]), standardised(pair[1]))
        levels.append(pair)
    return levels


def contrast_pair(pair: tuple[Level, Level], matrix: Float) -> tuple[Level, Level]:
    """The local contrast of both images where they see each other through ``matrix`` (d + 1, d + 1; target to source).

    Of each image only the shared part counts, so that its contrast ends where the other's does and is measured against
    the same contents: neither depends on how much more the one field of view holds.
    """
    volume = max(float(np.prod(level.extent)) for level in pair)
    width = LOCALITY * volume ** (1 / pair[0].dims)
    back = np.asarray(np.linalg.inv(matrix))
    shared = _seen_by(pair[0], pair[1], matrix), _seen_by(pair[1], pair[0], back)
    return gaussian_contrast(standardised(shared[0]), width), gaussian_contrast(standardised(shared[1]), width)


def _seen_by(level: Level, other: Level, matrix: Float) -> Level:
    d = level.dims
    index = other.index(level.points() @ level.tensor(matrix[:d, :d]).T + level.tensor(matrix[:d, d]))
    seen = interpolate(other.weight, index) * other.inside(index)
    return replace(level, weight=level.weight * seen.reshape(level.weight.shape))

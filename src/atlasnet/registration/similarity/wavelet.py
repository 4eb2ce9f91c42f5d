"""The discrete wavelet metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.similarity.pair import AlignedPair, Block, channel_mean, expected_differences

# Two decompositions: blocks of 4 voxels, about one support.
DEPTH = 2


class WaveletDifference:
    """L1 distance of Haar coefficients, over what it would be for unrelated images.

    Both images are decomposed to two levels with orthonormal Haar filters along every axis longer than one voxel. The
    absolute differences of all detail coefficients and of the last approximation are summed over the support: edges and
    textures weigh as much as brightness does in `AbsoluteDifference`. (Ferrante, Dokania, Marini, Paragios 2017 compare
    wavelet coefficients likewise; they do not say which wavelet.) The mean over the channels; 0 for equal images, 1 on
    average without alignment and where the source is not covered.
    """

    def __init__(self, pair: AlignedPair) -> None:
        self.pair = pair
        self.windows = pair.labels.windows(pair.source)
        supports = pair.supports()
        self.covered = None if pair.everything_counts else pair.labels.windows(pair.covered[None])
        self.counted = pair.counted.to(torch.float32)
        self.voxel_supports = supports
        self.share = supports.mean(self.counted)
        here = pair.counted & pair.aligned(pair.covered)
        # Less their common mean, images do not jump to the 0 beyond what counts.
        common = _common_mean(pair.target, pair.aligned(pair.source), here)
        target = decompose((pair.target - common) * here)
        source = decompose((pair.aligned(pair.source) - common) * here)
        coverage = here.to(torch.float32)
        borders = decompose(coverage[None])
        self.supports, self.block_sizes = [], []
        expected = torch.zeros(len(pair.target), dtype=torch.float64)
        before, size = pair.target.shape[1:], 1
        for ours, theirs, border in zip(target, source, borders, strict=True):
            axes = [old != new for old, new in zip(before, ours.shape[2:], strict=True)]
            supports, before, size = supports.halved((axes[0], axes[1], axes[2])), ours.shape[2:], size * 2 ** sum(axes)
            self.supports.append(supports)
            self.block_sizes.append(size)
            coverage = _halved_mean(coverage, axes)
            alike = _alike(coverage)
            # A step to what does not count has the sign of the side that it lies on: blocks are alike without it.
            ours, theirs = (part * torch.where(border < 0, -1.0, 1.0) for part in (ours, theirs))
            for channel in range(len(pair.target)):
                expected[channel] += sum(_expected(ours[:, channel], theirs[:, channel], alike)) / size
        scale = torch.where(expected > 0, 1 / expected.clamp(min=1e-12), 1.0).to(pair.target)
        self.scale = scale[:, None, None, None]

    def unary(self, block: Block) -> Tensor:
        """Costs (k, j, i, cz, cy, cx) of a block of labels."""
        # The transform is linear: the coefficients of the difference are the differences of the coefficients.
        difference = (self.windows[block] - self.pair.target) * self.scale
        if self.covered is not None:
            difference = difference * (self.covered[block] * self.counted)
        levels = zip(self.supports, self.block_sizes, decompose(difference), strict=True)
        cost = sum(supports.mean(channel_mean(bands.abs().sum(0), 3)) / size for supports, size, bands in levels)
        if self.covered is not None:
            cost = cost + self.share - self.voxel_supports.mean(self.covered[block][:, :, :, 0] * self.counted)
        return torch.as_tensor(cost)


def _common_mean(target: Tensor, source: Tensor, here: Tensor) -> Tensor | float:
    """(c, 1, 1, 1) mean of both images over what counts; 0 where everything does, for then it changes nothing."""
    if here.all() or not here.any():
        return 0.0
    both = torch.cat([target[:, here], source[:, here]], 1).double()
    return (ordered_sum(both, kept=1) / both.shape[1]).to(target.dtype)[:, None, None, None]


def _halved_mean(values: Tensor, axes: list[bool]) -> Tensor:
    """Means of (z, y, x) over blocks of two along the chosen axes; an odd last voxel is a block."""
    kernel = [2 if halve else 1 for halve in axes]
    return torch.nn.functional.avg_pool3d(values[None], kernel, ceil_mode=True, count_include_pad=False)[0]


def _alike(coverage: Tensor) -> list[tuple[Tensor, float]]:
    """Blocks (z, y, x) by the share of them that is covered, an octave together: where they are, as indices into all;
    and how many, per covered block.

    A block of which little is covered has small coefficients, and is compared with its like.
    """
    whole, octaves = max(float(coverage.double().sum()), 1e-12), coverage.clamp(min=1e-6).log2().ceil().flatten()
    groups = [(octaves == octave).nonzero()[:, 0] for octave in range(-3 * DEPTH, 1)]
    return [(chosen, len(chosen) / whole) for chosen in groups if len(chosen)]


def _expected(ours: Tensor, theirs: Tensor, alike: list[tuple[Tensor, float]]) -> list[float]:
    """What the coefficients of each band (bands, z, y, x) of unrelated images differ by, per covered share of a block;
    see `_alike`.
    """
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    found = [0.0] * len(ours)
    for chosen, share in alike:
        apart = expected_differences(ours[:, chosen], theirs[:, chosen])
        found = [total + share * value for total, value in zip(found, apart, strict=True)]
    return found


def decompose(values: Tensor) -> list[Tensor]:
    """Orthonormal Haar transform along the last three axes, to two levels; fewer where nothing is left to decompose.

    Args:
        values: (..., z, y, x). An axis of one voxel is left alone; an odd one is continued by its last value.

    Returns:
        Per level (bands, ..., z / 2, y / 2, x / 2) detail coefficients; the last level's last band is the
        approximation.
    """
    levels: list[Tensor] = []
    for _ in range(DEPTH):
        if max(values.shape[-3:]) == 1:
            break
        bands = [values]
        for axis in (-3, -2, -1):
            if values.shape[axis] > 1:
                bands = [part for band in bands for part in _haar(band, axis)]
        # the approximation was split off first along every axis
        values, details = bands[0], bands[1:]
        levels.append(torch.stack(details))
    if not levels:
        return [values[None]]
    levels[-1] = torch.cat([levels[-1], values[None]])
    return levels


def _haar(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Sums and differences of neighbours along one of the last three axes, over the root of two."""
    count = values.shape[axis]
    if count % 2:
        values = torch.cat([values, values.narrow(axis, count - 1, 1)], dim=axis)
    shape = list(values.shape)
    shape[axis:] = [shape[axis] // 2, 2, *shape[len(shape) + axis + 1 :]]
    pairs = values.reshape(shape)
    first, second = pairs.select(axis, 0), pairs.select(axis, 1)
    return (first + second) * math.sqrt(0.5), (first - second) * math.sqrt(0.5)

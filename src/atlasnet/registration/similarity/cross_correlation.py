"""Normalised cross-correlation over the support of a control point."""

from __future__ import annotations

import torch
from torch import Tensor

from atlasnet.registration.similarity.pair import AlignedPair, Block

# Variance, as a share of that of the whole image, under which a support holds only noise; its correlation fades to 0.
FLAT = 1e-3


class CrossCorrelation:
    """1 - correlation of target and source over each support, weighted as the support is.

    The mean over the channels. 0 for images equal up to brightness and contrast, 1 for unrelated ones, 2 for opposite
    ones. Voxels that do not count are left out of the correlation; the share of a support that is not covered costs
    1.
    """

    def __init__(self, pair: AlignedPair) -> None:
        self.pair = pair
        self.supports = pair.supports()
        self.counted = pair.counted.to(torch.float32)
        self.share = self.supports.mean(self.counted)
        self.windows = pair.labels.windows(pair.source)
        self.covered = None if pair.everything_counts else pair.labels.windows(pair.covered[None])
        mean, square = self._moments(pair.target), self._moments(pair.target.square())
        self.mean, variance = mean, square - mean.square()
        self.flat_target = self._floor(pair.target[:, pair.counted])
        self.flat_source = self._floor(pair.source[:, pair.covered])
        self.deviation = (variance.clamp(min=0) + self.flat_target).sqrt()

    def unary(self, block: Block) -> Tensor:
        """Costs (k, j, i, cz, cy, cx) of a block of labels."""
        source = self.windows[block]  # (k, j, i, c, z, y, x)
        mean = self._moments(source)
        variance = (self._moments(source.square()) - mean.square()).clamp_(min=0)
        product = self._moments(source * self.pair.target)
        correlation = (product - mean * self.mean) / (self.deviation * (variance + self.flat_source).sqrt())
        cost = 1 - correlation.clamp_(-1, 1).mean(3)
        if self.covered is not None:
            covered = self.supports.mean(self.covered[block][:, :, :, 0] * self.counted)
            cost = (cost - 1) * covered + self.share
        return cost

    def _moments(self, values: Tensor) -> Tensor:
        """Means over the voxels of each support that count."""
        return self.supports.mean(values * self.counted) / self.share.clamp(min=1e-6)

    @staticmethod
    def _floor(values: Tensor) -> Tensor:
        """(c, 1, 1, 1) variance of noise."""
        variance = values.var(1, correction=0) if values.shape[1] else values.new_zeros(len(values))
        return (FLAT * variance).clamp(min=1e-8)[:, None, None, None]

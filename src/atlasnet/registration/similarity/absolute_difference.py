"""Sum of absolute differences."""

from __future__ import annotations

import torch
from torch import Tensor

from atlasnet.registration.similarity.pair import AlignedPair, Block, VoxelMetric, channel_mean, expected_difference


class AbsoluteDifference(VoxelMetric):
    """|target - source| over what it would be for independent draws from the two images.

    The mean over the channels; 0 for equal images, 1 on average without alignment and where the source is not covered.
    """

    def __init__(self, pair: AlignedPair) -> None:
        self.supports = pair.supports()
        chosen = pair.counted & pair.aligned(pair.covered)
        scales = [
            expected_difference(target[chosen], source[chosen])
            for target, source in zip(pair.target, pair.aligned(pair.source), strict=True)
        ]
        factors = torch.tensor([1 / s if s > 0 else 1.0 for s in scales], device=pair.target.device)[
            :, None, None, None
        ]
        self.target = pair.target * factors
        self.counted = pair.counted
        self.windows = pair.labels.windows(pair.source * factors)
        self.covered = None if pair.everything_counts else pair.labels.windows(pair.covered[None])

    def voxels(self, block: Block) -> Tensor:
        """See `VoxelMetric`."""
        cost = channel_mean((self.windows[block] - self.target).abs_(), 3)
        if self.covered is not None:
            cost = torch.where(self.covered[block][:, :, :, 0], cost, 1.0) * self.counted
        return cost

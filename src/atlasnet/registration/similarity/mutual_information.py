"""Mutual information as a cost per voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from atlasnet.registration.similarity.pair import AlignedPair, Block, VoxelMetric

BINS = 16
# Each bin is cut into this many steps, between which the cost is interpolated once, in the table.
STEPS = 4
LEVELS = (BINS - 1) * STEPS + 1
# Share of the product of the marginals mixed into the joint histogram: bounds what a rare pair of intensities can cost.
PRIOR = 0.05


class MutualInformation(VoxelMetric):
    """1 - pointwise mutual information / entropy, looked up in the joint histogram of the current alignment.

    A joint histogram per control point and label would be noise; the histogram of the whole current alignment says
    how well a source and a target intensity go together, log p(s, t) / (p(s) p(t)), and the mean of that over a
    support is the support's part of the mutual information (as in Viola and Wells 1997; Kim, Kolmogorov, Zabih 2003).
    Histograms have 16 bins over the given range with linear Parzen windows; voxels beyond the range belong to the
    outermost bins.

    Over all voxels the mean cost is 1 - MI / H, with H the smaller entropy of the two images: 0 when one image
    follows from the other, 1 when they are independent, where the source is not covered, or where an image is
    constant.
    """

    def __init__(self, pair: AlignedPair) -> None:
        self.supports = pair.supports()
        self.tables, targets, sources = [], [], []
        for channel, (source_range, target_range) in enumerate(pair.bins):
            target = _steps(pair.target[channel], target_range)
            source = _steps(pair.source[channel], source_range)
            chosen = pair.counted & pair.aligned(pair.covered)
            self.tables.append(_table(target[chosen], pair.aligned(source)[chosen]))
            # the extra row and column stand for voxels that do not count and for voxels that are not covered
            targets.append(target.masked_fill(~pair.counted, LEVELS).int() * (LEVELS + 1))
            sources.append(source.masked_fill(~pair.covered, LEVELS).int())
        self.target = torch.stack(targets)
        self.windows = pair.labels.windows(torch.stack(sources))

    def voxels(self, block: Block) -> Tensor:
        """See `VoxelMetric`."""
        total: Tensor | None = None
        windows = self.windows[block]
        for channel, table in enumerate(self.tables):
            index = windows[:, :, :, channel] + self.target[channel]
            cost = table.index_select(0, index.flatten()).view(index.shape)
            total = cost if total is None else total.add_(cost)
        assert total is not None
        return total if len(self.tables) == 1 else total.div_(len(self.tables))


def joint_histogram(target: Tensor, source: Tensor) -> Tensor:
    """(16, 16) joint probabilities (target, source) of two lists of steps; two bins share a step linearly."""
    counts = torch.bincount(target * LEVELS + source, minlength=LEVELS * LEVELS).reshape(LEVELS, LEVELS).double()
    window = _parzen(counts.device)
    joint = window.T @ counts @ window
    return joint / joint.sum().clamp(min=1)


def _steps(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Normalised intensities as steps 0..60 of the 16 bins."""
    low, high = limits
    return ((values - low) * ((LEVELS - 1) / (high - low))).round_().clamp_(0, LEVELS - 1).long()


def _parzen(device: torch.device) -> Tensor:
    """(steps, bins) share of each step in each bin."""
    position = torch.arange(LEVELS, dtype=torch.float64, device=device) / STEPS
    return (1 - (position[:, None] - torch.arange(BINS, device=device)).abs()).clamp(min=0)


def _table(target: Tensor, source: Tensor) -> Tensor:
    """Flat (62 * 62) cost of a step of the target (row) with a step of the source (column)."""
    joint = joint_histogram(target, source)
    rows, columns = joint.sum(1), joint.sum(0)
    product = rows[:, None] * columns[None, :]
    ratio = torch.where(product > 0, ((1 - PRIOR) * joint + PRIOR * product) / product.clamp(min=1e-30), 1.0)
    entropy = min(float(-torch.xlogy(p, p).sum()) for p in (rows, columns))
    cost = torch.ones((LEVELS + 1, LEVELS + 1), dtype=torch.float32, device=joint.device)
    if entropy > 1e-6:
        window = _parzen(joint.device)
        cost[:LEVELS, :LEVELS] = (1 - window @ ratio.log() @ window.T / entropy).float()
    cost[LEVELS] = 0
    return cost.reshape(-1)

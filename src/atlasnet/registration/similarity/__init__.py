"""The metrics of the registration, each a cost per control point and displacement on one common scale.

Every metric is 0 for perfect agreement and 1 for images that have nothing to do with each other, so that weights
compare what they seem to compare. A cost is a mean over the support of a control point; a part of the support that
does not count (target mask) costs 0 whatever the displacement, a part where the source is unknown costs 1, as if it
were unrelated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.similarity.absolute_difference import AbsoluteDifference
from atlasnet.registration.similarity.cross_correlation import Boxes, CrossCorrelation, local_contrast
from atlasnet.registration.similarity.mutual_information import MutualInformation
from atlasnet.registration.similarity.pair import AlignedPair, Block, Supports, VoxelMetric, values_at_once
from atlasnet.registration.similarity.self_similarity import SelfSimilarity, self_similarity
from atlasnet.registration.similarity.wavelet import WaveletDifference

# What a voxel out of view costs is told by the intensity of the target, or by the local contrast for the metrics that
# compare that, in so many steps; a step that no more than this share of all voxels takes says little.
KINDS = 16
FEW_SEEN = 1e-3
OF_CONTRAST = ("ncc", "mind")


class Metric(Protocol):
    """A similarity measure, bound to one pair of images."""

    def __init__(self, pair: AlignedPair) -> None: ...

    def unary(self, block: Block) -> Tensor:
        """Costs (k, j, i, cz, cy, cx) of a block of labels (slices along z, y, x of the label space)."""


METRICS: dict[str, type[Metric]] = {
    "mi": MutualInformation,
    "ncc": CrossCorrelation,
    "dwt": WaveletDifference,
    "sad": AbsoluteDifference,
    "mind": SelfSimilarity,
}


def unary_costs(pair: AlignedPair, weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of the metrics for every label and control point; see `weighted_costs`.

    Args:
        pair: the images.
        weights: of each metric, by name; only their ratios matter.

    Returns:
        (lz, ly, lx, cz, cy, cx) float32 costs.
    """
    total = sum(weights.values())
    return weighted_costs(pair, {name: weight / total for name, weight in weights.items() if weight > 0})


def weighted_costs(pair: AlignedPair, weights: Mapping[str, float | Tensor]) -> Tensor:
    """The weighted sum of the metrics for every label and control point.

    Where a label takes a voxel out of the source's field of view, the voxel costs what covered voxels like it cost on
    average as the images lie: a part of the body that the source lacks is neither filled by stretching what the source
    has, nor does it push away what fits, and the air around a body, which costs much wherever it is, is not drawn out.

    Under a mask, and in images of one slice, few voxels decide, and where nothing is lost by leaving, a label that
    keeps the few which agree by chance and takes all others out of view wins. There a voxel that is in view as the
    images lie costs at least 1 where it leaves.

    Args:
        pair: the images.
        weights: of each metric, by name: a number, or (cz, cy, cx) a number for every control point.

    Returns:
        (lz, ly, lx, cz, cy, cx) float32 costs.
    """
    metrics = [(weight, METRICS[name](pair)) for name, weight in weights.items()]
    beyond = [] if bool(pair.covered.all()) else _beyond(pair, weights)
    surpluses = [(weight, surplus * pair.counted) for weight, surplus in beyond]
    supports, windows = pair.supports(), pair.labels.windows((~pair.covered[None]).to(torch.float32))
    result = torch.empty((*pair.labels.shape, *pair.control.shape), device=pair.target.device)
    for block in pair.labels.blocks(pair.target.numel(), values_at_once(pair.target.device)):
        voxels, costs = [], []
        for weight, metric in metrics:
            if isinstance(metric, VoxelMetric) and not isinstance(weight, Tensor):
                voxels.append(metric.voxels(block).mul_(weight))
            else:
                costs.append(metric.unary(block) * weight)
        missing = windows[block][:, :, :, 0]
        for weight, surplus in surpluses:
            if isinstance(weight, Tensor):
                costs.append(supports.mean(missing * surplus) * weight)
            else:
                voxels.append((missing * surplus).mul_(weight))
        if voxels:
            # The mean over the supports takes as long as a metric does: of what is a number at each voxel it is taken
            # once.
            costs.append(supports.mean(_total(voxels)))
        result[block] = _total(costs)
    return result


def _total(parts: list[Tensor]) -> Tensor:
    """Their sum, in the memory of the first."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]


def _beyond(pair: AlignedPair, weights: Mapping[str, float | Tensor]) -> list[tuple[float | Tensor, Tensor]]:
    """Pairs of a weight and (z, y, x), what is to be added for voxels out of view, for which a metric counts 1."""
    surplus = [(weight, _costs_beyond(pair, name) - 1) for name, weight in weights.items()]
    if any(isinstance(weight, Tensor) for weight in weights.values()):
        return surplus
    return [(1.0, torch.stack([weight * costs for weight, costs in surplus]).sum(0))]


def _costs_beyond(pair: AlignedPair, name: str) -> Tensor:
    """(z, y, x) what each voxel of the target costs by a metric out of view."""
    usual = _usual_costs(pair, name)
    if not pair.masked and min(pair.image.shape) > 1:
        return usual
    return torch.where(pair.aligned(pair.covered), usual.clamp(min=1), usual)


def _usual_costs(pair: AlignedPair, name: str) -> Tensor:
    """(z, y, x) what covered voxels like each voxel of the target cost by a metric on average, as the images lie.

    Of a kind that few of them are, it is drawn to the mean of all, which is 1 without any.
    """
    still = pair.still()
    own = METRICS[name](still).unary(_still(still))[0, 0, 0]
    seen = pair.counted & still.covered
    shown = pair.target_contrast.square().mean(0).sqrt() / 2 if name in OF_CONTRAST else pair.target.mean(0)
    kind = (shown * KINDS).long().clamp(0, KINDS - 1)
    # NumPy sums in the same order on every device.
    kinds, weights = kind.flatten().cpu().numpy(), seen.flatten().double().cpu().numpy()
    counts = np.bincount(kinds, weights, KINDS)
    sums = np.bincount(kinds, weights * own.flatten().cpu().numpy(), KINDS)
    typical = sums.sum() / counts.sum() if counts.any() else 1.0
    few = FEW_SEEN * own.numel()
    return own.new_tensor((sums + few * typical) / (counts + few))[kind]


def _still(pair: AlignedPair) -> Block:
    """The block that holds only the label that moves nothing."""
    z, y, x = (slice(radius, radius + 1) for radius in pair.labels.radii)
    return z, y, x


def agreement(pair: AlignedPair) -> dict[str, float]:
    """1 - mean cost of each metric for which the pair holds what it compares, as the images lie: 0 if unrelated.

    For mutual information this is MI over the smaller entropy; for cross-correlation the mean correlation over the
    supports. Equal images have 1 by the metrics of differences; about 0.7 by mutual information, whose bins overlap;
    near 1 by cross-correlation, whose scale counts every voxel alike, which the supports do not.
    """
    here = _still(pair)
    share = float(ordered_sum(pair.supports().mean(pair.counted.to(torch.float32)).double()))
    result = {}
    for name, metric in METRICS.items():
        if name != "mind" or pair.target_descriptor is not None:
            cost = float(ordered_sum(metric(pair).unary(here).double()))
            result[name] = 1 - cost / share if share > 0 else 0.0
    return result


def covered_share(pair: AlignedPair) -> float:
    """The share of what counts that the source shows as the images lie, weighed as `agreement` weighs voxels."""
    supports = pair.supports()
    seen = pair.counted & pair.aligned(pair.covered)
    share, whole = (float(ordered_sum(supports.mean(v.to(torch.float32)).double())) for v in (seen, pair.counted))
    return share / whole if whole > 0 else 0.0


__all__ = [
    "METRICS",
    "AlignedPair",
    "Boxes",
    "Metric",
    "Supports",
    "agreement",
    "covered_share",
    "local_contrast",
    "self_similarity",
    "unary_costs",
    "weighted_costs",
]

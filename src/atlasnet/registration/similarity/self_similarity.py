"""The modality-independent neighbourhood descriptor in its self-similarity context."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.similarity.boxes import box_sums
from atlasnet.registration.similarity.pair import AlignedPair, Block, VoxelMetric, expected_difference


def self_similarity(values: Tensor, mask: Tensor | None, radii: tuple[int, int, int]) -> Tensor:
    """How alike the neighbourhoods of a voxel are among each other: what two modalities have in common.

    MIND-SSC of Heinrich, Jenkinson, Papiez, Brady, Schnabel ("Towards realtime multimodal fusion for image-guided
    interventions using self-similarities", MICCAI 2013): the mean squared difference of the patches around two
    neighbours of a voxel at a right angle (12 such pairs in a volume, 4 in an image), less its minimum over the pairs,
    over its mean, and exp(-that).

    Args:
        values: (c, z, y, x) intensities.
        mask: (1, z, y, x) weights of the voxels; None: all count. What does not count is taken for 0.
        radii: half the edge of a patch, and the distance of a neighbour, along (z, y, x), voxels; 0 along an axis of a
            single voxel.

    Returns:
        (pairs * c, z, y, x) in [0, 1].
    """
    if mask is not None:
        values = values * mask
    neighbours = [
        tuple(sign * radius if axis == along else 0 for axis in range(3))
        for along, radius in enumerate(radii)
        if radius > 0
        for sign in (-1, 1)
    ]
    # Opposite neighbours are no pair.
    pairs = [
        (p, q) for p, q in itertools.combinations(neighbours, 2) if any(a + b != 0 for a, b in zip(p, q, strict=True))
    ]
    sizes = box_sums(torch.ones_like(values[:1]), radii)
    distances = torch.stack(
        [box_sums((_moved(values, p) - _moved(values, q)).square(), radii).div_(sizes) for p, q in pairs]
    )
    distances -= distances.amin(0, keepdim=True)
    # The noise estimate is kept within three orders of magnitude of its mean, as the authors do.
    noise = distances.mean(0, keepdim=True)
    typical = ordered_sum(noise) / noise.numel()
    noise = torch.minimum(torch.maximum(noise, typical * 1e-3), typical * 1e3).clamp(min=1e-12)
    return torch.exp(-distances / noise).flatten(0, 1)


def _moved(values: Tensor, by: tuple[int, ...]) -> Tensor:
    """The image read ``by`` (z, y, x) voxels further on; the edge is repeated."""
    for axis, step in enumerate(by, start=1):
        if step:
            count = values.shape[axis]
            places = (torch.arange(count, device=values.device) + step).clamp(0, count - 1)
            values = values.index_select(axis, places)
    return values


class SelfSimilarity(VoxelMetric):
    """Mean absolute difference of the two images' `self_similarity`, over what it would be for unrelated images.

    0 for images that are alike up to any local relation of their intensities, 1 on average without alignment and where
    the source is not covered.
    """

    def __init__(self, pair: AlignedPair) -> None:
        assert pair.target_descriptor is not None
        assert pair.source_descriptor is not None
        self.supports = pair.supports()
        chosen = pair.counted & pair.aligned(pair.covered)
        ours, theirs = pair.target_descriptor, pair.aligned(pair.source_descriptor)
        expected = sum(expected_difference(a[chosen], b[chosen]) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        self.factor = 1 / expected if expected > 0 else 1.0
        self.target = ours
        self.counted = pair.counted
        self.windows = pair.labels.windows(pair.source_descriptor)
        self.covered = None if pair.everything_counts else pair.labels.windows(pair.covered[None])

    def voxels(self, block: Block) -> Tensor:
        """See `VoxelMetric`."""
        windows = self.windows[block]
        total = torch.zeros_like(windows[:, :, :, 0])
        for channel, target in enumerate(self.target):
            total += (windows[:, :, :, channel] - target).abs_()
        cost = total.mul_(self.factor / len(self.target))
        if self.covered is not None:
            cost = torch.where(self.covered[block][:, :, :, 0], cost, 1.0) * self.counted
        return cost

"""Local normalised cross-correlation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.similarity.boxes import VOXELS_AT_ONCE, box_sums
from atlasnet.registration.similarity.pair import AlignedPair, Block, VoxelMetric, channel_mean
from atlasnet.volume.sampling import slabs

# Standard deviation, as a share of the intensity window, under which a neighbourhood shows only noise; its contrast
# fades to 0. 32 Hounsfield units in CT.
NOISE = 0.02
# Mean square of the contrast of an image without any.
FLAT = 1e-6


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes around all voxels, in which contrast is taken; images that share a mask share them.

    Args:
        weight: (1, z, y, x) of the voxels.
        radii: half the edge of a box along (z, y, x), voxels.
        total: (1, z, y, x) weight within each box.
    """

    weight: Tensor
    radii: tuple[int, int, int]
    total: Tensor

    @classmethod
    def around(cls, weight: Tensor, radii: tuple[int, int, int]) -> Boxes:
        """Boxes of one size around all voxels, of which each counts with its weight."""
        return cls(weight, radii, box_sums(weight, radii).clamp(min=1e-3))

    def contrast(self, values: Tensor) -> Tensor:
        """See `local_contrast`."""
        _, depth, height, width = values.shape
        result = torch.empty_like(values)
        for z0, z1 in slabs((depth, height, width), VOXELS_AT_ONCE, device=values.device):
            low, high = max(z0 - self.radii[0], 0), min(z1 + self.radii[0], depth)
            part, weight, here = values[:, low:high], self.weight[:, low:high], slice(z0 - low, z1 - low)
            weighted, total = part * weight, self.total[:, z0:z1]
            mean = box_sums(weighted, self.radii)[:, here] / total
            variance = (box_sums(part * weighted, self.radii)[:, here] / total - mean.square()).clamp(min=0)
            result[:, z0:z1] = (part[:, here] - mean) / (variance + NOISE**2).sqrt() * weight[:, here]
        return result


def local_contrast(values: Tensor, mask: Tensor | None, radii: tuple[int, int, int]) -> Tensor:
    """Intensities relative to the mean and in standard deviations of the box around each voxel.

    Every edge and vessel counts alike, wherever it is and however bright its surroundings are.

    Args:
        values: (c, z, y, x) intensities in [0, 1].
        mask: (1, z, y, x) weights of the voxels; None: all count. The contrast is 0 where the weight is.
        radii: half the edge of the box along (z, y, x), voxels; 0 where the image has a single one.

    Returns:
        (c, z, y, x).
    """
    return Boxes.around(torch.ones_like(values[:1]) if mask is None else mask, radii).contrast(values)


class CrossCorrelation(VoxelMetric):
    """1 - local correlation of target and source, the mean over each support.

    The product of the two images' `local_contrast`, over the root of their mean squares: the correlation within the
    boxes around all voxels of a support, for the price of one product. The contrast of the source moves with it. (The
    squared difference of the contrasts has its least value at the true displacement of every support, but punishes
    what only one image shows: with it, known deformations of chests were missed by more.)

    The mean over the channels. 0 on average for images equal up to local brightness and contrast, 1 for unrelated ones,
    2 for opposite ones. Voxels that do not count cost 0; one that is not covered costs 1.
    """

    def __init__(self, pair: AlignedPair) -> None:
        self.supports = pair.supports()
        self.counted = pair.counted.to(torch.float32)
        chosen = pair.counted & pair.aligned(pair.covered)
        ours, theirs = pair.target_contrast * pair.counted, pair.source_contrast * pair.covered
        power = self._power(ours[:, chosen]) * self._power(pair.aligned(theirs)[:, chosen])
        # Where there is no contrast at all, no displacement is better than another.
        scale = power.clamp(min=FLAT**2).rsqrt().masked_fill(power <= FLAT**2, 0.0)
        self.target = ours * scale[:, None, None, None]
        self.windows = pair.labels.windows(theirs)

    def voxels(self, block: Block) -> Tensor:
        """See `VoxelMetric`."""
        return self.counted - channel_mean(self.windows[block] * self.target, 3)

    @staticmethod
    def _power(values: Tensor) -> Tensor:
        """(c,) mean squares of (c, n); 0 of nothing."""
        return ordered_sum(values.square(), kept=1) / max(1, values.shape[1])

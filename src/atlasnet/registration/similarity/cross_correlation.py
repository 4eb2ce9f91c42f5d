"""Local normalised cross-correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.similarity.pair import AlignedPair, Block
from atlasnet.volume.sampling import along_axes

# Standard deviation, as a share of the intensity window, under which a neighbourhood shows only noise; its contrast
# fades to 0. 32 Hounsfield units in CT.
NOISE = 0.02
# Mean square of the contrast of an image without any.
FLAT = 1e-6


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

    def band(count: int, radius: int) -> Tensor:
        places = torch.arange(count, device=values.device)
        return ((places[:, None] - places[None, :]).abs() <= radius).to(values.dtype)

    z, y, x = (band(count, radius) for count, radius in zip(values.shape[1:], radii, strict=True))
    weight = torch.ones_like(values[:1]) if mask is None else mask
    total = along_axes((z, y, x), weight).clamp(min=1e-3)
    mean = along_axes((z, y, x), values * weight) / total
    variance = (along_axes((z, y, x), values.square() * weight) / total - mean.square()).clamp(min=0)
    return (values - mean) / (variance + NOISE**2).sqrt() * weight


class CrossCorrelation:
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
        self.share = self.supports.mean(pair.counted.to(torch.float32))
        chosen = pair.counted & pair.aligned(pair.covered)
        ours, theirs = pair.target_contrast * pair.counted, pair.source_contrast * pair.covered
        power = self._power(ours[:, chosen]) * self._power(pair.aligned(theirs)[:, chosen])
        # Where there is no contrast at all, no displacement is better than another.
        scale = power.clamp(min=FLAT**2).rsqrt().masked_fill(power <= FLAT**2, 0.0)
        self.target = ours * scale[:, None, None, None]
        self.windows = pair.labels.windows(theirs)

    def unary(self, block: Block) -> Tensor:
        """Costs (k, j, i, cz, cy, cx) of a block of labels."""
        return self.share - self.supports.mean((self.windows[block] * self.target).mean(3))

    @staticmethod
    def _power(values: Tensor) -> Tensor:
        """(c,) mean squares of (c, n); 0 of nothing."""
        return ordered_sum(values.square(), kept=1) / max(1, values.shape[1])

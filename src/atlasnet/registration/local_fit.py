"""How well two registered images fit voxel by voxel: a weight of what one says about the other, a sign of quality."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.volume.sampling import grown, slabs

# Local similarity is measured in boxes of this many voxels.
BOX = 5
# A correlation above 0.99 counts as that: who is nearer to 1 there is chance.
SMALLEST_DISTANCE = 1e-2
# Of the product of two variances, each over that of its whole image: below, one of them is rounding.
FLAT = 1e-6
# What lies so many voxels from a labelled one or less is around it.
AROUND = 3
# Of a slab, whose boxes reach two slices beyond it on either side: of thin ones most would be computed twice.
VOXELS_AT_ONCE = 1 << 20
CORRELATION_BYTES = 8  # of a voxel of two images: their local correlation, which is computed slab by slab


def local_correlation(image: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """The correlation of two images in a box of 5 voxels around every voxel.

    Args:
        image: (c, z, y, x) intensities.
        other: of the same shape, on the same grid.

    Returns:
        (z, y, x), from -1 to 1, the mean over the channels; 0 where an image is flat.
    """
    depth, height, width = image.shape[1:]
    correlation = np.zeros((depth, height, width), dtype=np.float64)
    for channels in zip(image, other, strict=True):
        scales = [_scale(channel) for channel in channels]
        for z0, z1 in slabs((depth, height, width), VOXELS_AT_ONCE):
            low, high = max(0, z0 - BOX // 2), min(depth, z1 + BOX // 2)
            one, two = ((c[low:high] - mean) / std for c, (mean, std) in zip(channels, scales, strict=True))
            a, b, aa, bb, ab = (ndimage.uniform_filter(v, BOX) for v in (one, two, one * one, two * two, one * two))
            found = (ab - a * b) / np.sqrt(np.maximum((aa - a * a) * (bb - b * b), FLAT))
            correlation[z0:z1] += found[z0 - low : z1 - low]
    correlation /= len(image)
    return correlation


def local_weight(image: NDArray[np.generic], other: NDArray[np.generic], power: float = 2.0) -> NDArray[np.float16]:
    """A weight of every voxel that falls with a power of the distance of `local_correlation` from 1.

    Artaechevarria, Munoz-Barrutia, Ortiz-de-Solorzano, IEEE TMI 28(8), 2009.

    Args:
        image: (c, z, y, x) intensities.
        other: of the same shape, on the same grid.
        power: 0 for equal weights; at most 2.

    Returns:
        (z, y, x): 1 / (1 - correlation) ** power of a correlation that counts as 0.99 where it is higher; 1 where an
        image is flat.
    """
    return np.asarray(np.clip(1 - local_correlation(image, other), SMALLEST_DISTANCE, 2) ** -power, dtype=np.float16)


def fit_around(correlation: NDArray[np.float64], found: NDArray[np.bool_]) -> float | None:
    """The mean `local_correlation` (z, y, x) where something was found, and up to 3 voxels around; None of nothing."""
    if not found.any():
        return None
    (box,) = ndimage.find_objects(found.view(np.uint8))
    wide = grown(box, AROUND, found.shape)
    near = ndimage.binary_dilation(found[wide], iterations=AROUND)
    return float(correlation[wide][near].mean())


def _scale(channel: NDArray[np.generic]) -> tuple[np.float64, np.float64]:
    """Mean and deviation, with which a high mean costs no digits; of a constant, 1 for the deviation."""
    mean = np.float64(channel.mean(dtype=np.float64))
    squares = sum(float(np.square(part - mean).sum()) for part in channel)
    return mean, np.float64(math.sqrt(squares / channel.size) or 1.0)

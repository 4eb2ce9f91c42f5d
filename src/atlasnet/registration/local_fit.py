"""How well two registered images fit voxel by voxel, as the weight of what one of them says about the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Local similarity is measured in boxes of this many voxels.
BOX = 5
SMALLEST = 1e-2
# Of the product of two variances, each over that of its whole image: below, one of them is rounding.
FLAT = 1e-6


def local_weight(image: NDArray[np.generic], other: NDArray[np.generic], power: float = 2.0) -> NDArray[np.float16]:
    """The weight of every voxel, from the correlation of two images in a box of 5 voxels around it.

    It falls with a power of the distance from perfect agreement, as in Artaechevarria, Munoz-Barrutia,
    Ortiz-de-Solorzano, IEEE TMI 28(8), 2009.

    Args:
        image: (c, z, y, x) intensities.
        other: of the same shape, on the same grid.
        power: 0 for equal weights; at most 2.

    Returns:
        (z, y, x): 1 / (1 - correlation) ** power of the mean correlation over the channels, which counts as 0.99 where
        it is higher; 1 where an image is flat.
    """
    correlation = np.zeros(image.shape[1:], dtype=np.float64)
    for channels in zip(image, other, strict=True):
        one, two = (_standardised(channel) for channel in channels)
        a, b, aa, bb, ab = (ndimage.uniform_filter(v, BOX) for v in (one, two, one * one, two * two, one * two))
        correlation += (ab - a * b) / np.sqrt(np.maximum((aa - a * a) * (bb - b * b), FLAT))
    distance = np.clip(1 - correlation / len(image), SMALLEST, 2)
    return np.asarray(distance**-power, dtype=np.float16)


def _standardised(channel: NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean 0 and variance 1, so that a high mean costs no digits; a constant stays one."""
    values = channel.astype(np.float64)
    values -= values.mean()
    return values / (values.std() or 1.0)

"""Intensity windows: what the metrics see of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.cohort.plan import CT_MI_RANGE
from atlasnet.errors import VolumeError
from atlasnet.volume import Volume
from atlasnet.wording import counted

Pair = tuple[float, float]
Ranges = tuple[Pair, ...]
OptionalRanges = tuple[Pair | None, ...]

# Hounsfield units: what lies outside hardly differs between tissues, or is metal or air.
CT_CLAMP: Pair = (-1000.0, 600.0)
# At most this many voxels decide percentiles; they are taken at regular distances.
PERCENTILE_VOXELS = 1 << 20
RARE = 0.005  # share of the voxels that are left out at either end


@dataclass(frozen=True)
class Window:
    """How one channel of one image is read.

    Args:
        clamp: intensities outside are moved to the nearer end; the ends become 0 and 1.
        bins: intensities between which the histogram bins of mutual information lie.
    """

    clamp: Pair
    bins: Pair

    def normalise(self, values: Tensor) -> Tensor:
        """Intensities to [0, 1]."""
        low, high = self.clamp
        return values.to(torch.float32, copy=True).sub_(low).div_(high - low).clamp_(0, 1)

    @property
    def relative_bins(self) -> Pair:
        """``bins`` in normalised intensities."""
        low, high = self.clamp
        return (self.bins[0] - low) / (high - low), (self.bins[1] - low) / (high - low)


def choose_windows(
    source: Volume, target: Volume, clamp: Ranges | None, mi_range: OptionalRanges | None
) -> tuple[list[Window], list[Window]]:
    """Windows of the source's and of the target's channels.

    Given ranges hold for both images. Without them, and for a channel whose ``mi_range`` is None, two images in
    Hounsfield units get those of CT: `CT_CLAMP`, `CT_MI_RANGE`; any other image is read between its own 0.5th and
    99.5th percentile, because scales of MR are arbitrary. A channel counts as Hounsfield units when both images reach
    below -500 and above 0.

    Raises:
        VolumeError: the images differ in their number of channels, or not as many ranges as channels are given.
    """
    if source.channels != target.channels:
        raise VolumeError(
            "source and target have different channels",
            expected=f"{counted(target.channels, 'channel')} as the target",
            found=f"{source.channels} in the source",
        )
    for name, given in (("clamp", clamp), ("mi_range", mi_range)):
        if given is not None and len(given) != target.channels:
            raise VolumeError(
                f"{name} must give one range per channel", expected=str(target.channels), found=str(len(given))
            )
    windows: tuple[list[Window], list[Window]] = ([], [])
    for channel, span in enumerate(mi_range or [None] * target.channels):
        images = source.array[channel], target.array[channel]
        hounsfield = all(in_hounsfield_units(image) for image in images)
        for image, result in zip(images, windows, strict=True):
            if clamp is not None:
                limits = clamp[channel]
            elif hounsfield:
                limits = CT_CLAMP
            elif span is not None:
                limits = span
            else:
                limits = _robust_range(image)
            bins = span if span is not None else CT_MI_RANGE if hounsfield else limits
            result.append(Window(limits, bins))
    return windows


def in_hounsfield_units(image: NDArray[Any]) -> bool:
    """Whether intensities (z, y, x) look like Hounsfield units: they reach below -500 and above 0.

    That is, more than `RARE` of the voxels do; counting them takes less time than percentiles.
    """
    some = _thinned(image)
    least = RARE * some.size
    return bool(np.count_nonzero(some < -500) > least and np.count_nonzero(some > 0) > least)


def _robust_range(image: NDArray[Any]) -> Pair:
    low, high = (float(v) for v in np.percentile(_thinned(image), (100 * RARE, 100 * (1 - RARE))))
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        low, high = float(image.min()), float(image.max())
    return (low, high) if high > low else (low, low + 1.0)


def _thinned(image: NDArray[Any]) -> NDArray[Any]:
    """About `PERCENTILE_VOXELS` of the voxels, from everywhere."""
    flat = image.reshape(-1)
    step = max(1, flat.size // PERCENTILE_VOXELS)
    # A step that shares a factor with the length of a row would meet the same few columns in every row.
    while math.gcd(step, image.shape[-1]) > 1:
        step += 1
    return flat[::step]

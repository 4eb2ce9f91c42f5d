"""How one channel's intensities become what a network sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import CohortError

LOW, HIGH = 0.5, 99.5
"""The percentiles between which intensities count as signal (nnU-Net's choice; Isensee et al., Nature Methods 2021)."""

_LARGEST = 1e30  # what float32 holds, and its squares' sums double precision

_PADDING_SHARE = 0.25
"""Where this share of an image equals its minimum, or 0, that is padding or a mask; statistics are taken beside it."""


@dataclass(frozen=True)
class Normalisation:
    """Clipping and scaling of one channel.

    ``"window"``: the same for every image: clip to ``window``, subtract ``mean``, divide by ``std``; for CT, whose
    numbers mean the same everywhere. ``"percentiles"``: from each image: clip to its 0.5th and 99.5th percentile,
    then mean 0 and standard deviation 1; for modalities without a scale.

    Args:
        channel: its name.
        scheme: one of the two.
        window: lowest and highest intensity (HU); only with ``"window"``.
        mean: of clipped intensities over the cohort; only with ``"window"``.
        std: their standard deviation; only with ``"window"``.

    Raises:
        CohortError: an impossible combination or value.
    """

    channel: str
    scheme: Literal["window", "percentiles"]
    window: tuple[float, float] | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.scheme not in ("window", "percentiles"):
            raise CohortError(
                "unknown scheme of normalisation", expected="window or percentiles", found=repr(self.scheme)
            )
        given = [value is not None for value in (self.window, self.mean, self.std)]
        if given != [self.scheme == "window"] * 3:
            raise CohortError(
                f"the normalisation of channel {self.channel!r} is not complete",
                expected="window, mean and std with the scheme 'window', none of them with 'percentiles'",
                found=repr(self),
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise CohortError(f"the window of channel {self.channel!r} is empty", found=repr(self.window))
        if self.std is not None and self.std < 1 / _LARGEST:
            raise CohortError(f"the std of channel {self.channel!r} is not positive", found=repr(self.std))

    def apply(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities of any shape and type as a network sees them: of that shape, without unit.

        Of CT, HU within the window minus the cohort's mean, over its standard deviation; of other images the same by
        the percentiles, mean and deviation of the image itself. A constant image becomes zeros.
        """
        if self.window is not None and self.mean is not None and self.std is not None:
            # In place: a scan of 800 slices has no room for a copy after every step.
            scaled = array.astype(np.float32)
            np.clip(scaled, *self.window, out=scaled)
            scaled -= np.float32(self.mean)
            scaled /= np.float32(self.std)
            return scaled
        values = array.astype(np.float32).ravel()
        signal = _signal(values)
        low, high = np.percentile(signal, (LOW, HIGH)).tolist()
        signal = np.clip(signal, low, high)
        mean, std = float(signal.mean(dtype=np.float64)), float(signal.std(dtype=np.float64))
        if not std > 0:
            return np.zeros(array.shape, dtype=np.float32)
        np.clip(values, low, high, out=values)
        values -= np.float32(mean)
        values /= np.float32(std)
        return values.reshape(array.shape)

    def to_json(self) -> dict[str, Any]:
        """As JSON; what the scheme does not need is left out."""
        value: dict[str, Any] = {"channel": self.channel, "scheme": self.scheme}
        if self.window is not None:
            value |= {"window": list(self.window), "mean": self.mean, "std": self.std}
        return value

    @classmethod
    def from_json(cls, value: object) -> Normalisation:
        """Read what `to_json` wrote.

        Raises:
            CohortError: a key is unknown or absent, or a value has the wrong type.
        """
        if not isinstance(value, Mapping) or not {"channel", "scheme"} <= set(value):
            raise CohortError("a normalisation needs a channel and a scheme", found=repr(value))
        unknown = set(value) - {"channel", "scheme", "window", "mean", "std"}
        if unknown:
            raise CohortError("unknown key in a normalisation", found=", ".join(sorted(map(str, unknown))))
        if not isinstance(value["channel"], str):
            raise CohortError("the channel of a normalisation must be a text", found=repr(value["channel"]))
        mean, std = (None if value.get(key) is None else number(value[key], key) for key in ("mean", "std"))
        return cls(value["channel"], value["scheme"], pair(value.get("window"), "window"), mean, std)


def number(value: object, name: str) -> float:
    """A finite number out of JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise CohortError(f"{name} must be a number", found=repr(value)[:80])
    return float(value)


def pair(value: object, name: str) -> tuple[float, float] | None:
    """Two numbers out of JSON, or None for null."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise CohortError(f"{name} must be two numbers, lowest first, or null", found=repr(value))
    return number(value[0], name), number(value[1], name)


def _signal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    for empty in (values.min(), np.float32(0)):  # interpolation and noise leave a few voxels below what pads an image
        inside = values != empty
        if 0 < np.count_nonzero(inside) / values.size <= 1 - _PADDING_SHARE:
            signal: NDArray[np.float32] = values[inside]
            return signal
    return values

"""`Plan`: every choice that depends on the data, made once, written down, open to the user's hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from atlasnet.cohort.fingerprint import QUANTILES, Fingerprint
from atlasnet.cohort.normalisation import HIGH, LOW, Normalisation, number, pair
from atlasnet.cohort.spacing import WantedSpacing
from atlasnet.errors import CohortError
from atlasnet.execution import read_json, write_json
from atlasnet.volume.grid import Grid
from atlasnet.volume.orientation import Orientation, slices_along, thick_axis
from atlasnet.volume.volume import Volume

NETWORK_VOXELS = 1.0e6
"""Voxels of the median subject on the networks' grid: a volume then passes a network in seconds on two CPU cores."""

REGION_VOXELS = 4.5e5
"""Voxels that networks see of it, where its structures are small beside it; about as many are seen of a chest's lungs
when the chest has `NETWORK_VOXELS`."""

FINER = 0.7
"""Where fewer voxels are seen, they are finer than the scan's within slices by this factor at most, so that images and
probabilities lose less when they are interpolated (network_ablations.json and finer_voxels.json in benchmarks/results).
"""

MARGIN, REGISTRATION_MARGIN = 12, 4
"""Voxels of the networks' grid and of the registration's that networks see around the structures of all training
subjects, the larger of the two lengths: room for those of others, for what lies around them, and for maps that are a
little off."""

REGISTRATION_VOXELS = 1.5e6
"""Voxels of the median subject on the registration's grid: some ten seconds a pair on two CPU cores."""

CT_MI_RANGE = (-900.0, 100.0)
"""HU of the mutual information's bins (Vakalopoulou et al., MICCAI 2018)."""

CT_CHEST_WINDOW = (-1000.0, 400.0)
"""HU that stay visible where the labels lie in air: lungs, vessels, soft tissue and the edge of bone."""

_LUNG_HU = -400.0
Float = NDArray[np.float64]

_BATCH_PIXELS = 2**20  # four slices of 512 x 512
_LARGEST_BATCH = 32
_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """How images are prepared, and with what networks start.

    Spacings are (x, y, z) in mm along the canonical axes (nearest LPS); of a scan with thick oblique slices, along
    those that have its slices where the plan has them (`atlasnet.volume.orientation.slices_along`).

    Args:
        spacing: of the grid on which networks work.
        slice_axis: the axis (``"z"``, ``"y"`` or ``"x"``) along which 2-D networks cut slices.
        normalisation: per channel.
        mi_range: per channel, the intensities that the bins of mutual information span; None: from each image.
        registration_spacing: of the finest grid on which images are registered; along an axis where an image is
            coarser, its own.
        network: a registered name, or ``module:Class``.
        width: factor on the network's channels.
        context: neighbouring slices that the network sees on each side.
        batch_size: slices in a training batch at most; a recipe may take fewer.

    Raises:
        CohortError: a value is impossible.
    """

    spacing: tuple[float, float, float]
    slice_axis: Literal["z", "y", "x"]
    normalisation: tuple[Normalisation, ...]
    mi_range: tuple[tuple[float, float] | None, ...]
    registration_spacing: tuple[float, float, float]
    network: str = "unet"
    width: float = 1.0
    context: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        def require(valid: bool, name: str, expected: str) -> None:
            if not valid:
                raise CohortError(
                    f"the plan's {name} is impossible", expected=expected, found=repr(getattr(self, name))
                )

        for name in ("spacing", "registration_spacing"):
            require(all(0 < value < 1e4 for value in getattr(self, name)), name, "three lengths above 0 mm (x, y, z)")
        require(self.slice_axis in ("z", "y", "x"), "slice_axis", "z, y or x")
        require(len(self.normalisation) > 0, "normalisation", "one per channel")
        require(len(self.mi_range) == len(self.normalisation), "mi_range", "one pair or null per channel")
        require(all(r is None or r[0] < r[1] for r in self.mi_range), "mi_range", "lowest before highest intensity")
        require(bool(self.network), "network", "a name")
        require(0 < self.width < 100, "width", "above 0")
        require(0 <= self.context <= 64, "context", "from 0 to 64 slices")
        require(self.batch_size >= 2, "batch_size", "at least 2 slices")

    @classmethod
    def derive(
        cls,
        fingerprint: Fingerprint,
        *,
        registered: bool = True,
        finer: bool = True,
        spacing: WantedSpacing | None = None,
    ) -> Plan:
        """The plan for a cohort.

        The networks' spacing is the median one, made coarser, finest axes first, until the median subject has at most
        `NETWORK_VOXELS`; or what networks see of it `REGION_VOXELS`, if that is finer: the box of the labels in any
        subject, with a margin. Where they see fewer, it is `FINER` within slices, as far as `REGION_VOXELS` allow. The
        registration's is the median one made coarser until the median subject has at most `REGISTRATION_VOXELS`. Slices
        are cut along the axis of clearly largest spacing, else along z. Channels named CT (in any case) get one window
        for all images: nnU-Net's 0.5th to 99.5th percentile under the labels, widened to `CT_CHEST_WINDOW` where labels
        lie in lungs, with mean and standard deviation of what surrounds the labels. Other channels are normalised image
        by image.

        Args:
            fingerprint: of the cohort.
            registered: whether subjects are registered, so that networks see only the region with structures.
            finer: whether voxels may be finer than the scan's.
            spacing: of the grid on which networks work, (x, y, z) mm, or ``"scan"`` for the median one, whatever it
                takes in time and memory.
        """
        extent, median = fingerprint.median_extent, fingerprint.median_spacing
        flat = extent < 1.5 * median
        axis = _slice_axis(median, flat)
        whole = _Seen(extent)
        registration = whole.coarsened(median, REGISTRATION_VOXELS)
        labels = fingerprint.label_extent if registered else None
        seen = _Seen(extent, labels, REGISTRATION_MARGIN * registration)
        planned = np.minimum(whole.coarsened(median, NETWORK_VOXELS), seen.coarsened(median, REGION_VOXELS))
        if finer and (planned == median).all():
            planned = seen.refined(median, axis)
        if spacing is not None:
            planned = median if spacing == "scan" else np.array(spacing)
        pixels = float(np.prod(np.delete(seen.size(planned), axis)))
        in_plane = float(np.delete(planned, axis).max())
        return cls(
            spacing=_three(planned),
            slice_axis=("x", "y", "z")[axis],
            normalisation=tuple(_normalisation(fingerprint, c) for c in range(len(fingerprint.channels))),
            mi_range=tuple(CT_MI_RANGE if is_ct(name) else None for name in fingerprint.channels),
            registration_spacing=_three(registration),
            context=0 if flat[axis] else 1 if planned[axis] > 2 * in_plane else 2,
            batch_size=int(np.clip(2 ** int(np.log2(max(1.0, _BATCH_PIXELS / pixels))), 2, _LARGEST_BATCH)),
        )

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels' names."""
        return tuple(normalisation.channel for normalisation in self.normalisation)

    def turn(self, grid: Grid) -> Orientation:
        """How a canonical grid is turned to have its thick slices along ``slice_axis``; see `slices_along`."""
        return slices_along(grid, "xyz".index(self.slice_axis))

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x) that networks see around the structures of the training subjects."""
        accuracy = REGISTRATION_MARGIN * np.divide(self.registration_spacing, self.spacing)
        x, y, z = np.maximum(MARGIN, np.ceil(accuracy - 1e-6)).astype(int).tolist()
        return z, y, x

    def normalise(self, volume: Volume) -> Volume:
        """Intensities as a network sees them, float32 (c, z, y, x), on the same grid.

        Args:
            volume: in canonical orientation, which makes the result's last bit independent of how the image was stored.

        Raises:
            CohortError: the volume has not as many channels as the plan.
        """
        if volume.channels != len(self.normalisation):
            raise CohortError(
                "the image does not have the plan's channels",
                expected=f"{len(self.normalisation)} ({', '.join(self.channels)})",
                found=str(volume.channels),
            )
        if volume.channels == 1:  # without a second array of its size
            return volume.replace(self.normalisation[0].apply(volume.array))
        result = np.empty(volume.array.shape, dtype=np.float32)
        for normalisation, channel, place in zip(self.normalisation, volume.array, result, strict=True):
            place[...] = normalisation.apply(channel)
        return volume.replace(result)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        value = {"format": _FORMAT} | {field.name: getattr(self, field.name) for field in fields(self)}
        value["normalisation"] = [normalisation.to_json() for normalisation in self.normalisation]
        value["mi_range"] = [None if span is None else list(span) for span in self.mi_range]
        return value | {name: list(getattr(self, name)) for name in ("spacing", "registration_spacing")}

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """Read what `to_json` wrote, or a user changed.

        Raises:
            CohortError: a key is unknown or absent, a type is wrong, or a value is impossible.
        """
        if not isinstance(value, Mapping):
            raise CohortError("a plan must be a JSON object", found=type(value).__name__)
        names = [field.name for field in fields(cls)]
        unknown, absent = sorted(set(value) - {*names, "format"}), [name for name in names if name not in value]
        if unknown or absent:
            raise CohortError(
                "the plan has unknown or lacks needed keys",
                expected=", ".join(names),
                found="; ".join(
                    part
                    for part in (
                        f"unknown: {', '.join(unknown)}" * bool(unknown),
                        f"absent: {', '.join(absent)}" * bool(absent),
                    )
                    if part
                ),
            )
        if value.get("format", _FORMAT) != _FORMAT:
            raise CohortError("the plan's format is unknown", expected=str(_FORMAT), found=repr(value["format"]))
        for name, kind, word in (
            ("network", str, "a text"),
            ("context", int, "a whole number"),
            ("batch_size", int, "a whole number"),
        ):
            if not isinstance(value[name], kind) or isinstance(value[name], bool):
                raise CohortError(f"the plan's {name} must be {word}", found=repr(value[name]))
        for name in ("normalisation", "mi_range"):
            if not isinstance(value[name], list):
                raise CohortError(f"the plan's {name} must be a list, one entry per channel", found=repr(value[name]))
        return cls(
            spacing=_spacing(value["spacing"], "spacing"),
            slice_axis=value["slice_axis"],
            normalisation=tuple(Normalisation.from_json(entry) for entry in value["normalisation"]),
            mi_range=tuple(pair(entry, "mi_range") for entry in value["mi_range"]),
            registration_spacing=_spacing(value["registration_spacing"], "registration_spacing"),
            network=value["network"],
            width=number(value["width"], "width"),
            context=value["context"],
            batch_size=value["batch_size"],
        )

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read plan.json.

        Raises:
            CohortError: as `from_json`, or the file cannot be read.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise CohortError("the plan cannot be read", path=path, found=str(error)) from error
        try:
            return cls.from_json(content)
        except CohortError as error:
            raise error.told(path=path, remedy="correct the file, or delete it to have it derived again") from error

    def write(self, path: str | Path) -> None:
        """Write plan.json."""
        write_json(path, self.to_json())


def is_ct(channel: str) -> bool:
    """Whether a channel's name says that its intensities are Hounsfield units."""
    return channel.strip().lower() == "ct"


@dataclass(frozen=True)
class _Seen:
    """What is seen of a scan: all, or the labels and at least a margin around them; extents along (x, y, z), mm."""

    scan: Float
    labels: Float | None = None
    margin: Float | float = 0.0

    def size(self, spacing: Float) -> Float:
        """Voxels along (x, y, z), as if there were parts of them."""
        whole = np.maximum(1, self.scan / spacing)
        if self.labels is None:
            return whole
        around: Float = self.labels / spacing + 2 * np.maximum(MARGIN, self.margin / spacing)
        return np.minimum(whole, around)

    def excess(self, spacing: Float, limit: float) -> float:
        """The logarithm of how many times more voxels are seen than the limit."""
        return float(np.log(np.prod(self.size(spacing)) / limit))

    def refined(self, spacing: Float, axis: int) -> Float:
        """The spacing made finer within slices, by `FINER` or as far as `REGION_VOXELS` are seen at most."""

        def fine(factor: float) -> Float:
            return np.where(np.arange(3) == axis, spacing, factor * spacing)

        factor = _least(lambda factor: self.excess(fine(factor), REGION_VOXELS), FINER, 1.0)
        rounded: Float = np.round(fine(factor), 9)
        return rounded

    def coarsened(self, spacing: Float, limit: float) -> Float:
        """The spacing, its finest axes raised to one common value until ``limit`` voxels are seen at most."""
        deep = self.scan >= 1.5 * spacing

        def raised(common: float) -> Float:
            return np.where(deep, np.maximum(spacing, common), spacing)

        return raised(_least(lambda common: self.excess(raised(common), limit), spacing.min(), self.scan.max()))


def _least(excess: Callable[[float], float], low: float, high: float) -> float:
    """The least of three digits from ``low`` to ``high`` where a falling function is not above 0, else ``high``."""
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    root = brentq(excess, low, high, xtol=1e-9)
    digit = 10.0 ** (np.floor(np.log10(root)) - 2)
    return min(high, round(float(np.ceil(root / digit - 1e-6) * digit), 9))


def _slice_axis(spacing: ArrayLike, flat: ArrayLike) -> int:
    """0, 1 or 2 for x, y, z: the axis of a single voxel, else the thickest, else z."""
    if np.sum(flat) == 1:
        return int(np.argmax(flat))
    thick = thick_axis(spacing)
    return 2 if thick is None else thick


def _normalisation(fingerprint: Fingerprint, channel: int) -> Normalisation:
    name = fingerprint.channels[channel]
    if not is_ct(name):
        return Normalisation(name, "percentiles")
    share = np.linspace(0, 100, QUANTILES)
    low, high = np.interp((LOW, HIGH), share, fingerprint.foreground[channel]).tolist()
    if low < _LUNG_HU:
        low, high = min(low, CT_CHEST_WINDOW[0]), max(high, CT_CHEST_WINDOW[1])
    low, high = round(low, 1), max(round(high, 1), round(low, 1) + 1)
    # The mid-points of equally likely intervals stand for the whole distribution.
    around = np.asarray(fingerprint.surroundings[channel])
    clipped = np.clip((around[1:] + around[:-1]) / 2, low, high)
    return Normalisation(
        name, "window", (low, high), round(float(clipped.mean()), 3), round(max(float(clipped.std()), 1.0), 3)
    )


def _spacing(value: object, name: str) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise CohortError(f"the plan's {name} must be three numbers (x, y, z), mm", found=repr(value))
    return _three([number(entry, name) for entry in value])


def _three(values: ArrayLike) -> tuple[float, float, float]:
    x, y, z = np.asarray(values, dtype=np.float64).tolist()
    return x, y, z

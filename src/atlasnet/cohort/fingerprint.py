"""What a cohort is like: sizes, spacings, intensities and label volumes; all that the plan is derived from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.masks import within
from atlasnet.cohort.structures import Values, where
from atlasnet.errors import CohortError
from atlasnet.execution import Reporter, SilentReporter
from atlasnet.volume.grid import Grid
from atlasnet.volume.orientation import Orientation, canonical, common_slice_axis, slices_along
from atlasnet.volume.sampling import grown
from atlasnet.volume.volume import Volume
from atlasnet.wording import counted, lengths, shortened

PERCENTILES = (0.0, 0.5, 5.0, 50.0, 95.0, 99.5, 100.0)
QUANTILES = 201
SAMPLES = 10_000
"""Voxels drawn from each subject and channel; every subject counts alike, however large."""

DECLARE_THEM = "declare them in dataset.json, or mend the reference"
"""What mends label values that are not declared."""

Point = tuple[float, float, float]

_IMAGE_SAMPLES = 300_000
_NEIGHBOURHOOD_MM = 10.0


@dataclass(frozen=True)
class SubjectPrint:
    """One subject, in canonical orientation; thick oblique slices along one axis in the whole cohort.

    Args:
        name: the subject's.
        shape: voxels (z, y, x).
        spacing: mm (x, y, z).
        percentiles: per channel, the intensities at `PERCENTILES`.
        label_ml: millilitres by name of a label or region, background left out and what nobody annotated; empty without
            a reference.
        label_box: low and high corner (x, y, z) of the box around the labels, mm from the middle of the field of view;
            None where nothing is labelled.
        possible_extent: mm (x, y, z) of the box around the labels and what is to be ignored, where there may be others;
            None where there is neither.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    percentiles: tuple[tuple[float, ...], ...]
    label_ml: Mapping[str, float]
    label_box: tuple[Point, Point] | None = None
    possible_extent: Point | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "shape_zyx": list(self.shape),
            "spacing_xyz_mm": list(self.spacing),
            "percentiles": [
                {f"{p:g}": value for p, value in zip(PERCENTILES, values, strict=True)} for values in self.percentiles
            ],
            "label_ml": dict(self.label_ml),
            "label_box_xyz_mm": None if self.label_box is None else [list(corner) for corner in self.label_box],
        }


@dataclass(frozen=True)
class Fingerprint:
    """A cohort in numbers.

    Args:
        channels: names.
        subjects: each subject.
        foreground: per channel, `QUANTILES` evenly spaced quantiles (0 to 100 %) of the intensities under any label; of
            the whole image where nothing is labelled.
        surroundings: the same of all voxels in the box of the labels, 10 mm wider on each side.
    """

    channels: tuple[str, ...]
    subjects: tuple[SubjectPrint, ...]
    foreground: tuple[tuple[float, ...], ...]
    surroundings: tuple[tuple[float, ...], ...]

    def __repr__(self) -> str:
        spacing = lengths(self.median_spacing)
        return (
            f"Fingerprint({counted(len(self.subjects), 'subject')}, channels {', '.join(self.channels)}, "
            f"median spacing {spacing} mm)"
        )

    @property
    def median_spacing(self) -> NDArray[np.float64]:
        """Median over subjects of the spacing along (x, y, z), mm."""
        return np.asarray(np.median([subject.spacing for subject in self.subjects], axis=0))

    @property
    def median_extent(self) -> NDArray[np.float64]:
        """Median over subjects of the field of view along (x, y, z), mm, edge to edge."""
        extents = [np.array(subject.shape[::-1]) * subject.spacing for subject in self.subjects]
        return np.asarray(np.median(extents, axis=0))

    @property
    def label_extent(self) -> NDArray[np.float64] | None:
        """Of the box around the labels of all subjects, one laid over the other, (x, y, z) in mm; None without labels.

        Where every subject is annotated in part, the box may be as large as the smallest around what is not annotated.
        """
        boxes = [subject.label_box for subject in self.subjects if subject.label_box is not None]
        if not boxes:
            return None
        low, high = np.min([box[0] for box in boxes], axis=0), np.max([box[1] for box in boxes], axis=0)
        possible = np.min([subject.possible_extent or (0.0, 0.0, 0.0) for subject in self.subjects], axis=0)
        return np.asarray(np.maximum(high - low, possible))

    def to_json(self) -> dict[str, Any]:
        """As JSON, with a few of the quantiles."""

        def shown(quantiles: Sequence[float]) -> dict[str, float]:
            share = np.linspace(0, 100, QUANTILES)
            return {f"{p:g}": float(np.interp(p, share, quantiles)) for p in PERCENTILES}

        return {
            "channels": list(self.channels),
            "median_spacing_xyz_mm": self.median_spacing.tolist(),
            "median_extent_xyz_mm": self.median_extent.tolist(),
            "foreground": [shown(q) for q in self.foreground],
            "surroundings": [shown(q) for q in self.surroundings],
            "subjects": [subject.to_json() for subject in self.subjects],
        }


@dataclass(frozen=True)
class Measured:
    """One subject's part of a fingerprint: its print, its canonical grid, and intensities drawn from it per channel."""

    print: SubjectPrint
    grid: Grid
    foreground: tuple[NDArray[np.float64], ...]
    surroundings: tuple[NDArray[np.float64], ...]


def check_declared(labels: Volume, declared: Iterable[int], subject: str, path: Path | None = None) -> None:
    """Whether a reference holds declared values only.

    Args:
        labels: the reference.
        declared: label values, those of the background and of what is to be ignored among them.
        subject: whose it is.
        path: of its file.

    Raises:
        CohortError: it does not.
    """
    strange = ~np.isin(labels.array, sorted(declared))
    if strange.any():
        values, counts = np.unique(labels.array[strange], return_counts=True)
        found = [f"{value} ({counted(count, 'voxel')})" for value, count in zip(values, counts, strict=True)]
        raise CohortError(
            f"the reference of {subject} holds label values that are not declared",
            path=path,
            found=shortened(found, 6),
            remedy=f"{DECLARE_THEM}; atlasnet check lists those of all subjects",
        )


def take_fingerprint(cohort: Cohort, reporter: Reporter | None = None) -> Fingerprint:
    """Read every subject, one at a time, and measure it; labels outside its organ mask, where it has one, are none.

    Raises:
        CohortError: a reference holds values that are not declared.
        VolumeError: the first file that cannot be used; `atlasnet.cohort.check.check_cohort` names all of them.
    """
    reporter = reporter or SilentReporter()
    measured = []
    for subject in reporter.track(cohort, "fingerprint", len(cohort)):
        image = subject.read_image()
        labels, mask = None, subject.read_mask(image.grid)
        if subject.labels is not None:
            labels = subject.read_labels(image.grid)
            check_declared(labels, cohort.declared, subject.name, subject.labels)
            labels = labels if mask is None else within(labels, mask)
        measured.append(measure(subject.name, image, labels, cohort.told_of(subject), cohort.ignore_label))
    return combine(cohort.channels, measured)


def measure(
    name: str, image: Volume, labels: Volume | None, label_values: Mapping[str, Values], ignore_label: int | None
) -> Measured:
    """Measure one subject; the same whatever orientation it is stored in."""
    turned, orientation = canonical(image)
    reference = None if labels is None else orientation.apply(labels.array)[0]
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, turned.grid.voxels, min(_IMAGE_SAMPLES, turned.grid.voxels))
    percentiles = tuple(_percentiles(channel, drawn) for channel in turned.array)
    label_ml: dict[str, float] = {}
    places = box = drawn[:SAMPLES]
    labelled = possible = None
    if reference is not None:
        millilitres = float(np.prod(turned.grid.spacing)) / 1000
        for label, value in label_values.items():
            if value != 0:
                label_ml[label] = round(int(np.count_nonzero(where(reference, value))) * millilitres, 6)
        foreground = reference != 0
        possible = _box(foreground, turned.grid)
        if ignore_label is not None:
            foreground &= reference != ignore_label
        labelled = _box(foreground, turned.grid)
        inside = np.flatnonzero(foreground)
        if inside.size:
            places = inside[generator.integers(0, inside.size, SAMPLES)]
            box = _around(foreground, turned.grid, generator)
    x, y, z = turned.grid.spacing.tolist()
    return Measured(
        SubjectPrint(name, turned.grid.shape, (x, y, z), percentiles, label_ml, labelled, _size(possible)),
        turned.grid,
        tuple(channel.ravel()[places].astype(np.float64) for channel in turned.array),
        tuple(channel.ravel()[box].astype(np.float64) for channel in turned.array),
    )


def combine(channels: tuple[str, ...], measured: Sequence[Measured]) -> Fingerprint:
    """One fingerprint of all subjects, each with the same weight."""
    share = np.linspace(0, 100, QUANTILES)

    def pooled(parts: Sequence[NDArray[np.float64]]) -> tuple[float, ...]:
        values: list[float] = np.percentile(np.concatenate(parts), share).tolist()
        return tuple(values)

    axis = common_slice_axis(part.grid for part in measured)
    return Fingerprint(
        channels,
        tuple(p.print if axis is None else _turned(p.print, slices_along(p.grid, axis)) for p in measured),
        tuple(pooled([part.foreground[c] for part in measured]) for c in range(len(channels))),
        tuple(pooled([part.surroundings[c] for part in measured]) for c in range(len(channels))),
    )


def _turned(subject: SubjectPrint, orientation: Orientation) -> SubjectPrint:
    """The same with axes permuted and flipped."""

    def sides(values: Point, low: Point | None = None) -> Point:
        """Of (x, y, z); of a corner, where an axis is flipped, the other one with the other sign."""
        own, other = values[::-1], None if low is None else low[::-1]
        z, y, x = (
            -other[axis] if flip and other is not None else own[axis]
            for axis, flip in zip(orientation.axes, orientation.flipped, strict=True)
        )
        return x, y, z

    z, y, x = (subject.shape[axis] for axis in orientation.axes)
    box, possible = subject.label_box, subject.possible_extent
    return replace(
        subject,
        shape=(z, y, x),
        spacing=sides(subject.spacing),
        label_box=None if box is None else (sides(box[0], box[1]), sides(box[1], box[0])),
        possible_extent=None if possible is None else sides(possible),
    )


def _percentiles(channel: NDArray[Any], drawn: NDArray[np.int64]) -> tuple[float, ...]:
    inner = np.percentile(channel.ravel()[drawn], PERCENTILES[1:-1]).tolist()
    return (float(channel.min()), *inner, float(channel.max()))


def _box(inside: NDArray[np.bool_], grid: Grid) -> tuple[Point, Point] | None:
    """Corners of the box around what is set, mm from the middle of the grid along its axes; None where nothing is."""
    boxes = ndimage.find_objects(inside.view(np.uint8))
    if not boxes:
        return None
    sides = np.array([(side.start, side.stop) for side in boxes[0]][::-1])
    low, high = ((sides - grid.size[:, None] / 2) * grid.spacing[:, None]).T
    return _point(low), _point(high)


def _size(box: tuple[Point, Point] | None) -> Point | None:
    return None if box is None else _point(np.subtract(box[1], box[0]))


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = np.round(values, 6).tolist()
    return x, y, z


def _around(foreground: NDArray[np.bool_], grid: Grid, generator: np.random.Generator) -> NDArray[np.int64]:
    """Flat indices drawn from the box of the foreground, widened."""
    margin = np.ceil(_NEIGHBOURHOOD_MM / grid.spacing[::-1]).astype(int)
    coordinates = []
    (box,) = ndimage.find_objects(foreground.view(np.uint8))
    for side in grown(box, margin.tolist(), foreground.shape):
        coordinates.append(generator.integers(side.start, side.stop, SAMPLES))
    return np.asarray(np.ravel_multi_index(tuple(coordinates), foreground.shape))

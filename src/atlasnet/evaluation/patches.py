"""The patch protocol: are patches of a region taken for diseased and healthy where they are?

Anthimopoulos, Christodoulidis, Ebner, Christe, Mougiakakou, "Lung Pattern Classification for Interstitial Lung Diseases
Using a Deep Convolutional Neural Network", IEEE TMI 35(5), 2016, cut slices into patches of 32 x 32 pixels that do not
overlap and lie in the annotation with 80 % of their pixels at least. AtlasNet's publication cut its own scans so, with
one class of disease, and gives the mean accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.masks import within
from atlasnet.cohort.structures import Hidden, Values, annotated_structures
from atlasnet.errors import InputError
from atlasnet.evaluation.contour import Mask
from atlasnet.evaluation.scores import annotated_slices, check_pair, ignored_voxels, slice_axis
from atlasnet.volume.volume import Volume

_ROUNDING = 1e-9  # of a share such as 0.8 times a number of pixels


@dataclass(frozen=True)
class PatchProtocol:
    """Which patches are told apart.

    Args:
        label: the name of the disease.
        region: names of the labels in which patches lie, beside the disease; none: all that was annotated.
        size: pixels of a patch's side.
        share: of a patch's pixels that must be of one kind, diseased or healthy, for the patch to count.

    Raises:
        InputError: a size or a share that makes no sense.
    """

    label: str
    region: tuple[str, ...] = ()
    size: int = 32
    share: float = 0.8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError("a patch needs at least one pixel", found=str(self.size))
        if not 0.5 < self.share <= 1:
            raise InputError(
                "such a share of a patch says nothing", expected="above 0.5, at most 1", found=str(self.share)
            )

    @classmethod
    def parse(cls, text: str, size: int = 32) -> PatchProtocol:
        """Read LABEL or LABEL:REGION, several labels of the region divided by commas; spaces around names are left out.

        Raises:
            InputError: a name is empty.
        """
        label, colon, region = text.partition(":")
        names = [name.strip() for name in region.split(",")] if colon else []
        if not all([label.strip(), *names]):
            raise InputError(
                "a label of the patches has no name", expected="LABEL or LABEL:REGION,REGION", found=repr(text)
            )
        return cls(label.strip(), tuple(names), size)

    def values(self, labels: Mapping[str, int]) -> tuple[int, tuple[int, ...]]:
        """The values of the disease and of the region.

        Raises:
            InputError: a name is unknown.
        """
        unknown = [name for name in (self.label, *self.region) if name not in labels]
        if unknown:
            raise InputError("there is no such label", expected="one of " + ", ".join(labels), found=", ".join(unknown))
        return labels[self.label], tuple(labels[name] for name in self.region)

    def annotated(self, labels: Mapping[str, int], hidden: Hidden) -> bool:
        """Whether a reference tells the disease and the region, where values are ``hidden``; see `values`."""
        disease, region = self.values(labels)
        asked: dict[str, Values] = {"disease": disease, "region": (disease, *region)}
        return len(annotated_structures(asked, hidden)) == len(asked)

    def count(
        self,
        prediction: Volume,
        reference: Volume,
        labels: Mapping[str, int],
        *,
        ignore_label: int | None = None,
        mask: Volume | None = None,
        case: str = "",
    ) -> PatchCounts:
        """`classify_patches` by this protocol.

        Args:
            prediction: label map (1, z, y, x).
            reference: label map on the same grid.
            labels: name to value.
            ignore_label: the reference value of voxels that nobody annotated.
            mask: (1, z, y, x), an organ that the region is part of; where there is no region, it is the region.
            case: the subject's name in errors.

        Raises:
            VolumeError: the maps or the mask lie on different grids or have several channels.
            InputError: a name of the protocol is unknown.
        """
        disease, region = self.values(labels)
        area = region_mask(reference, region, ignore_label)
        if mask is not None:
            check_pair(mask, reference, case)
            reference, area = within(reference, mask), area & (mask.array[0] != 0)
        return classify_patches(
            prediction,
            reference,
            disease,
            area,
            size=self.size,
            share=self.share,
            ignore_label=ignore_label,
            case=case,
        )


@dataclass(frozen=True)
class PatchCounts:
    """Patches of one scan or several, and how many of them were classified as they are; they can be added."""

    diseased: int = 0
    diseased_right: int = 0
    healthy: int = 0
    healthy_right: int = 0

    def __add__(self, other: PatchCounts) -> PatchCounts:
        return PatchCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def mean_accuracy(self) -> float | None:
        """The mean of the shares of diseased and of healthy patches that are right; None without patches of both."""
        if not self.diseased or not self.healthy:
            return None
        return (self.diseased_right / self.diseased + self.healthy_right / self.healthy) / 2

    def as_json(self) -> dict[str, Any]:
        """The counts and the mean accuracy."""
        return {**asdict(self), "mean_accuracy": self.mean_accuracy}

    def text(self) -> str:
        """For a terminal."""
        shares = (
            f"{right} of {number} {name}"
            for name, right, number in (
                ("diseased", self.diseased_right, self.diseased),
                ("healthy", self.healthy_right, self.healthy),
            )
        )
        mean = "not defined" if self.mean_accuracy is None else f"{self.mean_accuracy:.3f}"
        return f"mean accuracy {mean}, right {', '.join(shares)}"


def region_mask(reference: Volume, values: Sequence[int], ignore_label: int | None = None) -> Mask:
    """(z, y, x): where a reference (1, z, y, x) has one of the values; without values, all that was annotated."""
    truth = reference.array[0]
    if values:
        return np.isin(truth, values)
    return np.ones(truth.shape, dtype=bool) if ignore_label is None else np.asarray(truth != ignore_label)


def classify_patches(
    prediction: Volume,
    reference: Volume,
    value: int,
    region: Mask,
    *,
    size: int = PatchProtocol.size,
    share: float = PatchProtocol.share,
    ignore_label: int | None = None,
    case: str = "",
) -> PatchCounts:
    """Cut the annotated slices of a scan into patches and classify them by reference and prediction.

    The patches tile each slice from the corner of the box around the region there, so that neither the field of view
    nor its padding decides where they lie; only whole ones are taken. A patch is diseased where at least ``share`` of
    its pixels are so in the reference, healthy where at least ``share`` lie in the region without disease; others do
    not count. It is taken for diseased where the prediction is, in at least half of its pixels of the region. Slices
    are those of `evaluate_subject`.

    Args:
        prediction: label map (1, z, y, x).
        reference: label map on the same grid.
        value: of the disease.
        region: (z, y, x), where patches may lie; the disease of the reference is part of it.
        size: pixels of a patch's side.
        share: of a patch's pixels, above one half.
        ignore_label: the reference value of voxels that nobody annotated; they are outside the region.
        case: the subject's name in errors.

    Raises:
        VolumeError: the maps lie on different grids or have several channels.
    """
    check_pair(prediction, reference, case)
    truth = reference.array[0]
    ignored = ignored_voxels(truth, ignore_label)
    axis = slice_axis(reference.grid)
    total = PatchCounts()
    needed = share * size * size - _ROUNDING
    for index in annotated_slices(truth, ignored, axis):
        plane = np.take(truth, index, axis)
        diseased = plane == value
        inside = np.take(region, index, axis) | diseased
        if ignored is not None:
            inside &= ~np.take(ignored, index, axis)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            continue
        corner = (slice(rows[0], None), slice(columns[0], None))
        found = (np.take(prediction.array[0], index, axis) == value) & inside
        ill, well, lit, area = (_tiles(mask[corner], size) for mask in (diseased, inside & ~diseased, found, inside))
        positive = 2 * lit >= area
        is_ill, is_well = ill >= needed, well >= needed
        total += PatchCounts(
            diseased=int(is_ill.sum()),
            diseased_right=int((is_ill & positive).sum()),
            healthy=int(is_well.sum()),
            healthy_right=int((is_well & ~positive).sum()),
        )
    return total


def _tiles(mask: Mask, size: int) -> NDArray[np.int64]:
    """How many pixels of each whole tile of a mask (y, x) are set."""
    rows, columns = (length // size for length in mask.shape)
    whole = mask[: rows * size, : columns * size]
    return np.asarray(whole.reshape(rows, size, columns, size).sum(axis=(1, 3), dtype=np.int64))

"""The scores of one subject: a row per label and, on request, a row per label and annotated slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.annotated import check_hidden
from atlasnet.cohort.masks import within
from atlasnet.cohort.structures import Hidden, Values, all_values, annotated_structures, where
from atlasnet.errors import InputError, VolumeError
from atlasnet.evaluation.contour import ContourDistances, Float, Mask
from atlasnet.volume.grid import Grid
from atlasnet.volume.label_boxes import around, label_boxes
from atlasnet.volume.volume import Volume

_AXES = ("z", "y", "x")

Presence = Literal["both", "reference", "prediction", "neither"]
"""Which of the maps hold a label: it was found, missed, found where there is none, or there is nothing to find."""


@dataclass(frozen=True)
class LabelScores:
    """How well one label of one subject was found.

    Dice, sensitivity and precision are computed from voxels, the distances and the surface Dice from contours (see
    `ContourDistances`). Where the label is absent from both maps, that is full agreement: overlaps are 1 and distances
    0. Where it is absent from one of them, overlaps are 0 and distances None: left out of means, counted as undefined,
    and worse than any number. ``presence`` says which of these it is. Voxels that nobody annotated count nowhere, in no
    volume either.
    """

    case: str
    label: str
    dice: float
    sensitivity: float
    precision: float
    hausdorff_mm: float | None
    hd95_mm: float | None
    average_contour_distance_mm: float | None
    surface_dice: float | None
    volume_ml: float
    reference_volume_ml: float
    presence: Presence


@dataclass(frozen=True)
class SliceScores:
    """The scores of `LabelScores` on one slice, from the contours in its plane, in mm and in pixels.

    ``slice`` is the index along ``axis``, x, y or z of the stored array. In pixels, a step to any of the four
    neighbours is 1, however long it is in mm; the surface Dice has its tolerance in mm.
    """

    case: str
    label: str
    axis: str
    slice: int
    dice: float
    sensitivity: float
    precision: float
    hausdorff_mm: float | None
    hd95_mm: float | None
    average_contour_distance_mm: float | None
    surface_dice: float | None
    hausdorff_px: float | None
    hd95_px: float | None
    average_contour_distance_px: float | None
    presence: Presence


@dataclass(frozen=True)
class SubjectScores:
    """The rows of one subject, in the order of the labels; ``slices`` is empty unless asked for."""

    rows: tuple[LabelScores, ...]
    slices: tuple[SliceScores, ...] = ()


def columns(row: type[LabelScores] | type[SliceScores]) -> list[str]:
    """The names of a row's fields, in order."""
    return [field.name for field in fields(row)]


def evaluate_subject(
    prediction: Volume,
    reference: Volume,
    labels: Mapping[str, Values],
    *,
    case: str = "",
    ignore_label: int | None = None,
    hidden: Hidden = (),
    tolerance_mm: float = 1.0,
    per_slice: bool = False,
    mask: Volume | None = None,
) -> SubjectScores:
    """Compare a label map with its reference.

    A slice is annotated where the reference holds any label, or, if the reference makes use of the ignore label, any
    voxel that is not ignored. A label that is absent from both maps in a slice has no row there. See `slice_axis` for
    the direction of the slices.

    Args:
        prediction: label map (1, z, y, x).
        reference: label map on the same grid (corners within 0.05 voxel).
        labels: name to value of what is scored, of a region to its values; the value 0 (background) is left out.
        case: the subject's name in the rows.
        ignore_label: the reference value of voxels that nobody annotated; they count nowhere.
        hidden: what nobody annotated in the subject, see `Subject`; a structure that the reference does not tell has
            no row.
        tolerance_mm: deviation up to which a contour voxel is right in the surface Dice.
        per_slice: score annotated slices too.
        mask: (1, z, y, x), an organ: where it is zero, both maps count as background, and labels end at its border.

    Raises:
        VolumeError: the maps or the mask lie on different grids or have several channels.
        InputError: the background is to be ignored.
        CohortError: the reference holds ``hidden`` labels.
    """
    check_ignore_label(ignore_label)
    check_pair(prediction, reference, case)
    check_hidden(reference, hidden, case)
    if mask is not None:
        check_pair(mask, reference, case)
        prediction, reference = within(prediction, mask), within(reference, mask)
    found, truth = prediction.array[0], reference.array[0]
    ignored = ignored_voxels(truth, ignore_label)
    spacing = reference.grid.spacing[::-1]
    voxel_ml = float(np.prod(spacing)) / 1000
    axis = slice_axis(reference.grid)
    annotated = annotated_slices(truth, ignored, axis) if per_slice else []
    boxes = [label_boxes(found), label_boxes(truth)]
    rows: list[LabelScores] = []
    slices: list[SliceScores] = []
    for name, value in annotated_structures(labels, hidden).items():
        if value == 0:
            continue
        # Of many labels each lies in a small part of the scan.
        held = [b for one in all_values(value) for of_map in boxes if (b := of_map.get(one)) is not None]
        box = around(held, 1, truth.shape)  # with a voxel more, where contours may end
        ours, theirs = where(found[box], value), where(truth[box], value)
        unknown = None if ignored is None else ignored[box]
        if unknown is not None:
            ours &= ~unknown
            theirs &= ~unknown  # a region may have the value that is ignored
        dice, sensitivity, precision = _overlap(ours, theirs)
        distances = ContourDistances.between(ours, theirs, spacing, unknown)
        rows.append(
            LabelScores(
                case=case,
                label=name,
                dice=dice,
                sensitivity=sensitivity,
                precision=precision,
                hausdorff_mm=distances.hausdorff(),
                hd95_mm=distances.hausdorff(95),
                average_contour_distance_mm=distances.average(),
                surface_dice=distances.surface_dice(tolerance_mm),
                volume_ml=float(np.count_nonzero(ours) * voxel_ml),
                reference_volume_ml=float(np.count_nonzero(theirs) * voxel_ml),
                presence=_presence(ours, theirs),
            )
        )
        for index in annotated:
            place = index - box[axis].start
            if not 0 <= place < ours.shape[axis]:
                continue
            planes = [np.take(mask, place, axis) for mask in (ours, theirs)]
            left_out = None if unknown is None else np.take(unknown, place, axis)
            if planes[0].any() or planes[1].any():
                slices.append(_score_slice(case, name, axis, index, planes, left_out, spacing, tolerance_mm))
    return SubjectScores(tuple(rows), tuple(slices))


def check_ignore_label(ignore_label: int | None) -> None:
    """Whether voxels of this value may be left out.

    Raises:
        InputError: it is the background.
    """
    if ignore_label == 0:
        raise InputError(
            "the background cannot be ignored: what is found where there is nothing would count nowhere",
            expected="the value of voxels that nobody annotated, other than 0",
            found="ignore label 0",
            remedy="leave the ignore label out; where 0 means that nobody looked, give those voxels another value",
        )


def slice_axis(grid: Grid) -> int:
    """The array axis (0 = z, 1 = y, 2 = x) across which slices are counted.

    The axis of the largest spacing; among those equal to it within 1 %, the one nearest the patient's length (LPS z),
    then the first.
    """
    spacing = grid.spacing[::-1]
    along_patient = np.abs(grid.direction[2, ::-1])
    thick = np.flatnonzero(spacing >= 0.99 * spacing.max())
    return int(thick[np.argmax(along_patient[thick])])


def check_pair(prediction: Volume, reference: Volume, case: str) -> None:
    """Whether both are label maps on one grid.

    Raises:
        VolumeError: they are not.
    """
    subject = case or "the subject"
    for volume, role in ((prediction, "prediction"), (reference, "reference")):
        if volume.channels != 1:
            raise VolumeError(
                f"the {role} of {subject} is no label map", expected="1 channel", found=str(volume.channels)
            )
    if not prediction.grid.matches(reference.grid):
        raise VolumeError(
            f"prediction and reference of {subject} lie on different grids",
            expected=repr(reference.grid),
            found=repr(prediction.grid),
            remedy="resample the prediction onto the grid of the reference",
        )


def _presence(ours: Mask, theirs: Mask) -> Presence:
    if ours.any():
        return "both" if theirs.any() else "prediction"
    return "reference" if theirs.any() else "neither"


def _overlap(ours: Mask, theirs: Mask) -> tuple[float, float, float]:
    """Dice, sensitivity, precision; all 1 if both masks are empty, all 0 if one is."""
    positive, true = int(np.count_nonzero(ours)), int(np.count_nonzero(theirs))
    if positive == 0 or true == 0:
        same = float(positive == true)
        return same, same, same
    both = int(np.count_nonzero(ours & theirs))
    return 2 * both / (positive + true), both / true, both / positive


def ignored_voxels(truth: NDArray[Any], ignore_label: int | None) -> Mask | None:
    """Where a reference (z, y, x) has the ignore label; None where it makes no use of it."""
    if ignore_label is None:
        return None
    ignored = np.asarray(truth == ignore_label)
    return ignored if ignored.any() else None


def annotated_slices(truth: NDArray[Any], ignored: Mask | None, axis: int) -> list[int]:
    """The slices of a reference (z, y, x) with a label, or with a voxel that is not ignored where some are."""
    annotated = truth != 0 if ignored is None else ~ignored
    return np.flatnonzero(annotated.any(axis=tuple(a for a in range(3) if a != axis))).tolist()


def _score_slice(
    case: str,
    name: str,
    axis: int,
    index: int,
    planes: Sequence[Mask],
    hidden: Mask | None,
    spacing: Float,
    tolerance: float,
) -> SliceScores:
    """Score the prediction's and the reference's ``planes`` of one label, at least one of them not empty."""
    ours, theirs = planes
    dice, sensitivity, precision = _overlap(ours, theirs)
    mm = ContourDistances.between(ours, theirs, np.delete(spacing, axis), hidden)
    pixels = ContourDistances.between(ours, theirs, (1.0, 1.0), hidden)
    return SliceScores(
        case=case,
        label=name,
        axis=_AXES[axis],
        slice=index,
        dice=dice,
        sensitivity=sensitivity,
        precision=precision,
        hausdorff_mm=mm.hausdorff(),
        hd95_mm=mm.hausdorff(95),
        average_contour_distance_mm=mm.average(),
        surface_dice=mm.surface_dice(tolerance),
        hausdorff_px=pixels.hausdorff(),
        hd95_px=pixels.hausdorff(95),
        average_contour_distance_px=pixels.average(),
        presence=_presence(ours, theirs),
    )

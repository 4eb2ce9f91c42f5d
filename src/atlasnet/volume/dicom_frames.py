"""The slices of one DICOM file: where each lies, and how its values are rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from atlasnet.errors import VolumeError
from atlasnet.volume.dicom_series import Instance

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Args:
        instance: the file that holds it.
        number: of the frame in the file, from 0.
        position: (3,) of the centre of the first pixel, LPS mm.
        orientation: (6,) unit vectors along a row and along a column.
        spacing: (2,) between columns and between rows, mm.
        slope: what a stored value is multiplied by, None where the file does not say;
        intercept: and what is added to it then, None likewise.
    """

    instance: Instance
    number: int
    position: Float
    orientation: Float
    spacing: Float
    slope: float | None
    intercept: float | None

    @property
    def name(self) -> str:
        """As messages call it."""
        name = self.instance.name
        return f"frame {self.number + 1} of {name}" if self.instance.frames > 1 else name

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        header = self.instance.header
        return int(header.get("Columns") or 0), int(header.get("Rows") or 0)


def frames_of(instance: Instance) -> list[Frame]:
    """The slices of one file; where each lies may stand in its own functional groups or in those of all."""
    header, file = instance.header, instance.file
    if "PerFrameFunctionalGroupsSequence" not in header:
        if instance.frames > 1:
            raise VolumeError(
                "the frames of this multi-frame file have one position in common",
                path=file,
                expected="functional groups with the position of each frame, as enhanced CT and MR have",
                remedy="export single slices",
            )
        groups = [[header]]
    else:
        shared = _items(header, "SharedFunctionalGroupsSequence")[:1]
        groups = [[own, *shared] for own in _items(header, "PerFrameFunctionalGroupsSequence")]
        if len(groups) != instance.frames:
            raise VolumeError(
                "the multi-frame file is damaged",
                path=file,
                expected=f"functional groups of {instance.frames} frames",
                found=str(len(groups)),
            )
    return [_frame(instance, number, where) for number, where in enumerate(groups)]


def _frame(instance: Instance, number: int, groups: Sequence[Dataset]) -> Frame:
    def stated(group: str, keyword: str, count: int, places: Sequence[Dataset] = groups) -> Float | None:
        for item in places:
            for place in [item] if item is instance.header else _items(item, group)[:1]:
                if keyword in place:
                    return _numbers(instance.file, keyword, place.get(keyword), count)
        return None

    def needed(group: str, keyword: str, count: int) -> Float:
        found = stated(group, keyword, count)
        return _numbers(instance.file, keyword, None, count) if found is None else found

    def rescale(keyword: str) -> float | None:
        # Some enhanced files keep it where single slices have it, instead of in the functional groups.
        found = stated("PixelValueTransformationSequence", keyword, 1, [*groups, instance.header])
        return None if found is None else float(found[0])

    if any("ModalityLUTSequence" in item for item in (*groups, instance.header)):
        raise VolumeError(
            "the values are stored through a table (Modality LUT), which is not read",
            path=instance.file,
            expected="a rescale slope and intercept",
            remedy="export the series as values, or convert it to NIfTI with a tool that knows the table",
        )
    slope = rescale("RescaleSlope")
    if slope == 0:
        raise VolumeError("the rescale slope is zero", path=instance.file, remedy="export the series again")
    return Frame(
        instance,
        number,
        position=needed("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=needed("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=needed("PixelMeasuresSequence", "PixelSpacing", 2)[::-1],
        slope=slope,
        intercept=rescale("RescaleIntercept"),
    )


def check_rescale(frames: Sequence[Frame]) -> None:
    """Refuse a stack of which only some slices state how stored values become those of the modality.

    Raises:
        VolumeError: naming the first slice that does not.
    """
    for keyword, values in (
        ("RescaleSlope", [frame.slope for frame in frames]),
        ("RescaleIntercept", [frame.intercept for frame in frames]),
    ):
        lacking = [frame for frame, value in zip(frames, values, strict=True) if value is None]
        if 0 < len(lacking) < len(frames):
            raise VolumeError(
                "the slices of the series are not rescaled alike",
                path=lacking[0].instance.file,
                expected=f"{keyword}, as {len(frames) - len(lacking)} of the {len(frames)} slices state",
                found=f"no {keyword} in {lacking[0].name}",
                remedy="export the series again; a slice that was made later may belong to another series",
            )


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = dataset.get(keyword)
    return [] if value is None else list(value)


def _numbers(file: Path, keyword: str, value: Any, count: int) -> Float:
    try:
        numbers = np.atleast_1d(np.array(value, dtype=np.float64))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise VolumeError(
            f"the DICOM tag {keyword} is missing or damaged",
            path=file,
            expected=f"{count} numbers",
            found="nothing" if value is None else repr(value),
            remedy="export the series again as the scanner made it, or take the file out where it is no slice of it",
        )
    return numbers

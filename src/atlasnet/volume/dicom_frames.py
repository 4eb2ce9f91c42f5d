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
        slope: what a stored value is multiplied by,
        intercept: and what is added to it then.
    """

    instance: Instance
    number: int
    position: Float
    orientation: Float
    spacing: Float
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """As messages call it."""
        name = self.instance.file.name
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
    def values(group: str, keyword: str, count: int, default: float | None = None) -> Float:
        for item in groups:
            places = [item] if item is instance.header else _items(item, group)[:1]
            for place in places:
                if keyword in place:
                    return _numbers(instance.file, keyword, place.get(keyword), count)
        if default is None:
            return _numbers(instance.file, keyword, None, count)
        return np.full(count, default)

    if any("ModalityLUTSequence" in item for item in groups):
        raise VolumeError(
            "the values are stored through a table (Modality LUT), which is not read",
            path=instance.file,
            expected="a rescale slope and intercept",
            remedy="export the series as values, or convert it to NIfTI with a tool that knows the table",
        )
    slope = float(values("PixelValueTransformationSequence", "RescaleSlope", 1, 1.0)[0])
    if slope == 0:
        raise VolumeError("the rescale slope is zero", path=instance.file, remedy="export the series again")
    return Frame(
        instance,
        number,
        position=values("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=values("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=values("PixelMeasuresSequence", "PixelSpacing", 2)[::-1],
        slope=slope,
        intercept=float(values("PixelValueTransformationSequence", "RescaleIntercept", 1, 0.0)[0]),
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
            f"the DICOM tag {keyword} is missing or damaged", path=file, expected=f"{count} numbers", found=repr(value)
        )
    return numbers

"""Several volumes under one SeriesInstanceUID: told from single slices that are there twice, and from uneven stacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.dicom_files import TELLING
from atlasnet.volume.dicom_frames import Frame

Float = NDArray[np.float64]

SAME_PLACE = 1e-3
"""How far two slices lie apart, mm, that are said to lie at one place."""

_FEWEST_GAPS = 5  # fewer alternate by chance


def repeated(path: Path, frames: Sequence[Frame], heights: Float) -> VolumeError:
    """The refusal of slices of which two or more lie at one place.

    Args:
        path: of the series.
        frames: in the order of their heights.
        heights: (n,) along the normal, mm.
    """
    gaps = np.diff(heights)
    one, other = frames[int(gaps.argmin()) :][:2]
    uid = one.instance.header.get("SOPInstanceUID")
    if one.instance is not other.instance and uid and uid == other.instance.header.get("SOPInstanceUID"):
        return VolumeError(
            "two slices lie at the same place",
            path=path,
            found=f"{one.name} and {other.name}, both with the same SOPInstanceUID",
            remedy="take one of the copies out",
        )
    differ = [tag for tag in ("ImageType", *TELLING) if one.instance.header.get(tag) != other.instance.header.get(tag)]
    found = f"{one.name} and {other.name}" + (f", which differ in {', '.join(differ)}" if differ else "")
    counts = {len(place) for place in np.split(heights, np.flatnonzero(gaps > SAME_PLACE) + 1)}
    count = counts.pop()
    if counts:
        return VolumeError(
            "two slices lie at the same place",
            path=path,
            found=found,
            remedy="keep one time point or reconstruction of the series",
        )
    return VolumeError(
        f"the series holds {count} volumes, not one: {count} slices lie at the same place, everywhere",
        path=path,
        expected="one time point, echo or reconstruction",
        found=found,
        remedy="convert each volume to NIfTI (for instance with dcm2niix), and give one"
        if one.instance is other.instance
        else "put the files of each volume into a folder of their own, and give one of the folders",
    )


def check_interleaved(path: Path, frames: Sequence[Frame], gaps: Float, tolerance: float) -> None:
    """Refuse two even stacks, one between the slices of the other.

    Args:
        path: of the series.
        frames: in the order of their heights.
        gaps: (n - 1,) between them, mm.
        tolerance: share of a gap by which others may differ from it.

    Raises:
        VolumeError: they are.
    """
    if len(gaps) < _FEWEST_GAPS:
        return
    first, second = float(np.median(gaps[::2])), float(np.median(gaps[1::2]))
    even = np.abs(gaps[::2] / first - 1).max() <= tolerance and np.abs(gaps[1::2] / second - 1).max() <= tolerance
    if even and abs(first / second - 1) > tolerance:
        raise VolumeError(
            "the series holds two interleaved stacks, not one",
            path=path,
            expected="the same distance between all neighbours",
            found=f"{first:.4g} and {second:.4g} mm in turn, as between " + ", ".join(f.name for f in frames[:3]),
            remedy="put the files of each stack into a folder of their own, and give one of the folders",
        )

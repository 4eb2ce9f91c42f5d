"""A DICOM series read as one volume whose geometry comes from the slices' own positions (DICOM PS3.3 C.7.6.2.1.1).

The slices may be files of their own or the frames of enhanced multi-frame files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from atlasnet.errors import VolumeError
from atlasnet.volume.dicom_files import DicomFile
from atlasnet.volume.dicom_frames import Frame, check_rescale, frames_of
from atlasnet.volume.dicom_pixels import decoded, rescaled
from atlasnet.volume.dicom_series import Series, open_series
from atlasnet.volume.dicom_stacks import SAME_PLACE, check_interleaved, repeated
from atlasnet.volume.geometry import trusted_grid
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

Float = NDArray[np.float64]

SLICE_TOLERANCE = 0.05
"""How far a gap between slices may differ from the others, as a share: some scanners round positions to 0.01 mm."""

SHARED = {"PatientID": "patient", "StudyInstanceUID": "study", "FrameOfReferenceUID": "frame of reference"}
"""What all slices of a series have in common (DICOM PS3.3 A.1.2), and what it is called."""

PLACE_TOLERANCE = 0.5
"""How far a slice may lie from its place in an even, upright stack: in its plane in pixels, across in gaps."""


@dataclass(frozen=True, eq=False)
class DicomSource:
    """What another DICOM object says of the series that it was made from.

    Args:
        grid: of the volume.
        headers: of each slice of the volume along z, without pixels; slices of one multi-frame file share theirs.
        frames: the number of each slice's frame in its multi-frame file, from 1; None for plain files.
        positions: (n, 3) of the centre of each slice's first pixel, LPS mm, as the series states them.
    """

    grid: Grid
    headers: tuple[Dataset, ...]
    frames: tuple[int | None, ...]
    positions: Float


def read_dicom(path: Path, series: str | None = None) -> Volume:
    """Read one DICOM image series as (1, z, y, x), slices ordered along their common normal.

    Values are rescaled to the modality's unit (HU in CT): whole numbers stay integers, others become float32.

    Args:
        path: a folder, a zip or a file; see `atlasnet.volume.dicom_series.open_series`, and so for the next.
        series: which one, where there are several.

    Raises:
        VolumeError: there is no such series, a slice cannot be read, the slices are not of one patient, study and frame
            of reference, or they do not make one even stack: unequal sizes or orientations, gaps, repeated positions,
            interleaved stacks, a tilted gantry.
    """
    with open_series(path, series) as found:
        frames, grid = _stacked(found)
        slices = _pixels(found, frames)
        return Volume(np.stack(slices).astype(np.result_type(*slices), copy=False), grid)


def read_dicom_grid(path: Path, series: str | None = None) -> Grid:
    """The grid of `read_dicom`'s volume, from the headers alone; raises as that does."""
    with open_series(path, series) as found:
        return _stacked(found)[1]


def dicom_states_rescale(path: Path, series: str | None = None) -> bool:
    """Whether the series states both rescale slope and intercept, from the headers alone; raises as `read_dicom` does.

    Where its slices do not state the same of the two, it cannot be read.
    """
    with open_series(path, series) as found:
        first = frames_of(found.instances[0])[0]
        return first.slope is not None and first.intercept is not None


@dataclass(frozen=True)
class StatedSeries:
    """What the headers of a series state of the whole; each may be empty but for the first two.

    Args:
        uid: the SeriesInstanceUID.
        patient: a hash.
        study: the StudyInstanceUID.
        frame_of_reference: the FrameOfReferenceUID.
        modality: CT, MR, PT …
        damaged_beside: how many images of other series, in the same export, cannot be read.
    """

    uid: str
    patient: str
    study: str
    frame_of_reference: str
    modality: str
    damaged_beside: int


def read_stated_series(path: Path, series: str | None = None) -> StatedSeries:
    """What the series states, from the headers alone; raises as `read_dicom` does."""
    with open_series(path, series) as found:
        header = found.instances[0].header
        patient, study, frame_of_reference = (str(header.get(keyword) or "") for keyword in SHARED)
        modality = str(header.get("Modality") or "").strip().upper()
        return StatedSeries(found.uid, patient, study, frame_of_reference, modality, found.damaged_beside)


def read_dicom_source(path: Path, series: str | None = None) -> DicomSource:
    """The whole headers of the series in the order of the volume's slices; raises as `read_dicom` does."""
    with open_series(path, series) as found:
        frames, grid = _stacked(found)
        headers = {instance.file: _whole_header(instance.file) for instance in found.instances}
        return DicomSource(
            grid,
            tuple(headers[frame.instance.file] for frame in frames),
            tuple(frame.number + 1 if frame.instance.is_multi_frame else None for frame in frames),
            np.array([frame.position for frame in frames]),
        )


def _whole_header(file: Path) -> Dataset:
    try:
        with DicomFile(file) as stream:
            return dcmread(stream, stop_before_pixels=True, force=True)
    except Exception as error:  # pydicom says in no single way that a file is damaged
        raise VolumeError("the header is damaged", path=file, found=type(error).__name__) from error


def _stacked(series: Series) -> tuple[list[Frame], Grid]:
    """The slices in the order of the volume, and its grid."""
    _check_shared(series)
    frames = [frame for instance in series.instances for frame in frames_of(instance)]
    first = frames[0]
    row, column = np.split(first.orientation, 2)
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 0.01 or first.spacing.min() <= 0:
        raise VolumeError(
            "the orientation or spacing of the slices is impossible",
            path=first.instance.file,
            expected="two unit vectors at right angles, and millimetres above 0",
            found=f"{first.orientation.tolist()}, {first.spacing.tolist()} mm",
        )
    for frame in frames:
        apart = np.abs(frame.orientation - first.orientation).max()
        if frame.size != first.size or apart > 1e-4 or np.abs(frame.spacing - first.spacing).max() > 1e-4:
            raise VolumeError(
                "the slices of the series differ in size, spacing or orientation",
                path=frame.instance.file,
                expected=_described(first),
                found=_described(frame),
                remedy="leave scouts and other views out of the folder",
            )
    check_rescale(frames)
    heights = np.array([frame.position for frame in frames]) @ normal
    frames = [frames[i] for i in np.argsort(heights, kind="stable")]
    gap = _checked_gap(series, frames, normal)
    x, y = first.size
    direction = np.stack([row, column, normal], axis=1)
    spacing = np.array([*first.spacing, gap])
    return frames, trusted_grid(series.path, (len(frames), y, x), spacing, frames[0].position, direction)


def _check_shared(series: Series) -> None:
    """Refuse slices that lie together by their identifier alone: nobody could say whose volume they make."""
    first = series.instances[0]
    for instance in series.instances:
        for keyword, what in SHARED.items():
            if instance.header.get(keyword) != first.header.get(keyword):
                raise VolumeError(
                    f"the slices of the series are not of one {what}",
                    path=series.path,
                    found=f"{first.name} and {instance.name}, which differ in {keyword}",
                    remedy=f"put the files of each {what} into a folder of their own, and give one of the folders",
                )


def _described(frame: Frame) -> str:
    x, y = frame.size
    spacing = " x ".join(f"{value:g}" for value in frame.spacing)
    return f"{x} x {y} pixels of {spacing} mm, orientation {frame.orientation.tolist()}"


def _checked_gap(series: Series, frames: Sequence[Frame], normal: Float) -> float:
    """The slice spacing in mm, of slices that lie one above the other at equal distances."""
    positions = np.array([frame.position for frame in frames])
    heights = positions @ normal
    gaps = np.diff(heights)
    if len(gaps) == 0:
        return _thickness(frames[0].instance.header)
    spacing = float(np.median(gaps))
    if gaps.min() <= SAME_PLACE:
        raise repeated(series.path, frames, heights)
    check_interleaved(series.path, frames, gaps, SLICE_TOLERANCE)
    if np.abs(gaps - spacing).max() > SLICE_TOLERANCE * spacing:
        at = int(np.abs(gaps - spacing).argmax())
        missing = round(gaps[at] / spacing) - 1
        even = abs(gaps[at] / spacing - missing - 1) <= SLICE_TOLERANCE
        raise VolumeError(
            f"slices are missing ({missing})" if missing > 0 and even else "the slices are unevenly spaced",
            path=series.path,
            expected=f"{spacing:.4g} mm between neighbours",
            found=f"{gaps[at]:.4g} mm between {frames[at].name} and {frames[at + 1].name}",
            remedy="export the whole series",
        )
    spacing = float((heights[-1] - heights[0]) / len(gaps))
    # Where the slices of an even stack lie, and how far these are from there, in their plane and across.
    away = positions - (positions[0] + np.arange(len(frames))[:, None] * spacing * normal)
    across = away @ normal
    aside = np.linalg.norm(away - across[:, None] * normal, axis=1)
    if aside.max() > PLACE_TOLERANCE * min(frames[0].spacing):
        run = (positions[-1] - positions[0]) / (heights[-1] - heights[0]) - normal
        leaning = aside - np.linalg.norm(run) * spacing * np.arange(len(frames))
        if np.abs(leaning).max() <= PLACE_TOLERANCE * min(frames[0].spacing):
            tilt = np.degrees(np.arctan(np.linalg.norm(run)))
            raise VolumeError(
                "the slices are sheared against each other (tilted gantry)",
                path=series.path,
                expected="a stack at right angles to its slices",
                found=f"a tilt of {tilt:.1f} degrees",
                remedy="correct the tilt by resampling (for instance with dcm2niix) and give the result",
            )
        at = int(aside.argmax())
        raise VolumeError(
            "slices are shifted against each other",
            path=series.path,
            expected="a stack at right angles to its slices",
            found=f"{frames[at].name} {aside[at]:.1f} mm aside of it",
            remedy="export one reconstruction of the series, or resample it with a tool that knows such stacks",
        )
    if np.abs(across).max() > PLACE_TOLERANCE * spacing:
        at = int(np.abs(across).argmax())
        raise VolumeError(
            "the slices are unevenly spaced",
            path=series.path,
            expected=f"{spacing:.4g} mm between neighbours, all along",
            found=f"{frames[at].name} {abs(across[at]):.2g} mm from where it would be then",
            remedy="export one reconstruction of the series",
        )
    return spacing


def _thickness(header: Dataset) -> float:
    """Of a single slice, mm; 1 where the header does not say."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            value = float(header.get(keyword) or 0)
        except (TypeError, ValueError):
            continue
        if np.isfinite(value) and value > 0:
            return value
    return 1.0


def _pixels(series: Series, frames: Sequence[Frame]) -> list[NDArray[np.generic]]:
    """(y, x) values of each slice, in the order of ``frames``."""
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.instance.file, []).append(place)
    slices: list[NDArray[np.generic] | None] = [None] * len(frames)
    with tempfile.TemporaryDirectory(prefix="atlasnet-dicom-") as folder:
        for instance in series.instances:
            stored = decoded(instance, Path(folder) / "pixels.dcm")
            for place in places[instance.file]:
                frame = frames[place]
                slices[place] = rescaled(
                    stored[frame.number],
                    1.0 if frame.slope is None else frame.slope,
                    0.0 if frame.intercept is None else frame.intercept,
                )
    return [pixels for pixels in slices if pixels is not None]

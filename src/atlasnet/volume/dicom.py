"""A folder of DICOM slices, read as one volume whose geometry comes from the slices' own positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

POSITION, ORIENTATION, PIXEL_SPACING, FRAMES, DESCRIPTION = (
    "0020|0032",
    "0020|0037",
    "0028|0030",
    "0028|0008",
    "0008|103e",
)

SLICE_TOLERANCE = 0.05
"""How far a gap between slices may differ from the others, as a share: some scanners round positions to 0.01 mm."""


def read_dicom_folder(folder: Path, series: str | None = None) -> Volume:
    """Read the one DICOM image series directly in ``folder`` as (1, z, y, x), slices ordered along their common normal.

    Raises:
        VolumeError: no series, several of them and ``series`` names none, a slice that cannot be read, or slices that
            do not make an even stack: unequal sizes or orientations, gaps, repeated positions, a tilted gantry.
    """
    found = {uid: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in _series(folder)}
    _check_unread(folder, {Path(file).name for files in found.values() for file in files})
    headers = {uid: [_header(Path(file)) for file in files] for uid, files in found.items()}
    images = {uid: [h for h in slices if h.HasMetaDataKey(POSITION)] for uid, slices in headers.items()}
    images = {uid: slices for uid, slices in images.items() if slices}
    if not images:
        raise VolumeError(
            "no DICOM image series in this folder", path=folder, expected="the slices of one series, directly in it"
        )
    if series is not None and series not in images:
        raise VolumeError(
            "the folder does not hold this DICOM series", path=folder, expected=series, found=_listing(images)
        )
    if series is None and len(images) > 1:
        raise VolumeError(
            f"the folder holds {len(images)} DICOM series",
            path=folder,
            expected="one",
            found=_listing(images),
            remedy="move the wanted series into a folder of its own, or name it (read_volume(..., series=UID))",
        )
    return _stack(folder, images[series if series is not None else next(iter(images))])


def _series(folder: Path) -> tuple[str, ...]:
    return tuple(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _check_unread(folder: Path, known: set[str]) -> None:
    """A damaged slice is passed over when series are collected: at the end of a stack nobody would miss it."""
    for file in sorted(folder.iterdir()):
        if file.name in known or file.name.upper() == "DICOMDIR" or not file.is_file():
            continue
        with file.open("rb") as stream:
            preamble = stream.read(132)
        if preamble[128:] == b"DICM" or (file.suffix.lower() in (".dcm", ".ima") and file.stat().st_size == 0):
            try:
                _header(file)
            except VolumeError:
                raise VolumeError(
                    "a DICOM file in this folder cannot be read", path=file, remedy="export the series again"
                ) from None


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError("the DICOM file cannot be read", path=file, found=str(error).splitlines()[-1]) from error
    return reader


def _listing(images: dict[str, list[sitk.ImageFileReader]]) -> str:
    def described(slices: list[sitk.ImageFileReader]) -> str:
        text = slices[0].GetMetaData(DESCRIPTION).strip() if slices[0].HasMetaDataKey(DESCRIPTION) else ""
        return f"{len(slices)} files" + (f", {text!r}" if text else "")

    return "; ".join(f"{uid} ({described(slices)})" for uid, slices in sorted(images.items()))


def _values(header: sitk.ImageFileReader, tag: str, count: int) -> NDArray[np.float64]:
    text = header.GetMetaData(tag) if header.HasMetaDataKey(tag) else ""
    try:
        values = np.array([float(word) for word in text.split("\\")])
    except ValueError:
        values = np.empty(0)
    if values.size != count:
        raise VolumeError(
            f"the DICOM tag ({tag.replace('|', ',')}) is missing or damaged",
            path=header.GetFileName(),
            found=repr(text),
        )
    return values


def _stack(folder: Path, headers: list[sitk.ImageFileReader]) -> Volume:
    first = headers[0]
    if any(h.HasMetaDataKey(FRAMES) and int(h.GetMetaData(FRAMES)) > 1 for h in headers):
        raise VolumeError("multi-frame DICOM is not supported", path=folder, remedy="convert it to NIfTI first")
    row, column = np.split(_values(first, ORIENTATION, 6), 2)
    normal = np.cross(row, column)
    spacing = _values(first, PIXEL_SPACING, 2)[::-1]
    for header in headers[1:]:
        other = np.concatenate([_values(header, ORIENTATION, 6), _values(header, PIXEL_SPACING, 2)[::-1]])
        if header.GetSize()[:2] != first.GetSize()[:2] or np.abs(other - [*row, *column, *spacing]).max() > 1e-4:
            raise VolumeError(
                "the slices of the series differ in size, spacing or orientation",
                path=header.GetFileName(),
                expected=f"{first.GetSize()[:2]} pixels of {spacing} mm, orientation {[*row, *column]}",
                found=f"{header.GetSize()[:2]} pixels of {other[6:]} mm, orientation {other[:6].tolist()}",
                remedy="leave scouts and other views out of the folder",
            )
    positions = np.array([_values(h, POSITION, 3) for h in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions, headers = positions[order], [headers[i] for i in order]
    gap = _check_even(folder, positions, normal, headers)
    slices = [_pixels(header) for header in headers]
    array = np.stack(slices).astype(np.result_type(*slices), copy=False)
    direction = np.stack([row, column, normal], axis=1)
    z, y, x = array.shape
    return Volume(array, Grid.from_parts((z, y, x), [*spacing, gap], positions[0], direction))


def _check_even(
    folder: Path, positions: NDArray[np.float64], normal: NDArray[np.float64], headers: list[sitk.ImageFileReader]
) -> float:
    """The slice spacing in mm, for slices that lie one above the other at equal distances."""
    if len(positions) == 1:
        thickness = headers[0].GetMetaData("0018|0050") if headers[0].HasMetaDataKey("0018|0050") else "1"
        try:
            return float(thickness) or 1.0
        except ValueError:
            return 1.0
    heights = positions @ normal
    gaps = np.diff(heights)
    spacing = float(np.median(gaps))
    if gaps.min() <= 1e-3:
        at = int(gaps.argmin())
        raise VolumeError(
            "two slices lie at the same place",
            path=folder,
            found=f"{_name(headers[at])} and {_name(headers[at + 1])}",
            remedy="keep one time point or reconstruction in the folder",
        )
    if np.abs(gaps - spacing).max() > SLICE_TOLERANCE * spacing:
        at = int(np.abs(gaps - spacing).argmax())
        raise VolumeError(
            "the slices are unevenly spaced, or some are missing",
            path=folder,
            expected=f"{spacing:.4g} mm between neighbours",
            found=f"{gaps[at]:.4g} mm between {_name(headers[at])} and {_name(headers[at + 1])}",
            remedy="export the whole series",
        )
    spacing = float((heights[-1] - heights[0]) / (len(heights) - 1))
    run = (positions[-1] - positions[0]) / (heights[-1] - heights[0])
    if np.abs(run - normal / np.linalg.norm(normal)).max() > 1e-2:
        raise VolumeError(
            "the slices are sheared against each other (tilted gantry)",
            path=folder,
            expected="a stack at right angles to its slices",
            found=f"an offset of {np.round(run - normal, 4).tolist()} mm per mm",
            remedy="correct the tilt by resampling (for instance with dcm2niix) and give the result",
        )
    return spacing


def _name(header: sitk.ImageFileReader) -> str:
    return Path(header.GetFileName()).name


def _pixels(header: sitk.ImageFileReader) -> NDArray[np.generic]:
    """(y, x) pixels of one slice, rescaled with its own slope and intercept."""
    try:
        image = header.Execute()
    except RuntimeError as error:
        raise VolumeError(
            "the DICOM file cannot be read", path=header.GetFileName(), found=str(error).splitlines()[-1]
        ) from error
    array: NDArray[np.generic] = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise VolumeError("colour DICOM is not supported", path=header.GetFileName())
    return array.reshape(array.shape[-2:])

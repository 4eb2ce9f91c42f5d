"""DICOM made for tests with pydicom: small CT series, single-frame or enhanced, in any orientation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless

ROOT = "1.2.826.0.1.3680043.8.498.1"
NAME, PATIENT_ID = "Doe^Jane", "MRN-4711"


def header(sop_class: str, instance: str, series: str = "1") -> Dataset:
    """What every image has."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"{ROOT}.{series}.{instance}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.9", f"{ROOT}.{series}"
    dataset.FrameOfReferenceUID = f"{ROOT}.8"
    dataset.PositionReferenceIndicator = ""
    dataset.PatientName, dataset.PatientID = NAME, PATIENT_ID
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "F"
    dataset.StudyDate, dataset.StudyTime = "20200101", "101010"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.Modality, dataset.Manufacturer = "CT", "Synthetic"
    dataset.SeriesNumber, dataset.SeriesDescription = series, f"thorax {series}"
    dataset.PatientPosition = "HFS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return dataset


def add_pixels(dataset: Dataset, pixels: NDArray[np.int16]) -> None:
    """(y, x) or (frames, y, x) whole numbers of 16 bits, with or without a sign."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def slices(
    array: NDArray[np.int16],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: NDArray[np.float64] | None = None,
    series: str = "1",
    **tags: Any,
) -> list[Dataset]:
    """One CT slice for each (y, x) plane of ``array``; the columns of ``direction`` are its x, y and z axis."""
    axes = np.eye(3) if direction is None else direction
    made = []
    for index, pixels in enumerate(array):
        dataset = header(CTImageStorage, str(index + 1), series)
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in np.asarray(origin) + index * spacing[2] * axes[:, 2]]
        dataset.ImageOrientationPatient = [f"{v:.10f}" for v in (*axes[:, 0], *axes[:, 1])]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
        add_pixels(dataset, (pixels + 1024).astype(np.int16))
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        made.append(dataset)
    return made


def compress(dataset: Dataset, syntax: str) -> None:
    """Compress the pixels in place, for RLE or JPEG-LS; the latter is skipped where nothing does that."""
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="pyjpegls, which compresses to JPEG-LS, is not installed")
    dataset.compress(syntax, generate_instance_uid=False)


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def enhanced(made: Sequence[Dataset], order: Sequence[int], *, own_orientation: bool = False) -> Dataset:
    """The slices as one enhanced CT, frames in ``order``; what they share is said once, or for each frame."""
    first = made[0]
    dataset = header(EnhancedCTImageStorage, "1", str(first.SeriesNumber))
    dataset.InstanceNumber = 1
    add_pixels(dataset, np.stack([np.frombuffer(made[i].PixelData, np.int16) for i in order]))
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = first.Rows, first.Columns, len(order)
    orientation = item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared = Dataset()
    shared.PixelMeasuresSequence = [item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]
    if not own_orientation:
        shared.PlaneOrientationSequence = [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for i in order:
        group = item(PlanePositionSequence=[item(ImagePositionPatient=made[i].ImagePositionPatient)])
        if own_orientation:
            group.PlaneOrientationSequence = [orientation]
        group.PixelValueTransformationSequence = [
            item(RescaleSlope=made[i].RescaleSlope, RescaleIntercept=made[i].RescaleIntercept, RescaleType="HU")
        ]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def save(folder: Path, made: Sequence[Dataset], prefix: str = "IM") -> Path:
    """Write them in an order of names unlike that of their places."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(made):
        dataset.save_as(folder / f"{prefix}{(number * 7) % 101:03d}", enforce_file_format=True)
    return folder

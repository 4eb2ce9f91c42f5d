"""The pixels of a DICOM file: pydicom finds them, GDCM (through SimpleITK) decodes them.

GDCM is given them under a header made here. It would rescale each kind of image by rules of its own, and it trusts the
lengths in damaged files, for gigabytes of memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames, parse_fragments
from pydicom.uid import (
    JPEG2000,
    UID,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from atlasnet.errors import VolumeError
from atlasnet.volume.dicom_files import DicomFile
from atlasnet.volume.dicom_series import Instance
from atlasnet.wording import counted

LARGEST_EXPANSION = 1000
"""How many times its size a compressed image may decode to, beyond 16 MiB: even an empty one stays below."""

_PIXELS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelData",
]


def decoded(instance: Instance, temporary: Path) -> NDArray[np.generic]:
    """Decode the pixels of a file.

    Args:
        instance: the file.
        temporary: a file that may be written.

    Returns:
        (frames, y, x) values as stored, not rescaled.

    Raises:
        VolumeError: the pixels are cut off, damaged, or compressed or arranged in a way that is not read.
    """
    file, syntax = instance.file, UID("")
    try:
        with DicomFile(file) as stream:
            dataset = dcmread(stream, force=True, specific_tags=list(_PIXELS))
        stated = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", ImplicitVRLittleEndian)
        syntax = UID(str(stated))
        size = (instance.frames, int(dataset.Rows), int(dataset.Columns))
        bits, stored = int(dataset.BitsAllocated), dataset["PixelData"]
        needed = int(np.prod(size, dtype=object)) * bits // 8
        allowed = len(stored.value)
        if syntax.is_encapsulated:
            allowed = max(2**24, LARGEST_EXPANSION * allowed)
        if needed > allowed or needed == 0:
            raise VolumeError(
                "the pixels are cut off, or the header does not fit them",
                path=file,
                expected=f"{needed} bytes of {size[2]} x {size[1]} pixels in {counted(size[0], 'frame')}",
                found=f"{len(stored.value)} bytes",
                remedy="export the series again",
            )
        _check_bits(dataset, file)
        if syntax.is_encapsulated:
            stored.value = _resealed(stored.value, size[0])
        if syntax in (JPEG2000, JPEG2000Lossless):
            _check_sign(dataset, size[0], file)
        _write_bare(dataset, syntax, temporary)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(temporary))
        array: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
        return array.reshape(size)
    except VolumeError:
        raise
    except OSError as error:
        raise VolumeError("the pixels cannot be read", path=file, found=error.strerror or "an input error") from error
    except Exception as error:  # neither pydicom nor GDCM says in a single way that pixels are damaged
        raise VolumeError(
            "the pixels cannot be read",
            path=file,
            found=f"damaged, or a compression that is not read: {syntax.name or 'unknown'} ({type(error).__name__})",
            remedy="export the series again, uncompressed if need be",
        ) from error


def _check_bits(dataset: Dataset, file: Path) -> None:
    """Refuse values that do not begin at the lowest bit, a retired form: GDCM takes them as if they did."""
    used, highest = dataset.get("BitsStored"), dataset.get("HighBit")
    if used is not None and highest is not None and int(highest) != int(used) - 1:
        raise VolumeError(
            "the bits of the pixels are arranged in a way that is not read",
            path=file,
            expected=f"HighBit {int(used) - 1}, as {used} bits are stored",
            found=f"HighBit {highest}",
            remedy="export the series again, or convert it to NIfTI with a tool that knows this form",
        )


def _check_sign(dataset: Dataset, count: int, file: Path) -> None:
    """Refuse JPEG 2000 that says of its values that they have a sign, where the header says that they have none.

    GDCM believes the header: what is below 0 becomes a large number. The other way round, header and bits agree.
    """
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        # ISO/IEC 15444-1 A.5.1: behind the marker SIZ come 38 bytes, then the first component's sign and depth.
        marker = frame.find(b"\xff\x4f\xff\x51")
        signed = marker >= 0 and frame[marker + 42 : marker + 43] >= b"\x80"
        if signed and int(dataset.get("PixelRepresentation") or 0) == 0:
            raise VolumeError(
                "the JPEG 2000 pixels have a sign, and the header says that they have none",
                path=file,
                expected="PixelRepresentation 1",
                found="0",
                remedy="export the series again, uncompressed if need be, or correct the header",
            )


def _resealed(value: bytes, count: int) -> bytes:
    """The compressed frames in fragments whose lengths are true."""
    for offset in parse_fragments(value)[1]:
        if offset + 8 + int.from_bytes(value[offset + 4 : offset + 8], "little") > len(value):
            raise ValueError("a fragment is longer than the pixels")
    frames = list(generate_frames(value, number_of_frames=count))
    if len(frames) != count:
        raise ValueError("not as many frames as stated")
    return encapsulate(frames)


def _write_bare(dataset: Dataset, syntax: UID, path: Path) -> None:
    """The pixels of ``dataset`` in a file that says nothing else."""
    bare = Dataset()
    for element in dataset:
        bare.add(element)
    if bare.PhotometricInterpretation == "MONOCHROME1":
        # That says how values are shown, not what they are; GDCM would give them inverted.
        bare.PhotometricInterpretation = "MONOCHROME2"
    many = int(dataset.get("NumberOfFrames") or 1) > 1
    if not many:
        bare.SOPClassUID = SecondaryCaptureImageStorage
    elif int(dataset.BitsAllocated) == 8:
        bare.SOPClassUID = MultiFrameGrayscaleByteSecondaryCaptureImageStorage
    else:
        bare.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    bare.SOPInstanceUID = generate_uid(entropy_srcs=["pixels"])
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    dcmwrite(path, bare, enforce_file_format=True)


def rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.generic]:
    """Stored values in the modality's unit: whole numbers in the smallest of int16 and int32, others in float32."""
    if slope == 1 and intercept == 0:
        return stored
    whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**30
    if not whole:
        return np.asarray(stored * slope + intercept, dtype=np.float32)
    values = stored.astype(np.int64) * int(slope) + int(intercept)
    low, high = int(values.min()), int(values.max())
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float64)

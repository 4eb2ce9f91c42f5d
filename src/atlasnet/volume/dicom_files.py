"""Which files are DICOM, and what matters of their headers.

Headers alone are read here, with pydicom. A file that is damaged is an error wherever it lies, unless it is known
to be of a series that nobody asked for: at the end of a stack nobody would miss it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.sequence import Sequence as SequenceOfItems
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from atlasnet.errors import VolumeError
from atlasnet.volume.dicom_patient import PATIENT, forget_patient
from atlasnet.volume.names import begins_dicom, require_target

TELLING = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "InversionTime", "TriggerTime"),
    *("DiffusionBValue", "FrameReferenceTime", "AcquisitionTime", "ContentTime", "ConvolutionKernel", "SequenceName"),
)
"""Tags by which volumes of one series differ: time points, echoes, phases of the heart, diffusion weights, kernels."""
_HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "ModalityLUTSequence",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *TELLING,
]
_COUNTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
_UID = re.compile(r"\d+(\.\d+)+")
_SUFFIXES = (".dcm", ".ima")
_STRAYS = ("DICOMDIR", "LICENSE", "README", "VERSION")  # what exports bring along without a suffix
# The tags (7FE0,0010), and (7FE0,0008) and (7FE0,0009), in either byte order.
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_FLOAT_PIXELS = (b"\xe0\x7f\x08\x00", b"\x7f\xe0\x00\x08", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x09")


class DicomFile(io.BufferedReader):
    """A file to read DICOM from: for bytes that a damaged header claims and that are not there, no memory is taken."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most as many bytes as are left."""
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def check_strange(strange: Sequence[Path], known: Sequence[Path]) -> None:
    """Refuse a file that is not DICOM, yet is empty or named like the slices beside it: it may have been one."""
    beside: dict[tuple[Path, str], list[str]] = {}
    for file in known:
        beside.setdefault(_place(file), []).append(file.name)
    for file in strange:
        names = beside.get(_place(file))
        if names is None or file.stem.upper() in _STRAYS:
            continue
        if file.stat().st_size == 0:
            raise unreadable(file, "an empty file beside the slices")
        if _like(file.name, names):
            raise unreadable(file, "a file that is not DICOM, named like the slices beside it")


def _place(file: Path) -> tuple[Path, str]:
    """Folder and suffix: where, and what kind of file, a slice is expected."""
    suffix = file.suffix.lower()
    return file.parent, suffix if suffix[1:].isalpha() else ""  # many names end in a number behind a full stop


def _like(name: str, slices: Sequence[str]) -> bool:
    """Whether a name is made as those of slices: numbered, or with the beginning or length of all without numbers."""
    if any(map(str.isdigit, name)):
        return True
    plain = [other for other in slices if not any(map(str.isdigit, other))]
    if len(plain) < 2:
        return False
    first = takewhile(lambda letters: len(set(letters)) == 1, zip(*plain, strict=False))
    begin = "".join(letters[0] for letters in first)
    return (begin != "" and name.startswith(begin)) or {len(other) for other in plain} == {len(name)}


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without warnings about values that break the standard: they hold the values, and what matters is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class DamagedImageError(VolumeError):
    """An image that cannot be read, but whose header tells its series: nothing to those who want another.

    Attributes:
        header: what can be read of it.
    """

    header: Dataset


@quiet_pydicom()
def read_header(file: Path) -> Dataset | None:
    """What matters of the header, a hash as its PatientID, or None where the file is not DICOM, or the index of a disc.

    Raises:
        DamagedImageError: it is an image, damaged or of a form that is not read, and it is known of which series.
        VolumeError: it is DICOM, but damaged, or compressed as a whole; or it is a link that leads nowhere.
    """
    require_target(file)
    try:
        with DicomFile(file) as stream:
            start = stream.read(132)
            bare = start[128:] != b"DICM"
            if not begins_dicom(start):
                if file.suffix.lower() in _SUFFIXES:
                    raise unreadable(file, "a file that is not DICOM, or is empty")
                return None
            stream.seek(0)
            if not bare and read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise unreadable(file, "a header that is compressed too (deflate)")
            header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_HEADER + PATIENT)
            forget_patient(header)
            stated = header.get("SOPClassUID") or getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID")
            sop_class = UID(str(stated or ""))
            if sop_class == MediaStorageDirectoryStorage:
                return None
            if bare and not sop_class:
                return None
            if not (_UID.fullmatch(sop_class) and _UID.fullmatch(str(header.get("SeriesInstanceUID") or ""))):
                raise unreadable(file, "no valid SOPClassUID or SeriesInstanceUID")
            header.SOPClassUID = sop_class
            tag = stream.read(4)
            if "ImageStorage" in sop_class.keyword and tag not in _PIXEL_DATA:
                if tag in _FLOAT_PIXELS:
                    raise _of_its_series(
                        header,
                        file,
                        "floating-point pixels (FloatPixelData), which are not read",
                        "convert the series to NIfTI, or take the file out",
                    )
                raise _of_its_series(header, file, "no pixels: the file is cut off")
            _forget_malformed(header, TELLING)
            if malformed := _forget_malformed(header, _HEADER):
                raise _of_its_series(header, file, f"a damaged header ({malformed})")
    except VolumeError:
        raise
    except Exception as error:  # pydicom says in no single way that a file is damaged; its words may hold values
        raise unreadable(file, f"a damaged header ({type(error).__name__})") from error
    return header


def _forget_malformed(header: Dataset, keywords: Sequence[str]) -> str | None:
    """Take out what cannot be read, and say why; without what only messages tell of, a file is none the worse."""
    reason = None
    for keyword in keywords:
        try:  # values are converted when first asked for
            value = header[keyword].value if keyword in header else None
            for item in value if isinstance(value, SequenceOfItems) else ():
                for element in item.iterall():
                    _ = element.value
            if keyword in _COUNTS:
                int(value or 1)
        except Exception as error:  # nor does pydicom say in a single way that a value is malformed
            del header[keyword]
            reason = type(error).__name__
    return reason


def _of_its_series(header: Dataset, file: Path, found: str, *remedy: str) -> VolumeError:
    """The refusal of an image, with its header where that was read to the end.

    What names the series stands before what says how large the image is: a file that was cut off within has none.
    """
    refusal = unreadable(file, found, *remedy)
    if "ImageStorage" not in header.SOPClassUID.keyword or "Rows" not in header:
        return refusal
    _forget_malformed(header, _HEADER)
    damaged = DamagedImageError(refusal.problem, path=file, found=found, remedy=refusal.remedy)
    damaged.header = header
    return damaged


def is_index(file: Path) -> bool:
    """Whether a file is the index of a disc, DICOMDIR, which names images and holds none."""
    try:
        stated = read_file_meta_info(file).get("MediaStorageSOPClassUID")
    except Exception:  # pydicom says in no single way that a file is none of its own
        return False
    return bool(stated == MediaStorageDirectoryStorage)


def unreadable(file: Path, found: str, remedy: str = "export the series again, or take the file out") -> VolumeError:
    """The refusal of a file whose loss would go unnoticed."""
    return VolumeError("the DICOM file cannot be read", path=file, found=found, remedy=remedy)

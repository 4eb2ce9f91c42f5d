"""Which DICOM series a file, a folder or a zip holds, and the choice of one of them.

Headers alone are read here, with pydicom. What is no slice of a volume is left out: reports, structure sets and
segmentations, secondary captures, localizers, colour pictures, images without a place in the patient. A file that is
damaged is an error wherever it lies: at the end of a stack nobody would miss it.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from atlasnet.errors import VolumeError
from atlasnet.execution import unpack

LARGEST_ARCHIVE = 16 * 2**30  # bytes unpacked; a study of ten thousand slices has 5

_HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
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
]
_PATIENT = ["PatientName", "PatientID"]  # read to keep them out of messages, and forgotten
_COUNTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
_UID = re.compile(r"\d+(\.\d+)+")
_SUFFIXES = (".dcm", ".ima")
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag (7FE0,0010) in either byte order


@dataclass(frozen=True, eq=False)
class Instance:
    """One file of a series.

    Args:
        file: where it lies.
        header: without the pixels and without what names the patient.
    """

    file: Path
    header: Dataset

    @property
    def frames(self) -> int:
        """How many slices the file holds."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def is_multi_frame(self) -> bool:
        """Whether slices are referred to by their number in the file; an enhanced file of one frame is such a file."""
        return self.frames > 1 or "PerFrameFunctionalGroupsSequence" in self.header

    @property
    def flaw(self) -> str | None:
        """What keeps an image from being slices of a volume."""
        if int(self.header.get("SamplesPerPixel") or 1) > 1:
            return "colour image"
        if "ImagePositionPatient" in self.header or "PerFrameFunctionalGroupsSequence" in self.header:
            return None
        return "image without a place in the patient"


@dataclass(frozen=True, eq=False)
class Series:
    """The image files that share one SeriesInstanceUID.

    Args:
        path: the file, folder or zip that the user gave.
        uid: the SeriesInstanceUID.
        instances: in the order of their paths.
    """

    path: Path
    uid: str
    instances: tuple[Instance, ...]

    @property
    def number(self) -> str:
        """The SeriesNumber, or an empty text."""
        return str(self.instances[0].header.get("SeriesNumber") or "").strip()

    def describe(self, numbered: bool) -> str:
        """Number (or, where that does not tell it from the others, UID), description, modality and slices."""
        header = self.instances[0].header
        text = " ".join(str(header.get("SeriesDescription") or "").split())[:64]
        slices = sum(instance.frames for instance in self.instances)
        parts = [repr(text)] if text else []
        parts += [str(header.get("Modality") or "modality unknown"), f"{slices} slices"]
        return f"{self.number if numbered else self.uid}: " + ", ".join(parts)


@contextmanager
def open_series(path: Path, wanted: str | None = None) -> Iterator[Series]:
    """Find the one series that ``path`` holds, or the one that is wanted; a zip's files exist inside the block only.

    Args:
        path: a folder, searched with all folders in it; a zip of one; or a DICOM file.
        wanted: a SeriesNumber or a SeriesInstanceUID.

    Raises:
        VolumeError: there is no image series, not the wanted one, or several and none is named (they are listed); a
            file is damaged; a single file is one slice of many; a zip cannot be trusted. Errors that are raised inside
            the block come out with the zip's name in place of the temporary folder's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that break the standard: what matters is checked here
        if path.is_dir():
            yield _choose(path, _files_below(path), wanted)
        elif path.suffix.lower() == ".zip":
            with tempfile.TemporaryDirectory(prefix="atlasnet-dicom-") as temporary:
                folder = Path(temporary)
                unpack(path, folder, largest=LARGEST_ARCHIVE, error=VolumeError, what="a zip of DICOM files")
                try:
                    yield _choose(path, _files_below(folder), wanted)
                except VolumeError as error:
                    raise _moved(error, folder, path) from error
        else:
            series = _choose(path, [path], wanted)
            _check_alone(path, series)
            yield series


def _files_below(folder: Path) -> list[Path]:
    """Every file in the folder and those in it, in the order of their paths; hidden ones are left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _choose(path: Path, files: Iterable[Path], wanted: str | None) -> Series:
    slices: dict[str, list[Instance]] = {}
    left_out: Counter[str] = Counter()
    strange = []
    for file in files:
        header = _header(file)
        if header is None:
            strange.append(file)
            continue
        instance = Instance(file, header)
        reason = _no_slice(header)
        if reason is None:
            slices.setdefault(str(header.SeriesInstanceUID), []).append(instance)
        else:
            left_out[reason] += 1
    _check_strange(strange, [instance.file for instances in slices.values() for instance in instances])
    found = [Series(path, uid, tuple(instances)) for uid, instances in sorted(slices.items())]
    for series in list(found):
        flaws = [instance.flaw for instance in series.instances]
        if all(flaws):
            left_out.update(flaw for flaw in flaws if flaw)
            found.remove(series)
    if not found:
        raise VolumeError(
            "there is no DICOM image series here",
            path=path,
            expected="the slices of a CT, MR or PET series",
            found=", ".join(f"{count} x {reason}" for reason, count in sorted(left_out.items())) or "no DICOM files",
        )
    chosen = found if wanted is None else [series for series in found if str(wanted) in (series.uid, series.number)]
    if len(chosen) != 1:
        raise _ambiguous(path, found, chosen, wanted)
    for instance in chosen[0].instances:
        if instance.flaw:
            raise VolumeError(
                "the file does not fit the others of its series",
                path=instance.file,
                expected="one value per pixel and the tag ImagePositionPatient",
                found=instance.flaw,
                remedy="export the series again, or take the file out",
            )
    return chosen[0]


def _check_strange(strange: Sequence[Path], known: Sequence[Path]) -> None:
    """Refuse a file that is not DICOM, yet is named like the slices beside it: it may have been one."""

    def place(file: Path) -> tuple[Path, str]:
        suffix = file.suffix.lower()
        return file.parent, suffix if suffix[1:].isalpha() else ""  # many names end in a number behind a full stop

    places = {place(file) for file in known}
    for file in strange:
        if place(file) in places and any(character.isdigit() for character in file.name):
            raise _unreadable(file, "a file that is not DICOM, named like the slices beside it")


def _ambiguous(path: Path, found: Sequence[Series], chosen: Sequence[Series], wanted: str | None) -> VolumeError:
    numbers = Counter(series.number for series in found)
    listed = sorted(found, key=lambda series: (len(series.number), series.number, series.uid))
    listing = "; ".join(series.describe(bool(series.number) and numbers[series.number] == 1) for series in listed)
    if wanted is None:
        problem, expected = f"there are {len(found)} DICOM series here", "one"
    else:
        problem = f"{len(chosen) or 'none'} of the DICOM series is {wanted}"
        expected = "the number or the SeriesInstanceUID of one"
    remedy = "name one with --series (register: --source-series, --target-series), or give it a folder of its own"
    return VolumeError(problem, path=path, expected=expected, found=listing, remedy=remedy)


def _check_alone(path: Path, series: Series) -> None:
    """Refuse to take one slice of a series for a volume: who gives a slice means the series, or a copy of the slice."""
    if series.instances[0].frames > 1:
        return
    others = 0
    for file in sorted(entry for entry in path.absolute().parent.iterdir() if entry.is_file()):
        try:
            header = _header(file)
        except VolumeError:
            continue
        others += header is not None and _no_slice(header) is None and header.get("SeriesInstanceUID") == series.uid
    if others > 1:
        raise VolumeError(
            f"the file is one of the {others} slices of its series in this folder",
            path=path,
            remedy="give the folder; to work on this slice alone, copy it into a folder of its own",
        )


def _header(file: Path) -> Dataset | None:
    """What matters of the header, or None where the file is not DICOM, or the index of a disc.

    Raises:
        VolumeError: it is DICOM, but damaged, or compressed as a whole.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
            begun = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
            bare = begun and start[128:] != b"DICM"  # files older than the preamble begin with the first group
            if start[128:] != b"DICM" and not bare:
                if file.suffix.lower() in _SUFFIXES:
                    raise _unreadable(file, "a file that is not DICOM, or is empty")
                return None
            stream.seek(0)
            if not bare and read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise _unreadable(file, "a header that is compressed too (deflate)")
            header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_HEADER + _PATIENT)
            _forget_patient(header)
            stated = header.get("SOPClassUID") or getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID")
            sop_class = UID(str(stated or ""))
            if sop_class == MediaStorageDirectoryStorage:
                return None
            if bare and not sop_class:
                return None
            if not (_UID.fullmatch(sop_class) and _UID.fullmatch(str(header.get("SeriesInstanceUID") or ""))):
                raise _unreadable(file, "no valid SOPClassUID or SeriesInstanceUID")
            header.SOPClassUID = sop_class
            if "ImageStorage" in sop_class.keyword and stream.read(4) not in _PIXEL_DATA:
                raise _unreadable(file, "no pixels: the file is cut off")
            for element in header.iterall():  # values are converted when first asked for: here, where errors are caught
                _ = element.value
            for keyword in _COUNTS:
                int(header.get(keyword) or 1)
    except VolumeError:
        raise
    except Exception as error:  # pydicom says in no single way that a file is damaged; its words may hold values
        raise _unreadable(file, f"a damaged header ({type(error).__name__})") from error
    return header


def _forget_patient(header: Dataset) -> None:
    """Take name and ID of the patient out of a header, and out of its description, where people type them too."""
    names = re.split(r"[\^=,\s]+", " ".join(str(header.get(keyword) or "") for keyword in _PATIENT))
    for keyword in _PATIENT:
        if keyword in header:
            del header[keyword]
    told = [re.escape(name) for name in names if len(name) > 1]
    if told and "SeriesDescription" in header:
        pattern = rf"(?<![^\W_])(?:{'|'.join(sorted(told, key=len, reverse=True))})(?![^\W_])"
        header.SeriesDescription = re.sub(pattern, "***", str(header.SeriesDescription), flags=re.IGNORECASE)


def _no_slice(header: Dataset) -> str | None:
    """Why the file is no part of a series that is read, or None."""
    keyword = header.SOPClassUID.keyword
    if "SecondaryCapture" in keyword:
        return "secondary capture"
    if keyword and "ImageStorage" not in keyword:
        return "object that is not an image"
    kinds = str(header.get("ImageType")).upper()
    if "LOCALIZER" in kinds:
        return "localizer"
    if "SCREEN SAVE" in kinds:
        return "screen capture"
    return None


def _unreadable(file: Path, found: str) -> VolumeError:
    return VolumeError(
        "the DICOM file cannot be read", path=file, found=found, remedy="export the series again, or take the file out"
    )


def _moved(error: VolumeError, folder: Path, archive: Path) -> VolumeError:
    """The error with a path in ``folder`` told as one in ``archive``."""
    path = Path(error.path) if error.path is not None else archive
    if path.is_relative_to(folder):
        path = archive / path.relative_to(folder)
    return error.told(path=path)

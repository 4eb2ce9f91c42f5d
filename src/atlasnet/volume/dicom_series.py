"""Which DICOM series a file, a folder or a zip holds, and the choice of one of them.

What is no slice of a volume is left out: reports, structure sets and segmentations, secondary captures, localizers,
colour pictures, images without a place in the patient.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from atlasnet.errors import VolumeError
from atlasnet.execution import files_below, unpack
from atlasnet.volume.dicom_files import DamagedImageError, check_strange, is_index, quiet_pydicom, read_header
from atlasnet.volume.kept import opened
from atlasnet.volume.names import fits
from atlasnet.wording import counted, on_one_line, quoted, series_name

LARGEST_ARCHIVE = 16 * 2**30  # bytes unpacked; a study of ten thousand slices has 5


@dataclass(frozen=True, eq=False)
class Instance:
    """One file of a series.

    Args:
        file: where it lies.
        name: as messages call it: its path below the folder or in the zip that was given.
        header: without the pixels and without what names the patient.
        damage: why it cannot be read, if it cannot.
    """

    file: Path
    name: str
    header: Dataset
    damage: VolumeError | None = None

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
        palette = str(self.header.get("PhotometricInterpretation")).strip().upper() == "PALETTE COLOR"
        if palette or int(self.header.get("SamplesPerPixel") or 1) > 1:
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
        damaged_beside: how many images of other series, in the same export, cannot be read.
    """

    path: Path
    uid: str
    instances: tuple[Instance, ...]
    damaged_beside: int = 0

    @property
    def number(self) -> str:
        """The SeriesNumber, or an empty text."""
        return str(self.instances[0].header.get("SeriesNumber") or "").strip()

    @property
    def description(self) -> str:
        """The SeriesDescription without what names the patient, or an empty text."""
        return str(self.instances[0].header.get("SeriesDescription") or "").strip()

    def is_called(self, wanted: str) -> bool:
        """Whether a UID or a number is its own."""
        return wanted == self.uid or (wanted == self.number and wanted != "")

    def is_described(self, wanted: str, *, exactly: bool = False) -> bool:
        """Whether a description, as it is listed, or a pattern of one is its own; capitals do not matter."""
        text, wanted = (on_one_line(told).casefold() for told in (self.description, wanted))
        return bool(text) and (text == wanted if exactly else fits(text, wanted))

    def describe(self, numbered: bool) -> str:
        """Number (or, where that does not tell it from the others, UID), description, modality and slices."""
        header, text = self.instances[0].header, self.description[:64]
        slices = sum(instance.frames for instance in self.instances)
        parts = [quoted(text)] if text else []
        parts += [str(header.get("Modality") or "modality unknown"), counted(slices, "slice")]
        if damaged := sum(instance.damage is not None for instance in self.instances):
            parts.append(f"{counted(damaged, 'file')} damaged")
        return f"{self.number if numbered else self.uid}: " + ", ".join(parts)


@dataclass(frozen=True, eq=False)
class _Export:
    """What a file, folder or zip holds.

    Args:
        path: of it, as the user gave it.
        series: the image series, in the order of their UIDs.
        unpacked: the temporary folder with the files of a zip.
    """

    path: Path
    series: tuple[Series, ...]
    unpacked: Path | None = None

    def choose(self, wanted: str | None) -> Series:
        """The one series, or the one that is wanted."""
        chosen = self._fitting(wanted)
        if len(chosen) != 1:
            raise self._ambiguous(len(chosen), wanted)
        for instance in chosen[0].instances:
            if instance.damage is not None:
                raise instance.damage
            if instance.flaw:
                raise VolumeError(
                    "the file does not fit the others of its series",
                    path=instance.file,
                    expected="one value per pixel and the tag ImagePositionPatient",
                    found=instance.flaw,
                    remedy="export the series again, or take the file out",
                )
        return chosen[0]

    def _fitting(self, wanted: str | None) -> Sequence[Series]:
        """All, or those that are called as is wanted, or else described so: a star may be one, as in T2*."""
        if wanted is None:
            return self.series
        wanted = wanted.strip()
        called = [series for series in self.series if series.is_called(wanted)]
        exact = [series for series in self.series if series.is_described(wanted, exactly=True)]
        return called or exact or [series for series in self.series if series.is_described(wanted)]

    def listing(self) -> str:
        """Every series, by its number where that tells it from the others."""
        numbers = Counter(series.number for series in self.series)
        listed = sorted(self.series, key=lambda series: (len(series.number), series.number, series.uid))
        return "; ".join(series.describe(bool(series.number) and numbers[series.number] == 1) for series in listed)

    def _ambiguous(self, chosen: int, wanted: str | None) -> VolumeError:
        if wanted is None:
            problem, expected = f"there are {len(self.series)} DICOM series here", "one"
        else:
            these = f"{chosen} of the DICOM series are" if chosen else "none of the DICOM series is"
            problem = f"{these} {series_name(wanted)}"
            expected = "the number, the SeriesInstanceUID or the description of one"
        remedy = (
            "name one with --series (register: --source-series, --target-series), or give it a folder of its own; to "
            "predict, several exports are several inputs (exports/*)"
        )
        return VolumeError(problem, path=self.path, expected=expected, found=self.listing(), remedy=remedy)


@contextmanager
def open_series(path: Path, wanted: str | None = None) -> Iterator[Series]:
    """Find the one series that ``path`` holds, or the one that is wanted; a zip's files exist inside the block only.

    Within `atlasnet.volume.kept.kept_open` headers are read once, for all series, and what was unpacked stays.

    Args:
        path: a folder, searched with all folders in it and behind its links; a zip of one; or a DICOM file.
        wanted: a SeriesNumber, a SeriesInstanceUID, or else a SeriesDescription, in which ``*`` and ``?`` stand for
            any letters and capitals do not matter.

    Raises:
        VolumeError: there is no image series, not the wanted one, or several and none is named (they are listed); a
            file is damaged, unless its header says that it is of another series; a single file is one of several; a
            zip cannot be trusted. Errors that are raised inside the block come out with the zip's name in place of the
            temporary folder's.
    """
    with _exported(path) as export:
        yield export.choose(None if wanted is None else str(wanted))  # whoever reads that it is a number, gives one


def list_series(path: Path) -> str:
    """The series that ``path`` holds, for people: number or UID, description, modality, slices; see `open_series`."""
    with _exported(path) as export:
        return export.listing()


@contextmanager
def _exported(path: Path) -> Iterator[_Export]:
    with quiet_pydicom(), opened(path, lambda: _found(path)) as export:
        try:
            yield export
        except VolumeError as error:
            if export.unpacked is None:
                raise
            raise _moved(error, export.unpacked, path) from error


@contextmanager
def _found(path: Path) -> Iterator[_Export]:
    if path.is_dir():
        yield _Export(path, _all_series(path, path, files_below(path)))
    elif path.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="atlasnet-dicom-") as temporary:
            folder = Path(temporary)
            unpack(path, folder, largest=LARGEST_ARCHIVE, error=VolumeError, what="a zip of DICOM files")
            try:
                series = _all_series(path, folder, files_below(folder))
            except VolumeError as error:
                raise _moved(error, folder, path) from error
            yield _Export(path, series, folder)
    else:
        if is_index(path):
            raise VolumeError(
                "the file is the index of a disc, and holds no image",
                path=path,
                remedy="give the folder in which it lies",
            )
        (alone,) = _all_series(path, path.parent, [path])
        _check_alone(path, alone)
        yield _Export(path, (alone,))


def _all_series(path: Path, folder: Path, files: Iterable[Path]) -> tuple[Series, ...]:
    slices: dict[str, list[Instance]] = {}
    left_out: Counter[str] = Counter()
    strange = []
    damaged: Counter[str] = Counter()
    for file in files:
        damage = None
        try:
            header = read_header(file)
        except DamagedImageError as error:
            header, damage = error.header, error
            damaged[str(header.SeriesInstanceUID)] += 1
        if header is None:
            strange.append(file)
            continue
        instance = Instance(file, str(file.relative_to(folder)), header, damage)
        reason = no_slice(header)
        if reason is None:
            slices.setdefault(str(header.SeriesInstanceUID), []).append(instance)
        else:
            left_out[reason] += 1
    check_strange(strange, [instance.file for instances in slices.values() for instance in instances])
    found = [
        Series(path, uid, tuple(instances), damaged.total() - damaged[uid]) for uid, instances in sorted(slices.items())
    ]
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
    return tuple(found)


def _check_alone(path: Path, series: Series) -> None:
    """Refuse to take one file of a series for a volume: who gives it means the series, or has copied it elsewhere."""
    others = 0
    for file in sorted(entry for entry in path.absolute().parent.iterdir() if entry.is_file()):
        try:
            header = read_header(file)
        except VolumeError:
            continue
        others += header is not None and no_slice(header) is None and header.get("SeriesInstanceUID") == series.uid
    if others > 1:
        what = "file" if series.instances[0].frames > 1 else "slice"
        raise VolumeError(
            f"the file is one of the {others} {what}s of its series in this folder",
            path=path,
            remedy=f"give the folder; to work on this {what} alone, copy it into a folder of its own",
        )


def no_slice(header: Dataset) -> str | None:
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


def _moved(error: VolumeError, folder: Path, archive: Path) -> VolumeError:
    """The error with a path in ``folder`` told as one in ``archive``."""
    path = Path(error.path) if error.path is not None else archive
    if path.is_relative_to(folder):
        path = archive / path.relative_to(folder)
    return error.told(path=path)

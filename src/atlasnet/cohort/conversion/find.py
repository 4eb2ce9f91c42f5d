"""Which files of a case's folder are its image and its structures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from atlasnet.cohort.channels import require_export
from atlasnet.cohort.conversion.dicom_segmentation import DicomSegmentation
from atlasnet.cohort.conversion.structure_set import StructureSet
from atlasnet.cohort.conversion.structures import LabelMap, MaskFiles, SlicerSegmentation, Structures
from atlasnet.errors import CohortError, VolumeError
from atlasnet.execution import files_below
from atlasnet.volume.dicom import read_stated_series
from atlasnet.volume.dicom_files import DamagedImageError, read_header
from atlasnet.volume.dicom_series import no_slice, open_series
from atlasnet.volume.names import composed, find_below, find_images, image_suffix, is_dicom, of_slicer
from atlasnet.wording import shortened

_SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")  # the second is the label map's
_OBJECTS = (*_SEGMENTATIONS, RTStructureSetStorage)

_DOCUMENTS = frozenset(
    ".txt .md .rst .log .csv .tsv .xls .xlsx .ods .doc .docx .odt .rtf .pdf .htm .html .ppt .pptx .py .ipynb .sh .yml "
    ".yaml .toml .ini .cfg".split()
)
"""Suffixes of texts, tables and programs; a sidecar (.json, .xml) is none, for it tells of an image that is gone."""

_NAMED = frozenset(("README", "LICENSE", "LICENCE", "CHANGES", "CHANGELOG", "COPYING", "VERSION", "MAKEFILE"))

Kind = Literal["image", "segmentation", "slice"]


@dataclass(frozen=True)
class Case:
    """One case as it was found.

    Args:
        name: of its folder.
        images: a file, folder or zip for each channel, or one that holds all.
        annotation: what holds the structures; see `open_structures`.
        series: the DICOM series of each channel that were named, or else that on which the structures state that they
            were drawn, by its SeriesInstanceUID.
        segments: what is said of each structure, as `Structures.segment` has it.
        modality: of a DICOM image.
        elsewhere: whether the structures state that they were drawn on another series than those that were named.
    """

    name: str
    images: tuple[Path, ...]
    annotation: Path
    series: tuple[str, ...]
    segments: Mapping[str, Mapping[str, Any]]
    modality: str | None = None
    elsewhere: bool = False

    @property
    def structures(self) -> tuple[str, ...]:
        """What is annotated."""
        return tuple(self.segments)


def holds_documents_alone(folder: Path) -> bool:
    """Whether a folder is no case beyond doubt: it holds something, and nothing but texts, tables and programs."""
    files = files_below(folder)
    return bool(files) and all(
        (file.suffix.lower() in _DOCUMENTS or file.name.upper() in _NAMED) and not is_dicom(file) for file in files
    )


def find_case(
    folder: Path, images: Sequence[str] = (), structures: str | None = None, series: Sequence[str] = ()
) -> Case:
    """Find image and structures of a case.

    Args:
        folder: of the case.
        images: a pattern (``*`` and ``?``) for each channel, of paths below the folder; without any, the one image
            that lies in the folder itself, or its DICOM series.
        structures: the pattern of a folder of masks, a label map, a ``.seg.nrrd``, a DICOM segmentation or a structure
            set, or of a folder that holds nothing else of these; ``.`` for masks that lie beside the image; without it,
            the one thing of these that there is (a label map must be named).
        series: of each channel, the DICOM series in the one image, as `read_volume` takes them.

    Raises:
        CohortError: there is none, or several.
        InputError: none or several fit a pattern; or series are named of what is not DICOM.
        VolumeError: a file is damaged.
    """
    kinds = {file: _kind(file) for file in files_below(folder)}
    found = find_images(folder, kinds, images)
    if structures == ".":
        chosen = folder
    elif structures is not None:
        chosen = _unwrapped(find_below(folder, kinds, structures, "--structures"), kinds)
    else:
        chosen = _annotation(folder, kinds, found)
    found = found or (_image(folder, kinds, chosen),)
    opened = open_structures(chosen, found)
    segments = {name: opened.segment(name) for name in opened.names}
    require_export(found[0], series)
    # Structures are drawn on one series; of several images, each is one of its own.
    drawn = opened.series if len(found) == 1 and is_dicom(found[0]) else None
    given = [read_stated_series(found[0], name).uid for name in series]
    # Who names an image or a series knows it for the right one: its identifiers may have been replaced since.
    elsewhere = drawn is not None and (drawn not in given if given else bool(images) and not _holds(found[0], drawn))
    named = (drawn,) if drawn is not None and not (given or elsewhere) else tuple(series)
    modality = _modality(found[0], *named[:1], drawn=drawn in named) if is_dicom(found[0]) else None
    return Case(composed(folder.name), found, chosen, named, segments, modality, elsewhere)


def _kind(file: Path) -> Kind | None:
    if of_slicer(file):
        return "segmentation"
    if image_suffix(file):
        return "image"
    try:
        header = read_header(file) if is_dicom(file) else None
    except DamagedImageError as error:  # whether it matters is known when a series is chosen
        header = error.header
    if header is None:
        return None
    if header.SOPClassUID in _OBJECTS:
        return "segmentation"
    return "slice" if no_slice(header) is None else None


def _unwrapped(path: Path, kinds: Mapping[Path, Kind | None]) -> Path:
    """The segmentation in a folder that holds one and no image."""
    inside = [file for file, kind in kinds.items() if kind in ("image", "segmentation") and path in file.parents]
    return inside[0] if len(inside) == 1 and kinds[inside[0]] == "segmentation" else path


def _annotation(folder: Path, kinds: Mapping[Path, Kind | None], images: Sequence[Path]) -> Path:
    """The one thing that may hold the structures."""
    free = {f: kind for f, kind in kinds.items() if not any(f == image or image in f.parents for image in images)}
    masks = {file.parent for file, kind in free.items() if kind == "image" and file.parent != folder}
    found = [*sorted(masks), *(file for file, kind in free.items() if kind == "segmentation")]
    if len(found) != 1:
        naming = "name what holds the structures with --structures, and an image in another folder with --image"
        raise CohortError(
            "there are several annotations" if found else "there is no annotation",
            path=folder,
            expected="a folder of masks, a .seg.nrrd, a DICOM segmentation or a structure set",
            found=_listed(folder, found or sorted(kinds, key=lambda file: kinds[file] == "slice")),
            remedy=naming
            if any(kinds.values())
            else "fetch what belongs there, or move the folder away if it is no case",
        )
    return found[0]


def _image(folder: Path, kinds: Mapping[Path, Kind | None], structures: Path) -> Path:
    """The one image of a folder that is not its structures."""
    found = [f for f, kind in kinds.items() if kind == "image" and f.parent == folder and f != structures]
    if "slice" in kinds.values():
        found.append(folder)  # its DICOM series
    if len(found) != 1:
        raise CohortError(
            "there are several images" if found else "there is no image",
            path=folder,
            expected="one image file in the folder itself, or one DICOM series",
            found=_listed(folder, found or sorted(kinds, key=lambda file: kinds[file] == "slice")),
            remedy="name the image with --image, and a label map with --structures",
        )
    return found[0]


def _holds(path: Path, series: str) -> bool:
    """Whether there is this series."""
    try:
        with open_series(path, series):
            return True
    except VolumeError:
        return False


def _modality(path: Path, wanted: str | None = None, *, drawn: bool) -> str | None:
    """What the DICOM series shows; ``drawn`` says that the structures name it."""
    try:
        return read_stated_series(path, wanted).modality or None
    except VolumeError as error:
        if not drawn and wanted is not None:
            raise
        remedy = (
            "the series on which the structures were drawn belongs into the case's folder; where its identifiers were "
            "replaced, name it with --series, or its folder with --image"
        )
        raise error.told(remedy=remedy if drawn else "name one with --series, or its folder with --image") from error


def _listed(folder: Path, paths: Iterable[Path]) -> str:
    names = ["a DICOM series" if path == folder else path.relative_to(folder).as_posix() for path in paths]
    return shortened(names, 8) or "an empty folder"


def open_structures(path: Path, images: Collection[Path] = ()) -> Structures:
    """What holds the structures, by what it is.

    Args:
        path: of it.
        images: of the case, which are no masks where they lie among them.

    Raises:
        CohortError: it holds none.
        VolumeError: it is damaged.
    """
    if path.is_dir():
        return MaskFiles(path, images)
    if of_slicer(path):
        return SlicerSegmentation(path)
    if image_suffix(path):
        return LabelMap(path)
    header = read_header(path)
    if header is None or header.SOPClassUID not in _OBJECTS:
        raise CohortError(
            "this holds no structures",
            path=path,
            expected="a folder of masks, a label map, a .seg.nrrd, a DICOM segmentation or a structure set",
            found="something else" if header is None else header.SOPClassUID.name,
        )
    return DicomSegmentation(path) if header.SOPClassUID in _SEGMENTATIONS else StructureSet(path)

"""A DICOM segmentation (PS3.3 A.51) as masks; highdicom does the reading."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from atlasnet.cohort.conversion.lattice import placed
from atlasnet.cohort.conversion.structures import Mask, hex_colour
from atlasnet.errors import InputError, VolumeError
from atlasnet.volume import Grid
from atlasnet.volume.dicom_files import DicomFile, quiet_pydicom, unreadable


class DicomSegmentation:
    """The segments of one DICOM segmentation, binary or a label map.

    Raises:
        InputError: highdicom is not installed.
        VolumeError: it cannot be read, holds probabilities, or two segments have one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if util.find_spec("highdicom") is None:
            raise InputError(
                "reading a DICOM segmentation needs the package highdicom",
                path=path,
                remedy="pip install '.[dicom]' in the source of atlasnet",
            )
        import highdicom as hd

        try:
            with quiet_pydicom(), DicomFile(path) as stream:
                self._seg = hd.seg.segread(stream)
                described = {number: self._seg.get_segment_description(number) for number in self._seg.segment_numbers}
                kind = str(self._seg.SegmentationType)
                self.series = next(
                    (str(series.SeriesInstanceUID) for series in self._seg.get("ReferencedSeriesSequence") or ()), None
                )
                names = {number: " ".join(str(d.segment_label).split()) for number, d in described.items()}
        except Exception as error:  # nobody says in a single way that a file is damaged; the words may hold values
            raise unreadable(path, f"a damaged segmentation ({type(error).__name__})") from error
        if kind == "FRACTIONAL":
            raise VolumeError(
                "the segmentation holds probabilities",
                path=path,
                expected="binary segments, or a label map",
                found=kind,
            )
        twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
        if twice:
            raise VolumeError(f"two segments are called {twice[0]!r}", path=path, remedy="rename one of them")
        self._numbers = {name: number for number, name in names.items()}
        self._described: dict[str, Any] = {name: described[number] for number, name in names.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The labels of the segments."""
        return tuple(self._numbers)

    def mask(self, name: str, grid: Grid) -> Mask:
        """See `Structures`."""
        try:
            with quiet_pydicom():
                volume = self._seg.get_volume(segment_numbers=[self._numbers[name]], combine_segments=False)
                array, affine = volume.array[..., 0] != 0, np.asarray(volume.affine, dtype=np.float64)
        except Exception as error:
            raise unreadable(self.path, f"frames that are no volume ({type(error).__name__})") from error
        # highdicom indexes (slice, row, column); a grid's affine takes (column, row, slice).
        return placed(array, Grid(array.shape, affine[:, [2, 1, 0, 3]]), grid, self.path)

    def segment(self, name: str) -> dict[str, Any]:
        """Its codes, and its colour."""
        description = self._described[name]
        kind = description.segmented_property_type
        found: dict[str, Any] = {"category": _code(description.segmented_property_category), "type": _code(kind)}
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence")
        if modifiers:
            found["modifier"] = _code(modifiers[0])
        lab = description.get("RecommendedDisplayCIELabValue")
        if lab is not None:
            from highdicom.color import CIELabColor

            found["colour"] = hex_colour([int(value) for value in CIELabColor.from_dicom_value(list(lab)).to_rgb()])
        return found


def _code(concept: Dataset) -> list[str]:
    return [str(concept.CodeValue), str(concept.CodingSchemeDesignator), str(concept.CodeMeaning)]

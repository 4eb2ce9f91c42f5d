"""A DICOM structure set (PS3.3 A.19) as masks: closed contours in the planes of the slices, filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from atlasnet.cohort.conversion.structures import Mask, hex_colour
from atlasnet.errors import VolumeError
from atlasnet.volume import Grid
from atlasnet.volume.dicom_files import DicomFile, quiet_pydicom, unreadable

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
HOLE = 0.95
"""The share of an outline's pixels within another one from which on it is a hole there; the rest is rounding."""

OFF_PLANE = 0.2
"""Slices by which a contour's points may lie beside the middle of a slice."""

OUTSIDE = 1.5
"""Voxels by which a contour's points may lie beyond the centres of the outermost ones: half is their border."""

_REMEDY = "give the series on which the contours were drawn, or leave the structure out (--label names the others)"


class StructureSet:
    """Regions of interest drawn as closed contours; points, open lines and regions without a contour are left out.

    Attributes:
        overlaps: by the name of a region whose mask was made, in how many slices contours that overlap in part were
            united, and in how many voxels of these they overlap.

    Raises:
        VolumeError: it cannot be read, or two regions have one name.
    """

    @quiet_pydicom()
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with DicomFile(path) as stream:
                dataset = dcmread(stream, force=True)
            names = {
                int(region.ROINumber): " ".join(str(region.get("ROIName") or f"ROI {region.ROINumber}").split())
                for region in dataset.get("StructureSetROISequence") or ()
            }
            self._contours: dict[str, list[NDArray[np.float64]]] = {}
            self.overlaps: dict[str, tuple[int, int]] = {}
            self._exclusive: set[str] = set()  # regions that say that their contours are combined by exclusive or
            self._colours: dict[str, str] = {}
            for region in dataset.get("ROIContourSequence") or ():
                name = names[int(region.ReferencedROINumber)]
                closed = [contour for contour in region.get("ContourSequence") or () if _is_closed(contour)]
                points = [_points(contour) for contour in closed]
                # A contour that is there twice is one, and not a region and its hole.
                contours = list({contour.tobytes(): contour for contour in points}.values())
                if not contours:
                    continue
                if name in self._contours:
                    raise VolumeError(f"two regions are called {name!r}", path=path, remedy="rename one of them")
                self._contours[name] = contours
                if any(str(contour.ContourGeometricType) == "CLOSEDPLANAR_XOR" for contour in closed):
                    self._exclusive.add(name)
                if "ROIDisplayColor" in region:
                    self._colours[name] = hex_colour([int(value) for value in region.ROIDisplayColor])
            self.series = _series(dataset)
        except VolumeError:
            raise
        except Exception as error:  # pydicom says in no single way that a file is damaged; its words may hold values
            raise unreadable(path, f"a damaged structure set ({type(error).__name__})") from error

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the regions that have contours."""
        return tuple(self._contours)

    def mask(self, name: str, grid: Grid) -> Mask:
        """The voxels whose centres lie within the contours, (z, y, x).

        Contours of one slice are combined by exclusive or where they are of the type CLOSEDPLANAR_XOR (DICOM PS3.3
        C.8.8.6.3). Of the type CLOSED_PLANAR, one within another is its hole, as many systems write holes; those
        that overlap in part are united, as plastimatch and dcmrtstruct2nii do: holes of this type are keyholes.

        Raises:
            VolumeError: a contour lies beside the slices of the image, not in a plane of them, or reaches out of them.
        """
        filled, overlaps = np.zeros(grid.shape, dtype=bool), []
        for plane, contours in zip(filled, self._in_slices(name, grid), strict=True):
            regions = [_enclosed(points, plane.shape) for points in contours]
            if name not in self._exclusive:
                regions, united = _united(regions)
                overlaps.append(united)
            for region in regions:
                plane ^= region
        self.overlaps[name] = sum(count > 0 for count in overlaps), sum(overlaps)
        return filled

    def _in_slices(self, name: str, grid: Grid) -> list[list[NDArray[np.float64]]]:
        """The points (n, 2) of the contours of every slice, voxels (x, y); raises as `mask` does."""
        found: list[list[NDArray[np.float64]]] = [[] for _ in range(grid.shape[0])]
        for contour in self._contours[name]:
            points = grid.to_index(contour)
            heights = points[:, 2]
            slice_number = round(float(heights.mean()))
            if np.abs(heights - slice_number).max() > OFF_PLANE or not 0 <= slice_number < grid.shape[0]:
                raise VolumeError(
                    f"a contour of {name!r} is not in a slice of the image",
                    path=self.path,
                    expected=f"at slices 0 to {grid.shape[0] - 1}",
                    found=f"at {heights.min():.2f} to {heights.max():.2f} slices",
                    remedy=_REMEDY,
                )
            first, last = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
            if first.min() < -OUTSIDE or np.any(last > grid.size[:2] - 1 + OUTSIDE):
                raise VolumeError(
                    f"a contour of {name!r} reaches out of the image",
                    path=self.path,
                    expected=f"voxels (x, y) from (0, 0) to ({grid.size[0] - 1}, {grid.size[1] - 1})",
                    found=f"({first[0]:.1f}, {first[1]:.1f}) to ({last[0]:.1f}, {last[1]:.1f})",
                    remedy=_REMEDY,
                )
            found[slice_number].append(points[:, :2])
        return found

    def gaps(self, name: str, grid: Grid) -> int:
        """How many slices between the first and the last one with a contour have none."""
        slices = {round(float(grid.to_index(contour)[:, 2].mean())) for contour in self._contours[name]}
        return max(slices) - min(slices) + 1 - len(slices)

    def segment(self, name: str) -> dict[str, Any]:
        """Its colour."""
        return {"colour": self._colours[name]} if name in self._colours else {}


def _is_closed(contour: Dataset) -> bool:
    return str(contour.get("ContourGeometricType")) in CLOSED and bool(contour.get("ContourData"))


def _points(contour: Dataset) -> NDArray[np.float64]:
    """(n, 3) LPS mm."""
    return np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)


def _series(dataset: Dataset) -> str | None:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                return str(series.SeriesInstanceUID)
    return None


def _united(outlines: Sequence[Mask]) -> tuple[list[Mask], int]:
    """Regions whose exclusive or is the structure, of outlines of the type CLOSED_PLANAR, and the voxels united.

    Outlines that overlap and of which none is a hole in the other become one region, with all that are so tied to them;
    the largest first, so that a hole in what two of them enclose together is one.
    """
    regions: list[Mask] = []
    united = 0
    for outline in sorted(outlines, key=np.count_nonzero, reverse=True):
        tied = [k for k, region in enumerate(regions) if _in_part(region, outline)]
        for k in reversed(tied):
            region = regions.pop(k)
            united += int(np.count_nonzero(region & outline))
            outline = region | outline
        regions.append(outline)
    return regions, united


def _in_part(one: Mask, other: Mask) -> bool:
    """Whether two outlines overlap, and neither lies within the other."""
    common = np.count_nonzero(one & other)
    return bool(0 < common < HOLE * min(np.count_nonzero(one), np.count_nonzero(other)))


def _enclosed(points: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """The pixels of a slice (y, x) whose centres lie in a polygon of points (x, y)."""
    plane = np.zeros(shape, dtype=bool)
    low = np.maximum(np.ceil(points.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(points.max(axis=0)), np.array(plane.shape[::-1]) - 1).astype(int)
    if np.all(high >= low):
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        inside = Outline(points, closed=False).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
        plane[low[1] : high[1] + 1, low[0] : high[0] + 1] = inside.reshape(x.shape)
    return plane

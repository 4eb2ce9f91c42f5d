"""Labels as a DICOM structure set (PS3.3 A.19): closed contours in the planes of the scan's slices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage
from scipy.spatial import KDTree

from atlasnet import __version__
from atlasnet.cohort.segments import Segment
from atlasnet.cohort.structures import where
from atlasnet.execution import atomic_path
from atlasnet.prediction.dicom import (
    MANUFACTURER,
    Origin,
    check_labels,
    referenced,
)
from atlasnet.prediction.dicom_text import short
from atlasnet.volume import Volume
from atlasnet.volume.dicom_files import quiet_pydicom

Points = NDArray[np.float64]

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # retired, and what readers of structure sets expect of the study


def write_rtstruct(path: str | Path, labels: Volume, origin: Origin) -> None:
    """Write labels as one RT structure set, a region of interest for each label of the model.

    Args:
        path: the file.
        labels: (1, z, y, x) on the grid of the source.
        origin: the source, the segments and the model.

    Raises:
        VolumeError: the labels do not lie on the source's grid, or one is not described.
    """
    check_labels(labels, origin)
    with quiet_pydicom():
        dataset = _structure_set(labels, origin)
        dataset.StructureSetROISequence = []
        dataset.ROIContourSequence = []
        dataset.RTROIObservationsSequence = []
        for number, segment in enumerate(origin.segments, start=1):
            dataset.StructureSetROISequence.append(_region(number, segment, origin))
            dataset.ROIContourSequence.append(_contours(number, segment, labels, origin))
            dataset.RTROIObservationsSequence.append(_observation(number, segment))
        with atomic_path(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def slice_polygons(mask: NDArray[np.bool_]) -> list[Points]:
    """The outlines of a mask, (n, 2) points (x, y) in pixels, not closed: a polygon for each connected part.

    Outlines run along the edges of pixels, so that they hold exactly the mask's area. A hole is joined to its
    surroundings by a channel of no width (the keyhole of DICOM PS3.3 C.8.8.6.3), which readers understand whether they
    unite the contours of a plane or combine them by exclusive or.

    Args:
        mask: (y, x).
    """
    padded = np.pad(mask, 1).astype(np.float32)
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    polygons = []
    for points, offsets in zip(*filled, strict=True):
        outer, *holes = (_along_edges(points[a : b - 1] - 1.0) for a, b in pairwise(offsets))
        for hole in holes:
            outer = _joined(outer, hole)
        polygons.append(_corners(outer))
    return polygons


def _along_edges(ring: Points) -> Points:
    """The ring round the corners of pixels, which at half the height it cuts from the middle of one edge to the next.

    The middle of an edge has one coordinate half-way between two pixels: from both middles these make the corner.
    """
    after = np.roll(ring, -1, axis=0)
    turning = ((ring % 1 == 0.5) != (after % 1 == 0.5)).all(axis=1)
    corners = np.where(ring % 1 == 0.5, ring, after)
    return np.insert(ring, np.flatnonzero(turning) + 1, corners[turning], axis=0)


def _corners(ring: Points) -> Points:
    """The ring without the points in the middle of straight runs."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[np.abs(turns) > 1e-6]


def _joined(outer: Points, hole: Points) -> Points:
    """One ring that goes round ``outer``, across to ``hole`` where they are nearest, round it, and back the same way.

    The channel leaves the rings a little behind their points: from point to point it would run through the centres of
    pixels, of which readers could not say whether they lie inside.
    """
    distances, nearest = (np.asarray(found) for found in KDTree(outer).query(hole))
    j = int(distances.argmin())
    i = int(nearest[j])
    start = outer[i] + 0.29 * (outer[(i + 1) % len(outer)] - outer[i])
    end = hole[j] + 0.37 * (hole[(j + 1) % len(hole)] - hole[j])
    return np.concatenate([outer[: i + 1], [start, end], hole[j + 1 :], hole[: j + 1], [end, start], outer[i + 1 :]])


def _structure_set(labels: Volume, origin: Origin) -> Dataset:
    source, made = origin.source, origin.made
    dataset = origin.identity()
    dataset.file_meta = FileMetaDataset()
    # With explicit types a contour could not be longer than 64 KiB, some 2300 points.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = origin.uid(labels, "structure set")
    dataset.SeriesInstanceUID = origin.uid(labels, "structure set series")
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesNumber = origin.series_number(2)
    dataset.SeriesDescription = "AtlasNet structure set"
    dataset.InstanceNumber = 1
    dataset.OperatorsName = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = __version__
    dataset.DeviceSerialNumber = origin.model
    dataset.InstanceCreationDate = dataset.SeriesDate = dataset.StructureSetDate = made.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.SeriesTime = dataset.StructureSetTime = made.strftime("%H%M%S")
    dataset.StructureSetLabel = MANUFACTURER
    dataset.ApprovalStatus = "UNAPPROVED"
    series = Dataset()
    series.SeriesInstanceUID = source.headers[0].SeriesInstanceUID
    series.ContourImageSequence = referenced(source, range(len(source.headers)))
    study = Dataset()
    study.ReferencedSOPClassUID = _DETACHED_STUDY
    study.ReferencedSOPInstanceUID = dataset.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = dataset.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    return dataset


def _region(number: int, segment: Segment, origin: Origin) -> Dataset:
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = origin.source.headers[0].FrameOfReferenceUID
    region.ROIName = short(segment.name)
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    return region


def _observation(number: int, segment: Segment) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = segment.kind
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.RTROIIdentificationCodeSequence = [code]
    observation.RTROIInterpretedType = ""
    observation.ROIInterpreter = ""
    return observation


def _contours(number: int, segment: Segment, labels: Volume, origin: Origin) -> Dataset:
    region = Dataset()
    region.ReferencedROINumber = number
    region.ROIDisplayColor = list(segment.rgb)
    contours: list[Dataset] = []
    for index, points in _outlines(where(labels.array[0], segment.values), origin):
        contour = Dataset()
        contour.ContourImageSequence = referenced(origin.source, [index])
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourNumber = len(contours) + 1
        contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
        contours.append(contour)
    if contours:
        region.ContourSequence = contours
    return region


def _outlines(mask: NDArray[np.bool_], origin: Origin) -> Iterator[tuple[int, Points]]:
    """Each contour of a (z, y, x) mask: the slice, and (n, 3) points in LPS mm."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return
    levels, rows, columns = found[0]
    source = origin.source
    along = source.grid.affine[:3, :2]  # mm per column and per row
    for index in range(levels.start, levels.stop):
        for polygon in slice_polygons(mask[index, rows, columns]):
            pixels = polygon + np.array([columns.start, rows.start])
            yield index, source.positions[index] + pixels @ along.T

"""Labels as a DICOM segmentation (PS3.3 A.51), one binary segment for each, referring to the slices of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as CodedConcept
from pydicom.valuerep import DA, DT, TM, format_number_as_ds

from atlasnet import __version__
from atlasnet.cohort.segments import Code, Segment
from atlasnet.cohort.structures import where
from atlasnet.execution import atomic_path
from atlasnet.prediction.dicom import LOSSY, MANUFACTURER, Origin, check_labels
from atlasnet.prediction.dicom_identity import UTF_8, copied
from atlasnet.prediction.dicom_text import short
from atlasnet.volume import Volume
from atlasnet.volume.dicom import DicomSource
from atlasnet.volume.dicom_files import quiet_pydicom


def write_dicom_seg(path: str | Path, labels: Volume, origin: Origin) -> None:
    """Write labels as one DICOM segmentation object.

    Every segment of the model is described, whether or not it was found, so that its number is always the same; frames
    without a voxel are left out. A region of several labels is a segment that overlaps theirs.

    Args:
        path: the file.
        labels: (1, z, y, x) on the grid of the source.
        origin: the source, the segments and the model.

    Raises:
        VolumeError: the labels do not lie on the source's grid, or one is not described.
    """
    check_labels(labels, origin)
    made = origin.made
    numbers = _numbers(labels, origin.segments)
    with quiet_pydicom():
        images = _source_images(origin)
        if origin.source.frames[0] is not None:  # the order of the frames in their file
            numbers = numbers[np.argsort(np.array(origin.source.frames, dtype=np.int64))]
        seg = hd.seg.Segmentation(
            source_images=images,
            pixel_array=numbers,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_described(n, segment) for n, segment in enumerate(origin.segments, start=1)],
            series_instance_uid=origin.uid(labels, "segmentation series"),
            series_number=origin.series_number(1),
            sop_instance_uid=origin.uid(labels, "segmentation"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number=origin.model,
            content_label="SEGMENTATION",
            content_description="Automatic segmentation",
            series_description="AtlasNet segmentation",
            specific_character_set=UTF_8,
            content_date=made.date(),
            content_time=made.time(),
            series_date=made.date(),
            series_time=made.time(),
        )
        for element in origin.identity():  # highdicom takes over what it knows of
            if element.tag not in seg:
                seg.add(element)
        seg.InstanceCreationDate, seg.InstanceCreationTime = DA(made.date()), TM(made.time())
        for item in seg.ContributingEquipmentSequence:
            item.ContributionDateTime = DT(made)
        dimensions = origin.uid(labels, "dimensions")
        for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
            item.DimensionOrganizationUID = dimensions
        with atomic_path(path) as temporary:
            seg.save_as(temporary)


def _numbers(labels: Volume, segments: Sequence[Segment]) -> NDArray[Any]:
    """(z, y, x) numbers of segments; where some are regions, (z, y, x, segments), 1 in each."""
    if any(segment.region for segment in segments):
        return np.stack([where(labels.array[0], segment.values) for segment in segments], axis=-1).view(np.uint8)
    numbers = np.zeros(labels.grid.shape, dtype=np.uint8 if len(segments) < 256 else np.uint16)
    for number, segment in enumerate(segments, start=1):
        numbers[labels.array[0] == segment.value] = number
    return numbers


def _described(number: int, segment: Segment) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=short(segment.name),
        segmented_property_category=_concept(segment.category),
        segmented_property_type=_concept(segment.kind),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MANUFACTURER, family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
        display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.modifier is not None:
        modifier = Dataset()
        modifier.CodeValue, modifier.CodingSchemeDesignator, modifier.CodeMeaning = segment.modifier
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _source_images(origin: Origin) -> list[Dataset]:
    """The source as highdicom takes it: what it needs and no more, so that no odd header stops it.

    Single slices in the order of the volume, or one multi-frame image in the order of its own frames.
    """
    source = origin.source
    spacing = source.grid.spacing
    orientation = [_ds(v) for v in (*source.grid.direction[:, 0], *source.grid.direction[:, 1])]
    positions = [[_ds(v) for v in position] for position in source.positions]
    measures = {
        "PixelSpacing": [_ds(spacing[1]), _ds(spacing[0])],
        "SliceThickness": _ds(spacing[2]),
        "SpacingBetweenSlices": _ds(spacing[2]),
    }
    whose, lossy = origin.identity(), _lossy(source)
    images = []
    for header, position in zip(source.headers, positions, strict=True):
        image = Dataset()
        image.update(whose)
        for keyword in ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
            setattr(image, keyword, header[keyword].value)
        image.Modality = str(header.get("Modality") or "OT")
        image.Rows, image.Columns = source.grid.shape[1:]
        image.ImagePositionPatient, image.ImageOrientationPatient = position, orientation
        for keyword, value in {**measures, **lossy}.items():
            setattr(image, keyword, value)
        images.append(image)
    if source.frames[0] is None:
        return images
    whole = images[0]
    whole.NumberOfFrames = len(positions)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=orientation)]
    shared.PixelMeasuresSequence = [_item(**measures)]
    whole.SharedFunctionalGroupsSequence = [shared]
    order = np.argsort(np.array(source.frames, dtype=np.int64))
    whole.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=positions[i])]) for i in order
    ]
    del whole.ImagePositionPatient, whole.ImageOrientationPatient, whole.PixelSpacing
    del whole.SliceThickness, whole.SpacingBetweenSlices
    return [whole]


def _lossy(source: DicomSource) -> dict[str, Any]:
    """What is said of lossy compression, by the first slice that was compressed so: it stays in what is made of it."""
    for header in source.headers:
        if copied(header, LOSSY[0]) == "01":
            return {keyword: copied(header, keyword) for keyword in LOSSY if keyword in header}
    return {}


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _ds(value: float) -> str:
    """A number in the sixteen characters of a decimal string."""
    return format_number_as_ds(float(value))

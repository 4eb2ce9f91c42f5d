"""DICOM segmentations and structure sets, read back with highdicom and pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage
from scipy.spatial.transform import Rotation

import dicoms
from atlasnet.cohort.segments import label_segments, region_segments
from atlasnet.errors import InputError, VolumeError
from atlasnet.prediction.dicom import Origin, check_source
from atlasnet.prediction.dicom_seg import write_dicom_seg
from atlasnet.prediction.rtstruct import slice_polygons, write_rtstruct
from atlasnet.volume import Volume, read_volume, write_volume
from atlasnet.volume.dicom import read_dicom_source
from atlasnet.volume.dicom_files import quiet_pydicom

SPACING, ORIGIN = (0.8, 1.1, 2.5), (12.0, -34.0, 56.0)
LABELS = {"background": 0, "big": 5, "small": 2, "absent": 3}
TABLE = {
    "big": {
        "category": ["123037004", "SCT", "Anatomical Structure"],
        "type": ["39607008", "SCT", "Lung"],
        "modifier": ["7771000", "SCT", "Left"],
        "colour": "#80ae80",
    }
}
NUMBERS = {"small": 1, "absent": 2, "big": 3}  # in the order of the label values
CREATED = datetime(2026, 3, 4, 5, 6, 7)


def painted() -> NDArray[np.int16]:
    """Labels as intensities: a lopsided body with a hole, and a bit in the hole and at the border."""
    array = np.zeros((6, 13, 11), np.int16)
    array[1:5, 2:12, 1:7] = 5
    array[1:3, 2:6, 7:9] = 5
    array[2:4, 5:9, 3:6] = 0
    array[3, 6:8, 4] = 2
    array[5, 0, 0:3] = 2
    return array


def written(folder: Path, made: Sequence[Dataset]) -> tuple[Volume, Origin]:
    """A series on disk, its labels on its grid, and the three files of labels beside it."""
    ct = dicoms.save(folder / "ct", made)
    volume = read_volume(ct)
    labels = volume.replace(volume.array.astype(np.uint8))
    source = read_dicom_source(ct)
    check_source(source, ct)
    origin = Origin(source, label_segments(LABELS, TABLE), "0123456789", CREATED)
    write_volume(folder / "labels.nii.gz", labels)
    write_dicom_seg(folder / "seg.dcm", labels, origin)
    write_rtstruct(folder / "rt.dcm", labels, origin)
    return labels, origin


def series(direction: NDArray[np.float64] | None = None) -> list[Dataset]:
    return dicoms.slices(painted(), spacing=SPACING, origin=ORIGIN, direction=direction)


def nifti_centroids(path: Path) -> dict[str, NDArray[np.float64]]:
    """LPS mm, by SimpleITK."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(sitk.ReadImage(str(path)))
    return {name: np.array(statistics.GetCentroid(LABELS[name])) for name in ("big", "small")}


def seg_centroids(path: Path) -> dict[str, NDArray[np.float64]]:
    """LPS mm, by highdicom."""
    volume = hd.seg.segread(str(path)).get_volume(combine_segments=True)
    found = {}
    for name in ("big", "small"):
        index = np.argwhere(volume.array == NUMBERS[name]).mean(0)
        found[name] = (volume.affine @ [*index, 1])[:3]
    return found


def contours(path: Path, number: int) -> list[tuple[Dataset, NDArray[np.float64]]]:
    """The items and the (n, 3) points of the contours of one region."""
    dataset = pydicom.dcmread(path)
    (region,) = (item for item in dataset.ROIContourSequence if item.ReferencedROINumber == number)
    items = region.get("ContourSequence", [])
    return [(item, np.array(item.ContourData, dtype=float).reshape(-1, 3)) for item in items]


def rtstruct_centroids(path: Path, direction: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """LPS mm, of the areas within the contours: those of a keyhole count negative by themselves."""
    found = {}
    for name in ("big", "small"):
        total, area = np.zeros(3), 0.0
        for _, points in contours(path, NUMBERS[name]):
            local = points @ direction
            x, y = local[:, 0] - local[0, 0], local[:, 1] - local[0, 1]
            cross = x * np.roll(y, -1) - y * np.roll(x, -1)
            centre = np.array([((v + np.roll(v, -1)) * cross).sum() / (3 * cross.sum()) for v in (x, y)])
            total += cross.sum() / 2 * np.array([*(centre + local[0, :2]), local[0, 2]])
            area += cross.sum() / 2
        found[name] = direction @ (total / area)
    return found


def check_centroids(folder: Path, labels: Volume) -> None:
    expected = nifti_centroids(folder / "labels.nii.gz")
    for found in (seg_centroids(folder / "seg.dcm"), rtstruct_centroids(folder / "rt.dcm", labels.grid.direction)):
        for name, point in expected.items():
            assert np.abs(labels.grid.to_index(point) - labels.grid.to_index(found[name])).max() < 0.1, name


@pytest.mark.parametrize("axes", permutations(range(3)))
def test_labels_lie_where_those_of_the_nifti_do_in_all_48_orientations(axes: tuple[int, ...], tmp_path: Path) -> None:
    for number, signs in enumerate(product((1.0, -1.0), repeat=3)):
        direction = np.eye(3)[:, axes] * np.array(signs)
        labels, _ = written(tmp_path / str(number), series(direction))
        check_centroids(tmp_path / str(number), labels)


@pytest.mark.parametrize("multi_frame", [False, True])
@pytest.mark.parametrize("mirrored", [1.0, -1.0])
def test_labels_lie_where_those_of_an_oblique_nifti_do(tmp_path: Path, multi_frame: bool, mirrored: float) -> None:
    direction = Rotation.from_rotvec([0.5, -0.4, 0.9]).as_matrix() * np.array([1, 1, mirrored])
    made = series(direction)
    if multi_frame:
        made = [dicoms.enhanced(made, [4, 2, 0, 5, 3, 1], own_orientation=True)]
    labels, _ = written(tmp_path, made)
    check_centroids(tmp_path, labels)


def test_the_segmentation_holds_the_labels_voxel_by_voxel(tmp_path: Path) -> None:
    labels, _ = written(tmp_path, series())
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    uids = [dataset.SOPInstanceUID for dataset in series()]
    masks = seg.get_pixels_by_source_instance(uids, segment_numbers=[1, 2, 3], assert_missing_frames_are_empty=True)
    for name, number in NUMBERS.items():
        np.testing.assert_array_equal(masks[..., number - 1] == 1, labels.array[0] == LABELS[name])


@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_region_of_several_labels_is_a_segment_beside_theirs(tmp_path: Path, multi_frame: bool) -> None:
    made = [dicoms.enhanced(series(), [4, 2, 0, 5, 3, 1])] if multi_frame else series()
    labels, origin = written(tmp_path, made)
    regions = {"big": 5, "both": (2, 5)}
    table = {**TABLE, "both": {"colour": "#123456"}}
    segments = (*label_segments(LABELS, table, regions), *region_segments(LABELS, table, regions))
    origin = replace(origin, segments=segments)
    write_dicom_seg(tmp_path / "seg.dcm", labels, origin)
    write_rtstruct(tmp_path / "rt.dcm", labels, origin)
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["small", "absent", "big", "both"]
    assert seg.SegmentsOverlap == "YES"
    voxel = float(np.prod(SPACING))
    for number, values in ((1, (2,)), (3, (5,)), (4, (2, 5))):
        inside = np.isin(labels.array[0], values)
        volume = seg.get_volume(segment_numbers=[number])
        index = np.argwhere(volume.array[..., 0]).mean(0)
        expected = labels.grid.to_world(np.argwhere(inside).mean(0)[::-1])
        assert np.count_nonzero(volume.array) == np.count_nonzero(inside)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=0.01)
        areas = [0.0]
        for _, points in contours(tmp_path / "rt.dcm", number):
            x, y = points[:, 0], points[:, 1]
            areas.append((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)
        assert abs(sum(areas)) * SPACING[2] == pytest.approx(np.count_nonzero(inside) * voxel, rel=1e-3)
    roi = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [item.ROIName for item in roi.StructureSetROISequence] == ["small", "absent", "big", "both"]
    assert list(roi.ROIContourSequence[3].ROIDisplayColor) == [0x12, 0x34, 0x56]


def test_what_describes_no_label_and_no_region_of_several_is_refused() -> None:
    with pytest.raises(InputError, match="labels that there are not; found 'both'"):
        label_segments(LABELS, {"both": {"colour": "#123456"}}, {"big": 5})
    with pytest.raises(InputError, match="the colour of segment 'both'"):
        region_segments(LABELS, {"both": {"colour": "red"}}, {"both": (2, 5)})
    (region,) = region_segments(LABELS, {}, {"big": 5, "both": (2, 5)})
    assert region.colour not in {segment.colour for segment in label_segments(LABELS, {})}


@pytest.mark.parametrize("multi_frame", [False, True])
def test_every_frame_and_contour_refers_to_the_slice_in_whose_plane_it_lies(tmp_path: Path, multi_frame: bool) -> None:
    made = series(Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix())
    places = {(d.SOPInstanceUID, None): np.array(d.ImagePositionPatient, dtype=float) for d in made}
    if multi_frame:
        order = [4, 2, 0, 5, 3, 1]
        whole = dicoms.enhanced(made, order)
        places = {
            (whole.SOPInstanceUID, n + 1): np.array(made[i].ImagePositionPatient, dtype=float)
            for n, i in enumerate(order)
        }
        labels, _ = written(tmp_path, [whole])
    else:
        labels, _ = written(tmp_path, made)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        place = places[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, place, atol=1e-5)
    for number in NUMBERS.values():
        for item, points in contours(tmp_path / "rt.dcm", number):
            source = item.ContourImageSequence[0]
            place = places[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]
            np.testing.assert_allclose((points - place) @ labels.grid.direction[:, 2], 0, atol=1e-3)


def test_patient_study_and_frame_of_reference_are_the_sources(tmp_path: Path) -> None:
    made = series()
    made[0].PatientBirthDate = made[0].PatientSex = ""
    for dataset in made:
        dataset.PatientName = "Müller^Jürgen"
    written(tmp_path, made)
    for name in ("seg.dcm", "rt.dcm"):
        dataset = pydicom.dcmread(tmp_path / name)
        assert str(dataset.PatientName) == "Müller^Jürgen"
        assert dataset.PatientBirthDate == dataset.PatientSex == ""
        for keyword in ("PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
            assert dataset.get(keyword) == made[0].get(keyword), keyword
        assert dataset.SeriesInstanceUID != made[0].SeriesInstanceUID
    reference = pydicom.dcmread(tmp_path / "rt.dcm").ReferencedFrameOfReferenceSequence[0]
    referred = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == made[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ContourImageSequence} == {d.SOPInstanceUID for d in made}


def test_dates_and_times_that_there_are_not_do_not_stop_the_writing(tmp_path: Path) -> None:
    made = series()
    for dataset in made:
        dataset["StudyDate"]._value, dataset["StudyTime"]._value = "20201399", "256199"
        dataset["PatientBirthDate"]._value, dataset["PatientSex"]._value = "unknown", "X"
    written(tmp_path, made)
    for name in ("seg.dcm", "rt.dcm"):
        dataset = pydicom.dcmread(tmp_path / name)
        assert [dataset.get(k) for k in ("StudyDate", "StudyTime", "PatientBirthDate", "PatientSex")] == [""] * 4


STATED = {
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": ["by hand", "twice"],
    "DeidentificationMethodCodeSequence": [
        dicoms.item(CodeValue="113100", CodingSchemeDesignator="DCM", CodeMeaning="Basic Profile")
    ],
    "IssuerOfPatientID": "Hôpital",
    "OtherPatientIDs": ["A-1", "B-2"],
    "OtherPatientIDsSequence": [dicoms.item(PatientID="C-3", IssuerOfPatientID="Hôpital", TypeOfPatientID="TEXT")],
    "OtherPatientNames": "Doe^J",
    "PatientComments": "first line\r\nsecond line",
    "ClinicalTrialSponsorName": "sponsor",
    "ClinicalTrialProtocolID": "P1",
    "ClinicalTrialProtocolName": "",
    "ClinicalTrialSubjectID": "17",
    "ClinicalTrialTimePointID": "baseline",
    "LongitudinalTemporalOffsetFromEvent": 3.5,
    "StudyDescription": "Thorax früh",
    "ProcedureCodeSequence": [dicoms.item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="thorax")],
    "PatientAge": "050Y",
    "PatientSize": "1.71",
    "PatientWeight": "70.5",
    "PregnancyStatus": 4,
    "TimezoneOffsetFromUTC": "+0130",
}


@pytest.mark.parametrize("multi_frame", [False, True])
def test_all_that_is_said_of_patient_trial_and_study_is_taken_over(tmp_path: Path, multi_frame: bool) -> None:
    made = series()
    made = [dicoms.enhanced(made, range(6))] if multi_frame else made
    for dataset in made:
        for keyword, value in STATED.items():
            setattr(dataset, keyword, value)
    written(tmp_path, made)
    for read, name in ((hd.seg.segread, "seg.dcm"), (pydicom.dcmread, "rt.dcm")):
        dataset = read(tmp_path / name)
        for keyword in STATED:
            assert dataset[keyword] == made[0][keyword], (name, keyword)
            assert dataset[keyword].VM == made[0][keyword].VM
        local = CREATED.astimezone(timezone(timedelta(hours=1, minutes=30)))
        assert dataset.SeriesDate + dataset.SeriesTime[:6] == local.strftime("%Y%m%d%H%M%S")


def test_what_is_not_valid_of_it_is_empty(tmp_path: Path) -> None:
    made = series()
    with quiet_pydicom():
        for dataset in made:
            dataset.StudyDescription, dataset.PatientComments = "x" * 100, "kept"
            dataset.OtherPatientIDsSequence = [dicoms.item(PatientID="y" * 100)]
            dataset.IssuerOfPatientID, dataset.TimezoneOffsetFromUTC = ["one", "two"], "summer"
            dataset.PatientAge, dataset.PatientWeight = "old", ""
            dataset["PatientWeight"]._value = "heavy"
        written(tmp_path, made)
    for name in ("seg.dcm", "rt.dcm"):
        dataset = pydicom.dcmread(tmp_path / name)
        assert (dataset.StudyDescription, dataset.PatientComments) == ("x" * 64, "kept")
        for keyword in ("IssuerOfPatientID", "PatientAge", "PatientWeight", "TimezoneOffsetFromUTC"):
            assert dataset[keyword].is_empty, keyword
        assert not dataset.OtherPatientIDsSequence


def test_a_segmentation_of_a_lossy_scan_says_so(tmp_path: Path) -> None:
    made = series()
    for dataset in made[2:]:
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", ["10.5", "2"]
        dataset.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]
    written(tmp_path / "lossy", made)
    seg = hd.seg.segread(tmp_path / "lossy" / "seg.dcm")
    assert seg.LossyImageCompression == "01"
    assert list(seg.LossyImageCompressionRatio) == [10.5, 2]
    assert list(seg.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]
    written(tmp_path / "plain", series())
    assert hd.seg.segread(tmp_path / "plain" / "seg.dcm").LossyImageCompression == "00"


def codes(items: Any) -> tuple[str, str, str]:
    return items[0].CodeValue, items[0].CodingSchemeDesignator, items[0].CodeMeaning


def test_codes_and_colours_come_from_the_table_and_are_neutral_without(tmp_path: Path) -> None:
    written(tmp_path, series())
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["small", "absent", "big"]
    small, _, big = seg.SegmentSequence
    assert codes(big.SegmentedPropertyCategoryCodeSequence) == ("123037004", "SCT", "Anatomical Structure")
    assert codes(big.SegmentedPropertyTypeCodeSequence) == ("39607008", "SCT", "Lung")
    modifier = big.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert codes(modifier) == ("7771000", "SCT", "Left")
    colour = hd.color.CIELabColor.from_dicom_value(big.RecommendedDisplayCIELabValue).to_rgb()
    assert np.abs(np.array(colour) - (0x80, 0xAE, 0x80)).max() <= 1
    assert codes(small.SegmentedPropertyCategoryCodeSequence) == ("85756007", "SCT", "Tissue")
    rtstruct = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [item.ROIName for item in rtstruct.StructureSetROISequence] == ["small", "absent", "big"]
    assert list(rtstruct.ROIContourSequence[2].ROIDisplayColor) == [0x80, 0xAE, 0x80]
    assert "ContourSequence" not in rtstruct.ROIContourSequence[1]


def test_one_identity_means_the_same_bytes(tmp_path: Path) -> None:
    labels, origin = written(tmp_path, series())
    corrected = [deepcopy(header) for header in origin.source.headers]
    for header in corrected:
        header.PatientName = "Roe^Jane"
    moved = origin.source.positions + 0.001
    others = (
        replace(origin, created=CREATED + timedelta(seconds=1)),
        replace(origin, source=replace(origin.source, headers=tuple(corrected))),
        replace(origin, source=replace(origin.source, positions=moved)),
    )
    for name, write in (("seg.dcm", write_dicom_seg), ("rt.dcm", write_rtstruct)):
        found = {}
        for other in (origin, *others):
            write(tmp_path / "other.dcm", labels, other)
            dataset = pydicom.dcmread(tmp_path / "other.dcm")
            found[dataset.SOPInstanceUID, dataset.SeriesInstanceUID] = (tmp_path / "other.dcm").read_bytes()
        assert len({uid for uids in found for uid in uids}) == 2 * len(set(found.values())) == 8, name


def test_nothing_found_is_a_segmentation_too(tmp_path: Path) -> None:
    labels, origin = written(tmp_path, series())
    empty = labels.replace(np.zeros_like(labels.array))
    write_dicom_seg(tmp_path / "seg.dcm", empty, origin)
    write_rtstruct(tmp_path / "rt.dcm", empty, origin)
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    assert len(seg.SegmentSequence) == 3
    assert seg.pixel_array.max() == 0
    assert not contours(tmp_path / "rt.dcm", NUMBERS["big"])


def test_the_same_labels_give_the_same_bytes_and_others_another_identity(tmp_path: Path) -> None:
    labels, origin = written(tmp_path, series())
    for name, write in (("seg.dcm", write_dicom_seg), ("rt.dcm", write_rtstruct)):
        write(tmp_path / "again.dcm", labels, origin)
        assert (tmp_path / "again.dcm").read_bytes() == (tmp_path / name).read_bytes()
        write(tmp_path / "other.dcm", labels.replace(np.where(labels.array == 2, 5, labels.array)), origin)
        uids = {pydicom.dcmread(tmp_path / file).SOPInstanceUID for file in (name, "other.dcm")}
        assert len(uids) == 2


def inside(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int], combine: Any) -> NDArray[np.bool_]:
    """Which pixel centres lie inside, by matplotlib's test of points, the polygons combined by ``combine``."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        mask = combine(mask, Outline(polygon).contains_points(points).reshape(shape))
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_contours_hold_exactly_the_pixels_however_a_reader_combines_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(24, 30)), random.uniform(0.3, 2.0))
    mask = noise > random.uniform(-0.5, 0.5) * noise.std()
    polygons = slice_polygons(mask)
    np.testing.assert_array_equal(inside(polygons, mask.shape, np.logical_or), mask)
    np.testing.assert_array_equal(inside(polygons, mask.shape, np.logical_xor), mask)


@pytest.mark.slow
def test_a_contour_of_thousands_of_points_is_read_back(tmp_path: Path) -> None:
    array = np.zeros((1, 200, 200), np.int16)
    array[0, 2:198, 2:198] = 5
    array[0, 4:196:4, 4:196:4] = 0  # holes, which one ring goes round
    written(tmp_path, dicoms.slices(array, spacing=SPACING, origin=ORIGIN))
    contours = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[2].ContourSequence
    (contour,) = contours
    assert contour.NumberOfContourPoints > 5000
    assert contour["ContourData"].VR == "DS"
    assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints


def test_an_island_in_a_hole_is_a_contour_of_its_own() -> None:
    mask = np.zeros((15, 15), bool)
    mask[1:14, 1:14], mask[3:12, 3:12], mask[6:9, 6:9] = True, False, True
    outer, island = sorted(slice_polygons(mask), key=len, reverse=True)
    assert len(outer) > len(island) == 4
    ring = mask.copy()
    ring[6:9, 6:9] = False
    np.testing.assert_array_equal(inside([outer], mask.shape, np.logical_or), ring)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_that_nothing_can_refer_to_is_refused(tmp_path: Path, keyword: str) -> None:
    made = series()
    for dataset in made:
        delattr(dataset, keyword)
    folder = dicoms.save(tmp_path, made)
    with pytest.raises(VolumeError, match=f"lacks {keyword}"):
        check_source(read_dicom_source(folder), folder)


def test_a_series_of_two_patients_is_refused_whoever_put_it_together(tmp_path: Path) -> None:
    _, origin = written(tmp_path, series())
    origin.source.headers[3].PatientID = "MRN-4712"
    with pytest.raises(VolumeError, match="differ in PatientID"):
        check_source(origin.source, tmp_path)


def test_a_series_of_several_multi_frame_files_is_read_but_not_referred_to(tmp_path: Path) -> None:
    made = series()
    first, second = dicoms.enhanced(made, [0, 2, 4]), dicoms.enhanced(made, [1, 3, 5])
    second.SOPInstanceUID += ".2"
    folder = dicoms.save(tmp_path, [first, second])
    np.testing.assert_array_equal(read_volume(folder).array[0], painted())
    with pytest.raises(VolumeError, match="several multi-frame files"):
        check_source(read_dicom_source(folder), folder)


@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_single_slice_has_its_segmentation_too(tmp_path: Path, multi_frame: bool) -> None:
    made = series()
    labels, _ = written(tmp_path, [dicoms.enhanced(made, [3])] if multi_frame else made[3:4])
    assert labels.grid.shape[0] == 1
    seg = hd.seg.segread(str(tmp_path / "seg.dcm"))
    np.testing.assert_array_equal(seg.pixel_array, [labels.array[0, 0] == value for value in (2, 5)])


def test_labels_on_another_grid_or_without_a_segment_are_refused(tmp_path: Path) -> None:
    labels, origin = written(tmp_path, series())
    for write in (write_dicom_seg, write_rtstruct):
        with pytest.raises(VolumeError, match="grid of the DICOM series"):
            write(tmp_path / "x.dcm", Volume(labels.array[:, 1:], labels.grid.padded((0, 0, -1), (0, 0, 0))), origin)
        with pytest.raises(VolumeError, match="no segment describes; found 9"):
            write(tmp_path / "x.dcm", labels.replace(np.where(labels.array == 2, 9, labels.array)), origin)
    assert not (tmp_path / "x.dcm").exists()

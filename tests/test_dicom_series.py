"""Which series a file, a folder or a zip gives, and what its pixels mean."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

import dicoms
from atlasnet.errors import VolumeError
from atlasnet.volume import read_grid, read_volume, volume_files
from atlasnet.volume.dicom import read_dicom_source
from atlasnet.volume.dicom_files import quiet_pydicom, read_header
from atlasnet.volume.kept import kept_open
from atlasnet.volume.names import is_dicom

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 16, 12)).astype(np.int16)
SPACING, ORIGIN = (0.75, 0.5, 2.5), (-20.0, 30.0, -400.0)


def series(name: str = "1", count: int = 5, **tags: object) -> list[Dataset]:
    return dicoms.slices(VOXELS[:count], spacing=SPACING, origin=ORIGIN, series=name, **tags)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


def test_series_in_folders_below_are_listed_without_the_patient_and_chosen_by_number(tmp_path: Path) -> None:
    dicoms.save(tmp_path / "study" / "a", series("3"))
    dicoms.save(tmp_path / "study" / "b", series("12", 4))
    with pytest.raises(VolumeError) as refusal:
        read_volume(tmp_path)
    assert refusal.value.found == "3: “thorax 3”, CT, 5 slices; 12: “thorax 12”, CT, 4 slices"
    assert "--series" in str(refusal.value)
    for secret in (dicoms.NAME, dicoms.PATIENT_ID, "19700101"):
        assert secret not in str(refusal.value)
    assert read_volume(tmp_path, series="12").grid.shape == (4, 16, 12)
    assert read_volume(tmp_path, series=12).grid.shape == (4, 16, 12)  # whoever reads that it is a number
    assert read_grid(tmp_path, series=f"{dicoms.ROOT}.3").shape == (5, 16, 12)
    with pytest.raises(VolumeError, match="none of the DICOM series is 4"):
        read_volume(tmp_path, series="4")


def test_a_description_that_names_the_patient_is_told_without(tmp_path: Path) -> None:
    for number, text in (("3", "DOE JANE thorax_Doe MRN-4711"), ("4", "lung")):
        dicoms.save(tmp_path / number, series(number, SeriesDescription=text))
    with pytest.raises(VolumeError) as refusal:
        read_volume(tmp_path)
    assert refusal.value.found == "3: “*** *** thorax_*** ***-***”, CT, 5 slices; 4: “lung”, CT, 5 slices"


@pytest.mark.parametrize(
    ("tags", "text", "told"),
    [
        ({"PatientName": "Müller^Jörg"}, "Mueller MULLER müller JMUELLER Joerg liver", "*** *** *** *** *** liver"),
        ({"PatientName": "Mueller^J"}, "Müller^J T1 J", "***^J T1 J"),
        ({"PatientName": "Großmann-Łukasz^Øystein"}, "grossmann_LUKASZ OYSTEIN", "***_*** ***"),
        (
            {"PatientName": "Schmidt-Maier^Eva"},
            "Maier T2 EVA schmidtmaier EvaM retrieval",
            "*** T2 *** *** *** retrieval",
        ),
        ({"PatientName": "Yamada^Tarou=山田^太郎"}, "山田太郎頭部 CT", "*** CT"),
        ({"OtherPatientIDs": ["5551234", "XY77123"]}, "id 5551234 77123", "id *** ***"),
        ({"OtherPatientIDsSequence": [dicoms.item(PatientID="98765")]}, "98765 axial", "*** axial"),
        ({"OtherPatientNames": "Brown^Ann\\O'Hara^Ann"}, "BROWN O'HARA thin", "*** O'*** thin"),
        ({"PatientBirthName": "Weiß"}, "Weiss 5mm", "*** 5mm"),
        ({"PatientMotherBirthName": "Kowalski"}, "kowalski", "***"),
        ({"PatientBirthDate": "19700131"}, "19700131 31.01.1970 1/31/70 700131 1970013", "*** *** *** *** 1970013"),
        ({"AccessionNumber": "ACC77"}, "ACC77 77 T177", "*** *** T177"),
    ],
)
def test_whatever_names_the_patient_is_told_in_no_spelling(
    tmp_path: Path, tags: dict[str, object], text: str, told: str
) -> None:
    for number in ("3", "4"):
        made = series(number, SeriesDescription=text, SpecificCharacterSet="ISO_IR 192", **tags)
        dicoms.save(tmp_path / number, made)
    with pytest.raises(VolumeError) as refusal:
        read_volume(tmp_path)
    assert f"3: “{told}”, CT" in str(refusal.value.found)


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({"PatientID": "MRN-4712"}, "patient"),
        ({"IssuerOfPatientID": "another hospital"}, "patient"),
        ({"StudyInstanceUID": f"{dicoms.ROOT}.99"}, "study"),
        ({"FrameOfReferenceUID": f"{dicoms.ROOT}.88"}, "frame of reference"),
    ],
)
def test_slices_that_share_nothing_but_the_series_are_refused(tmp_path: Path, tags: dict[str, str], what: str) -> None:
    made = series()
    for dataset in made[3:]:
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    for read in (read_volume, read_grid, read_dicom_source):
        with pytest.raises(VolumeError, match=f"not of one {what}; found IM000 and IM02., which differ in ") as refusal:
            read(dicoms.save(tmp_path, made))
        for value in (*tags.values(), dicoms.NAME, dicoms.PATIENT_ID):
            assert not value or value not in str(refusal.value)


def test_patients_without_a_number_are_told_apart_by_name(tmp_path: Path) -> None:
    made = series(PatientID="")
    np.testing.assert_array_equal(read_volume(dicoms.save(tmp_path, made)).array[0], VOXELS)
    made[4].PatientName = "Doe^John"
    with pytest.raises(VolumeError, match="not of one patient"):
        read_volume(dicoms.save(tmp_path, made))


def test_series_of_one_number_are_told_apart_by_uid(tmp_path: Path) -> None:
    dicoms.save(tmp_path, series("1"), "A")
    dicoms.save(tmp_path, series("2", 3, SeriesNumber="1"), "B")
    with pytest.raises(VolumeError, match=rf"{dicoms.ROOT}\.1: .*5 slices; {dicoms.ROOT}\.2: .*3 slices"):
        read_volume(tmp_path, series="1")
    assert read_volume(tmp_path, series=f"{dicoms.ROOT}.2").grid.shape[0] == 3


def test_captures_localizers_colours_and_reports_are_left_out(tmp_path: Path) -> None:
    folder = dicoms.save(tmp_path / "ct", series())
    dicoms.save(folder, series("2", 1, SOPClassUID=SecondaryCaptureImageStorage), "capture")
    dicoms.save(folder, series("3", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "scout")
    dicoms.save(folder, series("4", 1, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "screen")
    (radiograph,) = series("5", 1, SOPClassUID=ComputedRadiographyImageStorage)
    del radiograph.ImagePositionPatient
    (colour,) = series("6", 1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    report = dicoms.header("1.2.840.10008.5.1.4.1.1.88.33", "1", "7")
    dicoms.save(folder, [radiograph], "radiograph")
    dicoms.save(folder, [colour], "colour")
    dicoms.save(folder, [report], "report")
    (folder / "README").write_text("exported", encoding="utf-8")
    np.testing.assert_array_equal(read_volume(folder).array[0], VOXELS)
    for file in folder.glob("IM*"):
        file.unlink()
    with pytest.raises(VolumeError, match="1 x colour image, 1 x image without a place in the patient, 1 x localizer"):
        read_volume(folder)


def test_pictures_in_the_colours_of_a_palette_are_left_out(tmp_path: Path) -> None:
    dicoms.save(tmp_path, series("2", PhotometricInterpretation="PALETTE COLOR"), "fused")
    with pytest.raises(VolumeError, match=r"no DICOM image series here.*5 x colour image"):
        read_volume(tmp_path)
    dicoms.save(tmp_path, series())
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], VOXELS)


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floating_point_pixels_are_refused_for_what_they_are(tmp_path: Path, keyword: str, kind: str) -> None:
    made = series()
    for dataset, plane in zip(made, VOXELS, strict=True):
        del dataset.PixelData
        setattr(dataset, keyword, plane.astype(kind).tobytes())
    with pytest.raises(VolumeError, match=r"floating-point pixels.*NIfTI"):
        read_volume(dicoms.save(tmp_path, made))


def test_a_capture_within_the_series_is_left_out(tmp_path: Path) -> None:
    made = series()
    made[2].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with pytest.raises(VolumeError, match=r"slices are missing \(1\)"):
        read_volume(dicoms.save(tmp_path / "gap", made))
    made[2].ImageType, made[4].ImageType = ["ORIGINAL", "PRIMARY"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert read_volume(dicoms.save(tmp_path / "end", made)).grid.shape[0] == 4


def test_no_warning_of_a_library_tells_a_value_of_the_header(tmp_path: Path) -> None:
    with quiet_pydicom():
        (dataset,) = series(count=1)
        dataset.PatientID, dataset.FrameOfReferenceUID = "Buddy" * 20, "1.2.Buddy"
        dicoms.save(tmp_path, [dataset])
    assert read_header(tmp_path / "IM000") is not None  # a warning is an error here


def test_a_slice_that_lost_its_position_is_refused(tmp_path: Path) -> None:
    made = series()
    del made[-1].ImagePositionPatient
    with pytest.raises(VolumeError, match="does not fit the others"):
        read_volume(dicoms.save(tmp_path, made))


def test_a_file_named_like_the_slices_that_is_not_dicom_is_refused(tmp_path: Path) -> None:
    dicoms.save(tmp_path / "plain", series())
    dicoms.save(tmp_path / "stop", series(), "IM.")  # a number behind a full stop is no suffix
    for lost in (tmp_path / "plain" / "IM099", tmp_path / "stop" / "IM.099"):
        lost.write_bytes(b"\0" * 300)
        with pytest.raises(VolumeError, match=rf"{lost.name}.*named like the slices"):
            read_volume(lost.parent)


def lettered(folder: Path, names: Sequence[str]) -> Path:
    """Slices whose names hold no number, in the order of the stack."""
    folder.mkdir(parents=True)
    for name, dataset in zip(names, series(), strict=True):
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("names", ["slice_a slice_b slice_c slice_d slice_e", "a b c d e", "sa sb sc sd se"])
@pytest.mark.parametrize(("content", "problem"), [(b"", "empty file"), (b"\0" * 300, "named like the slices")])
def test_a_lost_slice_is_refused_also_where_names_hold_no_number(
    tmp_path: Path, names: str, content: bytes, problem: str
) -> None:
    folder = lettered(tmp_path / "ct", names.split())
    last = folder / names.split()[-1]
    last.write_bytes(content)
    with pytest.raises(VolumeError, match=f"{last.name}: .*{problem}"):
        read_volume(folder)


@pytest.mark.parametrize(
    "names", ["slice_a slice_b slice_c slice_d slice_e", "ra rb rc rd re", "a.dcm b.dcm c.dcm d.dcm e.dcm"]
)
@pytest.mark.parametrize("content", [b"", b"exported by hand"])
def test_strays_beside_the_slices_are_no_slices(tmp_path: Path, names: str, content: bytes) -> None:
    folder = lettered(tmp_path / "ct", names.split())
    for name in ("README", "Readme", "DICOMDIR", "notes.txt", "slice_a.txt", "viewer.exe"):
        (folder / name).write_bytes(content)
    np.testing.assert_array_equal(read_volume(folder).array[0], VOXELS)


def test_the_same_export_in_two_folders_is_told_as_copies_by_their_paths(tmp_path: Path) -> None:
    for name in ("first", "second"):
        dicoms.save(tmp_path / "study" / name, series())
    told = r"found first/IM000 and second/IM000, both with the same SOPInstanceUID; to mend it: take one of the copies"
    for path in (tmp_path / "study", zipped(tmp_path / "study", tmp_path / "study.zip")):
        with pytest.raises(VolumeError, match=told):
            read_volume(path)


def test_time_points_in_folders_are_named_by_their_paths_and_by_what_they_differ_in(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        tags = {"ImageType": ["ORIGINAL", "PRIMARY", f"E{name}"], "ConvolutionKernel": f"B{name}"}
        made = series(AcquisitionNumber=name, EchoTime=f"{2.5 * int(name)}", ContentTime="101010", **tags)
        for dataset in made:
            dataset.SOPInstanceUID += f".{name}"
        dicoms.save(tmp_path / name, made)
    told = r"3 volumes.*1/IM000 and 2/IM000, .*in ImageType, AcquisitionNumber, EchoTime, Convolution.*of their own"
    with pytest.raises(VolumeError, match=told):
        read_volume(tmp_path)
    next((tmp_path / "3").iterdir()).unlink()
    with pytest.raises(VolumeError, match=r"two slices lie at the same place.*keep one time point"):
        read_volume(tmp_path)


def test_time_points_in_one_file_are_told_as_volumes(tmp_path: Path) -> None:
    multi = dicoms.enhanced(series(), [*range(5), *range(5)])
    with pytest.raises(VolumeError, match=r"2 volumes, not one.*found frame 1 of IM000 and frame 6 of IM000.*to NIfTI"):
        read_volume(dicoms.save(tmp_path, [multi]))


def test_a_malformed_value_that_only_messages_tell_of_is_no_obstacle(tmp_path: Path) -> None:
    folder, value = dicoms.save(tmp_path, series(DiffusionBValue=1234.5)), np.float64(1234.5).tobytes()
    for file in folder.iterdir():
        content = file.read_bytes()
        assert content.count(b"FD\x08\x00" + value) == 1
        file.write_bytes(content.replace(b"FD\x08\x00" + value, b"FD\x04\x00" + value[:4]))
    np.testing.assert_array_equal(read_volume(folder).array[0], VOXELS)


def test_two_stacks_one_between_the_slices_of_the_other_are_told_as_such(tmp_path: Path) -> None:
    other = dicoms.slices(VOXELS, spacing=SPACING, origin=np.add(ORIGIN, [0, 0, 0.8]), AcquisitionNumber="2")
    for dataset in other:
        dataset.SOPInstanceUID += ".2"
    dicoms.save(tmp_path / "1", series(AcquisitionNumber="1"))
    dicoms.save(tmp_path / "2", other)
    told = r"two interleaved stacks, not one.*found 0.8 and 1.7 mm in turn, as between 1/IM000, 2/IM000"
    with pytest.raises(VolumeError, match=told):
        read_volume(tmp_path)


def jpeg_2000(pixels: NDArray[np.int16]) -> bytes:
    """(y, x) whole numbers with a sign, as GDCM compresses them."""
    with tempfile.TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(f"{folder}/one.dcm")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.Execute(sitk.GetImageFromArray(pixels[None]))
        return next(generate_frames(pydicom.dcmread(f"{folder}/one.dcm").PixelData, number_of_frames=1))


def test_jpeg_2000_with_a_sign_is_read_and_refused_where_the_header_denies_it(tmp_path: Path) -> None:
    made = series(RescaleIntercept="0")
    for dataset, pixels in zip(made, VOXELS, strict=True):
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([jpeg_2000(pixels)])
        dataset["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read_volume(dicoms.save(tmp_path / "signed", made)).array[0], VOXELS)
    assert VOXELS.min() < 0
    for dataset in made:
        dataset.PixelRepresentation = 0
    with pytest.raises(VolumeError, match=r"IM\d+: the JPEG 2000 pixels have a sign.*expected PixelRepresentation 1"):
        read_volume(dicoms.save(tmp_path / "denied", made))


@pytest.mark.parametrize("target", ["/annex/objects/none", "IM021"])  # what a clone without contents has; a loop
def test_a_link_that_leads_nowhere_is_refused_also_at_the_end_of_the_stack(tmp_path: Path, target: str) -> None:
    dicoms.save(tmp_path, series())
    last = tmp_path / "IM021"
    last.unlink()
    last.symlink_to(target)
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match=r"IM021: the link leads nowhere.*datalad get"):
            read(tmp_path)


def test_linked_folders_and_files_belong_to_the_series(tmp_path: Path) -> None:
    made = series()
    folder = dicoms.save(tmp_path / "ct" / "a", made[:2])
    dicoms.save(tmp_path / "disc" / "deep", made[2:4])
    (tmp_path / "ct" / "b").symlink_to(tmp_path / "disc")
    dicoms.save(tmp_path, made[4:], "last")
    (folder / "IM099").symlink_to(tmp_path / "last000")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], VOXELS)
    assert len(volume_files(tmp_path / "ct")) == 5


def test_links_to_what_is_read_anyway_or_holds_the_folder_are_not_followed(tmp_path: Path) -> None:
    dicoms.save(tmp_path / "other", series("2"))
    folder = dicoms.save(tmp_path / "study" / "ct", series())
    (folder / "up").symlink_to("..")
    (folder.parent / "again").symlink_to("ct")
    (folder.parent / "all").symlink_to(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path / "study").array[0], VOXELS)
    assert len(volume_files(tmp_path / "study")) == 5


@pytest.mark.parametrize("own_orientation", [False, True])
def test_frames_of_an_enhanced_file_are_put_in_order_and_scaled_each(tmp_path: Path, own_orientation: bool) -> None:
    made = series()
    made[1].RescaleSlope, made[1].RescaleIntercept = "3", "-7"
    multi = dicoms.enhanced(made, [3, 0, 4, 1, 2], own_orientation=own_orientation)
    folder = dicoms.save(tmp_path / "ct", [multi])
    expected = VOXELS.astype(int)
    expected[1] = (expected[1] + 1024) * 3 - 7
    for path in (folder, next(folder.iterdir())):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array[0], expected)
        np.testing.assert_allclose(volume.grid.spacing, SPACING)
        np.testing.assert_allclose(volume.grid.origin, ORIGIN)


def test_a_multi_frame_file_without_positions_is_refused(tmp_path: Path) -> None:
    multi = dicoms.enhanced(series(), range(5))
    del multi.PerFrameFunctionalGroupsSequence
    multi.ImagePositionPatient = list(ORIGIN)
    with pytest.raises(VolumeError, match=r"one position in common.*enhanced CT and MR"):
        read_volume(dicoms.save(tmp_path, [multi]))


def compressed(syntax: str) -> Callable[[Dataset], None]:
    return lambda dataset: dicoms.compress(dataset, syntax)


def implicit(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def big_endian(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()


def twelve_bits_beneath_an_overlay(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, "<u2") | np.uint16(0xF000)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()


@pytest.mark.parametrize(
    "stored",
    [compressed(RLELossless), compressed(JPEGLSLossless), implicit, big_endian, twelve_bits_beneath_an_overlay],
)
def test_however_the_pixels_are_stored_they_are_the_same(tmp_path: Path, stored: Callable[[Dataset], None]) -> None:
    made = series()
    for dataset in made:
        stored(dataset)
    np.testing.assert_array_equal(read_volume(dicoms.save(tmp_path, made)).array[0], VOXELS)


def test_values_that_begin_above_the_lowest_bit_are_refused(tmp_path: Path) -> None:
    made = series()
    for dataset in made:
        pixels = np.frombuffer(dataset.PixelData, "<u2") << 4
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 15, 0
        dataset.PixelData = pixels.astype("<u2").tobytes()
    with pytest.raises(VolumeError, match=r"IM\d+: .*expected HighBit 11, as 12 bits are stored; found HighBit 15"):
        read_volume(dicoms.save(tmp_path, made))


def test_each_slice_is_rescaled_by_its_own_slope_whatever_made_it(tmp_path: Path) -> None:
    made = series(SOPClassUID=MRImageStorage, Modality="MR")
    for index, dataset in enumerate(made):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.25 * (index + 1)), "1.5"
    expected = (VOXELS + 1024.0) * 0.25 * np.arange(1, 6)[:, None, None] + 1.5
    np.testing.assert_allclose(read_volume(dicoms.save(tmp_path, made)).array[0], expected, rtol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_frames_without_a_rescale_of_their_own_have_that_of_all_or_of_the_file(tmp_path: Path, shared: bool) -> None:
    multi = dicoms.enhanced(series(), range(5))
    for group in multi.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    if shared:
        rescale = dicoms.item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
        multi.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [rescale]
        multi.RescaleSlope, multi.RescaleIntercept = "7", "7"
    else:
        multi.RescaleSlope, multi.RescaleIntercept = "1", "-1024"
    np.testing.assert_array_equal(read_volume(dicoms.save(tmp_path, [multi])).array[0], VOXELS)


@pytest.mark.parametrize("lacking", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
def test_a_series_of_which_one_slice_states_no_rescale_is_refused(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    made = series()
    for keyword in lacking:
        delattr(made[3], keyword)
    with pytest.raises(VolumeError, match=rf"IM021: .*not rescaled alike.*{lacking[0]}, as 4 of the 5 slices"):
        read_volume(dicoms.save(tmp_path / "ct", made))
    multi = dicoms.enhanced(series(), range(5))
    del multi.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence
    with pytest.raises(VolumeError, match="no RescaleSlope in frame 4 of IM000"):
        read_volume(dicoms.save(tmp_path / "multi", [multi]))


def test_a_series_without_any_rescale_keeps_its_stored_values(tmp_path: Path) -> None:
    made = series()
    for dataset in made:
        del dataset.RescaleSlope, dataset.RescaleIntercept
    np.testing.assert_array_equal(read_volume(dicoms.save(tmp_path, made)).array[0], VOXELS + 1024)


@pytest.mark.parametrize(
    ("slope", "problem"), [("1e300", "not finite"), ("0", "slope is zero"), (["1", "2"], "RescaleSlope")]
)
def test_a_rescale_slope_that_cannot_be_used_is_refused(tmp_path: Path, slope: str | list[str], problem: str) -> None:
    made = series(RescaleSlope=slope)
    with pytest.raises(VolumeError, match=problem):
        read_volume(dicoms.save(tmp_path, made))


@pytest.mark.parametrize("signs", product((1, -1), repeat=2))
def test_head_first_and_feet_first_give_one_patient(tmp_path: Path, signs: tuple[int, int]) -> None:
    """Feet first turns x and z of the table, a stack may run either way: the patient stays where it is."""
    turn, run = signs
    axes = np.diag([turn, 1.0, turn * run])
    made = dicoms.slices(VOXELS, spacing=SPACING, origin=ORIGIN, direction=axes)
    volume = read_volume(dicoms.save(tmp_path, made))
    index = np.array([[2, 3, 4], [11, 0, 1]])
    for point in index:
        place = np.array(ORIGIN) + axes @ (np.array(SPACING) * point)
        x, y, z = np.rint(volume.grid.to_index(place)).astype(int)
        assert volume.array[0, z, y, x] == VOXELS[point[2], point[1], point[0]]


def test_one_slice_of_many_is_not_taken_for_a_volume(tmp_path: Path) -> None:
    folder = dicoms.save(tmp_path / "ct", series())
    file = next(folder.iterdir())
    with pytest.raises(VolumeError, match="one of the 5 slices"):
        read_volume(file)
    alone = tmp_path / "alone.dcm"
    alone.write_bytes(file.read_bytes())
    volume = read_volume(alone)
    assert volume.grid.shape == (1, 16, 12)
    np.testing.assert_allclose(volume.grid.spacing, SPACING)


def test_one_multi_frame_file_of_several_is_not_taken_for_the_volume(tmp_path: Path) -> None:
    first, second = (dicoms.enhanced(series(), order) for order in ([0, 1, 2], [4, 3]))
    folder = dicoms.save(tmp_path / "ct", [first, second])
    np.testing.assert_array_equal(read_volume(folder).array[0], VOXELS)
    for file in folder.iterdir():
        with pytest.raises(VolumeError, match="one of the 2 files of its series"):
            read_volume(file)


def test_a_zip_gives_what_its_folder_gives_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = dicoms.save(tmp_path / "study" / "one" / "ct", series())
    archive = zipped(tmp_path / "study", tmp_path / "export.zip")
    volume, same = read_volume(archive), read_volume(folder)
    np.testing.assert_array_equal(volume.array, same.array)
    np.testing.assert_array_equal(read_grid(archive).affine, same.grid.affine)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_error_in_a_zip_names_the_zip(tmp_path: Path) -> None:
    folder = dicoms.save(tmp_path / "study" / "ct", series())
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:700])
    archive = zipped(tmp_path / "study", tmp_path / "export.zip")
    with pytest.raises(VolumeError) as refusal:
        read_volume(archive)
    assert refusal.value.path == archive / "ct" / file.name


def test_what_is_kept_open_is_opened_once_and_goes_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    made = series()
    archive = zipped(dicoms.save(tmp_path / "ct", made), tmp_path / "export.zip")
    made[1].PixelData = made[1].PixelData[:100]
    cut = zipped(dicoms.save(tmp_path / "cut", made), tmp_path / "cut.zip")
    with kept_open():
        assert read_grid(archive).shape == VOXELS.shape
        archive.write_bytes(b"another file")
        np.testing.assert_array_equal(read_volume(archive).array[0], VOXELS)
        np.testing.assert_array_equal(read_volume(archive, series="1").array[0], VOXELS)  # another question
        read_grid(cut)
        with pytest.raises(VolumeError, match="pixels are cut off") as refusal:
            read_volume(cut)
        assert refusal.value.path == cut / "IM007"
        assert list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "temporary").iterdir())
    with pytest.raises(VolumeError, match="damaged"):
        read_volume(archive)


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "\\outside", "a\\..\\../outside", "C:outside"]
)
def test_a_zip_that_names_a_file_outside_itself_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(VolumeError, match="outside itself"):
        read_volume(tmp_path / "evil.zip")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_with_the_slashes_of_windows_is_read(tmp_path: Path) -> None:
    folder = dicoms.save(tmp_path / "ct", series())
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("export\\"), b"")
        for file in folder.iterdir():
            archive.writestr(zipfile.ZipInfo(f"export\\ct\\{file.name}"), file.read_bytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "export.zip").array[0], VOXELS)


def test_a_zip_with_a_password_is_refused_as_such_without_a_name_from_within(tmp_path: Path) -> None:
    folder, path = dicoms.save(tmp_path / "ct", series()), tmp_path / "export.zip"
    content = bytearray(zipped(folder, path).read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    with pytest.raises(
        VolumeError, match=r"protected by a password; to mend it: unpack it .* give the folder$"
    ) as error:
        read_volume(path)
    assert "IM0" not in str(error.value)


def test_the_index_of_a_disc_is_refused_in_favour_of_its_folder(tmp_path: Path) -> None:
    index = dicoms.header(MediaStorageDirectoryStorage, "1")
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    dicoms.save(tmp_path / "IMAGES", series())
    with pytest.raises(VolumeError, match=r"index of a disc.*give the folder in which it lies"):
        read_volume(tmp_path / "DICOMDIR")
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], VOXELS)


@pytest.mark.parametrize("implicit_vr", [True, False])
def test_a_file_without_a_preamble_is_dicom_by_itself_too(tmp_path: Path, implicit_vr: bool) -> None:
    (dataset,) = series(count=1)
    del dataset.file_meta
    dataset.save_as(tmp_path / "IM1", implicit_vr=implicit_vr, little_endian=True)
    for path in (tmp_path, tmp_path / "IM1"):
        assert is_dicom(path)
        np.testing.assert_array_equal(read_volume(path).array[0], VOXELS[:1])
    for content in (b"", b"\x08\x00\x05\x00\xff\xff\xff\xff", b"\x08\x00\x05\x40CS\n\0", b"# A text\n" * 20):
        (tmp_path / "other").write_bytes(content)
        assert not is_dicom(tmp_path / "other")


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing"])
def test_a_slice_without_its_place_is_refused_with_what_mends_it(tmp_path: Path, keyword: str) -> None:
    folder = dicoms.save(tmp_path, series(**{keyword: None}))
    with pytest.raises(VolumeError, match=f"{keyword} is missing.*found nothing; to mend it: export the series again"):
        read_volume(folder)


def test_a_zip_that_claims_more_than_it_may_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1.dcm", b"\0" * 1000)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    content[at : at + 4] = (3 * 2**30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"more than it may.*at most 1073741824 bytes.*found 3221225472 bytes"):
        read_volume(path)


def test_a_bomb_that_lies_about_its_size_unpacks_to_no_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1.dcm", b"\0" * 2**24)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="not a zip of DICOM files, or it is damaged"):
        read_volume(path)


def test_an_image_that_would_unpack_a_thousandfold_is_refused(tmp_path: Path) -> None:
    made = series()
    dicoms.compress(made[0], RLELossless)
    made[0].Rows = made[0].Columns = 30000
    for dataset in made[1:]:
        dataset.Rows = dataset.Columns = 30000
    with pytest.raises(VolumeError, match=r"header does not fit.*1800000000 bytes of 30000 x 30000"):
        read_volume(dicoms.save(tmp_path, made))


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(dicoms.save(tmp_path / "ct", series()), tmp_path / "export.zip")
    content = bytearray(archive.read_bytes())
    content[60:120] = b"\xff" * 60
    archive.write_bytes(content)
    with pytest.raises(VolumeError, match="damaged"):
        read_volume(archive)
    archive.write_bytes(content[:300])
    with pytest.raises(VolumeError, match="not a zip of DICOM files"):
        read_volume(archive)

"""Which cases the inputs of a prediction name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dicoms
from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.masks import find_masks
from atlasnet.errors import CohortError, InputError
from atlasnet.prediction import find_case, find_cases, unread
from atlasnet.training.subjects import read_names
from atlasnet.volume import Grid, Volume, write_volume
from atlasnet.volume.names import case_and_channel, image_stem


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_stem_of_an_image_loses_the_whole_suffix() -> None:
    assert image_stem(Path("a/ct.1.nii.gz")) == "ct.1"
    assert image_stem(Path("ct.MHA")) == "ct"
    assert image_stem(Path("ct.dcm")) is None
    assert image_stem(Path(".nii")) is None


def test_four_digits_after_an_underscore_are_the_number_of_a_channel() -> None:
    assert case_and_channel("a_b_0001") == ("a_b", 1)
    for stem in ("a", "a_1", "a_00001", "a0001", "_0001", "a_-001", "0001"):
        assert case_and_channel(stem) == (stem, None)


def test_a_folder_of_nnunet_images_gives_its_cases_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "b_0000.nii.gz", tmp_path / "a_0000.nii.gz", tmp_path / "notes.txt")
    assert [case.name for case in find_cases([tmp_path], 1)] == ["a", "b"]


def test_a_number_is_part_of_the_name_where_the_next_one_is_another_scan(tmp_path: Path) -> None:
    touch(tmp_path / "p_0000.nii.gz", tmp_path / "p_0001.nii.gz", tmp_path / "q_0000.nii.gz")
    assert [case.name for case in find_cases([tmp_path], 1)] == ["p_0000", "p_0001", "q"]


def test_dicom_exports_among_images_are_cases_too(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "c.zip", tmp_path / "notes" / "readme.txt", tmp_path / ".hidden" / "x.dcm")
    dicoms.save(tmp_path / "b" / "series", dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    cases = find_cases([tmp_path], 1)
    assert [(case.name, case.images[0].name) for case in cases] == [("a", "a.nii.gz"), ("b", "b"), ("c", "c.zip")]
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    (tmp_path / "a.nii.gz").unlink()
    assert [case.name for case in find_cases([tmp_path], 2)] == ["a"]  # a series has one channel


def test_what_may_be_a_scan_and_is_no_case_is_told(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.mhd", Volume(np.zeros((1, 2, 3, 4), np.float32), Grid((2, 3, 4), np.eye(4))))
    series = dicoms.save(tmp_path / "b", dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    loose = [tmp_path / name for name in ("IM0001", "c.mgz", "d.hdr", "d.img")]
    (series / "IM000").rename(loose[0])
    touch(*loose[1:], tmp_path / "out" / "x.mgz")
    for name in ("dataset.json", "a.bval", "notes.TXT", "a_seg.dcm", "labels.ctbl", ".DS_Store", "README", "c.zip"):
        touch(tmp_path / name)
    cases = find_cases([tmp_path], 1)
    assert [case.name for case in cases] == ["a", "b", "c"]
    assert unread([tmp_path, tmp_path / "b", tmp_path / "a.mhd"], find_cases([tmp_path, tmp_path / "b"], 1)) == loose
    several = [Subject("a", (tmp_path / "a.mhd",), channels=2)]  # a series has one channel
    assert unread([tmp_path], several) == sorted([*loose, tmp_path / "b", tmp_path / "c.zip"])


def test_images_in_folders_of_their_own_are_told(tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "ct.nrrd", tmp_path / "p1" / "s.seg.nrrd", tmp_path / "p2" / "ct.nrrd")
    with pytest.raises(InputError, match=r"folders of their own.*found p1/ct\.nrrd, p2/ct\.nrrd; .*each of these"):
        find_cases([tmp_path], 1)
    with pytest.raises(InputError, match=r"folders of their own.*with --image a pattern of the image of each channel"):
        find_cases([tmp_path], 2)


def test_a_folder_of_pictures_is_told_as_one(tmp_path: Path) -> None:
    touch(*(tmp_path / f"slice_{number}.png" for number in range(5)))
    with pytest.raises(
        InputError, match=r"no file in this folder is an image that can be read; .*or DICOM; found slice_0\.png, "
    ):
        find_cases([tmp_path], 1)
    touch(tmp_path / "export.zip")  # which may hold DICOM
    assert [case.images for case in find_cases([tmp_path], 1)] == [(tmp_path,)]


def test_cases_are_called_after_their_folders_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("anna", "bert"):
        touch(tmp_path / name / "CT Chest.nrrd")
    files = sorted(tmp_path.glob("*/CT Chest.nrrd"))
    with pytest.raises(InputError, match=r"both be called 'CT Chest'.*--name-from folder"):
        find_cases(files, 1)
    assert [(case.name, case.images) for case in find_cases(files, 1, name_from="folder")] == [
        ("anna", (files[0],)),
        ("bert", (files[1],)),
    ]
    assert [case.name for case in find_cases(sorted(tmp_path.iterdir()), 1, name_from="folder")] == ["anna", "bert"]
    touch(tmp_path / "anna" / "PET.nrrd")
    with pytest.raises(InputError, match=r"both be called 'anna'.*rename one, or predict them into two folders"):
        find_cases([tmp_path / "anna"], 1, name_from="folder")
    with pytest.raises(InputError, match="expected file or folder; found patient"):
        find_cases(files, 1, name_from="patient")


def test_the_folder_of_a_case_is_that_of_its_channels_or_of_its_dicom_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "p1" / "mr_0000.nii.gz", tmp_path / "p1" / "mr_0001.nii.gz")
    (case,) = find_cases([tmp_path / "p1" / "mr_0001.nii.gz"], 2, name_from="folder")
    assert (case.name, len(case.images)) == ("p1", 2)
    dicoms.save(tmp_path / "p2" / "series", dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    touch(tmp_path / "p3" / "study.zip")
    monkeypatch.chdir(tmp_path / "p2")
    inputs = [Path("series"), Path("../p3/study.zip")]
    assert [case.name for case in find_cases(inputs, 1, name_from="folder")] == ["p2", "p3"]


def test_dicom_behind_a_link_is_a_case_even_where_the_link_leads_nowhere(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii.gz")
    dicoms.save(tmp_path / "store", dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    for name in ("b", "c"):
        (tmp_path / "in" / name).mkdir()
    (tmp_path / "in" / "b" / "series").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "c" / "1.dcm").symlink_to("/annex/objects/none")
    assert [case.name for case in find_cases([tmp_path / "in"], 1)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["anna.NII.GZ", "anna.Mha"])
def test_masks_are_found_whatever_the_case_of_their_suffix(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name, tmp_path / "anna.b.nii.gz", tmp_path / "annab.nii.gz")
    assert find_masks(["anna"], tmp_path) == {"anna": tmp_path / name}


def test_plain_names_are_case_names(tmp_path: Path) -> None:
    touch(tmp_path / "patient 7.nrrd")
    (case,) = find_cases([tmp_path / "patient 7.nrrd"], 1)
    assert case.name == "patient 7"
    assert case.images == (tmp_path / "patient 7.nrrd",)


def test_one_channel_names_the_whole_case(tmp_path: Path) -> None:
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    (case,) = find_cases([tmp_path / "a_0001.nii.gz"], 2)
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_a_number_that_is_no_channels_is_part_of_the_name_of_a_file_with_all(tmp_path: Path) -> None:
    grid = Grid.from_parts((2, 3, 4))
    write_volume(tmp_path / "patient_1234.nii.gz", Volume(np.ones((2, 2, 3, 4), np.int16), grid))
    for inputs in ([tmp_path], [tmp_path / "patient_1234.nii.gz"]):
        (case,) = find_cases(inputs, 2)
        assert case.name == "patient_1234"
        assert case.read_image().channels == 2
    touch(tmp_path / "patient_0000.nii.gz")
    with pytest.raises(InputError, match=r"no patient_0001\.nii\.gz"):
        find_cases([tmp_path / "patient_1234.nii.gz"], 2)


def test_an_absent_channel_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a_0000.nii.gz")
    with pytest.raises(InputError, match=r"no a_0001\.nii\.gz"):
        find_cases([tmp_path], 2)


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.nii.gz", tmp_path / "y" / "a.nii.gz")
    with pytest.raises(InputError, match="both be called 'a'"):
        find_cases([tmp_path / "x" / "a.nii.gz", tmp_path / "y" / "a.nii.gz"], 1)


def test_one_file_given_twice_is_one_case(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    assert len(find_cases([tmp_path / "a.nii.gz", tmp_path], 1)) == 1


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="not an image"):
        find_cases([tmp_path / "notes.txt"], 1)
    with pytest.raises(InputError, match="no such file"):
        find_cases([tmp_path / "absent.nii.gz"], 1)


def test_channels_of_a_case_are_stacked_in_order(tmp_path: Path) -> None:
    grid = Grid.from_parts((2, 3, 4))
    for channel in range(2):
        write_volume(
            tmp_path / f"a_{channel:04d}.nii.gz", Volume(np.full((1, 2, 3, 4), channel + 1, dtype=np.int16), grid)
        )
    (case,) = find_cases([tmp_path], 2)
    assert case.read_image().array[:, 0, 0, 0].tolist() == [1, 2]


def test_a_list_of_subjects_is_read_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("# fold 1\ncase_1\n\n  case_2 \n")
    assert read_names(file) == ["case_1", "case_2"]
    file.write_text("case_1\r\ncase_2\r\n", encoding="utf-8-sig", newline="")  # as editors of Windows write it
    assert read_names(file) == ["case_1", "case_2"]


@pytest.mark.parametrize(("text", "problem"), [("\n# none\n", "is empty"), ("a\nb\na\n", "listed twice")])
def test_a_list_of_subjects_that_cannot_be_used_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "train.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_names(file)


def test_the_folder_above_a_cohort_is_no_cohort(tmp_path: Path) -> None:
    (tmp_path / "Dataset004_Hippocampus" / "imagesTr").mkdir(parents=True)
    with pytest.raises(CohortError, match=r"name the folder of the data set, .*Dataset004_Hippocampus"):
        Cohort.read(tmp_path)


def test_the_folder_of_a_cohort_is_told_from_one_of_scans(tmp_path: Path) -> None:
    for name in ("imagesTr", "imagesTs", "labelsTr"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"the folder of a cohort.*such as .*imagesTs"):
        find_cases([tmp_path], 1)
    with pytest.raises(InputError, match="there is nothing in this folder"):
        find_cases([tmp_path / "imagesTs"], 1)


def test_images_of_a_case_are_found_by_a_pattern_each(tmp_path: Path) -> None:
    for name in ("sub-01", "sub-02"):
        touch(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", tmp_path / name / "anat" / f"{name}_FLAIR.nii.gz")
        touch(tmp_path / name / "anat" / f"{name}_T1w.json", tmp_path / name / "perf" / "asl.nii.gz")
    touch(tmp_path / "participants.tsv")
    folders = sorted(tmp_path.iterdir())
    found = find_cases(folders, 2, images=["anat/*_T1w.nii.gz", "*FLAIR.nii.gz"])
    assert [(case.name, case.channels) for case in found] == [("sub-01", 2), ("sub-02", 2)]
    assert [path.name for path in found[0].images] == ["sub-01_T1w.nii.gz", "sub-01_FLAIR.nii.gz"]
    assert unread(folders, found, picked=True) == [tmp_path / "participants.tsv"]
    assert len(find_cases([tmp_path / "sub-01"], 2, images=["*T1w.nii.gz"])[0].images) == 1  # which may hold both


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (["*.nii.gz"], {}, r"3 files or folders fit --image “\*\.nii\.gz”; expected one; found .*asl\.nii\.gz"),
        (["*T2w*"], {}, r"0 files or folders fit --image"),
        (["*T1w.json"], {}, r"T1w\.json: this is not an image that can be read"),
        (["*T1w.nii.gz", "*FLAIR.nii.gz", "*asl.nii.gz"], {}, "expects 2 channels; .*or for one that holds all"),
        (
            ["*T1w.nii.gz"],
            {"series": "3"},
            r"T1w\.nii\.gz: a series can be chosen of a DICOM export only; found series 3",
        ),
        (
            ["*T1w.nii.gz", "*FLAIR.nii.gz"],
            {"series": "3"},
            "either images or DICOM series of one; .*found 2 images, 1",
        ),
        (
            ["*T1w.nii.gz", "anat/T1w*gz"],
            {},
            r"two channels are one image; .*found “\*T1w\.nii\.gz” and “anat/T1w\*gz”",
        ),
        (["anat"], {}, "anat: this is not an image that can be read"),
        (["*T1w.nii.gz"], {"name_from": "folder"}, "called after the folders that are given"),
    ],
)
def test_patterns_that_name_no_case_are_refused(
    tmp_path: Path, images: list[str], options: dict[str, str], said: str
) -> None:
    for name in ("T1w.nii.gz", "FLAIR.nii.gz", "asl.nii.gz", "T1w.json"):
        touch(tmp_path / "a" / "anat" / name)
    with pytest.raises(InputError, match=said):
        find_cases([tmp_path / "a"], 2, images=images, **options)


def test_a_folder_of_slices_is_found_by_a_pattern_that_its_slices_fit_too(tmp_path: Path) -> None:
    for name in ("T1 [MPR]", "FLAIR"):
        dicoms.save(tmp_path / "a" / "scans" / name, dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    (case,) = find_cases([tmp_path / "a"], 2, images=["*T1 [MPR]*", "./scans/FL*/"])
    assert [path.relative_to(tmp_path / "a").as_posix() for path in case.images] == ["scans/T1 [MPR]", "scans/FLAIR"]
    touch(tmp_path / "a" / "scans" / "FLAIR" / "FLAIR.nii.gz")
    with pytest.raises(
        InputError, match=r"4 files or folders fit --image “\*FLAIR\*”; .*found .*R, .*FLAIR\.nii\.gz, .*IM000"
    ):
        find_cases([tmp_path / "a"], 1, images="*FLAIR*")


def test_all_folders_that_lack_an_image_are_told(tmp_path: Path) -> None:
    for name in "abc":
        touch(tmp_path / name / "t1.nii.gz", tmp_path / name / ("flair.nii.gz" if name == "b" else "t2.nii.gz"))
    with pytest.raises(InputError, match=r"of 2 folders no case can be made.*\n.*a: 0 files .*\n.*c: 0 files") as told:
        find_cases(sorted(tmp_path.iterdir()), 2, images=["t1.nii.gz", "flair.nii.gz"])
    assert "b:" not in str(told.value)


def test_a_folder_behind_a_link_is_called_as_the_link_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicoms.save(tmp_path / "archive" / "Jane_Doe" / "ct", dicoms.slices(np.zeros((2, 3, 4), np.int16)))
    (tmp_path / "p1").symlink_to(tmp_path / "archive" / "Jane_Doe")
    for options in ({}, {"images": ["ct"]}):
        (case,) = find_cases([tmp_path / "p1"], 1, **options)
        assert case.name == "p1"
    monkeypatch.chdir(tmp_path / "p1" / "ct")
    assert [case.name for case in find_cases(["."], 1)] == ["ct"]


def test_sessions_of_one_name_are_told_apart_from_above(tmp_path: Path) -> None:
    touch(*(tmp_path / name / "ses-1" / "anat" / "t1.nii.gz" for name in ("sub-1", "sub-2")))
    with pytest.raises(
        InputError, match=r"both be called 'ses-1'.*give the folders above them, and patterns of the pa"
    ):
        find_cases([tmp_path / "sub-1" / "ses-1", tmp_path / "sub-2" / "ses-1"], 1, images=["anat/t1.nii.gz"])
    cases = find_cases([tmp_path / "sub-1", tmp_path / "sub-2"], 1, images=["ses-1/anat/t1.nii.gz"])
    assert [case.name for case in cases] == ["sub-1", "sub-2"]


def test_patterns_are_looked_for_in_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("a.nii.gz", "this is no folder"),
        ("none", "no such folder"),
        ("empty", "nothing in this folder"),
    ):
        with pytest.raises(InputError, match=said):
            find_cases([tmp_path / name], 1, images=["*.nii.gz"])


def test_a_list_of_images_is_one_case(tmp_path: Path) -> None:
    touch(tmp_path / "t1.nii.gz", tmp_path / "flair.nii.gz")
    files = [tmp_path / "t1.nii.gz", tmp_path / "flair.nii.gz"]
    assert find_case(files, 2).images == tuple(files)
    with pytest.raises(InputError, match=r"expects 3 channels; .*found 2 images, 0 series"):
        find_case(files, 3)
    with pytest.raises(InputError, match="found 2 images, 1 series"):
        find_case(files, 2, "3")
    with pytest.raises(InputError, match=r"t2\.nii\.gz: there is no such file"):
        find_case([*files[:1], tmp_path / "t2.nii.gz"], 2)
    with pytest.raises(
        InputError, match=r"t1\.nii\.gz: a series can be chosen of a DICOM export only; found series 3, 7"
    ):
        find_case(files, 2, ["3", "7"])
    with pytest.raises(InputError, match=r"each is given as a path; expected paths, or one Volume .*; found Volume"):
        find_case([files[0], Volume(np.zeros((1, 2, 3, 4)), Grid.from_parts((2, 3, 4)))], 2)

"""Reading cohorts in their three layouts, and saying what is wrong with them."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dicoms
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject, check_cohort
from atlasnet.cohort.declaration import read_declaration
from atlasnet.cohort.doubts import modality_doubts
from atlasnet.errors import CohortError, VolumeError
from atlasnet.volume import Grid, Volume, write_volume

GRID = Grid.from_parts((4, 6, 8), (1.0, 1.0, 2.0), (5.0, -3.0, 100.0))


def image(path: Path, seed: int = 0, *, grid: Grid = GRID, channels: int = 1) -> None:
    array = np.random.default_rng(seed).integers(-900, 900, (channels, *grid.shape)).astype(np.int16)
    write_volume(path, Volume(array, grid))


def labels(path: Path, values: Sequence[int] = (1, 2), *, grid: Grid = GRID, dtype: str = "int16") -> None:
    array = np.zeros(grid.shape, dtype)
    for place, value in enumerate(values):
        array[1, 1:4, place] = value
    write_volume(path, Volume(array, grid))


def declare(root: Path, **content: Any) -> None:
    root.mkdir(exist_ok=True, parents=True)
    (root / "dataset.json").write_text(json.dumps(content))


def nnunet(
    root: Path, names: Sequence[str] = ("a", "b", "c"), channels: Sequence[str] = ("CT",), **content: Any
) -> Path:
    declared = {"channel_names": dict(enumerate(channels)), "labels": {"background": 0, "left": 1, "right": 2}}
    declare(root, **(declared | content))
    for seed, name in enumerate(names):
        for channel in range(len(channels)):
            image(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", 10 * seed + channel)
        labels(root / "labelsTr" / f"{name}.nii.gz")
    return root


def test_labels_may_be_regions_of_several_values_as_for_nnunet(tmp_path: Path) -> None:
    tumour = {"background": 0, "whole tumour": [1, 2, 3], "core": [3, 2], "enhancing": [3]}
    nnunet(tmp_path, labels=tumour, regions_class_order=[1, 2, 3])
    labels(tmp_path / "labelsTr" / "a.nii.gz", (1, 2, 3))
    cohort = Cohort.read(tmp_path)
    assert cohort.labels == {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3}
    assert cohort.structures == {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert repr(cohort).endswith("enhancing=3, region whole tumour=(1, 2, 3), region core=(2, 3))")
    declare(tmp_path, channel_names={"0": "CT"}, labels=tumour | {"oedema": 1, "ignore": 4})
    named = Cohort.read(tmp_path)
    assert named.labels == {"background": 0, "oedema": 1, "label 2": 2, "enhancing": 3}
    assert [*named.structures] == ["whole tumour", "core", "enhancing", "oedema"]
    assert named.ignore_label == 4


def test_without_regions_every_label_is_a_structure(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path, labels={"background": 0, "right": 2, "left": [1]}))
    assert (dict(cohort.regions), cohort.structures) == ({}, {"left": 1, "right": 2})


def texts(root: Path) -> str:
    return "\n".join(f"{p.severity}: {p}" for p in check_cohort(root).problems)


def test_nnunet_layout(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path, channels=("CT", "PET")))
    assert cohort.format == "nnU-Net"
    assert cohort.channels == ("CT", "PET")
    assert cohort.labels == {"background": 0, "left": 1, "right": 2}
    assert [subject.name for subject in cohort] == ["a", "b", "c"]
    volume = cohort["b"].read_image()
    assert volume.array.shape == (2, 4, 6, 8)
    first, second = (np.random.default_rng(seed).integers(-900, 900, GRID.shape) for seed in (10, 11))
    np.testing.assert_array_equal(volume.array, np.stack([first, second]))
    assert set(np.unique(cohort["b"].read_labels().array)) == {0, 1, 2}


def test_numbers_of_four_digits_are_no_channels_where_dataset_json_lists_the_pairs(tmp_path: Path) -> None:
    names = [f"amos_{number:04d}" for number in range(3)]
    for name in names:
        image(tmp_path / f"imagesTr/{name}.nii.gz")
        labels(tmp_path / f"labelsTr/{name}.nii.gz")
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    declare(tmp_path, modality={"0": "T1"}, labels={"0": "background", "1": "left", "2": "right"}, training=pairs)
    cohort = Cohort.read(tmp_path)
    assert (cohort.format, [s.name for s in cohort]) == ("Decathlon", names)


def test_of_nnunets_cases_those_that_dataset_json_lists_take_part(tmp_path: Path) -> None:
    entries = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "c")]
    nnunet(tmp_path, training=entries, numTraining=2)
    assert [subject.name for subject in Cohort.read(tmp_path)] == ["a", "c"]
    assert "warning: " in texts(tmp_path)
    assert "subjects that dataset.json does not list are left out: b" in texts(tmp_path)
    assert "numTraining" not in texts(tmp_path)
    declare(tmp_path, **json.loads((tmp_path / "dataset.json").read_text()) | {"numTraining": 7})
    assert "there are 7 training cases (numTraining), and here are 2" in texts(tmp_path)
    for file in ("imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz"):
        (tmp_path / file).unlink()
    with pytest.raises(CohortError, match=r"c: .*dataset\.json lists it, and its files are missing"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("annotation", {"b": ["left"]}, "annotated"),
        ("annotations", {"b": ["left"]}, "annotated"),
        ("Annotated", {"b": ["left"]}, "annotated"),
        ("segment", {}, "segments"),
        ("train", ["a"], "training"),
    ],
)
def test_a_key_that_is_almost_one_of_ours_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, meant: str
) -> None:
    nnunet(tmp_path / "data", **{key: value})
    said = f"{key!r} in dataset.json is passed over; if {meant!r} is meant, call it so"
    assert texts(tmp_path / "data").startswith(f"warning: {tmp_path / 'data' / 'dataset.json'}: {said}")
    assert main(["train", str(tmp_path / "data"), "-o", str(tmp_path / "m"), "--atlas", "nobody"]) == 2
    assert capsys.readouterr().err.count(said) == 1


def test_other_keys_are_nobodys_concern(tmp_path: Path) -> None:
    others = {"name": "x", "licence": "", "license": "", "reference": "", "release": "1", "relase": ""}
    others |= {"overwrite_image_reader_writer": "SimpleITKIO", "tensorImageSize": "3D", "regions_class_order": [1, 2]}
    others |= {"test": ["./imagesTs/d.nii.gz"], "numTest": 1, "annotators": ["A", "B"], "annotation": "by hand"}
    others |= {"modalities": {"0": "CT"}}  # channel_names are there
    nnunet(tmp_path, **others, annotated={"b": ["left"]}, annotations={"b": "in haste"}, numTraining=3)
    labels(tmp_path / "labelsTr" / "b.nii.gz", [1])
    assert not any("passed over" in problem.text for problem in check_cohort(tmp_path).problems)


def test_a_list_that_names_no_subject_is_told_and_decides_nothing(tmp_path: Path) -> None:
    nnunet(tmp_path, training=[{"image": "./imagesTr/other.nii.gz", "label": "./labelsTr/other.nii.gz"}])
    assert len(Cohort.read(tmp_path)) == 3
    assert "names none of the subjects" in texts(tmp_path)


def test_the_files_that_dataset_json_names_for_each_case_take_part(tmp_path: Path) -> None:
    nnunet(tmp_path / "data", channels=("T1", "T2"))
    elsewhere = tmp_path / "elsewhere"
    for number in range(2):
        image(elsewhere / f"scan{number}.nrrd", 40 + number)
    labels(elsewhere / "truth.nrrd")
    files = {"images": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}
    other = {"images": [f"../elsewhere/scan{n}.nrrd" for n in range(2)], "label": str(elsewhere / "truth.nrrd")}
    content = json.loads((tmp_path / "data/dataset.json").read_text())
    declare(tmp_path / "data", **content | {"dataset": {"a": files, "z": other}})
    cohort = Cohort.read(tmp_path / "data")
    assert [subject.name for subject in cohort] == ["a", "z"]
    assert cohort["z"].read_image().channels == 2
    assert cohort["z"].read_labels().array.any()
    said = texts(tmp_path / "data")
    assert "4 files that dataset.json does not list are left out: b_0000.nii.gz" in said
    for name in ("../x", "", "..", "a/b"):
        declare(tmp_path / "data", **content | {"dataset": {"a": files, name: other}})
        assert f"has a name that no file can have: {name!r}" in texts(tmp_path / "data")
    broken = {"a": files, "x": {"images": ["imagesTr/x_0000.nii.gz"], "label": None}, "y": 3, "z": {"images": []}}
    declare(tmp_path / "data", **content | {"dataset": broken})
    with pytest.raises(CohortError, match=r"(?s)4 problems.*x: .*is missing.*x: .*no labels.*y: .*not understood.*z: "):
        Cohort.read(tmp_path / "data")


def test_files_that_cannot_be_read_are_told_once(tmp_path: Path) -> None:
    nnunet(tmp_path, file_ending=".png")
    assert texts(tmp_path).count("images ending in .png (file_ending) cannot be read") == 1
    assert texts(tmp_path).count("to mend it: convert images and labels to NIfTI") == 1
    assert "left out" not in texts(tmp_path)


def test_labels_are_missed_under_the_name_that_they_should_have(tmp_path: Path) -> None:
    nnunet(tmp_path, file_ending=".nii.gz")
    (tmp_path / "labelsTr/a.nii.gz").rename(tmp_path / "labelsTr/a.nrrd")
    assert "the labels are missing: expected a.nii.gz in labelsTr/" in texts(tmp_path)


def test_what_nnunet_takes_from_the_name_of_a_channel_is_told_not_to_be_taken(tmp_path: Path) -> None:
    assert "channel noNorm: what nnU-Net takes from this name" in texts(nnunet(tmp_path / "a", channels=("noNorm",)))
    assert "what nnU-Net takes" not in texts(nnunet(tmp_path / "b", channels=("zscore",)))


def test_subjects_are_known_by_their_names_however_these_are_composed(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path, names=("f\u00e4lle", "b")))
    assert [subject.name for subject in cohort.select(["fa\u0308lle"])] == ["f\u00e4lle"]
    for name in ("b_0000", "b.nii.gz", "b_0000.nii.gz"):
        with pytest.raises(CohortError, match=r"without suffix and channel, as b$"):
            cohort.select([name])


def test_decathlon_layout_with_4d_images_as_channels(tmp_path: Path) -> None:
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("x", "y")]
    declare(
        tmp_path, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "left", "2": "right"}, training=cases
    )
    for name in ("x", "y"):
        image(tmp_path / f"imagesTr/{name}.nii.gz", channels=2)
        labels(tmp_path / f"labelsTr/{name}.nii.gz")
    cohort = Cohort.read(tmp_path)
    assert (cohort.format, cohort.channels) == ("Decathlon", ("T1", "T2"))
    assert cohort.labels == {"background": 0, "left": 1, "right": 2}
    assert cohort["x"].read_image().channels == 2


def test_files_that_the_decathlon_list_leaves_out_are_warned_of(tmp_path: Path) -> None:
    declare(tmp_path, training=[{"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"}])
    for name in "xyz":
        image(tmp_path / f"imagesTr/{name}.nii.gz")
        labels(tmp_path / f"labelsTr/{name}.nii.gz")
    found = [str(problem) for problem in check_cohort(tmp_path).problems if problem.severity == "warning"]
    for folder in ("imagesTr", "labelsTr"):
        assert any(f"{folder}: 2 files" in text and "y.nii.gz, z.nii.gz" in text for text in found)


@pytest.mark.parametrize("layout", ["nnU-Net", "plain"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, layout: str) -> None:
    """As in a DataLad folder whose contents have not been fetched."""
    folders = ("imagesTr", "labelsTr") if layout == "nnU-Net" else ("images", "labels")
    nnunet(tmp_path / "source", "ab")
    for folder, part, ending in zip(folders, ("imagesTr", "labelsTr"), ("_0000.nii.gz", ".nii.gz"), strict=True):
        (tmp_path / "x" / folder).mkdir(parents=True)
        for name in "ab":
            link = tmp_path / "x" / folder / f"{name}{ending if layout == 'nnU-Net' else '.nii.gz'}"
            link.symlink_to(tmp_path / "source" / part / f"{name}{ending}")
    if layout == "nnU-Net":
        shutil.copy(tmp_path / "source" / "dataset.json", tmp_path / "x")
    assert check_cohort(tmp_path / "x").ok
    (tmp_path / "source" / "imagesTr" / "b_0000.nii.gz").unlink()
    (tmp_path / "source" / "labelsTr" / "b.nii.gz").unlink()
    report = check_cohort(tmp_path / "x")
    assert [str(problem).count("leads nowhere") for problem in report.errors] == [1, 1]
    with pytest.raises(CohortError, match="leads nowhere"):
        Cohort.read(tmp_path / "x")


def test_plain_layout_without_dataset_json_takes_its_labels_from_the_files(tmp_path: Path) -> None:
    for name in ("p", "q"):
        image(tmp_path / f"images/{name}.nrrd")
        labels(tmp_path / f"labels/{name}.nii.gz", (-3, 700))
    cohort = Cohort.read(tmp_path)
    assert cohort.format == "plain"
    assert cohort.labels == {"background": 0, "label -3": -3, "label 700": 700}
    assert len(cohort) == 2


def test_plain_names_that_end_in_numbers_are_not_channels(tmp_path: Path) -> None:
    for name in ("case_0001", "case_0002"):
        image(tmp_path / f"images/{name}.nii.gz")
        labels(tmp_path / f"labels/{name}.nii.gz")
    assert [subject.name for subject in Cohort.read(tmp_path)] == ["case_0001", "case_0002"]


def test_a_4d_image_that_nothing_declares_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/p.nii.gz", channels=2)
    labels(tmp_path / "labels/p.nii.gz")
    with pytest.raises(VolumeError, match="4-D"):
        Cohort.read(tmp_path).subjects[0].read_image()


def test_the_ignore_label_is_apart_from_the_labels(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path, labels={"background": 0, "left": 1, "right": 2, "ignore": 9}))
    assert cohort.ignore_label == 9
    assert "ignore" not in cohort.labels


def test_subjects_without_reference_are_read_when_none_is_asked_for(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "labelsTr/b.nii.gz").unlink()
    cohort = Cohort.read(tmp_path, labelled=False)
    assert [subject.labels is None for subject in cohort] == [False, True, False]
    with pytest.raises(CohortError, match="no reference"):
        cohort["b"].read_labels()


def test_a_name_is_no_list_and_a_number_no_name(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path))
    with pytest.raises(CohortError, match=r"found a; to mend it: select\(\['a'\]\)"):
        cohort.select("a")
    with pytest.raises(CohortError, match=r"known by their names; found 0"):
        cohort[0]  # type: ignore[index]  # what is tested
    assert [asked in cohort for asked in ("a", cohort["a"], "z", 0)] == [True, True, False, False]


def test_select_keeps_the_order_that_is_asked_for(tmp_path: Path) -> None:
    cohort = Cohort.read(nnunet(tmp_path)).select(["c", "a"])
    assert [subject.name for subject in cohort] == ["c", "a"]


@pytest.mark.parametrize("names", [["a", "nobody"], ["a", "a"], []])
def test_select_refuses_unknown_repeated_and_no_names(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(CohortError):
        Cohort.read(nnunet(tmp_path)).select(names)


@pytest.mark.parametrize("shift", [0.0, 5e-4, 0.02])
def test_labels_come_on_exactly_the_grid_of_the_image(tmp_path: Path, shift: float) -> None:
    nnunet(tmp_path, ("a",))
    labels(tmp_path / "labelsTr/a.nii.gz", grid=Grid.from_parts(GRID.shape, GRID.spacing, GRID.origin + shift))
    subject = Cohort.read(tmp_path)["a"]
    np.testing.assert_array_equal(subject.read_labels().grid.affine, subject.read_image().grid.affine)


@pytest.mark.parametrize(
    "grid",
    [
        Grid.from_parts((4, 6, 8), (1, 1, 2), (5.1, -3, 100)),
        Grid.from_parts((4, 6, 8), (1, 1, 2.1), (5, -3, 100)),
        Grid.from_parts((4, 6, 8), (1, 1, 2), (5, -3, 100), np.diag([-1, 1, 1])),
        Grid.from_parts((4, 6, 7), (1, 1, 2), (5, -3, 100)),
    ],
)
def test_labels_on_another_grid_are_refused(tmp_path: Path, grid: Grid) -> None:
    nnunet(tmp_path, ("a",))
    labels(tmp_path / "labelsTr/a.nii.gz", grid=grid)
    with pytest.raises(VolumeError, match="does not lie on the grid"):
        Cohort.read(tmp_path)["a"].read_labels()


def test_labels_that_differ_in_their_direction_alone_are_told_with_it(tmp_path: Path) -> None:
    nnunet(tmp_path, ("a",))
    grid = Grid.from_parts(GRID.shape, GRID.spacing, GRID.origin, np.diag([-1, 1, 1]))
    labels(tmp_path / "labelsTr/a.nii.gz", grid=grid)
    with pytest.raises(VolumeError, match=r"LPS mm\); found 14 voxels apart, .* mm, direction=\(-1, 0, 0, 0, 1, 0, "):
        Cohort.read(tmp_path)["a"].read_labels()


def test_read_names_every_missing_file_at_once(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=("CT", "PET"))
    (tmp_path / "labelsTr/a.nii.gz").unlink()
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    with pytest.raises(CohortError, match=r"(?s)2 problems.*a: .*missing.*b: .*_0001 is missing"):
        Cohort.read(tmp_path)


def test_a_sound_cohort_has_no_problems(tmp_path: Path) -> None:
    report = check_cohort(nnunet(tmp_path))
    assert report.problems == ()
    assert report.ok
    assert report.plan is not None


def test_check_lists_every_problem_of_every_subject(tmp_path: Path) -> None:
    nnunet(tmp_path, tuple("abcdefghi"), ("CT", "PET"))
    (tmp_path / "labelsTr/a.nii.gz").unlink()
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    content = (tmp_path / "imagesTr/c_0000.nii.gz").read_bytes()
    (tmp_path / "imagesTr/c_0000.nii.gz").write_bytes(content[:-20])
    labels(tmp_path / "labelsTr/c.nii.gz", (1, 2, 77))
    labels(tmp_path / "labelsTr/d.nii.gz", (1, 5), grid=Grid.from_parts((4, 6, 8), (1, 1, 2)))
    write_volume(tmp_path / "labelsTr/e.nii.gz", Volume(np.full(GRID.shape, 0.5, np.float32), GRID))
    labels(tmp_path / "labelsTr/f.nii.gz", ())
    image(tmp_path / "imagesTr/g_0001.nii.gz", grid=Grid.from_parts((4, 6, 9), (1, 1, 2)))
    labels(tmp_path / "labelsTr/stray.nii.gz")
    (tmp_path / "imagesTr/readme.txt").write_text("x")
    image(tmp_path / "imagesTr/h_0002.nii.gz")
    found = texts(tmp_path).splitlines()
    expected = [
        ("error: a: ", "labels are missing"),
        ("error: b: ", "channel _0001 is missing"),
        ("error: c: ", "c_0000.nii.gz: the file is truncated"),
        ("error: c: ", "does not declare: 77 (3 voxels); to mend it: declare them in dataset.json, or"),
        ("error: d: ", "does not lie on the grid"),
        ("error: d: ", "does not declare: 5 (3 voxels)"),
        ("error: e: ", "whole numbers"),
        ("warning: f: ", "nothing is labelled"),
        ("error: g: ", "shows too little of the field of view of g_0000.nii.gz, the first channel"),
        ("error: h: ", "channel _0002 is not declared"),
        ("error: stray: ", "labels without an image"),
        ("warning: ", "readme.txt"),
    ]
    for start, text in expected:
        assert any(line.startswith(start) and text in line for line in found), (start, text, found)
    assert len(found) == len(expected)


def test_ct_that_is_not_called_so_is_pointed_out(tmp_path: Path) -> None:
    array = np.linspace(-1024, 1500, math.prod(GRID.shape)).reshape(1, *GRID.shape).astype(np.int16)
    for name, image in (("a", array), ("b", array[..., ::-1])):
        write_volume(tmp_path / f"images/{name}.nii.gz", Volume(image, GRID))
        labels(tmp_path / f"labels/{name}.nii.gz")
    assert "looks like CT in Hounsfield units" in texts(tmp_path)
    assert '"channel_names": {"0": "CT"}' in texts(tmp_path)
    declare(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "left": 1, "right": 2})
    assert texts(tmp_path) == ""


def test_labels_of_nearly_the_right_name_are_pointed_out(tmp_path: Path) -> None:
    image(tmp_path / "images/a.nii.gz")
    labels(tmp_path / "labels/a_seg.nii.gz")
    assert "if a_seg.nii.gz is meant, rename it to a.nii.gz" in texts(tmp_path)


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_the_folder_above_is_named_to_who_names_a_part_of_a_cohort(tmp_path: Path, part: str) -> None:
    with pytest.raises(CohortError, match=f"name the folder above, {tmp_path}$"):
        Cohort.read(nnunet(tmp_path) / part)


def test_two_files_of_one_name_are_a_problem(tmp_path: Path) -> None:
    for name in ("p.nii.gz", "p.nrrd"):
        image(tmp_path / "images" / name)
    labels(tmp_path / "labels/p.nii.gz")
    assert "p: " in texts(tmp_path)
    assert "two files have this name: p.nii.gz and p.nrrd" in texts(tmp_path)


def test_a_name_listed_twice_in_the_decathlon_list_is_a_problem(tmp_path: Path) -> None:
    case = {"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"}
    declare(tmp_path, modality={"0": "CT"}, labels={"0": "background", "1": "l", "2": "r"}, training=[case, case])
    image(tmp_path / "imagesTr/x.nii.gz")
    labels(tmp_path / "labelsTr/x.nii.gz")
    assert "error: x: " in texts(tmp_path)
    assert "listed twice" in texts(tmp_path)


def test_a_cohort_without_a_label_is_an_error_where_it_needs_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / "images" / f"{name}.nii.gz", ord(name))
        labels(tmp_path / "labels" / f"{name}.nii.gz", ())
    (error,) = check_cohort(tmp_path).errors
    assert error.text == "there is no label besides the background, and nothing to learn"
    assert not check_cohort(tmp_path, labelled=False).errors
    declare(tmp_path / "data", labels={"background": 0, "ignore": 1})
    for part in ("images", "labels"):
        (tmp_path / part).rename(tmp_path / "data" / part)
    assert [error.text] == [other.text for other in check_cohort(tmp_path / "data").errors]


def test_doubtful_data_is_warned_of(tmp_path: Path) -> None:
    nnunet(tmp_path, tuple("abcde"), labels={"background": 0, "left": 1, "right": 2, "never": 3})
    image(tmp_path / "imagesTr/b_0000.nii.gz", 0)
    shifted = np.random.default_rng(5).integers(24, 2024, GRID.shape).astype(np.int16)
    write_volume(tmp_path / "imagesTr/d_0000.nii.gz", Volume(shifted, GRID))
    large = Grid.from_parts(GRID.shape, (10, 10, 20))
    image(tmp_path / "imagesTr/e_0000.nii.gz", 6, grid=large)
    labels(tmp_path / "labelsTr/e.nii.gz", grid=large)
    report = check_cohort(tmp_path)
    found = texts(tmp_path)
    assert report.ok
    assert "b: " in found
    assert "the same voxels as that of a" in found
    assert "hardly Hounsfield" in found
    assert "e: the spacing" in found
    assert "no subject has the label never (3)" in found


@pytest.mark.parametrize(
    ("channel", "modality", "doubted"),
    [
        ("CT", "MR", True),
        ("ct", "CT", False),
        ("T1-w", "CT", True),
        (" FLAIR ", "PT", True),
        ("ADC", "MR", False),
        ("PET", "PT", False),
        ("PET", "CT", True),
        ("noNorm", "CT", False),
        ("MRI", "OT", False),
        ("MRI", "", False),
    ],
)
def test_a_dicom_image_of_another_modality_than_its_channel_is_doubted(
    tmp_path: Path, channel: str, modality: str, doubted: bool
) -> None:
    folder = dicoms.save(tmp_path, dicoms.slices(np.zeros((2, 4, 4), np.int16), Modality=modality))
    found = modality_doubts(Subject("a", (folder,)), (channel,))
    assert [path for path, _ in found] == [folder] * doubted
    assert all(f"modality {modality}, and the channel is {channel}" in text for _, text in found)


def test_a_nifti_header_with_neither_form_is_warned_of(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=("CT", "PET"))
    for name in ("imagesTr/b_0000", "imagesTr/b_0001", "labelsTr/b"):
        path = tmp_path / f"{name}.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<2h", content, 252, 0, 0)
        path.write_bytes(gzip.compress(content))
    report = check_cohort(tmp_path)
    assert report.ok
    found = [(problem.subject, problem.path) for problem in report.warnings if "neither form" in problem.text]
    assert found == [("b", tmp_path / f"imagesTr/b_000{channel}.nii.gz") for channel in (0, 1)]


def test_a_constant_image_is_an_error_and_a_constant_channel_beside_others_is_not(tmp_path: Path) -> None:
    nnunet(tmp_path, tuple("ab"))
    flat = Volume(np.full(GRID.shape, 7, np.int16), GRID)
    write_volume(tmp_path / "imagesTr/a_0000.nii.gz", flat)
    assert re.search("error: a: .*channel CT is constant: 7 everywhere", texts(tmp_path))
    image(tmp_path / "imagesTr/a_0000.nii.gz", 1)
    assert check_cohort(tmp_path).ok
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["channel_names"] = {"0": "CT", "1": "PET"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    image(tmp_path / "imagesTr/a_0001.nii.gz", 2)
    write_volume(tmp_path / "imagesTr/b_0001.nii.gz", flat)
    assert check_cohort(tmp_path).ok
    assert re.search("warning: b: .*channel PET is constant: 7 everywhere", texts(tmp_path))


def test_a_single_subject_is_warned_of(tmp_path: Path) -> None:
    assert "warning: " in texts(nnunet(tmp_path / "one", "a"))
    assert "a single subject has a reference" in texts(tmp_path / "one")
    assert "a single subject" not in texts(nnunet(tmp_path / "two", "ab"))


def test_a_single_slice_among_volumes_is_an_error(tmp_path: Path) -> None:
    nnunet(tmp_path, tuple("abc"))
    plane = Grid.from_parts((1, *GRID.shape[1:]), GRID.spacing)
    image(tmp_path / "imagesTr/b_0000.nii.gz", 6, grid=plane)
    write_volume(tmp_path / "labelsTr/b.nii.gz", Volume(np.arange(plane.voxels).reshape(plane.shape) % 3, plane))
    assert "error: b: has a single slice along z, and most of the cohort has several slices" in texts(tmp_path)


def test_scans_without_references_need_no_layout(tmp_path: Path) -> None:
    image(tmp_path / "flat" / "a.nii.gz")
    image(tmp_path / "flat" / "b.nrrd", 1)
    image(tmp_path / "tests" / "imagesTs" / "c_0000.nii.gz")
    for folder, names in (("flat", ["a", "b"]), ("tests", ["c"])):
        report = check_cohort(tmp_path / folder, labelled=False)
        assert report.problems == ()
        assert [subject.name for subject in report.cohort] == names
        assert not check_cohort(tmp_path / folder).ok


def test_the_ignore_label_may_be_written_with_capitals(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "left": 1, "right": 2, "Ignore": 3})
    assert Cohort.read(tmp_path).ignore_label == 3
    nnunet(tmp_path, labels={"background": 0, "left": 1, "right": 2, "Ignore": 3, "ignore": 4})
    with pytest.raises(CohortError, match="two labels are to be ignored"):
        Cohort.read(tmp_path)
    nnunet(tmp_path, labels={"ignore": 0, "left": 1})
    with pytest.raises(CohortError, match="background must have the value 0"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("ending", ["nii.gz", ".NII.GZ"])
def test_the_file_ending_needs_neither_dot_nor_small_letters(tmp_path: Path, ending: str) -> None:
    assert len(Cohort.read(nnunet(tmp_path, file_ending=ending))) == 3


def test_dataset_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = nnunet(tmp_path) / "dataset.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert Cohort.read(tmp_path).channels == ("CT",)


def test_every_voxel_ignored_is_warned_of(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "left": 1, "right": 2, "ignore": 3})
    write_volume(tmp_path / "labelsTr/a.nii.gz", Volume(np.full(GRID.shape, 3, np.uint8), GRID))
    assert "every voxel has the ignore label" in texts(tmp_path)


@pytest.mark.parametrize("content", ["flat", "nothing", "file"])
def test_no_layout_is_one_problem_and_no_exception(tmp_path: Path, content: str) -> None:
    if content == "flat":
        image(tmp_path / "a.nii.gz")
    root = tmp_path / "absent" if content == "file" else tmp_path
    report = check_cohort(root)
    assert len(report.errors) == 1
    assert not report.ok
    with pytest.raises(CohortError):
        Cohort.read(root)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"labels": {"background": 0, "whole": []}}, "region 'whole'"),
        ({"labels": {"background": 0, "whole": [0, 1]}}, "region 'whole'"),
        ({"labels": {"background": 0, "whole": [1, "two"]}}, "whole number"),
        ({"labels": {"background": 0, "whole": [1, 2], "all": [2, 1]}}, "same value.* 1 and 2"),
        ({"labels": {"background": 0, "whole": [1, 2], "ignore": 2}}, "part of a region"),
        ({"labels": {"background": 0, "whole": [1, 2], "label 1": 3}}, "'label 1' is what the value 1 is called"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "same value"),
        ({"labels": {"background": 1}}, "background"),
        ({"labels": {"background": 0, "a": 1.5}}, "whole number"),
        ({"labels": {"background": 0, "a": True}}, "whole number"),
        ({"labels": {"background": 0, "a": "+-5"}}, "whole number"),
        ({"labels": {"background": 0, "a": "1" * 5000}}, "whole number"),
        ({"labels": {"background": 0, "a": 2**31}}, "too large"),
        ({"labels": {"0": "background", "99999999999": "a"}}, "too large"),
        ({"labels": []}, "labels"),
        ({"channel_names": {"0": "CT", "2": "PET"}}, "channel_names"),
        ({"channel_names": {}}, "channel_names"),
        ({"modality": {"0": 3}}, "modality"),
        ({"training": "all"}, "training"),
        ({"dataset": ["a"]}, "'dataset'"),
        ({"segments": []}, r"dataset\.json: 'segments' is not an object; expected one entry per label; found list$"),
        ([], "object"),
    ],
)
def test_a_dataset_json_that_is_not_understood_is_refused(tmp_path: Path, content: Any, fault: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match=fault):
        read_declaration(tmp_path / "dataset.json")


def test_a_damaged_dataset_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(CohortError, match="cannot be read"):
        read_declaration(tmp_path / "dataset.json")


def test_labels_are_ordered_background_first_then_by_value(tmp_path: Path) -> None:
    declare(tmp_path, labels={"big": 300, "odd": -2, "one": 1})
    declared = read_declaration(tmp_path / "dataset.json").labels
    assert list((declared or {}).items()) == [("background", 0), ("odd", -2), ("one", 1), ("big", 300)]


def test_real_chest_scans_are_sound(data_folder: Path) -> None:
    report = check_cohort(data_folder / "chest-ct")
    assert report.problems == ()
    assert report.plan is not None
    assert report.plan.normalisation[0].window == (-1000.0, 400.0)

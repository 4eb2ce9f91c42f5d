"""``atlasnet check``: text, JSON and exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli import check
from atlasnet.cli.reporting import run_verb
from atlasnet.cohort import Cohort, Plan, take_fingerprint, with_masks
from atlasnet.errors import InputError
from atlasnet.volume import Grid, Volume, read_labels, write_volume


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    parser.set_defaults(run=check.run)
    return run_verb(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    grid = Grid.from_parts((4, 5, 6), (1, 1, 2))
    for number in range(2):
        array = np.random.default_rng(number).normal(100, 10, grid.shape).astype(np.float32)
        write_volume(tmp_path / f"data/images/s{number}.nii.gz", Volume(array, grid))
        write_volume(tmp_path / f"data/labels/s{number}.nii.gz", Volume((array > 100).astype(np.uint8), grid))
    return tmp_path / "data"


def test_a_sound_cohort_prints_fingerprint_and_plan_and_ends_with_0(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort) == 0
    printed = capsys.readouterr().out
    for text in ("s0", "6 x 5 x 4", "1 x 1 x 2", "label 1 ml", "networks work at", "0 errors"):
        assert text in printed


def test_problems_are_printed_and_end_with_1(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cohort / "labels/s0.nii.gz").unlink()
    (cohort / "images/s1.nii.gz").write_bytes(b"")
    assert run(cohort) == 1
    printed = capsys.readouterr().out
    assert "error: s0: " in printed
    assert "error: s1: " in printed
    assert "2 errors" in printed


def test_of_many_labels_each_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, names = Grid.from_parts((4, 5, 6), (10, 10, 10)), [f"vertebra {n}" for n in range(1, 41)]
    for number in range(2):
        labels = np.arange(grid.voxels, dtype=np.uint8).reshape(grid.shape) % (38 + number)
        write_volume(tmp_path / f"imagesTr/s{number}_0000.nii.gz", Volume(labels.astype(np.float32), grid))
        write_volume(tmp_path / f"labelsTr/s{number}.nii.gz", Volume(labels, grid))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0} | {n: v for v, n in enumerate(names, 1)}}
    content |= {"numTraining": 2, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert run(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("warning: ")) < 120  # which name the folder
    assert [line.split() for line in lines if line.startswith("vertebra 1 ")] == [
        ["vertebra", "1", "1", "2", "of", "2", "4", "4", "4"]
    ]
    assert ["vertebra", "38", "38", "1", "of", "2", "3", "3", "3"] in [line.split() for line in lines]
    assert ["vertebra", "40", "40", "0", "of", "2", "-", "-", "-"] in [line.split() for line in lines]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        run(tmp_path / "absent")


def test_json_is_one_object_with_problems_fingerprint_and_plan(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cohort / "images/notes.txt").write_text("x")
    assert run(cohort, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert report["ok"] is True
    assert [problem["severity"] for problem in report["problems"]] == ["warning"]
    assert len(report["fingerprint"]["subjects"]) == 2
    assert Plan.from_json(report["plan"]).slice_axis == "z"


def test_quiet_says_nothing_but_errors(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cohort / "images/notes.txt").write_text("x")
    assert run(cohort, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_the_plan_is_written_to_be_edited(cohort: Path, tmp_path: Path) -> None:
    assert run(cohort, "--plan", tmp_path / "plan.json", "--quiet") == 0
    assert Plan.read(tmp_path / "plan.json").spacing == (0.7, 0.7, 2.0)


@pytest.mark.parametrize("name", ["dataset.json", "model.json", "images/s0.nii.gz"])
def test_the_plan_takes_the_place_of_nothing_else(cohort: Path, name: str) -> None:
    place = cohort / name
    if not place.exists():
        place.write_text('{"format": 1}', encoding="utf-8")
    before = place.read_bytes()
    with pytest.raises(InputError, match=r"the output (cannot be called so|would take the place of a file)"):
        run(cohort, "--plan", place)
    assert place.read_bytes() == before
    with pytest.raises(InputError, match="give another place after --plan"):
        run(cohort, "--plan", place / "plan.json")


def test_unlabelled_subjects_pass_when_asked(cohort: Path) -> None:
    (cohort / "labels/s0.nii.gz").unlink()
    assert run(cohort, "--unlabelled", "--quiet") == 0


def test_a_part_of_the_cohort_is_read_and_planned_as_a_training_with_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid.from_parts((40, 40, 40))
    for number, size in enumerate((6, 6, 30)):
        labels = np.zeros(grid.shape, np.uint8)
        labels[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = 1
        image = np.random.default_rng(number).normal(100, 10, grid.shape).astype(np.float32) + 50 * labels
        write_volume(tmp_path / f"data/images/s{number}.nii.gz", Volume(image, grid))
        write_volume(tmp_path / f"data/labels/s{number}.nii.gz", Volume(labels, grid))
    (tmp_path / "data/labels/s2.nii.gz").write_bytes(b"damaged")
    names = tmp_path / "names.txt"
    names.write_text("s1\ns0\n", encoding="utf-8")
    assert run(tmp_path / "data") == 1
    assert run(tmp_path / "data", "--subjects", names, "--plan", tmp_path / "plan.json") == 0
    assert "2 subjects read, 0 errors" in capsys.readouterr().out
    cohort = Cohort.read(tmp_path / "data").select(["s0", "s1"])
    assert Plan.read(tmp_path / "plan.json") == Plan.derive(take_fingerprint(cohort))
    names.write_text("s1\ns9\n", encoding="utf-8")
    assert run(tmp_path / "data", "--subjects", names) == 1
    assert "these are not subjects of the cohort" in capsys.readouterr().out


def test_organ_masks_are_checked_as_a_training_checks_them(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, grid = cohort.parent / "masks", Grid.from_parts((4, 5, 6), (1, 1, 2))
    half = np.zeros(grid.shape, np.uint8)
    half[:2] = 1
    write_volume(masks / "s0.nii.gz", Volume(half, grid))
    assert run(cohort, "--organ-mask", masks) == 1
    assert "no organ mask for 1 of 2 cases" in capsys.readouterr().out
    write_volume(masks / "s1.nii.gz", Volume(half, grid))
    plan = cohort.parent / "plan.json"
    assert run(cohort, "--organ-mask", masks, "--plan", plan) == 0
    assert Plan.read(plan) == Plan.derive(take_fingerprint(with_masks(Cohort.read(cohort), masks)))
    within = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("s0 ")]
    labels = read_labels(cohort / "labels/s0.nii.gz").array[0]
    assert within == [pytest.approx(labels[:2].sum() * 2e-3)]  # ml
    for fault, array, where in (
        ("it is empty", np.zeros_like(half), grid),
        ("it does not lie on the grid of s1.nii.gz", half, Grid.from_parts(grid.shape)),
    ):
        write_volume(masks / "s1.nii.gz", Volume(array, where))
        assert run(cohort, "--organ-mask", masks) == 1
        (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("error: s1: ")]
        assert fault in line


def test_a_folder_of_scans_alone_is_told_of_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(tmp_path / "scan.nii.gz", Volume(np.eye(3, dtype=np.float32)[None], Grid.from_parts((1, 3, 3))))
    assert run(tmp_path) == 1
    assert "to mend it: scans without references are checked by atlasnet check --unlabelled" in capsys.readouterr().out
    assert run(tmp_path, "--unlabelled") == 0
    assert "1 subject read, 0 errors" in capsys.readouterr().out
    (tmp_path / "other.nii.gz").write_bytes(b"damaged")
    assert run(tmp_path, "--unlabelled") == 1
    assert "1 subject read, 1 more could not be, 1 error" in capsys.readouterr().out

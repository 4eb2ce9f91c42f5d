"""``atlasnet check``: text, JSON and exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli import check
from atlasnet.cli.reporting import run_verb
from atlasnet.cohort import Plan
from atlasnet.errors import InputError
from atlasnet.volume import Grid, Volume, write_volume


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


def test_unlabelled_subjects_pass_when_asked(cohort: Path) -> None:
    (cohort / "labels/s0.nii.gz").unlink()
    assert run(cohort, "--unlabelled", "--quiet") == 0

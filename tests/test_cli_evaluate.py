"""The verb ``evaluate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli import evaluate
from atlasnet.cli.reporting import run_verb
from atlasnet.errors import InputError
from atlasnet.volume import write_volume
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    parser.set_defaults(run=evaluate.run)
    return run_verb(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 1:4, 1:4] = 3
    for name in ("predictions", "references"):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "case.nii.gz", Volume(array, Grid.from_parts(array.shape)))
    return tmp_path / "predictions", tmp_path / "references"


def test_it_writes_both_files_and_prints_the_table(folders, tmp_path: Path, capsys) -> None:
    assert run(*folders, "-o", tmp_path / "table.json") == 0
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("case,3,1.0,")
    assert "worst subject" in capsys.readouterr().out


def test_json_on_standard_output_is_the_file(folders, tmp_path: Path, capsys) -> None:
    run(*folders, "-o", tmp_path / "table.json", "--json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "table.json").read_text())


def test_quiet_prints_nothing(folders, tmp_path: Path, capsys) -> None:
    run(*folders, "-o", tmp_path / "table.json", "--quiet")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_slices_are_scored_on_request(folders, tmp_path: Path, capsys) -> None:
    run(*folders, "-o", tmp_path / "table.json", "--per-slice")
    assert len((tmp_path / "table.slices.csv").read_text().splitlines()) == 3
    assert "pixels" in capsys.readouterr().out


def test_a_wrong_output_name_is_refused_before_any_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.json"):
        run(tmp_path / "absent", tmp_path / "absent", "-o", tmp_path / "table.txt")


def test_a_declaration_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json"):
        run(tmp_path / "absent", tmp_path / "absent", "-o", tmp_path / "dataset.json")


def test_nothing_of_the_evaluation_before_stays_beside_a_table(folders, tmp_path: Path) -> None:
    run(*folders, "-o", tmp_path / "table.json", "--per-slice", "--report")
    (tmp_path / "other.slices.csv").write_text("somebody else's", encoding="utf-8")
    run(*folders, "-o", tmp_path / "table.json")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "other.slices.csv",
        "table.csv",
        "table.json",
    ]


def test_a_table_that_cannot_be_written_is_refused_before_any_reading(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file/new/table\.json"):
        run(tmp_path / "absent", tmp_path / "absent", "-o", tmp_path / "file" / "new" / "table.json")


def test_looking_whether_a_table_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        run(tmp_path / "absent", tmp_path / "absent", "-o", tmp_path / "new" / "table.json")
    assert not list(tmp_path.iterdir())

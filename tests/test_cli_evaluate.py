"""The verb ``evaluate``."""

from __future__ import annotations

import argparse
import csv
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
from pages import check


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


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ("there", "there/table.json; table.csv"),
        ("new", "new/table.json; table.csv"),
        ("summary.csv", "summary.json; summary.csv"),
        ("dataset.json", "table.json; table.csv"),
    ],
)
def test_a_name_that_no_table_can_have_is_answered_with_one_that_it_can(
    folders, tmp_path: Path, capsys, given: str, advised: str
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError) as caught:
        run(*folders, "-o", tmp_path / given)
    assert str(caught.value).startswith(f"{tmp_path / given}: the table cannot be written there; expected the name of")
    assert str(caught.value).endswith(f"to mend it: -o {tmp_path / advised} is written beside it")
    assert ("found a folder" in str(caught.value)) == (given == "there")
    name = advised.split(";")[0]
    run(*folders, "-o", tmp_path / name)
    assert (tmp_path / name).with_suffix(".csv").is_file()


def test_a_declaration_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json"):
        run(tmp_path / "absent", tmp_path / "absent", "-o", tmp_path / "dataset.json")


def test_labels_that_a_map_does_not_have_are_counted(tmp_path: Path, capsys) -> None:
    """Four cases: found, missed, found where there is none, in neither map."""
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 1:4, 1:4] = 1
    for case, (found, true) in {"a": (1, 1), "b": (0, 1), "c": (1, 0), "d": (0, 0)}.items():
        for name, factor in (("predictions", found), ("references", true)):
            path = tmp_path / name / f"{case}.nii.gz"
            write_volume(path, Volume((factor * array).astype(np.uint8), Grid.from_parts(array.shape)))
    run(tmp_path / "predictions", tmp_path / "references", "-o", tmp_path / "t.json", "--report", "--per-slice")
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["summary"]["labels"]["1"]["dice"]["mean"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert table["presence"] == {
        "1": {
            "both": 1,
            "reference": 1,
            "prediction": 1,
            "neither": 1,
            "dice_in_either": pytest.approx(1 / 3),  # nnU-Net leaves out what is empty in both
            "dice_in_reference": pytest.approx(1 / 2),  # MONAI what is empty in the reference
        }
    }
    assert "Annotated slices: 4" in check(tmp_path / "t.html").text
    # Without any label in the reference a slice counts as not annotated.
    assert table["slice_presence"] == {"1": {"both": 2, "reference": 2, "prediction": 0, "neither": 0}}
    with (tmp_path / "t.csv").open(newline="") as stream:
        presence = {row["case"]: row["presence"] for row in csv.DictReader(stream)}
    assert presence == {"a": "both", "b": "reference", "c": "prediction", "d": "neither"}
    said = capsys.readouterr().out
    assert "1 found, 1 missed, 1 found where there is none, 1 in neither map; mean Dice 0.333 without the last" in said
    page = check(tmp_path / "t.html")
    (row,) = next(t for t in page.tables if "missed" in t[0])[1:]
    assert row == ["1", "1", "1", "1", "1", "0.333", "0.500"]


def test_labels_that_all_maps_have_need_no_counts(folders, tmp_path: Path, capsys) -> None:
    run(*folders, "-o", tmp_path / "table.json", "--report")
    assert "missed" not in capsys.readouterr().out
    assert "missed" not in check(tmp_path / "table.html").text


def test_the_background_cannot_be_ignored(folders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"background cannot be ignored.*to mend it"):
        run(*folders, "-o", tmp_path / "table.json", "--ignore-label", "0")
    assert not (tmp_path / "table.json").exists()


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

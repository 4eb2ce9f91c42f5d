"""Folders of predictions and references: pairing, labels, tables."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli.main import main
from atlasnet.errors import CohortError, InputError, VolumeError
from atlasnet.evaluation import PatchProtocol, Table, evaluate_folder
from atlasnet.evaluation.folder import label_values
from atlasnet.evaluation.scores import LabelScores
from atlasnet.execution import Execution, SilentReporter, made_alone
from atlasnet.volume import write_volume
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

GRID = Grid.from_parts((4, 6, 8), (1.0, 1.0, 2.0))


def write(path: Path, boxes: dict[int, int], grid: Grid = GRID) -> None:
    """A label map with the first ``boxes[value]`` columns of one row of every slice set to ``value``."""
    array = np.zeros(grid.shape, np.uint8)
    for row, (value, length) in enumerate(boxes.items()):
        array[:, row, :length] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array, grid))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases with labels 1 and 2: Dice 1 and 1/2 in the first, 2/3 and 1 in the second."""
    predictions, references = tmp_path / "predictions", tmp_path / "data" / "labelsTs"
    write(references / "one.nii.gz", {1: 4, 2: 6})
    write(predictions / "one.nii.gz", {1: 4, 2: 2})
    write(references / "two.nii.gz", {1: 2, 2: 3})
    write(predictions / "two.nii.gz", {1: 4, 2: 3})
    return predictions, references


def declare(references: Path, labels: object) -> None:
    (references.parent / "dataset.json").write_text(json.dumps({"labels": labels}))


def row(case: str, label: str, dice: float, hausdorff: float | None) -> LabelScores:
    return LabelScores(case, label, dice, dice, dice, hausdorff, hausdorff, hausdorff, dice, 1.0, 1.0, "both")


def test_cases_are_paired_by_name_and_labels_named_by_their_value_without_dataset_json(folders) -> None:
    table = evaluate_folder(*folders)
    assert [(r.case, r.label, r.dice) for r in table.rows] == [
        ("one", "1", 1.0),
        ("one", "2", 0.5),
        ("two", "1", pytest.approx(2 / 3)),
        ("two", "2", 1.0),
    ]


@pytest.mark.parametrize("jobs", [2, 7])
def test_several_cases_at_a_time_give_the_same_table(folders, tmp_path: Path, jobs: int) -> None:
    protocol = PatchProtocol.parse("1", 2)
    expected = evaluate_folder(*folders, per_slice=True, patches=protocol).as_json()
    assert evaluate_folder(*folders, per_slice=True, patches=protocol, jobs=jobs).as_json() == expected
    words = ["evaluate", *map(str, folders), "-o", str(tmp_path / "table.json"), "--quiet", "--jobs"]
    assert main([*words, str(jobs)]) == 0
    assert main([*words, "0"]) == 2
    write(folders[0] / "two.nii.gz", {1: 4}, Grid.from_parts((4, 6, 8), (1.0, 1.0, 3.0)))
    with pytest.raises(VolumeError, match=r"two\.nii\.gz: the prediction does not lie on the grid"):
        evaluate_folder(*folders, jobs=jobs)


def test_suffixes_may_differ(folders) -> None:
    predictions, references = folders
    (predictions / "two.nii.gz").unlink()
    write(predictions / "two.mha", {1: 4, 2: 3})
    assert len(evaluate_folder(predictions, references).rows) == 4


def test_two_files_are_one_case(folders) -> None:
    predictions, references = folders
    table = evaluate_folder(predictions / "two.nii.gz", references / "one.nii.gz")
    assert [r.case for r in table.rows] == ["one", "one"]


@pytest.mark.parametrize("labels", [{"background": 0, "b": 2, "a": 1}, {"0": "background", "1": "a", "2": "b"}])
def test_dataset_json_of_the_parent_folder_names_the_labels_in_both_layouts(folders, labels) -> None:
    declare(folders[1], labels)
    assert evaluate_folder(*folders).labels == {"a": 1, "b": 2}


def test_a_value_that_is_not_declared_is_scored_under_its_number(folders) -> None:
    declare(folders[1], {"background": 0, "a": 1})
    assert evaluate_folder(*folders).labels == {"a": 1, "2": 2}


def test_a_label_that_is_called_like_another_value_keeps_its_own(folders) -> None:
    declare(folders[1], {"background": 0, "2": 1})
    assert evaluate_folder(*folders).labels == {"2": 1, "value 2": 2}
    assert evaluate_folder(*folders, labels=["value 2"]).labels == {"value 2": 2}


def test_the_declared_ignore_label_is_no_label_and_leaves_voxels_out(folders) -> None:
    declare(folders[1], {"background": 0, "a": 1, "ignore": 2})
    table = evaluate_folder(*folders)
    assert (table.labels, table.ignore_label) == ({"a": 1}, 2)


def test_labels_may_be_chosen_by_name_or_value(folders) -> None:
    declare(folders[1], {"background": 0, "a": 1, "b": 2})
    assert evaluate_folder(*folders, labels=["b"]).labels == {"b": 2}
    assert evaluate_folder(*folders, labels=["2"]).labels == {"b": 2}


def test_an_unknown_label_is_refused(folders) -> None:
    with pytest.raises(InputError, match="no label 'c'"):
        evaluate_folder(*folders, labels=["c"])


def test_labels_that_cannot_be_understood_are_refused_with_the_file(folders) -> None:
    declare(folders[1], {"background": 0, "whole": []})
    with pytest.raises(CohortError, match=r"dataset\.json"):
        evaluate_folder(*folders)


def test_a_missing_prediction_is_an_error_with_the_name(folders) -> None:
    (folders[0] / "two.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 2 references.*none for two"):
        evaluate_folder(*folders)


def test_a_missing_prediction_is_left_out_and_named_on_request(folders) -> None:
    (folders[0] / "two.nii.gz").unlink()
    table = evaluate_folder(*folders, allow_missing=True)
    assert (table.cases, table.missing) == (["one"], ("two",))
    assert "no prediction for: two" in table.text()


def test_no_prediction_at_all_is_an_error_even_on_request(folders) -> None:
    for path in folders[0].iterdir():
        path.rename(path.with_name("x" + path.name))
    write(folders[0] / "xone_agreement.nii.gz", {1: 1})  # a map of that prediction, which is none
    with pytest.raises(InputError, match=r"2 of 2.*those that there are: xone, xtwo; .*name both alike"):
        evaluate_folder(*folders, allow_missing=True)


def test_a_prediction_without_a_reference_is_named(folders) -> None:
    write(folders[0] / "three.nii.gz", {1: 1})
    table = evaluate_folder(*folders)
    assert (table.cases, table.unreferenced) == (["one", "two"], ("three",))


def test_the_maps_that_predict_writes_beside_a_case_are_not_taken_for_predictions(folders) -> None:
    write(folders[0] / "one_agreement.nii.gz", {1: 1})
    assert evaluate_folder(*folders).unreferenced == ()


def test_a_case_given_twice_is_refused(folders) -> None:
    write(folders[0] / "one.nrrd", {1: 1})
    with pytest.raises(InputError, match="two files are called one"):
        evaluate_folder(*folders)


def test_another_grid_is_refused_naming_both_files(folders) -> None:
    write(folders[0] / "two.nii.gz", {1: 1}, Grid.from_parts((4, 6, 8), (1.0, 1.0, 2.0), (0.5, 0, 0)))
    with pytest.raises(VolumeError) as caught:
        evaluate_folder(*folders)
    assert str(folders[0] / "two.nii.gz") in str(caught.value)
    assert str(folders[1] / "two.nii.gz") in str(caught.value)


def test_a_segmentation_of_slicer_on_a_part_of_the_scan_is_to_be_converted(tmp_path) -> None:
    write(tmp_path / "found" / "a.nii.gz", {1: 2})
    write(tmp_path / "drawn" / "a.seg.nrrd", {1: 2}, Grid.from_parts((4, 5, 6), (1, 1, 1)))
    with pytest.raises(VolumeError, match=r"grid of its reference.*atlasnet convert"):
        evaluate_folder(tmp_path / "found" / "a.nii.gz", tmp_path / "drawn" / "a.seg.nrrd")


def test_a_folder_that_is_absent_or_empty_is_refused(folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        evaluate_folder(tmp_path / "absent", folders[1])
    with pytest.raises(InputError, match="holds no image"):
        evaluate_folder(tmp_path / "empty", folders[1])


def test_a_cohort_in_place_of_its_references_is_told_where_they_lie(folders) -> None:
    predictions, references = folders
    with pytest.raises(InputError, match=f"holds no image.*give the folder of label maps there: {references}$"):
        evaluate_folder(predictions, references.parent)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_an_impossible_tolerance_is_refused(folders, tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        evaluate_folder(*folders, tolerance_mm=tolerance)


def test_the_summary_holds_mean_median_and_worst_subject_per_label_and_over_labels() -> None:
    rows = (
        row("p", "a", 0.9, 1.0),
        row("p", "b", 0.5, 4.0),
        row("q", "a", 0.6, 2.0),
        row("q", "b", 0.7, 3.0),
        row("r", "a", 0.3, 6.0),
        row("r", "b", 0.9, 2.0),
    )
    summary = Table({"a": 1, "b": 2}, rows).summary()
    assert summary["labels"]["a"]["dice"] == {
        "mean": pytest.approx(0.6),
        "median": 0.6,
        "worst": 0.3,
        "worst_case": "r",
        "undefined": 0,
    }
    assert summary["labels"]["b"]["hausdorff_mm"]["worst_case"] == "p"
    assert summary["mean_over_labels"]["dice"]["mean"] == pytest.approx((0.7 + 0.65 + 0.6) / 3)
    assert summary["mean_over_labels"]["dice"]["worst_case"] == "r"
    assert summary["mean_over_labels"]["hausdorff_mm"]["worst"] == pytest.approx(4.0)


def test_of_many_labels_each_has_a_row_the_lowest_first() -> None:
    names = [f"rib {n}" for n in range(1, 41)]
    rows = tuple(row(case, name, (n + k) / 50, 2.0) for n, name in enumerate(names) for k, case in enumerate("pq", 1))
    lines = Table({name: n for n, name in enumerate(names, 1)}, rows).text().split("\n\n")[0].splitlines()
    assert len(lines) == 42
    assert max(map(len, lines)) < 110
    assert lines[0].split()[:5] == ["subjects:", "2", "Dice", "median", "worst"]
    assert lines[1].split()[:6] == ["rib", "1", "0.030", "0.030", "0.020", "2.000"]
    assert lines[1].split()[-1] == "p"
    assert lines[40].startswith("rib 40 ")
    assert lines[41].split()[:6] == ["mean", "over", "labels", "0.420", "0.420", "0.410"]


def test_of_many_labels_those_that_were_missed_most_are_listed_and_the_lowest_told() -> None:
    names = [f"rib {n:02d}" for n in range(1, 41)]
    rows = tuple(
        replace(row(case, name, n / 50, None), presence="reference" if k <= n // 10 else "both")
        for n, name in enumerate(names)
        for k, case in enumerate("pqr", 1)
    )
    table = Table({name: n for n, name in enumerate(names, 1)}, rows)
    lines = table.text().split("\n\n")[2].splitlines()
    assert lines[0] == "rib 31, subjects: 3 missed"
    assert lines[10] == "rib 21, subjects: 1 found, 2 missed"
    assert lines[12:] == ["and 18 more labels that are not in both maps of all subjects"]
    assert repr(table).startswith(
        "Table(3 cases; mean Dice 0.390 over 40 labels, the lowest rib 01 0.000, rib 02 0.020, "
    )
    assert len(repr(table)) < 120


def test_a_table_without_a_row_has_no_means(tmp_path: Path) -> None:
    table = Table({"a": 1}, (), missing=("p",))
    assert table.summary()["mean_over_labels"]["dice"] == {
        "mean": None,
        "median": None,
        "worst": None,
        "worst_case": None,
        "undefined": 0,
    }
    assert "p" in table.text()
    table.write(tmp_path / "table.json")


def test_an_undefined_distance_is_left_out_of_the_mean_and_is_the_worst() -> None:
    rows = (row("p", "a", 0.9, 1.0), row("q", "a", 0.0, None), row("r", "a", 0.5, 5.0))
    entry = Table({"a": 1}, rows).summary()["labels"]["a"]["hausdorff_mm"]
    assert entry == {"mean": 3.0, "median": 3.0, "worst": None, "worst_case": "q", "undefined": 1}
    # Nor has a subject a mean over labels of which one has no distance.
    both = (*rows, row("p", "b", 0.9, 3.0), row("q", "b", 0.9, 3.0), row("r", "b", 0.9, 3.0))
    entry = Table({"a": 1, "b": 2}, both).summary()["mean_over_labels"]["hausdorff_mm"]
    assert entry == {"mean": 3.0, "median": 3.0, "worst": None, "worst_case": "q", "undefined": 1}


def test_the_files_hold_every_row_and_no_nan(folders, tmp_path: Path) -> None:
    write(folders[0] / "one.nii.gz", {1: 4})
    table = evaluate_folder(*folders, per_slice=True)
    table.write(tmp_path / "out" / "table.json")
    text = (tmp_path / "out" / "table.json").read_text()
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert content["rows"][1]["hausdorff_mm"] is None
    with open(tmp_path / "out" / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:3] == ["case", "label", "dice"]
    assert [(r["case"], r["label"], float(r["dice"])) for r in rows] == [(r.case, r.label, r.dice) for r in table.rows]
    assert rows[1]["hausdorff_mm"] == ""
    with open(tmp_path / "out" / "table.slices.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(table.slices) == 16


def test_the_slice_summary_is_over_each_subjects_mean(folders) -> None:
    table = evaluate_folder(*folders, per_slice=True)
    summary = table.slice_summary()
    assert summary is not None
    assert summary["labels"]["2"]["dice"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert summary["labels"]["2"]["hausdorff_px"]["worst"] == pytest.approx(4.0)


def test_slices_in_which_a_label_was_missed_are_counted_beside_the_distances(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array[:, 1, :3] = 1
    missed = array.copy()
    missed[1:] = 0  # all slices but one
    for name, values in (("reference", array), ("prediction", missed)):
        write_volume(tmp_path / name / "one.nii.gz", Volume(values[None], GRID))
    table = evaluate_folder(tmp_path / "prediction", tmp_path / "reference", per_slice=True)
    summary = table.slice_summary()
    assert summary is not None
    slices = GRID.shape[0]
    for block in (summary["labels"]["1"], summary["mean_over_labels"]):
        assert block["dice"]["mean"] == pytest.approx(1 / slices)
        assert block["dice"]["undefined_slices"] == 0
        assert block["hausdorff_mm"] | {"worst_case": ""} == {
            "mean": 0,
            "median": 0,
            "worst": 0,
            "worst_case": "",
            "undefined": 0,
            "undefined_slices": slices - 1,
        }
    assert f"({slices - 1} slices undefined)" in table.text()


def test_values_that_only_predictions_hold_are_named(folders) -> None:
    write(folders[0] / "one.nii.gz", {1: 4, 2: 2, 7: 3})
    reporter = SilentReporter()
    table = evaluate_folder(*folders, execution=Execution(reporter=reporter))
    assert set(table.labels) == {"1", "2"}
    (warning,) = reporter.warnings
    assert warning.endswith("not scored: 7")
    assert table.as_json()["unscored"] == [7]


def test_a_table_must_be_named_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.json"):
        Table({"a": 1}, (row("p", "a", 1.0, 0.0),)).write(tmp_path / "table.csv")


@pytest.mark.parametrize("values", [[0, 1, 2], [-5, 0, 300], [0, 2**30]])
def test_label_values_are_those_of_the_array(values: list[int]) -> None:
    array = np.random.default_rng(0).choice(values, size=(1, 5, 6, 7)).astype(np.int32)
    assert label_values(array) == set(np.unique(array).tolist())


def test_a_table_takes_the_place_of_a_table_only(folders, tmp_path: Path, capsys) -> None:
    words = ["evaluate", str(folders[0]), str(folders[1]), "-o"]
    record, page = tmp_path / "one.json", tmp_path / "one.html"
    record.write_text('{"verdict": {}}', encoding="utf-8")
    page.write_text("a page", encoding="utf-8")
    assert main([*words, str(record)]) == 2
    assert "would take the place of a file that is none" in capsys.readouterr().err
    assert (record.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")) == ('{"verdict": {}}', "a page")
    for _ in range(2):
        assert main([*words, str(tmp_path / "table.json")]) == 0
    for name, content in (("scores.csv", "a,b"), ("broken.json", "{")):
        other = tmp_path / name
        other.write_text(content, encoding="utf-8")
        assert main([*words, str(other.with_suffix(".json"))]) == 2
        assert other.read_text(encoding="utf-8") == content


def test_two_evaluations_do_not_write_one_table(folders, tmp_path: Path, capsys) -> None:
    words = ["evaluate", str(folders[0]), str(folders[1]), "-o", str(tmp_path / "table.json")]
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("table.*")}
    with made_alone(tmp_path / "table.json"):
        assert main([*words, "--per-slice", "--report"]) == 2
    assert "table.json: another process is making this" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("table.*")} == before


def test_what_a_killed_evaluation_had_begun_to_write_goes_with_the_next_one(folders, tmp_path: Path) -> None:
    for name in ("table.json", "table.csv", "table.slices.csv", "table.html"):
        begun = tmp_path / "new" / f".{name}.a1b2c3d4" / name
        begun.parent.mkdir(parents=True)
        begun.touch()
    assert main(["evaluate", str(folders[0]), str(folders[1]), "-o", str(tmp_path / "new" / "table.json")]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table.csv", "table.json"]

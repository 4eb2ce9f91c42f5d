"""What the pages of training, prediction, registration and evaluation show, against the records."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.evaluation import Table
from atlasnet.evaluation.scores import LabelScores
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.report import (
    PredictionReport,
    write_evaluation_report,
    write_training_report,
)
from atlasnet.training.model import Model
from atlasnet.training.registered import registered_pairs
from atlasnet.transform import Transform
from atlasnet.volume import read_labels, read_volume, write_labels, write_volume
from pages import check, picture, pixels
from synthetic import subject, write_cohort

pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), range(3))


@pytest.fixture(scope="module")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "m"
    options = ["--atlases", "2", "--width", "0.25", "--epochs", "1", "--registration", "affine", "--folds", "2"]
    assert main(["train", str(cohort), "-o", str(folder), "--quiet", "--report", *options]) == 0
    return folder


def test_training_shows_every_pair_the_worst_on_top(model: Path) -> None:
    found = check(model / "report.html")
    records = [json.loads(p.read_text(encoding="utf-8")) for p in (model / "work/registrations").glob("*/record.json")]
    rows = found.table("subject")
    assert len(rows) == 4
    qualities = [float(row["quality"]) for row in rows]
    assert qualities == sorted(qualities)
    assert {row["quality"] for row in rows} <= {f"{record['quality']:.3f}" for record in records}
    worst = f"{rows[0]['subject']} onto {rows[0]['atlas']}"
    assert found.text.index(worst) < found.text.index(f"{rows[1]['subject']} onto {rows[1]['atlas']}")
    assert sum("checkerboard" in image["alt"] for image in found.images) == 2 * len(rows)
    assert "1" in [row["which"] for row in found.table("what") if row["what"] == "epochs"]


def test_training_shows_the_qualities_of_the_pairs_without_the_atlas_itself(model: Path) -> None:
    found = check(model / "report.html")
    for row in found.table("atlas"):
        onto = [float(pair["quality"]) for pair in found.table("subject") if pair["atlas"] == row["atlas"]]
        assert len(onto) == 2
        expected = (min(onto), np.median(onto), max(onto))
        for key, value in zip(("lowest quality", "median", "highest"), expected, strict=True):
            assert float(row[key]) == pytest.approx(value, abs=1.1e-3)
        atlas = next(atlas for atlas in Model.load(model).atlases if atlas.name == row["atlas"])
        assert atlas.region is not None
        (z, y, x), spacing = np.subtract(atlas.region.stop, atlas.region.start), Model.load(model).plan.spacing
        lengths = [float(part) for part in row["network sees, mm"].split(" x ")]
        assert lengths == pytest.approx([n * mm for n, mm in zip((x, y, z), spacing, strict=True)], rel=6e-3)


def test_training_shows_the_loss_of_the_common_network_where_the_model_has_one(model: Path, tmp_path: Path) -> None:
    loaded = Model.load(model)
    names = [atlas.name for atlas in loaded.atlases]
    text = check(model / "report.html").text
    assert text.index("all atlases") < text.index(f"{names[0]}, tuned") < text.index(f"{names[1]}, tuned")
    earlier = replace(loaded, provenance=dict(loaded.provenance) | {"sharing": {"kind": "independent", "tuned": []}})
    without = Path(shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("work", "common")))
    for one in (earlier, Model.load(without)):
        text = check(write_training_report(tmp_path / "page.html", one, [])).text
        assert "all atlases" not in text
        assert "Loss" in text


def test_training_shows_the_scores_of_cross_validation(model: Path) -> None:
    scores = json.loads((model / "cross_validation/table.json").read_text(encoding="utf-8"))
    page = check(model / "report.html")
    rows = page.table("case")
    assert len(rows) == len(scores["rows"])
    over = json.loads((model / "cross_validation/cross_validation.json").read_text(encoding="utf-8"))["over_labels"]
    assert f"Mean Dice over the labels: {over['dice']:.3f}, worst tenth {over['worst_tenth']:.3f}." in page.text
    assert "With 3 subjects intervals are too narrow." in page.text
    assert float(rows[0]["Dice"]) == pytest.approx(min(row["dice"] for row in scores["rows"]), abs=6e-4)


def test_training_without_its_work_folder_still_has_a_page(model: Path, cohort: Path, tmp_path: Path) -> None:
    loaded = Model.load(model)
    pairs = registered_pairs(loaded, Cohort.read(cohort), tmp_path / "nothing")
    assert pairs == []
    found = check(write_training_report(tmp_path / "page.html", loaded, pairs))
    assert {row["atlas"] for row in found.table("atlas")} == {atlas.name for atlas in loaded.atlases}


def test_pairs_of_an_atlas_that_is_no_subject_are_found_by_its_file(cohort: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.nii.gz"
    write_volume(template, subject(77)[0])
    command = ["train", str(cohort), "-o", str(tmp_path / "m"), "--atlas", str(template), "--width", "0.25"]
    assert main([*command, "--epochs", "1", "--registration", "affine", "--report", "--quiet"]) == 0
    rows = check(tmp_path / "m/report.html").table("subject")
    assert {(row["subject"], row["atlas"]) for row in rows} == {(f"s{n}", "template") for n in range(3)}


def test_a_prediction_shows_what_its_record_says(model: Path, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["predict", str(cohort / "imagesTr"), "-m", str(model), "-o", str(out), "--report", "--quiet"]
    assert main(command) == 0
    record = json.loads((out / "s1.json").read_text(encoding="utf-8"))
    page = out / "s1_report.html"
    assert record["outputs"]["report"] == hashlib.sha256(page.read_bytes()).hexdigest()
    assert not (out / "s1_agreement.nii.gz").exists()
    found = check(page)
    assert {row["label"]: row["volume, ml"] for row in found.table("label")} == {
        name: f"{ml:.4g}" for name, ml in record["volumes_ml"].items()
    }
    atlases = {atlas["name"]: atlas for atlas in record["atlases"]}
    stages = [row["stage"] for row in found.table("stage")]
    assert stages[:2] == ["reading", "registration"]
    assert list(record["seconds"]) == [*stages, "report"]
    for row in found.table("atlas"):
        assert row["quality"] == f"{atlases[row['atlas']]['quality']:.3f}"
        assert row["least Jacobian"] == f"{atlases[row['atlas']]['jacobian_min']:.3f}"
    shown = [image for image in found.images if image.get("class") == "labels"]
    assert len(shown) == 3
    assert all(pixels(picture(image["src"])).any() for image in shown)
    batch = check(out / "report.html")
    assert {row["case"] for row in batch.table("case")} == {"s0", "s1", "s2"}
    agreements = [float(row["agreement"]) for row in batch.table("case")]
    assert agreements == sorted(agreements)
    before = page.stat().st_mtime_ns
    assert main(command) == 0
    assert page.stat().st_mtime_ns == before


def test_a_prediction_shows_verdict_estimate_and_spread_where_the_record_has_them(
    model: Path, cohort: Path, tmp_path: Path
) -> None:
    predictor = Predictor(Model.load(model))
    image = read_volume(cohort / "imagesTr" / "s0_0000.nii.gz")
    prediction = predictor.predict(image, PredictOptions(agreement=True))
    dice = {"value": 0.81, "error": 0.05}
    origin = dict.fromkeys("atlasnet torch numpy simpleitk python device threads seed model request".split(), "x")
    record = {
        **prediction.record,
        "verdict": {
            "result": "unusual",
            "reasons": ["too dark"],
            "evidence": {
                "intensity": {"value": 3.0, "limit": 1.5, "score": 2.0},
                "view": dict.fromkeys(("value", "limit", "score")),
            },
        },
        "volumes_of_atlases_ml": {name: {"minimum": 1.5, "maximum": 2.5} for name in ("shell", "core")},
        "estimated_dice": {"labels": {"shell": dice, "core": None}, "mean": None},
        "provenance": {**origin, "options": {}, "input_sha256": []},
        "uncovered_voxels": image.grid.voxels // 8,
    }
    PredictionReport(predictor)("s0", image, prediction, tmp_path / "page.html", record)
    found = check(tmp_path / "page.html")
    assert "the scan is unusual: too dark." in found.text
    assert found.table("evidence")[0] == {"evidence": "intensity", "value": "3", "limit": "1.5", "score": "2"}
    assert [row["estimated Dice"] for row in found.table("label")] == ["0.810 ± 0.050", ""]
    assert {row["range over single atlases, ml"] for row in found.table("label")} == {"1.5 to 2.5"}
    assert "Range over single atlases, ml: from the atlas that gives the least volume" in found.text
    assert "No atlas reached 12.5 % of the scan; it is background" in found.text


def test_a_prediction_into_a_file_has_its_page_beside_it(model: Path, cohort: Path, tmp_path: Path) -> None:
    scan = cohort / "imagesTr" / "s0_0000.nii.gz"
    assert main(["predict", str(scan), "-m", str(model), "-o", str(tmp_path / "x.nrrd"), "--report", "--quiet"]) == 0
    tables = {"x.label", "x.ctbl"}
    assert {path.name for path in tmp_path.iterdir()} == {"x.nrrd", "x.json", "x_report.html"} | tables


def test_a_registration_shows_what_its_record_says(cohort: Path, tmp_path: Path) -> None:
    scans = [str(cohort / "imagesTr" / f"s{n}_0000.nii.gz") for n in (0, 1)]
    assert main(["register", *scans, "-o", str(tmp_path), "--preset", "fast", "--report", "--quiet"]) == 0
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    found = check(tmp_path / "report.html")
    for row in found.table("metric"):
        assert row["after"] == f"{record['similarity_after'][row['metric']]:.3f}"
    for column, key in (("of the best labelling", "energy_best_labelling"), ("of the step", "energy_step")):
        assert [row[column] for row in found.table("level")] == [
            f"{level[key]:.5f}" if key in level else "" for level in record["levels"]
        ]
    assert sum("Jacobian" in image["alt"] for image in found.images) == 3
    assert read_volume(scans[1]).grid.shape[0] == len(
        json.loads(next(text for _, text in found.scripts if text.startswith('{"slices"')))["slices"]
    )


def test_a_registration_that_made_things_worse_is_warned_of(cohort: Path, tmp_path: Path) -> None:
    scan = str(cohort / "imagesTr" / "s0_0000.nii.gz")
    moved = np.eye(4)
    moved[0, 3] = 15.0
    Transform.affine(moved).save(tmp_path / "moved.safetensors")
    options = ["--transform", str(tmp_path / "moved.safetensors"), "--report", "--quiet"]
    assert main(["register", scan, scan, "-o", str(tmp_path / "out"), *options]) == 0
    assert "fell from" in check(tmp_path / "out/report.html").text


def test_an_image_onto_itself_is_warned_of_in_nothing(cohort: Path, tmp_path: Path) -> None:
    scan = str(cohort / "imagesTr" / "s0_0000.nii.gz")
    moved = np.eye(4)
    moved[0, 3] = 0.01  # a hundredth of a voxel or so, as an optimiser leaves
    Transform.affine(moved).save(tmp_path / "moved.safetensors")
    options = ["--transform", str(tmp_path / "moved.safetensors"), "--report", "--quiet"]
    assert main(["register", scan, scan, "-o", str(tmp_path / "out"), *options]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    falls = [record["similarity_before"][name] - after for name, after in record["similarity_after"].items()]
    assert max(falls) > 0.0005
    assert "fell from" not in check(tmp_path / "out" / "report.html").text


def test_an_evaluation_has_the_worst_case_on_top(model: Path, cohort: Path, tmp_path: Path) -> None:
    predictions = model / "cross_validation/predictions"
    table = tmp_path / "table.json"
    assert main(["evaluate", str(predictions), str(cohort / "labelsTr"), "-o", str(table), "--report", "--quiet"]) == 0
    scores = json.loads(table.read_text(encoding="utf-8"))["rows"]
    rows = check(tmp_path / "table.html").table("case")
    assert [float(row["Dice"]) for row in rows] == sorted(float(f"{row['dice']:.3f}") for row in scores)
    by_place = {(row["case"], row["label"]): row for row in scores}
    for row in rows:
        score = by_place[row["case"], row["label"]]
        assert row["sensitivity"] == f"{score['sensitivity']:.3f}"
        assert row["volume, ml"] == f"{score['volume_ml']:.4g}"


def test_few_cases_are_not_drawn(model: Path, tmp_path: Path) -> None:
    table = json.loads((model / "cross_validation/table.json").read_text(encoding="utf-8"))
    said = "Dice of every case"
    assert table["subjects"] == 3
    assert said in check(write_evaluation_report(tmp_path / "page.html", table)).text
    assert said not in check(write_evaluation_report(tmp_path / "page.html", table | {"subjects": 2})).text


def test_of_many_labels_each_has_a_row_and_the_lowest_are_drawn(tmp_path: Path) -> None:
    names = [f"rib {n:02d}" for n in range(1, 41)]
    rows = [
        LabelScores(case, name, (41 - n + k) / 50, 0.5, 0.5, 9.0, 8.0, 1.0, 0.5, 1.0, 1.0, "both")
        for n, name in enumerate(names, 1)
        for k, case in enumerate("pqr", 1)
    ]
    table = Table({name: n for n, name in enumerate(names, 1)}, tuple(rows)).as_json()
    page = write_evaluation_report(tmp_path / "page.html", table)
    summary = check(page).table("label")
    assert [row["label"] for row in summary] == ["mean over labels", *reversed(names)]
    assert summary[1] | {"Dice": "0.060", "median": "0.060", "worst": "0.040", "worst case": "p"} == summary[1]
    assert summary[1]["HD95, mm"] == "8.000"
    assert "the 12 of 40 labels with the lowest mean Dice" in check(page).text
    legend = page.read_text(encoding="utf-8").split("<svg")[1].split("</svg>")[0]
    assert [name for name in names if name in legend] == names[28:]
    few = check(write_evaluation_report(tmp_path / "few.html", Table({"rib 01": 1}, tuple(rows[:3])).as_json()))
    assert [row["score"] for row in few.table("label")][:2] == ["Dice", "sensitivity"]


def test_a_long_table_shows_the_lowest_rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads((model / "cross_validation/table.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("atlasnet.report.evaluation_page.MOST_ROWS", 2)
    found = check(write_evaluation_report(tmp_path / "page.html", table))
    lowest = sorted(row["dice"] for row in table["rows"])[:2]
    assert [row["Dice"] for row in found.table("case")] == [f"{dice:.3f}" for dice in lowest]
    assert f"The lowest 2 of {len(table['rows'])} are shown" in found.text


def test_a_hausdorff_distance_far_above_hd95_is_explained(model: Path, tmp_path: Path) -> None:
    table = json.loads((model / "cross_validation/table.json").read_text(encoding="utf-8"))
    rows = [row for row in table["rows"] if row["label"] == "core"]
    for figures in ([(21.0, 6.9), (30.0, 2.0), (None, None)], [(21.0, 7.1), (19.0, 1.0), (None, None)]):
        for row, (farthest, most) in zip(rows, figures, strict=True):
            row |= {"hausdorff_mm": farthest, "hd95_mm": most}
        text = check(write_evaluation_report(tmp_path / "page.html", table)).text
        assert ("(core in 2 cases): stray islands" in text) == ("--largest-component" in text) == (figures[0][1] < 7)


def test_of_many_labels_that_were_missed_or_have_islands_the_most_frequent_are_named(tmp_path: Path) -> None:
    names = [f"rib {n:02d}" for n in range(1, 41)]
    rows = tuple(
        LabelScores(
            case, name, 0.5, 0.5, 0.5, 90.0, 8.0, 1.0, 0.5, 1.0, 1.0, "reference" if name == "rib 40" else "both"
        )
        for n, name in enumerate(names, 1)
        for case in "pqr"[: 1 + n % 3]
    )
    table = Table({name: n for n, name in enumerate(names, 1)}, rows).as_json()
    found = check(write_evaluation_report(tmp_path / "page.html", table))
    assert "3 times HD95 (rib 02 in 3 cases, rib 05 in 3 cases, " in found.text
    assert "rib 35 in 3 cases and 28 more): stray islands" in found.text
    first = found.tables[1]
    assert (first[0][:3], first[1][:3]) == (["label", "found", "missed"], ["rib 40", "0", "2"])


def test_a_missing_prediction_is_warned_of_first(model: Path, cohort: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "p"
    predictions.mkdir()
    labels = read_labels(model / "cross_validation/predictions/s0.nii.gz")
    labels.array[0, 0, 0, 0] = 77
    write_labels(predictions / "s0.nii.gz", labels)
    arguments = ["evaluate", str(predictions), str(cohort / "labelsTr"), "-o", str(tmp_path / "t.json")]
    assert main([*arguments, "--allow-missing", "--report", "--quiet"]) == 0
    text = check(tmp_path / "t.html").text
    assert text.index("No prediction for s1") < text.index("not scored: 77") < text.index("Summary")

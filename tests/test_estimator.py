"""`AtlasNet` as a notebook uses it: what the command line can do, in one object, and what it prints."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atlasnet
from atlasnet.cohort import Cohort, check_cohort, take_fingerprint, with_masks
from atlasnet.errors import CohortError, InputError, ModelError, VolumeError
from atlasnet.execution import Execution, SilentReporter, read_json
from atlasnet.prediction import Prediction, PredictOptions
from atlasnet.training.recipe import Recipe
from atlasnet.transform import Transform
from atlasnet.volume import read_volume, write_labels
from pages import check
from synthetic import write_cohort

RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
ONE = Execution(threads=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(3)))


@pytest.fixture(scope="module")
def net(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> atlasnet.AtlasNet:
    """Fitted and cross-validated, the models of its folds kept."""
    made = atlasnet.AtlasNet(atlases=2, width=0.25, preset=RECIPE, registration="centre", execution=ONE)
    return made.fit(cohort, tmp_path_factory.mktemp("model") / "m", folds=True, ensemble=True)


def folder(net: atlasnet.AtlasNet) -> Path:
    assert net.model is not None
    return net.model.folder


def test_folds_are_cross_validated_and_kept_to_segment_together(net: atlasnet.AtlasNet, cohort: Cohort) -> None:
    assert net.cross_validation is not None
    assert sorted(net.cross_validation.folds) == [("s0",), ("s1",), ("s2",)]
    assert net.cross_validation.table.cases == ["s0", "s1", "s2"]
    assert repr(net.cross_validation).startswith("CrossValidation(3 folds, Table(3 cases; mean Dice shell 0.")
    together = atlasnet.AtlasNet.load(folder(net) / "cross_validation", execution=ONE)
    assert repr(together) == "AtlasNet(Ensemble(fold_1, fold_2, fold_3))"
    assert len(together.predict(cohort["s0"].images[0]).record["atlases"]) == 3 * 2


def test_folds_that_cannot_be_used_are_refused_before_any_training(cohort: Cohort, tmp_path: Path) -> None:
    net = atlasnet.AtlasNet(atlases=1, preset=RECIPE, registration="affine", execution=ONE)
    with pytest.raises(InputError, match="folds"):
        net.fit(cohort, tmp_path / "m", folds=9)
    with pytest.raises(InputError, match=r"no list of names; .*found s0, s1"):
        net.fit(cohort, tmp_path / "m", folds=["s0", "s1"])
    with pytest.raises(InputError, match="ask for folds"):
        net.fit(cohort, tmp_path / "m", ensemble=True)
    with pytest.raises(ModelError, match="call fit"):
        net.report()
    assert not (tmp_path / "m").exists()


def test_the_page_of_the_training_has_registrations_and_cross_validation(net: atlasnet.AtlasNet) -> None:
    page = check(net.report())
    assert "in 3 folds" in page.text
    assert len(page.table("subject")) == 4
    loaded = atlasnet.AtlasNet.load(folder(net)).report(folder(net) / "again.html")
    assert "does not hold them any more" in check(loaded).text


def test_scans_are_segmented_into_a_folder_with_records_and_pages(
    net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path
) -> None:
    batch = net.predict_all(cohort.root / "imagesTr", tmp_path / "out", report=True, agreement=True)
    assert repr(batch) == "Batch(3 cases: 3 segmented)"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"s{n}{suffix}" for n in range(3) for suffix in (".nii.gz", ".json", "_report.html")),
        *(f"s{n}_{name}.nii.gz" for n in range(3) for name in ("agreement", "entropy")),
        *("report.html", "labels.label", "labels.ctbl"),
    }
    alone = net.predict(cohort["s1"].images[0])
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "s1.nii.gz").array, alone.labels.array)
    again = net.predict_all(cohort.root / "imagesTr", tmp_path / "out", agreement=True)
    assert repr(again) == "Batch(3 cases: 3 kept as they were)"
    assert (tmp_path / "out" / "report.html").exists()  # of these very results
    net.predict_all(cohort.root / "imagesTr", tmp_path / "out", agreement=True, overwrite=True)
    assert not (tmp_path / "out" / "report.html").exists()
    with pytest.raises(InputError, match="the images of a cohort's scans are known"):
        net.predict_all(cohort, tmp_path / "out", series="1")


def test_a_test_cohort_is_scored_with_its_table(net: atlasnet.AtlasNet, tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "test", range(7, 10)))
    table = net.evaluate(cohort.select(["s9", "s7"]), tmp_path / "scored", report=True)
    assert table.cases == ["s9", "s7"]
    assert read_json(tmp_path / "scored" / "table.json") == table.as_json()
    folded = atlasnet.evaluate(tmp_path / "scored", cohort.root / "labelsTr", allow_missing=True)
    assert {(row.case, row.label): row.dice for row in folded.rows} == {
        (row.case, row.label): row.dice for row in table.rows
    }
    assert {"table.csv", "table.html", "s7_report.html"} <= {path.name for path in (tmp_path / "scored").iterdir()}
    with pytest.raises(CohortError, match="not the labels of the model"):
        net.evaluate(replace(cohort, labels={"background": 0, "core": 2}), tmp_path / "other")


def test_of_a_folder_with_test_scans_these_are_scored(net: atlasnet.AtlasNet, tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "data", range(7, 9))
    for part in ("images", "labels"):
        (root / f"{part}Tr").rename(root / f"{part}Ts")
    write_cohort(root, range(3))
    assert net.evaluate(root, tmp_path / "scored").cases == ["s7", "s8"]


def test_what_is_no_result_of_the_model_is_not_scored(net: atlasnet.AtlasNet, tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "test", range(7, 9)))
    net.evaluate(cohort, tmp_path / "scored")
    (tmp_path / "scored" / "s7.nii.gz").write_bytes(cohort["s7"].labels.read_bytes())
    table = net.evaluate(cohort, tmp_path / "scored")
    assert (table.cases, table.missing) == (["s8"], ("s7",))
    with pytest.raises(InputError, match="result"):  # each of them would be scored against itself
        net.evaluate(cohort, cohort.root / "labelsTr")
    assert not (cohort.root / "labelsTr" / "table.json").exists()


def test_scores_are_those_within_organ_masks(net: atlasnet.AtlasNet, tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "test", range(7, 8)))
    half = cohort["s7"].read_labels()
    mask = np.ones_like(half.array)
    mask[:, : mask.shape[1] // 2] = 0
    write_labels(tmp_path / "masks" / "s7.nii.gz", half.replace(mask))
    table = net.evaluate(cohort, tmp_path / "scored", masks=tmp_path / "masks")
    assert table.organ_mask
    assert table == net.evaluate(with_masks(cohort, tmp_path / "masks"), tmp_path / "again")


def test_scans_that_a_model_before_the_update_was_trained_on_are_not_evaluated(
    net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path
) -> None:
    newer = Cohort.read(write_cohort(tmp_path / "new", range(1, 5)))
    updated = atlasnet.AtlasNet(preset=RECIPE, execution=ONE)
    updated.fit(newer.select(["s1", "s2", "s3"]), tmp_path / "m", update=net.model)
    twice = atlasnet.AtlasNet(preset=RECIPE, execution=ONE)
    twice.fit(newer.select(["s2", "s3", "s4"]), tmp_path / "n", update=updated.model)
    for model, gone in ((updated, "s0"), (twice, "s0"), (twice, "s1")):
        with pytest.raises(InputError, match=rf"were trained on; found {gone}"):
            model.evaluate(cohort.select([gone]), tmp_path / "scored")


def test_scans_that_were_trained_on_are_not_evaluated(net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"were trained on; found s1; .*Cohort\.select"):
        net.evaluate(cohort.select(["s1"]), tmp_path / "scored")
    assert not (tmp_path / "scored").exists()


def warned(prediction: Prediction, *warnings: str) -> Prediction:
    return replace(prediction, record=prediction.record | {"warnings": [*warnings]})


def test_an_option_that_there_is_not_is_answered_with_those_that_there_are(
    net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected fusion, probabilities, agreement, .*found probability"):
        net.predict(cohort["s0"].images[0], probability=True)
    with pytest.raises(InputError, match="found agreements"):
        net.predict_all(cohort, tmp_path / "out", agreements=True)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_ask_for_the_same_as_pythons() -> None:
    given = {"atlases": np.int64(2), "width": np.float32(0.25), "epochs": np.int64(3), "spacing": np.array([2, 2, 3.5])}
    wanted = {"atlases": 2, "width": 0.25, "epochs": 3, "spacing": [2.0, 2.0, 3.5]}
    asked = [json.dumps(asdict(atlasnet.AtlasNet(**options).options)) for options in (given, wanted)]
    assert asked[0] == asked[1]
    assert json.loads(json.dumps(asdict(PredictOptions(minimum_size_ml=np.float32(0.25)))))["minimum_size_ml"] == 0.25


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 1.0}, "epochs must be a whole number"),
        ({"time_budget": "30m"}, r"30 \* 60"),
        ({"atlases": 2.0}, "2.0"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_any_work(
    option: dict[str, Any], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        atlasnet.AtlasNet(**option).fit(cohort, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_results_that_cannot_be_written_are_refused_before_any_work(
    net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"s0nii: no such image can be written; expected \.nii\.gz"):
        net.predict_all(cohort, tmp_path / "out", suffix="nii")
    with pytest.raises(InputError, match="file: the folder of the results cannot be made"):
        net.predict_all(cohort, tmp_path / "file")
    with pytest.raises(InputError, match=r"s0\.nii\.gz: this is the name of a file"):
        net.predict_all(cohort.select(["s0"]), tmp_path / "s0.nii.gz")
    with pytest.raises(InputError, match="no scan is given"):
        net.predict_all([], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_batch_says_why_a_case_failed_and_takes_any_iterable(
    net: atlasnet.AtlasNet, cohort: Cohort, tmp_path: Path
) -> None:
    for name in ("bad.nii.gz", "stray.txt"):
        (tmp_path / name).write_text("x")
    heard = SilentReporter()
    told = atlasnet.AtlasNet.load(folder(net), execution=replace(ONE, reporter=heard))
    scans = (cohort["s0"].images[0], *(tmp_path / name for name in ("bad.nii.gz", "stray.txt")))
    batch = told.predict_all((scan for scan in scans), tmp_path / "out")
    assert repr(batch).startswith(f"Batch(2 cases: 1 segmented, 1 failed; bad: {tmp_path / 'bad.nii.gz'}: the file is")
    assert any("stray.txt" in warning for warning in heard.warnings)


def test_an_array_is_no_scan_and_a_folder_is_not_one(net: atlasnet.AtlasNet, cohort: Cohort) -> None:
    scan = cohort.subjects[0].read_image()
    with pytest.raises(VolumeError, match=r"the image is not given as a Volume.*read_volume reads a file"):
        net.predict(scan.array)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(VolumeError, match="the mask is not given as a Volume"):
        net.predict(scan, mask=scan.array > 0)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InputError, match="predict_all"):
        net.predict(cohort.root / "imagesTr")


def test_what_a_notebook_prints_is_short_and_tells_what_it_is(net: atlasnet.AtlasNet, cohort: Cohort) -> None:
    image = cohort["s0"].read_image()
    prediction = net.predict(image)
    result = atlasnet.register(image, cohort["s1"].read_image(), operator="affine", execution=ONE)
    said = prediction.summary()
    assert repr(prediction.labels) == f"Volume(1 x uint8, {image.grid!r})"
    printed = {
        "AtlasNet(atlases=3, epochs=2, not trained)": atlasnet.AtlasNet(atlases=3, epochs=2),
        f"AtlasNet(Model({folder(net)}: 2 atlases, unet, labels shell, core, channels MR, 3 training subjects))": net,
        f"Prediction({said}; labels {prediction.labels!r})": warned(prediction),
        f"Prediction({said}; 1 warning in its record; labels {prediction.labels!r})": warned(prediction, "unusual"),
        "Subject(s0, 1 channel, with reference)": cohort["s0"],
        "Cohort(3 subjects, nnU-Net layout, channels MR, labels background=0, shell=2, core=4)": cohort,
        f"CheckReport(0 errors, 0 warnings; {cohort!r})": check_cohort(cohort.root),
        "Fingerprint(3 subjects, channels MR, median spacing 2 x 2 x 3.5 mm)": take_fingerprint(cohort),
        "Transform(AffineMap(offset (0.0, 0.0, 0.0) mm, scales volume by 1), inverse within 0 mm)": (
            Transform.identity()
        ),
        "Execution(device='cpu', threads=1, seed=0, check_memory=True)": ONE,
    }
    for expected, value in printed.items():
        assert repr(value) == expected
    assert repr(result).startswith("Registration(affine, quality 0.")
    assert len(repr(result)) < 120

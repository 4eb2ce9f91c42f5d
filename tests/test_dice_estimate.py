"""The estimate of a result's Dice: a line through subjects that were segmented unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from atlasnet import AtlasNet
from atlasnet.cohort import Cohort
from atlasnet.evaluation import Table
from atlasnet.execution import Execution, SilentReporter
from atlasnet.prediction import Predictor
from atlasnet.study import CrossValidation, keep_learnt
from atlasnet.training.estimate import FEATURES, DiceEstimate, Line, features, fit_estimate
from atlasnet.training.fit import fit
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import write_volume
from pages import check
from synthetic import LABELS, subject, write_cohort

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)


class Notes(SilentReporter):
    """Keeps notes too."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def record(fit: float, expected: float) -> dict[str, Any]:
    """The parts of a run record that count, of two atlases, one that found nothing and one that was not asked."""
    return {
        "agreement": {"expected_dice": expected, "entropy": {"a": 0.3, "b": None}},
        "atlases": [
            {"fit": fit - 0.1, "used": True},
            {"fit": fit + 0.1, "used": True},
            {"fit": None, "used": True},
            {"used": False},
        ],
    }


def planted(
    count: int, noise: float, of_expected: float = 0.4
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float | None]]]:
    """Subjects whose Dice is 0.1 + 0.4 fit + ``of_expected`` times the expected one, and noise."""
    random = np.random.default_rng(3)
    found = random.uniform(0.3, 0.8, (count, 2))
    dice = 0.1 + found @ [0.4, of_expected] + random.normal(0, noise, count)
    records = {f"s{i}": record(*found[i].tolist()) for i in range(count)}
    return records, {"a": {f"s{i}": float(dice[i]) for i in range(count)}, "b": dict.fromkeys(records)}


def test_a_planted_line_is_found() -> None:
    estimate = fit_estimate(*planted(400, 0.02))
    assert estimate is not None
    assert set(estimate.lines) == {"a"}  # of b nobody knows anything
    line = estimate.lines["a"]
    assert line.weights == pytest.approx((0.4, 0.4), abs=0.03)
    assert line.subjects == 400
    assert line.error == pytest.approx(0.02, rel=0.1)


def test_the_slope_is_that_of_simple_regression_on_the_mean_of_the_features_in_units_of_their_spread() -> None:
    records, dice = planted(30, 0.05, of_expected=0.1)
    estimate = fit_estimate(records, dice)
    assert estimate is not None
    x = np.array([features(record, "a") for record in records.values()])
    evidence = stats.zscore(x).mean(1)
    slope = stats.linregress(evidence, list(dice["a"].values())).slope
    assert estimate.lines["a"].weights == pytest.approx(slope / 2 / x.std(0))


def test_no_estimate_falls_where_evidence_is_better() -> None:
    estimate = fit_estimate(*planted(400, 0.02, of_expected=-0.9))
    assert estimate is not None
    assert estimate.lines["a"].weights == (0.0, 0.0)


def test_a_feature_that_never_differs_says_nothing() -> None:
    records, dice = planted(30, 0.0, of_expected=0.0)
    for one in records.values():
        one["agreement"]["expected_dice"] = 0.9
    estimate = fit_estimate(records, dice)
    assert estimate is not None
    assert estimate.lines["a"].weights == pytest.approx((0.4, 0.0), abs=1e-6)


def test_the_error_is_that_of_subjects_left_out() -> None:
    records, dice = planted(9, 0.02)
    estimate = fit_estimate(records, dice)
    assert estimate is not None
    errors = []
    for name in records:
        rest = {other: value for other, value in dice["a"].items() if other != name}
        without = fit_estimate(records, {"a": rest})
        assert without is not None
        value = without.of(records[name])["labels"]["a"]["value"]
        errors.append(value - float(dice["a"][name] or 0))
    assert estimate.lines["a"].error == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=2e-4)
    assert estimate.mean_error == pytest.approx(estimate.lines["a"].error)


@pytest.mark.parametrize(("both", "together"), [(0, True), (1, True), (7, True), (8, False)])
def test_the_error_of_the_mean_is_of_subjects_that_have_all_labels_where_these_are_not_few(
    both: int, together: bool
) -> None:
    records, dice = planted(24, 0.05)
    for one in records.values():
        one["agreement"]["entropy"]["b"] = 0.3
    names, random = list(records), np.random.default_rng(4)
    middle = (len(names) + both) // 2
    of_a = {name: dice["a"][name] for name in names[:middle]}
    of_b = {name: 0.5 + 0.2 * float(random.normal()) for name in names[middle - both :]}
    estimate = fit_estimate(records, {"a": of_a, "b": of_b})
    assert estimate is not None
    mean = np.mean([line.error for line in estimate.lines.values()])
    assert (estimate.mean_error == pytest.approx(mean)) == together


def test_few_subjects_give_no_estimate() -> None:
    assert fit_estimate(*planted(7, 0.01)) is None
    assert fit_estimate(*planted(8, 0.01)) is not None


def test_an_estimate_is_a_dice_and_has_none_for_what_was_not_found() -> None:
    line = Line((10.0, 0.0), (0.5, 0.5), 0.7, 0.05, 9)
    estimate = DiceEstimate({"a": line, "b": line}, 0.04)
    found = estimate.of(record(0.9, 0.5))
    assert found == {"labels": {"a": {"value": 1.0, "error": 0.05}, "b": None}, "mean": None}
    both = DiceEstimate({"a": line, "b": line}, 0.04)
    everything = record(0.51, 0.5)
    everything["agreement"]["entropy"]["b"] = 0.1
    assert both.of(everything)["mean"] == {"value": 0.8, "error": 0.04}
    # The mean over a label without a line is not known, however sure the others are.
    assert DiceEstimate({"a": line}, 0.04).of(everything)["mean"] is None


def test_it_is_read_back_as_it_was_written() -> None:
    estimate = fit_estimate(*planted(12, 0.02))
    assert estimate is not None
    written = json.loads(json.dumps(estimate.to_json()))
    assert DiceEstimate.from_json(written) == estimate
    assert list(estimate.to_json()["labels"]["a"]["weights"]) == list(FEATURES)


def test_one_that_rests_on_what_records_no_longer_hold_is_none() -> None:
    estimate = fit_estimate(*planted(12, 0.02))
    assert estimate is not None
    earlier = estimate.to_json()
    line = earlier["labels"]["a"]
    line["weights"] = line["centre"] = {"agreement": 0.4, "certainty": 0.2, "quality": 0.1}
    assert DiceEstimate.from_json(earlier) is None


def test_a_model_keeps_it_and_predictions_have_it(tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "cohort", range(2)))
    options = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="affine")
    model = fit(cohort, tmp_path / "m", options, execution=ONE)
    image = subject(200)[0]
    before = Predictor(model, execution=ONE).predict(image).record
    assert before["estimated_dice"] is None
    line = Line((0.4, 0.2), (0.5, 0.5), 0.6, 0.05, 9)
    table = Table(labels={"core": 4, "shell": 2}, rows=(), ignore_label=None, missing=())
    found = CrossValidation((), table, {}, DiceEstimate({"core": line, "shell": line}, 0.04))
    kept = keep_learnt(model, found)
    assert kept.dice_estimate == found.estimate
    assert kept.checksums == model.checksums
    assert fit(cohort, tmp_path / "m", options, execution=ONE).dice_estimate == found.estimate
    after = Predictor(kept, execution=ONE).predict(image).record
    assert after["volumes_ml"]["shell"] > 0
    fit_there = np.mean([atlas["fit"] for atlas in after["atlases"]])
    expected = 0.6 + 0.4 * (fit_there - 0.5) + 0.2 * (after["agreement"]["expected_dice"] - 0.5)
    value = after["estimated_dice"]["labels"]["shell"]
    assert value == {"value": pytest.approx(np.clip(expected, 0, 1), abs=1e-4), "error": 0.05}


def test_the_estimate_stands_in_the_line_of_a_case_and_in_the_page_of_many(tmp_path: Path) -> None:
    options = FitOptions(atlases=1, width=0.25, preset=replace(RECIPE, iterations=60), operator="affine")
    model = fit(Cohort.read(write_cohort(tmp_path / "data", range(2))), tmp_path / "m", options, execution=ONE)
    scans = [tmp_path / "in" / f"c{number}.nii.gz" for number in (20, 21)]
    for number, path in zip((20, 21), scans, strict=True):
        write_volume(path, subject(number)[0])
    pages = {}
    for name, error in (("without", None), ("with", 0.05)):
        line = Line((0.0, 0.0), (0.0, 0.0), 0.8, 0.04, 9)
        lines = dict.fromkeys((label for label, value in LABELS.items() if value), line)
        learnt = replace(model, dice_estimate=None if error is None else DiceEstimate(lines, error))
        learnt.save()
        net = AtlasNet.load(model.folder, execution=replace(ONE, reporter=(told := Notes())))
        net.predict_all(scans, tmp_path / name, report=True)
        said = [note for note in told.notes if note.startswith("c20: ")]
        assert [note.endswith("; estimated Dice 0.800 ± 0.050") for note in said] == [error is not None]
        pages[name] = check(tmp_path / name / "report.html").text
    assert pages["with"].count("0.800 ± 0.050") == 2
    assert "estimated Dice, mean" in pages["with"]
    assert "estimated Dice" not in pages["without"]

"""What a method's confidence is worth: calibration and Dice over coverage, against loops and known cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atlasnet.prediction import Prediction
from atlasnet.study.certainty import describe
from atlasnet.study.confidence import (
    BINS,
    MEASURES,
    STEPS,
    agreement_minus_certainty,
    calibration,
    calibration_counts,
    confidence,
    coverage,
)
from atlasnet.study.methods import METHOD
from atlasnet.study.records import CaseResult, Run
from atlasnet.volume import Grid, Volume

RANDOM = np.random.default_rng(0)


def test_the_calibration_error_is_that_of_a_loop_over_the_bins() -> None:
    probability = RANDOM.random((3, 400))
    right = RANDOM.random((3, 400)) < probability**2
    found = calibration([calibration_counts(p, r) for p, r in zip(probability, right, strict=True)])
    assert found is not None
    every, truth, error = probability.ravel(), right.ravel(), 0.0
    for number in range(BINS):
        inside = (every >= number / BINS) & (every < (number + 1) / BINS)
        error += inside.mean() * abs(every[inside].mean() - truth[inside].mean())
        point = found["points"][number]
        assert point["accuracy"] == pytest.approx(truth[inside].mean())
        assert point["confidence"] == pytest.approx(every[inside].mean(), abs=1e-3)
        assert point["share"] == pytest.approx(inside.mean())
    assert found["error"] == pytest.approx(error, abs=1e-3)


def test_probabilities_that_hold_are_calibrated_and_others_are_not() -> None:
    probability = RANDOM.random(200_000)
    honest = calibration([calibration_counts(probability, RANDOM.random(200_000) < probability)])
    boasting = calibration([calibration_counts(np.ones(1000), np.arange(1000) < 700)])
    assert honest is not None
    assert boasting is not None
    assert honest["error"] < 0.01
    assert boasting["error"] == pytest.approx(0.3)
    assert boasting["points"] == [{"confidence": 1.0, "accuracy": 0.7, "share": 1.0}]


def test_nothing_has_no_calibration() -> None:
    assert calibration([]) is None
    assert calibration([calibration_counts(np.empty(0), np.empty(0, dtype=np.bool_))]) is None


@pytest.mark.parametrize("atlases", [1, 2])
def test_what_is_said_of_voxels_is_that_of_a_loop_over_those_of_which_the_truth_is_known(atlases: int) -> None:
    grid = Grid.from_parts((5, 6, 7))
    found, truth = RANDOM.integers(0, 4, (2, *grid.shape)).astype(np.uint8)
    truth[:, 0] = 9  # nobody looked
    organ = (RANDOM.random(grid.shape) < 0.8).astype(np.uint8)
    hidden = ((2, 1), (3, 0))  # 2 would be a part of what is called 1, 3 of the background
    entropy, share, sure = RANDOM.integers(1, 9, (3, *grid.shape)).astype(np.float32) / 10
    record = {
        "seconds": {"fusion": 1.5, "total": 60.0},
        "atlases": [*[{"seconds": 2.0, "seconds_network": 0.25}] * atlases, {"seconds": 30.0}],
        "agreement": {"foreground": 0.8, "expected_dice": 0.7},
    }
    volumes = {
        name: Volume(of, grid) for name, of in (("agreement", share), ("entropy", entropy), ("confidence", sure))
    }
    said = describe(
        Prediction(Volume(found, grid), record, **volumes), Volume(truth, grid), 9, Volume(organ, grid), hidden
    )
    wrong, right = [], []
    for place in np.ndindex(*grid.shape):
        is_found, is_true = int(found[place]), int(truth[place])
        unknown = is_true == 9 or (is_found, is_true) in ((2, 1), (1, 1), (3, 0))
        if organ[place] and not unknown and (is_found or is_true):
            (right if is_found == is_true else wrong).append(place)
    scores = {"error_auc_entropy": entropy, "error_auc_agreement": 1 - share}
    for name, score in scores.items():
        groups = [[score[place] for place in places] for places in (wrong, right)]
        area = stats.mannwhitneyu(*groups).statistic / (len(wrong) * len(right))
        alone = atlases == 1 and name == "error_auc_agreement"  # one network agrees with itself
        assert said[name] == (None if alone else pytest.approx(area, abs=1e-6))
    assert sum(said["calibration"]["voxels"]) == len(wrong) + len(right)
    assert sum(said["calibration"]["right"]) == len(right)
    assert sum(said["calibration"]["confidence"]) == pytest.approx(sum(sure[place] for place in (*wrong, *right)))
    assert said["certainty"] == pytest.approx(1 - entropy[found > 0].mean(), abs=1e-6)
    assert (said["expected_dice"], said["agreement"]) == (0.7, None if atlases == 1 else 0.8)
    assert said["seconds"] == 1.5 + 2.25 * atlases  # of the atlases that were asked


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=70))
def test_dice_over_the_coverage_ends_at_the_mean(pairs: list[tuple[float, float]]) -> None:
    dice = {str(i): value for i, (_, value) in enumerate(pairs)}
    points = coverage({str(i): value for i, (value, _) in enumerate(pairs)}, dice)
    shares = [point["coverage"] for point in points]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert len(shares) <= STEPS
    assert points[-1]["dice"] == pytest.approx(np.mean(list(dice.values())))
    surest = max(range(len(pairs)), key=lambda i: pairs[i][0])
    if [value for value, _ in pairs].count(pairs[surest][0]) == 1 and len(pairs) <= 29:
        assert points[0]["dice"] == pairs[surest][1]


def test_who_knows_his_failures_gains_with_every_one_that_is_put_aside() -> None:
    dice = {f"s{i}": float(value) for i, value in enumerate(RANDOM.random(40))}
    known = [point["dice"] for point in coverage(dice, dice)]
    assert known == sorted(known, reverse=True)
    blind = [point["dice"] for point in coverage(dict.fromkeys(dice, 0.5), dice)]
    assert known[0] > blind[0]
    assert known[-1] == pytest.approx(blind[-1])


def test_results_of_before_there_was_a_measure_have_none_of_it() -> None:
    run = Run(METHOD["atlasnet"], 1.0, 0, 2)
    results = [
        CaseResult(run, f"s{i}", (), {"certainty": 0.1 * i, "agreement": 1.0, "error_auc_entropy": 0.5})
        for i in range(6)
    ]
    found = confidence(results, {f"s{i}": 0.1 * i for i in range(6)}, networks=2)
    assert found["certainty"]["spearman"] == pytest.approx(1)
    assert found["expected_dice"] is None
    assert found["expected_dice_coverage"] == []
    assert found["calibration"] is None
    assert found["error_auc_entropy"] == 0.5
    assert all(f"{measure}_of_subjects" in found for measure in MEASURES)


def of_details(details: Sequence[dict[str, Any]], name: str, networks: int) -> dict[str, Any]:
    run = Run(METHOD[name], 1.0, 0, METHOD[name].atlases(networks))
    results = [CaseResult(run, f"s{i}", (), one) for i, one in enumerate(details)]
    return confidence(results, {f"s{i}": 0.1 * i for i in range(len(details))}, networks=run.networks(networks))


def test_a_single_network_agrees_with_nobody() -> None:
    """Results of before have its agreement with itself, 1 but for the rounding."""
    details = [
        {"certainty": 0.1 * i, "agreement": 1 - 1e-7 * i, "expected_dice": 0.5, "error_auc_agreement": 0.6}
        for i in range(8)
    ]
    for name in ("plain", "augmented-long"):
        found = of_details(details, name, 6)
        assert (found["agreement"], found["agreement_of_subjects"], found["error_auc_agreement"]) == (None, {}, None)
        assert found["certainty"]["spearman"] == pytest.approx(1)
    assert of_details(details, "atlasnet", 1)["agreement"] is None
    assert of_details(details, "ensemble", 3)["agreement"]["spearman"] == pytest.approx(-1)
    assert of_details(details, "propagation", 3)["agreement"] is None


def test_a_scan_onto_which_one_atlas_fits_has_no_agreement_and_is_not_the_least_sure() -> None:
    details = [{"certainty": 0.5, "agreement": 0.1 * i, "expected_dice": 0.1 * i} for i in range(8)]
    details[3] |= {"agreement": None}
    details[0] = dict.fromkeys(MEASURES)  # nothing was found
    found = of_details(details, "atlasnet", 3)
    assert sorted(found["agreement_of_subjects"]) == [f"s{i}" for i in range(8) if i != 3]
    assert found["agreement_of_subjects"]["s0"] == 0
    assert len(found["certainty_of_subjects"]) == 8


def test_what_one_seed_does_not_say_of_a_subject_has_no_mean_over_the_others() -> None:
    runs = [Run(METHOD["plain"], 1.0, seed) for seed in range(2)]
    said = [{"certainty": 0.1 * number} for number in range(5)]
    results = [CaseResult(run, f"s{i}", (), one) for run in runs for i, one in enumerate(said)]
    results[7] = replace(results[7], details={})
    found = confidence(results, {f"s{i}": 0.1 * i for i in range(5)}, networks=1)
    assert sorted(found["certainty_of_subjects"]) == ["s0", "s1", "s3", "s4"]


def test_agreement_is_compared_with_the_certainty_of_another_over_the_subjects_of_both() -> None:
    ours = of_details([{"agreement": 0.1 * i, "certainty": 0.5, "expected_dice": 0.5} for i in range(9)], "atlasnet", 2)
    theirs = of_details([{"certainty": -0.1 * i} for i in range(8)], "plain", 2)
    dice = {f"s{i}": 0.1 * i for i in range(9)}
    found = agreement_minus_certainty(ours, theirs, (dice, dice))
    assert found is not None
    assert (found["spearman"], found["subjects"]) == (pytest.approx(2), 8)
    assert found["interval"] == (pytest.approx(2), pytest.approx(2))
    assert agreement_minus_certainty(theirs, theirs, (dice, dice)) is None


def test_voxels_are_told_apart_subject_by_subject() -> None:
    run = Run(METHOD["plain"], 1.0, 0)
    areas = {"s0": (0.6, 0.8), "s1": (0.9, 0.9), "s2": (0.5, None), "s3": (0.7, 0.6)}
    results = [
        CaseResult(replace(run, seed=seed), case, (), {"error_auc_entropy": value})
        for case, values in areas.items()
        for seed, value in enumerate(values)
    ]
    found = confidence(results, dict.fromkeys(areas, 0.5), networks=1)
    assert found["error_auc_entropy_of_subjects"] == pytest.approx({"s0": 0.7, "s1": 0.9, "s2": 0.5, "s3": 0.65})
    assert found["error_auc_entropy"] == pytest.approx(0.6875)
    low, high = found["error_auc_entropy_interval"]
    assert 0.5 <= low < 0.6875 < high <= 0.9


@pytest.mark.parametrize(("stands", "counts"), [(0, [0, 1, 2, 4, 8]), (1, [1, 2, 3, 8])])
def test_voxels_count_of_which_is_known_whether_they_are_right(stands: int, counts: list[int]) -> None:
    # In the background or in 1 there may be a 2, 9 is to be ignored, and one voxel lies outside of the organ.
    truth, found = [1, 1, 0, 0, 1, 9, 1, 0, 3], [1, 0, 1, 2, 2, 1, 0, 0, 3]
    inside = [1, 1, 1, 1, 1, 1, 0, 1, 1]
    entropy, share = np.linspace(0.1, 0.9, 9), np.array([0.9, 0.4, 0.5, 0.6, 0.4, 0.8, 0.2, 0.3, 0.45])

    def volume(values: Sequence[float], kind: type) -> Volume:
        return Volume(np.array(values, dtype=kind).reshape(1, 1, 1, 9), Grid.from_parts((1, 1, 9), (1.0, 1.0, 1.0)))

    record = {
        "seconds": {"fusion": 0.5},
        "atlases": [{"seconds": 2.0, "seconds_network": 1.0}] * 2,
        "agreement": {"foreground": 0.7, "expected_dice": 0.6},
    }
    prediction = Prediction(
        volume(found, np.uint8),
        record,
        agreement=volume(share, np.float32),
        entropy=volume(entropy, np.float32),
        confidence=volume(1 - entropy, np.float32),
    )
    details = describe(prediction, volume(truth, np.uint8), 9, volume(inside, np.uint8), ((2, stands),))
    wrong = np.array(truth)[counts] != np.array(found)[counts]
    assert sum(details["calibration"]["voxels"]) == len(counts)
    assert sum(details["calibration"]["right"]) == (~wrong).sum()
    for name, score in (("entropy", entropy), ("agreement", 1 - share)):
        ours, others = score[counts][wrong], score[counts][~wrong]
        pairs = np.sign(ours[:, None] - others) / 2 + 0.5
        assert details[f"error_auc_{name}"] == pytest.approx(pairs.mean(), abs=1e-5)
    assert details["certainty"] == pytest.approx(1 - entropy[np.array(found) > 0].mean(), abs=1e-5)
    assert details["seconds"] == 6.5

"""The statistics of a study against SciPy, statistics that are known, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atlasnet.study.statistics import (
    compare,
    correlation_difference,
    holm,
    interval,
    rank_correlation,
    tail_difference,
    worst_tenth,
)


def test_holm_gives_the_textbook_values() -> None:
    # Holm's own procedure by hand: 4 p1, 3 p2, 2 p3, p4, never falling, never above 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    for raw, corrected in zip(p, holm(p), strict=True):
        assert raw <= corrected <= min(1.0, max(raw * len(p), max(holm(p))))


def test_differences_are_those_of_scipy() -> None:
    random = np.random.default_rng(3)
    main = {str(i): float(v) for i, v in enumerate(random.uniform(0.7, 0.9, 20))}
    worse = {case: value - 0.01 - 0.01 * random.normal() for case, value in main.items()}
    found = compare({"worse": (main, worse), "same": (main, main)})
    gain = np.array([main[c] - worse[c] for c in main])
    assert found["worse"].mean == pytest.approx(gain.mean())
    assert found["worse"].p == pytest.approx(stats.wilcoxon(gain).pvalue)
    assert found["worse"].p_holm == pytest.approx(2 * found["worse"].p)
    low, high = found["worse"].interval or (0, 0)
    assert low < gain.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * gain.std(ddof=1) / np.sqrt(20), rel=0.25)
    assert found["same"].p == 1
    assert found["same"].interval is None


def test_only_shared_subjects_are_compared() -> None:
    main = {"a": 0.5, "b": 0.7, "c": 0.9}
    found = compare({"other": (main, {"b": 0.6, "c": 0.7})})["other"]
    assert found.mean == pytest.approx(0.15)
    assert found.subjects == 2
    with pytest.raises(ValueError, match="other subjects"):
        compare({"other": (main, {"z": 0.1})})


def test_what_differs_by_rounding_only_is_a_tie() -> None:
    """0.1 + 0.2 is not 0.3 in binary: neither a difference of 5e-17 nor two that differ by as much are real."""
    noise = {str(i): 0.3 + i / 10 for i in range(6)}
    exact = {str(i): 0.1 + 0.2 + i / 10 for i in range(6)}
    assert any(noise[case] != exact[case] for case in noise)
    found = compare({"rounding": (noise, exact)})["rounding"]
    assert (found.p, found.interval) == (1, None)
    gains = [0.1, -0.1, 0.1, -0.1, 0.2, 0.3, 0.4, 0.5]
    shifted = {str(i): 0.1 * i for i in range(8)}
    higher = {str(i): 0.1 * i + gain for i, gain in enumerate(gains)}
    assert compare({"a": (higher, shifted)})["a"].p == pytest.approx(stats.wilcoxon(gains).pvalue)
    assert rank_correlation([0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2], [1, 2, 3, 4]) is None


def test_the_worst_tenth_is_of_at_least_one_subject() -> None:
    assert worst_tenth(np.array([0.5, 0.2, 0.9])) == pytest.approx(0.2)
    assert worst_tenth(np.arange(20.0)) == pytest.approx(0.5)
    np.testing.assert_allclose(worst_tenth(np.arange(40.0).reshape(2, 20)), [0.5, 20.5])
    low, high = interval(np.linspace(0, 1, 60), worst_tenth) or (1, 0)
    assert 0 <= low < high < 0.3


def test_a_tail_of_subjects_in_which_nothing_was_found_has_the_interval_of_percentiles() -> None:
    """Leaving out any one subject changes nothing: there is no acceleration to correct by."""
    values = np.concatenate([np.zeros(5), np.linspace(0.5, 0.9, 25)])
    found = interval(values, worst_tenth)
    assert found is not None
    random = np.random.default_rng(0)
    draws = [np.sort(random.choice(values, len(values)))[:3].mean() for _ in range(4000)]
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975]), atol=0.02)


def test_rank_correlation_has_an_interval_around_it() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=50)
    y = x + random.normal(size=50)
    found = rank_correlation(x, y)
    assert found is not None
    value, (low, high) = found
    assert value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert low < value < high
    steep = np.exp(4 * y)  # ranks stay, and so does the interval
    assert rank_correlation(x, steep) == (pytest.approx(value), (pytest.approx(low), pytest.approx(high)))
    draws = [stats.spearmanr(x[i], steep[i]).statistic for i in random.integers(0, 50, (1000, 50))]
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=0.05)
    # Draws in which all are equal have no correlation, the others have.
    few = rank_correlation([1, 1, 1, 2], [4, 3, 5, 9])
    assert few is not None
    assert -1 <= few[1][0] <= few[1][1] <= 1
    assert rank_correlation(x, np.ones(50)) is None
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None


def test_correlations_are_compared_over_subjects_that_are_drawn_together() -> None:
    random = np.random.default_rng(1)
    dice = random.normal(size=60)
    sure, unsure = dice + 0.3 * random.normal(size=60), dice + 3 * random.normal(size=60)
    found = correlation_difference((sure, dice), (unsure, dice))
    assert found is not None
    value, (low, high) = found
    assert value == pytest.approx(stats.spearmanr(sure, dice).statistic - stats.spearmanr(unsure, dice).statistic)
    assert 0 < low < value < high
    draws = []
    for _ in range(500):  # a loop over bootstrap samples, of SciPy's correlations
        i = random.integers(0, 60, 60)
        draws.append(stats.spearmanr(sure[i], dice[i]).statistic - stats.spearmanr(unsure[i], dice[i]).statistic)
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=0.08)
    same = correlation_difference((sure, dice), (sure, dice))
    assert same == (0, (0, 0))
    assert correlation_difference((sure, dice), (np.ones(60), dice)) is None


def test_tails_are_compared_over_subjects_that_are_drawn_together() -> None:
    random = np.random.default_rng(2)
    one = {str(i): float(v) for i, v in enumerate(random.uniform(0.6, 0.9, 40))}
    lower = {case: value - 0.1 for case, value in one.items()}
    found, ends = tail_difference(one, lower | {"of the other alone": 0.0})
    assert found == pytest.approx(0.1)
    assert ends == (pytest.approx(0.1), pytest.approx(0.1))  # in every draw
    other = {case: value + 0.05 * random.normal() for case, value in one.items()}
    found, ends = tail_difference(one, other)
    assert found == pytest.approx(np.mean(sorted(one.values())[:4]) - np.mean(sorted(other.values())[:4]))
    assert ends is not None
    ours, theirs = np.array([*one.values()]), np.array([*other.values()])
    draws = []
    for _ in range(2000):
        i = random.integers(0, 40, 40)
        draws.append(np.sort(ours[i])[:4].mean() - np.sort(theirs[i])[:4].mean())
    np.testing.assert_allclose(ends, np.quantile(draws, [0.025, 0.975]), atol=0.015)
    assert tail_difference(one, one) == (0, None)
    rounded = {case: float(np.nextafter(value, 1)) for case, value in one.items()}
    assert tail_difference(one, rounded)[1] is None
    for count, known in ((19, False), (20, True)):
        few = {case: one[case] for case in [*one][:count]}
        assert (tail_difference(few, other)[1] is not None) is known

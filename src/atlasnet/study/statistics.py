"""Paired comparisons over subjects: intervals, tests, the tail."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from atlasnet.wording import counted

Float = NDArray[np.float64]
Name = TypeVar("Name")
CONFIDENCE = 0.95
RESAMPLES = 9999
DECIMALS = 9
"""Scores and differences that agree so far are equal: means over labels and seeds are off by some 1e-16."""
FEW = 10
"""Subjects, below which bootstrap intervals hold the true mean in clearly fewer than 95 of 100 studies."""

# With fewer subjects the worst tenth is one subject or two, and resampling them says nothing of others.
FEWEST_FOR_TAIL = 20


@dataclass(frozen=True)
class Difference:
    """A paired difference over subjects.

    Args:
        mean: of the differences.
        interval: its 95 % interval (see `interval`); None where there is none.
        p: of the two-sided Wilcoxon signed-rank test on the differences to `DECIMALS`; 1 where all are 0.
        p_holm: the same, corrected by Holm for all comparisons that were made together.
        subjects: those that both methods segmented.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float
    p_holm: float
    subjects: int


def interval(values: Sequence[float] | Float, statistic: Callable[..., Float] = np.mean) -> tuple[float, float] | None:
    """The 95 % interval of a statistic over subjects, by bias-corrected and accelerated bootstrap.

    Where the correction is not defined, as may be for a statistic of the tail, by the percentiles of the bootstrap.
    None for fewer than three subjects or where all are equal.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 3 or np.ptp(np.round(array, DECIMALS)) == 0:
        return None
    bootstrap = partial(
        stats.bootstrap, (array,), statistic, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, vectorized=True, rng=0
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = bootstrap().confidence_interval
        if not (math.isfinite(found.low) and math.isfinite(found.high)):
            found = bootstrap(method="percentile").confidence_interval
    return float(found.low), float(found.high)


def few_subjects(subjects: int, *, compared: bool) -> list[str]:
    """What is to be known of intervals, and of tests where methods were ``compared``, of few subjects; else nothing."""
    if subjects >= FEW:
        return []
    test = f", and no test can find a p below {min(1.0, 2 / 2**subjects):.2g}, before the correction"
    return [f"With {counted(subjects, 'subject')} intervals are too narrow{test if compared else ''}."]


def worst_tenth(values: Float, axis: int = -1) -> Float:
    """The mean of the lowest tenth of the subjects, at least one of them."""
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    count = max(1, math.ceil(ordered.shape[axis] / 10))
    return np.asarray(np.take(ordered, range(count), axis=axis).mean(axis=axis))


def tail_difference(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, tuple[float, float] | None]:
    """The worst tenth of one method minus that of another, each of the subjects that both have, with its interval.

    The tenths may be different subjects. The interval draws the same subjects for both; None for fewer than
    `FEWEST_FOR_TAIL`, and where the methods differ nowhere.
    """
    shared = [case for case in one if case in other]
    ours, theirs = (np.array([of[case] for case in shared]) for of in (one, other))

    def difference(index: Float, axis: int = -1) -> Float:
        drawn = index.astype(np.int64)
        return worst_tenth(ours[drawn], axis) - worst_tenth(theirs[drawn], axis)

    every = np.arange(len(shared), dtype=np.float64)
    known = len(shared) >= FEWEST_FOR_TAIL and bool(np.round(ours - theirs, DECIMALS).any())
    return float(difference(every)), interval(every, difference) if known else None


def compare(pairs: Mapping[Name, tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[Name, Difference]:
    """One method minus another, subject by subject, in each comparison.

    Args:
        pairs: of a comparison's name, subject to score of the one and of the other; only subjects that both have count.

    Raises:
        ValueError: two share no subject.
    """
    gains: dict[Name, Float] = {}
    for name, (one, other) in pairs.items():
        shared = [case for case in one if case in other]
        if not shared:
            raise ValueError(f"{name} was scored on other subjects")
        gains[name] = np.array([one[case] - other[case] for case in shared])
    p = {name: _wilcoxon(gain) for name, gain in gains.items()}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return {
        name: Difference(float(gain.mean()), interval(gain), p[name], corrected[name], len(gain))
        for name, gain in gains.items()
    }


def _wilcoxon(gain: Float) -> float:
    rounded = np.round(gain, DECIMALS)
    return float(stats.wilcoxon(rounded).pvalue) if rounded.any() else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for having made all the comparisons (Holm, Scandinavian Journal of Statistics 6(2), 1979)."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float]] | None:
    """Spearman's correlation with its 95 % percentile-bootstrap interval; None where it is not defined."""
    return _correlations((a, b))


def correlation_difference(
    one: tuple[Sequence[float], Sequence[float]], other: tuple[Sequence[float], Sequence[float]]
) -> tuple[float, tuple[float, float]] | None:
    """One Spearman's correlation minus another with the 95 % percentile-bootstrap interval; None where
    one is not defined.

    Args:
        one: two values of every subject.
        other: two others of the same subjects, who are drawn together.
    """
    return _correlations(one, other)


def _correlations(*pairs: tuple[Sequence[float], Sequence[float]]) -> tuple[float, tuple[float, float]] | None:
    """The correlation of the first pair of values minus those of the others."""
    rounded = np.round(np.array(pairs, dtype=np.float64), DECIMALS)  # (pairs, 2, subjects)
    subjects = rounded.shape[-1]
    if subjects < 4 or (np.ptp(rounded, axis=-1) == 0).any():
        return None
    index = np.random.default_rng(0).integers(0, subjects, (RESAMPLES, subjects))
    with np.errstate(invalid="ignore"):
        drawn = [_correlation(*(stats.rankdata(values[index], axis=1) for values in pair)) for pair in rounded]
    low, high = np.nanquantile(drawn[0] - sum(drawn[1:]), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    found = [stats.spearmanr(*pair).statistic for pair in rounded]
    return float(found[0] - sum(found[1:])), (float(low), float(high))


def _correlation(x: Float, y: Float) -> Float:
    """Pearson's of every row; not a number where a row is constant."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return np.asarray((x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)))

"""Does what a method says of itself tell good results from bad ones? Over the test subjects, and over the voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.study.records import CaseResult, known
from atlasnet.study.statistics import correlation_difference, interval, rank_correlation

MEASURES = ("agreement", "certainty", "expected_dice")
"""What a method says of a result as a whole; see `atlasnet.study.certainty.describe`."""

BINS = 10  # of the probabilities, equal parts of 0 to 1
STEPS = 20  # of a curve over the coverage, at most


def calibration_counts(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> dict[str, list[float]]:
    """Voxels by the probability that they were given, in `BINS` equal parts of 0 to 1.

    Args:
        confidence: (n,) probability of the class that was chosen.
        right: (n,) whether it is that class.

    Returns:
        Per bin, ``voxels``, the sum of their ``confidence`` and how many are ``right``.
    """
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    return {
        "voxels": np.bincount(bins, minlength=BINS).tolist(),
        "confidence": np.bincount(bins, confidence, BINS).round(3).tolist(),
        "right": np.bincount(bins, right, BINS).astype(np.int64).tolist(),
    }


def calibration(counts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any] | None:
    """How far probabilities are from how often they are right, over the voxels of all results together.

    Naeini, Cooper, Hauskrecht, AAAI 2015.

    Args:
        counts: from `calibration_counts`, one a result.

    Returns:
        ``error``: the mean over the voxels of the distance, bin by bin, of mean confidence and accuracy (expected
        calibration error). ``points``: of every bin with voxels, the mean ``confidence``, the ``accuracy`` and the
        ``share`` of the voxels. None without voxels.
    """
    if not counts:
        return None
    voxels, said, right = (
        np.array([one[name] for one in counts], dtype=np.float64).sum(0) for name in ("voxels", "confidence", "right")
    )
    total = float(voxels.sum())
    if not total:
        return None
    points = [
        {"confidence": s / n, "accuracy": r / n, "share": n / total}
        for n, s, r in np.stack([voxels, said, right], 1).tolist()
        if n
    ]
    return {"error": float(np.abs(said - right).sum()) / total, "points": points}


def coverage(values: Mapping[str, float], dice: Mapping[str, float]) -> list[dict[str, float]]:
    """The mean Dice of the results that are kept when those that seem worst are put aside for a person to look at.

    Geifman, El-Yaniv, NeurIPS 2017: the risk, here 1 less the Dice, over the coverage.

    Args:
        values: by subject, what the method says of its result; higher is surer.
        dice: by subject.

    Returns:
        ``coverage``, in at most `STEPS` steps to 1, and the mean ``dice`` of that share of the subjects.
    """
    ordered = np.array([dice[case] for case in sorted(values, key=lambda case: (-values[case], case))])
    kept = sorted({max(1, round(step * len(ordered) / STEPS)) for step in range(1, STEPS + 1)})
    return [{"coverage": count / len(ordered), "dice": float(ordered[:count].mean())} for count in kept]


def confidence(results: Sequence[CaseResult], dice: Mapping[str, float], *, networks: int) -> dict[str, Any]:
    """What a method's confidence is worth.

    Args:
        results: of all test subjects and seeds.
        dice: by subject, the mean over labels and seeds.
        networks: how many segment a scan; the agreement of fewer than two, which results of before have, is rounding.

    Returns:
        For each of `MEASURES`, ``NAME``: rank correlation with Dice (``spearman`` and its ``interval``) or None,
        ``NAME_of_subjects``: its mean over the seeds, 0 for a result in which nothing was found, and ``NAME_coverage``:
        see `coverage`. ``error_auc_entropy`` and ``error_auc_agreement``: means over the subjects of their means over
        the seeds, with ``NAME_interval`` and ``NAME_of_subjects``. ``calibration``: see `calibration`.
    """
    found: dict[str, Any] = {}
    seeds = len({result.run.seed for result in results})
    agreeing = [result for result in results if networks > 1]
    for name in MEASURES:
        values: dict[str, list[float]] = {}
        measured = agreeing if name == "agreement" else results
        for result in measured if known(measured, name) else ():
            if result.case in dice and (value := _said(result.details, name)) is not None:
                values.setdefault(result.case, []).append(value)
        means = {case: float(np.mean(every)) for case, every in values.items() if len(every) == seeds}
        correlation = rank_correlation(list(means.values()), [dice[case] for case in means])
        found[name] = None if correlation is None else {"spearman": correlation[0], "interval": correlation[1]}
        found[f"{name}_of_subjects"] = means
        found[f"{name}_coverage"] = coverage(means, dice) if means else []
    for name in ("error_auc_entropy", "error_auc_agreement"):
        areas: dict[str, list[float]] = {}
        for result in agreeing if name == "error_auc_agreement" else results:
            if result.details.get(name) is not None:
                areas.setdefault(result.case, []).append(result.details[name])
        of_subjects = {case: float(np.mean(every)) for case, every in areas.items()}
        found[name] = float(np.mean([*of_subjects.values()])) if of_subjects else None
        found[f"{name}_interval"] = interval([*of_subjects.values()])
        found[f"{name}_of_subjects"] = of_subjects
    found["calibration"] = calibration(known(results, "calibration"))
    return found


def agreement_minus_certainty(
    main: Mapping[str, Any],
    other: Mapping[str, Any],
    dice: tuple[Mapping[str, float], Mapping[str, float]],
) -> dict[str, Any] | None:
    """How much better the agreement of one method tells its Dice than the certainty of another tells that one's.

    Args:
        main: of the one, from `confidence`.
        other: of the other.
        dice: by subject, of the one and of the other.

    Returns:
        ``spearman``, the difference of the correlations over the ``subjects`` of both, and its ``interval``, by
        bootstrap over these; None where a correlation is not defined.
    """
    agreement, certainty = main["agreement_of_subjects"], other["certainty_of_subjects"]
    shared = [case for case in agreement if case in certainty]
    ours, theirs = (
        ([said[case] for case in shared], [of[case] for case in shared])
        for said, of in zip((agreement, certainty), dice, strict=True)
    )
    found = correlation_difference(ours, theirs)
    return None if found is None else {"spearman": found[0], "interval": found[1], "subjects": len(shared)}


def _said(details: Mapping[str, Any], name: str) -> float | None:
    """One of `MEASURES` of a result: 0 where nothing was found, so that there is nothing to be sure of.

    None where it was not measured, as in results of before, or is not defined, as the agreement of a single network.
    """
    if details.get(name) is not None:
        return float(details[name])
    return 0.0 if name in details and all(details.get(measure) is None for measure in MEASURES) else None

"""Means over labels, seeds and subjects of what was scored, and which of two methods' results belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from atlasnet.study.records import CaseResult

SCORES = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "hausdorff_mm": "Hausdorff, mm",
    "hd95_mm": "HD95, mm",
    "average_contour_distance_mm": "contour distance, mm",
    "dice": "Dice",
}
"""What the tables show of every label, in the publication's order, with its heading."""


def dice_of(result: CaseResult) -> float:
    """The mean over labels."""
    return float(np.mean([row["dice"] for row in result.scores]))


def dice_of_subjects(results: Sequence[CaseResult]) -> dict[str, float]:
    """Subject to mean over labels and seeds; without those that a seed could not segment."""
    found: dict[str, list[float]] = {}
    seeds = {result.run.seed for result in results}
    for result in results:
        if result.scores:
            found.setdefault(result.case, []).append(dice_of(result))
    return {case: float(np.mean(values)) for case, values in found.items() if len(values) == len(seeds)}


def common_seeds(main: Sequence[CaseResult], other: Sequence[CaseResult]) -> list[int]:
    """Those of both; a method that draws no random number would find the same with any seed of the main one."""
    ours, theirs = ({result.run.seed for result in results} for results in (main, other))
    return sorted(ours & theirs if other[0].run.method.seeded else ours)


def paired(
    main: Sequence[CaseResult], other: Sequence[CaseResult], seeds: Sequence[int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Subject to mean Dice of both over these seeds: a mean over more of them would be the surer one."""
    ours, theirs = (
        dice_of_subjects([r for r in results if r.run.seed in seeds or not r.run.method.seeded])
        for results in (main, other)
    )
    return ours, theirs


def score_means(
    rows: Sequence[Mapping[str, Any]], labels: Iterable[str]
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, int]]]:
    """Per label and score the mean over subjects of their means over seeds, and how many have no value."""
    means: dict[str, dict[str, float | None]] = {}
    undefined: dict[str, dict[str, int]] = {}
    for label in labels:
        means[label], undefined[label] = {}, {}
        for score in SCORES:
            of_cases: dict[str, list[float | None]] = {}
            for row in rows:
                if row["label"] == label:
                    of_cases.setdefault(row["case"], []).append(row[score])
            known = [[v for v in values if v is not None] for values in of_cases.values() if None not in values]
            means[label][score] = float(np.mean([np.mean(values) for values in known])) if known else None
            undefined[label][score] = len(of_cases) - len(known)
    return means, undefined


def absent_labels(rows: Sequence[Mapping[str, Any]], labels: Iterable[str], seeds: int) -> dict[str, dict[str, float]]:
    """Per label how many subjects do not have it, and in how many of these it was found, the mean over the seeds."""
    absent: dict[str, dict[str, float]] = {}
    for label in labels:
        without = [row for row in rows if row["label"] == label and row["presence"] in ("prediction", "neither")]
        found = sum(row["presence"] == "prediction" for row in without)
        absent[label] = {"subjects": len({row["case"] for row in without}), "false_positive": found / seeds}
    return absent

"""Other people's segmentations beside those of the methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from atlasnet.study.means import absent_labels, dice_of_subjects, score_means
from atlasnet.study.records import CaseResult, Study
from atlasnet.study.statistics import compare, interval


def observers(study: Study, main: Sequence[CaseResult]) -> dict[str, Any]:
    """Other people's segmentations: of each, and of all together where they have subjects in common."""
    every = [[*rows] for rows in study.observers]
    shared = set.intersection(*({row["case"] for row in rows} for rows in every)) if len(every) > 1 else set()
    groups = {str(place): _observer(rows, study.structures, 1) for place, rows in enumerate(every)}
    if shared:
        of_shared = [row for rows in every for row in rows if row["case"] in shared]
        groups["together"] = _observer(of_shared, study.structures, len(every))
    ours = dice_of_subjects(main)
    pairs = {name: (ours, theirs) for name, row in groups.items() if (theirs := row.pop("dice")).keys() & ours.keys()}
    for name, difference in compare(pairs).items():
        groups[name]["main_minus_this"] = asdict(difference)
    together = groups.pop("together", None)
    return {"observers": [*groups.values()], "observers_together": together}


def _observer(rows: Sequence[Mapping[str, Any]], labels: Iterable[str], observers: int) -> dict[str, Any]:
    """Of an observer, or of the mean of several who have the same subjects; ``dice`` is that of every subject."""
    means, undefined = score_means(rows, labels)
    of_cases: dict[str, list[float]] = {}
    for row in rows:
        of_cases.setdefault(row["case"], []).append(row["dice"])
    dice = {case: float(np.mean(values)) for case, values in of_cases.items()}
    return {
        "subjects": len(dice),
        "labels": means,
        "undefined": undefined,
        "absent": absent_labels(rows, labels, observers),
        "mean_dice": float(np.mean([*dice.values()])) if dice else None,
        "interval": interval([*dice.values()]),
        "dice": dice,
    }

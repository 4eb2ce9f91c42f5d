"""AtlasNet with part of the training data against one network with all of it: how much annotation does it save?"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from atlasnet.execution import atomic_path
from atlasnet.study.means import common_seeds, dice_of_subjects, paired
from atlasnet.study.methods import MAIN, OVER_FRACTIONS
from atlasnet.study.records import CaseResult, Run
from atlasnet.study.shares import real_share
from atlasnet.study.statistics import compare

WITH_ALL = tuple(name for name in OVER_FRACTIONS if name != MAIN)
"""The single networks with which AtlasNet is compared."""


def less_data(
    by_run: Mapping[Run, Sequence[CaseResult]], full: Mapping[str, Run], training: int
) -> list[dict[str, Any]]:
    """Every share of the training data, the smallest first, shares of the subjects before those of their slices.

    Args:
        by_run: results of all seeds of a run.
        full: per method its run with the whole of the data.
        training: how many subjects there are to train on.

    Returns:
        Of each share, what it is one ``of`` (``subjects`` or ``slices``), the ``share`` that was asked for and how
        large it ``really`` is; ``subjects``: per method and test subject the mean Dice; ``main_minus``: per method of
        `WITH_ALL` the difference of AtlasNet with this share from that one with all data, see `Difference`, over the
        ``seeds`` that both have. The tests of all shares are corrected together, and apart from those of the main
        table.
    """
    shares = sorted({(run.fraction_of, run.fraction) for run in by_run if run.fraction < 1}, key=_subjects_first)
    rows: list[dict[str, Any]] = []
    pairs: dict[tuple[int, str], tuple[dict[str, float], dict[str, float]]] = {}
    seeds: dict[tuple[int, str], list[int]] = {}
    for place, (of, share) in enumerate(shares):
        runs = {name: replace(full[name], fraction=share, fraction_of=of) for name in OVER_FRACTIONS}
        found = {name: by_run[run] for name, run in runs.items() if run in by_run}
        really = real_share(of, share, training)
        dice = {name: dice_of_subjects(results) for name, results in found.items()}
        rows.append({"of": of, "share": share, "really": really, "subjects": dice, "main_minus": {}})
        for name in WITH_ALL if MAIN in found else ():
            if full[name] in by_run:
                common = common_seeds(found[MAIN], by_run[full[name]])
                pair = paired(found[MAIN], by_run[full[name]], common)
                if pair[0].keys() & pair[1].keys():
                    pairs[place, name], seeds[place, name] = pair, common
    for (place, name), difference in compare(pairs).items():
        rows[place]["main_minus"][name] = asdict(difference) | {"seeds": seeds[place, name]}
    return rows


def _subjects_first(share: tuple[str, float]) -> tuple[bool, float]:
    return share[0] != "subjects", share[1]


def write_less_data(found: Mapping[str, Any], path: Path) -> None:
    """Every comparison as a CSV, from what `summarise` gives."""
    ends = ["difference", "low", "high", "p", "p_holm", "subjects", "seeds"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["of", "share", "really", "other", *ends])
        for row in found["less_data"]:
            for name, gain in row["main_minus"].items():
                values = [gain["mean"], *(gain["interval"] or (None, None)), gain["p"], gain["p_holm"]]
                counts = [gain["subjects"], len(gain["seeds"])]
                writer.writerow([row["of"], row["share"], row["really"], name, *values, *counts])

"""What a study says where methods failed, found nothing, or had no more data: nobody drops out unseen."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from atlasnet.errors import InputError
from atlasnet.evaluation import LabelScores, PatchCounts
from atlasnet.study import Study, summarise
from atlasnet.study.methods import METHODS
from atlasnet.study.page import main_rows
from atlasnet.study.patches import accuracies
from atlasnet.study.records import CaseResult, Run
from atlasnet.study.shares import check_shares
from atlasnet.study.summary import write_curves
from atlasnet.training.recipe import Recipe

METHOD = {method.name: method for method in METHODS}
CASES = tuple(f"s{number}" for number in range(10))


def scores(case: str, dice: float | None) -> tuple[dict[str, Any], ...]:
    """Of one label; none of a scan that could not be segmented."""
    if dice is None:
        return ()
    row = dict.fromkeys((field.name for field in fields(LabelScores)), 0.0)
    distance = {"hausdorff_mm": None} if dice == 0 else {}
    return ({**row, "case": case, "label": "a", "dice": dice, **distance},)


def results(run: Run, dice: Mapping[str, float | None], details: Mapping[str, Any] | None = None) -> list[CaseResult]:
    return [CaseResult(run, case, scores(case, value), (details or {}).get(case, {})) for case, value in dice.items()]


def study(found: Iterable[CaseResult], **options: Any) -> Study:
    values = {"training": 4, "observers": (), **options}
    recipe = Recipe.preset("default")
    return Study(Path(), {"a": 1}, CASES, ("x", "y"), recipe=recipe, sharing="common", results=tuple(found), **values)


def test_a_curve_does_not_rise_because_hard_subjects_drop_out(tmp_path: Path) -> None:
    one, two = (Run(METHOD["atlasnet"], 1.0, 0, atlases) for atlases in (1, 2))
    easy, hard = dict.fromkeys(CASES[3:], 0.8), dict.fromkeys(CASES[:3], None)
    found = summarise(study([*results(one, hard | easy), *results(two, dict.fromkeys(CASES[:3], 0.2) | easy)]))
    points = found["over_atlases"]["atlasnet"]
    assert [(p["x"], p["dice"], p["subjects"]) for p in points] == [
        (1, pytest.approx(0.8), 7),
        (2, pytest.approx(0.8), 7),
    ]
    assert found["methods"]["atlasnet"]["mean_dice"] == pytest.approx(0.62)
    write_curves(found, tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["subjects"] for row in csv.DictReader(stream)] == ["7", "7"]


def test_a_difference_says_over_how_many_subjects_it_is() -> None:
    dice = dict.fromkeys(CASES, 0.8)
    main = results(Run(METHOD["atlasnet"], 1.0, 0, 2), dice | {"s0": None})
    found = summarise(study([*main, *results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(CASES, 0.7))]))
    assert found["methods"]["plain"]["main_minus_this"]["subjects"] == 9
    (plain, _) = main_rows(found)[1]
    assert plain[4] == "+0.1000 (9 of 10)"


def test_a_result_in_which_nothing_was_found_is_the_least_sure() -> None:
    dice: dict[str, float | None] = {case: 0.5 + 0.04 * number for number, case in enumerate(CASES)}
    said = {case: {"certainty": 0.9, "agreement": value, "expected_dice": value} for case, value in dice.items()}
    empty = {"certainty": None, "agreement": None, "expected_dice": None}
    dice |= {"s8": 0.0, "s9": 0.0}
    said |= {"s8": empty, "s9": empty}
    found = summarise(study(results(Run(METHOD["atlasnet"], 1.0, 0, 2), dice, said)))
    confidence = found["confidence"]["atlasnet"]
    assert confidence["agreement"]["spearman"] == pytest.approx(1)
    assert confidence["agreement_of_subjects"]["s9"] == 0
    for measure in ("agreement", "certainty", "expected_dice"):
        last = confidence[f"{measure}_coverage"][-1]
        assert last == {"coverage": 1, "dice": pytest.approx(found["methods"]["atlasnet"]["mean_dice"])}


def test_an_observer_of_some_subjects_is_said_to_be_that() -> None:
    plain = results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(CASES, 0.7))
    observer = (*scores("s1", 0.9), *scores("s2", 0.0))
    (found,) = summarise(study(plain, observers=(observer,)))["observers"]
    assert found["subjects"] == 2
    assert found["undefined"]["a"]["hausdorff_mm"] == 1


def test_shares_are_drawn_at_their_real_size() -> None:
    dice = dict.fromkeys(CASES, 0.7)
    plain = METHOD["plain"]
    found = [*results(Run(plain, 1.0, 0), dice), *results(Run(plain, 0.3, 0), dice), *results(Run(plain, 0.7, 0), dice)]
    assert [point["x"] for point in summarise(study(found))["over_fractions"]["plain"]] == [0.5, 0.75, 1]
    check_shares((0.5, 0.75, 1.0), 4)
    for shares in ((0.3, 0.5), (0.9,)):
        with pytest.raises(InputError, match="the same subjects"):
            check_shares(shares, 4)


def test_patches_of_a_seed_that_failed_for_everybody_are_missed() -> None:
    found = accuracies([{"s0": PatchCounts(4, 4, 4, 4)}, {}])
    assert found["subjects"] == 0
    assert found["mean_accuracy"] is None

"""What a study says where methods failed, found nothing, or had no more data: nobody drops out unseen."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from atlasnet.errors import InputError
from atlasnet.evaluation import LabelScores, PatchCounts
from atlasnet.report.page import Page
from atlasnet.study import Study, summarise
from atlasnet.study.less_data import write_less_data
from atlasnet.study.means import SCORES
from atlasnet.study.methods import METHOD
from atlasnet.study.page import add_labels
from atlasnet.study.patches import accuracies
from atlasnet.study.records import CaseResult, Run
from atlasnet.study.shares import check_shares
from atlasnet.study.statistics import holm, interval
from atlasnet.study.summary import write_curves
from atlasnet.study.tables import (
    cautions,
    label_table,
    less_data_table,
    main_rows,
    main_table,
    tail_rows,
    without_label,
    write_table,
)
from atlasnet.training.recipe import Recipe
from pages import check

OVER = ("atlasnet", "plain", "augmented")
CASES = tuple(f"s{number}" for number in range(10))


def scores(case: str, dice: float | None) -> tuple[dict[str, Any], ...]:
    """Of one label; none of a scan that could not be segmented."""
    if dice is None:
        return ()
    row: dict[str, Any] = dict.fromkeys((field.name for field in fields(LabelScores)), 0.0) | {"presence": "both"}
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
    assert plain[3] == "+0.1000 (9 of 10)"


def test_the_tails_of_two_methods_are_compared(tmp_path: Path) -> None:
    cases = [f"s{number}" for number in range(24)]
    ours = {case: 0.5 + 0.01 * number for number, case in enumerate(cases)}
    theirs = ours | {"s0": 0.1, "s1": 0.1, "s2": 0.1}
    of_both = [
        *results(Run(METHOD["atlasnet"], 1.0, 0, 2), ours),
        *results(Run(METHOD["plain"], 1.0, 0), theirs),
    ]
    found = summarise(replace(study(of_both), cases=tuple(cases)))
    gain = found["methods"]["plain"]["main_minus_this"]
    assert gain["worst_tenth"] == pytest.approx(0.41)
    low, high = gain["worst_tenth_interval"]
    assert 0 <= low < 0.41 <= high
    head, (plain, main) = tail_rows(found)
    assert head == ["method", "worst tenth", "95 % interval", "AtlasNet minus this", "its interval"]
    assert plain[1:2] + plain[3:4] == ["0.1000", "+0.4100"]
    assert plain[4] == f"[{low:+.4f}, {high:+.4f}]"
    assert main[3:] == ["", ""]
    write_table(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    assert [float(row[name]) for name in ("tail_difference", "tail_low", "tail_high")] == [
        gain["worst_tenth"],
        low,
        high,
    ]


def of_seeds(method: str, dice: Mapping[int, float]) -> list[CaseResult]:
    """The same Dice of all subjects, by the seed."""
    run = Run(METHOD[method], 1.0, 0, METHOD[method].atlases(2))
    return [
        result
        for seed, value in dice.items()
        for result in results(replace(run, seed=seed), dict.fromkeys(CASES, value))
    ]


def test_methods_are_compared_over_the_seeds_that_both_have() -> None:
    found = summarise(
        study(
            [
                *of_seeds("atlasnet", {0: 0.8, 1: 0.9, 2: 0.7}),
                *of_seeds("plain", {0: 0.7}),
                *of_seeds("augmented", {1: 0.8, 2: 0.7}),
                *of_seeds("ensemble", {5: 0.1}),
                *of_seeds("propagation", {0: 0.5}),
            ]
        )
    )
    rows = found["methods"]
    gains = {name: row["main_minus_this"] for name, row in rows.items() if "main_minus_this" in row}
    assert {name: (gain["seeds"], pytest.approx(gain["mean"])) for name, gain in gains.items()} == {
        "plain": ([0], 0.1),
        "augmented": ([1, 2], 0.05),
        "propagation": ([0, 1, 2], 0.3),  # another seed would not change it
    }
    assert rows["atlasnet"]["mean_dice"] == pytest.approx(0.8)
    said = main_table(found)
    assert "; AtlasNet: 0, 1, 2)" in said
    assert "(one network: 0; one network, augmentation: 1, 2; " in said
    assert "over the seeds that both methods have" in said
    assert [row[-1] for row in main_rows(found)[1]] == ["1", "2", "1", "none", "3"]


def test_how_far_trainings_differ_stands_beside_the_mean(tmp_path: Path) -> None:
    several = [*of_seeds("atlasnet", {0: 0.8, 1: 0.9, 2: 0.7}), *of_seeds("propagation", {0: 0.5})]
    found = summarise(study(several))
    head, (carried, ours) = main_rows(found)
    place = head.index("Dice of the seeds")
    assert (carried[place], ours[place]) == ("", "0.7000 to 0.9000")
    assert "0.7000 to 0.9000" in main_table(found)
    assert "seed" not in " ".join(cautions(found))
    write_table(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["method"]: (row["seeds_low"], row["seeds_high"]) for row in csv.DictReader(stream)}
    assert rows == {"propagation": ("", ""), "atlasnet": ("0.7", "0.9")}


def test_the_range_of_the_seeds_is_over_the_subjects_of_the_mean() -> None:
    """One that failed with one seed, and was easy with the other, is in neither."""
    run = Run(METHOD["plain"], 1.0, 0)
    dice: dict[str, float | None] = dict.fromkeys(CASES, 0.5)
    found = summarise(study([*results(run, dice | {"s0": 1.0}), *results(replace(run, seed=1), dice | {"s0": None})]))
    assert found["methods"]["plain"]["dice_of_seeds"] == [pytest.approx(0.5)] * 2


@pytest.mark.parametrize(("seeds", "said"), [(1, "With 1 seed it"), (2, "With 2 seeds it"), (3, "")])
def test_few_seeds_are_warned_of(seeds: int, said: str) -> None:
    found = summarise(study(of_seeds("plain", dict.fromkeys(range(seeds), 0.7))))
    assert [text.startswith(said) for text in cautions(found)] == [True] * bool(said)
    assert (said in main_table(found)) or not said
    assert cautions(summarise(study(of_seeds("propagation", {0: 0.7})))) == []


def test_carried_labels_need_no_seeds() -> None:
    found = summarise(study([*of_seeds("atlasnet", {0: 0.8, 1: 0.9}), *of_seeds("propagation", {0: 0.5})]))
    assert "same seeds" not in main_table(found)


@pytest.mark.parametrize(("subjects", "p"), [(3, "0.25"), (9, "0.0039"), (10, None)])
def test_the_terminal_too_warns_of_few_subjects(subjects: int, p: str | None) -> None:
    cases = CASES[:subjects]
    of_cases = [
        *results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(cases, 0.7)),
        *results(Run(METHOD["atlasnet"], 1.0, 0, 2), dict.fromkeys(cases, 0.8)),
    ]
    said = main_table(summarise(replace(study(of_cases), cases=cases)))
    assert ("intervals are too narrow" in said) == (p is not None)
    assert p is None or f"no test can find a p below {p}" in said


def test_a_table_without_anything_to_compare_has_no_column_for_it() -> None:
    cases = CASES[:3]
    plain = results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(cases, 0.7))
    said = main_table(summarise(replace(study(plain), cases=cases)))
    assert said.splitlines()[0].split("  ")[0] == "method"
    assert "minus" not in said
    assert said.endswith("With 3 subjects intervals are too narrow.")


def test_subjects_without_a_label_are_counted_and_what_is_found_in_them() -> None:
    presence = dict.fromkeys(CASES, "both") | {"s0": "neither", "s1": "prediction"}
    main = Run(METHOD["atlasnet"], 1.0, 0, 2)
    found = [
        replace(result, scores=({**result.scores[0], "presence": presence[result.case]},))
        for result in results(main, dict.fromkeys(CASES, 0.8))
    ]
    second = [replace(result, run=replace(main, seed=1)) for result in found]
    second[0] = replace(second[0], scores=({**second[0].scores[0], "presence": "prediction"},))
    summary = summarise(study([*found, *second]))
    assert summary["methods"]["atlasnet"]["absent"] == {"a": {"subjects": 2, "false_positive": 1.5}}
    head, (row,) = label_table(summary, "a")
    assert (head[-1], row[-1]) == ("found where there is none", "1.5 of 2")
    assert without_label(summary, "a").startswith("Without it: 2 of 10 references.")
    some = replace(study([r for r in found if r.case not in ("s8", "s9")]), unannotated={"a": ("s8", "s9")})
    assert without_label(summarise(some), "a").startswith("Without it: 2 of 8 references.")


def test_many_labels_stand_in_one_table(tmp_path: Path) -> None:
    names = [f"rib {number:02d}" for number in range(1, 41)]
    rows = tuple(
        {**scores(case, dice)[0], "label": name, "presence": "neither" if name == "rib 40" else "both"}
        for name in names
        for case, dice in (("s0", 0.5), ("s1", 0.7))
    )
    run = Run(METHOD["plain"], 1.0, 0)
    found = [CaseResult(run, case, tuple(row for row in rows if row["case"] == case), {}) for case in ("s0", "s1")]
    labels = {name: value for value, name in enumerate(names, 1)}
    many = replace(study(found), labels=labels, cases=("s0", "s1"))
    page = Page("Study")
    add_labels(page, many, summarise(many))
    table = check(page.write(tmp_path / "page.html")).table("label")
    assert [row["label"] for row in table] == names
    assert {(row["method"], row["Dice"]) for row in table} == {("plain", "0.6000")}
    assert (table[0]["found where there is none"], table[-1]["found where there is none"]) == ("", "0 of 2")


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


def test_observers_are_summed_up_beside_the_methods() -> None:
    plain = results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(CASES, 0.7))
    observers = tuple((*scores("s1", value), *scores("s2", value)) for value in (0.9, 0.8))
    _, rows = label_table(summarise(study(plain, observers=observers)), "a")
    assert [(row[0], row[-1]) for row in rows] == [
        ("one network", "0.7000"),
        ("observer 1 (2 of 10 test subjects)", "0.9000"),
        ("observer 2 (2 of 10 test subjects)", "0.8000"),
        ("mean of the observers (2 of 10 test subjects)", "0.8500"),
        ("range of the observers", "0.8000 to 0.9000"),
    ]


def test_observers_stand_in_the_main_table_over_the_subjects_that_they_have(tmp_path: Path) -> None:
    ours = {case: 0.7 + 0.01 * number for number, case in enumerate(CASES)}
    first = {case: 0.9 + 0.01 * number for number, case in enumerate(CASES[:6])}
    second = dict.fromkeys(CASES[3:], 0.8)
    found = summarise(
        study(
            results(Run(METHOD["atlasnet"], 1.0, 0, 2), ours),
            observers=tuple(tuple(row for c, v in of.items() for row in scores(c, v)) for of in (first, second)),
        )
    )
    one, other = found["observers"]
    assert (one["mean_dice"], one["subjects"]) == (pytest.approx(0.925), 6)
    assert one["interval"] == pytest.approx(interval([*first.values()]))
    gain = one["main_minus_this"]
    assert (gain["mean"], gain["subjects"], gain["p"]) == (pytest.approx(-0.2), 6, pytest.approx(2 / 2**6))
    assert gain["p_holm"] >= 2 * gain["p"]
    assert other["main_minus_this"]["subjects"] == 7
    together = found["observers_together"]
    assert (together["subjects"], together["mean_dice"]) == (3, pytest.approx((0.93 + 0.94 + 0.95 + 3 * 0.8) / 6))
    said = [line for line in main_table(found).splitlines() if "observer" in line]
    assert [line.split("  ")[0] for line in said] == [
        "observer 1 (6 of 10 test subjects)",
        "observer 2 (7 of 10 test subjects)",
        "mean of the observers (3 of 10 test subjects)",
    ]
    assert "0.9250" in said[0]
    assert "-0.2000" in said[0]
    assert "(6 of 10)" in said[0].split("-0.2000")[1]
    write_table(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert float(rows["observer 1"]["mean_dice"]) == pytest.approx(0.925)
    assert (rows["observer 1"]["subjects"], rows["observer 1"]["seeds"], rows["atlasnet"]["subjects"]) == (
        "6",
        "",
        "10",
    )


def test_observers_without_a_subject_in_common_have_no_mean() -> None:
    plain = results(Run(METHOD["plain"], 1.0, 0), dict.fromkeys(CASES, 0.7))
    found = summarise(study(plain, observers=(scores("s1", 0.9), scores("s2", 0.8))))
    assert found["observers_together"] is None
    assert "main_minus_this" not in found["observers"][0]


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


def test_less_data_is_compared_with_one_network_that_has_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    main, plain, augmented = (Run(METHOD[name], 1.0, 0, METHOD[name].atlases(2)) for name in OVER)
    of = {
        (plain, 1.0): dict(zip(CASES, random.uniform(0.60, 0.70, 10), strict=True)),
        (augmented, 1.0): dict(zip(CASES, random.uniform(0.64, 0.76, 10), strict=True)),
        (main, 1.0): dict.fromkeys(CASES, 0.9),
        (main, 0.3): dict(zip(CASES, random.uniform(0.65, 0.75, 10), strict=True)),
        (main, 0.7): dict(zip(CASES, random.uniform(0.7, 0.8, 10), strict=True)),
        (plain, 0.3): dict.fromkeys(CASES, 0.2),
    }
    runs = {key: replace(key[0], fraction=key[1]) for key in of}
    found = summarise(study([r for key, run in runs.items() for r in results(run, of[key])]))
    rows = found["less_data"]
    assert [(row["share"], row["really"], row["of"]) for row in rows] == [
        (0.3, 0.5, "subjects"),
        (0.7, 0.75, "subjects"),
    ]
    assert rows[0]["subjects"] == {"atlasnet": of[main, 0.3], "plain": of[plain, 0.3]}
    pairs = [(of[main, share], of[other, 1.0]) for share in (0.3, 0.7) for other in (plain, augmented)]
    gains = [np.array([[*one.values()], [*other.values()]]) for one, other in pairs]
    p = [float(stats.wilcoxon(one - other).pvalue) for one, other in gains]
    said = [row["main_minus"][name] for row in rows for name in ("plain", "augmented")]
    assert [gain["mean"] for gain in said] == pytest.approx([float((one - other).mean()) for one, other in gains])
    assert [gain["p"] for gain in said] == pytest.approx(p)
    assert [gain["p_holm"] for gain in said] == pytest.approx(holm(p))  # not with those of the main table
    write_less_data(found, tmp_path / "less_data.csv")
    with (tmp_path / "less_data.csv").open(encoding="utf-8", newline="") as stream:
        written = [(row["share"], row["other"], float(row["difference"])) for row in csv.DictReader(stream)]
    names = [(str(row["share"]), name) for row in rows for name in ("plain", "augmented")]
    assert written == [(*name, gain["mean"]) for name, gain in zip(names, said, strict=True)]
    _, table = less_data_table(found, "subjects")
    assert [row[:3] for row in table[:2]] == [
        ["50%", f"{np.mean([*of[main, 0.3].values()]):.4f}", METHOD[name].title] for name in ("plain", "augmented")
    ]
    assert less_data_table(found, "slices")[1] == []


def test_shares_of_the_subjects_stand_before_those_of_their_slices() -> None:
    whole = Run(METHOD["plain"], 1.0, 0)
    shares = [("slices", 0.25), ("subjects", 0.75), ("slices", 0.5), ("subjects", 0.5)]
    runs = [whole, *(replace(whole, fraction=share, fraction_of=of) for of, share in shares)]
    rows = summarise(study([one for run in runs for one in results(run, dict.fromkeys(CASES, 0.7))]))["less_data"]
    assert [(row["of"], row["share"]) for row in rows] == [*sorted(shares[1::2]), *shares[::2]]


def test_what_one_seed_leaves_undefined_has_no_mean_over_the_others() -> None:
    dice = dict.fromkeys(CASES, 0.8)
    seeds = [Run(METHOD["plain"], 1.0, seed) for seed in range(2)]
    row = summarise(study([*results(seeds[0], dice), *results(seeds[1], dice | {"s0": 0.0})]))["methods"]["plain"]
    assert row["undefined"]["a"] == dict.fromkeys(SCORES, 0) | {"hausdorff_mm": 1}
    assert row["labels"]["a"]["dice"] == pytest.approx(0.76)


def test_patches_of_a_seed_that_failed_for_everybody_are_missed() -> None:
    found = accuracies([{"s0": PatchCounts(4, 4, 4, 4)}, {}])
    assert found["subjects"] == 0
    assert found["mean_accuracy"] is None

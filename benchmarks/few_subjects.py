"""What registration gains where few subjects are annotated: disjoint groups of the hippocampus's 17.

    python benchmarks/few_subjects.py DATA                    # three groups of five
    python benchmarks/few_subjects.py DATA --annotated 8      # two groups of eight

The 53 subjects of imagesTr by which nothing was chosen are the tests, one seed for each group, everything else by
default. A subject's Dice is the mean over the groups. AtlasNet's atlases are of the group, and once more the images of
every second other subject of the 17 beside them. With ``--work``, a call that was stopped goes on, and ``--groups``
names those that a call works on; the seconds of a stage are those of its last call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, named, summary_lines, work_folder
from study import chosen_by_none, listed, the_17

from atlasnet.study.methods import MAIN
from atlasnet.study.statistics import compare, interval, tail_difference, worst_tenth

FEWEST = 5  # subjects of a group, unless told otherwise
METHODS = ("augmented", "augmented-ensemble", "propagation-local", MAIN)
MORE = f"{MAIN}-unannotated-atlases"


def main() -> None:
    parser = arguments(__doc__ or "", "few_subjects")
    parser.add_argument("--annotated", type=int, default=FEWEST, metavar="N", help="subjects of a group")
    parser.add_argument("--groups", nargs="+", type=int, metavar="N", help="counted from 1 (default: all)")
    parser.add_argument("--only", nargs="+", choices=(*METHODS, MORE), default=(*METHODS, MORE), metavar="METHOD")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    annotated = options.annotated
    named(options, "few_subjects", "few_subjects" if annotated == FEWEST else f"few_subjects_{annotated}")
    data = options.data / "hippocampus"
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        tests = listed(work / "tests.txt", chosen_by_none(data))
        studies = {}
        for number in groups(data, annotated, options.groups):
            names = group(data, annotated, number)
            words = ("--subjects", listed(work / f"group_{number}.txt", names), "--test-subjects", tests)
            folder = work / f"study_{number}"
            kept: dict[str, Any] = {"trained": names, "subjects": {}}
            if methods := [method for method in options.only if method != MORE]:
                bench.atlasnet(f"group {number}", "study", data, *words, "-o", folder, "--seeds", 1, "--only", *methods)
                study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
                kept |= {key: study[key] for key in ("methods", "subjects", "how", "cautions")}
            if MORE in options.only:
                kept["subjects"][MORE] = with_more_atlases(bench, names, number, chosen_by_none(data))
            studies[number] = kept
        dice = {
            method: mean_of([study["subjects"][method] for study in studies.values()])
            for method in (*METHODS, MORE)
            if all(method in study["subjects"] for study in studies.values())
        }
        found = {method: scores(rows) for method, rows in dice.items()}
        ahead = {method: gains(dice, method) for method in (MAIN, MORE) if method in dice}
        bench.result |= {"note": options.note, "methods": found, "ahead": ahead, "groups": studies}
        print(summary_lines({name: round(row["dice"], 4) for name, row in found.items()}))
        bench.write()


def groups(data: Path, annotated: int, wanted: Sequence[int] | None = None) -> Sequence[int]:
    """The numbers of the disjoint groups of so many subjects, or those of them that are wanted."""
    there = range(1, len(the_17(data)) // annotated + 1)
    if others := set(wanted or ()) - set(there):
        raise SystemExit(f"there is no group {min(others)} of {annotated} subjects: they are 1 to {len(there)}")
    return wanted or there


def group(data: Path, annotated: int, number: int) -> list[str]:
    """The training subjects of one of the `groups`."""
    return the_17(data)[number - 1 :: len(groups(data, annotated))][:annotated]


def with_more_atlases(bench: Bench, names: list[str], number: int, tests: list[str]) -> dict[str, float]:
    """Each test's Dice by the model of a group whose atlases are these and the images of others of the 17."""
    data, folder = bench.options.data / "hippocampus", bench.work / f"more_{number}"
    others = [name for name in the_17(data) if name not in names][::2]
    atlases = [*names, *(data / "imagesTr" / f"{name}_0000.nii.gz" for name in others)]
    chosen = [word for atlas in atlases for word in ("--atlas", atlas)]
    model, predictions, table = folder / "model", folder / "predictions", folder / "table.json"
    subjects = ("--subjects", bench.work / f"group_{number}.txt")
    images = [data / "imagesTr" / f"{name}_0000.nii.gz" for name in tests]
    bench.atlasnet(f"group {number}, more atlases", "train", data, *subjects, *chosen, "-o", model)
    bench.atlasnet(f"group {number}, more atlases, prediction", "predict", *images, "-m", model, "-o", predictions)
    scored = ("evaluate", predictions, data / "labelsTr", "--allow-missing", "-o", table)
    bench.atlasnet(f"group {number}, more atlases, evaluation", *scored)
    rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    return {name: float(np.mean([row["dice"] for row in rows if row["case"] == name])) for name in tests}


def mean_of(studies: list[dict[str, float]]) -> dict[str, float]:
    """Each subject's mean over the studies."""
    return {name: float(np.mean([study[name] for study in studies])) for name in studies[0]}


def gains(dice: dict[str, dict[str, float]], method: str) -> dict[str, Any]:
    """How far a method is ahead of each that it was compared with: of all without further atlases."""
    pairs = {other: (dice[method], rows) for other, rows in dice.items() if other not in (method, MORE)}
    tails = {other: tail_difference(*both) for other, both in pairs.items()}
    return {other: asdict(row) | {"worst_tenth": tails[other]} for other, row in compare(pairs).items()}


def scores(dice: dict[str, float]) -> dict[str, Any]:
    """A method's mean over the subjects and its tail, with their intervals."""
    values = np.array(list(dice.values()))
    return {
        "dice": float(np.mean(values)),
        "interval": interval(values),
        "worst_tenth": float(worst_tenth(values)),
        "worst_tenth_interval": interval(values, worst_tenth),
    }


if __name__ == "__main__":
    main()

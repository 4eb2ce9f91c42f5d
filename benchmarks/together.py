"""Models of one cohort, each alone and fused with the others, on the very same registrations of every scan.

    python benchmarks/together.py DATA --tests development --seed-models 2d=A,3d=B --seed-models 2d=C,3d=D

DATA holds ``hippocampus``. Every ``--seed-models`` names the models of one repetition, each a folder that `atlasnet
train` made; all repetitions have the same names. A scan is registered once onto every atlas of all of them. Reported is
the mean Dice of every model and of all combinations, over the repetitions, with intervals over the subjects, and the
paired difference to the first model; with ``--first`` also that of the first so many atlases of a model alone; with
``--beside`` the paired difference to every method of a result of study.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, named, summary_lines
from study import development

from atlasnet.cohort import Cohort, Subject
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import Execution
from atlasnet.prediction import Ensemble, Predictor
from atlasnet.prediction.answers import Answers
from atlasnet.study import read_test_subjects
from atlasnet.study.statistics import compare, interval, worst_tenth
from atlasnet.training.model import Model
from atlasnet.training.subjects import read_names

AND = " + "


def main() -> None:
    parser = arguments(__doc__ or "", "together")
    parser.add_argument("--tests", choices=("development", "release"), default="development")
    parser.add_argument("--seed-models", type=_models, action="append", required=True, metavar="NAME=MODEL,...")
    parser.add_argument("--first", type=int, nargs="*", default=[], metavar="N", help="of every model's atlases")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], metavar="RESULT", help="of study.py")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    parser.add_argument("--resume", action="store_true", help="keep the subjects that the result holds")
    options = parser.parse_args()
    named(options, "together", f"together_{options.tests}")
    data = options.data / "hippocampus"
    cohort = Cohort.read(data)
    names = development(data) if options.tests == "development" else None
    tests = read_test_subjects(data, cohort, names)
    repetitions = [{name: Model.load(place) for name, place in models.items()} for models in options.seed_models]
    trained = {tuple(sorted(model.provenance["data"])) for models in repetitions for model in models.values()}
    if trained != {tuple(sorted(read_names(data / "train17.txt")))}:
        parser.error("the models were not all trained on the subjects of train17.txt")

    bench = Bench(options, options.seed_models[0][next(iter(options.seed_models[0]))].parent)
    words = [f"{name} of seed {m.provenance['seed']}" for models in repetitions for name, m in models.items()]
    shown = [options.data, "--tests", options.tests, "--threads", options.threads, "--first", *options.first]
    bench.result["command"] = "python benchmarks/together.py " + bench.shown([str(word) for word in shown])
    bench.result |= {
        "note": options.note,
        "models": {w: _told(m) for w, m in zip(words, _all(repetitions), strict=True)},
    }
    before = bench.before()
    subjects: dict[str, Any] = {} if before is None else before["subjects"]
    bench.result["subjects"] = subjects
    execution = Execution(threads=options.threads)
    predictor = Predictor(Ensemble(tuple(_all(repetitions)), tuple(words)), execution=execution)
    for test in tests:
        if test.name not in subjects:
            subjects[test.name] = scored(test, predictor, cohort, repetitions, options.first)
            print(json.dumps({test.name: subjects[test.name]["dice"]}), flush=True)
            bench.write()
    bench.result["summary"] = summary(subjects, options.beside)
    bench.write()
    for name, row in bench.result["summary"].items():
        print(f"\n{name}\n{summary_lines(row)}")


def _models(text: str) -> dict[str, Path]:
    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if not found:
        raise argparse.ArgumentTypeError(f"expected NAME=MODEL,..., found {text!r}")
    return {name: Path(place) for name, place in found.items()}


def _all(repetitions: Sequence[Mapping[str, Model]]) -> list[Model]:
    return [model for models in repetitions for model in models.values()]


def _told(model: Model) -> dict[str, Any]:
    """What a model is, and how long its networks took."""
    summary = model.summary()
    told = {
        key: summary[key] for key in ("network", "network_spacing_mm", "epochs_of_networks", "checksum", "versions")
    }
    logs = [(model.folder / "log").glob("*.csv"), (model.folder / "log" / "common").glob("*.csv")]
    rows = [line.split(",") for files in logs for file in files for line in file.read_text().splitlines()]
    column = rows[0].index("seconds")
    seconds = sum(float(row[column]) for row in rows if row[column] != "seconds")
    return told | {"atlases": [atlas.name for atlas in model.atlases], "minutes_of_networks": round(seconds / 60, 1)}


def scored(
    test: Subject,
    predictor: Predictor,
    cohort: Cohort,
    repetitions: Sequence[Mapping[str, Model]],
    first: Sequence[int],
) -> dict[str, Any]:
    """Dice (mean over the labels) of every model, of its first atlases, and of all of a repetition fused."""
    answers, reference = predictor.ask(test.read_image()), test.read_labels()

    def dice(asked: Answers) -> float:
        found = evaluate_subject(predictor.fuse(asked).labels, reference, cohort.labels, case=test.name)
        return round(float(np.mean([row.dice for row in found.rows])), 6)

    # The answers of the models stand one after the other, each with those of its atlases.
    parts, start = [], 0
    for model in predictor.ensemble.models:
        parts.append(answers.atlases[start : start + len(model.atlases)])
        start += len(model.atlases)
    rows: dict[str, list[float]] = {}
    for models in repetitions:
        own = {name: parts.pop(0) for name in models}
        for number in range(1, len(own) + 1):
            for names in combinations(own, number):
                asked = tuple(answer for name in names for answer in own[name])
                rows.setdefault(AND.join(names), []).append(dice(replace(answers, atlases=asked)))
        for name, asked in own.items():
            for count in (n for n in first if n < len(asked)):
                rows.setdefault(f"{name}, {count}", []).append(dice(replace(answers, atlases=asked[:count])))
    return {"dice": rows, "seconds": answers.stages.to_json()["seconds"]}


def summary(subjects: Mapping[str, Any], beside: Sequence[Path]) -> dict[str, Any]:
    """Per row, over the subjects, of the mean over the repetitions."""
    rows: dict[str, Any] = {}
    base: dict[str, float] = {}
    for name in next(iter(subjects.values()))["dice"]:
        of_seeds = np.array([subject["dice"][name] for subject in subjects.values()])
        dice = of_seeds.mean(1)
        own = dict(zip(subjects, dice.tolist(), strict=True))
        rows[name] = {
            "mean_dice": round(float(dice.mean()), 4),
            "interval_95": interval(dice),
            "worst_tenth": round(float(worst_tenth(dice)), 4),
            "worst_tenth_interval_95": interval(dice, worst_tenth),
            "dice_of_seeds": of_seeds.mean(0).round(4).tolist(),
        }
        if base:
            rows[name]["ahead_of_first"] = asdict(compare({"first": (own, base)})["first"])
        base = base or own
        for path in beside:
            others = json.loads(path.read_text(encoding="utf-8"))["study"]["subjects"]
            ahead = compare({other: (own, scores) for other, scores in others.items()})
            rows[name][f"ahead_of_{path.stem}"] = {other: asdict(gain) for other, gain in ahead.items()}
    return rows


if __name__ == "__main__":
    main()

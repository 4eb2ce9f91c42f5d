"""Every fusion of the atlases on the same answers of the same networks.

    python benchmarks/fusion.py DATA --model MODEL --test-subjects FILE

DATA is a cohort, MODEL what `atlasnet train` made of other subjects of its kind, FILE holds a name of DATA a line.
Every scan is registered and classified once, and each method fuses the very same probabilities; `learnt` is among them
where the model was trained with ``--folds``. Reported are each
subject's Dice, the paired difference to the fusion `mean` with its 95 % bootstrap interval, and the fusion's seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, summary_lines

from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import RegistrationError
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import Execution, digest
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.prediction.fusion import METHODS
from atlasnet.study import read_test_subjects
from atlasnet.study.statistics import interval
from atlasnet.training.model import Model
from atlasnet.training.subjects import read_names
from atlasnet.volume import volume_digest

BASE = "mean"


def main() -> None:
    parser = arguments(__doc__ or "", "fusion", data=False)
    parser.add_argument("data", type=Path, help="folder of the cohort")
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder or zip of the model")
    parser.add_argument("--test-subjects", type=Path, required=True, metavar="FILE", help="one name a line")
    parser.add_argument(
        "--resume", action="store_true", help="keep the subjects that the result holds, add those it lacks"
    )
    options = parser.parse_args()
    cohort, model = Cohort.read(options.data), Model.load(options.model)
    methods = [method for method in METHODS if method != "learnt" or model.fusion_weights is not None]
    tests = read_test_subjects(options.data, cohort, read_names(options.test_subjects))
    if model.labels != cohort.labels:
        parser.error(f"the model's labels are {model.labels}, those of {options.data} {cohort.labels}")
    known = {key for hashes in model.provenance["data"].values() for key in hashes["images"]}
    seen = [test.name for test in tests if any(volume_digest(path) in known for path in test.images)]
    if seen:
        parser.error("the model was trained on " + ", ".join(seen))

    bench = Bench(options, options.model.parent)
    words = [options.data, "--model", options.model, "--test-subjects", options.test_subjects.name]
    words += ["--seed", options.seed, "--threads", options.threads]
    bench.result["command"] = "python benchmarks/fusion.py " + bench.shown([str(word) for word in words])
    bench.result["model"] = {
        "sha256": digest(dict(model.checksums)),
        "atlases": [atlas.name for atlas in model.atlases],
        "trained_on": sorted(model.provenance["data"]),
        "epochs": model.provenance["recipe"]["epochs"],
        "fusion_weights": None if model.fusion_weights is None else model.fusion_weights.to_json(),
        "network": model.network.to_json(),
    }
    runs: dict[str, dict[str, Any]] = {}
    if options.resume and options.output.exists():
        before = json.loads(options.output.read_text(encoding="utf-8"))
        if any(before[key] != bench.result[key] for key in ("machine", "versions", "model")):
            parser.error(f"{options.output} was made on another machine, by other versions or with another model")
        runs = before["subjects"]
    bench.result["subjects"] = runs
    execution = Execution(threads=options.threads, seed=options.seed)
    predictor = Predictor(model, execution=execution)
    for test in tests:
        if test.name not in runs:
            runs[test.name] = fused(test, predictor, cohort, methods)
            print(json.dumps({test.name: runs[test.name].get("mean_dice", "failed")}), flush=True)
            bench.write()
    bench.result["summary"] = summary(runs, methods)
    bench.write()
    for method, row in bench.result["summary"].items():
        print(f"\n{method}\n{summary_lines(row)}")


def fused(test: Subject, predictor: Predictor, cohort: Cohort, methods: Sequence[str]) -> dict[str, Any]:
    """Dice and seconds of every method on one scan."""
    reference = test.read_labels()
    try:
        answers = predictor.ask(test.read_image(), fit=True)
    except RegistrationError as error:
        return {"failed": str(error)}
    found: dict[str, Any] = {"quality": {record["name"]: record["quality"] for _, record in answers.atlases}}
    found |= {"dice": {}, "mean_dice": {}, "fusion_seconds": {}}
    for method in methods:
        prediction = predictor.fuse(answers, PredictOptions(fusion=method))
        rows = evaluate_subject(
            prediction.labels, reference, cohort.labels, case=test.name, ignore_label=cohort.ignore_label
        ).rows
        found["dice"][method] = {row.label: round(row.dice, 6) for row in rows}
        found["mean_dice"][method] = round(float(np.mean([row.dice for row in rows])), 6)
        found["fusion_seconds"][method] = prediction.record["seconds"]["fusion"]
    return found


def summary(runs: dict[str, dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per method, over the subjects that could be registered."""
    done = [run for run in runs.values() if "failed" not in run]
    if not done:
        return {}
    scores = {method: np.array([run["mean_dice"][method] for run in done]) for method in methods}
    rows = {}
    for method, dice in scores.items():
        gain = dice - scores[BASE]
        ends = interval(gain)
        rows[method] = {
            "subjects": len(done),
            "mean_dice": round(float(dice.mean()), 4),
            "worst_dice": round(float(dice.min()), 4),
            "this_minus_mean": round(float(gain.mean()), 5),
            "interval_95": None if ends is None else [round(end, 5) for end in ends],
            "fusion_seconds_median": round(float(np.median([run["fusion_seconds"][method] for run in done])), 3),
        }
    return rows


if __name__ == "__main__":
    main()

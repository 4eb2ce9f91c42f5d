"""The default recipe beside others that differ from it in one choice: loss, optimiser, schedule, draw, augmentation.

    python benchmarks/recipe.py DATA --work WORK --resume
    python benchmarks/recipe.py DATA --only baseline "cross-entropy alone"

DATA holds ``hippocampus``. The 17 subjects of train17.txt train three atlases' networks by each recipe of `CHOICES`, on
the very same mapped cases; 30 others of `imagesTr` (see study.py) are segmented and scored. Reported per row: each
subject's mean Dice over the labels, the paired difference to the first row and to the mean of the default's rows with
their 95 % bootstrap intervals over the subjects, not corrected for the number of rows, and the CPU seconds of the
networks' training. Rows of the default with other seeds show how much of a difference is chance, of which the intervals
know nothing. With ``--resume``, rows that the result holds are kept, and with ``--work`` a training that was stopped
goes on; the seconds of its row are then not known.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, summary_lines, work_folder
from study import development

from atlasnet import AtlasNet
from atlasnet.cohort import Cohort, Subject
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import Execution, TextReporter, WorkFolder
from atlasnet.prediction import Predictor
from atlasnet.registration import make_operator
from atlasnet.study import read_test_subjects
from atlasnet.study.memory import RememberingOperator
from atlasnet.study.statistics import compare, worst_tenth
from atlasnet.training.model import Model
from atlasnet.training.recipe import Recipe
from atlasnet.training.subjects import read_names

ATLASES = ("hippocampus_024", "hippocampus_287", "hippocampus_332")
NOTE = (
    "Three atlases, one seed but for the rows that name another. Intervals are over subjects, not over seeds, and not "
    "corrected for the number of comparisons: a difference within twice the spread of the seeds may be chance."
)
MAPPING = "mapping"  # a training of one epoch that leaves registrations and mapped cases to all rows


@dataclass(frozen=True)
class Choice:
    """A recipe that differs from the default one.

    Args:
        name: of the row.
        recipe: fields of `Recipe` and what they are instead.
        augmentation: fields of its `Augmentation`, likewise.
        seed: added to that of the command.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def made(self) -> Recipe:
        """The recipe."""
        default = Recipe.preset("default")
        return replace(default, augmentation=replace(default.augmentation, **self.augmentation), **self.recipe)

    @property
    def how(self) -> str:
        """What is other than in the default, in words of Python."""
        changes = [f"{name}={value!r}" for name, value in self.recipe.items()]
        if self.augmentation:
            within = ", ".join(f"{name}={value!r}" for name, value in self.augmentation.items())
            changes.append(f"augmentation=replace(default.augmentation, {within})")
        return ", ".join([*changes, *([f"seed + {self.seed}"] if self.seed else [])]) or "the default"


NO_COLOUR = {"contrast": 0.0, "brightness": 0.0, "gamma": 0.0, "noise": 0.0}
NO_MOTION = {"rotation": 0.0, "translation": 0.0, "scale": 0.0}
NNUNET_SGD = {
    "optimiser": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.99,
    "nesterov": True,
    "weight_decay": 3e-5,
    "schedule": "poly",
    "warmup": 0.0,
}

CHOICES = (
    Choice("baseline"),
    Choice("cross-entropy alone", {"dice": False}),
    Choice("another seed", seed=1),
    Choice("a third seed", seed=2),
    Choice("SGD with Nesterov's momentum, as nnU-Net", NNUNET_SGD),
    Choice("intensities not augmented", augmentation=NO_COLOUR),
    Choice("not augmented", augmentation={**NO_MOTION, **NO_COLOUR}),
    Choice("no draw of slices with foreground", {"foreground": 0.0}),
    Choice("median frequency balancing", {"balancing": True}),
    Choice("rotation and scale half as wide", augmentation={"rotation": 15.0, "scale": 0.125}),
    Choice("poly schedule", {"schedule": "poly"}),
)


def main() -> None:
    parser = arguments(__doc__ or "", "recipe_choices")
    names = [choice.name for choice in CHOICES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help="and the first, of all rows")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the result holds, add those it lacks")
    options = parser.parse_args()
    data = options.data / "hippocampus"
    cohort = Cohort.read(data)
    trained = cohort.select(read_names(data / "train17.txt"))
    tests = read_test_subjects(data, cohort, development(data))
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        before = bench.before()
        rows: list[dict[str, Any]] = [] if before is None else before["rows"]
        note = f"{NOTE} {options.note}".strip()
        bench.result |= {"note": note, "atlases": list(ATLASES), "default": CHOICES[0].made.to_json(), "rows": rows}
        wanted = [choice for choice in CHOICES if choice.name in (names[0], *(options.only or names))]
        if any("dice" not in row_of(choice, rows) for choice in wanted):
            fitted(MAPPING, Recipe.preset("default", epochs=1), trained, work, options.seed, options.threads)
        for choice in wanted:
            row = row_of(choice, rows)
            afresh, started = not (work / "models" / choice.name).exists(), time.process_time()
            if "dice" not in row:
                model = fitted(choice.name, choice.made, trained, work, options.seed + choice.seed, options.threads)
                if "cpu_seconds" not in row:
                    row["cpu_seconds"] = round(time.process_time() - started, 1) if afresh else None
                    bench.write()
                row["dice"] = scores(model, tests, cohort, work, Execution(threads=options.threads, seed=options.seed))
            rows.sort(key=lambda row: names.index(row["what"]))
            bench.result["seeds"] = compared([row for row in rows if "dice" in row])
            bench.write()
            print(f"\n{summary_lines({name: row[name] for name in row if name != 'dice'})}", flush=True)


def row_of(choice: Choice, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Its row among those of the result, or a new one at their end."""
    for row in rows:
        if row["what"] == choice.name:
            if row["how"] != choice.how:
                sys.exit(f"the result has a row {choice.name!r} of another recipe: {row['how']}")
            return row
    rows.append({"what": choice.name, "how": choice.how})
    return rows[-1]


def fitted(name: str, recipe: Recipe, cohort: Cohort, work: Path, seed: int, threads: int) -> Model:
    """The model of a recipe; those of one work folder share what does not depend on it."""
    execution = Execution(threads=threads, seed=seed, reporter=TextReporter())
    net = AtlasNet(atlases=ATLASES, preset=recipe, execution=execution)
    net.fit(cohort, work / "models" / name, work=work / "pieces")
    return Model.load(work / "models" / name)


def scores(
    model: Model, tests: Sequence[Subject], cohort: Cohort, work: Path, execution: Execution
) -> dict[str, float]:
    """Every subject's Dice, the mean over the labels; a scan is registered once for all rows, as in a study."""
    operator = make_operator(model.operator, **model.operator_settings)
    predictor = Predictor(
        model, execution=execution, operator=RememberingOperator(operator, WorkFolder(work / "tests"))
    )
    found = {}
    for test in tests:
        labels = predictor.predict(test.read_image()).labels
        table = evaluate_subject(labels, test.read_labels(), cohort.labels, case=test.name)
        found[test.name] = round(float(np.mean([row.dice for row in table.rows])), 6)
    return found


def compared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add to the rows what their scores say, also beside those of the default; gives how far its seeds lie apart."""
    defaults = {choice.name for choice in CHOICES if choice.made == CHOICES[0].made}
    seeds = [row["dice"] for row in rows if row["what"] in defaults]
    mean = {name: float(np.mean([dice[name] for dice in seeds])) for name in seeds[0]}
    for row in rows:
        values = np.array([*row["dice"].values()])
        row |= {
            "mean_dice": round(float(values.mean()), 4),
            "median": round(float(np.median(values)), 4),
            "worst_tenth": round(float(worst_tenth(values)), 4),
        }
        if row["dice"] is not seeds[0]:
            row["minus_first"] = difference(row["dice"], seeds[0])
        if row["what"] not in defaults and len(seeds) > 1:
            row["minus_seeds"] = difference(row["dice"], mean)
        row["dice"] = row.pop("dice")  # at the end
    means = [float(np.mean([*dice.values()])) for dice in seeds]
    spread = round(float(np.std(means, ddof=1)), 4) if len(means) > 1 else None
    return {"mean_dice": [round(value, 4) for value in means], "standard_deviation": spread}


def difference(dice: Mapping[str, float], base: Mapping[str, float]) -> dict[str, Any]:
    """The paired difference of two rows."""
    gain = compare({"base": (dice, base)})["base"]
    ends = None if gain.interval is None else [round(end, 4) for end in gain.interval]
    return {"mean": round(gain.mean, 4), "interval_95": ends, "p_wilcoxon": round(gain.p, 4)}


if __name__ == "__main__":
    main()

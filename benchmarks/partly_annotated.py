"""What a label is worth that few subjects have: the posterior hippocampus, drawn in 4 of 17.

    python benchmarks/partly_annotated.py DATA [--epochs 20] [--seeds 3]

DATA holds ``hippocampus``. The 17 subjects of train17.txt train one atlas's network, once with all labels and three
times where 13 of them lack the posterior part, whose voxels are background there: as the cohort says so in
``"annotated"`` of its dataset.json; as if that were the truth; and with the 4 complete subjects alone. Trainings of
several seeds; 30 others of `imagesTr` (see study.py) are segmented and scored. Reported per row, seed and label: the
mean Dice; per row and label its mean over the seeds, and the paired difference of the subjects' means over the seeds to
the first row with its 95 % bootstrap interval over the subjects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, summary_lines, work_folder
from recipe import difference
from study import development

from atlasnet import AtlasNet, write_labels
from atlasnet.cohort import Cohort, Subject
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import Execution, TextReporter, WorkFolder
from atlasnet.prediction import Predictor
from atlasnet.registration import make_operator
from atlasnet.study import read_test_subjects
from atlasnet.study.memory import RememberingOperator
from atlasnet.training.model import Model
from atlasnet.training.recipe import Recipe
from atlasnet.training.subjects import read_names

ATLAS = "hippocampus_024"
COMPLETE = 4
HIDDEN = "posterior"


def incomplete(folder: Path, cohort: Cohort, complete: Sequence[str]) -> Cohort:
    """The cohort in a folder of its own, in which the others have no voxel of the hidden label."""
    value = cohort.labels[HIDDEN]
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    (folder / "imagesTr").mkdir(exist_ok=True)
    for subject in cohort:
        (image,) = subject.images
        link = folder / "imagesTr" / image.name
        if not link.exists():
            link.symlink_to(image.resolve())
        labels = subject.read_labels()
        if subject.name not in complete:
            labels.array[labels.array == value] = 0
        write_labels(folder / "labelsTr" / f"{subject.name}.nii.gz", labels)
    declared = {"channel_names": {"0": cohort.channels[0]}, "labels": dict(cohort.labels)}
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return Cohort.read(folder)


def scores(model: Model, tests: Sequence[Subject], cohort: Cohort, work: Path, execution: Execution) -> dict[str, Any]:
    """By label, every subject's Dice; a scan is registered once for all rows."""
    operator = make_operator(model.operator, **model.operator_settings)
    remembering = RememberingOperator(operator, WorkFolder(work / "tests"))
    predictor = Predictor(model, execution=execution, operator=remembering)
    found: dict[str, dict[str, float]] = {}
    for test in tests:
        labels = predictor.predict(test.read_image()).labels
        for row in evaluate_subject(labels, test.read_labels(), cohort.labels, case=test.name).rows:
            found.setdefault(row.label, {})[test.name] = round(float(row.dice), 6)
    return found


def summary(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """By label, every subject's mean over the seeds."""
    return {
        label: {case: float(np.mean([one[label][case] for one in seeds])) for case in seeds[0][label]}
        for label in seeds[0]
    }


def main() -> None:
    parser = arguments(__doc__ or "", "partly_annotated")
    parser.add_argument("--epochs", type=int, default=20, help="of every training (default: 20)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every row (default: 3)")
    options = parser.parse_args()
    data = options.data / "hippocampus"
    everyone = Cohort.read(data)
    whole = everyone.select(read_names(data / "train17.txt"))
    tests = read_test_subjects(data, everyone, development(data))
    recipe = Recipe.preset("default").with_epochs(options.epochs)
    names = [subject.name for subject in whole]
    complete = [ATLAS, *[name for name in names if name != ATLAS][: COMPLETE - 1]]
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        lacking = incomplete(work / "lacking", whole, complete)
        others = [label for label, value in lacking.labels.items() if value and label != HIDDEN]
        rows: dict[str, Cohort] = {
            "all annotated": whole,
            "said to lack it": lacking.annotated({name: others for name in names if name not in complete}),
            "taken for background": lacking,
            "the complete ones alone": lacking.select(complete),
        }
        bench.result |= {"atlas": ATLAS, "complete": complete, "hidden": HIDDEN, "recipe": recipe.to_json(), "rows": {}}
        first: dict[str, dict[str, float]] = {}
        for what, cohort in rows.items():
            seeds = []
            for number in range(options.seeds):
                execution = Execution(threads=options.threads, seed=options.seed + number, reporter=TextReporter())
                folder = work / "models" / f"{what} {number}"
                AtlasNet(atlases=(ATLAS,), preset=recipe, execution=execution).fit(cohort, folder, work=work / "pieces")
                silent = Execution(threads=options.threads, seed=options.seed)
                seeds.append(scores(Model.load(folder), tests, everyone, work, silent))
            means = summary(seeds)
            first = first or means
            row: dict[str, Any] = {"subjects": len(cohort)}
            for label, dice in means.items():
                row[label] = {
                    "mean_dice": round(float(np.mean([*dice.values()])), 4),
                    "of_the_seeds": [round(float(np.mean([*one[label].values()])), 4) for one in seeds],
                }
                if dice is not first[label]:
                    row[label]["minus_first"] = difference(dice, first[label])
            bench.result["rows"][what] = row | {"dice": seeds}
            bench.write()
            print(f"\n{what}\n{summary_lines(row)}", flush=True)


if __name__ == "__main__":
    main()

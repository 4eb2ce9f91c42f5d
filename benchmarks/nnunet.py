"""nnU-Net v2 on the training subjects of the hippocampus studies, trained for the time of AtlasNet's training.

    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20
    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20 --tests release
    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 10 --fives 1 2 3

PEER is an environment that holds ``nnunetv2``. Both configurations are trained, 2d and 3d_fullres, on the 17 subjects
of `study.py`; the tests are those there: 30 others of imagesTr, or imagesTs, which is scored once for a release.
With ``--fives`` the subjects are those of `few_subjects.py`, to train on as to test on. With ``--work``, a call that
was stopped goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import RESULTS, Bench, arguments, measure, named, summary_lines, work_folder
from few_subjects import FEWEST, group, groups, mean_of, scores
from study import chosen_by_none, development, the_17

from atlasnet.study.methods import MAIN
from atlasnet.study.statistics import compare, tail_difference

DATASET, CONFIGURATIONS = "Dataset900_Hippocampus", ("2d", "3d_fullres")


def prepare(data: Path, names: list[str], raw: Path) -> None:
    """The training subjects as nnU-Net reads them."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(data / "imagesTr" / f"{name}_0000.nii.gz", raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copyfile(data / "labelsTr" / f"{name}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
    declared = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps(declared | {"numTraining": len(names)}), encoding="utf-8")


def tests_of(data: Path, names: list[str], work: Path) -> tuple[Path, Path]:
    """Folders of the images and references of these subjects of imagesTr."""
    images, references = work / "images", work / "references"
    for folder in (images, references):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(data / "imagesTr" / f"{name}_0000.nii.gz", images / f"{name}_0000.nii.gz")
        shutil.copyfile(data / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    return images, references


def main() -> None:
    parser = arguments(__doc__ or "", "nnunet_development")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that holds nnunetv2")
    parser.add_argument("--minutes", type=float, required=True, help="of each training: those of AtlasNet's")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=CONFIGURATIONS, help="train these alone")
    parser.add_argument("--tests", choices=("development", "release"), default="development")
    parser.add_argument("--fives", nargs="+", type=int, metavar="N", help="in place of the 17; the tests are others")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    if options.fives and options.tests == "release":
        parser.error("with --fives the tests are others than imagesTs")
    named(options, "nnunet_development", "nnunet_few_subjects" if options.fives else f"nnunet_{options.tests}")
    data = options.data / "hippocampus"
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        bench.result |= {"note": options.note, "minutes": options.minutes}
        if options.fives:
            fives = {}
            for number in groups(data, FEWEST, options.fives):
                tests = tests_of(data, chosen_by_none(data), work / f"five_{number}")
                fives[number] = trained_on(bench, work / f"five_{number}", group(data, FEWEST, number), tests)
            bench.result |= {"fives": fives, "methods": beside_atlasnet(fives)}
        else:
            tests = (data / "imagesTs", data / "labelsTs")
            if options.tests == "development":
                tests = tests_of(data, development(data), work)
            bench.result |= {"methods": trained_on(bench, work, the_17(data), tests)}
        bench.write()


def trained_on(bench: Bench, work: Path, names: list[str], tests: tuple[Path, Path]) -> dict[str, Any]:
    """What each configuration reaches that is trained on these subjects; one that is finished in the folder is read."""
    options = bench.options
    os.environ |= {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(options.threads)}
    prepare(options.data / "hippocampus", names, work / "raw" / DATASET)
    methods: dict[str, Any] = {}
    for configuration in options.only:
        finished = work / f"{configuration}_found.json"
        if not finished.exists():
            found = train(bench, work, configuration, tests)
            finished.write_text(json.dumps(found), encoding="utf-8")
        methods[configuration] = json.loads(finished.read_text(encoding="utf-8"))
        print(summary_lines({f"nnU-Net {configuration}": methods[configuration]["mean_dice"]}))
    return methods


def train(bench: Bench, work: Path, configuration: str, tests: tuple[Path, Path]) -> dict[str, Any]:
    """Plan, train and test one configuration on what lies prepared in the folder."""
    options, (images, references) = bench.options, tests
    commands = options.python.absolute().parent
    plan = ["nnUNetv2_plan_and_preprocess", "-d", "900", "-np", "1", "-c", configuration]
    subprocess.run([str(commands / plan[0]), *plan[1:]], check=True)
    record, predictions = work / f"{configuration}.json", work / f"predictions_{configuration}"
    script = Path(__file__).with_name("nnunet_training.py")
    words = [DATASET, configuration, 60 * options.minutes, options.threads, options.seed, record]
    training = measure([str(options.python), str(script), *map(str, words)])
    predict = ["-i", images, "-o", predictions, "-d", "900", "-c", configuration, "-f", "all", "-device", "cpu"]
    predicting = measure([str(commands / "nnUNetv2_predict"), *map(str, predict), "-npp", "1", "-nps", "1"])
    if training["exit_code"] or predicting["exit_code"]:
        raise SystemExit(f"nnU-Net {configuration} failed")
    table = work / f"{configuration}_table.json"
    bench.atlasnet(f"evaluate {predictions.relative_to(bench.work)}", "evaluate", predictions, references, "-o", table)
    rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    dice = {case: _mean([row["dice"] for row in rows if row["case"] == case]) for case in _cases(rows)}
    worst = sorted(dice.values())[: max(1, len(dice) // 10)]
    return {
        "mean_dice": round(_mean(list(dice.values())), 4),
        "worst_tenth": round(_mean(worst), 4),
        "training": {"process": training, **json.loads(record.read_text(encoding="utf-8"))},
        "prediction": predicting,
        "dice": {case: round(value, 4) for case, value in dice.items()},
    }


def beside_atlasnet(fives: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Each configuration's scores, a subject's Dice being the mean over the fives, and how far AtlasNet is ahead.

    AtlasNet's Dice is that of `few_subjects.py` with the same fives, read from its result.
    """
    studies = json.loads((RESULTS / "few_subjects.json").read_text(encoding="utf-8"))["groups"]
    ours = mean_of([studies[str(number)]["subjects"][MAIN] for number in fives])
    pairs = {
        configuration: (ours, mean_of([found[configuration]["dice"] for found in fives.values()]))
        for configuration in next(iter(fives.values()))
    }
    ahead = compare(pairs)
    return {
        configuration: scores(theirs)
        | {"atlasnet_is_ahead": asdict(ahead[configuration]) | {"worst_tenth": tail_difference(ours, theirs)}}
        for configuration, (_, theirs) in pairs.items()
    }


def _cases(rows: list[dict[str, object]]) -> list[str]:
    return sorted({str(row["case"]) for row in rows})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()

"""nnU-Net v2 on the training subjects of the hippocampus studies, trained for the time of AtlasNet's training.

    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20
    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20 --tests release
    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 10 --five 1

PEER is an environment that holds ``nnunetv2``. Both configurations are trained, 2d and 3d_fullres, on the 17 subjects
of `study.py`; the tests are those there: 30 others of imagesTr, or imagesTs, which is scored once for a release.
With ``--five`` the subjects are those of `few_subjects.py`, to train on as to test on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench import Bench, arguments, measure, named, summary_lines, work_folder
from few_subjects import FIVES, five
from study import chosen_by_none, development, the_17

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
        folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(data / "imagesTr" / f"{name}_0000.nii.gz", images / f"{name}_0000.nii.gz")
        shutil.copyfile(data / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    return images, references


def main() -> None:
    parser = arguments(__doc__ or "", "nnunet_development")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that holds nnunetv2")
    parser.add_argument("--minutes", type=float, required=True, help="of each training: those of AtlasNet's")
    parser.add_argument("--tests", choices=("development", "release"), default="development")
    parser.add_argument("--five", type=int, choices=FIVES, help="in place of the 17, five of them, and other tests")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    if options.five is not None and options.tests == "release":
        parser.error("with --five the tests are others than imagesTs")
    kind = options.tests if options.five is None else f"five_{options.five}"
    named(options, "nnunet_development", f"nnunet_{kind}")
    data, commands = options.data / "hippocampus", options.python.absolute().parent
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        os.environ |= {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
        os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(options.threads)}
        if options.five is not None:
            trained, (images, references) = five(data, options.five), tests_of(data, chosen_by_none(data), work)
        elif options.tests == "release":
            trained, (images, references) = the_17(data), (data / "imagesTs", data / "labelsTs")
        else:
            trained, (images, references) = the_17(data), tests_of(data, development(data), work)
        prepare(data, trained, work / "raw" / DATASET)
        plan = ["nnUNetv2_plan_and_preprocess", "-d", "900", "-np", "1", "-c", *CONFIGURATIONS]
        subprocess.run([str(commands / plan[0]), *plan[1:]], check=True)
        methods: dict[str, object] = {}
        for configuration in CONFIGURATIONS:
            record, predictions = work / f"{configuration}.json", work / f"predictions_{configuration}"
            script = Path(__file__).with_name("nnunet_training.py")
            words = [DATASET, configuration, 60 * options.minutes, options.threads, options.seed, record]
            training = measure([str(options.python), str(script), *map(str, words)])
            predict = ["-i", images, "-o", predictions, "-d", "900", "-c", configuration, "-f", "all", "-device", "cpu"]
            predicting = measure([str(commands / "nnUNetv2_predict"), *map(str, predict), "-npp", "1", "-nps", "1"])
            if training["exit_code"] or predicting["exit_code"]:
                raise SystemExit(f"nnU-Net {configuration} failed")
            table = work / f"{configuration}_table.json"
            bench.atlasnet(f"evaluate {configuration}", "evaluate", predictions, references, "-o", table)
            rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
            dice = {case: _mean([row["dice"] for row in rows if row["case"] == case]) for case in _cases(rows)}
            worst = sorted(dice.values())[: max(1, len(dice) // 10)]
            methods[configuration] = {
                "mean_dice": round(_mean(list(dice.values())), 4),
                "worst_tenth": round(_mean(worst), 4),
                "training": {"process": training, **json.loads(record.read_text(encoding="utf-8"))},
                "prediction": predicting,
                "dice": {case: round(value, 4) for case, value in dice.items()},
            }
            bench.result |= {"note": options.note, "minutes": options.minutes, "methods": methods}
            print(summary_lines({f"nnU-Net {configuration}": methods[configuration]}))
            bench.write()


def _cases(rows: list[dict[str, object]]) -> list[str]:
    return sorted({str(row["case"]) for row in rows})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()

"""nnU-Net v2 on the 17 training subjects of the hippocampus study, trained for the time of AtlasNet's training.

    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20
    python benchmarks/nnunet.py DATA --python PEER/bin/python --minutes 20 --tests release

PEER is an environment that holds ``nnunetv2``. Both configurations are trained, 2d and 3d_fullres; the tests are those
of `study.py`: 30 other subjects of imagesTr, or imagesTs, which is scored once for a release.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench import Bench, arguments, measure, named, summary_lines, work_folder
from study import development

DATASET, CONFIGURATIONS = "Dataset900_Hippocampus", ("2d", "3d_fullres")


def prepare(data: Path, raw: Path) -> None:
    """The training subjects as nnU-Net reads them."""
    names = (data / "train17.txt").read_text(encoding="utf-8").split()
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(data / "imagesTr" / f"{name}_0000.nii.gz", raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copyfile(data / "labelsTr" / f"{name}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
    declared = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps(declared | {"numTraining": len(names)}), encoding="utf-8")


def tests_of(data: Path, wanted: str, work: Path) -> tuple[Path, Path]:
    """Folders of the test subjects' images and references."""
    if wanted == "release":
        return data / "imagesTs", data / "labelsTs"
    images, references = work / "images", work / "references"
    for folder in (images, references):
        folder.mkdir(exist_ok=True)
    for name in development(data):
        shutil.copyfile(data / "imagesTr" / f"{name}_0000.nii.gz", images / f"{name}_0000.nii.gz")
        shutil.copyfile(data / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    return images, references


def main() -> None:
    parser = arguments(__doc__ or "", "nnunet_development")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that holds nnunetv2")
    parser.add_argument("--minutes", type=float, required=True, help="of each training: those of AtlasNet's")
    parser.add_argument("--tests", choices=("development", "release"), default="development")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    named(options, "nnunet_development", f"nnunet_{options.tests}")
    data, commands = options.data / "hippocampus", options.python.absolute().parent
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        os.environ |= {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
        os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(options.threads)}
        prepare(data, work / "raw" / DATASET)
        images, references = tests_of(data, options.tests, work)
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

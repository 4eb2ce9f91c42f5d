"""Voxels that are planned finer for thin structures, beside those that are usual: lungs and bones of chests.

    python benchmarks/thin_structures.py DATA --leave-out chest_101

Bones are made as in `registration.py`, and are too thin for the half million voxels in which networks see a chest. The
rest of the five subjects trains two atlases' networks, in both spacings with the same registrations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench import Bench, arguments, summary_lines, work_folder
from registration import BONE, BONE_LABEL, body

from atlasnet.cohort.check import check_cohort
from atlasnet.execution import write_json
from atlasnet.volume import read_labels, read_volume, write_volume


def prepare(data: Path, cohort: Path) -> None:
    """The chests, with the bones of each as a third label."""
    for path in sorted((data / "labelsTr").glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        image, labels = read_volume(data / "imagesTr" / f"{case}_0000.nii.gz"), read_labels(path)
        values = labels.array[0]
        values[(values == 0) & (image.array[0] > BONE) & body(image.array[0])] = BONE_LABEL
        write_volume(cohort / "imagesTr" / f"{case}_0000.nii.gz", image)
        write_volume(cohort / "labelsTr" / path.name, labels)
    declared = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    declared["labels"] |= {"bone": BONE_LABEL}
    write_json(cohort / "dataset.json", declared)


def main() -> None:
    parser = arguments(__doc__ or "", "thin_structures")
    parser.add_argument("--leave-out", nargs="+", metavar="CASE", default=["chest_101", "chest_201"])
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        bench, cohort = Bench(options, work), work / "cohort"
        if not (cohort / "dataset.json").exists():
            prepare(options.data / "chest-ct", cohort)
        names = [path.name.removesuffix(".nii.gz") for path in sorted((cohort / "labelsTr").glob("*.nii.gz"))]
        found = {}
        for case in options.leave_out:
            subjects = work / f"without_{case}.txt"
            subjects.write_text("".join(f"{name}\n" for name in names if name != case), encoding="utf-8")
            planned = check_cohort(cohort, subjects=[name for name in names if name != case]).planned
            if planned is None or planned.kept is None:
                raise SystemExit("nothing is lost between the voxels that are usual")
            spacings = {"usual": planned.kept.spacings[0], "planned": planned.plan.spacing}
            for name, spacing in spacings.items():
                fold = work / f"{case}_{name}"
                fold.mkdir(exist_ok=True)
                if name == "planned" and not (fold / "model").exists():
                    shutil.copytree(work / f"{case}_usual/model/work/registrations", fold / "model/work/registrations")
                words = [cohort, "--subjects", subjects, "--atlases", 2, "-o", fold / "model", "--spacing", *spacing]
                training = bench.atlasnet(f"{case} {name} train", *bench.train_words(*words))
                image, prediction = cohort / "imagesTr" / f"{case}_0000.nii.gz", fold / f"{case}.nii.gz"
                verb = ("predict", image, "-m", fold / "model", "-o", prediction, "--overwrite")
                predicting = bench.atlasnet(f"{case} {name} predict", *verb)
                table = fold / "table.json"
                reference = cohort / "labelsTr" / f"{case}.nii.gz"
                bench.atlasnet(f"{case} {name} evaluate", "evaluate", prediction, reference, "-o", table)
                rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
                number = planned.kept.spacings.index(spacing)
                found[f"{case} {name}"] = {
                    "spacing_mm": spacing,
                    "kept": {label: values[number] for label, values in planned.kept.dice.items()},
                    "dice": {row["label"]: round(row["dice"], 4) for row in rows},
                    "hd95_mm": {row["label"]: round(row["hd95_mm"], 3) for row in rows},
                    "cpu_seconds": {"train": training["cpu_seconds"], "predict": predicting["cpu_seconds"]},
                }
                bench.result |= {"note": options.note, "folds": found}
                bench.write()
                print(summary_lines({f"{case} {name}": found[f"{case} {name}"]}))


if __name__ == "__main__":
    main()

"""Does a model know how good its results are? The estimate of Dice beside the Dice of test subjects.

    python benchmarks/dice_estimate.py DATA

DATA/hippocampus as for hippocampus.py. The model of 17 subjects is cross-validated, which is where its estimate comes
from; the 60 test subjects are segmented and scored. Wanted: a mean absolute error of the estimated mean Dice at least
20 % below that of saying the cross-validation's mean of every subject. What the evidence could tell at best is told by
a line that is drawn through the test subjects themselves, each left out in turn.

With ``--development``, the other subjects of `imagesTr` stand in for the test subjects: by those the evidence was
chosen.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from bench import Bench, arguments, named, summary_lines, work_folder
from scipy import stats

from atlasnet.training.estimate import FEATURES, features


def best_line(evidence: np.ndarray, dice: np.ndarray) -> float:
    """By how much a line through the other subjects misses each one less than their mean does."""
    missed, of_mean = [], []
    for left_out in range(len(dice)):
        rest = np.arange(len(dice)) != left_out
        columns = np.column_stack([np.ones(len(dice)), evidence - evidence[rest].mean(0)])
        line = np.linalg.lstsq(columns[rest], dice[rest], rcond=None)[0]
        missed.append(abs(columns[left_out] @ line - dice[left_out]))
        of_mean.append(abs(dice[rest].mean() - dice[left_out]))
    return float(1 - np.mean(missed) / np.mean(of_mean))


def others(data: Path, folder: Path) -> tuple[Path, Path]:
    """Folders with links to images and references of the training subjects that train17.txt does not name."""
    known = (data / "train17.txt").read_text(encoding="utf-8").split()
    images, references = folder / "images", folder / "references"
    for place in (images, references):
        place.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "labelsTr").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        if name not in known:
            image = data / "imagesTr" / f"{name}_0000.nii.gz"
            for place, file in ((images / image.name, image), (references / path.name, path)):
                place.unlink(missing_ok=True)
                place.symlink_to(file.resolve())
    return images, references


def main() -> None:
    parser = arguments(__doc__ or "", "dice_estimate")
    parser.add_argument("--atlases", type=int, default=3)
    parser.add_argument("--development", action="store_true", help="segment the subjects of imagesTr that are left")
    options = parser.parse_args()
    if options.development:
        named(options, "dice_estimate", "dice_estimate_development")
    data = options.data / "hippocampus"
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        model, predictions, table = work / "model", work / "predictions", work / "table.json"
        words = [data, "--subjects", data / "train17.txt", "--atlases", options.atlases, "--folds", "-o", model]
        bench.atlasnet("train", *bench.train_words(*words))
        images, references = data / "imagesTs", data / "labelsTs"
        if options.development:
            images, references = others(data, work / "others")
        bench.atlasnet("predict", "predict", images, "-m", model, "-o", predictions)
        bench.atlasnet("evaluate", "evaluate", predictions, references, "-o", table)
        estimate = json.loads((model / "model.json").read_text(encoding="utf-8"))["dice_estimate"]
        known: dict[str, dict[str, float]] = {}
        for row in json.loads(table.read_text(encoding="utf-8"))["rows"]:
            known.setdefault(row["case"], {})[row["label"]] = row["dice"]
        usual = float(np.mean([line["mean"] for line in estimate["labels"].values()]))
        rows, label = [], next(iter(estimate["labels"]))
        for case, dice_of in sorted(known.items()):
            record = json.loads((predictions / f"{case}.json").read_text(encoding="utf-8"))
            said, evidence = record["estimated_dice"]["mean"], features(record, label)
            rows.append(
                {
                    "case": case,
                    "dice": round(float(np.mean(list(dice_of.values()))), 4),
                    "estimated": None if said is None else said["value"],
                    "stated_error": None if said is None else said["error"],
                    "evidence": dict(zip(FEATURES, evidence or (), strict=False)),
                    "verdict": record["verdict"]["result"],
                }
            )
        judged = [row for row in rows if row["estimated"] is not None]
        dice = np.array([row["dice"] for row in judged])
        estimated = np.array([row["estimated"] for row in judged])
        error, of_mean = float(np.abs(estimated - dice).mean()), float(np.abs(usual - dice).mean())
        found_of = np.array([[row["evidence"][name] for name in FEATURES] for row in judged])
        found = {
            "subjects": len(rows),
            "with_an_estimate": len(judged),
            "mean_absolute_error": round(error, 4),
            "mean_absolute_error_of_the_training_mean": round(of_mean, 4),
            "lower_by": round(1 - error / of_mean, 4),
            "lower_by_of_the_best_line": round(best_line(found_of, dice), 4),
            "rank_correlation": round(float(stats.spearmanr(estimated, dice).statistic), 4),
            "within_twice_the_stated_error": round(
                float(np.mean([abs(r["estimated"] - r["dice"]) <= 2 * r["stated_error"] for r in judged])), 4
            ),
            "unusual": sum(row["verdict"] == "unusual" for row in rows),
        }
        bench.result |= {"summary": found, "dice_estimate": estimate, "rows": rows}
        bench.result["wanted"] = {"error_at_least_20_percent_lower": found["lower_by"] >= 0.2}
        bench.write()
        print(summary_lines({**found, **bench.result["wanted"]}))


if __name__ == "__main__":
    main()

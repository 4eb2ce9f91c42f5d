"""The whole method on 17 training and 60 test subjects of the Decathlon's hippocampus task, as a user runs it.

    python benchmarks/hippocampus.py DATA

DATA/hippocampus holds imagesTr, labelsTr, imagesTs, labelsTs, dataset.json and train17.txt. Wanted: mean Dice (over the
subjects, of the mean over both labels) of at least 0.84, every subject with a result, under 40 minutes on 2 cores.
"""

from __future__ import annotations

import json

from bench import Bench, arguments, summary_lines, work_folder

STAGES = ("train", "predict", "evaluate")


def main() -> None:
    parser = arguments(__doc__, "hippocampus")
    parser.add_argument("--atlases", type=int, default=3)
    parser.add_argument("--limit", type=int, help="predict this many test subjects only")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run; needs --work")
    options = parser.parse_args()
    data = options.data / "hippocampus"
    images = sorted((data / "imagesTs").glob("*_0000.nii.gz"))[: options.limit]
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        model, predictions, table = work / "model", work / "predictions", work / "table.json"
        if "train" in options.only:
            words = [data, "--subjects", data / "train17.txt", "--atlases", options.atlases, "-o", model]
            bench.atlasnet("train", *bench.train_words(*words))
        if "predict" in options.only:
            inputs = [data / "imagesTs"] if options.limit is None else images
            bench.atlasnet("predict", "predict", *inputs, "-m", model, "-o", predictions, "--overwrite")
        if "evaluate" in options.only:
            fewer = [] if options.limit is None else ["--allow-missing"]
            bench.atlasnet("evaluate", "evaluate", predictions, data / "labelsTs", "-o", table, *fewer)
            content = json.loads(table.read_text())
            dice = content["summary"]["mean_over_labels"]["dice"]
            seconds = bench.seconds(*bench.stages)
            results = content["subjects"]
            bench.result |= {
                "subjects": results,
                "without_result": sorted(
                    {f.name[: -len("_0000.nii.gz")] for f in images} - {r["case"] for r in content["rows"]}
                ),
                "mean_dice": dice["mean"],
                "summary": content["summary"],
                "total_seconds": round(seconds, 1),
                "wanted": {
                    "mean_dice_at_least_0.84": dice["mean"] >= 0.84,
                    "60_subjects_with_a_result": results == 60,
                    "under_40_minutes": bench.within(seconds, 2400) if set(options.only) == set(STAGES) else None,
                },
            }
            print(summary_lines({"mean Dice": dice["mean"], "worst": dice, "seconds": seconds, "subjects": results}))
            print(summary_lines(bench.result["wanted"]))
        bench.write()


if __name__ == "__main__":
    main()

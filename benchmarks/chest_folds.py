"""Each of five chest CTs left out in turn, three atlases; then one at full resolution, for its memory.

    python benchmarks/chest_folds.py DATA

DATA holds chest-ct and chest-ct-512. Wanted: Dice of each lung of each left-out subject of at least 0.95 in at most 25
minutes a fold on 2 cores; the 512 x 512 x 130 volume of a subject, by the model that has not seen it, in under 8 GiB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import Bench, arguments, summary_lines, work_folder

FULL = "chest_101"


def dice_by_label(table: Path) -> dict[str, float]:
    return {row["label"]: row["dice"] for row in json.loads(table.read_text())["rows"]}


def main() -> None:
    parser = arguments(__doc__, "chest_folds")
    parser.add_argument("--atlases", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CASE", help="leave out these subjects only")
    parser.add_argument("--limit", type=int, help="leave out the first so many subjects only")
    parser.add_argument("--no-full", action="store_true", help="without the volume at full resolution")
    parser.add_argument(
        "--resume", action="store_true", help="keep the folds that the result holds, add those it lacks"
    )
    options = parser.parse_args()
    data, full = options.data / "chest-ct", options.data / "chest-ct-512"
    every = sorted(path.name[: -len(".nii.gz")] for path in (data / "labelsTr").glob("*.nii.gz"))
    left_out = [case for case in every if options.only is None or case in options.only][: options.limit]
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        folds: dict[str, dict[str, Any]] = {}
        if options.resume and options.output.exists():
            before = json.loads(options.output.read_text())
            folds = before["folds"]
            bench.stages.update(before["stages"])
            if "full_resolution" in before:
                bench.result["full_resolution"] = before["full_resolution"]
        bench.result["folds"] = folds
        for case in [case for case in left_out if case not in folds]:
            fold = work / case
            fold.mkdir(exist_ok=True)
            subjects = fold / "subjects.txt"
            subjects.write_text("".join(f"{other}\n" for other in every if other != case))
            prediction, table = fold / f"{case}.nii.gz", fold / "table.json"
            words = [data, "--subjects", subjects, "--atlases", options.atlases, "-o", fold / "model"]
            bench.atlasnet(f"{case} train", *bench.train_words(*words))
            image = data / "imagesTr" / f"{case}_0000.nii.gz"
            bench.atlasnet(f"{case} predict", "predict", image, "-m", fold / "model", "-o", prediction, "--overwrite")
            reference = data / "labelsTr" / f"{case}.nii.gz"
            bench.atlasnet(f"{case} evaluate", "evaluate", prediction, reference, "-o", table)
            seconds = bench.seconds(*[f"{case} {verb}" for verb in ("train", "predict", "evaluate")])
            folds[case] = {
                "dice": dice_by_label(table),
                "hd95_mm": {row["label"]: row["hd95_mm"] for row in json.loads(table.read_text())["rows"]},
                "seconds": round(seconds, 1),
                "commit": bench.result["versions"].get("commit"),
            }
            print(f"{case}: {folds[case]}", flush=True)
            bench.write()
        # The model that has not seen the subject; of an earlier call, where the work folder is kept.
        if (work / FULL / "model").is_dir() and "full_resolution" not in bench.result and not options.no_full:
            prediction, table = work / FULL / "full.nii.gz", work / FULL / "table.json"
            words = [full / f"{FULL}_0000.nii.gz", "-m", work / FULL / "model", "-o", prediction]
            usage = bench.atlasnet("full resolution predict", "predict", *words, "--overwrite")
            bench.atlasnet("full resolution evaluate", "evaluate", prediction, full / f"{FULL}.nii.gz", "-o", table)
            bench.result["full_resolution"] = {
                "case": FULL,
                "dice": dice_by_label(table),
                "seconds": usage["seconds"],
                "peak_gib": usage["peak_gib"],
            }
        dice = [value for fold in folds.values() for value in fold["dice"].values()]
        longest = max(fold["seconds"] for fold in folds.values())
        wanted = {
            "each_lung_at_least_0.95": min(dice) >= 0.95,
            "at_most_25_minutes_a_fold": bench.within(longest, 1500),
        }
        if "full_resolution" in bench.result:
            wanted["full_resolution_under_8_gib"] = bench.result["full_resolution"]["peak_gib"] < 8
        bench.result |= {"lowest_dice": min(dice), "longest_fold_seconds": longest, "wanted": wanted}
        bench.write()
        print(summary_lines({"lowest Dice": min(dice), "longest fold, s": longest, **wanted}))


if __name__ == "__main__":
    main()

"""Time, memory and disk that 15 scans of clinical size take, beside what the dry runs say before.

    python benchmarks/resources.py --train-options "--epochs 10"

The scans are phantoms: what they take does not depend on what they show. With ``--train-options`` fewer epochs are
trained; the time of the default number follows from the seconds of an epoch.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from bench import Bench, arguments, program, summary_lines, work_folder

TEST_SUBJECTS = 1


def gigabytes(folder: Path) -> float:
    """What the files below a folder take, in GB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def dry_run(bench: Bench, *words: object) -> list[str]:
    """The lines of a dry run in which a number stands beside what it is."""
    command = [*program(), *[str(word) for word in words], "--dry-run", "--threads", str(bench.options.threads)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [
        re.sub(" +", " ", line)
        for line in text.splitlines()
        if re.match("(pairs|networks|time|memory|disk|cases) ", line)
    ]


def main() -> None:
    parser = arguments(__doc__ or "", "resources", data=False)
    parser.add_argument("--subjects", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 130), metavar=("X", "Y", "Z"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.78, 0.78, 3.0), metavar=("X", "Y", "Z"), help="mm")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        from atlasnet.cohort.phantom import write_phantom_cohort

        bench = Bench(options, work)
        data, model, out = work / "cohort", work / "model", work / "out"
        write_phantom_cohort(
            data,
            options.subjects,
            shape=options.size[::-1],
            spacing=options.spacing,
            test_subjects=TEST_SUBJECTS,
            seed=options.seed,
        )
        words = bench.train_words(data, "-o", model)
        default = dry_run(bench, *words[:4])
        announced = dry_run(bench, *words)
        bench.atlasnet("training", *words)
        predict = ["predict", data / "imagesTs", "-m", model, "-o", out]
        announced_prediction = dry_run(bench, *predict)
        bench.atlasnet("prediction", *predict)
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
        kept = model / "work"
        bench.result |= {
            "subjects": options.subjects,
            "voxels": list(options.size),
            "spacing_mm": list(options.spacing),
            "dry_run_of_the_default": default,
            "dry_run_of_this_training": announced,
            "dry_run_of_the_prediction": announced_prediction,
            "gigabytes": {
                "scans": round(gigabytes(data), 3),
                "model": round(gigabytes(model) - gigabytes(kept), 3),
                "work": round(gigabytes(kept), 3),
            },
            "seconds_of_a_prediction": [record["seconds"] for record in records if "seconds" in record],
        }
        bench.write()
        print(summary_lines({"GB": bench.result["gigabytes"], "before": announced, "default": default}))


if __name__ == "__main__":
    main()

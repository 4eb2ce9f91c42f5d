"""One process segments chest CTs again and again: does its memory grow, and where does the time go?

    python benchmarks/repeated_prediction.py DATA

DATA holds chest-ct. Two atlases and a short training, because neither matters here. The process reads, segments and
writes the scans in turn, 20 times in all. Wanted: resident memory after the last within 2 % of that after the fifth;
less than 10 % of the time of a scan outside registration, networks and mapping back (interpreter start excluded).
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, summary_lines, work_folder

COUNT, SETTLED = 20, 5
METHOD = ("registration", "mapping", "network", "fusion")  # stages that are the method's own work


def resident_mib() -> float:
    """What the process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def segment(model: Path, images: Path, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Segment the scans in turn; memory after each, seconds by stage."""
    from atlasnet.execution import Execution
    from atlasnet.prediction import Predictor, find_cases, predict_cases
    from atlasnet.training.model import Model

    trained = Model.load(model)
    predictor = Predictor(trained, execution=Execution(threads=threads))
    cases = find_cases([images], len(trained.channels))
    runs = []
    for number in range(COUNT):
        case = cases[number % len(cases)]
        path = folder / f"{number:02d}" / f"{case.name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        batch = predict_cases(predictor, [case], {case.name: path})
        seconds = time.perf_counter() - start
        if batch.failed:
            raise SystemExit(f"{case.name}: {batch.failed[case.name]}")
        record = json.loads(path.with_name(f"{case.name}.json").read_text(encoding="utf-8"))
        method = sum(record["seconds"].get(stage, 0.0) for stage in METHOD)
        gc.collect()
        runs.append(
            {
                "case": case.name,
                "resident_mib": round(resident_mib(), 1),
                "seconds": round(seconds, 2),
                "seconds_of_stages": record["seconds"],
                "share_outside": round(1 - method / seconds, 4),
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    return runs


def main() -> None:
    parser = arguments(__doc__ or "", "repeated_prediction")
    options = parser.parse_args()
    data = options.data / "chest-ct"
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        words = [data, "--atlases", "2", "--epochs", "1", "-o", work / "model"]
        bench.atlasnet("train", *bench.train_words(*words))
        runs = segment(work / "model", data / "imagesTr", work / "predictions", options.threads)
    held = [run["resident_mib"] for run in runs]
    bench.result |= {
        "runs": runs,
        "memory_growth": round(held[COUNT - 1] / held[SETTLED - 1] - 1, 4),
        # What the allocator has not given back yet comes and goes; the least of a round through the scans does not.
        "growth_of_the_least_of_five": round(min(held[-SETTLED:]) / min(held[:SETTLED]) - 1, 4),
        "median_share_outside": float(np.median([run["share_outside"] for run in runs])),
    }
    bench.result["wanted"] = {
        "memory_growth_at_most_0.02": bench.result["memory_growth"] <= 0.02,
        "median_share_outside_below_0.10": bench.result["median_share_outside"] < 0.1,
    }
    shown = ("memory_growth", "growth_of_the_least_of_five", "median_share_outside")
    print(summary_lines({key: bench.result[key] for key in shown}))
    bench.write()


if __name__ == "__main__":
    main()

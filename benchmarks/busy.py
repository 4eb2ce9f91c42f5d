"""What waiting threads cost: a registration and steps of a training, alone and beside other busy processes.

    python benchmarks/busy.py DATA --threads 2

Threads of OpenMP that wait for each other try a number of times (``GOMP_SPINCOUNT``) before they sleep. On an idle
machine that bridges the gaps between operations; where another process has the processor, the one that is waited for
cannot come, and trying takes its time too. Each count in a process of its own, in turn, several times; beside nothing,
and beside as many processes that compute without end as there are processors. A few minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import Bench, arguments, summary_lines, work_folder

COUNTS = ("0", "1000", "100000", None)  # None: as the library has it
STEPS = 5


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes that compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(options: argparse.Namespace, work: Path, count: str | None) -> dict[str, float]:
    """Seconds of a registration and of a training step in a process whose threads wait so."""
    waiting = {} if count is None else {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": count}
    kept = {name: v for name, v in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [options.data, "--work", work, "--threads", options.threads, "--seed", options.seed, "--worker"]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], env=kept | waiting, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def work_once(options: argparse.Namespace, work: Path) -> dict[str, float]:
    """Both, in this process."""
    import numpy as np

    from atlasnet.execution import Execution
    from atlasnet.network import NetworkSpec
    from atlasnet.registration import make_operator
    from atlasnet.training.loop import LOG, train_network
    from atlasnet.training.recipe import Recipe
    from atlasnet.training.store import MappedCase
    from atlasnet.volume import canonical, read_volume

    execution = Execution(threads=options.threads, seed=options.seed)
    data = options.data / "hippocampus"
    names = (data / "train17.txt").read_text().split()[:2]
    source, target = (canonical(read_volume(data / "imagesTr" / f"{name}_0000.nii.gz"))[0] for name in names)
    operator = make_operator("mrf")
    with execution.active():
        operator.register(source, [target], execution=execution)  # loads code
        start = time.perf_counter()
        operator.register(source, [target], execution=execution)
        registration = time.perf_counter() - start
    random = np.random.default_rng(options.seed)
    shape = (40, 64, 64)  # the region of hippocampi at 0.7 x 0.7 x 1 mm
    image, labels = random.normal(size=(1, *shape)).astype(np.float32), random.integers(0, 3, shape, dtype=np.uint8)
    recipe = replace(Recipe.preset("default", epochs=2), iterations=STEPS, passes=0.0)
    folder = work / f"network-{os.getpid()}"
    train_network([MappedCase("a", image, labels)], NetworkSpec("unet", 1.0), recipe, 3, folder, execution)
    with (folder / LOG).open(encoding="utf-8") as stream:
        last = [*csv.DictReader(stream)][-1]
    return {"registration": registration, "step": float(last["seconds"]) / STEPS}


def main() -> None:
    parser = arguments(__doc__ or "", "busy")
    parser.add_argument("--runs", type=int, default=3, help="of each count")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work_once(options, options.work)))
        return
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        print(summary_lines({name: bench.result[name] for name in ("machine", "versions")}), flush=True)
        bench.result["rows"] = []
        for others in (0, len(os.sched_getaffinity(0))):
            rows: dict[str | None, list[dict[str, float]]] = {count: [] for count in COUNTS}
            with busy(others):
                for _ in range(options.runs):
                    for count, runs in rows.items():
                        runs.append(measured(options, work, count))
            for count, runs in rows.items():
                row: dict[str, Any] = {"other_processes": others, "spin_count": count or "not set"}
                for what in ("registration", "step"):
                    seconds = [round(run[what], 3) for run in runs]
                    row |= {f"seconds_of_a_{what}": seconds, f"median_{what}": statistics.median(seconds)}
                bench.result["rows"].append(row)
                print(row, flush=True)
            bench.write()


if __name__ == "__main__":
    main()

"""How fast networks are trained on this processor, in float32 and, where it computes in it, in bfloat16.

    python benchmarks/training_speed.py --threads 1
    python benchmarks/training_speed.py --smoke

By the loop that every training runs, from mapped cases on disk, two types in turn: seconds of a step, and the share of
its time in which the network waited for slices to be read and cut. Nothing is wanted of it; without ``--smoke``, which
does all of it in small and keeps the result with ``-o`` only, it takes some minutes. Data are noise: what it takes does
not depend on what slices show.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench import RESULTS, Bench, arguments, summary_lines, work_folder

CLASSES = 3
EPOCHS, STEPS = 5, 8  # the first epoch, which loads code and data, does not count


@dataclass(frozen=True)
class Case:
    """A network, its width and the (z, y, x) voxels of the scans that it learns from."""

    network: str
    width: float
    shape: tuple[int, int, int]


# Regions of hippocampi at 0.7 x 0.7 x 1 mm, lungs at 4 mm, slices of SegNet.
CASES = (
    Case("unet", 1.0, (40, 64, 64)),
    Case("unet", 0.5, (40, 64, 64)),
    Case("unet", 1.0, (60, 96, 96)),
    Case("segnet", 0.25, (40, 128, 128)),
    Case("segnet", 1.0, (40, 128, 128)),
)
SMOKE = (Case("unet", 0.25, (8, 16, 16)), Case("segnet", 0.1, (8, 32, 32)))


def epochs_of(case: Case, execution: Any, work: Path) -> list[dict[str, float]]:
    """The log of a short training, without its first epoch."""
    from atlasnet.network import NetworkSpec
    from atlasnet.training.loop import LOG, train_network
    from atlasnet.training.recipe import Recipe
    from atlasnet.training.store import MappedCase

    random, cases = np.random.default_rng(execution.seed), []
    for name in ("a", "b"):
        image = random.normal(size=(1, *case.shape)).astype(np.float16)
        MappedCase(name, image, random.integers(0, CLASSES, case.shape, dtype=np.uint8)).save(work)
        cases.append(MappedCase.open(work, name))
    recipe = replace(Recipe.preset("default", epochs=EPOCHS), iterations=STEPS, passes=0.0)
    train_network(cases, NetworkSpec(case.network, case.width), recipe, CLASSES, work / "network", execution)
    with (work / "network" / LOG).open(encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)][1:]


def main() -> None:
    parser = arguments(__doc__ or "", "training_speed", data=False)
    parser.add_argument("--smoke", action="store_true", help="everything small, to see that it runs")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        from atlasnet.execution import Execution
        from atlasnet.network.inference import reduced_precision

        if options.smoke and options.output == RESULTS / "training_speed.json":
            options.output = work / "training_speed.json"
        bench = Bench(options, work)
        execution = Execution(threads=options.threads, seed=options.seed)
        own = reduced_precision(torch.device("cpu"), 2)
        bench.result |= {"computes_in_bfloat16": own is not None, "networks": []}
        print(summary_lines({name: bench.result[name] for name in ("machine", "versions")}), flush=True)
        for number, case in enumerate(SMOKE if options.smoke else CASES):
            row: dict[str, Any] = {"network": case.network, "width": case.width, "voxels": list(case.shape)}
            for dtype in (torch.float32, *([] if own is None else [own])):
                name = str(dtype).removeprefix("torch.")
                chosen = None if dtype == torch.float32 else dtype
                folder = work / f"{number}-{name}"
                folder.mkdir()
                with patch("atlasnet.network.inference.reduced_precision", return_value=chosen):
                    epochs = epochs_of(case, execution, folder)
                seconds = [round(epoch["seconds"] / STEPS, 4) for epoch in epochs]
                row[name] = {
                    "seconds_of_a_step": seconds,
                    "median": statistics.median(seconds),
                    "waiting": round(statistics.median(epoch["waiting"] for epoch in epochs), 4),
                }
            if own is not None:
                row["times_as_fast"] = round(row["float32"]["median"] / row["bfloat16"]["median"], 2)
            bench.result["networks"].append(row)
            print(row, flush=True)
            bench.write()


if __name__ == "__main__":
    main()

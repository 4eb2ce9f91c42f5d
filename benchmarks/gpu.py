"""What a GPU makes of it: registrations and the training of a SegNet, timed on one device.

    python benchmarks/gpu.py [--device cuda:1] [--source SCAN --target SCAN]
    python benchmarks/gpu.py --smoke --device cpu

Nothing is downloaded: the scans are phantoms, brought to 512 x 512 x 130 voxels, with noise; two of one's own may be
given beside them. All times are taken with the device idle before and after, and after a warm-up; every run is kept.

- registration: a scan onto another, with the default settings, from arrays in host memory to a map in host memory, both
  directions, measured and recorded. With the device memory that the tensors needed; how far the map is from that of
  the CPU, and how far that of the CPU is from its own where the scan has a thousandth of a Hounsfield unit of noise
  more; and by stages as in `registration_profile.py`: seconds, operations, and what the bytes that these
  read and write take at the bandwidth of the device.
- six atlases: a scan onto six others in one call.
- training: SegNet on slices of 512 x 512 by the publication's recipe, from mapped cases on disk: the images a second of
  every epoch, the share of its time in which it waited for slices, and the share of the matrix peak that its arithmetic
  reaches. That peak is measured: the fastest of several products of large square matrices in the precision of the
  training, which is below what the maker of the device states.

Wanted on a GPU: a registration under 1.5 s, six under 5 s, 40 % of the peak, and a rate at which the publication's
slices take under 10 minutes. ``--smoke`` does all of it with scans
and networks so small that a CPU takes seconds, says nothing of the wanted figures, and keeps the result with ``-o``
only.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# As on the command line, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from bench import RESULTS, Bench, arguments, summary_lines, work_folder
from registration_profile import stages_of
from torch.utils.flop_counter import FlopCounterMode

NOISE = 20.0  # HU
FAINT = 1e-3  # HU of noise, far below what any scanner resolves
EMPTY = 0.05  # share of the range of intensities up to which a voxel shows air
CLASSES = 5
PUBLISHED_SLICES = 108_000  # 6000 of them for 18 epochs, in 16 hours
SLICES = 40  # of a case, two of which are trained on
LEAST_SIDE = 64  # pixels, on which the arithmetic of a step is counted; it grows as the pixels do


@dataclass(frozen=True)
class Size:
    """How much is done.

    Args:
        scan: voxels (z, y, x).
        side: of the slices that are trained on, pixels.
        width: of the SegNet.
        matrix: rows of the matrices whose product gives the peak.
        atlases: onto which a scan is registered in one call.
        runs: of every registration, after the warm-up.
        calls: of those onto several, likewise.
        epochs: of the training, after the warm-up.
        steps: of an epoch.
    """

    scan: tuple[int, int, int] = (130, 512, 512)
    side: int = 512
    width: float = 1.0
    matrix: int = 8192
    atlases: int = 6
    runs: int = 5
    calls: int = 2
    epochs: int = 6  # 300 steps after the warm-up
    steps: int = 50


SMOKE = Size(scan=(20, 32, 32), side=64, width=0.1, matrix=256, atlases=2, runs=1, calls=1, epochs=1, steps=2)


def described(device: torch.device) -> dict[str, Any]:
    """The device, and the versions that matter to it."""
    found: dict[str, Any] = {"name": str(device)}
    if device.type == "cuda":
        own = torch.cuda.get_device_properties(device)
        found |= {
            "model": own.name,
            "capability": f"{own.major}.{own.minor}",
            "multiprocessors": own.multi_processor_count,
            "memory_gib": round(own.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    settle(device)
    start = time.perf_counter()
    result = function()
    settle(device)
    return time.perf_counter() - start, result


def scans(count: int, shape: tuple[int, int, int], seed: int) -> list[Any]:
    """Phantoms of different subjects, made at a quarter of the resolution in the plane."""
    from atlasnet.cohort.phantom import phantom_subject
    from atlasnet.volume import resample

    coarse = tuple(max(16, n // 4) for n in shape)
    found = []
    for number in range(count):
        small, _ = phantom_subject(seed + number, shape=coarse)
        wanted = small.grid.with_spacing(small.grid.size * small.grid.spacing / shape[::-1])
        large, random = resample(small, wanted), np.random.default_rng(seed + number)
        large.array[...] += random.normal(scale=NOISE, size=large.array.shape).astype(np.float32)
        found.append(large)
    return found


def registration(source: Any, target: Any, runs: int, execution: Any, device: torch.device) -> dict[str, Any]:
    """One scan onto one other, several times."""
    from atlasnet.registration import make_operator

    operator, found, maps = make_operator("mrf"), [], []

    def register(place: Any = execution) -> Any:
        (result,) = operator.register(source, [target], execution=place)
        return result

    for number in range(runs + 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds, made = timed(register, device)
        parts = {name: value for name, value in made.record.items() if name.startswith("seconds_")}
        run = {"seconds": round(seconds, 3), **parts, "quality": made.record["quality"]}
        if device.type == "cuda":
            run["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
        maps.append(made.transform)
        found.append(run)
        print("registration", "warm-up" if number == 0 else number, run, flush=True)
    host = replace(execution, device="cpu")
    here, noise = register(host), np.random.default_rng(execution.seed).normal(scale=FAINT, size=source.array.shape)
    faint = source.replace(source.array + noise.astype(np.float32))
    (disturbed,) = operator.register(faint, [target], execution=host)
    wanted = here.transform.displacement(target.grid)
    shown = torch.from_numpy(target.array.max(0) > np.percentile(target.array, 0.5) + EMPTY * np.ptp(target.array))
    again = maps[-2].displacement(target.grid) - maps[-1].displacement(target.grid)
    return {
        "voxels": [list(image.grid.shape) for image in (source, target)],
        "warm_up": found[0],
        "runs": found[1:],
        "from_the_cpu_mm": lengths(maps[-1].displacement(target.grid) - wanted, shown),
        "of_the_cpu_with_noise_mm": lengths(disturbed.transform.displacement(target.grid) - wanted, shown),
        "same_map_again": bool((again == 0).all()),
        "on_the_cpu": {"seconds": here.record["seconds"], "quality": here.record["quality"]},
        "profile": stages_of(register, device, lambda: settle(device)),
    }


def lengths(apart: torch.Tensor, shown: torch.Tensor) -> dict[str, dict[str, float]]:
    """Of a difference (3, z, y, x) in mm, everywhere and where something is ``shown``."""
    every = apart.square().sum(0).sqrt()
    found = {}
    for name, values in (("everywhere", every.flatten()), ("where_something_is_shown", every[shown])):
        thinned = values[:: max(1, len(values) // 1_000_000)]
        figures = {"mean": values.mean(), "p99": thinned.quantile(0.99), "max": values.max()}
        found[name] = {key: round(float(value), 5) for key, value in figures.items()}
    return found


def several(source: Any, targets: list[Any], runs: int, execution: Any, device: torch.device) -> dict[str, Any]:
    """One scan onto several in one call, several times."""
    from atlasnet.registration import make_operator

    operator, found = make_operator("mrf"), []
    for number in range(runs + 1):
        seconds, made = timed(lambda: operator.register(source, targets, execution=execution), device)
        found.append({"seconds": round(seconds, 3), "each": [one.record["seconds"] for one in made]})
        print(f"{len(targets)} atlases", "warm-up" if number == 0 else number, found[-1], flush=True)
    return {"atlases": len(targets), "warm_up": found[0], "runs": found[1:]}


def matrix_peak(device: torch.device, dtype: torch.dtype, rows: int) -> list[float]:
    """Operations a second of products of large square matrices, one after the other."""
    a, b = torch.rand(2, rows, rows, device=device).to(dtype)
    rates = []
    for _ in range(10):
        seconds, _ = timed(lambda: [a @ b for _ in range(10)], device)
        rates.append(20 * rows**3 / seconds)
    return rates[1:]


def operations(width: float, side: int) -> float:
    """Of a step of a SegNet, forward and backward, for one slice."""
    from atlasnet.network import NetworkSpec, build_network
    from atlasnet.training.loss import segmentation_loss

    network = build_network(NetworkSpec("segnet", width), 1, CLASSES)
    with FlopCounterMode(display=False) as counter:
        target = torch.zeros(1, LEAST_SIDE, LEAST_SIDE, dtype=torch.int64)
        segmentation_loss(network(torch.rand(1, 1, LEAST_SIDE, LEAST_SIDE)), target, None, dice=False).backward()
    return float(counter.get_total_flops()) * (side / LEAST_SIDE) ** 2


def training(size: Size, execution: Any, device: torch.device, work: Path) -> dict[str, Any]:
    """A SegNet, from mapped cases on disk, by the loop that every training runs."""
    from atlasnet.network import NetworkSpec
    from atlasnet.network.inference import reduced_precision
    from atlasnet.training.loop import LOG, train_network
    from atlasnet.training.recipe import Recipe
    from atlasnet.training.store import MappedCase

    random, shape = np.random.default_rng(execution.seed), (SLICES, size.side, size.side)
    cases = []
    for name in ("a", "b"):
        image = random.normal(size=(1, *shape)).astype(np.float16)
        MappedCase(name, image, random.integers(0, CLASSES, shape, dtype=np.uint8)).save(work)
        cases.append(MappedCase.open(work, name))
    recipe = replace(Recipe.preset("publication", epochs=size.epochs + 1), iterations=size.steps)
    train_network(cases, NetworkSpec("segnet", size.width), recipe, CLASSES, work / "network", execution)
    with (work / "network" / LOG).open(encoding="utf-8") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    dtype = reduced_precision(device, 2) or torch.float32
    peaks = matrix_peak(device, dtype, size.matrix)
    each, peak = operations(size.width, size.side), max(peaks)
    epochs = [
        {
            "images_per_second": row["images_per_second"],
            "waiting": row["waiting"],
            "share_of_peak": round(row["images_per_second"] * each / peak, 4),
        }
        for row in rows
    ]
    for number, epoch in enumerate(epochs):
        print("training", "warm-up" if number == 0 else number, epoch, flush=True)
    return {
        "side": size.side,
        "width": size.width,
        "batch": recipe.batch(size.side**2),
        "precision": str(dtype).removeprefix("torch."),
        "gigaflop_of_a_slice": round(each / 1e9, 2),
        "matrix_peak_tflops": [round(rate / 1e12, 3) for rate in peaks],
        "warm_up": epochs[0],
        "epochs": epochs[1:],
    }


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__ or "", "gpu", data=False)
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    for name in ("source", "target"):
        parser.add_argument(f"--{name}", type=Path, metavar="SCAN", help="a scan of one's own, registered too")
    parser.add_argument("--smoke", action="store_true", help="everything small, to see that it runs")
    options = parser.parse_args()
    if (options.source is None) != (options.target is None):
        parser.error("--source and --target are given together")
    with work_folder(options.work) as work:
        from atlasnet import read_volume
        from atlasnet.errors import InputError
        from atlasnet.execution import Execution

        if options.smoke and options.output == RESULTS / "gpu.json":
            options.output = work / "gpu.json"
        size = SMOKE if options.smoke else Size()
        execution = Execution(device=options.device, threads=options.threads, seed=options.seed)
        try:
            device = execution.torch_device()
        except InputError as error:
            parser.exit(2, f"{error}\n")
        bench = Bench(options, work)
        bench.result["device"] = described(device)
        print(summary_lines({name: bench.result[name] for name in ("device", "machine", "versions")}), flush=True)
        source, *targets = scans(1 + size.atlases, size.scan, execution.seed)
        pairs = {"registration": (source, targets[0])}
        if options.source is not None:
            pairs["registration_of_scans"] = read_volume(options.source), read_volume(options.target)
        for name, (one, onto) in pairs.items():
            bench.result[name] = registration(one, onto, size.runs, execution, device)
            bench.write()
        bench.result["training"] = training(size, execution, device, work)
        bench.write()
        bench.result["several_atlases"] = several(source, targets, size.calls, execution, device)
        medians = {
            name: statistics.median(run["seconds"] for run in bench.result[name]["runs"])
            for name in (*pairs, "several_atlases")
        }
        share = statistics.median(epoch["share_of_peak"] for epoch in bench.result["training"]["epochs"])
        rate = statistics.median(epoch["images_per_second"] for epoch in bench.result["training"]["epochs"])
        bench.result["median"] = {
            **medians,
            "share_of_peak": share,
            "minutes_for_the_published_slices": round(PUBLISHED_SLICES / rate / 60, 2),
        }
        if not options.smoke:
            bench.result["wanted"] = {
                "registration_under_1.5_s": max(medians[name] for name in pairs) < 1.5,
                "six_atlases_under_5_s": medians["several_atlases"] < 5,
                "share_of_peak_over_0.4": share >= 0.4,
                "published_slices_under_10_minutes": PUBLISHED_SLICES / rate < 600,
            }
        bench.write()
        print(summary_lines({**bench.result["median"], **bench.result.get("wanted", {})}))


if __name__ == "__main__":
    main()

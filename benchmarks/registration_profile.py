"""Where the time of a chest registration goes, stage by stage, and what the memory and the arithmetic would allow.

    python benchmarks/registration_profile.py DATA [--add]

One pair of chest CTs, prepared as in `registration.py`, is registered on one thread, deformable part only. Of every
stage: the seconds of the fastest of three runs; its tensor operations and the gigabytes that they read and write, and
the seconds that these take at the bandwidth at which this machine adds large arrays; the arithmetic of its matrix
products, and the seconds that this takes at the rate of a large one. Operations on blocks that stay in a cache are
faster than that bandwidth; what SciPy does (in the repair) is in the seconds alone. With
``--add`` the profile is added to those of other versions in the output.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from bench import Bench, arguments, work_folder
from registration import Pair, prepare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

SOURCE, TARGET = "chest_102", "chest_101"
REPEATS = 3
# Functions by the module in whose name space they are looked up; a stage entered within another is not counted there.
STAGES = {
    "affine alignment": (("mrf", "started"),),
    "images and contrasts": (("mrf", "prepare_pair"),),
    "search": (("deformation", "align"), ("deformation", "_search")),
    "refinement": (("deformation", "_refine"),),
    "steps composed": (("deformation", "step_field"), ("deformation", "compose"), ("deformation", "resize")),
    "folds mended": (("deformation", "repair"), ("mrf", "repair"), ("mrf", "smooth_at")),
    "inverse": (("mrf", "inverse_on"),),
    "Jacobians of the inverse": (("mrf", "corner_jacobians"),),
    "geometry of the record": (("measured", "geometry"),),
    "similarities of the record": (("measured", "similarities"),),
}
REST = "the rest"


class Clock:
    """Seconds by stage; the one that was entered last runs. ``settle`` waits until a device has nothing left to do."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.settle = settle
        self.running, self.since = [REST], time.perf_counter()

    def turn(self) -> None:
        self.settle()
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self.running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self.running.pop()

        return inner


class Traffic(TorchDispatchMode):
    """Tensor operations and the bytes that they read and write, by stage; views move nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as torch leaves it
        self.clock = clock
        self.bytes: dict[str, int] = defaultdict(int)
        self.operations: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.operations[self.clock.running[-1]] += 1
            self.bytes[self.clock.running[-1]] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


class Products(FlopCounterMode):
    """Operations of matrix products, by stage."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(display=False)
        self.clock = clock
        self.operations: dict[str, int] = defaultdict(int)

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        before = self.get_total_flops()
        result = super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]  # likewise
        self.operations[self.clock.running[-1]] += self.get_total_flops() - before
        return result


def fastest(function: Callable[[], object], settle: Callable[[], None], repeats: int = 7) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        settle()
        start = time.perf_counter()
        function()
        settle()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rates(device: torch.device, settle: Callable[[], None]) -> dict[str, float]:
    """GB/s of adding two arrays that no cache holds, Gflop/s of a large matrix product."""
    a, b = torch.rand(2, 1 << 26, device=device)
    total = torch.empty_like(a)
    square = torch.rand(2048, 2048, device=device)
    return {
        "gigabytes_per_second": 3e-9 * 4 * a.numel() / fastest(lambda: torch.add(a, b, out=total), settle),
        "gigaflops_per_second": 2e-9 * 2048**3 / fastest(lambda: square @ square, settle),
    }


def profile(pair: Pair) -> dict[str, Any]:
    """The stages of one registration on one thread of the CPU."""
    from atlasnet import read_volume
    from atlasnet.execution import Execution
    from atlasnet.registration import make_operator, register_images
    from atlasnet.volume import read_labels

    target, source, seen = (
        read_volume(pair.path("fixed")),
        read_volume(pair.path("moving")),
        read_labels(pair.path("moving_mask")),
    )
    operator, execution = make_operator("mrf", affine=False), Execution(threads=1)
    return stages_of(
        lambda: register_images(source, target, operator=operator, source_mask=seen, execution=execution),
        torch.device("cpu"),
    )


def stages_of(
    register: Callable[[], object], device: torch.device, settle: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Where the time of ``register`` goes on a device, which ``settle`` waits for."""
    from importlib import import_module

    places = [
        (import_module(f"atlasnet.registration.{module}"), name, stage)
        for stage, functions in STAGES.items()
        for module, name in functions
    ]
    plain = [getattr(module, name) for module, name, _ in places]

    def run(mode: Callable[[Clock], Any] | None = None) -> tuple[Clock, Any]:
        clock = Clock(settle)
        try:
            for (module, name, stage), function in zip(places, plain, strict=True):
                setattr(module, name, clock.timed(stage, function))
            counter = None if mode is None else mode(clock)
            clock.since = time.perf_counter()
            with counter or nullcontext():
                register()
            clock.turn()
        finally:
            for (module, name, _), function in zip(places, plain, strict=True):
                setattr(module, name, function)
        return clock, counter

    clocks = [run()[0] for _ in range(REPEATS + 1)][1:]
    best = min(clocks, key=lambda clock: sum(clock.seconds.values())).seconds
    traffic, products = run(Traffic)[1], run(Products)[1]
    speed = rates(device, settle)
    stages = {}
    for stage in [*STAGES, REST]:
        gigabytes, gigaflops = 1e-9 * traffic.bytes[stage], 1e-9 * products.operations[stage]
        stages[stage] = {
            "seconds": round(best[stage], 3),
            "operations": traffic.operations[stage],
            "gigabytes": round(gigabytes, 2),
            "seconds_at_bandwidth": round(gigabytes / speed["gigabytes_per_second"], 3),
            "matrix_gigaflops": round(gigaflops, 2),
            "seconds_at_matrix_rate": round(gigaflops / speed["gigaflops_per_second"], 3),
        }
    every = [round(sum(clock.seconds.values()), 3) for clock in clocks]
    total = {key: round(sum(stage[key] for stage in stages.values()), 3) for key in stages[REST]}
    return {"rates": {k: round(v, 1) for k, v in speed.items()}, "runs": every, "total": total, "stages": stages}


def main() -> None:
    parser = arguments(__doc__ or "", "registration_profile")
    parser.add_argument("--add", action="store_true", help="to the profiles of other versions in the output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        files = [
            options.data / "chest-ct" / part
            for case in (SOURCE, TARGET)
            for part in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
        ]
        pair = prepare(work / "pair", f"{SOURCE} onto {TARGET}", files, 1, "chest")
        before = json.loads(options.output.read_text(encoding="utf-8"))["profiles"] if options.add else []
        commit = bench.result["versions"].get("commit", "")
        bench.result["pair"] = pair.name
        bench.result["profiles"] = [*before, {"commit": commit, **profile(pair)}]
        bench.write()
        for stage, figures in bench.result["profiles"][-1]["stages"].items():
            print(f"{stage:28s}", figures)
        print(bench.result["profiles"][-1]["total"])


if __name__ == "__main__":
    main()

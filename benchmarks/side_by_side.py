"""One scan onto several atlases: one registration after the other on all threads, and side by side.

    python benchmarks/side_by_side.py DATA --threads 2

A hippocampus onto six others, and a chest onto the four others, in turn in one process whose threads wait as those of
the command line do. The maps must be the same bytes. A few minutes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import Bench, arguments, summary_lines, work_folder

# As the command line has it; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from atlasnet.execution import Execution, peak_memory
from atlasnet.registration import Registration, Target, at_a_time, make_operator, register_each
from atlasnet.volume import canonical, read_volume

HIPPOCAMPI = 7


def main() -> None:
    parser = arguments(__doc__ or "", "side_by_side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        bench.result |= {"note": options.note, "kinds": {}}
        for kind, paths in cohorts(options.data):
            found = compared(paths, options.threads, options.repeats)
            bench.result["kinds"][kind] = found
            print(f"{kind}, {found['at_a_time']} at a time")
            print(summary_lines({name: found[name] for name in ("one_after_the_other", "side_by_side", "ratio")}))
            bench.write()


def cohorts(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """The images of each kind, the source first."""
    names = (data / "hippocampus" / "train17.txt").read_text(encoding="utf-8").split()[:HIPPOCAMPI]
    yield "hippocampus", [data / "hippocampus" / "imagesTr" / f"{name}_0000.nii.gz" for name in names]
    yield "chest", sorted((data / "chest-ct" / "imagesTr").glob("*.nii.gz"))


def compared(paths: list[Path], threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, and their ratio."""
    source, *others = (canonical(read_volume(path))[0] for path in paths)
    operator, execution = make_operator("mrf"), Execution(threads=threads)
    targets = [Target(path.name, image) for path, image in zip(paths[1:], others, strict=True)]
    operator.register(source, [targets[0].image], execution=execution)  # loads code

    def each() -> list[Registration]:
        return [operator.register(source, [target.image], execution=execution)[0] for target in targets]

    def together() -> list[Registration]:
        made = list(register_each(operator, source, targets, execution))
        return [found for found in made if isinstance(found, Registration)]

    seconds: dict[str, list[float]] = {"one_after_the_other": [], "side_by_side": []}
    for _ in range(repeats):
        maps = []
        for name, way in (("one_after_the_other", each), ("side_by_side", together)):
            start = time.perf_counter()
            maps.append(way())
            seconds[name].append(round(time.perf_counter() - start, 2))
        for one, other, target in zip(*maps, targets, strict=True):
            fields = [found.transform.displacement(target.image.grid) for found in (one, other)]
            if not fields[0].equal(fields[1]):
                raise SystemExit(f"the two maps onto {target.name} differ")
    medians = [statistics.median(runs) for runs in seconds.values()]
    return {
        "atlases": len(targets),
        "voxels": [target.image.grid.size.tolist() for target in targets],
        "at_a_time": at_a_time(operator, [target.image.grid for target in targets], execution),
        **seconds,
        "ratio": round(medians[1] / medians[0], 3),
        "peak_gib": round((peak_memory() or 0) / 2**30, 2),
    }


if __name__ == "__main__":
    main()

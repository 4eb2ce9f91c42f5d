"""Does the affine pre-alignment end in the same place wherever the source's header puts the scan?

    python benchmarks/affine_starts.py DATA [--pair SOURCE TARGET ...] [--hard]

For every pair of DATA/chest-ct, the header of the source is moved by seeded poses (a shift up to 40 mm in any direction
after a turn up to 15 degrees about any axis through the middle of the scan). The mean difference in the target's lungs
between the result, with the pose taken out, and that of the unmoved header must be under 2 mm for all.
With ``--hard`` the poses go up to 100 mm and 30 degrees and half of the source is missing (its head, feet, left or
right side, in turn); the limit is 5 mm for 95 %, over the lungs in the part that is left. Every scan is then aligned
with itself too, where the truth is known; between subjects, the result is compared with that of the unmoved half.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench import arguments, machine, named, summary_lines, versions
from scipy.spatial.transform import Rotation

from atlasnet.execution import Execution, write_json
from atlasnet.registration.affine import affine_register
from atlasnet.volume import Grid, Volume, read_labels, read_volume

HALVES = ("head", "feet", "left", "right")


def pose(random: np.random.Generator, centre: np.ndarray, shift: float, turn: float) -> np.ndarray:
    """(4, 4) turn about ``centre``, then shift; sizes even up to their limits, directions even on the sphere."""
    axis, direction = random.normal(size=(2, 3))
    rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(random.uniform(0, turn))).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + direction / np.linalg.norm(direction) * random.uniform(0, shift)
    return matrix


def half(volume: Volume, which: str) -> Volume:
    """The scan without one half, its geometry kept."""
    z, x = volume.grid.shape[0] // 2, volume.grid.shape[2] // 2
    first, part = {
        "head": ((0, 0, z), np.s_[:, z:]),
        "feet": ((0, 0, 0), np.s_[:, :z]),
        "left": ((x, 0, 0), np.s_[:, :, :, x:]),
        "right": ((0, 0, 0), np.s_[:, :, :, :x]),
    }[which]
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_world(first)
    array = np.ascontiguousarray(volume.array[part])
    return Volume(array, Grid(array.shape[1:], affine))


def lung_points(labels: Volume, count: int = 5000) -> np.ndarray:
    """(n, 4) homogeneous LPS mm of voxels of the lungs, evenly thinned."""
    index = np.argwhere(labels.array[0] > 0)[:, ::-1]
    points = labels.grid.to_world(index[:: max(1, len(index) // count)])
    return np.column_stack([points, np.ones(len(points))])


def pair_result(
    source: Volume, target: Volume, lungs: np.ndarray, options: argparse.Namespace, execution: Execution
) -> dict[str, Any]:
    random = np.random.default_rng(options.seed)
    parts = [half(source, which) for which in HALVES] if options.hard else [source]
    start = time.process_time()
    stills = [still(part, target, source is target, execution) for part in parts]
    seconds = time.process_time() - start
    differences = []
    for number in range(options.starts):
        part, truth = parts[number % len(parts)], stills[number % len(parts)]
        move = pose(random, part.grid.centre, options.shift, options.turn)
        moved = Volume(part.array, Grid(part.grid.shape, move @ part.grid.affine))
        found = np.array(affine_register(moved, target, execution=execution)[1]["matrix"])
        index = part.grid.to_index((lungs @ truth.T)[:, :3])
        seen = lungs[((index > -0.5) & (index < part.grid.size - 0.5)).all(axis=1)]
        apart = (np.linalg.inv(move) @ found - truth) @ seen.T
        differences.append(round(float(np.linalg.norm(apart[:3], axis=0).mean()), 4))
    return {
        "cpu_seconds_of_one": round(seconds / len(parts), 2),
        "mean_difference_mm": differences,
        "worst_mm": max(differences),
        "share_within_limit": float(np.mean(np.array(differences) < options.limit)),
    }


def still(part: Volume, target: Volume, same: bool, execution: Execution) -> np.ndarray:
    """What the unmoved part should give: the identity onto its own scan, else what it does give."""
    return np.eye(4) if same else np.array(affine_register(part, target, execution=execution)[1]["matrix"])


def main() -> int:
    parser = arguments(__doc__ or "", "affine_starts")
    parser.add_argument("--starts", type=int, default=50, help="poses per pair")
    parser.add_argument("--pair", nargs=2, action="append", metavar=("SOURCE", "TARGET"), help="only this pair")
    parser.add_argument("--hard", action="store_true")
    options = parser.parse_args()
    if options.hard:
        named(options, "affine_starts", "affine_starts_hard")
    options.shift, options.turn, options.limit = (100.0, 30.0, 5.0) if options.hard else (40.0, 15.0, 2.0)
    folder: Path = options.data / "chest-ct"
    names = sorted(path.name.removesuffix("_0000.nii.gz") for path in (folder / "imagesTr").glob("*_0000.nii.gz"))
    images = {name: read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz") for name in names}
    lungs = {name: lung_points(read_labels(folder / "labelsTr" / f"{name}.nii.gz")) for name in names}
    execution = Execution(threads=options.threads)
    pairs: dict[str, Any] = {}
    command = ["python", Path(__file__).name, *[word.replace(str(options.data), "DATA") for word in sys.argv[1:]]]
    result = {
        "command": shlex.join(command),
        "machine": machine() | {"load_at_start": round(os.getloadavg()[0], 2)},
        "versions": versions(),
        "shift_mm": options.shift,
        "turn_degrees": options.turn,
        "limit_mm": options.limit,
        "half_missing": options.hard,
        "pairs": pairs,
    }
    every_pair = itertools.product(names, names) if options.hard else itertools.permutations(names, 2)
    for source, target in options.pair or every_pair:
        found = pair_result(images[source], images[target], lungs[target], options, execution)
        pairs[f"{source} onto {target}"] = found
        print(summary_lines({f"{source} onto {target}": f"worst {found['worst_mm']:.3f} mm"}), flush=True)
        every = np.concatenate([pair["mean_difference_mm"] for pair in pairs.values()])
        result |= {"starts": len(every), "worst_mm": float(every.max())}
        result |= {"share_within_limit": float(np.mean(every < options.limit))}
        write_json(options.output, result)
    print(summary_lines({key: result[key] for key in ("starts", "worst_mm", "share_within_limit")}))
    wanted = 0.95 if options.hard else 1.0
    return 0 if result["share_within_limit"] >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())

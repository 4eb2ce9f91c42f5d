"""All ordered pairs of the chest CTs through ``atlasnet register --fields``: invertibility, folding, Dice, seconds.

    python benchmarks/chest_pairs.py DATA

The figures come from the files that the command wrote, by NumPy and SciPy alone. Wanted: both compositions of forward
and inverse at most 0.2 mm from the identity on average and 1 mm at the 99.9th percentile, over voxels whose image lies
inside the other grid; the minimum over the eight one-sided corner Jacobians of every voxel above 0; 60 s a pair on 2
cores.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from bench import Bench, arguments, summary_lines, work_folder
from scipy.ndimage import map_coordinates

SLAB = 8


@dataclass(frozen=True)
class Field:
    """A displacement field file: (z, y, x, 3) vectors (x, y, z) in LPS mm, and its geometry."""

    vectors: np.ndarray
    matrix: np.ndarray  # (3, 3), index (x, y, z) to mm
    origin: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Field:
        image = sitk.ReadImage(str(path))
        if image.GetNumberOfComponentsPerPixel() != 3 or image.GetDimension() != 3:
            raise SystemExit(f"{path}: not a field of 3-D vectors")
        matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        return cls(sitk.GetArrayFromImage(image).astype(np.float32), matrix, np.array(image.GetOrigin()))

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.vectors.shape[:3]
        return z, y, x

    def points(self, z0: int, z1: int) -> np.ndarray:
        """(z, y, x, 3) positions in mm of the voxels of a slab."""
        _, y, x = self.shape
        index = np.stack(np.meshgrid(np.arange(z0, z1), np.arange(y), np.arange(x), indexing="ij")[::-1], -1)
        return np.asarray(index @ self.matrix.T + self.origin)

    def index(self, points: np.ndarray) -> np.ndarray:
        return np.asarray((points - self.origin) @ np.linalg.inv(self.matrix).T)

    def inside(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(((index >= 0) & (index <= np.array(self.shape[::-1]) - 1)).all(-1))

    def at(self, index: np.ndarray) -> np.ndarray:
        """(n, 3) vectors at index points (n, 3) in (x, y, z) order, linearly interpolated."""
        coordinates = index[:, ::-1].T
        return np.stack(
            [map_coordinates(self.vectors[..., c], coordinates, order=1, mode="nearest") for c in range(3)], -1
        )


def composition(first: Field, second: Field) -> dict[str, float]:
    """How far first and then second take a voxel from where it was, mm, where it is inside ``second`` in between."""
    lengths = []
    for z0 in range(0, first.shape[0], SLAB):
        z1 = min(z0 + SLAB, first.shape[0])
        points, moved = first.points(z0, z1), first.vectors[z0:z1].astype(np.float64)
        index = second.index(points + moved)
        inside = second.inside(index)
        lengths.append(np.linalg.norm(moved[inside] + second.at(index[inside]), axis=-1))
    every = np.concatenate(lengths)
    return {
        "mean_mm": float(every.mean()),
        "p999_mm": float(np.percentile(every, 99.9)),
        "max_mm": float(every.max()),
        "share_inside": float(every.size / np.prod(first.shape)),
    }


def corner_jacobians(field: Field) -> dict[str, float]:
    """Minimum over all voxels and corners of the determinant of one-sided differences of the stored float32 field.

    A voxel has eight corners, one for each choice of the forward or backward neighbour along x, y and z; those that
    lack a neighbour at the border are left out; along an axis of one voxel nothing changes.
    """
    inverse = np.linalg.inv(field.matrix)
    depth = field.shape[0]
    lowest, folded, total = np.inf, 0, 0
    for z0 in range(0, depth, SLAB):
        z1 = min(z0 + SLAB, depth)
        low, high = max(z0 - 1, 0), min(z1 + 1, depth)
        block = field.vectors[low:high].astype(np.float64)
        # The map in voxels: index + inverse(displacement); its one-sided differences are identity + differences.
        steps = block @ inverse.T
        fold = np.zeros(block.shape[:3], dtype=bool)
        least = np.full(block.shape[:3], np.inf)
        for signs in itertools.product((1, -1), repeat=3):
            columns, valid = [], np.ones(block.shape[:3], dtype=bool)
            for axis, sign in enumerate(signs):
                array_axis = 2 - axis
                difference = (np.roll(steps, -sign, array_axis) - steps) * sign
                difference[..., axis] += 1
                if field.shape[array_axis] > 1:
                    edge = [slice(None)] * 3
                    edge[array_axis] = slice(-1, None) if sign > 0 else slice(0, 1)
                    valid[tuple(edge)] = False
                columns.append(difference)
            determinant = np.einsum("...i,...i->...", columns[0], np.cross(columns[1], columns[2]))
            determinant[~valid] = np.inf
            least = np.minimum(least, determinant)
        core = slice(z0 - low, z1 - low)
        fold = least[core] <= 0
        lowest = min(lowest, float(least[core].min()))
        folded += int(fold.sum())
        total += fold.size
    return {"minimum": lowest, "folded_share": folded / total}


def carried_labels(field: Field, labels: sitk.Image) -> np.ndarray:
    """(z, y, x) labels of the source at the positions of the target's voxels, the nearest voxel's, 0 outside."""
    array = sitk.GetArrayFromImage(labels)
    matrix = np.reshape(labels.GetDirection(), (3, 3)) * labels.GetSpacing()
    carried = np.zeros(field.shape, dtype=array.dtype)
    for z0 in range(0, field.shape[0], SLAB):
        z1 = min(z0 + SLAB, field.shape[0])
        points = field.points(z0, z1) + field.vectors[z0:z1]
        index = (points - np.array(labels.GetOrigin())) @ np.linalg.inv(matrix).T
        carried[z0:z1] = map_coordinates(
            array, np.moveaxis(index[..., ::-1], -1, 0), order=0, mode="grid-constant", cval=0
        )
    return carried


def dice(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    return {
        str(v): round(float(2 * ((first == v) & (second == v)).sum() / ((first == v).sum() + (second == v).sum())), 4)
        for v in np.unique(second).tolist()
        if v != 0
    }


def examine(folder: Path, source_labels: Path, target_labels: Path) -> dict[str, Any]:
    """The figures of one pair from what the command wrote."""
    forward, inverse = Field.read(folder / "displacement.nii.gz"), Field.read(folder / "inverse_displacement.nii.gz")
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(target_labels)))
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "warped_labels.nii.gz")))
    return {
        "inverse_after_forward": composition(forward, inverse),
        "forward_after_inverse": composition(inverse, forward),
        "jacobian": corner_jacobians(forward),
        "inverse_jacobian": corner_jacobians(inverse),
        "dice": dice(carried_labels(forward, sitk.ReadImage(str(source_labels))), truth),
        "dice_of_written_labels": dice(written, truth),
    }


def main() -> None:
    parser = arguments(__doc__, "chest_pairs")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="pairs among these subjects only")
    parser.add_argument("--limit", type=int, help="the first so many pairs only")
    options = parser.parse_args()
    data = options.data / "chest-ct"
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").glob("*.nii.gz"))
    chosen = [case for case in cases if options.only is None or case in options.only]
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        pairs: dict[str, dict[str, Any]] = {}
        bench.result["pairs"] = pairs
        for source, target in list(itertools.permutations(chosen, 2))[: options.limit]:
            name, folder = f"{source} onto {target}", work / f"{source}-{target}"
            images = [data / "imagesTr" / f"{case}_0000.nii.gz" for case in (source, target)]
            labels = [data / "labelsTr" / f"{case}.nii.gz" for case in (source, target)]
            usage = bench.atlasnet(name, "register", *images, "-o", folder, "--source-labels", labels[0], "--fields")
            pairs[name] = {"seconds": usage["seconds"], "peak_gib": usage["peak_gib"], **examine(folder, *labels)}
            print(f"  {pairs[name]}", flush=True)
            bench.write()
        both = ("inverse_after_forward", "forward_after_inverse")
        worst = {
            "mean_mm": max(pair[way]["mean_mm"] for pair in pairs.values() for way in both),
            "p999_mm": max(pair[way]["p999_mm"] for pair in pairs.values() for way in both),
            "minimum_jacobian": min(pair["jacobian"]["minimum"] for pair in pairs.values()),
            "minimum_inverse_jacobian": min(pair["inverse_jacobian"]["minimum"] for pair in pairs.values()),
            "seconds": max(pair["seconds"] for pair in pairs.values()),
            "dice": min(value for pair in pairs.values() for value in pair["dice"].values()),
        }
        mean_dice = float(np.mean([value for pair in pairs.values() for value in pair["dice"].values()]))
        wanted = {
            "compositions_at_most_0.2_mm_on_average": worst["mean_mm"] <= 0.2,
            "compositions_at_most_1_mm_at_p99.9": worst["p999_mm"] <= 1,
            "no_fold": worst["minimum_jacobian"] > 0 and worst["minimum_inverse_jacobian"] > 0,
            "at_most_60_s": worst["seconds"] <= 60,
        }
        bench.result |= {"worst": worst, "mean_dice": mean_dice, "wanted": wanted}
        bench.write()
        print(summary_lines({**worst, "mean Dice": mean_dice, **wanted}))


if __name__ == "__main__":
    main()

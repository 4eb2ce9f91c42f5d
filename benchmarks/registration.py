"""The deformable registration beside its peers, on the same images, scored by the same code, in one run.

    python benchmarks/registration.py DATA --peer-python PEERS/bin/python [--methods greedy ...] [--only chest ...]

Peers live in an environment of their own: ``pip install antspyx picsl_greedy convexAdam itk-elastix SimpleITK``.

Images are aligned before; where the moving one ends, its edge is continued, and a mask that says so goes to every
method that takes one.

- chest: ordered pairs of the chest CTs after our affine alignment, resampled to 3 mm on the target's field of view and
  clamped to [-1000, 600] HU. Dice of the right lung (1), the left lung (2) and bone (3), which is every voxel above 200
  HU that no lung holds inside the body: the largest component above -400 HU after an opening by two voxels, its holes
  filled slice by slice.
- known: a chest CT and the same scan deformed by a known field. Error of the displacement in the lungs and at the
  landmarks.
- slices: of each chest pair, prepared likewise but at 1.5 mm in slices 6 mm apart, the axial slice of the target with
  most lung and the source's slice there, as images of two dimensions. Peers that take volumes only are left out.
- hippocampus: case i of `train17.txt` onto case i + 1, cyclically, and onto three more, after our affine alignment.

Seconds are from images in memory to what the method gives (ours, greedy and ANTs: both directions), after a warm-up of
ours; ``process`` is the whole process. The folded share counts voxels any of whose eight one-sided corner Jacobians is
not positive. With ``--resume`` the runs that the output holds stay, if it was made by the same versions.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from bench import Bench, arguments, measure, work_folder
from chest_pairs import Field, carried_labels, corner_jacobians, dice
from peers import METHODS
from scipy import ndimage, stats

SPACING = {"chest": (3.0, 3.0, 3.0), "slices": (1.5, 1.5, 6.0)}  # mm (x, y, z)
VOLUMES_ONLY = ("convexadam",)
CLAMP = (-1000, 600)  # HU
BONE, BODY = 200, -400  # HU
BONE_LABEL = 3


@dataclass(frozen=True)
class Pair:
    """Prepared images and labels on one grid, and what is known of the truth."""

    name: str
    folder: Path
    field: Path | None = None  # true displacement, LPS vectors
    unit: float = 1.0  # mm
    landmarks: Path | None = None

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.nii.gz"


def body(array: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(ndimage.binary_opening(array > BODY, iterations=2))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    mask = labels == sizes.argmax()
    return np.stack([ndimage.binary_fill_holes(part) for part in mask])


def prepare(folder: Path, name: str, files: list[Path], threads: int, kind: str) -> Pair:
    """Align affinely, bring both onto the target's grid with one interpolation, and write what every method reads.

    Args:
        folder: where the pair is written.
        name: of the pair.
        files: source image, source labels, target image, target labels.
        threads: of the affine alignment.
        kind: of the pair; scans of the chest are resampled and clamped, and their bone is labelled.
    """
    from atlasnet.execution import Execution
    from atlasnet.registration.affine import prealign
    from atlasnet.transform import Transform
    from atlasnet.volume import Volume, read_labels, read_volume, write_volume

    folder.mkdir(parents=True, exist_ok=True)
    source, target = read_volume(files[0]), read_volume(files[2])
    aligned = prealign(source, target, execution=Execution(threads=threads))
    grid = target.grid.with_spacing(SPACING[kind]) if kind in SPACING else target.grid
    level = None
    for which, image, labels, transform in (
        ("fixed", target, read_labels(files[3]), Transform.identity()),
        ("moving", source, read_labels(files[1]), aligned),
    ):
        array = transform.warp(image, grid).array[0].astype(np.float32)
        label = transform.warp(labels, grid, interpolation="label").array[0].astype(np.uint8)
        everywhere = Volume(np.ones_like(image.array[:1], dtype=np.uint8), image.grid)
        seen = transform.warp(everywhere, grid, interpolation="nearest", fill=0).array[0]
        if kind in SPACING:
            label[(label == 0) & (array > BONE) & body(array)] = BONE_LABEL
            array = array.clip(*CLAMP)
        if kind == "slices":
            if level is None:
                level = int(np.isin(label, (1, 2)).sum((1, 2)).argmax())
            write_slice(folder / f"{which}.nii.gz", array[level])
            # The scores are computed on a volume of one slice.
            write_slice(folder / f"{which}_labels.nii.gz", label[level : level + 1])
            write_slice(folder / f"{which}_mask.nii.gz", seen[level])
        else:
            write_volume(folder / f"{which}.nii.gz", Volume(array[None], grid))
            write_volume(folder / f"{which}_labels.nii.gz", Volume(label[None], grid))
            write_volume(folder / f"{which}_mask.nii.gz", Volume(seen[None], grid))
    return Pair(name, folder)


def write_slice(path: Path, array: np.ndarray) -> None:
    """A slice (y, x), or (1, y, x), that has forgotten where it came from."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING["slices"][: array.ndim])
    sitk.WriteImage(image, str(path), useCompression=True)


def pairs_of(kind: str, data: Path, work: Path, limit: int | None, threads: int) -> list[Pair]:
    if kind == "known":
        from atlasnet.volume import Volume, read_volume, write_volume

        given, folder = data / "chest-ct-known-field", work / "known"
        folder.mkdir(parents=True, exist_ok=True)
        names = {"fixed": "target", "moving": "source"}
        for ours, theirs in names.items():
            for end in ("", "_labels"):
                (folder / f"{ours}{end}.nii.gz").write_bytes((given / f"{theirs}{end}.nii.gz").read_bytes())
        image = read_volume(folder / "moving.nii.gz")
        everywhere = Volume(np.ones_like(image.array, dtype=np.uint8), image.grid)
        write_volume(folder / "moving_mask.nii.gz", everywhere)
        return [Pair("known field", folder, given / "displacement_0.01mm.nii.gz", 0.01, given / "landmarks.csv")]
    root = data / ("hippocampus" if kind == "hippocampus" else "chest-ct")
    if kind != "hippocampus":
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (root / "labelsTr").glob("*.nii.gz"))
        # Every subject is a source and a target before any is so twice.
        chosen = sorted(itertools.permutations(cases, 2), key=lambda p: (cases.index(p[1]) - cases.index(p[0])) % 5)
    else:
        cases = (root / "train17.txt").read_text().split()
        chosen = list(zip(cases, cases[1:] + cases[:1], strict=True))
        chosen += [(cases[i], cases[(i + 2) % len(cases)]) for i in range(3)]
    result = []
    for source, target in chosen[:limit]:
        files = [
            root / part
            for case in (source, target)
            for part in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
        ]
        name = f"{source} onto {target}"
        result.append(prepare(work / kind / f"{source}-{target}", name, files, threads, kind))
    return result


def examine(pair: Pair, vectors: np.ndarray) -> dict[str, Any]:
    """The figures of one displacement (z, y, x, 3), LPS mm."""
    image = sitk.ReadImage(str(pair.path("fixed_labels")))
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    field = Field(vectors, matrix, np.array(image.GetOrigin()))
    fixed = sitk.GetArrayFromImage(image)
    scores = dice(carried_labels(field, sitk.ReadImage(str(pair.path("moving_labels")))), fixed)
    found: dict[str, Any] = {"dice": scores, "mean_dice": float(np.mean(list(scores.values())))}
    found |= {f"jacobian_{key}": value for key, value in corner_jacobians(field).items()}
    if pair.field is not None and pair.landmarks is not None:
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(pair.field))).astype(np.float32) * pair.unit
        lungs = np.isin(fixed, (1, 2))
        errors = np.linalg.norm((vectors - truth)[lungs], axis=-1)
        points = np.loadtxt(pair.landmarks, delimiter=",")
        moved = points[:, :3] + field.at(field.index(points[:, :3]))
        found |= {
            "dense_error_mm": float(errors.mean()),
            "dense_error_p95_mm": float(np.percentile(errors, 95)),
            "landmark_error_mm": float(np.linalg.norm(moved - points[:, 3:], axis=-1).mean()),
        }
    return found


def main() -> None:
    parser = arguments(__doc__, "registration")
    kinds = ("chest", "known", "hippocampus", "slices")
    parser.add_argument("--peer-python", help="the interpreter of the peers' environment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--limit", type=int, help="the first so many pairs of each kind only")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the output holds, add those it lacks")
    options = parser.parse_args()
    if options.peer_python is None and set(options.methods) != {"atlasnet"}:
        parser.error("peers need --peer-python")
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        runs: list[dict[str, Any]] = []
        if options.resume and options.output.exists():
            before = json.loads(options.output.read_text())
            if any(before[key] != bench.result[key] for key in ("machine", "versions")):
                parser.error(f"{options.output} was made on another machine or by other versions")
            runs = before["runs"]
        done = {(run["kind"], run["pair"], run["method"]) for run in runs}
        bench.result["runs"] = runs
        for kind in options.only:
            methods = [name for name in options.methods if kind != "slices" or name not in VOLUMES_ONLY]
            for pair in pairs_of(kind, options.data, work, options.limit, options.threads):
                for method in methods:
                    if (kind, pair.name, method) in done:
                        continue
                    runs.append({"kind": kind, "pair": pair.name, "method": method, **run(pair, method, options)})
                    print(json.dumps(runs[-1]), flush=True)
                    bench.write()
        bench.result["summary"] = summary(runs)
        bench.write()
        for row in bench.result["summary"]:
            print(" ".join(f"{key} {value}" for key, value in row.items()))


def run(pair: Pair, method: str, options: Any) -> dict[str, Any]:
    """One method on one pair, in a process of its own."""
    python = sys.executable if method == "atlasnet" else options.peer_python
    worker, out = Path(__file__).with_name("peers.py"), pair.folder / method
    images = [pair.path(name) for name in ("fixed", "moving", "moving_mask")]
    command = [python, worker, method, *images, out, options.threads]
    limits = [f"{name}={options.threads}" for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")]
    # What a peer prints while it works goes into a file beside its result.
    quiet = ["sh", "-c", 'exec "$@" > "$0" 2>&1', str(out.with_suffix(".log"))]
    usage = measure([*quiet, "env", *limits, *[str(word) for word in command]])
    if usage["exit_code"] != 0:
        return {"failed": usage["exit_code"]}
    record = json.loads(out.with_suffix(".json").read_text())
    found = examine(pair, np.load(out.with_suffix(".npy")))
    return {
        "seconds": round(record.pop("seconds"), 2),
        "process_seconds": usage["seconds"],
        "peak_gib": usage["peak_gib"],
        **found,
        **record,
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the pairs of each kind that every method finished; seconds are medians.

    ``ours_minus_this`` is the mean difference in Dice to atlasnet on the same pairs with its 95 % bootstrap interval.
    """
    rows = []
    for kind in dict.fromkeys(run["kind"] for run in runs):
        of_kind = [run for run in runs if run["kind"] == kind]
        failed = {run["pair"] for run in of_kind if "failed" in run}
        for method in dict.fromkeys(run["method"] for run in of_kind):
            mine = [run for run in of_kind if run["method"] == method and run["pair"] not in failed]
            if not mine:
                continue
            row: dict[str, Any] = {"kind": kind, "method": method, "pairs": len(mine)}
            for label in mine[0]["dice"]:
                row[f"dice_{label}"] = round(float(np.mean([run["dice"][label] for run in mine])), 4)
            ours = {run["pair"]: run["mean_dice"] for run in of_kind if run["method"] == "atlasnet" and "dice" in run}
            if method != "atlasnet" and len(mine) > 1 and all(run["pair"] in ours for run in mine):
                gain = np.array([ours[run["pair"]] - run["mean_dice"] for run in mine])
                ends = stats.bootstrap((gain,), np.mean, method="basic", rng=0).confidence_interval
                row["ours_minus_this"] = [round(float(v), 4) for v in (gain.mean(), ends.low, ends.high)]
            for key in ("mean_dice", "dense_error_mm", "landmark_error_mm"):
                if key in mine[0]:
                    row[key] = round(float(np.mean([run[key] for run in mine])), 4)
            row["seconds"] = float(np.median([run["seconds"] for run in mine]))
            row["process_seconds"] = float(np.median([run["process_seconds"] for run in mine]))
            row["peak_gib"] = max(run["peak_gib"] for run in mine)
            row["least_jacobian"] = round(min(run["jacobian_minimum"] for run in mine), 4)
            row["most_folded"] = round(max(run["jacobian_folded_share"] for run in mine), 6)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()

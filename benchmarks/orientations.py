"""One scan in all 48 axis orientations, on an oblique grid, and turned: are the labels the same?

    python benchmarks/orientations.py DATA [--model MODEL]

The scan is DATA/chest-ct's first subject (or ``--image``), the model one trained on the others (or ``--model``).
Flipped and permuted with its header, the labels must be the same voxel for voxel after permuting back. Sampled on a
grid turned by 15 degrees, and with the patient turned by 15 degrees on the same grid, Dice with the unturned result
must be at least 0.98. What resampling labels there and back costs by itself is recorded beside it. All geometry here
is NumPy and SimpleITK, none of the package's.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from bench import Bench, arguments, summary_lines, work_folder

Orientation = tuple[tuple[int, ...], tuple[int, ...]]

ORIENTATIONS: list[Orientation] = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


def oriented(image: sitk.Image, orientation: Orientation) -> sitk.Image:
    """The same scan with new axis i = old axis ``axes[i]``, reversed where ``flips[i]`` is -1; axes are x, y, z."""
    axes, flips = orientation
    array = sitk.GetArrayFromImage(image).transpose([2 - axes[2 - k] for k in range(3)])
    array = array[tuple(slice(None, None, flips[2 - k]) for k in range(3))]
    size, spacing = image.GetSize(), image.GetSpacing()
    direction = np.reshape(image.GetDirection(), (3, 3))[:, axes] * flips
    first = [0, 0, 0]
    for axis, flip in zip(axes, flips, strict=True):
        first[axis] = size[axis] - 1 if flip < 0 else 0
    result = sitk.GetImageFromArray(np.ascontiguousarray(array))
    result.SetSpacing([spacing[axis] for axis in axes])
    result.SetDirection(direction.ravel().tolist())
    result.SetOrigin(image.TransformIndexToPhysicalPoint(first))
    return result


def restored(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Undo `oriented` on a (z, y, x) array."""
    axes, flips = orientation
    array = array[tuple(slice(None, None, flips[2 - k]) for k in range(3))]
    return array.transpose(np.argsort([2 - axes[2 - k] for k in range(3)]))


def centre(image: sitk.Image) -> list[float]:
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def rotation(image: sitk.Image, degrees: float, axis: str) -> sitk.Euler3DTransform:
    turn = sitk.Euler3DTransform()
    turn.SetCenter(centre(image))
    turn.SetRotation(*[math.radians(degrees) if axis == name else 0.0 for name in "xyz"])
    return turn


def oblique_grid(image: sitk.Image, degrees: float, axis: str) -> sitk.Image:
    """An empty image of the same spacing whose axes are turned and whose field of view holds all of ``image``."""
    matrix = np.reshape(rotation(image, degrees, axis).GetMatrix(), (3, 3))
    direction = matrix @ np.reshape(image.GetDirection(), (3, 3))
    spacing = np.array(image.GetSpacing())
    corners = [
        image.TransformIndexToPhysicalPoint([int(c) for c in corner])
        for corner in itertools.product(*[(0, n - 1) for n in image.GetSize()])
    ]
    index = (np.array(corners) - centre(image)) @ direction / spacing
    # An axis that the turn leaves in place keeps its voxel centres: half a voxel off, labels between two would tie.
    offset = (np.array(image.GetSize()) - 1) / 2 % 1
    low, high = np.floor(index.min(0) - offset) + offset, np.ceil(index.max(0) - offset) + offset
    grid = sitk.Image((high - low + 1).astype(int).tolist(), image.GetPixelID())
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((np.array(centre(image)) + direction @ (low * spacing)).tolist())
    return grid


def resample_labels(labels: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """The label whose linearly interpolated indicator is the largest."""
    return sitk.Resample(labels, grid, transform, sitk.sitkLabelLinear, 0)


def dice(first: sitk.Image, second: sitk.Image) -> dict[str, float]:
    a, b = sitk.GetArrayViewFromImage(first), sitk.GetArrayViewFromImage(second)
    values = sorted(set(np.unique(a)) | set(np.unique(b)) - {0})
    return {
        str(v): round(float(2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum())), 5)
        for v in values
        if v != 0
    }


def same_grid(image: sitk.Image, other: sitk.Image) -> bool:
    return image.GetSize() == other.GetSize() and all(
        np.allclose(getattr(image, name)(), getattr(other, name)(), atol=1e-4)
        for name in ("GetSpacing", "GetOrigin", "GetDirection")
    )


def main() -> None:
    parser = arguments(__doc__, "orientations")
    parser.add_argument("--image", type=Path, help="the scan (default: the first of chest-ct)")
    parser.add_argument("--model", type=Path, help="a trained model (default: trained on the rest of chest-ct)")
    parser.add_argument("--limit", type=int, help="this many of the 48 orientations, evenly spread")
    parser.add_argument("--only", choices=("orientations", "turns"), help="one half of the benchmark")
    parser.add_argument("--degrees", type=float, default=15.0)
    options = parser.parse_args()
    data = options.data / "chest-ct"
    path = options.image or sorted((data / "imagesTr").glob("*_0000.nii.gz"))[0]
    image = sitk.ReadImage(str(path))
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        model = options.model or train_without(bench, data, path, work)
        scans = work / "scans"
        scans.mkdir(exist_ok=True)
        step = 1 if options.limit is None else max(1, len(ORIENTATIONS) // options.limit)
        chosen = [] if options.only == "turns" else list(range(0, len(ORIENTATIONS), step))[: options.limit]
        names: dict[str, Any] = {f"orientation_{i:02d}": ORIENTATIONS[i] for i in chosen}
        sitk.WriteImage(image, str(scans / "unturned.nii.gz"))
        for name, orientation in names.items():
            sitk.WriteImage(oriented(image, orientation), str(scans / f"{name}.nii.gz"))
        air = float(sitk.GetArrayViewFromImage(image).min())
        turns = [] if options.only == "orientations" else list("zyx")
        for axis in turns:
            grid = oblique_grid(image, options.degrees, axis)
            still, turn = sitk.Transform(3, sitk.sitkIdentity), rotation(image, options.degrees, axis)
            oblique = sitk.Resample(image, grid, still, sitk.sitkLinear, air)
            sitk.WriteImage(oblique, str(scans / f"oblique_{axis}.nii.gz"))
            turned = sitk.Resample(image, image, turn, sitk.sitkLinear, air)
            sitk.WriteImage(turned, str(scans / f"turned_{axis}.nii.gz"))
        out = work / "labels"
        files = sorted(
            scans / f"{n}.nii.gz"
            for n in ["unturned", *names, *[f"{w}_{a}" for a in turns for w in ("oblique", "turned")]]
        )
        bench.atlasnet("predict", "predict", *files, "-m", model, "-o", out, "--overwrite")
        plain = sitk.ReadImage(str(out / "unturned.nii.gz"))
        bench.result |= compare(image, plain, names, turns, scans, out, options.degrees)
        bench.write()
        print(summary_lines(bench.result["wanted"]))


def train_without(bench: Bench, data: Path, path: Path, work: Path) -> Path:
    """A model of three atlases from the other subjects."""
    case = path.name.removesuffix("_0000.nii.gz")
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labelsTr").glob("*.nii.gz"))
    subjects = work / "subjects.txt"
    subjects.write_text("".join(f"{name}\n" for name in names if name != case))
    words = [data, "--subjects", subjects, "--atlases", 3, "-o", work / "model"]
    bench.atlasnet("train", *bench.train_words(*words))
    return work / "model"


def compare(
    image: sitk.Image,
    plain: sitk.Image,
    names: dict[str, Orientation],
    turns: list[str],
    scans: Path,
    out: Path,
    degrees: float,
) -> dict[str, Any]:
    """Read the predictions back and hold them against the unturned one."""
    reference = sitk.GetArrayFromImage(plain)
    differing, grids = {}, {"unturned": same_grid(image, plain)}
    for name, orientation in names.items():
        labels = sitk.ReadImage(str(out / f"{name}.nii.gz"))
        grids[name] = same_grid(sitk.ReadImage(str(scans / f"{name}.nii.gz")), labels)
        back = restored(sitk.GetArrayFromImage(labels), orientation)
        differing[name] = int((back != reference).sum())
    turned: dict[str, Any] = {}
    still = sitk.Transform(3, sitk.sitkIdentity)
    for axis in turns:
        turn = rotation(image, degrees, axis)
        for kind, transform in (("oblique", still), ("turned", turn)):
            labels = sitk.ReadImage(str(out / f"{kind}_{axis}.nii.gz"))
            alone = resample_labels(plain, labels, transform)
            # What the turn moved out of the field of view cannot come back: both are compared where it is inside.
            seen = sitk.Resample(labels * 0 + 1, plain, transform.GetInverse(), sitk.sitkNearestNeighbor, 0)
            there = plain * sitk.Cast(seen, plain.GetPixelID())
            turned[f"{kind}_{axis}"] = {
                "dice": dice(resample_labels(labels, plain, transform.GetInverse()), there),
                "dice_of_resampling_alone": dice(resample_labels(alone, plain, transform.GetInverse()), there),
            }
    wanted: dict[str, bool] = {"on_the_input_grid": all(grids.values())}
    if names:
        wanted[f"{len(names)}_orientations_voxel_for_voxel"] = not any(differing.values())
    if turned:
        wanted["turned_at_least_0.98"] = all(min(entry["dice"].values()) >= 0.98 for entry in turned.values())
    return {
        "labelled_voxels": int((reference != 0).sum()),
        "differing_voxels": differing,
        "degrees": degrees,
        "turned": turned,
        "wanted": wanted,
    }


if __name__ == "__main__":
    main()

"""A scan of 512 x 512 x 800 voxels (int16), segmented under a limit of the address space and refused under a lower one.

    python benchmarks/large_prediction.py

A model of the phantom cohort is trained; a test phantom is brought to the size, with noise, and segmented. The limit is
set with ``ulimit -v``, which counts what is reserved too: with libraries and threads more than is ever held. Wanted:
the prediction keeps within the limit, its estimate is no less than what was held and at most twice that, and under the
lower limit it is refused within 30 s of CPU time. The Dice with the phantom as it was made is reported.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bench import Bench, arguments, summary_lines, work_folder

PHANTOM = (32, 64, 64)  # voxels (z, y, x)
NOISE = 20.0  # HU
REFUSED_GIB = 3.0


def enlarge(path: Path, out: Path, size: tuple[int, int, int], seed: int) -> None:
    """The image on as many voxels (x, y, z) in the same field of view, linear, with noise; int16."""
    image = sitk.ReadImage(str(path))
    spacing = [mm * n / m for mm, n, m in zip(image.GetSpacing(), image.GetSize(), size, strict=True)]
    corner = [(m / n - 1) / 2 for m, n in zip(spacing, image.GetSpacing(), strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint(corner)
    large = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, origin, spacing, image.GetDirection(), -1000, sitk.sitkInt16
    )
    array, random = sitk.GetArrayFromImage(large), np.random.default_rng(seed)
    for plane in array:
        plane += np.rint(random.normal(scale=NOISE, size=plane.shape)).astype(np.int16)
    noisy = sitk.GetImageFromArray(array)
    noisy.CopyInformation(large)
    sitk.WriteImage(noisy, str(out))


def dice(large: Path, reference: Path) -> dict[int, float]:
    """Overlap of every label of the reference, taken to the large grid by nearest neighbours."""
    found = sitk.ReadImage(str(large))
    truth = sitk.Resample(sitk.ReadImage(str(reference)), found, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    a, b = sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(truth)
    values = [int(value) for value in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(reference)))) if value]
    return {v: round(float(2 * np.sum((a == v) & (b == v)) / (np.sum(a == v) + np.sum(b == v))), 4) for v in values}


def main() -> None:
    parser = arguments(__doc__ or "", "large_prediction", data=False)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 800), metavar=("X", "Y", "Z"))
    parser.add_argument("--limit", type=float, default=8.0, metavar="GIB", help="of the address space")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        from atlasnet.cohort.phantom import write_phantom_cohort

        data = write_phantom_cohort(work / "cohort", 4, shape=PHANTOM, test_subjects=1, seed=options.seed)
        (small,) = (data / "imagesTs").glob("*_0000.nii.gz")
        case = small.name.removesuffix("_0000.nii.gz")
        large = work / "large.nii"
        enlarge(small, large, tuple(options.size), options.seed)
        bench = Bench(options, work)
        model = work / "model"
        training = shlex.split("--atlases 2 --network segnet --width 0.25 --epochs 10")
        bench.atlasnet("training", *bench.train_words(data, "-o", model, *training))
        words: list[object] = ["predict", large, "-m", model, "--overwrite", "-o"]
        usage = bench.atlasnet("prediction", *words, work / "out" / "large.nrrd", limit_gib=options.limit)
        record = json.loads((work / "out" / "large.json").read_text(encoding="utf-8"))
        refused = bench.atlasnet("refusal", *words, work / "refused" / "large.nrrd", limit_gib=REFUSED_GIB, exit_code=2)
        peaks = record["peak_memory_mib"]
        estimate = record["estimated_memory_mib"] / 1024
        scores = dice(work / "out" / "large.nrrd", data / "labelsTs" / f"{case}.nii.gz")
        wanted = {
            "within_the_limit": usage["exit_code"] == 0 and usage["peak_gib"] < options.limit,
            "estimate_holds": usage["peak_gib"] <= estimate <= 2 * usage["peak_gib"],
            "refused_in_seconds": refused["cpu_seconds"] < 30 and not (work / "refused" / "large.nrrd").exists(),
        }
        bench.result |= {
            "voxels": list(options.size),
            "limit_gib": options.limit,
            "estimate_gib": round(estimate, 3),
            "peak_mib_by_stage": peaks,
            "seconds_by_stage": record["seconds"],
            "dice_by_label": scores,
            "wanted": wanted,
        }
        bench.write()
        print(summary_lines({"peak GiB": usage["peak_gib"], "estimate": estimate, "Dice": scores, **wanted}))


if __name__ == "__main__":
    main()

"""A scan that shows a part of the chest onto whole chests, and back: nothing is stretched, nothing tears.

    python benchmarks/field_of_view.py DATA

DATA holds chest-ct and chest-ct-cropped. Dice of the lungs over the voxels that both scans show, by the affine
alignment and by the registration from there. Wanted: at least 0.05 more than affine onto each whole chest, no fold.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from bench import Bench, arguments, summary_lines, work_folder

from atlasnet.execution import Execution
from atlasnet.registration import make_operator, prealign
from atlasnet.transform import Transform
from atlasnet.volume import Volume, read_labels, read_volume


def scores(transform: Transform, labels: Volume, lungs: Volume) -> dict[str, float]:
    """Dice of the carried labels where the source reaches, and which part of the target that is."""
    seen = Volume(np.ones((1, *labels.grid.shape), dtype=np.uint8), labels.grid)
    where = transform.warp(seen, lungs.grid, interpolation="nearest", fill=0).array[0] > 0
    carried = transform.warp(labels, lungs.grid, interpolation="label", fill=0).array[0] > 0
    known = lungs.array[0] > 0
    both = (carried & known & where).sum()
    return {
        "dice": round(float(2 * both / ((carried & where).sum() + (known & where).sum())), 4),
        "covered_share": round(float(where.mean()), 4),
    }


def main() -> None:
    options = arguments(__doc__ or "", "field_of_view").parse_args()
    execution = Execution(threads=options.threads, seed=options.seed)
    operator = make_operator("mrf")
    cropped = options.data / "chest-ct-cropped"
    part, part_lungs = read_volume(cropped / "cropped_0000.nii.gz"), read_labels(cropped / "cropped.nii.gz")
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        rows: list[dict[str, Any]] = []
        bench.result["runs"] = rows
        for path in sorted((options.data / "chest-ct" / "labelsTr").glob("*.nii.gz")):
            name = path.name.removesuffix(".nii.gz")
            whole = read_volume(options.data / "chest-ct" / "imagesTr" / f"{name}_0000.nii.gz")
            lungs = read_labels(path)
            for direction, source, labels, target, known in (
                ("part onto whole", part, part_lungs, whole, lungs),
                ("whole onto part", whole, lungs, part, part_lungs),
            ):
                start = prealign(source, target, execution=execution)
                (found,) = operator.register(source, [target], initial=[start], execution=execution)
                record = found.record
                rows.append(
                    {
                        "chest": name,
                        "direction": direction,
                        "affine": scores(start, labels, known),
                        "deformable": scores(found.transform, labels, known),
                        "jacobian_min": round(record["jacobian_min"], 4),
                        "inverse_residual_mm": record["inverse_residual_mm"]["mean"],
                        "seconds": record["seconds"],
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                bench.write()
        gains = {
            direction: [r["deformable"]["dice"] - r["affine"]["dice"] for r in rows if r["direction"] == direction]
            for direction in ("part onto whole", "whole onto part")
        }
        bench.result["least_gain"] = {direction: round(min(values), 4) for direction, values in gains.items()}
        bench.result["wanted"] = {
            "gain_of_0.05_onto_each_whole_chest": min(gains["part onto whole"]) >= 0.05,
            "no_fold": all(row["jacobian_min"] > 0 for row in rows),
        }
        bench.write()
        print(summary_lines({**bench.result["least_gain"], **bench.result["wanted"]}))


if __name__ == "__main__":
    main()

"""Metric weights learnt by tissue class beside equal weights and each metric alone.

    python benchmarks/learn_metrics.py DATA [--only hippocampus chest] [--resume --work DIR]

- hippocampus: learnt on the first 12 subjects of `train17.txt`, 20 pairs; reported on 40 pairs of 80 other subjects of
  `imagesTr`, none of them twice.
- chest: the chest CTs at 3 mm with right and left lung as one class and bone, by the rule of `registration.py`, as
  another; each subject is left out in turn, weights are learnt on pairs of the others and judged by those of a fourth
  with them, at 8 mm (at 3 mm a fold takes over an hour), and reported on all four mapped onto the one, at 3 mm: every
  ordered pair once.

Everything is registered with the levels of the preset ``publication``, on which every metric can stand alone, from the
same affine start, with the same smoothness but for the learnt weights. ``learnt`` has the classes of its control points
from the source's labels, ``learnt_target`` from the target's, ``learnt_average`` from none. Seconds are of the
deformation, on one thread.

With ``--resume`` the runs that the output holds stay, if it was made on the same machine.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, work_folder
from registration import BONE, BONE_LABEL, body
from scipy import stats

METRICS = ("mi", "ncc", "dwt", "sad")
METHODS = ("equal", "learnt", "learnt_target", "learnt_average", *METRICS)
CHEST_SPACING, LEARNING_SPACING = (3.0, 3.0, 3.0), 8.0
PAIRS = 40


def chest_cohort(data: Path, folder: Path) -> Path:
    """The chests at 3 mm with bone labelled, as a cohort of its own."""
    from atlasnet.execution import write_json
    from atlasnet.transform import Transform
    from atlasnet.volume import Volume, read_labels, read_volume, write_volume

    if (folder / "dataset.json").exists():
        return folder
    for path in sorted((data / "labelsTr").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        image = read_volume(data / "imagesTr" / f"{name}_0000.nii.gz")
        grid = image.grid.with_spacing(CHEST_SPACING)
        array = Transform.identity().warp(image, grid).array
        bones = Transform.identity().warp(read_labels(path), grid, interpolation="label").array.astype(np.uint8)
        bones[0][(bones[0] == 0) & (array[0] > BONE) & body(array[0])] = BONE_LABEL
        write_volume(folder / "imagesTr" / f"{name}_0000.nii.gz", Volume(array.astype(np.int16), grid))
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", Volume(bones, grid))
    labels = {"background": 0, "right lung": 1, "left lung": 2, "bone": BONE_LABEL}
    declared = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", declared)
    return folder


def folds(kind: str, data: Path, work: Path) -> Iterator[tuple[str, Path, list[str], list[tuple[str, str]], list[str]]]:
    """Name, cohort, subjects to learn from, pairs to report, and the options of the learning."""
    if kind == "hippocampus":
        root = data / "hippocampus"
        known = (root / "train17.txt").read_text(encoding="utf-8").split()
        others = sorted(p.name.removesuffix(".nii.gz") for p in (root / "labelsTr").glob("*.nii.gz"))
        others = [name for name in others if name not in known]
        chosen = [others[int(i)] for i in np.random.default_rng(0).permutation(len(others))[: 2 * PAIRS]]
        yield "hippocampus", root, known[:12], list(zip(chosen[:PAIRS], chosen[PAIRS:], strict=True)), []
        return
    root = chest_cohort(data / "chest-ct", work / "chest-cohort")
    names = sorted(p.name.removesuffix(".nii.gz") for p in (root / "labelsTr").glob("*.nii.gz"))
    for left_out in names:
        rest = [name for name in names if name != left_out]
        options = ["--class", "lungs=1,2", "--class", f"bone={BONE_LABEL}", "--spacing", str(LEARNING_SPACING)]
        yield f"chest-{left_out}", root, rest, [(name, left_out) for name in rest], options


def methods(weights: Any) -> dict[str, tuple[dict[str, Any], str | None]]:
    """The settings of each method, and whose labels tell its classes."""
    from atlasnet.registration import preset

    levels = {"levels": preset("publication")["levels"], "affine": False}
    learnt = levels | weights.settings()
    return {
        "equal": (levels | {"metrics": dict.fromkeys(METRICS, 1.0)}, None),
        "learnt": (learnt, "source"),
        "learnt_target": (learnt, "target"),
        "learnt_average": (learnt, "average"),
        **{name: (levels | {"metrics": {name: 1.0}}, None) for name in METRICS},
    }


def main() -> None:
    parser = arguments(__doc__, "learn_metrics")
    parser.add_argument("--only", nargs="+", choices=("hippocampus", "chest"), default=["hippocampus", "chest"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--learn-options", default="", metavar="TEXT", help="passed to `atlasnet learn-metrics`")
    parser.add_argument("--limit", type=int, help="the first so many pairs of each fold only")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the output holds, add those it lacks")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        runs: list[dict[str, Any]] = []
        before = bench.before()
        if before is not None:
            runs = before["runs"]
            bench.stages.update(before["stages"])
        bench.result["runs"] = runs
        for kind in options.only:
            for name, root, learning, pairs, classes in folds(kind, options.data, work):
                file = work / f"{name}.json"
                if not file.exists() or f"learn {name}" not in bench.stages:
                    subjects = work / f"{name}.txt"
                    subjects.write_text("\n".join(learning) + "\n", encoding="utf-8")
                    words = ["--subjects", subjects, "--preset", "publication", *classes, "-o", file]
                    words += shlex.split(options.learn_options)
                    bench.atlasnet(f"learn {name}", "learn-metrics", root, *words)
                bench.result.setdefault("weights", {})[name] = json.loads(file.read_text(encoding="utf-8"))
                report(kind, name, root, pairs[: options.limit], file, bench, runs)
        bench.result["summary"] = [row for kind in options.only for row in summary(kind, runs)]
        bench.write()
        for row in bench.result["summary"]:
            print(json.dumps(row))


def report(
    kind: str, fold: str, root: Path, pairs: list[tuple[str, str]], file: Path, bench: Bench, runs: list[dict[str, Any]]
) -> None:
    """Register every pair with every method that the runs lack."""
    from atlasnet.cohort import Cohort
    from atlasnet.execution import Execution
    from atlasnet.registration import MetricWeights, MRFOperator, MRFSettings, prealign, register_images
    from atlasnet.volume import canonical

    execution, cohort = Execution(threads=bench.options.threads), Cohort.read(root)
    done = {(run["fold"], run["pair"], run["method"]) for run in runs}
    wanted = methods(MetricWeights.read(file))
    for source, target in pairs:
        name = f"{source} onto {target}"
        missing = [method for method in bench.options.methods if (fold, name, method) not in done]
        if not missing:
            continue
        (image, labels), (atlas, reference) = (
            (canonical(cohort[n].read_image())[0], canonical(cohort[n].read_labels())[0]) for n in (source, target)
        )
        start = prealign(image, atlas, execution=execution)
        for method in missing:
            settings, classes = wanted[method]
            told = {"source": {"source_labels": labels}, "target": {"target_labels": reference}}.get(classes or "", {})
            operator = MRFOperator(MRFSettings(**settings))
            found = register_images(image, atlas, operator=operator, initial=start, **told, execution=execution)
            carried = found.transform.warp(labels, atlas.grid, interpolation="label").array
            scores = {
                label: 2
                * float(((carried == v) & (reference.array == v)).sum())
                / float((carried == v).sum() + (reference.array == v).sum())
                for label, v in cohort.labels.items()
                if v
            }
            record = {"kind": kind, "fold": fold, "pair": name, "method": method, "dice": scores}
            runs.append(record | {"seconds": found.record["seconds_deformation"]})
        bench.write()
        print(
            name, {run["method"]: round(float(np.mean(list(run["dice"].values()))), 4) for run in runs[-len(missing) :]}
        )


def summary(kind: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method the mean Dice of every structure and of all, and how far ``learnt`` is ahead, with 95 % intervals.

    p is of a Wilcoxon test over pairs. Pairs of chests share subjects, and are fewer than they look.
    """
    mine = [run for run in runs if run["kind"] == kind]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for run in mine:
        table.setdefault(run["method"], {})[f"{run['fold']} {run['pair']}"] = run
    rows = []
    for method, found in table.items():
        keys = sorted(set(found) & set(table["learnt"]))
        own, learnt = scores_of(found, keys), scores_of(table["learnt"], keys)
        row: dict[str, Any] = {"kind": kind, "method": method, "pairs": len(keys)}
        for structure, values in own.items():
            row[structure] = round(float(values.mean()), 4)
            gain = learnt[structure] - values
            if gain.any():
                ends = stats.bootstrap((gain,), np.mean, method="basic", rng=0).confidence_interval
                row[f"learnt_minus_this_{structure}"] = {
                    "mean": round(float(gain.mean()), 4),
                    "interval": [round(float(ends.low), 4), round(float(ends.high), 4)],
                    "p": float(stats.wilcoxon(gain).pvalue),
                }
        row["seconds"] = float(np.median([found[key]["seconds"] for key in keys]))
        ratios = [found[key]["seconds"] / table["equal"][key]["seconds"] for key in keys if key in table["equal"]]
        row["seconds_over_equal"] = round(float(np.median(ratios)), 3)
        rows.append(row)
    return rows


def scores_of(found: dict[str, dict[str, Any]], keys: list[str]) -> dict[str, np.ndarray]:
    """Dice of every structure, and their mean, by pair."""
    scores = {name: np.array([found[key]["dice"][name] for key in keys]) for name in found[keys[0]]["dice"]}
    return scores | {"mean": np.mean(list(scores.values()), axis=0)}


if __name__ == "__main__":
    main()

"""How often is the verdict on a scan right? Held-out scans as they are, and the same ones broken in known ways.

    python benchmarks/verdict.py DATA

DATA holds hippocampus, chest-ct and chest-ct-512. A model of the 17 hippocampi of train17.txt judges test subjects;
five models of four chests each judge the chest that is left out. Limits come from the training subjects alone. The
networks are trained for two steps only: they have no part in it. Wanted: at most 5 % of the normal scans refused, at
least 95 % of every kind of broken ones, area under the curve above 0.95.

With ``--development``, the other subjects of imagesTr are judged instead, and no chest: on those the limit was set.

With ``--resume``, the scans that the output holds are not judged again; models are kept with ``--work``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, named, summary_lines, work_folder
from scipy import ndimage, stats

from atlasnet.cohort import Cohort
from atlasnet.execution import Execution, TextReporter
from atlasnet.prediction import Predictor
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.subjects import read_names
from atlasnet.volume import Grid, Volume, canonical, read_labels, read_volume

NORMAL = "normal"
KEY = ("model", "left_out", "case", "kind", "change")  # which scan, and whose verdict
CHEST_NOISE, MR_NOISE = 300.0, 1.0  # standard deviation: HU, and of the scan's own
IN_VIEW = 0.4  # share of the organ that a cropped scan shows
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0)

Change = Callable[[Volume, Volume, np.random.Generator], Volume]


@dataclass(frozen=True)
class Input:
    """A scan, and what was done to it."""

    case: str
    kind: str
    change: str
    image: Volume


def whole(image: Volume, array: np.ndarray) -> Volume:
    return Volume(np.ascontiguousarray(array, dtype=np.float32), image.grid)


def part(image: Volume, axis: int, low: int, high: int) -> Volume:
    """The slices ``low`` to ``high`` along an array axis (0 z, 1 y, 2 x)."""
    affine = image.grid.affine.copy()
    start = np.zeros(3)
    start[2 - axis] = low
    affine[:3, 3] = image.grid.to_world(start[None])[0]
    array = np.ascontiguousarray(np.take(image.array, range(low, high), axis=axis + 1))
    return Volume(array, Grid((array.shape[1], array.shape[2], array.shape[3]), affine))


def cropped(axis: int, from_below: bool) -> Change:
    """Cut so that ``IN_VIEW`` of the labelled voxels stay in view."""

    def change(image: Volume, labels: Volume, random: np.random.Generator) -> Volume:
        counts = (labels.array[0] != 0).sum(tuple({0, 1, 2} - {axis}))
        share = np.cumsum(counts) / counts.sum()
        if from_below:
            return part(image, axis, 0, int(np.searchsorted(share, IN_VIEW)) + 1)
        return part(image, axis, int(np.searchsorted(share, 1 - IN_VIEW)), len(counts))

    return change


def mirrored(*axes: int) -> Change:
    """The array mirrored along its axes (1 z, 2 y, 3 x), the header unchanged."""
    return lambda image, labels, random: whole(image, np.flip(image.array, axes))


def intensities(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda image, labels, random: whole(image, function(image.array.astype(np.float32)))


def noisy(sigma: float, relative: bool) -> Change:
    """White noise on every voxel."""

    def change(image: Volume, labels: Volume, random: np.random.Generator) -> Volume:
        size = sigma * float(image.array.std()) if relative else sigma
        return whole(image, image.array + random.normal(0, size, image.array.shape))

    return change


def turned(degrees: float) -> Change:
    """The patient turned about the long axis, air beyond the field of view."""

    def change(image: Volume, labels: Volume, random: np.random.Generator) -> Volume:
        fill = float(image.array.min())
        array = ndimage.rotate(
            image.array[0].astype(np.float32), degrees, (1, 2), reshape=False, order=1, mode="constant", cval=fill
        )
        return whole(image, array[None])

    return change


def moved(image: Volume, labels: Volume, random: np.random.Generator) -> Volume:
    """A header that lies about the position alone."""
    affine = image.grid.affine.copy()
    affine[:3, 3] += random.uniform(-150, 150, 3)
    return Volume(image.array, Grid(image.grid.shape, affine))


def stored_otherwise(image: Volume, labels: Volume, random: np.random.Generator) -> Volume:
    """The same scan with its axes stored the other way round, and a header that says so."""
    affine = image.grid.affine.copy()
    last = np.array([image.grid.size - 1], dtype=float)
    affine[:3, 3] = image.grid.to_world(last)[0]
    affine[:3, :3] *= -1
    return Volume(np.ascontiguousarray(image.array[:, ::-1, ::-1, ::-1]), Grid(image.grid.shape, affine))


def mr_like(hu: np.ndarray) -> np.ndarray:
    """Air dark, fat bright, bone dark, as a T1 image has them."""
    return np.asarray(np.interp(hu, [-1000, -200, -100, 40, 300, 1000], [0, 20, 800, 400, 50, 0]), dtype=np.float32)


CHEST: list[tuple[str, str, Change]] = [
    (NORMAL, "header moved by up to 150 mm", moved),
    (NORMAL, "stored the other way round", stored_otherwise),
    (NORMAL, "turned by 6 degrees", turned(6.0)),
    (NORMAL, "noise of 20 HU", noisy(20.0, False)),
    ("mirrored", "left and right", mirrored(3)),
    ("mirrored", "front and back", mirrored(2)),
    ("mirrored", "head and feet", mirrored(1)),
    ("mirrored", "left and right, front and back", mirrored(2, 3)),
    ("units", "HU + 1024", intensities(lambda hu: hu + 1024)),
    ("units", "HU / 1000", intensities(lambda hu: hu / 1000)),
    ("units", "scaled to 0 to 1", intensities(lambda hu: (hu - hu.min()) / np.ptp(hu))),
    ("noise", f"{CHEST_NOISE:g} HU", noisy(CHEST_NOISE, False)),
    ("field of view", f"{IN_VIEW:.0%} of the lungs, lower", cropped(0, True)),
    ("field of view", f"{IN_VIEW:.0%} of the lungs, upper", cropped(0, False)),
    ("field of view", f"{IN_VIEW:.0%} of the lungs, one side", cropped(2, True)),
    ("modality", "inverted", intensities(lambda hu: hu.max() + hu.min() - hu)),
    ("modality", "as in T1 MR", intensities(mr_like)),
]
HIPPOCAMPUS: list[tuple[str, str, Change]] = [
    ("mirrored", "left and right", mirrored(3)),
    ("noise", f"{MR_NOISE:g} standard deviations", noisy(MR_NOISE, True)),
    ("field of view", f"{IN_VIEW:.0%} of the hippocampus, back", cropped(1, False)),
    ("field of view", f"{IN_VIEW:.0%} of the hippocampus, front", cropped(1, True)),
    ("modality", "inverted", intensities(lambda values: values.max() + values.min() - values)),
]


def read(folder: Path, name: str, images: str = "imagesTr", labels: str = "labelsTr") -> tuple[Volume, Volume]:
    """An image and its labels in canonical orientation."""
    image, _ = canonical(read_volume(folder / images / f"{name}_0000.nii.gz"))
    reference, _ = canonical(read_labels(folder / labels / f"{name}.nii.gz"))
    return image, reference


def chest_inputs(data: Path, case: str, seed: int) -> Iterator[Input]:
    image, labels = read(data / "chest-ct", case)
    yield Input(case, NORMAL, "as it is", image)
    full = data / "chest-ct-512" / f"{case}_0000.nii.gz"
    if full.exists():
        yield Input(case, NORMAL, "512 x 512", canonical(read_volume(full))[0])
    for number, (kind, what, change) in enumerate(CHEST):
        yield Input(case, kind, what, change(image, labels, np.random.default_rng([seed, number])))


def hippocampus_inputs(data: Path, names: list[str], broken: int, seed: int, of: str = "Ts") -> Iterator[Input]:
    for index, name in enumerate(names):
        image, labels = read(data / "hippocampus", name, f"images{of}", f"labels{of}")
        yield Input(name, NORMAL, "as it is", image)
        for number, (kind, what, change) in enumerate(HIPPOCAMPUS if index < broken else []):
            random = np.random.default_rng([seed, index, number])
            yield Input(name, kind, what, change(image, labels, random))


def trained(cohort: Cohort, folder: Path, operator: str, work: Path, execution: Execution) -> Model:
    options = FitOptions(atlases=3, width=0.25, preset=RECIPE, operator=operator)
    return fit(cohort, folder, options, work=work, execution=execution)


def area(normal: list[float], broken: list[float]) -> float:
    """Under the curve, for the score as a sign of a broken scan."""
    ranks = stats.rankdata(normal + broken)[len(normal) :]
    return float((ranks.sum() - len(broken) * (len(broken) + 1) / 2) / (len(normal) * len(broken)))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Refused share of the normal scans, caught share per kind, area under the curve."""
    normal = [row for row in rows if row["kind"] == NORMAL]
    kinds = sorted({row["kind"] for row in rows} - {NORMAL})
    found: dict[str, Any] = {
        "normal": len(normal),
        "refused_share": round(float(np.mean([row["unusual"] for row in normal])), 4),
        "kinds": {},
    }
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        found["kinds"][kind] = {
            "inputs": len(own),
            "caught_share": round(float(np.mean([row["unusual"] for row in own])), 4),
            "area": round(area([row["score"] for row in normal], [row["score"] for row in own]), 4),
        }
    broken = [row["score"] for row in rows if row["kind"] != NORMAL]
    found["broken"] = len(broken)
    found["area"] = round(area([row["score"] for row in normal], broken), 4)
    return found


def main() -> None:
    parser = arguments(__doc__ or "", "verdict")
    parser.add_argument("--operator", default="mrf", choices=("mrf", "affine"), help="the models' registration")
    parser.add_argument("--hippocampi", type=int, default=40, help="normal hippocampi, of 60")
    parser.add_argument("--broken", type=int, default=20, help="how many of them are broken, each in every way")
    parser.add_argument("--chests", type=int, default=5, help="left out in turn")
    parser.add_argument("--development", action="store_true", help="judge what is left of imagesTr, and no chest")
    parser.add_argument("--resume", action="store_true", help="keep the verdicts that the output holds")
    options = parser.parse_args()
    if options.development:
        named(options, "verdict", "verdict_development")
    execution = Execution(threads=options.threads, seed=options.seed, reporter=TextReporter())
    hippocampus = options.data / "hippocampus"
    known, of = read_names(hippocampus / "train17.txt"), "Tr" if options.development else "Ts"
    tests = sorted(p.name.removesuffix(".nii.gz") for p in (hippocampus / f"labels{of}").glob("*.nii.gz"))
    tests = [name for name in tests if name not in known]
    chests = sorted(p.name.removesuffix(".nii.gz") for p in (options.data / "chest-ct" / "labelsTr").glob("*.nii.gz"))
    if options.development:
        chests = []
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        before = bench.before()
        rows: list[dict[str, Any]] = [] if before is None else before["rows"]
        chosen = [
            word
            for name in ("operator", "hippocampi", "broken", "chests", "seed", "threads")
            for word in (f"--{name}", str(getattr(options, name)))
        ] + ["--development"] * options.development
        bench.result |= {
            "command": bench.shown(["python", "benchmarks/verdict.py", str(options.data), *chosen]),
            "rows": rows,
        }

        def judge(organ: str, predictor: Predictor, inputs: Iterator[Input], left_out: str | None = None) -> None:
            done = {tuple(row[name] for name in KEY) for row in rows}
            for one in inputs:
                if (organ, left_out, one.case, one.kind, one.change) in done:
                    continue
                verdict = predictor.verdict(one.image)
                rows.append(
                    {
                        "model": organ,
                        "left_out": left_out,
                        "case": one.case,
                        "kind": one.kind,
                        "change": one.change,
                        "unusual": verdict.result == "unusual",
                        "score": verdict.score,
                        "scores": {name: found["score"] for name, found in verdict.evidence.items()},
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                bench.write()

        def strangers(model: str, inputs: Iterator[Input]) -> Iterator[Input]:
            for one in inputs:
                yield replace(one, kind="other organ", change=f"given to a model of the {model}")

        cohort = Cohort.read(hippocampus).select(known)
        model = trained(cohort, work / "hippocampus", options.operator, work / "work", execution)
        predictor = Predictor(model, execution=execution)
        judge(
            "hippocampus",
            predictor,
            hippocampus_inputs(options.data, tests[: options.hippocampi], options.broken, options.seed, of),
        )
        as_they_are = (Input(case, "", "", read(options.data / "chest-ct", case)[0]) for case in chests)
        judge("hippocampus", predictor, strangers("hippocampus", as_they_are))
        for number, case in enumerate(chests[: options.chests]):
            rest = Cohort.read(options.data / "chest-ct").select([other for other in chests if other != case])
            model = trained(rest, work / case, options.operator, work / "work", execution)
            predictor = Predictor(model, execution=execution)
            judge("chest", predictor, chest_inputs(options.data, case, options.seed + number), case)
            others = strangers("chest", hippocampus_inputs(options.data, tests[-3:], 0, options.seed))
            judge("chest", predictor, others, case)
        found = summary(rows)
        organs = sorted({row["model"] for row in rows})
        bench.result["summary"] = {
            **found,
            **{organ: summary([row for row in rows if row["model"] == organ]) for organ in organs},
        }
        bench.result["wanted"] = {
            "at_most_5_percent_of_normal_refused": found["refused_share"] <= 0.05,
            "at_least_95_percent_of_each_kind_caught": all(k["caught_share"] >= 0.95 for k in found["kinds"].values()),
            "area_above_0.95": found["area"] > 0.95,
        }
        bench.write()
        print(summary_lines({"summary": json.dumps(found, indent=1), **bench.result["wanted"]}))


if __name__ == "__main__":
    main()

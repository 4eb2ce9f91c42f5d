"""Are training subjects told whose image or reference is wrong, and only those?

    python benchmarks/training_outliers.py DATA

DATA holds hippocampus and chest-ct. The 53 hippocampi of imagesTr by which nothing was chosen are three groups, the
five chests are one. Each group is trained on as it is, and once for every kind of error with an error in a few of its
subjects, drawn by chance: three of a group, one of the chests. The networks are trained for two steps only: they have
no part in it. Reported per kind of error: how many of the wrong subjects were told, and how many right ones.

With ``--development``, the 17 of train17.txt and the 30 on which recipes are compared, in two groups, and no chest: on
those the limits were set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, arguments, named, summary_lines, work_folder
from study import chosen_by_none, development
from verdict import trained

from atlasnet.cohort import Cohort
from atlasnet.execution import Execution, TextReporter
from atlasnet.training.subjects import read_names
from atlasnet.volume import Volume, read_labels, read_volume, write_labels, write_volume

WRONG = 3  # subjects of a group
GROUPS = 3
SHIFT_MM = 8.0
NOISE = 1.0  # standard deviations of the scan

Pair = tuple[Volume, Volume]
Change = Callable[[Pair, Pair, np.random.Generator], Pair]


def labels_only(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of the labels (1, z, y, x)."""
    return lambda own, other, random: (own[0], own[1].replace(np.ascontiguousarray(function(own[1].array))))


def shifted(own: Pair, other: Pair, random: np.random.Generator) -> Pair:
    """Labels moved along y, as by a header that was changed in one of two files."""
    voxels = round(SHIFT_MM / float(own[1].grid.spacing[1]))
    return own[0], own[1].replace(np.roll(own[1].array, voxels, 2))


def of_another(own: Pair, other: Pair, random: np.random.Generator) -> Pair:
    """The labels of another subject, its middle in the middle."""
    array = np.zeros_like(own[1].array)
    inner, outer = [], []
    for here, there in zip(array.shape[1:], other[1].array.shape[1:], strict=True):
        size = min(here, there)
        inner.append(slice((here - size) // 2, (here - size) // 2 + size))
        outer.append(slice((there - size) // 2, (there - size) // 2 + size))
    array[:, *inner] = other[1].array[:, *outer]
    return own[0], own[1].replace(array)


def mirrored(own: Pair, other: Pair, random: np.random.Generator) -> Pair:
    """Image and labels mirrored left and right under an unchanged header."""
    image, labels = own
    return tuple(part.replace(np.ascontiguousarray(part.array[..., ::-1])) for part in (image, labels))  # type: ignore[return-value]


def noisy(own: Pair, other: Pair, random: np.random.Generator) -> Pair:
    image = own[0].array.astype(np.float32)
    return own[0].replace(image + random.normal(0, NOISE * image.std(), image.shape).astype(np.float32)), own[1]


ERRORS: dict[str, Change] = {
    "labels swapped": labels_only(lambda array: np.select([array == 1, array == 2], [2, 1], 0).astype(array.dtype)),
    "a label missing": labels_only(lambda array: np.where(array == 2, 0, array)),
    "labels mirrored left and right": labels_only(lambda array: array[..., ::-1]),
    "labels upside down": labels_only(lambda array: array[:, ::-1]),
    f"labels shifted by {SHIFT_MM:g} mm": shifted,
    "labels of another subject": of_another,
    "image and labels mirrored left and right": mirrored,
    f"noise of {NOISE:g} standard deviations": noisy,
}


def groups_of(options: Any) -> dict[str, tuple[Path, list[str]]]:
    """By name, the cohort and the subjects of each group."""
    hippocampus, chest = options.data / "hippocampus", options.data / "chest-ct"
    if options.development:
        return {
            "hippocampi, train17": (hippocampus, read_names(hippocampus / "train17.txt")),
            "hippocampi, development": (hippocampus, development(hippocampus)),
        }
    others = chosen_by_none(hippocampus)
    groups = {f"hippocampi {i + 1}": (hippocampus, others[i::GROUPS]) for i in range(GROUPS)}
    chests = sorted(path.name.removesuffix(".nii.gz") for path in (chest / "labelsTr").glob("*.nii.gz"))
    return {**groups, "chests": (chest, chests)}


def copied(cohort: Cohort, folder: Path, wrong: Sequence[str], change: Change | None, seed: int) -> Cohort:
    """The cohort in a folder of its own, with an error in some subjects."""
    shutil.rmtree(folder, ignore_errors=True)
    names = [subject.name for subject in cohort]
    for index, subject in enumerate(cohort):
        (path,), labels = subject.images, subject.labels
        assert labels is not None
        pair = read_volume(path), read_labels(labels)
        if subject.name in wrong and change is not None:
            after = cohort[names[(index + 1) % len(names)]]
            assert after.labels is not None
            other = read_volume(after.images[0]), read_labels(after.labels)
            pair = change(pair, other, np.random.default_rng([seed, index]))
        write_volume(folder / "imagesTr" / f"{subject.name}_0000.nii.gz", pair[0])
        write_labels(folder / "labelsTr" / f"{subject.name}.nii.gz", pair[1])
    shutil.copyfile(cohort.root / "dataset.json", folder / "dataset.json")
    return Cohort.read(folder)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per error: trainings, wrong subjects and those told, right ones told."""
    found = {}
    for kind in dict.fromkeys(row["error"] for row in rows):
        own = [row for row in rows if row["error"] == kind]
        wrong = [name for row in own for name in row["wrong"]]
        told = [name for row in own for name in row["told"] if name in row["wrong"]]
        right = [name for row in own for name in row["told"] if name not in row["wrong"]]
        subjects = sum(row["subjects"] for row in own)
        found[kind] = {"wrong": len(wrong), "told": len(told), "right": subjects - len(wrong), "right_told": len(right)}
    return found


def main() -> None:
    parser = arguments(__doc__ or "", "training_outliers")
    parser.add_argument("--development", action="store_true", help="the subjects on which the limits were set")
    parser.add_argument("--resume", action="store_true", help="keep the trainings that the output holds")
    options = parser.parse_args()
    if options.development:
        named(options, "training_outliers", "training_outliers_development")
    execution = Execution(threads=options.threads, seed=options.seed, reporter=TextReporter())
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        before = bench.before()
        rows: list[dict[str, Any]] = [] if before is None else before["rows"]
        bench.result["rows"] = rows
        for number, (group, (root, names)) in enumerate(groups_of(options).items()):
            cohort = Cohort.read(root).select(names)
            for index, (error, change) in enumerate([("none", None), *ERRORS.items()]):
                if any((row["group"], row["error"]) == (group, error) for row in rows):
                    continue
                random = np.random.default_rng([options.seed, number, index])
                few = 1 if len(names) < 3 * WRONG else WRONG
                wrong = [] if change is None else sorted(random.choice(sorted(names), few, replace=False).tolist())
                made = copied(cohort, work / "data", wrong, change, options.seed)
                model = trained(made, work / f"model {number} {index}", "mrf", work / "work", execution)
                texts = [text for text in model.unlike if not text.startswith("atlas ")]
                rows.append(
                    {
                        "group": group,
                        "error": error,
                        "subjects": len(names),
                        "wrong": wrong,
                        "told": [text.split(" is unlike")[0] for text in texts],
                        "said": list(model.unlike),
                    }
                )
                print(json.dumps(rows[-1], indent=1), flush=True)
                bench.write()
        bench.result["summary"] = summary(rows)
        bench.write()
        print(summary_lines(bench.result["summary"]))


if __name__ == "__main__":
    main()

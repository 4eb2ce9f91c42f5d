"""From the scores of every scan to what a study says: tables, comparisons, curves."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasnet.evaluation.scores import LabelScores, columns
from atlasnet.execution import atomic_path
from atlasnet.study.confidence import MEASURES, agreement_minus_certainty, confidence
from atlasnet.study.less_data import less_data
from atlasnet.study.means import absent_labels, common_seeds, dice_of, dice_of_subjects, paired, score_means
from atlasnet.study.methods import MAIN, METHODS, OVER_FRACTIONS
from atlasnet.study.observers import observers
from atlasnet.study.patches import summarise_patches
from atlasnet.study.records import CaseResult, Run, Study, known
from atlasnet.study.shares import real_share
from atlasnet.study.software import software
from atlasnet.study.statistics import FEWEST_FOR_TAIL, compare, interval, tail_difference, worst_tenth

ANY_SEED = -1  # of a run that stands for those of all seeds


def summarise(study: Study) -> dict[str, Any]:
    """Everything a study says, JSON-able.

    Returns:
        ``methods``: per row of the main table its ``title``, ``seeds``, ``failed`` (subjects that a seed could not
        segment, in no mean), ``labels`` (per label and score, the mean over subjects of the means over seeds),
        ``undefined`` (how many subjects have no value of that score, because the label was not found), ``absent`` (per
        label how many ``subjects`` do not have it, and in how many of them it was found, ``false_positive``, the mean
        over seeds), ``mean_dice`` (over labels, too), its ``interval``, ``worst_tenth`` with ``worst_tenth_interval``,
        ``dice_of_seeds`` (over the same subjects), ``seconds`` (median of a scan) and, but for the main method,
        ``main_minus_this``: see `Difference`, over the ``seeds`` that both methods have, with the difference of the
        ``worst_tenth`` and its ``worst_tenth_interval``. A method without `Method.seeded` is compared with all seeds of
        the main one; where two have no seed or no subject in common, there is no difference.
        ``over_atlases``, ``over_fractions``, ``over_slices`` and ``over_epochs``: the mean Dice, per method, over the
        number of atlases, the share of the subjects, the share of their slices and the epochs; over these AtlasNet also
        with one atlas, as ``atlasnet-1``. ``less_data``: AtlasNet with part of the training data against one network
        with all, see `atlasnet.study.less_data.less_data`. ``confidence``: per method what that is worth which it says
        of itself, see `atlasnet.study.confidence.confidence`, and ``main_agreement_minus_certainty``: see
        `atlasnet.study.confidence.agreement_minus_certainty`. ``observers``: per observer the number of ``subjects``,
        and ``labels``, ``undefined``, ``absent``, ``mean_dice``, ``interval`` and ``main_minus_this`` as of a
        method, over these; the tests of all observers are corrected together. ``observers_together``: the same of their
        means, over the subjects that every one of them has; None with one observer or no such subject. ``subjects``:
        per method and test subject the mean Dice.
        ``patches``: see `summarise_patches`. ``unannotated``: by structure, the test subjects in which nobody annotated
        it, without a score of it. ``organ_mask``: whether everything was done within organ masks. ``how``:
        it was done, see `atlasnet.study.how.how`. ``software``: which versions made which results, see
        `atlasnet.study.software.software`.
    """
    by_run: dict[Run, list[CaseResult]] = {}
    for result in study.results:
        by_run.setdefault(replace(result.run, seed=ANY_SEED), []).append(result)
    most = len(study.atlases)
    full = {m.name: Run(m, 1.0, ANY_SEED, m.atlases(most)) for m in METHODS}
    main = {name: found for name, run in full.items() if (found := by_run.get(run))}
    subjects = {name: dice_of_subjects(found) for name, found in main.items()}
    rows = {name: _row(found, study) for name, found in main.items()}
    if MAIN in subjects:
        seeds = {name: common_seeds(main[MAIN], found) for name, found in main.items() if name != MAIN}
        pairs = {name: paired(main[MAIN], main[name], common) for name, common in seeds.items()}
        compared = {name: pair for name, pair in pairs.items() if not pair[0].keys().isdisjoint(pair[1])}
        for name, difference in compare(compared).items():
            tail, ends = tail_difference(*compared[name])
            gain = asdict(difference) | {"seeds": seeds[name], "worst_tenth": tail, "worst_tenth_interval": ends}
            rows[name]["main_minus_this"] = gain
    said = {name: confidence(found, subjects[name], networks=full[name].networks(most)) for name, found in main.items()}
    for name in said if MAIN in said else ():
        dice = subjects[MAIN], subjects[name]
        said[name]["main_agreement_minus_certainty"] = agreement_minus_certainty(said[MAIN], said[name], dice)
    return {
        "labels": study.structures,
        "atlases": list(study.atlases),
        "cases": list(study.cases),
        "methods": rows,
        **observers(study, main.get(MAIN, ())),
        "over_atlases": {
            name: _curve(by_run, [(k, replace(run, atlases=k)) for k in range(1, most + 1)])
            for name, run in full.items()
            if replace(run, atlases=1) in by_run
        },
        "over_fractions": _over_shares(by_run, full, "subjects", study.training),
        "over_slices": _over_shares(by_run, full, "slices", study.training),
        "less_data": less_data(by_run, full, study.training),
        "over_epochs": _over_epochs(by_run, full, study.recipe.epochs),
        "confidence": said,
        "subjects": subjects,
        "patches": summarise_patches(study),
        "organ_mask": study.organ_mask,
        "unannotated": {label: list(cases) for label, cases in study.unannotated.items()},
        "how": dict(study.how),
        "software": software(study.results),
    }


def _over_shares(
    by_run: Mapping[Run, Sequence[CaseResult]],
    full: Mapping[str, Run],
    of: Literal["subjects", "slices"],
    training: int,
) -> dict[str, list[dict[str, Any]]]:
    """Per method the curve over the shares of the training data, as large as they really are; none of one point."""
    shares = sorted({run.fraction for run in by_run if run.fraction < 1 and run.fraction_of == of})
    curves = {}
    for name in OVER_FRACTIONS:
        points: list[tuple[float, Run]] = [
            (real_share(of, s, training), replace(full[name], fraction=s, fraction_of=of)) for s in shares
        ]
        curves[name] = _curve(by_run, [*points, (1.0, full[name])])
    return {name: curve for name, curve in curves.items() if len(curve) > 1}


def _over_epochs(
    by_run: Mapping[Run, Sequence[CaseResult]], full: Mapping[str, Run], last: int
) -> dict[str, list[dict[str, Any]]]:
    """Per method the curve over the epochs, with one atlas also; none of a single point."""
    epochs = sorted({run.epoch for run in by_run if run.epoch is not None})
    runs = dict(full) | {f"{name}-1": replace(run, atlases=1) for name, run in full.items() if (run.atlases or 1) > 1}
    curves = {}
    for name, run in runs.items():
        curves[name] = _curve(by_run, [*((e, replace(run, epoch=e)) for e in epochs), (last, run)])
    return {name: curve for name, curve in curves.items() if len(curve) > 1}


def write_curves(found: Mapping[str, Any], path: Path) -> None:
    """Every point of every curve as a CSV."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["over", "method", "x", "dice", "low", "high", "seconds", "subjects"])
        for over in ("atlases", "fractions", "slices", "epochs"):
            for name, curve in found[f"over_{over}"].items():
                for point in curve:
                    ends = point["interval"] or (None, None)
                    row = [over, name, point["x"], point["dice"], *ends, point["seconds"], point["subjects"]]
                    writer.writerow(row)
        for name, values in found["confidence"].items():
            for measure in MEASURES:
                whole = len(values[f"{measure}_of_subjects"])
                for point in values[f"{measure}_coverage"]:
                    kept = round(point["coverage"] * whole)
                    row = [f"coverage by {measure}", name, point["coverage"], point["dice"], None, None, None, kept]
                    writer.writerow(row)


def write_cases(study: Study, path: Path) -> None:
    """Every score of every scan, run and label as a CSV."""
    scores = [row for result in study.results for row in _flat(result)]
    names = list(scores[0]) if scores else ["method"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(scores)


def _flat(result: CaseResult) -> Iterable[dict[str, Any]]:
    """A row per label; without a result, one whose scores are empty."""
    run = result.run
    nothing = dict.fromkeys(columns(LabelScores)) | {"case": result.case}
    for row in result.scores or (nothing,):
        yield {
            "method": run.method.name,
            "atlases": run.atlases,
            "fraction": run.fraction,
            "fraction_of": run.fraction_of,
            "seed": run.seed,
            "epoch": run.epoch,
            **row,
            "seconds": result.details.get("seconds"),
        }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _row(results: Sequence[CaseResult], study: Study) -> dict[str, Any]:
    scored = dice_of_subjects(results)
    dice = np.array(list(scored.values()))
    seeds = sorted({result.run.seed for result in results})
    means, undefined = score_means([row for r in results if r.case in scored for row in r.scores], study.structures)
    of_seeds = [[dice_of(r) for r in results if r.run.seed == seed and r.case in scored] for seed in seeds]
    return {
        "title": results[0].run.method.title,
        "seeds": seeds,
        "failed": sorted({result.case for result in results if not result.scores}),
        "labels": means,
        "undefined": undefined,
        "absent": absent_labels([row for result in results for row in result.scores], study.structures, len(seeds)),
        "mean_dice": float(dice.mean()) if len(dice) else None,
        "interval": interval(dice),
        "worst_tenth": float(worst_tenth(dice)) if len(dice) else None,
        "worst_tenth_interval": interval(dice, worst_tenth) if len(dice) >= FEWEST_FOR_TAIL else None,
        "dice_of_seeds": [float(np.mean(values)) if values else None for values in of_seeds],
        "seconds": _median(known(results, "seconds")),
    }


def _curve(
    by_run: Mapping[Run, Sequence[CaseResult]],
    points: Sequence[tuple[float, Run]],
) -> list[dict[str, Any]]:
    """Mean Dice with its interval, and seconds of a scan, at each point that was run.

    Over the ``subjects`` that were segmented at every point: a curve must not rise because a hard one dropped out.
    """
    results = {x: by_run[key] for x, key in points if key in by_run}
    scores = {x: dice for x, found in results.items() if (dice := dice_of_subjects(found))}
    common = set.intersection(*map(set, scores.values())) if scores else set()
    curve = []
    for x, dice in scores.items():
        values = [value for case, value in dice.items() if case in common]
        if values:
            curve.append(
                {
                    "x": x,
                    "dice": float(np.mean(values)),
                    "interval": interval(values),
                    "seconds": _median(known(results[x], "seconds")),
                    "subjects": len(values),
                }
            )
    return curve


def best_median_worst(study: Study, run: Run) -> dict[str, str]:
    """The test subjects at the ends and in the middle of a run, by their mean Dice; each subject once."""
    dice = {r.case: dice_of(r) for r in study.results if r.run == run and r.scores}
    ordered = sorted(dice, key=lambda case: (-dice[case], case))
    if not ordered:
        return {}
    found = {"best": ordered[0], "worst": ordered[-1], "median": ordered[len(ordered) // 2]}
    once = {case: kind for kind, case in reversed(found.items())}
    return {kind: case for kind, case in found.items() if once[case] == kind}

"""What a study found, for people: one HTML page, and the figures and tables as files of their own."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlasnet.cohort import Subject
from atlasnet.execution import atomic_path, write_json
from atlasnet.report import Page, Point, curve_figure, overlay, save_svg, scatter_figure, svg
from atlasnet.study.confidence import MEASURES
from atlasnet.study.methods import MAIN, METHODS
from atlasnet.study.records import Run, Study
from atlasnet.study.summary import SCORES, best_median_worst, summarise, write_cases, write_curves
from atlasnet.volume import read_labels
from atlasnet.wording import shortened

PAGE, SUMMARY, TABLE, CASES, CURVES = "study.html", "study.json", "table.csv", "cases.csv", "curves.csv"
DRAWN = (MAIN, "plain", "augmented", "atlasnet-unaugmented")  # methods in figures; their order gives them their colours
_FEW = 10  # subjects, below which bootstrap intervals hold the true mean in clearly fewer than 95 of 100 studies
_MEASURED = {"agreement": "agreement", "certainty": "certainty", "expected_dice": "expected Dice"}
_HEADINGS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "hausdorff_mm": "Hausdorff, mm",
    "hd95_mm": "HD95, mm",
    "average_contour_distance_mm": "contour distance, mm",
    "dice": "Dice",
}


def write_study(study: Study, tests: Sequence[Subject], *, modality: str = "") -> dict[str, Any]:
    """Write the page, ``study.json``, ``table.csv``, ``cases.csv``, ``curves.csv`` and ``figures`` into the folder.

    Args:
        study: what was measured.
        tests: the test subjects, for the overlays.
        modality: the images' first channel, for the grey window.

    Returns:
        The summary; see `atlasnet.study.summary.summarise`.
    """
    found = summarise(study)
    write_json(study.folder / SUMMARY, found)
    write_cases(study, study.folder / CASES)
    write_curves(found, study.folder / CURVES)
    _write_table(found, study.folder / TABLE)
    _page(study, found, tests, modality).write(study.folder / PAGE)
    return found


def main_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The main table: headings, and a row of text per method."""
    head = [
        "method",
        "mean Dice",
        "95 % interval",
        "worst tenth",
        "AtlasNet minus this",
        "p",
        "p, Holm",
        "s per scan",
        "seeds",
    ]
    rows = []
    for row in found["methods"].values():
        gain = row.get("main_minus_this")
        title = row["title"] + (f" (without a result: {shortened(row['failed'])})" if row["failed"] else "")
        rows.append(
            [
                title,
                _number(row["mean_dice"]),
                _interval(row["interval"]),
                f"{_number(row['worst_tenth'])} {_interval(row['worst_tenth_interval'])}".strip(),
                "" if gain is None else _gain(gain, len(found["cases"])),
                "" if gain is None else f"{gain['p']:.2g}",
                "" if gain is None else f"{gain['p_holm']:.2g}",
                _number(row["seconds"], ".1f"),
                str(len(row["seeds"])),
            ]
        )
    return head, rows


def main_table(found: Mapping[str, Any]) -> str:
    """The main table for a terminal."""
    head, rows = main_rows(found)
    shown = [0, 1, 2, 4, 6]
    table = [[row[i] for i in shown] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(shown))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def _gain(gain: Mapping[str, Any], subjects: int) -> str:
    """A difference, and over how many of the test subjects it is where a method could not segment all of them."""
    some = f" ({gain['subjects']} of {subjects})" if gain["subjects"] < subjects else ""
    return f"{gain['mean']:+.4f} {_interval(gain['interval'], '+.4f')}".strip() + some


def _interval(value: Sequence[float] | None, form: str = ".4f") -> str:
    return "" if value is None else f"[{value[0]:{form}}, {value[1]:{form}}]"


def _label_rows(found: Mapping[str, Any], label: str) -> list[list[str]]:
    rows = [
        [row["title"], *_scores(row["labels"][label], row["undefined"][label])] for row in found["methods"].values()
    ]
    of_observers = [observer["labels"][label] for observer in found["observers"]]
    for number, observer in enumerate(found["observers"], start=1):
        seen, every = observer["subjects"], len(found["cases"])
        title = f"observer {number}" + (f" ({seen} of {every} test subjects)" if seen < every else "")
        rows.append([title, *_scores(observer["labels"][label], observer["undefined"][label])])
    if len(of_observers) > 1:
        known = {score: [o[score] for o in of_observers if o[score] is not None] for score in SCORES}
        cells = [f"{sum(v) / len(v):.4f} ({min(v):.4f} to {max(v):.4f})" if v else "" for v in known.values()]
        rows.append(["between observers: mean (range)", *cells])
    return rows


def _scores(scores: Mapping[str, float | None], undefined: Mapping[str, int]) -> list[str]:
    return [_number(scores[s]) + (f" ({undefined[s]} undefined)" if undefined[s] else "") for s in SCORES]


def _write_table(found: Mapping[str, Any], path: Path) -> None:
    """The numbers of the main table and of every label, unrounded."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        undefined = [f"{score}_undefined" for score in SCORES]
        head = ["method", "label", *SCORES, *undefined, "mean_dice", "low", "high", "worst_tenth", "seconds", "p_holm"]
        of_gain = ["difference", "difference_low", "difference_high", "p", "difference_subjects"]
        writer.writerow([*head, "failed", "seeds", *of_gain])
        for name, row in found["methods"].items():
            ends = row["interval"] or (None, None)
            gain = row.get("main_minus_this", {})
            p = gain.get("p_holm")
            gains = [gain.get("mean"), *(gain.get("interval") or (None, None)), gain.get("p"), gain.get("subjects")]
            for label, scores in row["labels"].items():
                every = [found_in[score] for found_in in (scores, row["undefined"][label]) for score in SCORES]
                means = [row["mean_dice"], *ends, row["worst_tenth"], row["seconds"], p]
                writer.writerow([name, label, *every, *means, len(row["failed"]), len(row["seeds"]), *gains])


def _page(study: Study, found: Mapping[str, Any], tests: Sequence[Subject], modality: str) -> Page:
    page, figures = Page("Study: one atlas, several, or none"), study.folder / "figures"
    page.text(
        f"Test subjects: {len(study.cases)}. Atlases: {', '.join(study.atlases)}. Scores are means "
        "over the test subjects of each subject's mean over the seeds; Dice is the mean over the labels. Intervals "
        "are 95 % bootstrap intervals over subjects, tests two-sided Wilcoxon signed-rank tests, corrected by Holm. "
        "The worst tenth is the mean of the tenth of the subjects with the lowest Dice. A subject that a method could "
        "not segment is named and in none of that method's means; differences are over the subjects that both methods "
        "segmented, curves over those segmented at all of their points; a distance is undefined where a label was not "
        "found."
    )
    if len({len(row["seeds"]) for row in found["methods"].values()}) > 1:
        page.text("Not every method has as many seeds: a mean over fewer is less sure, and so is a difference to it.")
    if len(study.cases) < _FEW:
        page.text(
            f"With {len(study.cases)} subjects intervals are too narrow, and no test can find a p below "
            f"{min(1.0, 2 / 2 ** len(study.cases)):.2g}, before the correction."
        )
    if study.organ_mask:
        page.text("All methods were trained, tested and scored within organ masks; what lies outside is background.")
    page.heading("Methods")
    head, rows = main_rows(found)
    names = list(found["methods"])
    page.table(head, rows, main=names.index(MAIN) if MAIN in names else None)
    for label in study.labels:
        page.heading(f"Label: {label}")
        page.table(["method", *_HEADINGS.values()], _label_rows(found, label))
    titles = {method.name: method.title for method in METHODS}
    _patches(page, found["patches"], titles)
    _curves(page, study, found, titles, figures)
    _confidence(page, found, titles, figures)
    _overlays(page, study, found, tests, modality, figures)
    return page


def _patches(page: Page, found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> None:
    """Diseased and healthy patches."""
    if found is None:
        return
    protocol = found["protocol"]
    side, region = protocol["size"], ", ".join(protocol["region"]) or "all that was annotated"
    page.heading(f"Patches: {protocol['label']} or not?")
    page.text(
        f"Patches of {side} x {side} pixels without overlap in the annotated slices (region: {region}). One counts as "
        f"diseased where at least {protocol['share']:.0%} of it is {protocol['label']}, healthy where at least as much "
        "is region without it; it is taken for diseased where at least half of its pixels in the region were found to "
        "be. Accuracies are over the patches of all subjects together, means over the seeds; the mean accuracy is the "
        "mean of both kinds'."
    )
    rows = [(titles[name], scores) for name, scores in found["methods"].items()]
    rows += [(f"observer {number}", scores) for number, scores in enumerate(found["observers"], start=1)]
    accuracies = ("diseased_accuracy", "healthy_accuracy", "mean_accuracy")
    names = list(found["methods"])
    page.table(
        ["method", "diseased", "healthy", "right of diseased", "right of healthy", "mean accuracy", "95 % interval"],
        [
            [
                title,
                str(scores["diseased"]),
                str(scores["healthy"]),
                *(_number(scores[name], ".3f") for name in accuracies),
                _interval(scores["interval"], ".3f"),
            ]
            for title, scores in rows
        ],
        main=names.index(MAIN) if MAIN in names else None,
    )


def _curves(page: Page, study: Study, found: Mapping[str, Any], titles: Mapping[str, str], figures: Path) -> None:
    """Dice over the atlases, the training data and the epochs."""
    titles = dict(titles) | {f"{method.name}-1": f"{method.title}, one atlas" for method in METHODS}
    order = _order(titles)
    if found["over_atlases"]:
        curves = {titles[name]: _points(curve) for name, curve in found["over_atlases"].items()}
        timed = found["over_atlases"].get(MAIN, [])
        figure = curve_figure(
            curves,
            x="atlases",
            y="mean Dice",
            title="Dice over the number of atlases",
            second=[Point(p["x"], p["seconds"]) for p in timed if p["seconds"] is not None],
            second_y="AtlasNet: seconds per scan",
            order=order,
        )
        page.heading("How many atlases?")
        caption = "Mean Dice of the test subjects, and how long a scan takes, over the number of atlases."
        if study.sharing == "common" and len(study.atlases) > 1:
            caption += (
                " Every network was tuned from one that had learnt from all atlases: a training with fewer would give "
                "less than the curve has there."
            )
        page.svg(svg(figure), caption)
        save_svg(figure, figures / "atlases.svg")
    for name, of, heading in (
        ("fractions", "training subjects", "How many training subjects?"),
        ("slices", "annotated slices of every training subject", "How many annotated slices?"),
    ):
        if found[f"over_{name}"]:
            curves = {titles[method]: _points(curve, 100) for method, curve in found[f"over_{name}"].items()}
            figure = curve_figure(curves, x=f"{of}, %", y="mean Dice", title=f"Dice over the {of}", order=order)
            page.heading(heading)
            page.svg(svg(figure), f"Mean Dice of the test subjects over the share of the {of}.")
            save_svg(figure, figures / f"{name}.svg")
    if found["over_epochs"]:
        curves = {titles[method]: _points(curve) for method, curve in found["over_epochs"].items()}
        figure = curve_figure(curves, x="epochs", y="mean Dice", title="Dice over the epochs", order=order)
        page.heading("How many epochs?")
        longer = next(method for method in METHODS if method.longer)
        note = f"A curve is one training of {study.recipe.epochs} epochs, tested on its way; the last point is its end."
        if study.recipe.schedule != "step":
            note += (
                " The learning rate falls over the whole of it, so that an earlier point is not what a training of so "
                "many epochs would give, which would end with the rate low."
            )
        if longer.name in found["over_epochs"]:
            note += f" {longer.title}: {len(study.atlases)} times as many epochs as are shown."
        page.text(note)
        page.svg(svg(figure), "Mean Dice of the test subjects over the epochs of the training.")
        save_svg(figure, figures / "epochs.svg")


def _order(titles: Mapping[str, str]) -> list[str]:
    """The titles in the order that gives curves their colours."""
    return [titles[name] for name in (*DRAWN, *(name for name in titles if name not in DRAWN))]


def _points(curve: Sequence[Mapping[str, Any]], factor: float = 1) -> list[Point]:
    return [Point(round(factor * p["x"], 1), p["dice"], p["interval"]) for p in curve]


def _confidence(page: Page, found: Mapping[str, Any], titles: Mapping[str, str], figures: Path) -> None:
    """Whether a method knows where it is wrong."""
    every = {
        name: values
        for name, values in found["confidence"].items()
        if values["certainty"] is not None or values["error_auc_entropy"] is not None
    }
    if not every:
        return
    rows = []
    for name, values in every.items():
        cells = [titles[name]]
        for measure in MEASURES:
            known = values[measure]
            cells.append("" if known is None else f"{known['spearman']:.3f} {_interval(known['interval'], '.3f')}")
        cells += [_number(values[f"error_auc_{kind}"], ".3f") for kind in ("agreement", "entropy")]
        calibration = values["calibration"]
        rows.append([*cells, "" if calibration is None else f"{calibration['error']:.3f}"])
    page.heading("Does a method know how good it is?")
    page.text(
        "Rank correlation (Spearman) over the test subjects of their Dice with the agreement between the networks, "
        "with their certainty (1 - entropy, mean over what was found) and with the expected Dice (of the result with "
        "a truth drawn from its probabilities); area under the curve with which entropy and disagreement find wrong "
        "voxels among those found or looked for; expected calibration error, the mean distance over the same voxels of "
        "the probability of what was chosen from how often that is right."
    )
    head = ["method", *(f"{_MEASURED[measure]} and Dice" for measure in MEASURES)]
    page.table([*head, "errors by disagreement", "errors by entropy", "calibration error"], rows)
    _confidence_figures(page, found, {name: every[name] for name in DRAWN if name in every}, titles, figures)


def _confidence_figures(
    page: Page,
    found: Mapping[str, Any],
    drawn: Mapping[str, Mapping[str, Any]],
    titles: Mapping[str, str],
    figures: Path,
) -> None:
    """Dice against what the drawn methods say of themselves, over the coverage, and their calibration."""
    marks, kept, calibrated = {}, {}, {}
    for name, values in drawn.items():
        measure = "agreement" if name == MAIN else "certainty"
        if of_subjects := values[f"{measure}_of_subjects"]:
            dice = found["subjects"][name]
            marks[f"{titles[name]}: {_MEASURED[measure]}"] = [(v, dice[case]) for case, v in of_subjects.items()]
        if points := values["expected_dice_coverage"]:
            kept[titles[name]] = [Point(100 * p["coverage"], p["dice"]) for p in points]
        if values["calibration"] is not None:
            points = values["calibration"]["points"]
            calibrated[titles[name]] = [Point(p["confidence"], p["accuracy"]) for p in points]
    if marks:
        figure = scatter_figure(marks, x="what the method says of itself", y="Dice", title="Confidence and Dice")
        page.svg(svg(figure), "Each mark is a test subject.")
        save_svg(figure, figures / "confidence.svg")
    if kept:
        figure = curve_figure(
            kept,
            x="subjects that are kept, those of the highest expected Dice, %",
            y="mean Dice",
            title="Dice over the coverage",
            order=_order(titles),
        )
        page.svg(
            svg(figure),
            "Mean Dice of the test subjects that are kept when those that seem worst are put aside for a person to "
            "look at: the more it rises to the left, the better a method knows its failures.",
        )
        save_svg(figure, figures / "coverage.svg")
    if calibrated:
        figure = curve_figure(
            calibrated,
            x="probability of what was chosen",
            y="share that is right",
            title="Calibration",
            order=_order(titles),
            diagonal="as often as said",
        )
        page.svg(
            svg(figure),
            "How often voxels are right that were given such a probability, of those found or looked for, in ten parts "
            "of the probabilities. Below the diagonal a method is surer than it should be.",
        )
        save_svg(figure, figures / "calibration.svg")


def _overlays(
    page: Page, study: Study, found: Mapping[str, Any], tests: Sequence[Subject], modality: str, figures: Path
) -> None:
    """The best, the median and the worst subject of every method, with its first seed."""
    subjects = {test.name: test for test in tests}
    page.heading("Best, median and worst test subject of every method")
    for method in METHODS:
        if method.name not in found["methods"]:
            continue
        run = Run(method, 1.0, found["methods"][method.name]["seeds"][0], method.atlases(len(study.atlases)))
        for kind, case in best_median_worst(study, run).items():
            labels = read_labels(study.folder / run.folder / f"{case}.nii.gz")
            picture = overlay(
                figures / f"{method.name}-{kind}.png",
                subjects[case].read_image(),
                labels,
                subjects[case].read_labels(labels.grid),
                names=study.labels,
                modality=modality,
                title=f"{method.title}: {kind}, {case}, Dice {_case_dice(study, run, case):.3f}",
            )
            page.image(picture, f"{method.title}: the {kind} test subject, {case}; the reference in outline.")


def _case_dice(study: Study, run: Run, case: str) -> float:
    (scores,) = [r.scores for r in study.results if r.run == run and r.case == case]
    return float(sum(row["dice"] for row in scores) / len(scores))

"""What a study found, for people: one HTML page, and the figures and tables as files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlasnet.cohort import Subject
from atlasnet.execution import WorkFolder, write_json
from atlasnet.report import Page, Point, curve_figure, overlay, save_svg, scatter_figure, svg
from atlasnet.report.page import number
from atlasnet.study.confidence import MEASURES
from atlasnet.study.less_data import write_less_data
from atlasnet.study.means import dice_of
from atlasnet.study.methods import MAIN, METHODS
from atlasnet.study.records import Run, Study
from atlasnet.study.statistics import FEWEST_FOR_TAIL
from atlasnet.study.summary import best_median_worst, summarise, write_cases, write_curves
from atlasnet.study.tables import (
    as_interval,
    cautions,
    how_rows,
    label_table,
    less_data_table,
    main_rows,
    tail_rows,
    without_label,
    write_table,
)
from atlasnet.volume import read_labels
from atlasnet.wording import MANY_LABELS, counted, shortened

PAGE, SUMMARY, TABLE, CASES, CURVES = "study.html", "study.json", "table.csv", "cases.csv", "curves.csv"
LESS_DATA = "less_data.csv"
DRAWN = (MAIN, "plain", "augmented", "atlasnet-unaugmented")  # methods in figures; their order gives them their colours
_MEASURED = {"agreement": "agreement", "certainty": "certainty", "expected_dice": "expected Dice"}
_TITLES = {method.name: method.title for method in METHODS}
_TITLES |= {f"{method.name}-1": f"{method.title}, one atlas" for method in METHODS}
_ORDER = [_TITLES[name] for name in (*DRAWN, *(name for name in _TITLES if name not in DRAWN))]  # of colours


def write_study(study: Study, tests: Sequence[Subject], *, modality: str = "") -> dict[str, Any]:
    """Write the page, ``study.json``, ``table.csv``, ``cases.csv``, ``curves.csv``, ``less_data.csv``, ``figures``.

    Args:
        study: what was measured.
        tests: the test subjects, for the overlays.
        modality: the images' first channel, for the grey window.

    Returns:
        The summary, see `atlasnet.study.summary.summarise`, with its ``cautions``.

    Raises:
        InputError: another process works at the study.
    """
    found = summarise(study)
    found["cautions"] = cautions(found)
    with WorkFolder(study.folder).locked():
        write_json(study.folder / SUMMARY, found)
        write_cases(study, study.folder / CASES)
        write_curves(found, study.folder / CURVES)
        write_table(found, study.folder / TABLE)
        write_less_data(found, study.folder / LESS_DATA)
        _page(study, found, tests, modality).write(study.folder / PAGE)
    return found


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
    if found["observers"]:
        page.text(
            "Observers are other people's segmentations, scored against the same references: each over the test "
            "subjects that it has, their mean over those that all of them have. AtlasNet's difference from them is "
            "over the subjects that both segmented, and their tests are corrected by Holm by themselves."
        )
    for caution in found["cautions"]:
        page.text(caution)
    if study.organ_mask:
        page.text("All methods were trained, tested and scored within organ masks; what lies outside is background.")
    page.heading("Methods")
    head, rows = main_rows(found)
    names = list(found["methods"])
    main = names.index(MAIN) if MAIN in names else None
    page.table(head, rows, main=main)
    page.heading("The worst tenth of the test subjects")
    if len(study.cases) < FEWEST_FOR_TAIL:
        page.text(f"Intervals take {FEWEST_FOR_TAIL} test subjects.")
    page.table(*tail_rows(found), main=main)
    add_labels(page, study, found)
    if found["how"]:
        page.heading("How")
        page.table(["what", "which"], how_rows(found), words=["which"])
    _patches(page, found["patches"])
    _curves(page, study, found, figures)
    _confidence(page, found, figures)
    _overlays(page, study, found, tests, modality, figures)
    return page


def add_labels(page: Page, study: Study, found: Mapping[str, Any]) -> None:
    """The scores of every label; of many in one table, for nobody leafs through a hundred."""
    if len(study.structures) > MANY_LABELS:
        _add_many_labels(page, study, found)
        return
    for label in study.structures:
        page.heading(f"Label: {label}")
        if said := without_label(found, label):
            page.text(said)
        if cases := study.unannotated.get(label):
            page.text(f"Not annotated in {shortened(cases)}, and without a score there.")
        page.table(*label_table(found, label))


def _add_many_labels(page: Page, study: Study, found: Mapping[str, Any]) -> None:
    page.heading(f"Labels: {len(study.structures)}")
    if any(without_label(found, label) for label in study.structures):
        page.text(
            "Where a reference does not have a label, the Dice is 1 where it was not found, and 0 where it was; both "
            "are in the means."
        )
    if study.unannotated:
        page.text(f"Not annotated in all subjects: {shortened(list(study.unannotated), MANY_LABELS)}.")
    tables = {label: label_table(found, label) for label in study.structures}
    head = max((head for head, _ in tables.values()), key=len)
    names = {row["title"]: name for name, row in found["methods"].items()}  # shorter: a row should take one line
    rows = [
        [label, names.get(title, title), *cells, *[""] * (len(head) - len(cells) - 1)]
        for label, (_, rows) in tables.items()
        for title, *cells in rows
    ]
    page.table(["label", *head], rows, words=["method"])


def _patches(page: Page, found: Mapping[str, Any] | None) -> None:
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
    rows = [(_TITLES[name], scores) for name, scores in found["methods"].items()]
    rows += [(f"observer {place}", scores) for place, scores in enumerate(found["observers"], start=1)]
    accuracies = ("diseased_accuracy", "healthy_accuracy", "mean_accuracy")
    names = list(found["methods"])
    page.table(
        ["method", "diseased", "healthy", "right of diseased", "right of healthy", "mean accuracy", "95 % interval"],
        [
            [
                title,
                str(scores["diseased"]),
                str(scores["healthy"]),
                *(number(scores[name]) for name in accuracies),
                as_interval(scores["interval"], ".3f"),
            ]
            for title, scores in rows
        ],
        main=names.index(MAIN) if MAIN in names else None,
    )


def _curves(page: Page, study: Study, found: Mapping[str, Any], figures: Path) -> None:
    """Dice over the atlases, the training data and the epochs."""
    if found["over_atlases"]:
        curves = {_TITLES[name]: _points(curve) for name, curve in found["over_atlases"].items()}
        timed = found["over_atlases"].get(MAIN, [])
        figure = curve_figure(
            curves,
            x="atlases",
            y="mean Dice",
            title="Dice over the number of atlases",
            second=[Point(p["x"], p["seconds"]) for p in timed if p["seconds"] is not None],
            second_y="AtlasNet: seconds per scan",
            order=_ORDER,
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
            curves = {_TITLES[method]: _points(curve, 100) for method, curve in found[f"over_{name}"].items()}
            figure = curve_figure(curves, x=f"{of}, %", y="mean Dice", title=f"Dice over the {of}", order=_ORDER)
            page.heading(heading)
            page.svg(svg(figure), f"Mean Dice of the test subjects over the share of the {of}.")
            save_svg(figure, figures / f"{name}.svg")
            _less_data(page, found, "subjects" if name == "fractions" else name)
    if found["over_epochs"]:
        curves = {_TITLES[method]: _points(curve) for method, curve in found["over_epochs"].items()}
        figure = curve_figure(curves, x="epochs", y="mean Dice", title="Dice over the epochs", order=_ORDER)
        page.heading("How many epochs?")
        longer = next(method for method in METHODS if method.longer)
        epochs = counted(study.recipe.epochs, "epoch")
        note = f"A curve is one training of {epochs}, tested on its way; the last point is its end."
        if study.recipe.schedule != "step":
            note += (
                " The learning rate falls over the whole of it, so that an earlier point is not what a training of so "
                "many epochs would give, which would end with the rate low."
            )
        if longer.name in found["over_epochs"]:
            note += f" {longer.title}: tested at the same share of its longer training."
        if study.sharing != "independent" and len(study.atlases) > 1:
            note += (
                " The networks of several atlases are tuned from one: before its end, that one segments for all of "
                "them; the last point is that of the tuned networks."
            )
        page.text(note)
        page.svg(svg(figure), "Mean Dice of the test subjects over the epochs of the training.")
        save_svg(figure, figures / "epochs.svg")


def _less_data(page: Page, found: Mapping[str, Any], of: str) -> None:
    """AtlasNet with part of the data against one network with all of it."""
    head, rows = less_data_table(found, of)
    if not rows:
        return
    page.text(
        "AtlasNet with part of the training data minus one network with all of it, over the test subjects, with the "
        "same intervals and tests as in the table of the methods. The tests of all shares of the data are corrected by "
        "Holm together, and apart from those of that table."
    )
    page.table(head, rows, words=head[2:3])


def _points(curve: Sequence[Mapping[str, Any]], factor: float = 1) -> list[Point]:
    return [Point(round(factor * p["x"], 1), p["dice"], p["interval"]) for p in curve]


def _confidence(page: Page, found: Mapping[str, Any], figures: Path) -> None:
    """Whether a method knows where it is wrong."""
    every = {
        name: values
        for name, values in found["confidence"].items()
        if values["certainty"] is not None or values["error_auc_entropy"] is not None
    }
    if not every:
        return
    of_subjects, of_voxels = [], []
    for name, values in every.items():
        cells = [_TITLES[name]]
        for measure in MEASURES:
            known = values[measure]
            cells.append("" if known is None else f"{known['spearman']:.3f} {as_interval(known['interval'], '.3f')}")
        ahead = values.get("main_agreement_minus_certainty")
        cells.append("" if ahead is None else f"{ahead['spearman']:+.3f} {as_interval(ahead['interval'], '+.3f')}")
        of_subjects.append(cells)
        cells = [_TITLES[name]]
        for kind in ("agreement", "entropy"):
            area = f"error_auc_{kind}"
            cells.append(f"{number(values[area])} {as_interval(values[f'{area}_interval'], '.3f')}".strip())
        calibration = values["calibration"]
        of_voxels.append([*cells, "" if calibration is None else f"{calibration['error']:.3f}"])
    page.heading("Does a method know how good it is?")
    page.text(
        "Rank correlation (Spearman) over the test subjects of their Dice with the agreement between the networks, "
        "with their certainty (1 - entropy, mean over what was found) and with the expected Dice (of the result with "
        "a truth drawn from its probabilities); and the correlation of AtlasNet's agreement minus that of the "
        "certainty, subjects drawn together. A single network agrees with nobody."
    )
    head = ["method", *(f"{_MEASURED[measure]} and Dice" for measure in MEASURES)]
    if any(any(cells[1:]) for cells in of_subjects):
        page.table([*head, "AtlasNet's agreement minus this certainty"], of_subjects)
    else:
        page.text("None is defined here: it takes four test subjects or more, whose values differ.")
    page.text(
        "Area under the curve with which entropy and disagreement find wrong voxels among those found or looked for, "
        "mean over the test subjects; expected calibration error, the mean distance over the same voxels of the "
        "probability of what was chosen from how often that is right."
    )
    page.table(["method", "errors by disagreement", "errors by entropy", "calibration error"], of_voxels)
    _confidence_figures(page, found, {name: every[name] for name in DRAWN if name in every}, figures)


def _confidence_figures(
    page: Page, found: Mapping[str, Any], drawn: Mapping[str, Mapping[str, Any]], figures: Path
) -> None:
    """Dice against what the drawn methods say of themselves, over the coverage, and their calibration."""
    marks, kept, calibrated = {}, {}, {}
    for name, values in drawn.items():
        measure = "agreement" if name == MAIN else "certainty"
        if of_subjects := values[f"{measure}_of_subjects"]:
            dice = found["subjects"][name]
            marks[f"{_TITLES[name]}: {_MEASURED[measure]}"] = [(v, dice[case]) for case, v in of_subjects.items()]
        for measure in ("expected_dice", "agreement") if name == MAIN else ("expected_dice",):
            if points := values[f"{measure}_coverage"]:
                kept[f"{_TITLES[name]}: {_MEASURED[measure]}"] = [Point(100 * p["coverage"], p["dice"]) for p in points]
        if values["calibration"] is not None:
            points = values["calibration"]["points"]
            calibrated[_TITLES[name]] = [Point(p["confidence"], p["accuracy"]) for p in points]
    if marks:
        figure = scatter_figure(marks, x="what the method says of itself", y="Dice", title="Confidence and Dice")
        page.svg(svg(figure), "Each mark is a test subject.")
        save_svg(figure, figures / "confidence.svg")
    if kept:
        figure = curve_figure(
            kept,
            x="subjects that are kept, those of the highest expected Dice or agreement, %",
            y="mean Dice",
            title="Dice over the coverage",
            order=[
                *(f"{_TITLES[name]}: {_MEASURED['expected_dice']}" for name in DRAWN),
                f"{_TITLES[MAIN]}: {_MEASURED['agreement']}",
            ],
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
            order=_ORDER,
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
    (result,) = [r for r in study.results if r.run == run and r.case == case]
    return dice_of(result)

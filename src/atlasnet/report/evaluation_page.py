"""Scores on one page: the worst case on top, every case and label in a table that sorts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from atlasnet.evaluation.table import SCORES, WORDS, heading, in_telling_order
from atlasnet.report.curves import Point, curve_figure, svg
from atlasnet.report.page import NO_DEVICE, Page, number
from atlasnet.wording import MANY_LABELS, counted, shortened

_VOLUMES = {"volume_ml": "volume, ml", "reference_volume_ml": "reference, ml"}
_FEWEST_DRAWN = 3  # cases, below which a chart says less than the table
MOST_ROWS = 3000  # of the table of cases and labels: browsers sort no more at once
_MOST_MARKED = 60  # points of a curve with a mark each
# A Hausdorff distance over so many mm and so many times HD95 is that of a few voxels far off.
_STRAY_MM, _STRAY_RATIO = 20.0, 3.0


def write_evaluation_report(path: Path, table: Mapping[str, Any]) -> Path:
    """Write the page of an evaluation.

    Args:
        path: of the page.
        table: from `atlasnet.evaluation.Table.as_json`.
    """
    page = Page("Evaluation")
    add_scores(page, table)
    page.text(NO_DEVICE, small=True)
    return page.write(path)


def add_scores(page: Page, table: Mapping[str, Any]) -> None:
    """What is missing, the summary, a row for every case and label with the lowest Dice first, the slices and patches.

    Args:
        page: where to.
        table: from `atlasnet.evaluation.Table.as_json`, or what cross-validation makes of it.
    """
    warnings = [f"No prediction for {case}, which is in no mean." for case in table["missing"]]
    warnings += [f"No reference for {case}." for case in table["unreferenced"]]
    if table.get("unscored"):
        values = shortened([str(value) for value in table["unscored"]])
        warnings.append(f"Values of predictions that no reference holds and nothing declares, not scored: {values}.")
    page.warnings(warnings, "Every reference has a prediction, and every prediction a reference.")
    page.heading(f"Summary of {counted(table['subjects'], 'case')}")
    _summary(page, table["summary"], table["tolerance_mm"], table.get("dice_interval_95", {}))
    for label, cases in table.get("unannotated", {}).items():
        page.text(f"{label}: not annotated in {shortened(cases)}, and without a score there.")
    _strays(page, table["rows"])
    _presence(page, table.get("presence", {}))
    if table["subjects"] >= _FEWEST_DRAWN:
        curves = {}
        for label in table["labels"]:
            dice = sorted(row["dice"] for row in table["rows"] if row["label"] == label)
            if dice:
                curves[label] = [Point(place, value) for place, value in enumerate(dice, start=1)]
        x = "cases, from the lowest Dice of each label to the highest"
        said = "Dice of every case, label by label, sorted."
        if len(curves) > MANY_LABELS:
            lowest = sorted(curves, key=lambda label: fmean(point.y for point in curves[label]))[:MANY_LABELS]
            said = f"{said[:-1]}: the {MANY_LABELS} of {len(curves)} labels with the lowest mean Dice."
            curves = {label: curves[label] for label in lowest}
        figure = curve_figure(curves, x=x, y="Dice", marked=table["subjects"] <= _MOST_MARKED)
        page.svg(svg(figure), said)
    page.heading("Cases")
    said = "The case and label with the lowest Dice comes first; a click on a heading sorts by it."
    if len(table["rows"]) > MOST_ROWS:
        said += f" The lowest {MOST_ROWS} of {len(table['rows'])} are shown; the CSV table has all."
    page.text(said)
    scores = [name for name in SCORES if table["rows"] and name in table["rows"][0]]
    rows = sorted(table["rows"], key=lambda row: (row["dice"], row["case"]))[:MOST_ROWS]
    page.table(
        ["case", "label", *(heading(name, table["tolerance_mm"]) for name in scores), *_VOLUMES.values()],
        [
            [row["case"], row["label"], *(number(row[s]) for s in scores), *(number(row[v], ".4g") for v in _VOLUMES)]
            for row in rows
        ],
        words=["label"],
    )
    if table.get("slice_summary"):
        page.heading(f"Annotated slices: {len({(row['case'], row['slice']) for row in table['slices']})}")
        page.text(
            "Each case counts with the mean over its annotated slices in which a score is defined; a distance is not "
            "where a label was missed."
        )
        _summary(page, table["slice_summary"], table["tolerance_mm"], {})
        _presence(page, table.get("slice_presence", {}), "slices")
    if table.get("patches"):
        _patches(page, table["patches"])


def _summary(
    page: Page, summary: Mapping[str, Any], tolerance: float, intervals: Mapping[str, list[float] | None]
) -> None:
    blocks = dict(summary["labels"])
    many = len(blocks) > MANY_LABELS
    if len(blocks) != 1:
        blocks["mean over labels"] = summary["mean_over_labels"]
    if many:
        _summary_of_many(page, blocks, tolerance, intervals)
        return
    head = ["label", "score", "mean", "median", "worst", "worst case"]
    entries = [entry for block in blocks.values() for entry in block.values()]
    counts = {"undefined": "undefined", "undefined_slices": "undefined slices"}
    counts = {key: title for key, title in counts.items() if any(entry.get(key) for entry in entries)}
    head += [*counts.values(), *(["95 % interval of the mean"] if intervals else [])]
    rows = []
    for label, block in blocks.items():
        for score, entry in block.items():
            worst = number(entry["worst"]) or "undefined"
            row = [label, heading(score, tolerance), number(entry["mean"]), number(entry["median"]), worst]
            row += [entry["worst_case"], *(str(entry[key]) for key in counts)]
            if intervals:
                between = intervals.get(label) if score == "dice" else None
                row.append("" if between is None else f"{between[0]:.3f} to {between[1]:.3f}")
            rows.append(row)
    page.table(head, rows, words=["score", "worst case"])


def _summary_of_many(
    page: Page,
    blocks: Mapping[str, Mapping[str, Any]],
    tolerance: float,
    intervals: Mapping[str, list[float] | None],
) -> None:
    """A row for each label, the lowest mean Dice first: Dice, and the means of the other scores."""
    *labels, over_all = blocks
    order = [over_all, *sorted(labels, key=lambda label: blocks[label]["dice"]["mean"])]
    others = [score for score in blocks[over_all] if score != "dice"]
    head = ["label", "Dice", "median", "worst", "worst case", *(["95 % interval"] if intervals else [])]
    rows = []
    for label in order:
        dice = blocks[label]["dice"]
        row = [label, *(number(dice[key]) for key in ("mean", "median", "worst")), dice["worst_case"]]
        if intervals:
            between = intervals.get(label)
            row.append("" if between is None else f"{between[0]:.3f} to {between[1]:.3f}")
        rows.append([*row, *(number(blocks[label][score]["mean"]) for score in others)])
    page.table([*head, *(heading(score, tolerance) for score in others)], rows, words=["worst case"], main=0)
    page.text(
        f"Median, worst, worst case{', interval' if intervals else ''}: of Dice. The others are means over the cases; "
        "those without a value are left out. The lowest mean Dice comes first.",
        small=True,
    )


def _presence(page: Page, presence: Mapping[str, Mapping[str, Any]], of: str = "cases") -> None:
    """Which labels some map does not have, and what that is to their means; nothing where all maps have all labels."""
    kinds = [kind for kind in WORDS if any(found[kind] for found in presence.values())]
    if not set(kinds) - {"both"}:
        return
    means = {"dice_in_either": "mean Dice if in either", "dice_in_reference": "mean Dice if in the reference"}
    means = {name: title for name, title in means.items() if all(name in found for found in presence.values())}
    page.text(
        f"Not every label is in both maps of all {of}. Dice is 0 where it was missed, or found where there is none"
        + ("; where it is in neither map, 1." if "neither" in kinds else ".")
        + (" The mean of the summary holds all of these." if means else "")
    )
    rows = [
        [label, *(str(found[kind]) for kind in kinds), *(number(found[name]) for name in means)]
        for label, found in in_telling_order(presence).items()
    ]
    page.table(["label", *(WORDS[kind] for kind in kinds), *means.values()], rows)


def _strays(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say of which labels the Hausdorff distance is that of stray islands, and what removes them."""
    found = []
    for row in rows:
        farthest, most = row.get("hausdorff_mm"), row.get("hd95_mm")
        if farthest is not None and most is not None and farthest > max(_STRAY_MM, _STRAY_RATIO * most):
            found.append(row["label"])
    if found:
        counts = Counter(found).most_common()
        listed = shortened([f"{label} in {counted(n, 'case')}" for label, n in counts], MANY_LABELS)
        page.text(
            f"The Hausdorff distance is over {_STRAY_MM:g} mm and more than {_STRAY_RATIO:g} times HD95 ({listed}): "
            "stray islands are the usual reason, and predict --largest-component removes them, where a label is in one "
            "piece."
        )


def _patches(page: Page, patches: Mapping[str, Any]) -> None:
    page.heading(f"Patches of {patches['protocol']['size']} x {patches['protocol']['size']} pixels")
    names = list(patches["all"])
    found = {"all": patches["all"], **patches["subjects"]}
    rows = [[case, *(_count(counts[name]) for name in names)] for case, counts in found.items()]
    page.table(["case", *(name.replace("_", " ") for name in names)], rows, main=0)


def _count(value: float | None) -> str:
    return str(value) if isinstance(value, int) else number(value)

"""The table of a whole evaluation: rows, summaries over subjects, files and text."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from atlasnet.cohort.structures import Hidden, Values, annotated_structures
from atlasnet.errors import InputError
from atlasnet.evaluation.patches import PatchCounts, PatchProtocol
from atlasnet.evaluation.scores import LabelScores, Presence, SliceScores, columns
from atlasnet.execution import atomic_path, read_json, write_json
from atlasnet.wording import MANY_LABELS, counted, shortened

# Every score that is summarised: its heading, and whether larger is better.
SCORES = {
    "dice": ("Dice", True),
    "sensitivity": ("sensitivity", True),
    "precision": ("precision", True),
    "hausdorff_mm": ("Hausdorff, mm", False),
    "hd95_mm": ("HD95, mm", False),
    "average_contour_distance_mm": ("average contour distance, mm", False),
    "surface_dice": ("surface Dice", True),
    "hausdorff_px": ("Hausdorff, pixels", False),
    "hd95_px": ("HD95, pixels", False),
    "average_contour_distance_px": ("average contour distance, pixels", False),
}

# What it is called where a label is in both maps, or in the one, or in none.
WORDS = {"both": "found", "reference": "missed", "prediction": "found where there is none", "neither": "in neither map"}

_OF_MANY = ("hd95_mm", "average_contour_distance_mm", "surface_dice")  # shown beside Dice where labels are many

_LOWEST = 3  # labels of many that a table is told by
_LARGEST = 2**30  # bytes of a table; one of slices has a few hundred for each label of each
Summary = dict[str, dict[str, Any]]
_Row = TypeVar("_Row", LabelScores, SliceScores)


@dataclass(frozen=True)
class Table:
    """The scores of a set of subjects.

    Args:
        labels: name to value of the labels scored, of a region to its values.
        rows: one per subject and label.
        slices: one per subject, label and annotated slice, if asked for.
        protocol: which patches were classified, if any.
        patches: per subject.
        tolerance_mm: of the surface Dice.
        ignore_label: the reference value that counts nowhere.
        organ_mask: whether only what lies within organ masks was scored.
        missing: subjects with a reference but no prediction; they are in no row and no mean.
        unreferenced: predictions without a reference.
        unscored: values of predictions that no reference holds and nothing declares.
        unannotated: by label, the subjects in which nobody annotated it: it is in no row of theirs and in no mean.
    """

    labels: Mapping[str, Values]
    rows: tuple[LabelScores, ...]
    slices: tuple[SliceScores, ...] = ()
    protocol: PatchProtocol | None = None
    patches: Mapping[str, PatchCounts] = field(default_factory=dict)
    tolerance_mm: float = 1.0
    ignore_label: int | None = None
    organ_mask: bool = False
    missing: tuple[str, ...] = ()
    unreferenced: tuple[str, ...] = ()
    unscored: tuple[int, ...] = ()
    unannotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """The subjects scored, in order; of each, the labels that were annotated in it."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def __repr__(self) -> str:
        dice = {label: _mean(row.dice for row in rows) for label, rows in rows_by_label(self.rows, self.labels).items()}
        many = ""
        if len(dice) > MANY_LABELS:
            defined = {label: mean for label, mean in dice.items() if mean is not None}
            over_all = self.summary()["mean_over_labels"]["dice"]["mean"]
            many = f"{'-' if over_all is None else format(over_all, '.3f')} over {len(dice)} labels, the lowest "
            dice = {label: defined[label] for label in sorted(defined, key=defined.__getitem__)[:_LOWEST]}
        means = [f"{label} -" if mean is None else f"{label} {mean:.3f}" for label, mean in dice.items()]
        missing = f"; without a prediction: {shortened(self.missing)}" if self.missing else ""
        return f"Table({counted(len(self.cases), 'case')}; mean Dice {many}{', '.join(means)}{missing})"

    def summary(self) -> dict[str, Any]:
        """Mean, median and worst subject of every score, per label and of the mean over labels.

        Returns:
            ``{"labels": {name: summary}, "mean_over_labels": summary}`` with ``summary[score]`` holding ``mean``,
            ``median``, ``worst``, ``worst_case`` and ``undefined``, the number of subjects without a value. Those are
            left out of mean and median; the worst subject is one of them, with ``worst`` None. A subject's mean over
            labels is undefined where the score of one label is, and over those that were annotated in it.
        """
        return _summarise([asdict(row) for row in self.rows], columns(LabelScores), self.labels)

    def slice_summary(self) -> dict[str, Any] | None:
        """`summary` of each subject's means over its annotated slices; None where slices were not asked for.

        A subject's mean is over the slices in which the score is defined: a distance is not where a label was missed.
        ``undefined_slices``, beside ``undefined``, is the number of the others.
        """
        if not self.slices:
            return None
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.slices:
            groups.setdefault((row.case, row.label), []).append(asdict(row))
        names = [name for name in columns(SliceScores) if name in SCORES]
        means = [
            {"case": case, "label": label} | {name: _mean(row[name] for row in rows) for name in names}
            for (case, label), rows in groups.items()
        ]
        found = _summarise(means, names, self.labels)
        by_label = rows_by_label(self.slices, self.labels)
        for label, summary in found["labels"].items():
            for name, entry in summary.items():
                entry["undefined_slices"] = sum(getattr(row, name) is None for row in by_label[label])
        for name, entry in found["mean_over_labels"].items():
            entry["undefined_slices"] = sum(summary[name]["undefined_slices"] for summary in found["labels"].values())
        return found

    def presence(self) -> dict[str, dict[str, Any]]:
        """Per label in how many subjects which of the maps hold it, see `Presence`, and Dice as others average it.

        Returns:
            Of each label the numbers ``both``, ``reference``, ``prediction`` and ``neither``; ``dice_in_either``, the
            mean over the subjects in which some map holds it, as nnU-Net has it, and ``dice_in_reference``, over those
            whose reference does, as MONAI by default; None without any. `summary` has the mean over all.
        """
        found: dict[str, dict[str, Any]] = {}
        for label, rows in rows_by_label(self.rows, self.labels).items():
            found[label] = _counts(rows) | {
                "dice_in_either": _mean(row.dice for row in rows if row.presence != "neither"),
                "dice_in_reference": _mean(row.dice for row in rows if row.presence in ("both", "reference")),
            }
        return found

    def slice_presence(self) -> dict[str, dict[str, int]]:
        """Per label in how many of the annotated slices with it which of the maps hold it."""
        return {label: _counts(rows) for label, rows in rows_by_label(self.slices, self.labels).items()}

    def unannotated_lines(self) -> list[str]:
        """Who has no score of a label because nobody annotated it, for a person: a line a label."""
        return [
            f"{label}: not annotated in {shortened(cases)}, and without a score there"
            for label, cases in self.unannotated.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is undefined is null."""
        content: dict[str, Any] = {
            "subjects": len(self.cases),
            "labels": dict(self.labels),
            "ignore_label": self.ignore_label,
            "tolerance_mm": self.tolerance_mm,
            "organ_mask": self.organ_mask,
            "missing": list(self.missing),
            "unreferenced": list(self.unreferenced),
            "unscored": list(self.unscored),
            "unannotated": {label: list(cases) for label, cases in self.unannotated.items()},
            "summary": self.summary(),
            "presence": self.presence(),
            "rows": [asdict(row) for row in self.rows],
        }
        if self.slices:
            content["slice_summary"] = self.slice_summary()
            content["slice_presence"] = self.slice_presence()
            content["slices"] = [asdict(row) for row in self.slices]
        if self.protocol is not None:
            content["patches"] = {
                "protocol": asdict(self.protocol),
                "all": self.all_patches.as_json(),
                "subjects": {case: counts.as_json() for case, counts in self.patches.items()},
            }
        return content

    @property
    def all_patches(self) -> PatchCounts:
        """Those of all subjects together."""
        return sum(self.patches.values(), PatchCounts())

    def write(self, path: str | Path) -> list[Path]:
        """Write TABLE.json, TABLE.csv beside it and, if they were scored, TABLE.slices.csv and TABLE.patches.csv.

        Returns:
            The paths written.

        Raises:
            InputError: ``path`` does not end in .json.
        """
        target = table_path(path)
        if target.is_file():  # what lies beside it is of that evaluation
            for earlier in beside_table(target):
                earlier.unlink(missing_ok=True)
        write_json(target, self.as_json())
        written = [target, target.with_suffix(".csv")]
        _write_csv(written[1], columns(LabelScores), [asdict(row) for row in self.rows])
        if self.slices:
            written.append(target.with_suffix(".slices.csv"))
            _write_csv(written[-1], columns(SliceScores), [asdict(row) for row in self.slices])
        if self.protocol is not None:
            rows = [{"case": case} | counts.as_json() for case, counts in self.patches.items()]
            written.append(target.with_suffix(".patches.csv"))
            _write_csv(written[-1], ["case", *PatchCounts().as_json()], rows)
        return written

    def text(self) -> str:
        """The summaries as text for a terminal."""
        parts = [_text(self.summary(), len(self.cases), self.tolerance_mm), *_not_in_both(self.presence())]
        if lines := self.unannotated_lines():
            parts.append("\n".join(lines))
        slices = self.slice_summary()
        if slices is not None:
            scored = len({(row.case, row.slice) for row in self.slices})
            above = f"each subject's mean over its annotated slices ({scored} in all)"
            parts.append(f"{above}\n\n{_text(slices, len({row.case for row in self.slices}), self.tolerance_mm)}")
            parts += _not_in_both(self.slice_presence(), "slices")
        if self.protocol is not None:
            parts.append(f"patches of {self.protocol.size} x {self.protocol.size} pixels: {self.all_patches.text()}")
        for names, what in ((self.missing, "no prediction for"), (self.unreferenced, "no reference for")):
            if names:
                parts.append(f"{what}: {shortened(names)}")
        return "\n\n".join(parts)


def rows_by_label(rows: Iterable[_Row], labels: Iterable[str]) -> dict[str, list[_Row]]:
    """The rows of each label, in one pass."""
    found: dict[str, list[_Row]] = {label: [] for label in labels}
    for row in rows:
        found[row.label].append(row)
    return found


def in_telling_order(presence: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The same, of many labels those first that were most often missed, or found where there is none."""
    if len(presence) <= MANY_LABELS:
        return presence
    return dict(sorted(presence.items(), key=lambda entry: -(entry[1]["reference"] + entry[1]["prediction"])))


def heading(score: str, tolerance: float) -> str:
    """Of one of `SCORES`; the surface Dice with its tolerance, mm."""
    return f"surface Dice at {tolerance:g} mm" if score == "surface_dice" else SCORES[score][0]


def unannotated(labels: Mapping[str, Values], hidden: Mapping[str, Hidden]) -> dict[str, tuple[str, ...]]:
    """`Table.unannotated` of these labels.

    Args:
        labels: name to value or values.
        hidden: by subject, what nobody annotated in it, see `Subject`.
    """
    without = {
        label: tuple(case for case, values in hidden.items() if label not in annotated_structures(labels, values))
        for label in labels
    }
    return {label: cases for label, cases in without.items() if cases}


_BESIDE = (".csv", ".slices.csv", ".patches.csv", ".html")  # what belongs to a table, by its suffix


def beside_table(target: Path) -> list[Path]:
    """What may be written together with a table, pages too."""
    return [target.with_suffix(suffix) for suffix in _BESIDE]


def table_path(path: str | Path) -> Path:
    """``path`` if it can name a table.

    Raises:
        InputError: it does not end in .json, it is a folder, or it, or what comes beside it, would take the place of
            something else.
    """
    target = Path(path)
    if target.suffix.lower() != ".json" or target.is_dir() or target.name == "dataset.json":
        if target.is_dir() or not target.suffix:
            named = target / "table.json"
        else:
            named = target.with_name("table.json" if target.name == "dataset.json" else f"{target.stem}.json")
        raise InputError(
            "the table cannot be written there",
            path=path,
            expected="the name of a file that ends in .json, other than dataset.json",
            found="a folder" if target.is_dir() else None,
            remedy=f"-o {named}; {named.stem}.csv is written beside it",
        )
    if target.is_file() and not _is_table(target):
        raise InputError(
            "the table would take the place of a file that is none",
            path=path,
            remedy="give another name with -o, or move the file away",
        )
    beside = [path for path in beside_table(target) if path.exists()]
    if beside and not target.is_file():
        raise InputError(
            "files of another origin lie where those of the table are to be written",
            path=beside[0],
            remedy="give another name with -o, or move them away",
        )
    return target


def _is_table(path: Path) -> bool:
    """Whether an earlier evaluation wrote it."""
    try:
        content = read_json(path, largest=_LARGEST)
    except ValueError:
        return False
    return isinstance(content, dict) and {"summary", "rows"} <= set(content)


def _counts(rows: Sequence[LabelScores | SliceScores]) -> dict[str, int]:
    return {kind: sum(row.presence == kind for row in rows) for kind in get_args(Presence)}


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def _summarise(rows: Sequence[Mapping[str, Any]], names: Sequence[str], labels: Iterable[str]) -> dict[str, Any]:
    by_label: dict[str, list[Mapping[str, Any]]] = {label: [] for label in labels}
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label[row["label"]].append(row)
        by_case.setdefault(row["case"], []).append(row)
    scores = [name for name in names if name in SCORES]
    over_labels = []
    for case, group in by_case.items():
        means = {
            name: None if any(row[name] is None for row in group) else _mean(row[name] for row in group)
            for name in scores
        }
        over_labels.append({"case": case} | means)
    return {
        "labels": {label: _over_subjects(group, scores) for label, group in by_label.items() if group},
        "mean_over_labels": _over_subjects(over_labels, scores),
    }


def _over_subjects(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> Summary:
    summary: Summary = {}
    for name in scores:
        larger_is_better = SCORES[name][1]
        values = {row["case"]: row[name] for row in rows}
        defined = {case: value for case, value in values.items() if value is not None}
        undefined = [case for case in values if case not in defined]
        extreme = min if larger_is_better else max
        worst_case = undefined[0] if undefined else extreme(defined, key=defined.__getitem__, default=None)
        summary[name] = {
            "mean": _mean(defined.values()),
            "median": statistics.median(defined.values()) if defined else None,
            "worst": values.get(worst_case),
            "worst_case": worst_case,
            "undefined": len(undefined),
        }
    return summary


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def _not_in_both(presence: Mapping[str, Mapping[str, Any]], of: str = "subjects") -> list[str]:
    """What the means of labels hold that some map does not have; nothing where all maps have all labels.

    Of many labels those alone for which it says most.
    """
    lines = []
    for label, found in in_telling_order(presence).items():
        kinds = {kind: found[kind] for kind in WORDS if found[kind]}
        if not set(kinds) - {"both"}:
            continue
        line = f"{label}, {of}: " + ", ".join(f"{count} {WORDS[kind]}" for kind, count in kinds.items())
        if found["neither"] and found["dice_in_either"] is not None:
            line += f"; mean Dice {found['dice_in_either']:.3f} without the last, where it is 1"
        lines.append(line)
    if len(lines) > MANY_LABELS:
        lines[MANY_LABELS:] = [f"and {len(lines) - MANY_LABELS} more labels that are not in both maps of all {of}"]
    return ["\n".join(lines)] if lines else []


def _text_of_many(summary: Mapping[str, Any], subjects: int, headings: Mapping[str, str]) -> str:
    """A row for each label, the lowest mean Dice first: Dice, and the means of other scores, as a terminal has room."""
    others = [score for score in _OF_MANY if score in summary["mean_over_labels"]]
    blocks = sorted(summary["labels"].items(), key=lambda block: block[1]["dice"]["mean"])
    blocks.append(("mean over labels", summary["mean_over_labels"]))
    rows = [
        [
            f"subjects: {subjects}",
            "Dice",
            "median",
            "worst",
            *(_short(headings[name]) for name in others),
            "worst subject",
        ]
    ]
    for label, block in blocks:
        dice = [block["dice"][key] for key in ("mean", "median", "worst")]
        cells = ["-" if value is None else f"{value:.3f}" for value in (*dice, *(block[s]["mean"] for s in others))]
        rows.append([label, *cells, block["dice"]["worst_case"]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *numbers, row[-1]]))
    undefined = any(entry["undefined"] for block in summary["labels"].values() for entry in block.values())
    left_out = ", of which those without a value are left out" if undefined else ""
    said = f"Median, worst and worst subject are of Dice; the others are means over the subjects{left_out}."
    return "\n".join([*lines, "", f"{said} The table has all scores."])


def _short(text: str) -> str:
    """A heading of a column."""
    return text.replace("average contour distance", "ACD").replace("surface Dice at", "surface")


def _text(summary: Mapping[str, Any], subjects: int, tolerance: float) -> str:
    headings = {score: heading(score, tolerance) for score in SCORES}
    blocks = [*summary["labels"].items()]
    if len(blocks) > MANY_LABELS:
        return _text_of_many(summary, subjects, headings)
    if len(blocks) != 1:
        blocks.append(("mean over labels", summary["mean_over_labels"]))
    width = max(len(headings[score]) for _, block in blocks for score in block)
    width = max(width, max(len(label) for label, _ in blocks))
    lines = [f"{'subjects: ' + str(subjects):{width}}  {'mean':>8}  {'median':>8}  {'worst':>8}  worst subject"]
    for label, block in blocks:
        lines += ["", label]
        for score, entry in block.items():
            numbers = "  ".join(
                f"{'-' if entry[key] is None else format(entry[key], '.3f'):>8}" for key in ("mean", "median", "worst")
            )
            counts = {"": entry["undefined"], " slices": entry.get("undefined_slices", 0)}
            undefined = [f"{count}{what} undefined" for what, count in counts.items() if count]
            note = f" ({', '.join(undefined)})" if undefined else ""
            lines.append(f"{headings[score]:{width}}  {numbers}  {entry['worst_case']}{note}")
    return "\n".join(lines)

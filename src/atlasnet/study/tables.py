"""The tables of a study: as rows of text, for a terminal, as a CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.execution import atomic_path
from atlasnet.report.page import number
from atlasnet.study.means import SCORES
from atlasnet.study.methods import MAIN, METHOD
from atlasnet.study.software import as_text, mixed
from atlasnet.study.statistics import few_subjects
from atlasnet.wording import counted, lengths, shortened

_ENOUGH_SEEDS = 3  # with fewer, their range says next to nothing of how far trainings differ
_OF_SEEDS = "Dice of the seeds"


def main_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The main table: headings, a row of text per method and observer; no comparisons where nothing was compared."""
    comparison = ["AtlasNet minus this", "p", "p, Holm"] if _compared(found) else []
    head = ["method", "mean Dice", "95 % interval", _OF_SEEDS, *comparison, "s per scan", "seeds"]
    rows = []
    for name, row in found["methods"].items():
        gains = _gains(row, found)[: len(comparison)]
        title = row["title"] + (f" (without a result: {shortened(row['failed'])})" if row["failed"] else "")
        rows.append(
            [
                title,
                number(row["mean_dice"], ".4f"),
                as_interval(row["interval"]),
                _range(row["dice_of_seeds"]),
                *gains,
                number(row["seconds"], ".1f"),
                str(len(row["seeds"])) if METHOD[name].seeded else "none",
            ]
        )
    for title, row in observers(found).items():
        gains = _gains(row, found)[: len(comparison)]
        rows.append([title, number(row["mean_dice"], ".4f"), as_interval(row["interval"]), "", *gains, "", ""])
    place = head.index(_OF_SEEDS)
    if not any(row[place] for row in rows):  # one seed each
        for cells in (head, *rows):
            del cells[place]
    return head, rows


def tail_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The worst tenth of the subjects: headings, and a row of text per method."""
    rows = []
    for row in found["methods"].values():
        cells = [row["title"]]
        for values, form in ((row, ".4f"), (row.get("main_minus_this", {}), "+.4f")):
            cells.append(number(values.get("worst_tenth"), form))
            cells.append(as_interval(values.get("worst_tenth_interval"), form))
        rows.append(cells)
    columns = 5 if any("main_minus_this" in row for row in found["methods"].values()) else 3
    head = ["method", "worst tenth", "95 % interval", "AtlasNet minus this", "its interval"]
    return head[:columns], [cells[:columns] for cells in rows]


def observers(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Title to what is known of an observer, and of their mean; how many test subjects these have, if not all."""
    titled, every = {}, len(found["cases"])
    together = found["observers_together"]
    rows = [(f"observer {place}", row) for place, row in enumerate(found["observers"], start=1)]
    rows += [] if together is None else [("mean of the observers", together)]
    for title, row in rows:
        seen = row["subjects"]
        titled[title + (f" ({seen} of {counted(every, 'test subject')})" if seen < every else "")] = row
    return titled


def cautions(found: Mapping[str, Any]) -> list[str]:
    """What makes the main table less sure than it looks."""
    said = [text] if (text := mixed(found["software"])) else []
    seeded = {name: row for name, row in found["methods"].items() if METHOD[name].seeded}
    if len({tuple(row["seeds"]) for row in seeded.values()}) > 1:
        listed = "; ".join(f"{row['title']}: {', '.join(map(str, row['seeds']))}" for row in seeded.values())
        said.append(
            f"Not every method has the same seeds ({listed}): a mean over fewer is less sure. Differences and their "
            "tests are over the seeds that both methods have; where they have none in common, they are not compared."
        )
    fewest = min((len(row["seeds"]) for row in seeded.values()), default=_ENOUGH_SEEDS)
    if fewest < _ENOUGH_SEEDS:
        known = "not" if fewest == 1 else "hardly"
        said.append(
            f"With {counted(fewest, 'seed')} it is {known} known how far a result varies from one training to the "
            f"next: intervals and tests are over subjects only. {_ENOUGH_SEEDS} or more show it."
        )
    return [*said, *few_subjects(len(found["cases"]), compared=_compared(found))]


def _compared(found: Mapping[str, Any]) -> bool:
    return any("main_minus_this" in row for row in (*found["methods"].values(), *observers(found).values()))


def main_table(found: Mapping[str, Any]) -> str:
    """The main table for a terminal, and its `cautions`."""
    head, rows = main_rows(found)
    shown = [i for i, heading in enumerate(head) if heading not in ("p", "s per scan", "seeds")]
    table = [[row[i] for i in shown] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return "\n\n".join(["\n".join(lines), *cautions(found)])


def _gains(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The cells of a comparison, empty where there is none."""
    gain = row.get("main_minus_this")
    if gain is None:
        return [""] * 3
    return [_gain(gain, len(found["cases"])), f"{gain['p']:.2g}", f"{gain['p_holm']:.2g}"]


def _gain(gain: Mapping[str, Any], subjects: int) -> str:
    """A difference, and over how many of the test subjects it is where a method could not segment all of them."""
    some = f" ({gain['subjects']} of {subjects})" if gain["subjects"] < subjects else ""
    return f"{gain['mean']:+.4f} {as_interval(gain['interval'], '+.4f')}".strip() + some


def _range(dice: Sequence[float | None]) -> str:
    """From the lowest to the highest of several; nothing of one."""
    known = [value for value in dice if value is not None]
    return f"{min(known):.4f} to {max(known):.4f}" if len(known) > 1 else ""


def as_interval(value: Sequence[float] | None, form: str = ".4f") -> str:
    """Its ends in brackets; nothing where there is none."""
    return "" if value is None else f"[{value[0]:{form}}, {value[1]:{form}}]"


def less_data_table(found: Mapping[str, Any], of: str) -> tuple[list[str], list[list[str]]]:
    """AtlasNet with shares of the training ``"subjects"``, or of their ``"slices"``, against networks with all."""
    rows = [
        [
            f"{share['really']:.0%}",
            number(float(np.mean([*share["subjects"][MAIN].values()])), ".4f"),
            METHOD[name].title,
            _gain(gain, len(found["cases"])),
            f"{gain['p']:.2g}",
            f"{gain['p_holm']:.2g}",
        ]
        for share in found["less_data"]
        if share["of"] == of
        for name, gain in share["main_minus"].items()
    ]
    return [f"share of the {of}", "AtlasNet with it", "other, with all", "AtlasNet minus that", "p", "p, Holm"], rows


def label_table(found: Mapping[str, Any], label: str) -> tuple[list[str], list[list[str]]]:
    """The scores of a label: headings, and a row of text per method and observer."""
    titled = {row["title"]: row for row in found["methods"].values()} | observers(found)
    head, rows = ["method", *SCORES.values()], [[title, *_scores(row, label)] for title, row in titled.items()]
    if without_label(found, label):
        head.append("found where there is none")
        for cells, row in zip(rows, titled.values(), strict=True):
            absent = row["absent"][label]
            cells.append(f"{absent['false_positive']:.3g} of {absent['subjects']}" if absent["subjects"] else "")
    if len(found["observers"]) > 1:
        of_observers = [observer["labels"][label] for observer in found["observers"]]
        known = [[o[score] for o in of_observers if o[score] is not None] for score in SCORES]
        ranges = [f"{min(values):.4f} to {max(values):.4f}" if values else "" for values in known]
        rows.append(["range of the observers", *ranges, ""][: len(head)])
    return head, rows


def without_label(found: Mapping[str, Any], label: str) -> str:
    """What is to be known where test subjects do not have a label; empty where all have it."""
    most = max((row["absent"][label]["subjects"] for row in found["methods"].values()), default=0)
    if not most:
        return ""
    annotated = len(found["cases"]) - len(found["unannotated"].get(label, ()))
    return (
        f"Without it: {most} of {counted(annotated, 'reference')}. There the Dice is 1 where it was not found, and 0 "
        "where it was; both are in the means."
    )


def _scores(row: Mapping[str, Any], label: str) -> list[str]:
    scores, undefined = row["labels"][label], row["undefined"][label]
    return [number(scores[s], ".4f") + (f" ({undefined[s]} undefined)" if undefined[s] else "") for s in SCORES]


def write_table(found: Mapping[str, Any], path: Path) -> None:
    """Write the numbers of the main table and of every label, unrounded, as a CSV."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        undefined = [f"{score}_undefined" for score in SCORES]
        head = ["method", "label", *SCORES, *undefined, "mean_dice", "low", "high", "worst_tenth", "seconds", "p_holm"]
        of_gain = ["difference", "difference_low", "difference_high", "p", "difference_subjects", "difference_seeds"]
        further = ["absent", "false_positive", "subjects", "seeds_low", "seeds_high"]
        further += ["tail_difference", "tail_low", "tail_high"]
        writer.writerow([*head, "failed", "seeds", *of_gain, *further])
        for name, row in found["methods"].items():
            _write_labels(writer, name, row, len(found["subjects"][name]))
        for place, row in enumerate(found["observers"], start=1):
            _write_labels(writer, f"observer {place}", row, row["subjects"])
        if (together := found["observers_together"]) is not None:
            _write_labels(writer, "mean of the observers", together, together["subjects"])


def _write_labels(writer: Any, name: str, row: Mapping[str, Any], subjects: int) -> None:
    """The rows of a method or an observer, one per label; an observer has no seeds and takes no time."""
    ends = row["interval"] or (None, None)
    gain = row.get("main_minus_this", {})
    gains = [gain.get("mean"), *(gain.get("interval") or (None, None)), gain.get("p"), gain.get("subjects")]
    gains.append(len(gain["seeds"]) if "seeds" in gain else None)
    tail = [gain.get("worst_tenth"), *(gain.get("worst_tenth_interval") or (None, None))]
    known = [dice for dice in row.get("dice_of_seeds", ()) if dice is not None]
    of_seeds = [min(known), max(known)] if len(known) > 1 else [None, None]
    means = [row["mean_dice"], *ends, row.get("worst_tenth"), row.get("seconds"), gain.get("p_holm")]
    counts = [len(row[of]) if of in row else None for of in ("failed", "seeds")]
    for label, scores in row["labels"].items():
        every = [found_in[score] for found_in in (scores, row["undefined"][label]) for score in SCORES]
        absent = [row["absent"][label][of] for of in ("subjects", "false_positive")]
        writer.writerow([name, label, *every, *means, *counts, *gains, *absent, subjects, *of_seeds, *tail])


def how_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """How the study was done, with its seeds and who made the results: a row of text for each thing."""
    told = found["how"]
    preset = told["preset"] + (", changed" if told["changed"] else "")
    seeds = sorted({seed for row in found["methods"].values() for seed in row["seeds"]})
    annotated = [f"{name} annotated in {count}" for name, count in told["annotated_in"].items()]
    return [
        ["training subjects", "; ".join([str(told["training_subjects"]), *annotated])],
        ["test subjects", str(told["test_subjects"])],
        ["channels", ", ".join(told["channels"])],
        ["atlases", ", ".join(found["atlases"])],
        ["seeds", ", ".join(map(str, seeds))],
        ["preset", preset],
        ["epochs", str(told["epochs"])],
        ["network", f"{told['network']}, width {told['width']:g}"],
        ["voxels of the networks, mm", lengths(told["spacing_mm"])],
        ["registration", told["registration"] + (" with settings of one's own" * bool(told["registration_settings"]))],
        ["fusion", told["fusion"]],
        ["AtlasNet's networks share", told["sharing"]],
        ["within organ masks", "yes" if found["organ_mask"] else "no"],
        ["made with", "; ".join(as_text(group["versions"]) for group in found["software"])],
        ["begun", told["begun"] or "on a day that was not recorded"],
        ["summed up", f"{told['written']}, with {as_text([told['written_by']])}"],
    ]

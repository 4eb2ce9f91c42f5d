"""``--dry-run``: the plan of a verb as text, with what its figures rest on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlasnet.cli.check import plan_lines
from atlasnet.wording import counted, duration, shortened, size

if TYPE_CHECKING:
    from pathlib import Path

    from atlasnet.prediction.forecast import BatchForecast
    from atlasnet.study.forecast import StudyForecast
    from atlasnet.training.forecast import Cost, Forecast

_HOW = {"atlases": "", "own": ", where networks see whole scans"}


def add_dry_run_option(parser: argparse.ArgumentParser) -> None:
    """``--dry-run``."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, what is kept of earlier calls, and what the rest takes as measured in a short "
        "trial: time, memory, disk; write nothing",
    )


def training_lines(found: Forecast, folder: Path) -> list[str]:
    """What ``train`` would do."""
    lines = [
        *plan_lines(found.plan, found.network),
        "",
        f"model        {folder}, {counted(found.subjects, 'subject')}",
        _atlases(found),
    ]
    if found.changes is not None:
        lines.append(f"update       {found.changes.summary()}")
    if found.finished:
        return [*lines, "             finished already: nothing would be done"]
    lines.append(_kept("pairs", *found.pairs, " to register"))
    if found.epochs is None:
        lines.append("networks     as many epochs as fit into the time budget: decided when the subjects are mapped")
    else:
        lines.append(_kept("networks", *found.epochs, f" epochs, {found.networks}"))
    costs = {} if found.cost is None else {"": found.cost}
    return [*lines, *_cost_lines(costs, found.seconds, found.peak_mib, found.chosen is None), *_disk_lines(found)]


def _disk_lines(found: Forecast) -> list[str]:
    if not found.disk_mib:
        return []
    work, model, training = (size(mib) for mib in found.disk_mib.values())
    return [
        f"disk         about {work} in the work folder and {model} of the model, what is kept of them included",
        f"             while a network is trained, up to {training} more",
    ]


def fold_lines(folds: int, finished: int, pairs: int, found: Forecast) -> list[str]:
    """What the cross-validation after it would do."""
    lines = [_kept("folds", folds, finished, " models")]
    if found.cost is not None and finished < folds:
        seconds = pairs * found.cost.pair
        text = f"at most {duration(seconds)} of registrations, those that models share counted for each"
        if found.epochs is not None:
            networks = (folds - finished) * found.epochs[0] * found.cost.steps * found.cost.step
            text += f", and {duration(networks)} of networks"
        one = found.cost.disk_of(0, found.subjects * found.atlases, found.trained, found.atlases)
        disk = pairs * found.cost.pair_disk_mib + (folds - finished) * (one["work"] + one["model"])
        lines += [
            f"             {text}; segmenting the subjects left out is not estimated",
            f"             at most {size(disk)} more on disk",
        ]
    return lines


def study_lines(found: StudyForecast, folder: Path) -> list[str]:
    """What ``study`` would do."""
    lines = [
        *plan_lines(found.plan, found.network),
        "",
        f"study        {folder}, {counted(found.subjects, 'subject')} to train on, {found.tests} to test on",
        _atlases(found),
    ]
    for job, missing in found.jobs:
        state = f"{missing} of {found.tests} tests to segment" if missing else "kept"
        lines.append(f"  {job.method.name}, {job.details}: {state}")
    if found.finished:
        return [*lines, "             finished already: only the page would be written again"]
    lines += [
        _kept("models", *found.models),
        _kept("pairs", *found.pairs, " to register"),
        f"networks     {counted(found.epochs, 'epoch')} to train, of all networks together; of unfinished models, all "
        "are counted",
        *_cost_lines(
            {_HOW[space]: cost for space, cost in found.costs.items()},
            found.seconds,
            found.peak_mib,
            found.chosen is None,
        ),
        *(
            f"             a test{_HOW[space]}: {scan.ask + scan.fuse:.1f} s a network, {scan.score:.1f} s to score a "
            "result; by one that has learnt nothing, on the largest training subject: rather too long than too short"
            for space, scan in found.scans.items()
        ),
        *([] if found.disk_mib is None else [f"disk         about {size(found.disk_mib)} more, but for the results"]),
    ]
    return lines


def batch_lines(found: BatchForecast, folder: Path) -> list[str]:
    """What ``predict`` would do."""
    total = len(found.missing) + len(found.kept) + len(found.unreadable)
    lines = [f"output       {folder}", f"cases        {total}"]
    if found.kept:
        lines.append(f"kept         {shortened(found.kept)}: of the same model, input and options")
    if found.missing:
        lines.append(f"to segment   {shortened(found.missing)}")
    lines += [f"would fail   {name}: {problem}" for name, problem in found.unreadable.items()]
    if found.case_seconds is not None and found.seconds is not None:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found.case_seconds.items())
        lines += [
            f"time         about {duration(found.seconds)}: {len(found.missing)} x ({stages})",
            *_memory_line(found.peak_mib),
            *([] if found.disk_mib is None else [f"disk         about {size(found.disk_mib)} of results"]),
            f"             measured on {found.missing[0]} with as many atlases as are registered at a time, counted "
            "for all; other cases are taken to be as large",
        ]
    return lines


def _atlases(found: Forecast | StudyForecast) -> str:
    if found.chosen is None:
        return f"atlases      {found.atlases}, still to be chosen among the subjects"
    return f"atlases      {shortened(found.chosen)}"


def _kept(what: str, total: int, kept: int, unit: str = "") -> str:
    return f"{what:13}{total}{unit}; {kept} of them kept from earlier calls"


def _cost_lines(
    costs: Mapping[str, Cost], seconds: Mapping[str, float], peak: float | None, choosing: bool
) -> list[str]:
    """Lines on time and memory; ``costs`` are of networks that work differently, by how they do."""
    if not costs:
        return []
    parts = ", ".join(f"{stage} {duration(value)}" for stage, value in seconds.items())
    lines = [
        f"time         about {duration(sum(seconds.values()))}: {parts}",
        *_memory_line(peak),
        *(
            f"             measured on the largest subject{how}: {cost.pair:.1f} s a registration, {cost.step:.2f} s a "
            f"step, {cost.steps} steps an epoch"
            for how, cost in costs.items()
        ),
    ]
    if choosing:
        lines.append(
            "             choosing the atlases is not in it, and what is kept of their registrations not known"
        )
    return lines


def _memory_line(peak: float | None) -> list[str]:
    return [] if peak is None else [f"memory       about {size(peak)}"]


def as_text(lines: Sequence[Any]) -> str:
    """The lines, with what a dry run is."""
    return "\n".join([*lines, "", "dry run: nothing was done"])

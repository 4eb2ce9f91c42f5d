"""``atlasnet check``: what is wrong with a cohort, what it is like, and the plan that follows."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from atlasnet.cli.options import (
    add_mask_option,
    add_output_options,
    add_spacing_option,
    require_file,
    spacing_from,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import require_folder
from atlasnet.wording import MANY_LABELS, counted, lengths, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from atlasnet.cohort.check import CheckReport
    from atlasnet.cohort.fingerprint import Fingerprint
    from atlasnet.cohort.plan import Plan
    from atlasnet.cohort.planning import Planned
    from atlasnet.cohort.structures import Values
    from atlasnet.network import NetworkSpec

_LEAST = 5  # structures of which it is told what voxels keep

HELP = "list every problem of a folder of scans, and print its fingerprint and plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder in nnU-Net's, the Decathlon's or the plain layout"
    )
    parser.add_argument("--unlabelled", action="store_true", help="subjects need no reference")
    parser.add_argument("--subjects", type=Path, metavar="FILE", help="read these subjects only, one name a line")
    add_mask_option(parser, "masks are checked too, and the plan is made by what lies within")
    add_spacing_option(parser)
    parser.add_argument("--plan", type=Path, metavar="FILE", help="write the plan there as JSON, to be edited")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check; 0 when the cohort can be used, else 1.

    Raises:
        InputError: there is no such folder, or no list of subjects, or the plan cannot be written there.
    """
    require_folder(args.data)
    from atlasnet.cohort import Plan
    from atlasnet.cohort.check import check_cohort
    from atlasnet.execution import SilentReporter
    from atlasnet.training.subjects import read_names

    if args.plan is not None:
        require_file(args.plan, ".json", Plan.read, option="--plan")
    report = check_cohort(
        args.data,
        labelled=not args.unlabelled,
        spacing=spacing_from(args),
        subjects=None if args.subjects is None else read_names(args.subjects),
        masks=args.organ_mask,
        reporter=SilentReporter() if args.json else args.reporter,
    )
    if args.plan is not None and report.plan is not None:
        report.plan.write(args.plan)
    tell(args, "\n".join(_lines(report)), report.to_json())
    if args.quiet and not args.json:
        for problem in report.errors:
            print(f"error: {problem}")
    return 0 if report.ok else 1


def _lines(report: CheckReport) -> list[str]:
    from atlasnet.cohort.structures import regions_shown

    lines = [f"error: {problem}" for problem in report.errors]
    lines += [f"warning: {problem}" for problem in report.warnings]
    many = report.cohort is not None and len(report.cohort.structures) > MANY_LABELS
    if report.cohort is not None:
        labels = ", ".join(f"{name} = {value}" for name, value in report.cohort.labels.items())
        if many and report.fingerprint is not None:
            labels = f"{counted(len(report.cohort.labels), 'label')}, the background among them"
        labels += "".join(
            f"; region {name} = {values}" for name, values in regions_shown(report.cohort.regions).items()
        )
        ignored = "" if report.cohort.ignore_label is None else f"; ignored = {report.cohort.ignore_label}"
        lines += [
            "",
            f"{report.cohort.format} layout; channels: {', '.join(report.cohort.channels)}; {labels}{ignored}",
        ]
        if report.cohort.annotation:
            lines.append(report.cohort.annotation)
    if report.fingerprint is not None:
        lines += ["", *_fingerprint_lines(report.fingerprint, volumes=not many)]
        if many and report.cohort is not None:
            lines += ["", *_volume_lines(report.fingerprint, report.cohort.structures)]
    if report.planned is not None:
        lines += ["", *plan_lines(report.planned.plan), *_kept_lines(report.planned)]
    errors, warnings = len(report.errors), len(report.warnings)
    subjects = 0 if report.fingerprint is None else len(report.fingerprint.subjects)
    # Those with complete files that something else is wrong with: the errors name them.
    more = 0 if report.cohort is None else len(report.cohort) - subjects
    return [
        *lines,
        "",
        f"{counted(subjects, 'subject')} read, {f'{more} more could not be, ' if more > 0 else ''}"
        f"{counted(errors, 'error')}, {counted(warnings, 'warning')}",
    ]


def _kept_lines(planned: Planned) -> list[str]:
    """What the plan's voxels keep of the structures of which they keep least, and why they are finer than usual."""
    if planned.kept is None:
        return []
    here = {name: values[planned.number] for name, values in planned.kept.dice.items()}
    least = [f"{name} {here[name]:.2f}" for name in sorted(here, key=here.__getitem__)]
    # What the usual voxels keep enough of is not measured in finer ones.
    at_least = "at least " if planned.number else ""
    lines = [f"  these voxels keep       {at_least}{shortened(least, _LEAST)} (Dice of references, there and back)"]
    return lines if planned.note is None else [*lines, f"  {planned.note}"]


def _fingerprint_lines(fingerprint: Fingerprint, *, volumes: bool) -> list[str]:
    """A row per subject, axes nearest LPS, with the volumes of all labels on request."""
    found = dict.fromkeys(name for subject in fingerprint.subjects for name in subject.label_ml)
    names = list(found) if volumes else []
    intensities = [f"{c} 0.5 / 50 / 99.5 %" for c in fingerprint.channels]
    rows = [["subject", "voxels x y z", "spacing mm", *intensities, *(f"{name} ml" for name in names)]]
    for subject in fingerprint.subjects:
        rows.append(
            [
                subject.name,
                " x ".join(str(n) for n in subject.shape[::-1]),
                lengths(subject.spacing),
                *(" / ".join(f"{values[i]:.4g}" for i in (1, 3, 5)) for values in subject.percentiles),
                *(f"{subject.label_ml[name]:.5g}" if name in subject.label_ml else "-" for name in names),
            ]
        )
    return _table(rows)


def _volume_lines(fingerprint: Fingerprint, structures: Mapping[str, Values]) -> list[str]:
    """A row per label: in how many subjects it is, of those in which it was annotated, and its volumes there."""
    from atlasnet.cohort.structures import shown

    rows = [["label", "value", "found in", "least ml", "median ml", "most ml"]]
    for name, values in structures.items():
        annotated = [subject.label_ml[name] for subject in fingerprint.subjects if name in subject.label_ml]
        found = [volume for volume in annotated if volume > 0]
        told = [f"{volume:.5g}" for volume in (min(found), median(found), max(found))] if found else ["-"] * 3
        rows.append([name, shown(values), f"{len(found)} of {len(annotated)}", *told])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plan_lines(plan: Plan, network: NetworkSpec | None = None) -> list[str]:
    """The plan for a person, with the network that it names or another one that was asked for."""
    name, width = (plan.network, plan.width) if network is None else (network.name, network.width)
    context = f", {counted(plan.context, 'slice')} each side" if name == "unet" else ""

    lines = [
        "plan",
        f"  networks work at        {lengths(plan.spacing)} mm, slices along {plan.slice_axis}",
        f"  registration works at   {lengths(plan.registration_spacing)} mm",
        f"  network                 {name}, width {width:g}{context}, batches of at most {plan.batch_size}",
    ]
    for normalisation, span in zip(plan.normalisation, plan.mi_range, strict=True):
        if normalisation.window is None:
            scaling = "0.5 to 99.5 percentile of each image, mean 0, std 1"
        else:
            low, high = normalisation.window
            scaling = f"{low:g} to {high:g}, mean {normalisation.mean:g}, std {normalisation.std:g}"
        bins = "percentiles of each image" if span is None else f"{span[0]:g} to {span[1]:g}"
        lines += [f"  {normalisation.channel}: normalised {scaling}; mutual information over {bins}"]
    return lines

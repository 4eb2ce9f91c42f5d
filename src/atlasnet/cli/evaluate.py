"""``atlasnet evaluate``: score predictions against references."""

from __future__ import annotations

import argparse
from pathlib import Path

from atlasnet.cli.options import (
    add_mask_option,
    add_output_options,
    add_patch_options,
    patches_from,
    require_writable,
)
from atlasnet.cli.reporting import tell

HELP = "score label maps against references: Dice, sensitivity, precision, distances in mm, volumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``atlasnet evaluate``."""
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS", help="folder of CASE.nii.gz (or .nrrd, .mha), or one file"
    )
    parser.add_argument(
        "references",
        type=Path,
        metavar="REFERENCES",
        help="the same for the references; dataset.json there or one folder up names the labels",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="TABLE.json",
        help="the table to write; TABLE.csv appears beside it",
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="names or values of the labels to score (default: all)"
    )
    parser.add_argument(
        "--ignore-label",
        type=int,
        metavar="VALUE",
        help='reference value that counts nowhere (default: the label "ignore" of dataset.json)',
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="MM",
        help="deviation up to which a contour counts as right in the surface Dice (default: 1)",
    )
    parser.add_argument(
        "--per-slice", action="store_true", help="score each annotated slice too, in mm and pixels: TABLE.slices.csv"
    )
    add_mask_option(parser, "outside, prediction and reference count as background")
    add_patch_options(parser)
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out references without a prediction instead of refusing"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="cases that are scored at a time, each in memory (default: 1)"
    )
    parser.add_argument("--report", action="store_true", help="also write TABLE.html, a page to look at")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the table, print its summary."""
    from atlasnet.evaluation import beside_table, evaluate_folder, table_path
    from atlasnet.execution import Execution, made_alone, say

    path = table_path(args.output)
    require_writable(path)
    with made_alone(path, *beside_table(path)):
        table = evaluate_folder(
            args.predictions,
            args.references,
            labels=args.labels,
            ignore_label=args.ignore_label,
            tolerance_mm=args.tolerance,
            per_slice=args.per_slice,
            patches=patches_from(args),
            allow_missing=args.allow_missing,
            organ_masks=args.organ_mask,
            jobs=args.jobs,
            execution=Execution(reporter=args.reporter, cancelled=args.cancelled),
        )
        written = table.write(path)
        if args.report:
            from atlasnet.report import write_evaluation_report

            written.append(write_evaluation_report(path.with_suffix(".html"), table.as_json()))
    tell(args, table.text(), table.as_json())
    if not args.json and not args.quiet:
        say("\nwritten: " + ", ".join(str(file) for file in written))
    return 0

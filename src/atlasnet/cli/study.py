"""``atlasnet study``: the publication's experiments on the user's own data."""

from __future__ import annotations

import argparse
from pathlib import Path

from atlasnet.cli.dry_run import add_dry_run_option, as_text, study_lines
from atlasnet.cli.options import (
    add_execution_options,
    add_fusion_option,
    add_mask_option,
    add_network_options,
    add_patch_options,
    add_spacing_option,
    execution_from,
    loss_weights_from,
    patches_from,
    registration_from,
    require_writable,
    spacing_from,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import require_folder

HELP = "compare the method with plain networks, ensembles and label propagation on your own data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of annotated scans to train on")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--test",
        type=Path,
        metavar="DATA",
        help="folder of annotated scans to test on: imagesTs and labelsTs, or a whole cohort (default: those in DATA)",
    )
    parser.add_argument("--subjects", type=Path, metavar="FILE", help="train on these subjects only, one name a line")
    parser.add_argument(
        "--test-subjects",
        type=Path,
        metavar="FILE",
        help="test on these subjects only, one name a line; with --subjects they may come from one cohort",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--atlases", type=int, metavar="N", help="choose N atlases (default: 6, or all subjects)")
    which.add_argument("--atlas", action="append", metavar="CASE", help="a training subject; repeat it for several")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions of every training (default: 3)")
    parser.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="F",
        help="shares of the training data, as in 0.3 0.5 0.7 1.0 (default: 1.0)",
    )
    parser.add_argument(
        "--fraction-of",
        default="subjects",
        choices=("subjects", "slices"),
        help="what is shared: whole subjects, or the slices of every subject's annotation (default: subjects)",
    )
    parser.add_argument(
        "--curve-epochs",
        nargs="+",
        type=int,
        default=[],
        metavar="E",
        help="test the networks after these epochs too, for Dice over the epochs (default: at the end only)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="METHOD",
        help="these methods only (default: all): plain, augmented, augmented-long, ensemble, augmented-ensemble, "
        "propagation, propagation-local, atlasnet-unaugmented, atlasnet",
    )
    parser.add_argument(
        "--observer", nargs="+", type=Path, default=[], metavar="DIR", help="other people's segmentations of the tests"
    )
    add_mask_option(parser, "training, predictions and scores of all methods are restricted to it")
    add_fusion_option(parser, learnt=False)
    add_patch_options(parser)
    add_network_options(parser)
    add_spacing_option(parser)
    add_dry_run_option(parser)
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Train, test, compare; what an earlier call finished is used again."""
    require_folder(args.data)
    require_writable(args.output / "settings.json")
    from atlasnet.cohort import Cohort, masked, with_masks
    from atlasnet.execution import hold_folder
    from atlasnet.study import (
        PAGE,
        StudyOptions,
        forecast_study,
        main_table,
        read_test_subjects,
        run_study,
        write_study,
    )
    from atlasnet.training.subjects import read_names

    execution = execution_from(args)
    cohort = Cohort.read(args.data, reporter=args.reporter)
    wanted = None if args.test_subjects is None else read_names(args.test_subjects)
    tests = read_test_subjects(args.test or args.data, cohort, wanted)
    if args.subjects is not None:
        cohort = cohort.select(read_names(args.subjects))
    if args.organ_mask is not None:
        cohort = with_masks(cohort, args.organ_mask)
        tests = tuple(masked(tests, args.organ_mask))
    options = StudyOptions(
        atlases=tuple(args.atlas) if args.atlas else args.atlases,
        methods=None if args.only is None else tuple(args.only),
        seeds=args.seeds,
        fractions=tuple(args.fractions),
        fraction_of=args.fraction_of,
        curve_epochs=tuple(args.curve_epochs),
        preset=args.preset,
        epochs=args.epochs,
        sharing=args.sharing,
        network=args.network,
        allow_module=args.allow_module,
        width=args.width,
        spacing=spacing_from(args),
        operator=args.registration,
        operator_settings=registration_from(args),
        loss_weights=loss_weights_from(args),
        fusion=args.fusion,
        observers=tuple(args.observer),
        patches=patches_from(args),
    )
    if args.dry_run:
        plan = forecast_study(cohort, tests, args.output, options, execution=execution)
        tell(args, as_text(study_lines(plan, args.output)), plan.to_json())
        return 0
    with hold_folder(args.output):  # the page too: another call may have added to the study meanwhile
        study = run_study(cohort, tests, args.output, options, execution=execution)
        found = write_study(study, tests, modality=cohort.channels[0])
    tell(args, f"{main_table(found)}\n\npage: {args.output / PAGE}", found)
    return 1 if any(row["failed"] for row in found["methods"].values()) else 0

"""``atlasnet train``: from annotated scans to a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.cli.dry_run import add_dry_run_option, as_text, fold_lines, training_lines
from atlasnet.cli.options import (
    add_execution_options,
    add_mask_option,
    add_network_options,
    add_quality_option,
    add_spacing_option,
    execution_from,
    loss_weights_from,
    registration_from,
    require_writable,
    spacing_from,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError, require_folder
from atlasnet.wording import counted

if TYPE_CHECKING:
    from atlasnet.cohort import Cohort
    from atlasnet.execution import Execution
    from atlasnet.study.folds import Folds
    from atlasnet.training.model import Model
    from atlasnet.training.options import FitOptions

ANY_FOLDS = "as many as usual"  # where --folds stands alone
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_TIME = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")

HELP = "train a model: choose atlases, register every subject onto them, train one network per atlas"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of annotated scans (see: atlasnet check)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="folder of the model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--atlases",
        type=int,
        metavar="N",
        help="choose N atlases among the subjects (default: 6, or all subjects); with --update, so many in all",
    )
    which.add_argument(
        "--atlas",
        action="append",
        metavar="CASE",
        help="a subject's name or an image file; repeat it for several; with --update, it is added",
    )
    parser.add_argument(
        "--atlas-images",
        type=Path,
        metavar="DIR",
        help="choose the atlases among these scans too, which nobody need have annotated; with few subjects more "
        "atlases than these are worth their time",
    )
    parser.add_argument(
        "--update",
        type=Path,
        metavar="MODEL",
        help="start from this model, which stays as it is: plan, registration and atlases are kept, only new pairs are "
        "registered, the networks go on from its weights; DATA holds all subjects, old and new",
    )
    parser.add_argument("--subjects", type=Path, metavar="FILE", help="train on these subjects only, one name a line")
    add_mask_option(parser, "what lies outside trains nothing, and is background in predictions, which need masks too")
    add_network_options(parser, updates=True)
    add_spacing_option(parser)
    add_quality_option(parser, "leave a subject out of the training of an atlas's network")
    parser.add_argument(
        "--time-budget",
        type=_seconds,
        metavar="TIME",
        help="as many epochs as fit into 90s, 30m, 2h or 1h30m of training, registration included, at most the "
        "preset's; with --folds for each model",
    )
    parser.add_argument(
        "--folds",
        nargs="?",
        const=ANY_FOLDS,
        metavar="K|FILE",
        help="cross-validate as well, into MODEL/cross_validation, in K folds (default: 5; with fewer than 10 subjects "
        "each is left out in turn) or in those of a file: nnU-Net's splits_final.json, or lists of names in JSON",
    )
    parser.add_argument(
        "--only-fold",
        type=int,
        metavar="N",
        help="of --folds, train and apply the model of fold N (from 1) only, as several jobs may do side by side; the "
        "same command without it takes what they made and trains what is missing",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="keep the models of --folds to segment together: predict -m MODEL/cross_validation",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="work folder (default: MODEL/work; with --only-fold in its folder)"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write MODEL/report.html, a page to look at: atlases, registrations, curves, cross-validation",
    )
    add_dry_run_option(parser)
    add_execution_options(parser)


def _folds(text: str) -> Folds | None:
    """What ``--folds`` asks for: a number, a file, or nothing in particular."""
    from atlasnet.study import read_folds

    if text == ANY_FOLDS:
        return None
    try:
        return int(text)
    except ValueError:
        return read_folds(text)


def _seconds(text: str) -> float:
    """A time such as 90s, 30m, 2h or 1h30m; a number alone is seconds."""
    found = _TIME.fullmatch(f"{text}s" if re.fullmatch(_NUMBER, text) else text)
    parts = [] if found is None else [float(part or 0) for part in found.groups()]
    seconds = sum(unit * part for unit, part in zip((3600, 60, 1), parts, strict=False))
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected something like 90s, 30m, 2h or 1h30m")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Train, and print where the model lies."""
    require_folder(args.data)
    require_writable(args.output / "model.json")
    from atlasnet.atlas import scans_beside
    from atlasnet.cohort import Cohort, with_masks
    from atlasnet.study import CROSS_VALIDATION, fold_of, plan_folds, validate_fold, validate_model
    from atlasnet.training.fit import fit
    from atlasnet.training.model import Model
    from atlasnet.training.options import FitOptions
    from atlasnet.training.subjects import read_names

    execution = execution_from(args)
    if args.update is not None and args.folds is not None:
        raise InputError(
            "a model that is updated cannot be cross-validated: it has seen the subjects that would be left out",
            remedy="cross-validate without --update",
        )
    if args.ensemble and args.folds is None:
        raise InputError("there are no models to make an ensemble of", remedy="add --folds")
    _check_only_fold(args)
    update = None if args.update is None else Model.load(args.update)
    cohort = Cohort.read(args.data, reporter=args.reporter)
    if args.subjects is not None:
        cohort = cohort.select(read_names(args.subjects))
    if args.organ_mask is not None:
        cohort = with_masks(cohort, args.organ_mask)
    options = FitOptions(
        atlases=tuple(args.atlas) if args.atlas else args.atlases,
        atlas_images=() if args.atlas_images is None else scans_beside(cohort, args.atlas_images),
        network=args.network,
        allow_module=args.allow_module,
        width=args.width,
        preset=args.preset,
        epochs=args.epochs,
        spacing=spacing_from(args),
        sharing=args.sharing,
        operator=args.registration,
        operator_settings=registration_from(args),
        loss_weights=loss_weights_from(args),
        minimum_quality=args.minimum_quality,
        time_budget=args.time_budget,
    )
    work = args.work or args.output / "work"
    folds = None
    if args.folds is not None:
        # What is wrong with the folds is said before hours of training.
        folds = plan_folds(cohort, args.output / CROSS_VALIDATION, options, _folds(args.folds), execution)
        if args.only_fold is not None:
            fold_of(folds, args.only_fold)
    if args.dry_run:
        return _dry_run(args, cohort, options, update, folds, work, execution)
    if folds is not None and args.only_fold is not None:
        trained = validate_fold(
            args.output, cohort, options, folds, args.only_fold, work=args.work, execution=execution
        )
        tell(args, trained.text(), trained.as_json())
        return 1 if trained.missing else 0
    model = fit(cohort, args.output, options, update=update, work=work, execution=execution)
    result: dict[str, Any] = {"model": str(args.output), "atlases": [atlas.name for atlas in model.atlases]}
    result["unlike"] = list(model.unlike)
    text = f"model with {counted(len(model.atlases), 'atlas')}: {args.output}"
    # Hours ago this was a warning.
    text += "".join(f"\nlook at it again: {found}" for found in model.unlike)
    failed = False
    if folds is not None:
        folder = args.output / CROSS_VALIDATION
        _, found = validate_model(model, cohort, options, folds, ensemble=args.ensemble, work=work, execution=execution)
        result["cross_validation"] = found.as_json()
        text += f"\n{found.text()}\ntable: {folder / 'table.json'}"
        failed = bool(found.table.missing)
        if args.ensemble:
            result["ensemble"] = str(folder)
            text += f"\nensemble of {counted(len(found.folds), 'model')}: {folder}"
    if args.report:
        from atlasnet.report import write_training_report
        from atlasnet.training.registered import registered_pairs

        pairs = registered_pairs(model, cohort, work, named=options.named)
        path = write_training_report(
            args.output / "report.html",
            model,
            pairs,
            cross_validation=result.get("cross_validation"),
            execution=execution,
        )
        result["report"] = str(path)
        text += f"\nreport: {path}"
    tell(args, text, result)
    return 1 if failed else 0


def _check_only_fold(args: argparse.Namespace) -> None:
    """Refuse one fold of none, and with it what only all folds have.

    Raises:
        InputError: it is one of these.
    """
    if args.only_fold is None:
        return
    if args.folds is None:
        raise InputError("there are no folds to take one of", remedy="say how many with --folds K")
    for option in ("ensemble", "report"):
        if getattr(args, option):
            raise InputError(
                f"--{option} is for all folds, not for --only-fold",
                remedy="leave it out, and give it with the call that gathers the folds, without --only-fold",
            )


def _dry_run(
    args: argparse.Namespace,
    cohort: Cohort,
    options: FitOptions,
    update: Model | None,
    folds: Sequence[Sequence[str]] | None,
    work: Path,
    execution: Execution,
) -> int:
    from atlasnet.study import CROSS_VALIDATION, changed_plan, fold_name, fold_pairs
    from atlasnet.training.forecast import forecast_fit

    if folds is not None and args.only_fold is not None:
        rest = [subject.name for subject in cohort if subject.name not in folds[args.only_fold - 1]]
        place = args.output / CROSS_VALIDATION / fold_name(args.only_fold)
        earlier = args.output / "work"
        plan = changed_plan(args.output, cohort, options, earlier, execution)
        only = forecast_fit(
            cohort.select(rest), place, options, plan=plan, work=args.work, earlier=earlier, execution=execution
        )
        segmented = f"segmenting the {counted(len(folds[args.only_fold - 1]), 'subject')} left out is not estimated"
        tell(args, as_text([*training_lines(only, place), f"             {segmented}"]), only.to_json())
        return 0
    found = forecast_fit(cohort, args.output, options, update=update, work=work, execution=execution)
    lines, result = training_lines(found, args.output), found.to_json()
    if folds is not None:
        places = [args.output / CROSS_VALIDATION / fold_name(n) for n, _ in enumerate(folds, start=1)]
        missing = [fold for fold, place in zip(folds, places, strict=True) if not (place / "model.json").is_file()]
        finished, pairs = len(folds) - len(missing), fold_pairs(missing, len(cohort), found.atlases)
        lines += fold_lines(len(folds), finished, pairs, found)
        result["folds"] = {"all": len(folds), "kept": finished, "registrations": pairs}
    tell(args, as_text(lines), result)
    return 0

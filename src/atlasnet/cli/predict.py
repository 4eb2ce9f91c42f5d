"""``atlasnet predict``: from a model and scans to segmentations."""

from __future__ import annotations

import argparse
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from atlasnet.cli.dry_run import add_dry_run_option, as_text, batch_lines
from atlasnet.cli.options import (
    add_execution_options,
    add_fusion_option,
    add_mask_option,
    add_quality_option,
    execution_from,
    make_folder,
    remove_empty,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError, UnusualInputError
from atlasnet.wording import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from atlasnet.cohort import Subject
    from atlasnet.prediction import Predictor
    from atlasnet.prediction.batch import Report

HELP = "segment scans: register onto every atlas, classify, map back, fuse"

_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd")
# Names of folders may have dots; few end in what looks like the suffix of a file.
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]{2,5}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="image files, folders of cases, DICOM folders or zips"
    )
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        action="append",
        required=True,
        metavar="MODEL",
        help="folder or zip of the model; repeat it for several that segment together, or name the cross_validation "
        "folder of train --folds --ensemble, or its zip",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="with an image suffix a file, else a folder with CASE.nii.gz and CASE.json for each case; beside them "
        "names and colours of the labels, for ITK-SNAP (.label) and 3D Slicer (.ctbl)",
    )
    parser.add_argument(
        "--suffix",
        choices=_SUFFIXES,
        help="of the label maps in a folder (default: .nii.gz); .seg.nrrd is a segmentation of 3D Slicer, with names "
        "and colours",
    )
    parser.add_argument(
        "--name-from",
        default="file",
        choices=("file", "folder"),
        help="what cases are called after: their files, or the folders in which these lie, for patients/*/ct.nrrd "
        "(default: file)",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATTERN",
        help="every INPUT is the folder of one case, and this its image, such as ct.nii.gz or '*_t1.nii.gz'; once for "
        "each channel of the model, in their order",
    )
    parser.add_argument(
        "--series",
        action="append",
        metavar="S",
        help="the DICOM series, where an input holds several: its number, UID or description ('*t1*' will do); once "
        "for each channel of the model, in their order",
    )
    parser.add_argument(
        "--dicom-seg", action="store_true", help="also write CASE_seg.dcm, a DICOM segmentation of the DICOM input"
    )
    parser.add_argument(
        "--rtstruct", action="store_true", help="also write CASE_rtstruct.dcm, a DICOM structure set of the DICOM input"
    )
    parser.add_argument("--probabilities", action="store_true", help="also write CASE_probabilities.nii.gz")
    parser.add_argument(
        "--agreement",
        action="store_true",
        help="also write CASE_agreement.nii.gz (share of atlases that voted for the result) and CASE_entropy.nii.gz",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write CASE_report.html, a page to look at; into a folder also report.html, a row for each case",
    )
    add_mask_option(parser, "the result is background outside; of a single case, its file will do")
    add_fusion_option(parser)
    add_quality_option(parser, "do not ask an atlas")
    parser.add_argument("--largest-component", action="store_true", help="keep the largest component of each structure")
    parser.add_argument(
        "--minimum-size", type=float, default=0.0, metavar="ML", help="drop components of fewer millilitres"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="segment every case anew (default: keep those that are there, of the same model, input and options)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse scans unlike the training subjects: write nothing for them, exit code 3 (default: warn)",
    )
    parser.add_argument("--allow-module", action="store_true", help="import the module that the model's network names")
    add_dry_run_option(parser)
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Predict case after case; one that fails or is refused is reported at the end and makes the exit code 1 or 3."""
    from atlasnet.cohort import masked
    from atlasnet.execution import say
    from atlasnet.prediction import (
        Ensemble,
        PredictOptions,
        Predictor,
        find_cases,
        predict_cases,
        unread,
        warn_of_unread,
        write_label_tables,
    )
    from atlasnet.prediction.batch import wanted_outputs
    from atlasnet.prediction.dicom import require_dicom, require_writers
    from atlasnet.prediction.forecast import forecast_cases
    from atlasnet.volume.names import image_stem

    _check_place(args.output)
    execution = execution_from(args)
    wants_dicom = args.dicom_seg or args.rtstruct
    if wants_dicom:
        require_writers()
    models = Ensemble.load(args.model)
    cases = find_cases(args.inputs, len(models.channels), args.series, images=args.image, name_from=args.name_from)
    left = unread(args.inputs, cases, picked=bool(args.image))
    strays = [path for path in args.inputs if path in left]  # an error, told at the end
    warn_of_unread([path for path in left if path not in strays], execution.reporter)
    if wants_dicom:
        require_dicom(cases)
    if args.organ_mask is not None:
        cases = masked(cases, args.organ_mask)
    models.check_masks(cases)
    paths = _places(args.output, cases, args.inputs, args.suffix)
    _check_found_again(paths.values(), args.inputs, args.image)
    stem = image_stem(args.output)  # of the one file, None of a folder
    options = PredictOptions(
        fusion=args.fusion,
        probabilities=args.probabilities,
        agreement=args.agreement,
        largest_component=args.largest_component,
        minimum_size_ml=args.minimum_size,
        minimum_quality=args.minimum_quality,
        strict=args.strict,
    )
    if args.dry_run:
        found = forecast_cases(
            models,
            cases,
            paths,
            options,
            outputs=wanted_outputs(options, dicom_seg=args.dicom_seg, rtstruct=args.rtstruct, report=args.report),
            report=_report if args.report else None,
            overwrite=args.overwrite,
            allow_module=args.allow_module,
            execution=execution,
        )
        tell(args, as_text(batch_lines(found, args.output)), found.to_json() | {"not_read": list(map(str, left))})
        _tell_strays(strays)
        return 1 if found.unreadable or strays else 0
    models.check(options)
    folder = next(iter(paths.values())).parent if paths else args.output
    made = make_folder(folder)
    predictor = Predictor(models, execution=execution, allow_module=args.allow_module)
    batch = predict_cases(
        predictor,
        cases,
        paths,
        options,
        dicom_seg=args.dicom_seg,
        rtstruct=args.rtstruct,
        report=_report(predictor) if args.report else None,
        overwrite=args.overwrite,
    )
    problems = {**batch.failed, **batch.refused}
    unwritten: OSError | None = None
    try:
        if stem is None:
            from atlasnet.report import write_beside_cases

            page = args.report and not (len(cases) == 1 and problems)  # of one case alone that failed, nothing is left
            write_beside_cases(args.output, batch, models, report=page, reporter=execution.reporter)
        elif batch.written or batch.kept:
            write_label_tables(args.output.with_name(stem), models.segments, reporter=execution.reporter)
    except OSError as problem:  # what became of the cases is told all the same
        unwritten = problem
    remove_empty(made)
    result = {
        "written": {name: str(path) for name, path in batch.written.items()},
        "kept": {name: str(path) for name, path in batch.kept.items()},
        "failed": {name: str(error) for name, error in batch.failed.items()},
        "refused": {name: str(error) for name, error in batch.refused.items()},
        "not_read": list(map(str, left)),
    }
    if len(cases) == 1 and problems:
        if args.json:
            tell(args, batch.summary(), result)
        _tell_strays(strays)
        raise next(iter(problems.values()))
    tell(args, f"{batch.summary()}; in {args.output}", result)
    for name, error in problems.items():
        say(f"atlasnet predict: error: {name}: {error}")
    _tell_strays(strays)
    if unwritten is not None:
        raise unwritten
    return 1 if batch.failed or strays else UnusualInputError.exit_code if batch.refused else 0


def _tell_strays(strays: Sequence[Path]) -> None:
    """Name inputs that are no scans, if any."""
    if strays:
        from atlasnet.execution import say

        names = shortened([str(path) for path in strays])
        say(f"atlasnet predict: error: no scan, and not read: {names}")


def _report(predictor: Predictor) -> Report:
    from atlasnet.report import PredictionReport

    return PredictionReport(predictor)


def _check_place(output: Path) -> None:
    """Refuse the name of an image that cannot be written, what looks like that of another file, and what is in the way.

    Raises:
        InputError: it is one.
    """
    from atlasnet.volume.names import image_stem, image_suffix
    from atlasnet.volume.writing import WRITABLE_SUFFIXES

    if image_stem(output) is not None and image_suffix(output) not in WRITABLE_SUFFIXES:
        raise InputError("no such image can be written", path=output, expected=" ".join(WRITABLE_SUFFIXES))
    if image_stem(output) is None and output.exists() and not output.is_dir():
        raise InputError(
            "the output folder cannot be made: a file of that name exists", path=output, remedy="name another after -o"
        )
    if (output / "report.html").is_dir():
        raise InputError("the page would take the place of a folder", path=output / "report.html")
    if image_stem(output) is None and _FILE_SUFFIX.fullmatch(output.suffix) and not output.is_dir():
        raise InputError(
            "this is the name of a file that cannot be written",
            path=output,
            expected=f"a folder, or a name that ends in {' '.join(WRITABLE_SUFFIXES)}",
            found=output.suffix,
            remedy="name a folder; with --dicom-seg and --rtstruct DICOM is written into it too",
        )


def _check_found_again(results: Iterable[Path], folders: Sequence[Path], images: Sequence[str]) -> None:
    """Refuse results that the next call would take for images of a case.

    Raises:
        InputError: one would lie in the folder of a case and fit a pattern of its images.
    """
    from atlasnet.volume.names import fits

    around = {folder.resolve() for folder in folders}
    for result in results:
        place = result.resolve()
        names = [place.relative_to(folder).as_posix() for folder in place.parents if folder in around]
        if any(fits(*both) for both in product(names, images)):
            raise InputError(
                "the result would lie in the folder of a case, and the next call would take it for an image",
                path=result,
                remedy="give another folder after -o, or a pattern that it does not fit",
            )


def _places(output: Path, cases: Sequence[Subject], inputs: Sequence[Path], suffix: str | None) -> dict[str, Path]:
    """Where the labels of each case go.

    Raises:
        InputError: several cases would go into one file, or results among the scans of a folder; a suffix for a file
            that has one.
    """
    from atlasnet.volume.names import image_stem

    if image_stem(output) is None:
        if any(path.is_dir() and path.resolve() == output.resolve() for path in inputs):
            raise InputError(
                "results would lie among the scans, and the next call would take them for scans",
                path=output,
                remedy="give another folder after -o",
            )
        return {case.name: output / f"{case.name}{suffix or _SUFFIXES[0]}" for case in cases}
    if suffix is not None:
        raise InputError("--suffix is for a folder of results", path=output, remedy="leave it out")
    if len(cases) != 1:
        raise InputError(
            f"{len(cases)} cases cannot be written to one file", path=output, remedy="give a folder after -o"
        )
    return {cases[0].name: output}

"""``atlasnet predict``: from a model and scans to segmentations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from atlasnet.cli.options import add_execution_options, add_fusion_option, execution_from, make_folder

HELP = "segment scans: register onto every atlas, classify, map back, fuse"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="image files, folders of cases, DICOM folders or zips"
    )
    parser.add_argument("-m", "--model", type=Path, required=True, metavar="MODEL", help="folder or zip of the model")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="with an image suffix a file, else a folder with CASE.nii.gz and CASE.json for each case",
    )
    parser.add_argument("--series", metavar="S", help="number or UID of the DICOM series, where an input holds several")
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
    add_fusion_option(parser)
    parser.add_argument("--largest-component", action="store_true", help="keep the largest component of each label")
    parser.add_argument(
        "--minimum-size", type=float, default=0.0, metavar="ML", help="drop components of fewer millilitres"
    )
    parser.add_argument("--allow-module", action="store_true", help="import the module that the model's network names")
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Predict case after case; a case that fails is reported at the end and makes the exit code 1."""
    from atlasnet.errors import AtlasNetError, Cancelled, InputError
    from atlasnet.prediction import PredictOptions, Predictor, find_cases, write_prediction
    from atlasnet.prediction.dicom import find_origin, require_dicom, require_writers
    from atlasnet.prediction.inputs import image_stem
    from atlasnet.training.model import Model
    from atlasnet.volume.io import WRITABLE_SUFFIXES, image_suffix

    execution = execution_from(args)
    wants_dicom = args.dicom_seg or args.rtstruct
    if wants_dicom:
        require_writers()
    model = Model.load(args.model)
    cases = find_cases(args.inputs, len(model.channels), args.series)
    if wants_dicom:
        require_dicom(cases)
    single = image_stem(args.output) is not None
    if single and len(cases) != 1:
        raise InputError(
            f"{len(cases)} cases cannot be written to one file", path=args.output, remedy="give a folder after -o"
        )
    if single and image_suffix(args.output) not in WRITABLE_SUFFIXES:
        raise InputError("no such image can be written", path=args.output, expected=" ".join(WRITABLE_SUFFIXES))
    make_folder(args.output.parent if single else args.output)
    options = PredictOptions(
        fusion=args.fusion,
        probabilities=args.probabilities,
        agreement=args.agreement,
        largest_component=args.largest_component,
        minimum_size_ml=args.minimum_size,
    )
    predictor = Predictor(model, execution=execution, allow_module=args.allow_module)
    failures: dict[str, str] = {}
    written: dict[str, str] = {}
    for case in execution.reporter.track(cases, "segmenting", len(cases)):
        path = args.output if single else args.output / f"{case.name}.nii.gz"
        try:
            origin = find_origin(case, model) if wants_dicom else None
            prediction = predictor.predict(case.read_image(), options)
        except Cancelled:
            raise
        except AtlasNetError as error:
            if len(cases) == 1:
                raise
            failures[case.name] = str(error)
            execution.reporter.warn(f"{case.name}: {error}")
            continue
        write_prediction(
            prediction, path, case=case, model=model, origin=origin, dicom_seg=args.dicom_seg, rtstruct=args.rtstruct
        )
        written[case.name] = str(path)
        if not args.quiet and not args.json:
            execution.reporter.note(f"{case.name}: {prediction.summary()}")
    if args.json:
        print(json.dumps({"written": written, "failed": failures}))
    elif failures and not args.quiet:
        print(f"{len(failures)} of {len(cases)} cases failed: {', '.join(failures)}")
    return 1 if failures else 0

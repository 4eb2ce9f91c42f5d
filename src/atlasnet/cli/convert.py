"""``atlasnet convert``: make a cohort of what annotation tools leave behind."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from atlasnet.cli.options import add_output_options, named_list, require_writable
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError, require_folder
from atlasnet.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlasnet.cohort.conversion import Conversion

HELP = "make a cohort of cases with a mask for each structure, Slicer or DICOM segmentations, or structure sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("source", type=Path, metavar="CASES", help="folder that holds a folder for each case")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DATA", help="the cohort, in nnU-Net's layout: a new folder"
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME",
        help="what the images show: CT (in Hounsfield units), or T1, FLAIR, ...; once for each --image or --series, "
        "or for each channel of the one image that holds them all (default: the modality, where all are DICOM)",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATTERN",
        help="the image in each case's folder, such as ct.nii.gz or '*_t1.nii.gz'; once for each channel "
        "(default: the only image in the folder itself, or its DICOM series)",
    )
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="S",
        help="the DICOM series in each case's folder, or in its --image: number, UID or description ('*t1*' will do); "
        "once for each channel (default: the one on which the structures were drawn, or the only one)",
    )
    parser.add_argument(
        "--structures",
        metavar="PATTERN",
        help="what is annotated, in each case's folder: a folder of masks, a label map, a .seg.nrrd, a DICOM "
        "segmentation or structure set; . for masks beside the image (default: the only one of these)",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME[=STRUCTURE,...]",
        help="a label, and the structures that it unites; once for each label, in the order of their values; later "
        "ones cover earlier ones (default: a label for each structure, which must not overlap)",
    )
    parser.add_argument(
        "--overlapping",
        action="store_true",
        help="structures may overlap, or lie within each other, and are kept whole: voxels of several have a value of "
        "their own, and dataset.json says which values a structure has",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="a structure that a case does not have is not there in the patient"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="a structure that a case does not have was not annotated there: dataset.json says which were, and where "
        "the others are background, they may be; structures that overlap take --overlapping, and of structures that "
        "are united a part alone is left out",
    )
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was made.

    Raises:
        InputError: a case cannot be converted, or the options contradict each other.
    """
    require_folder(args.source)
    require_writable(args.output)
    labels = _labels(args.label)
    from atlasnet.cohort.conversion import convert_cohort

    conversion = convert_cohort(
        args.source,
        args.output,
        channels=args.channel,
        images=args.image,
        series=args.series,
        structures=args.structures,
        labels=labels or None,
        overlapping=args.overlapping,
        allow_missing=args.allow_missing,
        partial=args.partial,
        reporter=args.reporter,
    )
    tell(args, "\n".join(_lines(conversion)), conversion.to_json())
    return 0


def _labels(texts: Sequence[str]) -> dict[str, list[str]]:
    labels: dict[str, list[str]] = {}
    for text in texts:
        name, structures = named_list(text)
        if not name or name in labels:
            raise InputError(
                "a label is not understood" if name not in labels else "a label is named twice",
                expected="--label NAME or --label NAME=STRUCTURE,STRUCTURE, once for each label",
                found=repr(text),
            )
        labels[name] = [name] if structures is None else structures
    return labels


def _lines(conversion: Conversion) -> list[str]:
    from atlasnet.cohort.structures import shown

    labels = ", ".join(f"{name} = {shown(values)}" for name, values in conversion.labels.items())
    channels = ", ".join(conversion.channels)
    return [
        *(f"note: {note}" for note in conversion.notes),
        f"{conversion.folder}: {counted(len(conversion.cases), 'case')}; channels: {channels}; {labels}",
        f"next: atlasnet check {conversion.folder}",
    ]

"""``atlasnet register``: map one image onto another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet import __version__
from atlasnet.cli.options import (
    OPERATORS,
    REGISTRATION_PRESETS,
    add_execution_options,
    add_metrics_option,
    execution_from,
    make_folder,
    metric_settings,
    remove_empty,
)
from atlasnet.cli.register_inputs import (
    check_apart,
    check_folder,
    check_overlap,
    check_range,
    given_map,
    labels_on,
    read_images,
    require_memory,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError

if TYPE_CHECKING:
    from atlasnet.registration import Operator
    from atlasnet.transform import Transform
    from atlasnet.volume import Volume

HELP = "map one image onto another, with the inverse map and a quality record"

WARPED = "warped.nii.gz"
LABELS = "warped_labels.nii.gz"
TRANSFORM = "transform.safetensors"
RECORD = "record.json"
FIELD = "displacement.nii.gz"
INVERSE_FIELD = "inverse_displacement.nii.gz"
ITK = "transform.h5"
INVERSE_ITK = "inverse_transform.h5"
PREVIEW = "preview.png"
REPORT = "report.html"
_MAPS = f"a {TRANSFORM}, an ITK transform (.mat, .tfm, .h5), or an image of displacements such as {FIELD}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="the image that is warped (file, DICOM folder or zip)"
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="the image onto which it is warped")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    for which in ("source", "target"):
        parser.add_argument(
            f"--{which}-channel",
            type=Path,
            action="append",
            default=[],
            metavar="F",
            help=f"another channel of the {which}, of the same place; once for each, in the order of the other image's",
        )
    parser.add_argument(
        "--channels",
        action="store_true",
        help="the fourth axis of SOURCE and TARGET, or a vector a voxel, holds channels",
    )
    for which in ("source", "target"):
        parser.add_argument(
            f"--{which}-series",
            action="append",
            default=[],
            metavar="S",
            help=f"the {which}'s DICOM series, where there are several: its number, UID or description; once for each "
            f"channel: of {which.upper()}, or one of {which.upper()} and one of each --{which}-channel",
        )
    parser.add_argument("--source-labels", type=Path, metavar="F", help=f"label map of the source to carry: {LABELS}")
    parser.add_argument(
        "--target-labels",
        type=Path,
        metavar="F",
        help="label map of the target: the record says how well each label fits, with --source-labels its Dice too",
    )
    parser.add_argument(
        "--fields", action="store_true", help=f"also write {FIELD} and {INVERSE_FIELD}: ITK vectors in LPS mm"
    )
    parser.add_argument(
        "--itk",
        action="store_true",
        help=f"also write {ITK} and {INVERSE_ITK}: transforms of ITK for SimpleITK, ANTs and 3D Slicer",
    )
    parser.add_argument("--preview", action="store_true", help=f"also draw {PREVIEW}: a checkerboard and the Jacobian")
    parser.add_argument("--report", action="store_true", help=f"also write {REPORT}, a page to look at")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--no-affine", action="store_true", help="trust the headers: no affine alignment first")
    start.add_argument("--initial", type=Path, metavar="F", help=f"start from this map: {_MAPS}")
    start.add_argument(
        "--landmarks",
        type=Path,
        metavar="F",
        help="start from corresponding points: a CSV of x,y,z in the target and x,y,z in the source, LPS mm",
    )
    start.add_argument("--transform", type=Path, metavar="F", help="apply this map, one of the same; register nothing")
    parser.add_argument("--source-mask", type=Path, metavar="F", help="non-zero where the source counts")
    parser.add_argument("--target-mask", type=Path, metavar="F", help="non-zero where the target counts")
    group = parser.add_argument_group("the registration")
    group.add_argument(
        "--operator",
        choices=OPERATORS,
        default="mrf",
        help="what registers (default: mrf); the last three need the extra of that name: pip install '.[ants]'"
        " in its source",
    )
    group.add_argument(
        "--preset",
        choices=REGISTRATION_PRESETS,
        default="default",
        help="fast: at most 400,000 voxels; fine: at most 4 million; publication: mutual information, "
        "cross-correlation and wavelets (default: default, at most 1.5 million)",
    )
    group.add_argument("--spacing", type=float, metavar="MM", help="voxel size at which to register (default: by size)")
    group.add_argument(
        "--symmetric",
        action="store_true",
        help="the mean of both directions: neither image is favoured; twice the time",
    )
    group.add_argument("--alpha", type=float, metavar="A", help="weight of the smoothness (default: 0.1)")
    add_metrics_option(group, "labels of the source, else of the target, say which tissue is where")
    group.add_argument(
        "--mi-range",
        nargs=2,
        type=float,
        action="append",
        metavar=("LOW", "HIGH"),
        help="intensities of the 16 histogram bins (default: -900 100 for CT, robust percentiles for other images); "
        "once for each channel",
    )
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Read and check everything, register, then write."""
    from atlasnet.cohort import Subject
    from atlasnet.execution import hold_folder
    from atlasnet.registration import contextual, regional_quality, register_images
    from atlasnet.volume.kept import kept_open

    check_folder(args.output)
    operator = _operator(args)
    execution = execution_from(args)
    with kept_open():
        channels = max(1 + len(args.source_channel), len(args.source_series))
        require_memory(args, operator, execution, channels)
        source, target = read_images(args)
    if args.channels:
        require_memory(args, operator, execution, source.channels)
    check_range(args, source, target)
    labels = labels_on(source, args.source_labels)
    target_labels = labels_on(target, args.target_labels)
    given = given_map(args)
    check_overlap(args, given, source, target)
    tissue: dict[str, Volume | None] = {}
    if contextual(operator):
        tissue = {"source_labels": labels, "target_labels": target_labels}
        if labels is None and target_labels is None:
            execution.reporter.note("no labels are given: the class-free average of the metric weights holds")
    masks = [
        Subject("", (path,), mask=mask).read_mask(image.grid)
        for path, mask, image in ((args.source, args.source_mask, source), (args.target, args.target_mask, target))
    ]
    check_apart(args, (WARPED, LABELS, FIELD, INVERSE_FIELD))
    made = make_folder(args.output)
    doing = "registering" if args.transform is None else "mapping"
    execution.reporter.note(f"{doing} {args.source} onto {args.target}")
    try:
        with hold_folder(args.output):
            result = register_images(
                source,
                target,
                operator=operator,
                source_mask=masks[0],
                target_mask=masks[1],
                initial=given.transform,
                **tissue,
                execution=execution,
            )
            record = {**result.record, **given.with_errors(result.transform), "provenance": _provenance(args)}
            if target_labels is not None:
                record["regions"] = regional_quality(
                    source,
                    target,
                    result.transform,
                    target_labels,
                    labels,
                    clamp=getattr(operator, "clamp", None),
                    mi_range=getattr(operator, "mi_range", None),
                    execution=execution,
                )
            _write(args, source, target, labels, result.transform, record)
    except BaseException:
        remove_empty(made)
        raise
    tell(args, _summary(args, record), record)
    return 0


def _provenance(args: argparse.Namespace) -> dict[str, Any]:
    """What a map is made of, and by: hashes and a version; files are often called after the patient."""
    from atlasnet.volume import volume_digest

    images = [f"{which}{kind}" for kind in ("", "_mask", "_labels") for which in ("source", "target")]
    named = [(name, getattr(args, name)) for name in (*images, "initial", "landmarks", "transform")]
    for which in ("source", "target"):
        more = getattr(args, f"{which}_channel")
        named += [(f"{which}_channel_{number}", path) for number, path in enumerate(more, start=1)]
    read = {name: path for name, path in named if path is not None}
    return {"atlasnet": __version__, "input_sha256": {name: volume_digest(path) for name, path in read.items()}}


def _operator(args: argparse.Namespace) -> Operator:
    """The operator that the options describe.

    Raises:
        InputError: options that it does not have, or values that make no sense.
    """
    from atlasnet.registration import WITHOUT_SPACING, make_operator, preset

    named = ("alpha", "spacing", "mi_range")
    settings = {**metric_settings(args.metrics), **{n: v for n in named if (v := getattr(args, n)) is not None}}
    if args.no_affine:
        settings["affine"] = False
    if args.symmetric:
        settings["symmetric"] = True
    settings = {**preset(args.preset, settings.get("metrics")), **settings}
    if args.transform is not None and (settings or args.operator != "mrf"):
        raise InputError(
            "--transform registers nothing",
            found="options of a registration",
            remedy="leave them out, or use --initial",
        )
    taken = set() if args.operator in WITHOUT_SPACING else {"spacing", "affine"}
    if args.operator != "mrf" and not taken.issuperset(settings):
        raise InputError(
            f"operator {args.operator!r} does not take these options",
            found=", ".join(sorted(set(settings) - taken)),
            remedy="leave them out, or use --operator mrf",
        )
    return make_operator("identity" if args.transform else args.operator, **settings)


def _write(
    args: argparse.Namespace,
    source: Volume,
    target: Volume,
    labels: Volume | None,
    transform: Transform,
    record: dict[str, Any],
) -> None:
    """Write every file whole; what an earlier run left and this one does not replace goes: it describes another map."""
    from atlasnet.execution import remove_begun, write_json
    from atlasnet.transform import write_itk_field, write_itk_transform
    from atlasnet.volume import write_labels, write_volume

    folder = args.output
    names = (RECORD, LABELS, FIELD, INVERSE_FIELD, ITK, INVERSE_ITK, PREVIEW, REPORT)
    remove_begun(folder / name for name in (TRANSFORM, WARPED, *names))
    # The record says that everything beside it belongs together, so it goes first and comes last. Where there is
    # neither it nor a transform, which a run that was stopped has written, what lies there is not ours.
    if (folder / RECORD).is_file() or (folder / TRANSFORM).is_file():
        for name in names:
            (folder / name).unlink(missing_ok=True)
    transform.save(folder / TRANSFORM)
    warped = _warped(source, target, transform)
    write_volume(folder / WARPED, warped)
    if labels is not None:
        write_labels(folder / LABELS, transform.warp(labels, target.grid, interpolation="label"))
    if args.fields:
        write_itk_field(folder / FIELD, transform.forward, target.grid)
        write_itk_field(folder / INVERSE_FIELD, transform.backward, source.grid)
    if args.itk:
        write_itk_transform(folder / ITK, transform.forward, target.grid)
        write_itk_transform(folder / INVERSE_ITK, transform.backward, source.grid)
    if args.preview:
        _draw(folder / PREVIEW, target, warped, transform, f"{args.source.name} onto {args.target.name}")
    if args.report:
        from atlasnet.report import write_registration_report
        from atlasnet.volume.names import image_stem

        write_registration_report(
            folder / REPORT,
            target=target,
            source=source,
            warped=warped,
            transform=transform,
            record=record,
            names=(image_stem(args.target) or args.target.name, image_stem(args.source) or args.source.name),
            modality=_modality(target),
        )
    write_json(folder / RECORD, record)


def _warped(source: Volume, target: Volume, transform: Transform) -> Volume:
    """All channels on the target's grid; where they were not seen, each has its own least value."""
    import numpy as np

    from atlasnet.volume import Volume

    parts = [
        transform.warp(Volume(channel[None], source.grid), target.grid, fill=float(channel.min())).array
        for channel in source.array
    ]
    return Volume(np.concatenate(parts), target.grid)


def _modality(image: Volume) -> str:
    from atlasnet.registration import in_hounsfield_units

    return "CT" if in_hounsfield_units(image.array[0]) else ""


def _draw(path: Path, target: Volume, warped: Volume, transform: Transform, title: str) -> None:
    from atlasnet.report import registration_figure
    from atlasnet.transform import jacobian_determinant
    from atlasnet.volume import Volume

    determinant = jacobian_determinant(transform.displacement(target.grid), target.grid).cpu().numpy()
    registration_figure(
        path,
        target=target,
        warped=warped,
        jacobian=Volume(determinant[None], target.grid),
        modality=_modality(target),
        title=title,
    )


def _summary(args: argparse.Namespace, record: dict[str, Any]) -> str:
    before, after = record["similarity_before"], record["similarity_after"]
    residual = record["inverse_residual_mm"]
    done = "registered" if args.transform is None else "mapped"
    lines = [
        f"{args.output}: {done} in {record['seconds']:.1f} s, quality {record['quality']:.2f}"
        + (f" over {100 * record['covered']:.0f} % of the target" if "covered" in record else ""),
        "similarity " + ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after),
        f"smallest Jacobian {record['jacobian_min']:.3f}, folded voxels {100 * record['folded_share']:.3g} %, "
        f"inverse residual {residual['mean']:.3f} mm (99.9 %: {residual['p999']:.3f} mm)",
    ]
    if "landmarks" in record:
        fit, after = (
            f"{errors['mean']:.2f} mm on average and {errors['max']:.2f} mm at most (pair {errors['worst']})"
            for errors in (record["landmarks"]["fit_mm"], record["landmarks"]["after_mm"])
        )
        lines.append(f"landmarks missed by {fit} in the fit, {after} after the registration")
    for label, found in record.get("regions", {}).items():
        lines.append(f"label {label}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return "\n".join(lines)

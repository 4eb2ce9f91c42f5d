"""``atlasnet model``: look at a model or several that segment together, check them, pack them for others and unpack."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.cli.options import add_output_options, require_writable
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError
from atlasnet.wording import counted, lengths, size

if TYPE_CHECKING:
    from atlasnet.prediction import Ensemble

WHICH = "folder or zip of the model, or of several: the cross_validation folder of train --folds --ensemble"
HELP = "look at a model, verify its files, export it as one zip, import it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("info", "what it was trained for and how"),
        ("verify", "compare every file with its checksum and read it"),
        ("export", "write it, without its work folder, as one zip"),
        ("import", "unpack such a zip into a new folder, verified"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("model", type=Path, metavar="MODEL", help=WHICH)
        if name in ("export", "import"):
            what = "the zip" if name == "export" else "the new folder"
            action.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=what)
        add_output_options(action)


def run(args: argparse.Namespace) -> int:
    """Do it, and say what was found or written."""
    from atlasnet.prediction import Ensemble, import_models

    if args.action in ("export", "import"):
        require_writable(args.output)
    if args.action == "import":
        models = import_models(args.model, args.output)
        text = f"{'model' if len(models) == 1 else f'ensemble of {len(models)} models'}: {args.output}"
    else:
        models = Ensemble.load([args.model])
        text = _described(models.summary())
        if args.action == "verify":
            text = f"all {_read_all(models)} files are intact"
        elif args.action == "export":
            if args.output.suffix != ".zip":
                raise InputError("a model is exported as a zip", path=args.output, expected="a name that ends in .zip")
            models.export(args.output)
            text = f"written: {args.output}, {size(args.output.stat().st_size / 2**20)}"
    tell(args, text, models.summary())
    return 0


def _read_all(models: Ensemble) -> int:
    """Read what the checksums say is whole; how many files there are."""
    from atlasnet.network.weights import read_tensors

    for model in models.models:
        with model.named():
            for atlas in model.atlases:
                read_tensors(model.weights_path(atlas))
                model.atlas_image(atlas)
    return sum(len(model.checksums) for model in models.models)


def _described(summary: dict[str, Any]) -> str:
    from atlasnet.cohort.structures import regions_shown

    labels = ", ".join(f"{name} = {value}" for name, value in summary["labels"].items() if value)
    regions = "".join(f"; region {name} = {values}" for name, values in regions_shown(summary["regions"]).items())
    what = [f"labels       {labels}{regions}", f"channels     {', '.join(summary['channels'])}"]
    if "models" not in summary:
        return "\n".join(what + _of_one(summary))
    names = ", ".join(model["name"] for model in summary["models"])
    lines = [
        f"models       {len(summary['models'])}, which segment together: {names}",
        *what,
        f"a scan       is registered {counted(summary['registrations'], 'time')}",
        f"size         {size(summary['bytes'] / 2**20)}",
        f"checksum     {summary['checksum']}",
    ]
    for model in summary["models"]:
        lines += ["", model["name"], *(f"  {line}" for line in _of_one(model))]
    return "\n".join(lines)


def _metrics(summary: dict[str, Any]) -> str:
    """What is similar to a registration that was told so."""
    if summary["registration_classes"]:
        return f", metrics learnt for {', '.join(summary['registration_classes'])}"
    metrics = summary["registration_metrics"] or {}
    return "".join(f", {name} {weight:g}" for name, weight in metrics.items())


def _of_one(summary: dict[str, Any]) -> list[str]:
    """What models that segment together need not have in common."""
    network = f"{summary['network']['name']}, width {summary['network']['width']:g}"
    lines = [
        f"network      {network}, voxels of {lengths(summary['network_spacing_mm'])} mm",
        f"epochs       {summary['epochs_of_networks'] or 'not known'}",
        f"registration {summary['registration']}, voxels of {lengths(summary['registration_spacing_mm'])} mm"
        + _metrics(summary),
        f"trained on   {counted(summary['training_subjects'], 'subject')}"
        + (", within organ masks: every scan needs its own" if summary["organ_mask"] else "")
        + "".join(f"; {label} annotated in {count}" for label, count in summary["annotated_in"].items()),
        f"size         {size(summary['bytes'] / 2**20)}",
        f"made with    {', '.join(f'{name} {version}' for name, version in summary['versions'].items())}",
        f"checksum     {summary['checksum']}",
        "atlases      registration quality of the other training subjects: lowest, median, highest",
    ]
    for atlas in summary["atlases"]:
        quality = ", ".join(f"{value:.3f}" for value in atlas["quality"].values())
        seen = "" if atlas["network_sees_mm"] is None else f"; network sees {lengths(atlas['network_sees_mm'])} mm"
        lines.append(f"  {atlas['name']}: {quality or 'there is no other subject'}{seen}")
    return lines

"""``atlasnet model``: look at a model, check it, pack it for others and unpack it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from atlasnet.cli.options import add_output_options
from atlasnet.cli.reporting import tell

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
        action.add_argument("model", type=Path, metavar="MODEL", help="folder or zip of the model")
        if name in ("export", "import"):
            what = "the zip" if name == "export" else "the new folder"
            action.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=what)
        add_output_options(action)


def run(args: argparse.Namespace) -> int:
    """Do it, and say what was found or written."""
    from atlasnet.errors import InputError
    from atlasnet.network.weights import read_tensors
    from atlasnet.training.model import Model, import_model

    if args.action == "import":
        model = import_model(args.model, args.output)
        text = f"model: {args.output}"
    else:
        model = Model.load(args.model)
        text = _described(model.summary())
        if args.action == "verify":
            for atlas in model.atlases:
                read_tensors(model.weights_path(atlas))
                model.atlas_image(atlas)
            text = f"all {len(model.checksums)} files are intact"
        elif args.action == "export":
            if args.output.suffix != ".zip":
                raise InputError("a model is exported as a zip", path=args.output, expected="a name that ends in .zip")
            model.export(args.output)
            text = f"written: {args.output}, {args.output.stat().st_size / 2**20:.1f} MiB"
    tell(args, text, model.summary())
    return 0


def _described(summary: dict[str, Any]) -> str:
    def three(values: list[float]) -> str:
        return " x ".join(f"{value:g}" for value in values)

    labels = ", ".join(f"{name} = {value}" for name, value in summary["labels"].items() if value)
    lines = [
        f"labels       {labels}",
        f"channels     {', '.join(summary['channels'])}",
        f"network      {summary['network']['name']}, voxels of {three(summary['network_spacing_mm'])} mm",
        f"registration {summary['registration']}, voxels of {three(summary['registration_spacing_mm'])} mm",
        f"trained on   {summary['training_subjects']} subjects"
        + (", within organ masks: every scan needs its own" if summary["organ_mask"] else ""),
        f"size         {summary['bytes'] / 2**20:.1f} MiB",
        f"made with    {', '.join(f'{name} {version}' for name, version in summary['versions'].items())}",
        f"checksum     {summary['checksum']}",
        "atlases      registration quality of the other training subjects: lowest, median, highest",
    ]
    for atlas in summary["atlases"]:
        quality = ", ".join(f"{value:.3f}" for value in atlas["quality"].values())
        lines.append(f"  {atlas['name']}: {quality or 'there is no other subject'}")
    return "\n".join(lines)

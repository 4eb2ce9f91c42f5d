"""A registration on one page: what it did to similarity and to space, level by level, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from atlasnet.report.display import Plane, window
from atlasnet.report.page import NO_DEVICE, Page, number
from atlasnet.report.pair import add_panels, add_scale, pair_panels
from atlasnet.report.stack import add_stacks, image_layer, stacks
from atlasnet.report.viewer import Shown, add_viewer
from atlasnet.transform import Transform
from atlasnet.volume import Volume
from atlasnet.wording import lengths

# Voxels of the target that the inverse may miss by at its worst thousandth before the page warns.
LARGEST_RESIDUAL = 1.0
LEAST_FALL = 0.005  # of a similarity that is warned of: interpolation alone makes equal images less alike by some of it


def write_registration_report(
    path: Path,
    *,
    target: Volume,
    source: Volume,
    warped: Volume,
    transform: Transform,
    record: Mapping[str, Any],
    names: tuple[str, str],
    modality: str = "",
) -> Path:
    """Write the page of a registration.

    Args:
        path: of the page.
        target: (c, z, y, x), whose first channel is shown; and so for the others.
        source: that was registered onto it.
        warped: the source on the target's grid.
        transform: takes points of the target into the source.
        record: see `atlasnet.registration.Registration`, with what ``atlasnet register`` adds.
        names: what target and source are called.
        modality: the channel's name; decides the grey windows.
    """
    page = Page(f"Registration: {names[1]} onto {names[0]}")
    page.warnings(
        _warnings(record, target), "No warnings: the map does not fold, and the images fit no worse than before."
    )
    _measured(page, record)
    windows = window(target, modality), window(warped, modality)
    page.heading("Pictures")
    add_scale(page)
    add_panels(page, pair_panels(target, source, transform, modality=modality, names=names, planes=get_args(Plane)))
    page.heading("Slices")
    page.text("The target, and over it the warped source: move the opacity to see whether edges move.")
    layers = [
        image_layer(target, windows[0], caption=names[0]),
        image_layer(warped, windows[1], "warped", "warped source"),
    ]
    add_stacks(page, stacks(target.grid, layers), layers, f"{names[1]} on {names[0]}")
    page.heading("Volume")
    add_viewer(page, [Shown("target", target, window=windows[0]), Shown("warped source", warped, window=windows[1])])
    _levels(page, record)
    page.text(NO_DEVICE, small=True)
    return page.write(path)


def _warnings(record: Mapping[str, Any], target: Volume) -> list[str]:
    found = []
    if record.get("deformation_lost"):
        found.append("The deformation lost the image and was left out: the map is that from which it began.")
    if record["folded_share"] > 0:
        found.append(f"The map folds {100 * record['folded_share']:.3g} % of the target's voxels.")
    before = record["similarity_before"]
    found += [
        f"The similarity {name} fell from {before[name]:.3f} to {after:.3f}."
        for name, after in record["similarity_after"].items()
        if name in before and after <= before[name] - LEAST_FALL
    ]
    residual = record["inverse_residual_mm"]["p999"]
    spacing = float(max(target.grid.spacing))
    if residual > LARGEST_RESIDUAL * spacing:
        found.append(
            f"Forward and inverse map miss each other by {residual:.2f} mm at the worst thousandth of the voxels, "
            f"which are {spacing:.2g} mm wide."
        )
    return found


def _measured(page: Page, record: Mapping[str, Any]) -> None:
    """Similarity, what the map does to space, and time."""
    page.heading("Similarity")
    before, after = record["similarity_before"], record["similarity_after"]
    page.table(["metric", "before", "after"], [[name, number(before.get(name)), number(after[name])] for name in after])
    scale = "0: unrelated images; equal ones have 1, by mutual information about 0.7"
    said = f"Quality: {record['quality']:.3f}, their mean"
    if "covered" in record:
        said += f" over the {record['covered']:.1%} of the target that the source covers"
    page.text(f"{scale}, voxels that the source does not cover 0. {said}.", small=True)
    if record.get("regions"):
        scores = list(next(iter(record["regions"].values())))
        rows = [[label, *(number(found.get(score)) for score in scores)] for label, found in record["regions"].items()]
        page.table(["label of the target", *scores], rows)
    page.heading("Map")
    residual = record["inverse_residual_mm"]
    rows = [
        ["least Jacobian determinant", number(record["jacobian_min"])],
        ["folded voxels, %", number(100 * record["folded_share"], ".3g")],
        ["largest displacement, mm", number(record["max_displacement_mm"], ".2f")],
    ]
    rows += [
        [f"inverse residual on the {side}, mm: {name}", number(residual[side][key])]
        for side in ("target", "source")
        if side in residual
        for key, name in (("mean", "mean"), ("p999", "99.9 %"), ("max", "largest"))
    ]
    rows += [
        [key.replace("_", " "), number(value, ".2f")] for key, value in record.items() if key.startswith("seconds")
    ]
    page.table(["what", "value"], rows)


def _levels(page: Page, record: Mapping[str, Any]) -> None:
    if not record.get("levels"):
        return
    page.heading("Levels")
    page.text(
        "From coarse to fine. Energies are per control point and each level's own, so that they are compared along a "
        "row, not down a column. The step that is taken lies between the labels; its energy may be above that of the "
        "best labelling."
    )
    rows = []
    for place, level in enumerate(record["levels"], start=1):
        resolution, spacing = (lengths(level[key]) for key in ("resolution", "control_spacing_mm"))
        energies = [level.get(f"energy_{what}") for what in ("before", "best_labelling", "step")]
        change = 100 * (energies[2] / energies[0] - 1) if all(energies) else None
        rows.append(
            [
                str(place),
                resolution,
                spacing,
                str(level.get("labels", "")),
                *(number(energy, ".5f") for energy in energies),
                number(change, "+.2f"),
                number(level.get("jacobian_min_before_repair")),
                number(level.get("seconds"), ".2f"),
            ]
        )
    head = [
        "level",
        "voxels, mm",
        "control points, mm",
        "labels",
        "energy before",
        "of the best labelling",
        "of the step",
        "change, %",
        "least Jacobian before repair",
        "seconds",
    ]
    page.table(head, rows)

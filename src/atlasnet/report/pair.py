"""A registration on a page: the two images, how their edges meet, a grid that the map bends, its change of volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from atlasnet.report.display import Edges, Plane, planes_of, take_slice, window
from atlasnet.report.page import Page, data_uri
from atlasnet.report.pixels import gradient, grey, jpeg
from atlasnet.report.registration import CHANGE_COLOURS, LARGEST_CHANGE, checkerboard
from atlasnet.transform import Transform, jacobian_determinant
from atlasnet.volume import Grid, Volume, canonical

EDGE = 256  # pixels of the longer edge of a picture
LINES = 14  # about so many lines of the grid lie along the longer edge
LINE_COLOUR = (230, 159, 0)
_STEPS = (1, 2, 5, 10, 20, 50, 100)  # mm between the lines of the grid
_AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # world axes (x, y, z) along columns and rows


@dataclass(frozen=True)
class Panel:
    """One picture of a registration.

    Args:
        plane: which way the slice lies.
        title: what it is, in two or three words.
        alt: what it is for who does not see it.
        picture: a JPEG.
        edges: where its edges lie in the patient.
    """

    plane: Plane
    title: str
    alt: str
    picture: bytes
    edges: Edges


def pair_panels(
    target: Volume,
    source: Volume,
    transform: Transform,
    *,
    modality: str = "",
    names: tuple[str, str] = ("target", "source"),
    planes: Sequence[Plane] = ("axial", "coronal"),
    edge: int = EDGE,
) -> list[Panel]:
    """Six pictures for each plane, through the middle of the target's field of view.

    They are the target; the source, warped; a checkerboard of both; both in one, grey where they are alike, green where
    the target is brighter and magenta where the source is, which every colour vision tells apart; the source, warped,
    with a regular grid that was laid over it before; and the Jacobian determinant of the map, in which voxels that it
    folds are black. Only the slices that are shown are warped.

    Args:
        target: (c, z, y, x), whose first channel is shown; and so for the source.
        source: any grid.
        transform: takes points of the target into the source.
        modality: the channel's name; decides the grey windows.
        names: what target and source are called.
        planes: which way the slices lie; of an image of one slice it is its own.
        edge: pixels of the longer edge.
    """
    target = canonical(target)[0]
    windows = window(target, modality), window(source, modality)
    return [
        panel
        for plane in planes_of(target, planes)
        for panel in _panels(target, source, transform, windows, plane, names, edge)
    ]


def _panels(
    target: Volume,
    source: Volume,
    transform: Transform,
    windows: tuple[tuple[float, float], tuple[float, float]],
    plane: Plane,
    names: tuple[str, str],
    edge: int,
) -> list[Panel]:
    slab, middle = _slab(target.grid, plane, edge)
    ours = take_slice(Transform.identity().warp(target, slab), middle, plane)
    theirs = take_slice(transform.warp(source, slab, fill=float(source.array.min())), middle, plane)
    moved = transform.displacement(slab)
    change = take_slice(Volume(jacobian_determinant(moved, slab).cpu().numpy()[None], slab), middle, plane)
    field = Volume(moved.cpu().numpy(), slab)
    places = [take_slice(_world(field, axis), middle, plane).pixels for axis in _AXES[plane]]
    extent = max(n * mm for n, mm in zip(ours.pixels.shape, ours.spacing, strict=True))
    step = next((s for s in _STEPS if s * LINES >= extent), _STEPS[-1])
    image, warped = grey(ours.pixels, windows[0]), grey(theirs.pixels, windows[1])
    target_name, source_name = names
    drawn = [
        (f"{target_name}, {plane}", f"{plane} slice of {target_name}", image),
        (f"{source_name}, warped", f"the same slice of {source_name}, warped", warped),
        (
            "checkerboard",
            f"checkerboard of {target_name} and {source_name}, warped",
            grey(checkerboard(ours, theirs, windows).pixels, (0.0, 1.0)),
        ),
        (
            "both, grey where alike",
            f"{target_name} in green and {source_name}, warped, in magenta, grey where they are alike",
            np.stack([warped, image, warped], axis=-1),
        ),
        (
            f"grid of {step} mm, warped",
            f"a regular grid of {step} mm laid over {source_name} and warped with it",
            _with_lines(warped, places, step),
        ),
        ("Jacobian", f"Jacobian determinant of the map, {plane} slice", _change(change.pixels)),
    ]
    return [Panel(plane, title, alt, jpeg(pixels), ours.edges) for title, alt, pixels in drawn]


def _slab(grid: Grid, plane: Plane, edge: int) -> tuple[Grid, int]:
    """Three slices, or fewer at the end, around the middle of a canonical grid, and which of them is the middle one.

    In the plane its voxels are square, ``edge`` of them along the longer edge.
    """
    inside = list(_AXES[plane])
    (axis,) = {0, 1, 2}.difference(inside)
    middle = int(grid.size[axis]) // 2
    before, after = min(1, middle), min(1, int(grid.size[axis]) - 1 - middle)
    low, high = [0, 0, 0], [0, 0, 0]
    low[axis], high[axis] = before - middle, middle + after + 1 - int(grid.size[axis])
    part = grid.padded(low, high)
    extent = max(float(part.size[a] * part.spacing[a]) for a in inside)
    spacing = part.spacing.copy()
    spacing[inside] = extent / edge
    return part.with_spacing(spacing), before


def _world(displacement: Volume, axis: int) -> Volume:
    """Where the map takes each voxel, mm along one world axis."""
    grid = displacement.grid
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.size), indexing="ij"), -1)
    start = grid.to_world(index)[..., axis].transpose(2, 1, 0)
    return Volume((start + displacement.array[axis])[None], grid)


def _with_lines(pixels: NDArray[np.uint8], places: Sequence[NDArray[np.float64]], step: float) -> NDArray[np.uint8]:
    """Lines, a pixel and a half wide, wherever one of the mapped coordinates is a multiple of ``step``."""
    line = np.zeros(pixels.shape)
    for place in places:
        if min(place.shape) < 2:
            continue
        slope = np.maximum(np.hypot(*np.gradient(place)), 1e-6)  # mm per pixel
        distance = np.abs(place / step - np.rint(place / step)) * step / slope
        line = np.maximum(line, np.clip(1.25 - distance, 0, 1))
    colour = np.array(LINE_COLOUR, float)
    mixed = pixels[..., None] * (1 - line[..., None]) + colour * line[..., None]
    return np.asarray(np.rint(mixed), np.uint8)


def _change(jacobian: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The determinant in colours, the same for a third and for three times the volume on either side of white."""
    limit = np.log2(LARGEST_CHANGE)
    positive = np.log2(np.where(jacobian > 0, jacobian, 1.0))
    rgb = colormaps[CHANGE_COLOURS](np.clip(positive / limit, -1, 1) / 2 + 0.5)[..., :3]
    return np.asarray(np.rint(255 * np.where((jacobian > 0)[..., None], rgb, 0.0)), np.uint8)


def add_panels(page: Page, panels: Sequence[Panel]) -> None:
    """Put the pictures onto a page, those of a plane side by side as far as there is room."""
    for plane in dict.fromkeys(panel.plane for panel in panels):
        alike = [panel for panel in panels if panel.plane == plane]
        figures = "".join(
            f'<figure class="panel"><div class="lettered"><img alt="{escape(panel.alt)}" '
            f'src="{data_uri(panel.picture, "jpeg")}">{panel.edges.html()}</div>'
            f"<figcaption>{escape(panel.title)}</figcaption></figure>"
            for panel in alike
        )
        page.part(f'<div class="panels">{figures}</div>', what=f"{len(alike)} {plane} pictures of a registration")


def add_scale(page: Page) -> None:
    """What the colours of the Jacobian mean."""
    page.part(
        '<p class="scale"><span>Jacobian, volume in the source per volume in the target (white: no change, black: '
        f'folded):</span> <span class="bar">1/{LARGEST_CHANGE:g} '
        f'<i style="background:{gradient(CHANGE_COLOURS)}"></i> {LARGEST_CHANGE:g}</span></p>'
    )

"""A volume to leaf through: slices of three planes as small pictures, others laid over them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import get_args

import numpy as np

from atlasnet.report.display import Edges, Plane, opening_point, planes_of, slice_count, slice_through, take_slice
from atlasnet.report.page import Page, script_json
from atlasnet.report.pixels import (
    SHARE_COLOURS,
    gradient,
    grey,
    indexed_png,
    jpeg,
    label_indices,
    label_palette,
    share_indices,
    share_palette,
)
from atlasnet.volume import Grid, Volume, canonical

PICTURE_BYTES = 4 * 2**20  # all pictures of a volume together, before base64 makes a third more of them
MOST_SLICES = 160  # of a plane
LONGEST_EDGE = 400  # pixels
TALLEST = 32.0  # rem that a picture is high, at most


@dataclass(frozen=True)
class Layer:
    """Something that is seen in every slice.

    Args:
        name: one word.
        caption: what it is.
        kind: of the pictures, ``png`` or ``jpeg``.
        paint: gives the picture of a slice, by its canonical index and plane.
        shown: whether it is seen from the start; the first layer always is.
        scale: a colour map whose ends are shares of 0 and 1, if the layer shows shares.
    """

    name: str
    caption: str
    kind: str
    paint: Callable[[int, Plane], bytes]
    shown: bool = True
    scale: str = ""


def image_layer(volume: Volume, window: tuple[float, float], name: str = "image", caption: str = "") -> Layer:
    """The first channel in grey, between the intensities of the window."""
    upright = canonical(volume)[0]

    def paint(index: int, plane: Plane) -> bytes:
        return jpeg(grey(take_slice(upright, index, plane).pixels, window), LONGEST_EDGE)

    return Layer(name, caption or name, "jpeg", paint)


def label_layer(labels: Volume, colours: Mapping[int, str]) -> Layer:
    """Label values in their colours."""
    upright, palette = canonical(labels)[0], label_palette(colours)

    def paint(index: int, plane: Plane) -> bytes:
        return indexed_png(label_indices(take_slice(upright, index, plane).pixels, colours), palette, LONGEST_EDGE)

    return Layer("labels", "labels", "png", paint)


def agreement_layer(agreement: Volume, labels: Volume) -> Layer:
    """The share of the atlases that voted for the result, where something was found or they differ."""
    shares, found, palette = canonical(agreement)[0], canonical(labels)[0], share_palette()

    def paint(index: int, plane: Plane) -> bytes:
        share = take_slice(shares, index, plane).pixels
        # All agree on most of the background; it would hide the image.
        shown = (take_slice(found, index, plane).pixels > 0) | (share < 1)
        return indexed_png(share_indices(share, shown), palette, LONGEST_EDGE)

    return Layer("agreement", "agreement of the atlases", "png", paint, shown=False, scale=SHARE_COLOURS)


@dataclass(frozen=True)
class Stack:
    """The slices of one plane.

    Args:
        plane: which.
        count: how many the volume has.
        slices: canonical indices of those that are held.
        first: place among them of the one that is shown first.
        size: width and height in mm.
        edges: where the edges of the pictures lie in the patient.
        pictures: one per slice for each layer.
    """

    plane: Plane
    count: int
    slices: tuple[int, ...]
    first: int
    size: tuple[float, float]
    edges: Edges
    pictures: tuple[tuple[bytes, ...], ...]

    @property
    def bytes(self) -> int:
        """Of all pictures."""
        return sum(len(picture) for layer in self.pictures for picture in layer)


def stacks(
    grid: Grid, layers: Sequence[Layer], *, labels: Volume | None = None, limit: int = PICTURE_BYTES
) -> list[Stack]:
    """The slices of the three planes, or of its own plane for an image of one slice, thinned evenly to ``limit`` bytes.

    Args:
        grid: that of all layers.
        layers: the first is the ground.
        labels: decide at which point the planes open, see `opening_point`; in the middle without them.
        limit: bytes of all pictures together.
    """
    anything = Volume(np.broadcast_to(np.uint8(0), grid.shape), grid)
    counts = {plane: slice_count(anything, plane) for plane in planes_of(anything, get_args(Plane))}
    slices = {plane: _spread(count, MOST_SLICES) for plane, count in counts.items()}
    point = opening_point(anything if labels is None else labels)
    found = [_stack(anything, layers, plane, held, point) for plane, held in slices.items()]
    total = sum(stack.bytes for stack in found)
    if total <= limit:
        return found
    # Slices differ in size; a tenth less than would do on average.
    slices = {plane: _spread(counts[plane], int(0.9 * len(held) * limit / total)) for plane, held in slices.items()}
    return [_stack(anything, layers, plane, held, point) for plane, held in slices.items()]


def _spread(count: int, most: int) -> tuple[int, ...]:
    """At most so many indices, at even distances from the first to the last."""
    return tuple(np.unique(np.rint(np.linspace(0, count - 1, max(1, min(count, most)))).astype(int)).tolist())


def _stack(
    anything: Volume, layers: Sequence[Layer], plane: Plane, held: tuple[int, ...], point: tuple[int, int, int]
) -> Stack:
    """The pictures of these slices of a volume on the grid of ``anything``, the one through the point first."""
    first = int(np.abs(np.array(held) - slice_through(point, plane)).argmin())
    shape = take_slice(anything, 0, plane)
    height, width = (n * mm for n, mm in zip(shape.pixels.shape, shape.spacing, strict=True))
    pictures = tuple(tuple(layer.paint(index, plane) for index in held) for layer in layers)
    return Stack(plane, slice_count(anything, plane), held, first, (width, height), shape.edges, pictures)


def add_stacks(page: Page, found: Sequence[Stack], layers: Sequence[Layer], what: str) -> None:
    """Put the slices onto a page, with sliders, and switches for what lies over the ground.

    Args:
        page: where to.
        found: from `stacks`.
        layers: that those were made of.
        what: is seen there.
    """
    over = layers[1:]
    controls = [
        f'<label><input type="checkbox" data-layer="{layer.name}"{" checked" if layer.shown else ""}> '
        f"{escape(layer.caption)}</label>"
        for layer in over
    ]
    if over:
        controls.append('<label>opacity <input type="range" data-opacity min="0" max="100" value="50"></label>')
    controls += [
        f'<span class="scale {layer.name}">{escape(layer.caption)}, share: '
        f'<span class="bar">0 <i style="background:{gradient(layer.scale)}"></i> 1</span></span>'
        for layer in over
        if layer.scale
    ]
    figures = "".join(_figure(stack, layers, what) for stack in found)
    switches = f'<div class="controls">{"".join(controls)}</div>'
    page.part(
        f'<div class="browser">{switches}<div class="stacks">{figures}</div></div>',
        what=f"the slices of {what}",
    )
    thinned = [f"{len(s.slices)} of {s.count} {s.plane}" for s in found if len(s.slices) < s.count]
    if thinned:
        page.text(f"To keep the page small it holds {', '.join(thinned)} slices, evenly spread.", small=True)


def _figure(stack: Stack, layers: Sequence[Layer], what: str) -> str:
    held = {
        layer.name: (
            f"data:image/{layer.kind};base64,",
            [base64.b64encode(picture).decode("ascii") for picture in pictures],
        )
        for layer, pictures in zip(layers, stack.pictures, strict=True)
    }
    images = "".join(
        f'<img class="{layer.name}" alt="{escape(f"{stack.plane} slice of {what}: {layer.caption}")}" '
        f'src="{kind}{pictures[stack.first]}">'
        for layer, (kind, pictures) in zip(layers, held.values(), strict=True)
    )
    width, height = stack.size
    widest = TALLEST * width / height
    return (
        f'<figure class="stack {stack.plane}">'
        f'<div class="layers lettered" style="aspect-ratio:{width:.4g}/{height:.4g};max-width:{widest:.4g}rem">'
        f"{images}{stack.edges.html()}</div>"
        f'<input type="range" min="0" max="{len(stack.slices) - 1}" value="{stack.first}" '
        f'aria-label="{stack.plane} slice">'
        f"<figcaption>{stack.plane} slice <output>{stack.slices[stack.first] + 1}</output> of {stack.count}"
        f"</figcaption>{script_json({'slices': stack.slices, 'layers': held})}</figure>"
    )

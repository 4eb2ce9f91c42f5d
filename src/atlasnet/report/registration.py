"""A registration at a glance: the two images, how their edges meet, and what the map does to volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from atlasnet.report.display import Slice, planes_of, slice_count, take_slice, window
from atlasnet.report.panel import AROUND, TEXT, TITLE, draw_frame, draw_image, picture_figure, save
from atlasnet.volume import Volume

# A panel is so many inches wide, and no higher than so many.
WIDTH, HEIGHT = 3.6, 5.0
# The longer edge of a picture holds so many squares of the checkerboard.
SQUARES = 9
# Jacobians are drawn from one over this to this, in these colours.
LARGEST_CHANGE = 3.0
CHANGE_COLOURS = "RdBu_r"


def registration_figure(
    path: str | Path, *, target: Volume, warped: Volume, jacobian: Volume, modality: str = "", title: str = ""
) -> Path:
    """Target, warped source, a checkerboard of both, and the Jacobian determinant of the map; axial and coronal.

    An image of one slice is shown in its own plane. Voxels that the map folds are black.

    Args:
        path: of the PNG.
        target: (c, z, y, x), whose first channel is shown.
        warped: the source on the target's grid.
        jacobian: (1, z, y, x) on the target's grid.
        modality: the channel's name; decides the grey windows.
        title: over all panels.
    """
    planes = planes_of(target, ("axial", "coronal"))
    # The slices that the middle of the field of view lies in.
    middles = [slice_count(target, plane) // 2 for plane in planes]
    pictures = [take_slice(target, middle, plane) for plane, middle in zip(planes, middles, strict=True)]
    heights = [min(HEIGHT, WIDTH * p.pixels.shape[0] / p.pixels.shape[1] * p.aspect) + 0.4 + AROUND for p in pictures]
    figure = picture_figure(4 * (WIDTH + AROUND) + 0.8, sum(heights) + 0.6)
    panels = figure.subplots(len(planes), 4, squeeze=False, height_ratios=heights)
    windows = window(target, modality), window(warped, modality)
    limit = float(np.log2(LARGEST_CHANGE))
    scale = ScalarMappable(Normalize(-limit, limit), CHANGE_COLOURS)
    for row, plane, middle, ours in zip(panels, planes, middles, pictures, strict=True):
        theirs, change = take_slice(warped, middle, plane), take_slice(jacobian, middle, plane)
        draw_image(row[0], ours, windows[0], f"target, {plane}")
        draw_image(row[1], theirs, windows[1], "source, warped")
        draw_image(row[2], checkerboard(ours, theirs, windows), (0.0, 1.0), "checkerboard of both")
        positive = np.ma.masked_less_equal(change.pixels, 0)
        row[3].imshow(
            np.ma.log2(positive), cmap=scale.cmap, norm=scale.norm, aspect=change.aspect, interpolation="nearest"
        )
        row[3].set_facecolor("black")
        row[3].set_xticks([])
        row[3].set_yticks([])
        draw_frame(row[3], change.edges, "Jacobian of the map")
    bar = figure.colorbar(scale, ax=panels[:, 3].tolist(), shrink=0.8)
    ticks = (1 / LARGEST_CHANGE, 0.5, 1.0, 2.0, LARGEST_CHANGE)
    bar.set_ticks([float(np.log2(tick)) for tick in ticks], labels=[f"{tick:.3g}" for tick in ticks])
    bar.set_label("volume in the source per volume in the target", fontsize=TEXT)
    figure.suptitle(title, fontsize=TITLE + 1)
    return save(figure, path)


def checkerboard(first: Slice, second: Slice, windows: tuple[tuple[float, float], tuple[float, float]]) -> Slice:
    """Squares of one picture and of the other in turns, each in its own window, 0 to 1."""
    rows, columns = first.pixels.shape
    size = max(rows * first.spacing[0], columns * first.spacing[1]) / SQUARES
    row = (np.arange(rows) * first.spacing[0] // size).astype(int)
    column = (np.arange(columns) * first.spacing[1] // size).astype(int)
    even = (row[:, None] + column[None, :]) % 2 == 0
    parts: list[NDArray[np.float64]] = [
        np.clip((picture.pixels - low) / (high - low), 0, 1)
        for picture, (low, high) in zip((first, second), windows, strict=True)
    ]
    return Slice(np.where(even, *parts), first.spacing, first.edges)

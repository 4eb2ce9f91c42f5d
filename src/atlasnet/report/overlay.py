"""Overlays: labels in colour over slices of the image, the reference in outline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from atlasnet.errors import InputError
from atlasnet.report.display import (
    Slice,
    colours,
    richest_slice,
    slice_count,
    take_slice,
    window,
)
from atlasnet.report.panel import (
    AROUND,
    TITLE,
    draw_image,
    draw_labels,
    draw_legend,
    draw_outlines,
    legend_entries,
    picture_figure,
    save,
)
from atlasnet.volume import Volume

PANEL = 3.6  # inches across


def panel_height(image: Slice) -> float:
    """Inches that a panel needs for its image."""
    rows, columns = image.pixels.shape
    return float(np.clip(PANEL * rows * image.spacing[0] / (columns * image.spacing[1]), 1.2, 2.0 * PANEL))


def overlay(
    path: str | Path,
    image: Volume,
    labels: Volume,
    reference: Volume | None = None,
    *,
    names: Mapping[str, int],
    modality: str = "CT",
    slices: Sequence[int] | None = None,
    title: str = "",
) -> Path:
    """Labels over a few axial slices of the image, the reference in outline.

    Args:
        path: of the PNG.
        image: (c, z, y, x) in any orientation; its first channel is shown.
        labels: on the image's grid.
        reference: on the image's grid too, if there is one.
        names: label names to values.
        modality: the channel's name; decides the grey window, see `atlasnet.report.window`.
        slices: canonical indices, from the feet up; by default three through the labelled part.
        title: over all panels.

    Raises:
        InputError: the volumes do not lie on one grid, or there is no such slice.
    """
    shown = reference if reference is not None and reference.array.any() else labels
    for volume in (labels, reference):
        if volume is not None and not volume.grid.matches(image.grid):
            raise InputError(
                "image and labels do not lie on one grid", expected=str(image.grid), found=str(volume.grid)
            )
    chosen = _spread(shown) if slices is None else list(slices)
    grey, palette = window(image, modality), colours(names)
    pictures = [take_slice(image, index) for index in chosen]
    figure = picture_figure((PANEL + AROUND) * len(chosen), panel_height(pictures[0]) + AROUND + 1.1)
    grid = np.atleast_1d(figure.subplots(1, len(chosen)))
    drawn: set[int] = set()
    for axes, index, picture in zip(grid, chosen, pictures, strict=True):
        draw_image(axes, picture, grey, f"axial slice {index + 1}")
        filled = take_slice(labels, index)
        draw_labels(axes, filled, palette)
        drawn |= set(np.unique(filled.pixels).tolist())
        if reference is not None:
            outlined = take_slice(reference, index)
            draw_outlines(axes, outlined, palette)
            drawn |= set(np.unique(outlined.pixels).tolist())
    figure.suptitle(title, fontsize=TITLE + 1)
    draw_legend(
        figure,
        legend_entries(
            {name: value for name, value in names.items() if value in drawn},
            palette,
            filled="prediction",
            outlined=None if reference is None else "reference",
        ),
    )
    return save(figure, path)


def _spread(labels: Volume) -> list[int]:
    """The richest slice, and one on either side of it, half way to the end of the labelled part."""
    best, count = richest_slice(labels), slice_count(labels)
    held = [i for i in range(count) if take_slice(labels, i).pixels.any()] or [best]
    return sorted({(held[0] + best) // 2, best, (held[-1] + best + 1) // 2})

"""One subject's way through the method in five pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atlasnet.report.display import colours, richest_slice, same_level, slice_count, take_slice, window
from atlasnet.report.overlay import PANEL, panel_height
from atlasnet.report.panel import (
    AROUND,
    TEXT,
    TITLE,
    draw_image,
    draw_labels,
    draw_map,
    draw_outlines,
    legend_entries,
    picture_figure,
    save,
)
from atlasnet.volume import Volume


def stages_figure(
    path: str | Path,
    *,
    source: Volume,
    atlas: Volume,
    mapped: Volume,
    prediction: Volume,
    names: Mapping[str, int],
    reference: Volume | None = None,
    mapped_reference: Volume | None = None,
    agreement: Volume | None = None,
    modality: str = "CT",
    title: str = "",
) -> Path:
    """One subject's way through the method: source, atlas, mapped source, prediction, agreement of the atlases.

    Args:
        path: of the PNG.
        source: the subject's image; prediction, reference and agreement lie on its grid.
        atlas: the atlas's image.
        mapped: the source in the atlas's space, on any grid there.
        prediction: labels.
        names: label names to values.
        reference: labels, drawn in outline.
        mapped_reference: the reference in the atlas's space, on the grid of ``mapped``, drawn in outline there.
        agreement: share of the atlases that voted for the result, 0 to 1.
        modality: the channel's name; decides the grey window.
        title: over all panels.
    """
    grey, palette = window(source, modality), colours(names)
    here = richest_slice(prediction if reference is None else reference)
    if mapped_reference is not None and mapped_reference.array.any():
        there = richest_slice(mapped_reference)
    else:
        there = round((here + 0.5) / slice_count(source) * slice_count(mapped) - 0.5)
    picture = take_slice(source, here)
    figure = picture_figure(3 * (PANEL + AROUND), 2 * (panel_height(picture) + AROUND) + 1.2)
    panels = figure.subplots(2, 3).ravel()
    draw_image(panels[0], picture, grey, "1  source")
    draw_image(panels[1], take_slice(atlas, same_level(mapped, there, atlas)), grey, "2  atlas")
    draw_image(panels[2], take_slice(mapped, there), grey, "3  source mapped onto the atlas")
    if mapped_reference is not None:
        draw_outlines(panels[2], take_slice(mapped_reference, there), palette)
    draw_image(panels[3], picture, grey, "4  prediction, all atlases fused")
    draw_labels(panels[3], take_slice(prediction, here), palette)
    if reference is not None:
        draw_outlines(panels[3], take_slice(reference, here), palette)
    panels[4].set_axis_off()
    panels[5].set_axis_off()
    if agreement is not None:
        share, predicted = take_slice(agreement, here), take_slice(prediction, here)
        draw_image(panels[4], picture, grey, "5  agreement of the atlases")
        # All agree on most of the background; it would hide the image.
        drawn = draw_map(panels[4], share, (predicted.pixels > 0) | (share.pixels < 1))
        scale = figure.colorbar(drawn, cax=panels[5].inset_axes((0.1, 0.24, 0.8, 0.06)), orientation="horizontal")
        scale.set_label("share of the atlases that voted for the result", fontsize=TEXT)
    outlined = None if reference is None and mapped_reference is None else "reference"
    panels[5].legend(
        handles=legend_entries(names, palette, filled="prediction", outlined=outlined),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.92),
        fontsize=TEXT + 1,
        frameon=False,
    )
    figure.suptitle(title, fontsize=TITLE + 1)
    return save(figure, path)

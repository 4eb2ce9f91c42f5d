"""Channels of one image that were stored on grids of their own: T1 and a FLAIR of thick slices, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import is_placed, read_grid
from atlasnet.volume.resample import resample
from atlasnet.volume.sampling import inside
from atlasnet.volume.volume import Volume

LEAST_SHOWN = 0.5
"""Share of the first channel's field of view that another one must show, to be one of the same place."""

_SAMPLES = 48  # along each axis, by which such a share is found
_WHOLE = 0.99


def on_first_grid(part: Volume, path: Path, first: Grid, first_path: Path) -> Volume:
    """A channel on the grid of the first one, where the headers place it; float32 or float64 where that is another.

    Where both have one grid nothing is done. Otherwise values are interpolated linearly, smoothed before on the way to
    larger voxels (`resample`); beyond its field of view the channel's edge continues.

    Args:
        part: the channel.
        path: its file.
        first: the grid of the first channel.
        first_path: its file.

    Raises:
        VolumeError: a header does not say where its image lies, or the channel shows less than `LEAST_SHOWN` of the
            field of view.
    """
    if part.grid.matches(first):
        return part
    remedy = f"resample it onto the grid of {first_path.name}, or correct the header"
    for file in (first_path, path):
        if not is_placed(file):
            raise VolumeError(
                f"it has another grid than {first_path.name}, and not both headers say where their image lies",
                path=path,
                expected="NIfTI headers with a form (sform or qform)",
                found=f"none in {file.name}",
                remedy=remedy,
            )
    if (shown := _shown(first, part.grid)) < LEAST_SHOWN:
        raise VolumeError(
            f"it shows too little of the field of view of {first_path.name}, the first channel",
            path=path,
            expected=f"{LEAST_SHOWN:.0%} or more",
            found=f"{shown:.0%}",
            remedy="let the channel that shows least be the first, or correct the header",
        )
    return resample(part, first)


def grid_doubts(images: Sequence[Path], channels: Sequence[str], series: str | None = None) -> list[tuple[Path, str]]:
    """Each image that `on_first_grid` brings onto the grid of the first, and how.

    Args:
        images: the files of a subject, which can be read.
        channels: their names, in the same order.
        series: the DICOM series, where a file holds several.

    Raises:
        VolumeError: a header cannot be read.
    """
    first, *others = images
    if not others:
        return []
    grid, found = read_grid(first, series=series), []
    for path, channel in zip(others, channels[1:], strict=False):
        own = read_grid(path, series=series)
        if own.matches(grid):
            continue
        text = f"channel {channel} has a grid of its own, and is brought onto that of {channels[0]} by the headers"
        if (shown := _shown(grid, own)) < _WHOLE:
            text += f"; it shows {shown:.0%} of what {channels[0]} shows"
        found.append((path, text))
    return found


def _shown(grid: Grid, other: Grid) -> float:
    """Share of a grid's field of view that lies in another's."""
    z, y, x = (np.linspace(0, n - 1, min(n, _SAMPLES)) for n in grid.shape)
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    index = torch.from_numpy(other.to_index(grid.to_world(points)))
    return float(inside(index, other.shape).double().mean())

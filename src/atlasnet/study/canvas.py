"""The canvas: the common frame of networks without registration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atlasnet.cohort import Subject
from atlasnet.volume import Grid, Volume, canonical, write_volume


def write_canvas(path: Path, subjects: Sequence[Subject], spacing: Sequence[float]) -> None:
    """Write a blank image as large as the largest scan, unless it is there.

    Args:
        path: of the image.
        subjects: all who are to find room on it.
        spacing: of its voxels (x, y, z), mm.
    """
    if path.exists():
        return
    grids = [canonical(subject.read_grid())[0] for subject in subjects]
    # A voxel has a size of its own around the outermost centres.
    extent = np.max([np.ptp(grid.corners(), axis=0) + np.abs(grid.affine[:3, :3]).sum(1) for grid in grids], axis=0)
    x, y, z = (int(n) for n in np.maximum(1, np.ceil(extent / np.asarray(spacing) - 1e-6)))
    blank = np.zeros((subjects[0].channels, z, y, x), dtype=np.uint8)
    write_volume(path, Volume(blank, Grid.from_parts((z, y, x), tuple(spacing))))

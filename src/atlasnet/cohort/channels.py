"""Channels of one image that were stored apart, often on grids of their own: T1 and a FLAIR of thick slices, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from atlasnet.errors import InputError, VolumeError
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import is_placed, read_grid, stated_series
from atlasnet.volume.names import is_dicom
from atlasnet.volume.resample import resample
from atlasnet.volume.sampling import inside
from atlasnet.volume.volume import Volume
from atlasnet.wording import series_name

LEAST_SHOWN = 0.5
"""Share of the first channel's field of view that another one must show, to be one of the same place."""

_SAMPLES = 48  # along each axis, by which such a share is found
_WHOLE = 0.99


class Source(NamedTuple):
    """What one channel is read from.

    Args:
        path: a file, or a DICOM folder or zip.
        series: the DICOM series in it, where it holds several.
    """

    path: Path
    series: str | None = None

    def __str__(self) -> str:
        return self.path.name if self.series is None else f"series {series_name(self.series)} of {self.path.name}"

    def read_grid(self) -> Grid:
        """From the header alone where the format allows it."""
        return read_grid(self.path, series=self.series)

    def read_space(self) -> dict[str, str]:
        """The UIDs of DICOM that two images of one space have in common; nothing of other formats."""
        stated = stated_series(self.path, series=self.series)
        return {} if stated is None else {"study": stated.study, "frame of reference": stated.frame_of_reference}


def require_export(path: Path, series: Sequence[str]) -> None:
    """Refuse to choose series, if any are named, of what is no DICOM.

    Raises:
        InputError: it is none.
    """
    if series and not is_dicom(path):
        named = f"series {', '.join(map(series_name, series))}"
        raise InputError("a series can be chosen of a DICOM export only", path=path, found=named)


def check_series(sources: Sequence[Source]) -> None:
    """Refuse what headers say to be no channels of one image.

    Raises:
        VolumeError: two DICOM series are of two patients, or two channels are one series; or a header cannot be read.
    """
    known: dict[str, Source] = {}
    patients: dict[str, Source] = {}
    for source in sources:
        stated = stated_series(source.path, series=source.series)
        if stated is None:
            continue
        other = known.setdefault(stated.uid, source)
        if other is not source:
            raise VolumeError(
                "two channels are one DICOM series",
                path=source.path,
                expected="a series for each channel",
                found=f"{source}, which is {other}",
            )
        patients.setdefault(stated.patient, source)
    if len(patients) > 1:
        raise VolumeError(
            "the channels are not of one patient",
            path=sources[0].path,
            expected="series of one patient",
            found=f"{' and '.join(map(str, patients.values()))}, which differ in PatientID",
            remedy="if they are of one patient whose identifiers were replaced, convert them to NIfTI",
        )


def on_first_grid(part: Volume, source: Source, first: Grid, first_source: Source) -> Volume:
    """A channel on the grid of the first one, where the headers place it; float32 or float64 where that is another.

    Where both have one grid nothing is done. Otherwise values are interpolated linearly, smoothed before on the way to
    larger voxels (`resample`); beyond its field of view the channel's edge continues.

    Args:
        part: the channel.
        source: what it was read from.
        first: the grid of the first channel.
        first_source: what that was read from.

    Raises:
        VolumeError: a header does not say where its image lies, or the channel shows less than `LEAST_SHOWN` of the
            field of view.
    """
    if part.grid.matches(first):
        return part
    remedy = f"resample it onto the grid of {first_source}, or correct the header"
    for file in (first_source.path, source.path):
        if not is_placed(file):
            raise VolumeError(
                f"it has another grid than {first_source}, and not both headers say where their image lies",
                path=source.path,
                expected="NIfTI headers with a form (sform or qform)",
                found=f"none in {file.name}",
                remedy=remedy,
            )
    if (shown := _shown(first, part.grid)) < LEAST_SHOWN:
        raise VolumeError(
            f"it shows too little of the field of view of {first_source}, the first channel",
            path=source.path,
            expected=f"{LEAST_SHOWN:.0%} or more",
            found=f"{shown:.0%}" if source.series is None else f"{shown:.0%}, {source}",
            remedy="let the channel that shows least be the first, or correct the header",
        )
    return resample(part, first)


def channel_doubts(sources: Sequence[Source], channels: Sequence[str]) -> list[tuple[Path, str]]:
    """What may be wrong with channels that were stored apart, and where.

    That is each that `on_first_grid` brings onto the grid of the first, and each whose DICOM header states another
    study or frame of reference: whether both lie in one space is not known then (DICOM PS3.3 C.7.4.1.1.1).

    Args:
        sources: of a subject, which can be read.
        channels: their names, in the same order.

    Raises:
        VolumeError: a header cannot be read.
    """
    first, *others = sources
    if not others:
        return []
    grid, space, found = first.read_grid(), first.read_space(), []
    for source, channel in zip(others, channels[1:], strict=False):
        own, theirs = source.read_grid(), source.read_space()
        apart = [what for what, uid in theirs.items() if space.get(what, uid) != uid]
        if apart:
            text = f"channel {channel} states another {' and another '.join(apart)} than {channels[0]}"
            found.append((source.path, f"{text}: that both lie in one space is not known, and taken for granted"))
        if own.matches(grid):
            continue
        text = f"channel {channel} has a grid of its own, and is brought onto that of {channels[0]} by the headers"
        if (shown := _shown(grid, own)) < _WHOLE:
            text += f"; it shows {shown:.0%} of what {channels[0]} shows"
        found.append((source.path, text))
    return found


def _shown(grid: Grid, other: Grid) -> float:
    """Share of a grid's field of view that lies in another's."""
    z, y, x = (np.linspace(0, n - 1, min(n, _SAMPLES)) for n in grid.shape)
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    index = torch.from_numpy(other.to_index(grid.to_world(points)))
    return float(inside(index, other.shape).double().mean())

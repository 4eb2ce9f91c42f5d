"""`Subject`: one patient's images and reference, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlasnet.cohort.annotated import check_hidden
from atlasnet.cohort.channels import Source, check_series, on_first_grid
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import CohortError, VolumeError
from atlasnet.volume.files import volume_digest
from atlasnet.volume.grid import GRID_TOLERANCE, Grid
from atlasnet.volume.io import read_labels, read_volume
from atlasnet.volume.volume import Volume
from atlasnet.wording import counted

NOT_AS_DECLARED = "the image does not have the declared number of channels"
HIDDEN = "hidden"  # among the hashes of a subject: what nobody annotated


@dataclass(frozen=True)
class Subject:
    """One patient.

    Args:
        name: unique in its cohort; names outputs.
        images: one file (or DICOM folder or zip) per channel, or a single one that holds every channel.
        labels: the reference, or None.
        channels: how many channels ``images`` hold in all.
        series: the DICOM series of each channel, where an image holds several, as `read_volume` takes them.
        mask: the organ mask, or None; see `atlasnet.cohort.masks`.
        hidden: values of labels that nobody annotated in the subject, each with the one that its reference has where
            there may be one of them: mostly the background.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None = None
    channels: int = 1
    series: tuple[str, ...] = ()
    mask: Path | None = None
    hidden: Hidden = ()

    def __repr__(self) -> str:
        reference = "without a reference" if self.labels is None else "with reference"
        mask = "" if self.mask is None else ", with organ mask"
        hidden = f", {', '.join(str(value) for value, _ in self.hidden)} not annotated" if self.hidden else ""
        return f"Subject({self.name}, {counted(self.channels, 'channel')}, {reference}{mask}{hidden})"

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is read, in the order of the channels: files, the series of exports, or the one file that holds all."""
        if not self.series:
            return tuple(map(Source, self.images))
        images = self.images * len(self.series) if len(self.images) == 1 else self.images
        return tuple(Source(*source) for source in zip(images, self.series, strict=True))

    def hashes(self) -> dict[str, list[str]]:
        """SHA-256 of its files, as `volume_digest`: ``images`` in order, ``labels`` and, where there is one, ``mask``.

        ``hidden`` are the values that nobody annotated, where there are some: the same file says something else then.

        Raises:
            OSError: a file cannot be read.
        """
        files = {"images": self.images, "labels": () if self.labels is None else (self.labels,)}
        if self.mask is not None:
            files["mask"] = (self.mask,)
        hidden = {HIDDEN: [f"{value} as {stands}" for value, stands in self.hidden]} if self.hidden else {}
        return {kind: [volume_digest(path) for path in paths] for kind, paths in files.items()} | hidden

    def read_image(self) -> Volume:
        """The image, (c, z, y, x) as stored: neither turned nor normalised.

        It lies on the grid of the first channel. Further files that have another are brought onto it where their
        headers place them, by linear interpolation, smoothed before on the way to larger voxels.

        Raises:
            VolumeError: a file cannot be used, the channels are not as many as declared, or one shows another place.
        """
        first, *others = self.sources
        if others:
            check_series(self.sources)
        parts = [
            read_volume(path, channels=not others and self.channels > 1, series=series) for path, series in self.sources
        ]
        found = sum(part.channels for part in parts)
        if found != self.channels:
            raise VolumeError(
                NOT_AS_DECLARED,
                path=self.images[0],
                expected=str(self.channels),
                found=str(found),
                remedy="give a file for each channel, in their order (predict: --image once for each), or one that "
                "holds them all",
            )
        if not others:
            return parts[0]
        grid = parts[0].grid
        for index, source in enumerate(others, start=1):
            parts[index] = on_first_grid(parts[index], source, grid, first)
        kind = np.result_type(*(part.array.dtype for part in parts))
        return Volume(np.concatenate([part.array.astype(kind, copy=False) for part in parts]), grid)

    def read_grid(self) -> Grid:
        """The image's grid, from its header alone where the format allows it.

        Raises:
            VolumeError: the header cannot be used.
        """
        return self.sources[0].read_grid()

    def read_labels(self, grid: Grid | None = None) -> Volume:
        """The reference, whole numbers (1, z, y, x), on exactly the image's grid.

        Args:
            grid: the image's grid where it is known already; read from the image otherwise.

        Raises:
            CohortError: the subject has no reference, or it holds ``hidden`` labels.
            VolumeError: the file cannot be used, holds other than whole numbers, or does not lie on the image's grid
                within `GRID_TOLERANCE` voxels.
        """
        if self.labels is None:
            raise CohortError(f"subject {self.name} has no reference", path=self.images[0])
        labels = read_labels(self.labels)
        check_hidden(labels, self.hidden, self.name, self.labels)
        if grid is None:
            grid = self.read_grid()
        check_same_grid(labels.grid, grid, self.labels, *self.sources)
        return Volume(labels.array, grid)

    def read_mask(self, grid: Grid | None = None) -> Volume | None:
        """The organ mask, (1, z, y, x), not zero in the organ, on exactly the image's grid; None without one.

        Args:
            grid: the image's grid where it is known already; read from the image otherwise.

        Raises:
            VolumeError: the file cannot be used, holds other than whole numbers, is empty, or does not lie on the
                image's grid within `GRID_TOLERANCE` voxels.
        """
        if self.mask is None:
            return None
        mask = read_labels(self.mask)
        if grid is None:
            grid = self.read_grid()
        check_same_grid(mask.grid, grid, self.mask, *self.sources)
        if mask.channels != 1 or not mask.array.any():
            raise VolumeError(
                "the mask cannot be used",
                path=self.mask,
                expected="one channel that is not zero in what counts",
                found=counted(mask.channels, "channel") if mask.array.any() else "zeros only: it is empty",
            )
        return Volume(mask.array, grid)


def check_same_grid(grid: Grid, reference: Grid, path: Path, first: Source, *others: Source) -> None:
    """Check that a label map or a mask of a subject lies on the grid of its image, which is that of the first channel.

    Args:
        grid: of the label map or the mask.
        reference: of the image.
        path: of the label map or the mask.
        first: what the first channel is read from.
        others: the same of the further channels.

    Raises:
        VolumeError: their sizes differ, or a corner lies more than `GRID_TOLERANCE` voxels apart.
    """
    if grid.matches(reference):
        return
    remedy = "resample it onto the image's grid with nearest neighbours, or correct the header"
    if own := [str(other) for other in others if other.read_grid().matches(grid)]:
        remedy = f"it lies on the grid of {own[0]}: let that channel be the first"
    if grid.shape != reference.shape:
        raise VolumeError(
            f"it does not lie on the grid of {first}",
            path=path,
            expected=f"{reference.shape} voxels (z, y, x)",
            found=f"{grid.shape}",
            remedy=remedy,
        )
    apart = np.abs(reference.to_index(grid.corners()) - reference.to_index(reference.corners())).max()
    raise VolumeError(
        f"it does not lie on the grid of {first}",
        path=path,
        expected=f"corners within {GRID_TOLERANCE:g} voxels of {reference!r}",
        found=f"{apart:.4g} voxels apart, {grid!r}",
        remedy=remedy,
    )

"""What is annotated in one case, as masks by name, whatever tool has written it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.conversion.lattice import placed
from atlasnet.errors import CohortError, VolumeError
from atlasnet.volume import Grid, Volume, read_labels
from atlasnet.volume.io import read_sitk, read_volume
from atlasnet.volume.names import images_by_stem

Mask = NDArray[np.bool_]


class Structures(Protocol):
    """The structures of one case."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is annotated; a name without a mask is not among them."""

    @property
    def series(self) -> str | None:
        """The SeriesInstanceUID of the DICOM series on which they were drawn, where that is said."""

    def mask(self, name: str, grid: Grid) -> Mask:
        """The voxels of a structure, (z, y, x) on the grid of the image.

        Raises:
            VolumeError: it cannot be read, or was not drawn on this image.
        """

    def segment(self, name: str) -> dict[str, Any]:
        """Its colour and codes, as ``dataset.json`` has them under ``segments``, as far as they are said."""


class MaskFiles:
    """A folder with one mask for each structure, called like it, not zero in the structure.

    Args:
        path: of the folder.
        images: files in it that are no masks.

    Raises:
        CohortError: there is no mask in the folder.
    """

    series = None

    def __init__(self, path: Path, images: Collection[Path] = ()) -> None:
        self.path = path
        self._files = {name: file for name, file in images_by_stem(path).items() if file not in images}
        if not self._files:
            raise CohortError(
                "the folder holds no mask", path=path, expected="a file such as lung.nii.gz for each structure"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files without their suffixes."""
        return tuple(self._files)

    def mask(self, name: str, grid: Grid) -> Mask:
        """See `Structures`."""
        file = self._files[name]
        labels = read_labels(file)
        inside = labels.array != 0
        value = labels.array.max() or labels.array.min()
        if np.count_nonzero(inside) != np.count_nonzero(labels.array == value) and inside.any():
            raise VolumeError(
                "this is no mask of one structure",
                path=file,
                expected="0, and one other value in the structure",
                found=", ".join(map(str, np.unique(labels.array)[:8].tolist())),
                remedy="name the file after --structures if it is a label map of all structures",
            )
        return placed(inside[0], labels.grid, grid, file)

    def segment(self, name: str) -> dict[str, Any]:
        """Nothing: a mask says neither colour nor code."""
        return {}


class LabelMap:
    """One label map, whose structures are called as their values are."""

    series = None

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, read_labels(path)
        self._names = tuple(str(value) for value in np.unique(self._read.array).tolist() if value != 0)

    @property
    def names(self) -> tuple[str, ...]:
        """The values, but for 0."""
        return self._names

    def mask(self, name: str, grid: Grid) -> Mask:
        """See `Structures`."""
        return placed(self._read.array[0] == int(name), self._read.grid, grid, self.path)

    def segment(self, name: str) -> dict[str, Any]:
        """Nothing: a label map says neither colour nor code."""
        return {}


class SlicerSegmentation:
    """A ``.seg.nrrd`` of 3D Slicer: segments in one or more layers, described in fields ``Segment0_Name`` and so on.

    Raises:
        VolumeError: it cannot be read, or describes no segments.
    """

    series = None

    def __init__(self, path: Path) -> None:
        self.path = path
        image, _ = read_sitk(path)
        keys = [key for key in image.GetMetaDataKeys() if key.startswith("Segment") and key.isascii()]
        fields = {key: image.GetMetaData(key) for key in keys}
        self._segments: dict[str, Mapping[str, str]] = {}
        while any(key.startswith(prefix := f"Segment{len(self._segments)}_") for key in fields):
            segment = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
            name = " ".join(segment.get("Name", segment.get("ID", "")).split())
            if not name or not name.isprintable() or name in self._segments:
                problem = f"two segments are called {name!r}" if name in self._segments else "a segment has no name"
                raise VolumeError(problem, path=path, remedy="rename it in 3D Slicer, and save again")
            self._segments[name] = segment
        if not self._segments:
            raise VolumeError("the segmentation has no segments", path=path, expected="fields such as Segment0_Name")
        self._read: Volume | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the segments."""
        return tuple(self._segments)

    def mask(self, name: str, grid: Grid) -> Mask:
        """See `Structures`."""
        segment = self._segments[name]
        if self._read is None:
            self._read = read_volume(self.path, channels=True)
        try:
            layer, value = int(segment.get("Layer", "0")), int(segment.get("LabelValue", "1"))
            voxels = self._read.array[layer]
        except (ValueError, IndexError) as error:
            found = f"layer {segment.get('Layer')}, value {segment.get('LabelValue')}"
            raise VolumeError(f"the segment {name!r} cannot be found", path=self.path, found=found) from error
        return placed(voxels == value, self._read.grid, grid, self.path)

    def segment(self, name: str) -> dict[str, Any]:
        """Its colour, and what its terminology entry says."""
        fields = self._segments[name]
        found: dict[str, Any] = {}
        try:
            shares = [float(share) for share in fields["Color"].split()]
            found["colour"] = hex_colour([round(255 * share) for share in shares])
        except (KeyError, ValueError):
            pass  # no colour that one could take
        # TerminologyEntry:CONTEXT~SCHEME^VALUE^MEANING~...: category, type and modifier.
        entry = next((t for t in fields.get("Tags", "").split("|") if t.startswith("TerminologyEntry:")), "")
        codes = [part.split("^") for part in entry.split("~")[1:4]]
        stated = [[value, scheme, meaning] for scheme, value, meaning in (code for code in codes if len(code) == 3)]
        if len(stated) == 3 and all(all(code) for code in stated[:2]):
            found |= {"category": stated[0], "type": stated[1]}
            if all(stated[2]):
                found["modifier"] = stated[2]
        return found


def hex_colour(rgb: list[int]) -> str:
    """``#RRGGBB`` of three numbers from 0 to 255.

    Raises:
        ValueError: they are no colour.
    """
    if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
        raise ValueError(rgb)
    return "#" + bytes(rgb).hex().upper()

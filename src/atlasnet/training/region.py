"""`Region`: the part of an atlas's space in which there is something to segment, the same for every subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.errors import InputError
from atlasnet.training.store import IGNORED, MappedCase

# Voxels of the networks' grid around the structures of all training subjects: room for those of others, and for what
# lies around them.
MARGIN = 12


@dataclass(frozen=True)
class Region:
    """A box of voxels of the networks' grid, slices first: what a network is trained on and asked about.

    Registration brings a structure to about the same place in every subject, so a box that holds it in all training
    subjects, and a margin, holds it in a new one; the rest of a scan is background without asking.

    Args:
        start: first slice, row and column.
        stop: those behind the last.

    Raises:
        InputError: the box is empty or begins below 0.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.start) != 3 or len(self.stop) != 3 or not all(0 <= a < b for a, b in self._sides):
            raise InputError("the region is no box of voxels", found=f"{self.start} to {self.stop}")

    @classmethod
    def of(cls, labels: Sequence[NDArray[np.uint8]], margin: int = MARGIN, *, partly: bool = False) -> Region:
        """The box around every foreground class of class indices (z, y, x) of one shape; all where there is none.

        Args:
            labels: of the training subjects.
            margin: voxels around it.
            partly: whether the subjects are annotated in part: what is `IGNORED` in all of them, farther than the
                margin from what is not, may hold structures that nobody has seen, and is in the box too.
        """
        shape = labels[0].shape
        inside, unknown = np.zeros(shape, dtype=bool), np.full(shape, partly)
        for array in labels:
            inside |= (array != 0) & (array != IGNORED)
            if partly:
                unknown &= array == IGNORED
        if not inside.any():
            return cls((0, 0, 0), (shape[0], shape[1], shape[2]))
        if partly:
            for axis in range(3):
                unknown = ndimage.minimum_filter1d(unknown, 2 * margin + 1, axis, mode="constant", cval=True)
            inside |= unknown
        low, high = [], []
        for axis, side in enumerate(shape):
            found = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
            low.append(max(0, int(found[0]) - margin))
            high.append(min(side, int(found[-1]) + 1 + margin))
        return cls((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    def united(self, other: Region) -> Region:
        """The box around both."""
        low = [min(pair) for pair in zip(self.start, other.start, strict=True)]
        high = [max(pair) for pair in zip(self.stop, other.stop, strict=True)]
        return Region((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    @classmethod
    def from_json(cls, value: Any) -> Region:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is no box.
        """
        try:
            (z0, z1), (y0, y1), (x0, x1) = value
            return cls((int(z0), int(y0), int(x0)), (int(z1), int(y1), int(x1)))
        except (TypeError, ValueError) as error:
            raise InputError("the region is no box of voxels", found=repr(value)[:80]) from error

    def to_json(self) -> list[list[int]]:
        """Start and stop along the slices, rows and columns."""
        return [list(side) for side in self._sides]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it lies in a grid of this shape, slices first."""
        return all(stop <= side for stop, side in zip(self.stop, shape, strict=True))

    def crop(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part (..., z, y, x) of an array of the whole grid; a view."""
        z, y, x = (slice(*side) for side in self._sides)
        return array[..., z, y, x]

    def cut(self, case: MappedCase) -> MappedCase:
        """The part of a mapped case; a view."""
        return MappedCase(case.name, self.crop(case.image), self.crop(case.labels))

    def paste(self, probabilities: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Class probabilities (classes, z, y, x) of the box as those of the grid of ``shape``: background outside."""
        whole = np.zeros((len(probabilities), *shape), dtype=probabilities.dtype)
        whole[0] = 1
        self.crop(whole)[...] = probabilities
        return whole

    @property
    def _sides(self) -> list[tuple[int, int]]:
        return list(zip(self.start, self.stop, strict=True))

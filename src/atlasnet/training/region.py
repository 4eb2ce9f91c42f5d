"""`Region`: the part of an atlas's space in which there is something to segment, the same for every subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import InputError


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
    def whole(cls, shape: Sequence[int]) -> Region:
        """All of a grid of this shape, slices first."""
        slices, rows, columns = shape
        return cls((0, 0, 0), (slices, rows, columns))

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

    def paste(self, probabilities: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Class probabilities (classes, z, y, x) of the box as those of the grid of ``shape``: background outside."""
        whole = np.zeros((len(probabilities), *shape), dtype=probabilities.dtype)
        whole[0] = 1
        self.crop(whole)[...] = probabilities
        return whole

    def widened(self, margin: int, shape: Sequence[int]) -> Region:
        """With so many voxels more on every side, as far as a grid of this shape, slices first, has them."""
        low = [max(0, a - margin) for a in self.start]
        high = [min(side, b + margin) for b, side in zip(self.stop, shape, strict=True)]
        return Region((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    def within(self, other: Region) -> Region:
        """The same box, its voxels counted from the start of another box that holds it."""
        (z0, z1), (y0, y1), (x0, x1) = (
            (a - origin, b - origin) for (a, b), origin in zip(self._sides, other.start, strict=True)
        )
        return Region((z0, y0, x0), (z1, y1, x1))

    @property
    def _sides(self) -> list[tuple[int, int]]:
        return list(zip(self.start, self.stop, strict=True))

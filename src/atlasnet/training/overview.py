"""`Overview`: where subjects have structures in an atlas's space, seen before anything is mapped at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.training.mapping import class_indices, slice_order
from atlasnet.training.region import Region
from atlasnet.training.store import IGNORED
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import grown

VOXELS = 1.0e6
"""Of an overview at most: a structure of a few voxels may be small in a scan, and the scan need not be mapped whole."""

STRUCTURE, NOTHING_SEEN = 1, 2
"""What an overview holds where there is any label, and where the subject shows nothing: outside of its field of view or
its organ mask. It holds 0 where there is background, `IGNORED` where nobody annotated it."""


@dataclass(frozen=True)
class Overview:
    """Every so many-th voxel of the grid on which an atlas's network works.

    Args:
        grid: the working grid.
        steps: along (z, y, x), voxels from one to the next.
    """

    grid: Grid
    steps: tuple[int, int, int]

    @classmethod
    def of(cls, grid: Grid) -> Overview:
        """The finest of `VOXELS` voxels at most, its finest axes thinned first."""
        size, steps = np.asarray(grid.shape), np.ones(3, dtype=int)
        while np.prod(-(-size // steps)) > VOXELS:
            lengths = np.where(steps < size, grid.spacing[::-1] * steps, np.inf)
            steps[int(lengths.argmin())] += 1
        z, y, x = steps.tolist()
        return cls(grid, (z, y, x))

    @property
    def lattice(self) -> Grid:
        """Its voxels as a grid; the first is that of the working grid."""
        z, y, x = (-(-side // step) for side, step in zip(self.grid.shape, self.steps, strict=True))
        spacing = self.grid.spacing * self.steps[::-1]
        return Grid.from_parts((z, y, x), spacing, self.grid.origin, self.grid.direction)

    def map(
        self, labels: Volume, values: tuple[int, ...], transform: Transform, mask: Volume | None = None
    ) -> NDArray[np.uint8]:
        """(z, y, x) of `STRUCTURE`, `NOTHING_SEEN`, `IGNORED` and 0; the arguments are those of `map_labels`.

        Structures are widened by a voxel of the overview before they are mapped, so that none is missed that is at
        least half as large in the atlas as it is in the subject.
        """
        indices = class_indices(labels.array, values)
        seen = np.where(indices == IGNORED, indices, np.uint8(0))
        found = (indices != 0) & (indices != IGNORED)
        if mask is not None:
            seen[mask.array == 0] = NOTHING_SEEN
            found &= mask.array != 0
        lattice = self.lattice
        if found.any():
            reach = np.ceil(lattice.spacing / labels.grid.spacing).astype(int)[::-1].tolist()
            (box,) = ndimage.find_objects(found[0].astype(np.uint8))
            z, y, x = grown(box, reach, labels.grid.shape)
            near = found[0, z, y, x]
            for axis, r in enumerate(reach):
                near = ndimage.maximum_filter1d(near, 2 * r + 1, axis, mode="constant")
            seen[0, z, y, x][near] = STRUCTURE
        mapped: NDArray[np.uint8] = transform.warp(
            labels.replace(seen), lattice, interpolation="nearest", fill=NOTHING_SEEN
        ).array[0]
        return mapped

    def region(
        self, seen: Sequence[NDArray[np.uint8]], slice_axis: str, margin: Sequence[int], *, partly: bool = False
    ) -> Region:
        """The box of the working grid around every structure; all of it where there is none.

        Args:
            seen: from `map`, of the training subjects.
            slice_axis: of the plan.
            margin: voxels of the working grid along (z, y, x) around the structures.
            partly: whether the subjects are annotated in part: what is `IGNORED` in all that show it, farther than the
                margin from what is not, may hold structures that nobody has seen, and is in the box too.
        """
        shape = seen[0].shape
        inside, unknown, unsure = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool), np.full(shape, partly)
        for array in seen:
            inside |= array == STRUCTURE
            if partly:
                unknown |= array == IGNORED
                unsure &= (array == IGNORED) | (array == NOTHING_SEEN)
        sides = [(0, side) for side in self.grid.shape]
        if inside.any():
            if partly:
                for axis, (step, room) in enumerate(zip(self.steps, margin, strict=True)):
                    width = 2 * -(-room // step) + 1
                    unsure = ndimage.minimum_filter1d(unsure, width, axis, mode="constant", cval=True)
                inside |= unknown & unsure
            sides = [self._side(inside, axis, margin[axis]) for axis in range(3)]
        (z0, z1), (y0, y1), (x0, x1) = slice_order(sides, slice_axis)
        return Region((z0, y0, x0), (z1, y1, x1))

    def _side(self, inside: NDArray[np.bool_], axis: int, margin: int) -> tuple[int, int]:
        """From where to where the working grid's voxels lie that are inside, or next to one of which that is known."""
        step, side = self.steps[axis], self.grid.shape[axis]
        found = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis))) * step
        return max(0, int(found[0]) - (step - 1) - margin), min(side, int(found[-1]) + step + margin)

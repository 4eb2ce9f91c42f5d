"""Canonical orientation: the axes of any stored image brought next to the patient's, without resampling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

AXIS_TOLERANCE = 1e-4
"""A direction nearer than this to the patient's axes is taken as theirs: 0.05 voxels at the end of 1000 voxels."""

THICK = 1.2
"""The axis whose spacing exceeds both others by this factor is the one that slices were acquired along."""

_NEAR = 0.4
"""Cosine of the angle to an axis of the patient (66 degrees) from which on oblique slices may count as along it."""


@dataclass(frozen=True)
class Orientation:
    """How a stored array's last three axes were permuted and flipped to become canonical.

    Args:
        axes: ``axes[i]`` is the stored axis (0 z, 1 y, 2 x) that became canonical axis i.
        flipped: whether canonical axis i runs against the stored one.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """A stored array (..., z, y, x) in canonical order; contiguous, values untouched."""
        lead = tuple(range(array.ndim - 3))
        turned = array.transpose(*lead, *(len(lead) + axis for axis in self.axes))
        return _contiguous(turned[(..., *self._slices())])

    def turn(self, tensor: Tensor) -> Tensor:
        """`apply` for a tensor on any device; a view where no axis is flipped."""
        lead = tuple(range(tensor.ndim - 3))
        turned = tensor.permute(*lead, *(len(lead) + axis for axis in self.axes))
        return turned.flip([len(lead) + axis for axis, flip in enumerate(self.flipped) if flip])

    def restore(self, array: NDArray[Any]) -> NDArray[Any]:
        """A canonical array (..., z, y, x) in stored order: the exact inverse of `apply`."""
        lead = tuple(range(array.ndim - 3))
        back = np.argsort(self.axes)
        turned = array[(..., *self._slices())].transpose(*lead, *(len(lead) + int(axis) for axis in back))
        return _contiguous(turned)

    def _slices(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return z, y, x


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order. NumPy leaves an axis of length 1 its negative stride, which torch does not take."""
    return np.ascontiguousarray(array) if min(array.strides, default=0) >= 0 else array.copy(order="C")


@overload
def canonical(image: Volume, snap: bool = True) -> tuple[Volume, Orientation]: ...
@overload
def canonical(image: Grid, snap: bool = True) -> tuple[Grid, Orientation]: ...
def canonical(image: Volume | Grid, snap: bool = True) -> tuple[Volume | Grid, Orientation]:
    """Permute and flip the axes so that array axes (z, y, x) run nearest to the patient's +z, +y, +x (LPS).

    Voxel values are untouched and every voxel keeps its place in the patient. `Orientation.restore` undoes it exactly.

    Args:
        image: a volume or a grid in any of the 48 orientations, or oblique.
        snap: remove header noise, so that one image stored in any of its 48 orientations gives bit-identical geometry:
            see `snapped`.

    Returns:
        The canonical volume or grid, and the orientation that leads back.
    """
    grid = image if isinstance(image, Grid) else image.grid
    orientation = _nearest(grid)
    turned = turned_grid(grid, orientation)
    if snap:
        turned = snapped(turned)
    return turned if isinstance(image, Grid) else Volume(orientation.apply(image.array), turned), orientation


def turned_grid(grid: Grid, orientation: Orientation) -> Grid:
    """The grid of what `Orientation.apply` makes of an array on this one."""
    columns = [2 - axis for axis in orientation.axes[::-1]]
    signs = np.array([-1.0 if flip else 1.0 for flip in orientation.flipped[::-1]])
    matrix = grid.affine[:3, :3][:, columns] * signs
    corner = np.zeros(3)
    for column, sign in zip(columns, signs, strict=True):
        corner[column] = grid.size[column] - 1 if sign < 0 else 0
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix + 0.0, grid.to_world(corner)
    z, y, x = (grid.shape[axis] for axis in orientation.axes)
    return Grid((z, y, x), affine)


def common_slice_axis(grids: Iterable[Grid]) -> int | None:
    """The axis of the patient (0 x, 1 y, 2 z) that the thick slices of most canonical grids may count as along.

    None where no grid has an axis that is `THICK`.
    """
    cosines = [np.abs(grid.direction[:, axis]) for grid in grids if (axis := thick_axis(grid.spacing)) is not None]
    if not cosines:
        return None
    near = np.array(cosines) >= _NEAR
    return max(range(3), key=lambda axis: (int(near[:, axis].sum()), float(np.sum(cosines, axis=0)[axis])))


def slices_along(grid: Grid, axis: int) -> Orientation:
    """How a canonical grid is turned to have its thick slices along an axis, if that is not far from their normal.

    Slices that lie oblique to all axes of the patient, as the short axis of a heart does, are nearest to one axis in
    one subject and to another in the next, although the slices of both show the same. Those of a grid whose slices are
    not thick, or are far from the axis (a sagittal scan among axial ones), stay as they are. Nothing is mirrored.

    Args:
        grid: canonical.
        axis: 0 x, 1 y, 2 z; see `common_slice_axis`.
    """
    stay = Orientation((0, 1, 2), (False, False, False))
    thick, direction = thick_axis(grid.spacing), grid.direction
    if thick in (None, axis) or abs(direction[axis, thick]) < _NEAR:
        return stay
    found = []
    for columns in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = direction[:, columns] * signs
            if columns[axis] == thick:
                found.append((round(float(np.trace(matrix)), 5), columns, signs))
    # No mirror image is among the best: its trace is 1 at most, and quarter turns about a normal so near leave 1.39.
    _, columns, signs = max(found)
    z, y, x = (2 - column for column in columns[::-1])
    return Orientation((z, y, x), (signs[2] < 0, signs[1] < 0, signs[0] < 0))


def thick_axis(spacing: ArrayLike) -> int | None:
    """0, 1 or 2 for x, y, z: the axis whose spacing is `THICK` beside the others; None where there is none."""
    order = np.argsort(spacing, kind="stable")
    thickest, next_one = np.asarray(spacing)[order[2]], np.asarray(spacing)[order[1]]
    return int(order[2]) if thickest > THICK * next_one else None


def snapped(grid: Grid) -> Grid:
    """The grid without the last digits of its header, which depend on how it was stored.

    Directions within 1e-4 of the patient's axes become exactly these; others are rounded to 1e-5 and orthonormalised
    again. Spacings are rounded to 1e-6 mm and origins to 1e-3 mm (finer where voxels are smaller than 0.5 mm): at most
    a thousandth of a voxel. The middle of the field of view stays in place while directions turn.
    """
    spacing = grid.spacing
    spacing = _rounded(spacing, min(1e-6, 1e-6 * _power_of_ten(spacing.min())))
    direction = grid.direction
    signed = np.rint(direction)
    if np.abs(direction - signed).max() <= AXIS_TOLERANCE:
        direction = signed + 0.0
    else:
        direction = _gram_schmidt(np.round(direction, 5) + 0.0)
    quantum = min(1e-3, 1e-3 * _power_of_ten(2 * spacing.min()))
    origin = grid.centre - direction @ (spacing * (grid.size - 1) / 2)
    # Halves and quarters of a millimetre, down to 1/128, lie on multiples of 1/16 of the quantum: the rounding edge is
    # put between them, where noise in the stored number cannot push such an origin across it.
    return Grid.from_parts(grid.shape, spacing, _rounded(origin + quantum / 32, quantum), direction)


def _rounded(values: NDArray[np.float64], quantum: float) -> NDArray[np.float64]:
    """Multiples of ``quantum`` (a power of ten), as the nearest doubles: division by an integer rounds correctly."""
    return np.asarray(np.rint(values / quantum) / round(1 / quantum) + 0.0)


def _power_of_ten(value: float) -> float:
    """The largest power of ten that is not above ``value``, 1 at most."""
    return float(10.0 ** min(0, int(np.floor(np.log10(value) + 1e-9))))


def _gram_schmidt(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns by plain arithmetic: unlike an SVD, the same bits on every machine."""
    columns: list[NDArray[np.float64]] = []
    for column in matrix.T:
        for earlier in columns:
            column = column - earlier * float(np.sum(earlier * column))
        columns.append(column / np.sqrt(float(np.sum(column * column))))
    return np.stack(columns, axis=1)


def _nearest(grid: Grid) -> Orientation:
    """The assignment of index axes to patient axes with the largest sum of cosines.

    Between assignments that are equally good (45 degrees) the resulting matrix decides, which does not depend on how
    the image was stored.
    """
    direction = grid.direction

    def canonical_direction(columns: tuple[int, ...]) -> NDArray[np.float64]:
        chosen = direction[:, columns]
        cosines = np.diag(chosen)
        return chosen * np.where(cosines < 0, -1.0, 1.0)

    def rank(columns: tuple[int, ...]) -> tuple[float, ...]:
        chosen = canonical_direction(columns)
        return (round(float(np.trace(chosen)), 5), *np.round(chosen, 4).ravel().tolist())

    best = max(permutations(range(3)), key=rank)
    flips = [bool(direction[world, column] < 0) for world, column in enumerate(best)]
    z, y, x = (2 - column for column in best[::-1])
    return Orientation((z, y, x), (flips[2], flips[1], flips[0]))

"""Concentric lattices over one field of view, and the separable linear maps between them.

Every level of a registration lives on lattices with the axes and the centre of the target's grid: images,
displacements, control points. A map from one such lattice to another is then three small matrices, one per axis,
whatever the ratio of the spacings; it runs as three matrix products on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.volume import Grid
from atlasnet.volume.sampling import Matrices

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Lattice:
    """Points per axis and their distance, around a common centre.

    Args:
        shape: points along (z, y, x).
        spacing: distance along (z, y, x), mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, grid: Grid) -> Lattice:
        """The lattice of a grid, its position forgotten."""
        x, y, z = grid.spacing.tolist()
        return cls(grid.shape, (z, y, x))

    def positions(self, axis: int) -> Float:
        """Coordinates along ``axis`` (0 is z), mm from the common centre."""
        count = self.shape[axis]
        return np.asarray((np.arange(count) - (count - 1) / 2) * self.spacing[axis])


def interpolation(source: Lattice, target: Lattice, device: torch.device | str = "cpu") -> Matrices:
    """Linear interpolation from ``source`` to ``target``; outside the source's lattice the nearest edge value.

    Towards a coarser lattice the hat widens to the coarser spacing, so that nothing aliases.
    """

    def one_axis(axis: int) -> Float:
        points, nodes = target.positions(axis), source.positions(axis)
        points = np.clip(points, nodes[0], nodes[-1])
        distance = nodes[None, :] - points[:, None]
        weights = np.maximum(0.0, 1.0 - np.abs(distance) / max(source.spacing[axis], target.spacing[axis]))
        # A widened hat over nodes that do not lie evenly around the point would read beside it: centre its weights.
        total, first, second = ((weights * distance**power).sum(1, keepdims=True) for power in range(3))
        spread = total * second - first**2
        return np.where(spread > 1e-9 * source.spacing[axis] ** 2, weights * (second - distance * first), weights)

    return _normalised(one_axis, device)


def support(image: Lattice, control: Lattice, device: torch.device | str = "cpu") -> Matrices:
    """Means over the supports of control points: a hat that reaches to the next control point; rows sum to 1."""

    def one_axis(axis: int) -> Float:
        distance = np.abs(control.positions(axis)[:, None] - image.positions(axis)[None, :])
        # A control point beyond the last voxel by nearly a whole spacing would have no support: it takes the edge's.
        distance -= np.maximum(0.0, distance.min(1, keepdims=True) - image.spacing[axis] / 2)
        return np.maximum(0.0, 1.0 - distance / max(control.spacing[axis], image.spacing[axis]))

    return _normalised(one_axis, device)


def spline(control: Lattice, image: Lattice, device: torch.device | str = "cpu") -> Matrices:
    """Uniform cubic B-spline from coefficients on ``control`` to values on ``image``; edge coefficients are repeated.

    The free-form deformation of Rueckert et al., IEEE TMI 18(8), 1999. Rows sum to 1.
    """

    def one_axis(axis: int) -> Float:
        count = control.shape[axis]
        matrix = np.zeros((image.shape[axis], count))
        position = image.positions(axis) / control.spacing[axis] + (count - 1) / 2
        # Coefficients beyond the edge matter up to two spacings away.
        for node in range(-2, count + 2):
            distance = np.abs(position - node)
            inner = 2 / 3 - distance**2 + distance**3 / 2
            outer = np.maximum(0.0, 2.0 - distance) ** 3 / 6
            matrix[:, min(max(node, 0), count - 1)] += np.where(distance < 1, inner, outer)
        return matrix

    return _normalised(one_axis, device)


def _normalised(one_axis: Callable[[int], Float], device: torch.device | str) -> Matrices:
    z, y, x = (one_axis(axis) for axis in range(3))
    return _tensor(z, device), _tensor(y, device), _tensor(x, device)


def _tensor(matrix: Float, device: torch.device | str) -> Tensor:
    return torch.tensor(matrix / matrix.sum(1, keepdims=True), dtype=torch.float32, device=device)

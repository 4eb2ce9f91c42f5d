"""Smooth random fields that are functions of position, so that one subject is the same at every resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Standard deviation of a cubic B-spline sum of unit normals, averaged over positions between the nodes: one axis's is
# the square root of the mean of the squared weights (151 / 315), three axes multiply.
_UNIT_DEVIATION = (151 / 315) ** 1.5


@dataclass(frozen=True)
class Lattice:
    """Cubic B-spline coefficients on nodes ``step`` mm apart, centred on the world's origin.

    Args:
        coefficients: (fields, k, k, k), node axes (z, y, x).
        step: distance between nodes, mm.
    """

    coefficients: Array
    step: float

    @classmethod
    def random(cls, rng: np.random.Generator, step: float, reach: float, fields: int = 1) -> Lattice:
        """Fields with mean 0 and standard deviation 1, defined up to ``reach`` mm from the origin along each axis."""
        count = 2 * int(np.ceil(reach / step)) + 5
        values = rng.standard_normal((fields, count, count, count), dtype=np.float32)
        return cls(values / np.float32(_UNIT_DEVIATION), step)

    def scaled(self, factor: float) -> Lattice:
        """The same fields times ``factor``."""
        return Lattice(self.coefficients * np.float32(factor), self.step)

    def _node(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions in mm to node coordinates, held inside the support."""
        count = self.coefficients.shape[1]
        return np.asarray(np.clip(np.asarray(positions, np.float64) / self.step + (count - 1) / 2, 1.0, count - 2.001))

    def _weights(self, positions: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The four nodes (..., 4) that bear on each position along one axis, and their B-spline weights."""
        node = self._node(positions)
        first = np.floor(node).astype(np.int64)
        t = node - first
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], -1) / 6
        return first[..., None] + np.arange(-1, 3), weights

    def on_axes(self, z: NDArray[np.floating], y: NDArray[np.floating], x: NDArray[np.floating]) -> Array:
        """(fields, len(z), len(y), len(x)) values on the rectangular grid of three axes, mm."""
        # Sums over the four nodes rather than matrix products, whose rounding depends on the number of threads.
        values = self.coefficients
        for axis, positions in ((1, z), (2, y), (3, x)):
            nodes, weights = self._weights(positions)
            shape = [-1 if i == axis else 1 for i in range(4)]
            taps = weights.astype(np.float32).T.reshape(4, *shape)
            total = taps[0] * values.take(nodes[:, 0], axis)
            for k in range(1, 4):
                total += taps[k] * values.take(nodes[:, k], axis)
            values = total
        return np.asarray(values, np.float32)

    def at(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, fields) values at scattered points (n, 3), (x, y, z) in mm."""
        nodes, weights = self._weights(np.asarray(points)[:, ::-1])
        z, y, x = (nodes[:, i] for i in range(3))
        near = self.coefficients[:, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        for axis in (2, 1, 0):
            near = (near * weights[:, axis].reshape(1, len(z), *[1] * axis, 4)).sum(-1)
        return np.asarray(near.T)

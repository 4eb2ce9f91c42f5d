"""Signed distances (mm, negative inside) from simple solids, and points that know which of them come near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Points:
    """Anatomical coordinates of a block of voxels: three arrays (z, y, x), mm."""

    x: Array
    y: Array
    z: Array

    def window(self, low: Sequence[float], high: Sequence[float]) -> Window | None:
        """The smallest block that holds every voxel in the box ``low`` to ``high`` (x, y, z), or None."""
        found: list[slice] = []
        for array, axis, a, b in (
            (self.z, 0, low[2], high[2]),
            (self.y, 1, low[1], high[1]),
            (self.x, 2, low[0], high[0]),
        ):
            others = tuple(i for i in range(3) if i != axis)
            hit = np.flatnonzero((array.max(others) >= a) & (array.min(others) <= b))
            if hit.size == 0:
                return None
            found.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return found[0], found[1], found[2]

    def __getitem__(self, window: Window) -> Points:
        return Points(self.x[window], self.y[window], self.z[window])


@dataclass(frozen=True)
class Profile:
    """A smooth function of height through a few knots, read from a table.

    Args:
        table: values every quarter millimetre from -400 to 400 mm.
    """

    table: Array

    @classmethod
    def through(cls, knots: Sequence[tuple[float, float]]) -> Profile:
        """Shape-preserving cubic through (height, value) pairs, constant beyond the ends."""
        from scipy.interpolate import PchipInterpolator

        heights, values = np.array(sorted(knots)).T
        at = np.clip(np.arange(-400, 400.001, 0.25), heights[0], heights[-1])
        return cls(PchipInterpolator(heights, values)(at).astype(np.float32))

    @property
    def slope(self) -> Profile:
        """The derivative with respect to height."""
        return Profile(np.gradient(self.table, 0.25).astype(np.float32))

    def __call__(self, z: Array) -> Array:
        """Values at heights ``z``, mm."""
        index = np.clip(z * np.float32(4) + np.float32(1600.5), 0, len(self.table) - 1).astype(np.int32)
        return np.asarray(self.table[index])


def ellipse(dx: Array, dy: Array, rx: Array | float, ry: Array | float) -> Array:
    """Distance from an upright cylinder with an elliptic section, measured along the ray from its axis."""
    f = np.sqrt((dx / np.asarray(rx, np.float32)) ** 2 + (dy / np.asarray(ry, np.float32)) ** 2)
    return np.asarray(np.hypot(dx, dy) * (1 - 1 / np.maximum(f, np.float32(1e-3))), np.float32)


def superellipse(dx: Array, dy: Array, rx: Array, ry: Array) -> Array:
    """The same with the fuller section |x/a|^2.25 + |y/b|^2.25 = 1, which is nearer to a chest."""
    u, v = (dx / rx) ** 2, (dy / ry) ** 2
    f = np.power(u * np.sqrt(np.sqrt(np.sqrt(u))) + v * np.sqrt(np.sqrt(np.sqrt(v))), np.float32(1 / 2.25))
    return np.asarray(np.hypot(dx, dy) * (1 - 1 / np.maximum(f, np.float32(1e-3))), np.float32)


def ellipsoid(
    p: Points, centre: Sequence[float], radii: Sequence[float], axes: NDArray[np.floating] | None = None
) -> Array:
    """Distance from an ellipsoid, along the ray from its centre; the rows of ``axes`` are its axes."""
    d = [p.x - np.float32(centre[0]), p.y - np.float32(centre[1]), p.z - np.float32(centre[2])]
    if axes is not None:
        d = [np.float32(a[0]) * d[0] + np.float32(a[1]) * d[1] + np.float32(a[2]) * d[2] for a in axes]
    square = sum(((c / np.float32(r)) ** 2 for c, r in zip(d, radii, strict=True)), np.float32(0))
    f = np.sqrt(np.maximum(square, np.float32(1e-6)))
    return np.asarray(np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) * (1 - 1 / f), np.float32)


def capsule(p: Points, start: Sequence[float], end: Sequence[float], r0: float, r1: float) -> Array:
    """Distance from a tube from ``start`` to ``end`` whose radius goes from ``r0`` to ``r1``, with round ends."""
    a = np.asarray(start, np.float32)
    b = np.asarray(end, np.float32) - a
    dx, dy, dz = p.x - a[0], p.y - a[1], p.z - a[2]
    t = np.clip((dx * b[0] + dy * b[1] + dz * b[2]) / np.float32(max(float(b @ b), 1e-6)), 0, 1)
    gap = np.sqrt((dx - t * b[0]) ** 2 + (dy - t * b[1]) ** 2 + (dz - t * b[2]) ** 2)
    return np.asarray(gap - (np.float32(r0) + t * np.float32(r1 - r0)), np.float32)


def smooth_union(a: Array, b: Array, width: float) -> Array:
    """The union of two solids with a fillet ``width`` mm wide where they meet."""
    h = np.clip(0.5 + (b - a) / np.float32(2 * width), 0, 1)
    return np.asarray(b + (a - b) * h - np.float32(width) * h * (1 - h), np.float32)


def rotation_to(direction: Sequence[float]) -> NDArray[np.float64]:
    """Three orthonormal rows, the first along ``direction``."""
    first = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    second = np.cross([0.0, 0.0, 1.0], first)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])

"""An image that is known at every point, and affine maps of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

SHEARED = np.array([[1.08, 0.05, 0.0], [0.05, 0.94, -0.04], [0.0, -0.04, 1.02]])


def scene(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """A smooth analytic image: blobs of 5 to 14 mm within 45 mm of the origin, at world points (..., 3)."""
    random = np.random.default_rng(seed)
    centres, widths = random.uniform(-38, 38, (24, 3)), random.uniform(5, 14, 24)
    heights = random.uniform(40, 120, 24) * random.choice([-1, 1], 24)
    values = np.zeros(points.shape[:-1])
    for centre, width, height in zip(centres, widths, heights, strict=True):
        values += height * np.exp(-0.5 * np.sum((points - centre) ** 2, -1) / width**2)
    return values


def affine(turn: Sequence[float], shift: Sequence[float], stretch: np.ndarray | None = None) -> np.ndarray:
    """(4, 4): a stretch, then a turn by a rotation vector in degrees, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(turn)).as_matrix() @ (np.eye(3) if stretch is None else stretch)
    matrix[:3, 3] = shift
    return matrix

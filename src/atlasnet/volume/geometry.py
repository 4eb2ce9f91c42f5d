"""Geometry that can be trusted: finite, with orthonormal axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import Grid
from atlasnet.volume.headers import check_spacing

DIRECTION_TOLERANCE = 1e-3
"""How far an element of a direction may lie from the nearest orthonormal matrix; less is rounding and mended."""

_FARTHEST = 1e7  # mm; an origin beyond is a damaged number


def nearest_orthonormal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The orthonormal matrix nearest to ``matrix`` (polar decomposition), mirrored if ``matrix`` is."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ vt)


def check_orthonormal(path: Path, direction: NDArray[np.float64]) -> None:
    """Refuse axes, the columns of ``direction``, that are not at right angles or not of length 1.

    Raises:
        VolumeError: they are sheared, or singular, beyond rounding.
    """
    if not np.isfinite(direction).all() or abs(np.linalg.det(direction)) < 1e-3:
        raise singular(path, direction)
    if np.abs(direction - nearest_orthonormal(direction)).max() > DIRECTION_TOLERANCE:
        raise VolumeError(
            "the image axes are sheared",
            path=path,
            expected=f"a direction matrix orthonormal within {DIRECTION_TOLERANCE:g}",
            found=in_brackets(direction.ravel()),
            remedy="resample the image onto a rectangular grid (gantry tilt), or correct the header",
        )


def singular(path: Path, direction: NDArray[np.float64]) -> VolumeError:
    """The refusal of axes that lie in one plane."""
    return VolumeError(
        "the direction matrix is singular",
        path=path,
        expected="three independent axes",
        found=in_brackets(direction.ravel()),
        remedy="correct the header",
    )


def trusted_grid(
    path: Path,
    shape: tuple[int, int, int],
    spacing: NDArray[np.float64],
    origin: NDArray[np.float64],
    direction: NDArray[np.float64],
) -> Grid:
    """The grid of these parts, its direction exactly orthonormal.

    Raises:
        VolumeError: a number is not finite or positive, or the direction is sheared or singular beyond rounding.
    """
    check_spacing(path, spacing.tolist())
    if not (np.abs(origin) < _FARTHEST).all():
        raise VolumeError("the origin is impossible", path=path, found=f"{in_brackets(origin)} mm")
    check_orthonormal(path, direction)
    # An exact matrix is left as it is: the decomposition would change its last bits.
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-12:
        direction = nearest_orthonormal(direction)
    return Grid.from_parts(shape, spacing, origin, direction + 0.0)


def in_brackets(values: NDArray[np.float64]) -> str:
    """Numbers for a message, to six digits."""
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"

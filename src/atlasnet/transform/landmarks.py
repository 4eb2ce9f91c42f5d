"""A linear map from corresponding points."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasnet.errors import TransformError
from atlasnet.transform.transform import Transform
from atlasnet.wording import counted

Float = NDArray[np.float64]
# A full affine map has 12 unknowns; with a few points more than its four, clicking errors begin to average out.
AFFINE_POINTS = 8
# Points whose spread in the third direction is a smaller share of that in the first are taken to lie in a plane.
FLAT = 0.05


def landmark_transform(target: ArrayLike, source: ArrayLike, *, kind: str | None = None) -> Transform:
    """The map that takes landmarks of the target to those of the source with the least squared distance.

    Args:
        target: (n, 3) points in LPS mm.
        source: (n, 3), the same anatomical points in the other image.
        kind: ``"rigid"`` (Kabsch; n at least 3), ``"similarity"`` (Umeyama, IEEE TPAMI 13(4), 1991) or ``"affine"``
            (n at least 4, not in a plane). None: affine with at least 8 points that are not in a plane, else rigid.

    Raises:
        TransformError: the points do not correspond, are not finite, are too few, or all on a line or in a plane where
            the kind of map needs more.
    """
    there, here = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if here.ndim != 2 or here.shape[1:] != (3,) or here.shape != there.shape:
        raise TransformError(
            "the landmarks do not correspond",
            expected="as many points (x, y, z) in the target as in the source",
            found=f"{here.shape} and {there.shape}",
        )
    if not (np.isfinite(here).all() and np.isfinite(there).all()):
        raise TransformError("landmarks are not finite")
    middle, other = here.mean(0), there.mean(0)
    spread = min(_spread(here - middle), _spread(there - other))
    if kind is None:
        kind = "affine" if len(here) >= AFFINE_POINTS and spread[2] > FLAT else "rigid"
    if kind not in ("rigid", "similarity", "affine"):
        raise TransformError(f"no map is called {kind!r}", expected="rigid, similarity or affine")
    enough = len(here) >= 4 and spread[2] > 1e-6 if kind == "affine" else len(here) >= 3 and spread[1] > 1e-6
    if not enough:
        raise TransformError(
            f"the landmarks do not determine a map that is {kind}",
            expected="4 or more points that are not in a plane" if kind == "affine" else "3 or more, not on a line",
            found=counted(len(here), "point"),
        )
    linear = _affine(here - middle, there - other) if kind == "affine" else _rigid(here - middle, there - other, kind)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = other - linear @ middle
    return Transform.affine(matrix)


def read_landmarks(path: str | Path) -> tuple[Float, Float]:
    """Read corresponding points from a CSV file.

    One pair a line, separated by commas: x, y, z in the target, then x, y, z in the source, LPS mm. A line of six names
    above them, lines that are empty but for commas, and lines that begin with # are skipped.

    Returns:
        (n, 3) points of the target and (n, 3) of the source.

    Raises:
        TransformError: the file cannot be read, or a line is not six finite numbers.
    """
    rows: list[list[float]] = []
    named = False
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if not "".join(row).strip() or row[0].lstrip().startswith("#"):
                    continue
                values = [_number(value) for value in row]
                # What is not six names may be numbers that something else than commas separates.
                if not rows and not named and len(values) == 6 and all(value is None for value in values):
                    named = True
                    continue
                pair = [value for value in values if value is not None and math.isfinite(value)]
                if not len(values) == len(pair) == 6:
                    raise TransformError(
                        f"line {number} is no pair of landmarks",
                        path=path,
                        expected="six finite numbers separated by commas: x, y, z in the target and in the source, mm",
                        found=",".join(row)[:80],
                    )
                rows.append(pair)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TransformError("the landmarks cannot be read", path=path, found=str(error)) from error
    if not rows:
        raise TransformError("the file holds no landmarks", path=path)
    points = np.array(rows)
    return points[:, :3], points[:, 3:]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _spread(centred: Float) -> list[float]:
    """Extent in the three main directions, relative to the largest."""
    values = np.linalg.svd(centred, compute_uv=False)
    values = np.pad(values, (0, 3 - len(values)))
    return [float(value) for value in values / max(values[0], 1e-30)]


def _affine(here: Float, there: Float) -> Float:
    solution, *_ = np.linalg.lstsq(here, there, rcond=None)
    return np.asarray(solution.T)


def _rigid(here: Float, there: Float, kind: str) -> Float:
    left, values, right = np.linalg.svd(there.T @ here)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    scale = float((values * sign).sum() / (here**2).sum()) if kind == "similarity" else 1.0
    return np.asarray(scale * (left * sign) @ right)

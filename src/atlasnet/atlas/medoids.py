"""k-medoids: which members of a set every member is nearest to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from math import comb

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import InputError

Float = NDArray[np.float64]

EXACT_LIMIT = 50_000
"""Up to so many sets of medoids all of them are tried."""


def k_medoids(distances: Float, count: int) -> list[int]:
    """The ``count`` members from which the mean distance of every member to the nearest of them is least.

    Exact where there are at most 50,000 sets to choose from, by partitioning around medoids (BUILD, then SWAP until
    no swap helps) above. Ties go to the lower indices, so the result is a function of the matrix.

    Kaufman, Rousseeuw: Finding Groups in Data, chapter 2. Wiley 1990.

    Args:
        distances: (n, n), non-negative; row i, column j: how badly j stands for i.
        count: from 1 to n.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: the matrix is not square, finite and non-negative, or the count is out of range.
    """
    distances = np.asarray(distances, dtype=np.float64)
    n = len(distances)
    if distances.shape != (n, n) or not np.isfinite(distances).all() or (distances < 0).any():
        raise InputError(
            "distances must be a square matrix of finite numbers, none negative", found=str(distances.shape)
        )
    if not 1 <= count <= n:
        raise InputError("the number of medoids is out of range", expected=f"1 to {n}", found=str(count))
    if comb(n, count) <= EXACT_LIMIT:
        return list(min(itertools.combinations(range(n), count), key=lambda chosen: (_cost(distances, chosen), chosen)))
    return _partition(distances, count)


def _cost(distances: Float, chosen: Iterable[int]) -> float:
    # Rounded, because sums of equal terms in another order are equal.
    return round(float(distances[:, list(chosen)].min(axis=1).sum()), 10)


def _partition(distances: Float, count: int) -> list[int]:
    others = range(len(distances))
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(min((i for i in others if i not in chosen), key=lambda i: (_cost(distances, [*chosen, i]), i)))
    cost = _cost(distances, chosen)
    while True:
        swaps = [
            sorted([*chosen[:place], new, *chosen[place + 1 :]])
            for place in range(count)
            for new in others
            if new not in chosen
        ]
        best = min(swaps, key=lambda swap: (_cost(distances, swap), swap))
        if _cost(distances, best) >= cost:
            return sorted(chosen)
        chosen, cost = best, _cost(distances, best)

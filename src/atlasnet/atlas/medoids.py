"""k-medoids: which members of a set every member is nearest to."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from math import comb

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import InputError

Float = NDArray[np.float64]

EXACT_LIMIT = 50_000
"""Up to so many sets of medoids all of them are tried."""


def k_medoids(distances: Float, count: int, kept: Collection[int] = ()) -> list[int]:
    """The ``count`` members from which the mean distance of every member to the nearest of them is least.

    Exact where there are at most 50,000 sets to choose from, by partitioning around medoids (BUILD, then SWAP until
    no swap helps) above. Ties go to the lower indices, so the result is a function of the matrix.

    Kaufman, Rousseeuw: Finding Groups in Data, chapter 2. Wiley 1990.

    Args:
        distances: (n, n), non-negative; row i, column j: how badly j stands for i.
        count: from 1 to n.
        kept: members that are medoids in any case; only the others are chosen.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: the matrix is not square, finite and non-negative, or the count is out of range, or more are kept.
    """
    distances = np.asarray(distances, dtype=np.float64)
    n = len(distances)
    if distances.shape != (n, n) or not np.isfinite(distances).all() or (distances < 0).any():
        raise InputError(
            "distances must be a square matrix of finite numbers, none negative", found=str(distances.shape)
        )
    fixed = sorted(set(kept))
    if not max(1, len(fixed)) <= count <= n:
        expected = f"{max(1, len(fixed))} to {n}"
        raise InputError("the number of medoids is out of range", expected=expected, found=str(count))
    free = [i for i in range(n) if i not in fixed]
    if comb(len(free), count - len(fixed)) <= EXACT_LIMIT:
        sets = (sorted([*fixed, *chosen]) for chosen in itertools.combinations(free, count - len(fixed)))
        return min(sets, key=lambda chosen: (_cost(distances, chosen), chosen))
    return _partition(distances, count, fixed)


def _cost(distances: Float, chosen: Iterable[int]) -> float:
    # Rounded, because sums of equal terms in another order are equal.
    return round(float(distances[:, list(chosen)].min(axis=1).sum()), 10)


def _partition(distances: Float, count: int, fixed: list[int]) -> list[int]:
    others = range(len(distances))
    chosen = list(fixed)
    for _ in range(count - len(fixed)):
        chosen.append(min((i for i in others if i not in chosen), key=lambda i: (_cost(distances, [*chosen, i]), i)))
    cost = _cost(distances, chosen)
    while True:
        swaps = [
            sorted([*chosen[:place], new, *chosen[place + 1 :]])
            for place in range(count)
            if chosen[place] not in fixed
            for new in others
            if new not in chosen
        ]
        best = min(swaps, key=lambda swap: (_cost(distances, swap), swap))
        if _cost(distances, best) >= cost:
            return sorted(chosen)
        chosen, cost = best, _cost(distances, best)

"""STAPLE: how far each atlas can be trusted, class by class, estimated from what the atlases choose and nothing else.

Expectation maximisation over the truth, which nobody knows, and a confusion matrix for each atlas: Warfield, Zou,
Wells, IEEE TMI 23(7), 2004; with several classes Rohlfing, Russakoff, Maurer, IEEE TMI 23(8), 2004. To the estimate,
voxels at which the atlases choose alike are alike: distinct patterns of choices are counted, the voxels forgotten.

An atlas that does not reach a voxel is no part of the likelihood there. ITK's filter knows no such atlas and holds
whole label maps; where every atlas reaches every voxel, both give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax
from torch import Tensor

Float = NDArray[np.float64]

# The estimate ends when no entry of a confusion matrix changes by more, or after so many iterations.
TOLERANCE = 1e-6
ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class Performance:
    """How the atlases err.

    Args:
        confusion: (atlases, chosen, true), the probability that an atlas chooses a class where another is true. Columns
            sum to 1; those of a class that was never true where the atlas reaches are 0.
        prior: (classes,) how often each class is true.
    """

    confusion: Float
    prior: Float

    def sensitivity(self, atlas: int, label: int) -> float | None:
        """The probability that an atlas finds a class; None where the class was never true."""
        column = self.confusion[atlas, :, label]
        return float(column[label]) if column.any() else None


class Patterns:
    """Counts how the atlases choose together, slab by slab, over the voxels at which one of them sees a structure.

    Those where every atlas that reaches sees background would only say how much of the scan is empty: the more of
    them, the more improbable any structure would seem.

    Args:
        atlases: how many.
    """

    def __init__(self, atlases: int) -> None:
        self._patterns = np.empty((atlases, 0), dtype=np.int16)
        self._counts = np.empty(0, dtype=np.int64)

    def add(self, choices: Sequence[Tensor]) -> None:
        """Count a slab.

        Args:
            choices: for each atlas (z, y, x) int16, the class that it chooses, -1 where it does not reach.
        """
        stacked = torch.stack([choice.flatten() for choice in choices])
        seen = stacked[:, (stacked > 0).any(0)].cpu().numpy()
        new, counts = _distinct(seen, np.ones(seen.shape[1], dtype=np.int64))
        self._patterns, self._counts = _distinct(
            np.concatenate([self._patterns, new], axis=1), np.concatenate([self._counts, counts])
        )

    def performance(self, classes: int) -> Performance:
        """The estimate from everything counted; see `estimate`."""
        return estimate(self._patterns, self._counts, classes)


def _distinct(patterns: NDArray[np.int16], counts: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Each of the columns (atlases, n) once, with its counts added up."""
    if not len(counts):
        return patterns, counts
    order = np.lexsort(patterns)
    patterns = patterns[:, order]
    first = np.append(True, (patterns[:, 1:] != patterns[:, :-1]).any(0)).nonzero()[0]
    return patterns[:, first], np.add.reduceat(counts[order], first)


def estimate(patterns: NDArray[np.int16], counts: NDArray[np.int64], classes: int) -> Performance:
    """Estimate prior and confusion matrices by expectation maximisation, which begins at the shares of the votes.

    Args:
        patterns: (atlases, n) class that each atlas chooses, -1 where it does not reach; at least one reaches.
        counts: (n,) voxels with that pattern.
        classes: how many, background included.

    Returns:
        The performance; the prior, which stays as it is, is the mean share of the votes. Without any voxel all is 0.
    """
    atlases = len(patterns)
    atlas, pattern = (patterns >= 0).nonzero()
    # (atlases * classes, n): who chooses what; an atlas that does not reach has no entry.
    chosen = sparse.csr_array(
        (np.ones(len(atlas)), (atlas * classes + patterns[atlas, pattern], pattern)),
        shape=(atlases * classes, len(counts)),
    )
    votes = np.stack([(patterns == label).sum(0) for label in range(classes)], axis=1)
    truth = votes / votes.sum(1, keepdims=True)  # (n, classes)
    prior = counts @ truth / max(1, counts.sum())
    confusion = np.zeros((atlases, classes, classes))
    with np.errstate(divide="ignore"):
        for _ in range(ITERATIONS):
            before = confusion
            joint = (chosen @ (counts[:, None] * truth)).reshape(confusion.shape)
            total = joint.sum(1, keepdims=True)
            confusion = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
            if np.abs(confusion - before).max() <= TOLERANCE:
                break
            truth = softmax(np.log(prior) + chosen.T @ np.log(confusion).reshape(-1, classes), axis=1)
    return Performance(confusion, prior)

"""Whom to believe where: weights of the atlases at every voxel, learnt from subjects that no network had seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

from atlasnet.registration import SMALLEST_DISTANCE
from atlasnet.training.evidence import finite

FEWEST = 5
"""Subjects, below which nothing is learnt."""

LARGEST = 20.0
"""No exponent is larger: a thousandth of what is seen would decide."""

_LEAST_CERTAINTY = 1e-3
_LEAST_PROBABILITY = 1e-4  # of the truth: what no atlas held to be possible costs so much and no more


@dataclass(frozen=True)
class FusionWeights:
    """How much an atlas counts at a voxel: more, the better the registration fits and the surer its network is there.

    The weight is d ** -fit * c ** certainty * exp(quality * q): d is 1 less the local correlation of the scan with the
    atlas (see `atlasnet.registration.local_correlation`), from 0.01 to 2; c is 1 less the entropy of the atlas's own
    probabilities as a share of the largest; q is the quality of the whole registration. With all three 0, atlases count
    alike.

    Args:
        fit: 0 or more, and so the others.
        certainty: of the network.
        quality: of the registration.
    """

    fit: float = 0.0
    certainty: float = 0.0
    quality: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= LARGEST:
                raise ValueError(f"expected {name} from 0 to {LARGEST:g}, found {value:g}")

    def of(self, probabilities: Tensor, correlation: Tensor, quality: float) -> Tensor:
        """The weight of an atlas at every voxel.

        Args:
            probabilities: (classes, z, y, x) of the atlas.
            correlation: (z, y, x), local.
            quality: of the registration.
        """
        exponent = self.fit * -distance(correlation).log() + self.quality * quality
        if self.certainty:
            exponent += self.certainty * certainty(probabilities).log()
        return exponent.exp()

    def to_json(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FusionWeights:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is not that.
        """
        return cls(**{field.name: float(finite(value[field.name])) for field in fields(cls)})


def distance(correlation: Tensor) -> Tensor:
    """1 less the local correlation (any shape), as far as it counts."""
    return (1 - correlation).clamp(SMALLEST_DISTANCE, 2)


def certainty(probabilities: Tensor) -> Tensor:
    """1 less the entropy of probabilities (classes, ...) as a share of the largest, above 0."""
    entropy: Tensor = torch.special.entr(probabilities.clamp(0, 1)).sum(0) / math.log(len(probabilities))
    return (1 - entropy).clamp(_LEAST_CERTAINTY, 1)


@dataclass(frozen=True, eq=False)
class Votes:
    """What the atlases said at some voxels of a subject, and what is true there.

    Args:
        array: (4, atlases, n) float32: the probability that each atlas gave to the true class, and what its weight
            depends on, in the order of the exponents.
    """

    array: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or len(self.array) != 4 or self.array.dtype != np.float32:
            raise ValueError(f"expected (4, atlases, n) float32, found {self.array.shape} {self.array.dtype}")

    @classmethod
    def none(cls, atlases: int) -> Votes:
        """Those at no voxel."""
        return cls(np.empty((4, atlases, 0), dtype=np.float32))

    @classmethod
    def of(cls, probabilities: Tensor, correlation: Tensor, qualities: Sequence[float], truth: Tensor) -> Votes:
        """Collect votes.

        Args:
            probabilities: (atlases, classes, n).
            correlation: (atlases, n), local.
            qualities: of the registrations.
            truth: (n,) int64 class indices.
        """
        chosen = probabilities.gather(1, truth.expand(len(probabilities), 1, -1))[:, 0]
        quality = torch.tensor(qualities, dtype=torch.float32, device=chosen.device)[:, None].expand_as(chosen)
        sure = certainty(probabilities.transpose(0, 1)).log()
        return cls(torch.stack([chosen, -distance(correlation).log(), sure, quality]).cpu().numpy())

    @property
    def atlases(self) -> int:
        """How many vote."""
        return int(self.array.shape[1])

    @property
    def voxels(self) -> int:
        """At how many voxels."""
        return int(self.array.shape[2])

    def joined(self, other: Votes) -> Votes:
        """With those at other voxels."""
        return Votes(np.concatenate([self.array, other.array], axis=2))

    def at(self, voxels: NDArray[np.intp]) -> Votes:
        """Those at some of the voxels."""
        return Votes(self.array[:, :, voxels])


def learn_weights(subjects: Sequence[Votes]) -> FusionWeights | None:
    """The weights with which the true classes are most probable, every subject counting alike.

    Args:
        subjects: votes of networks that have not seen them.

    Returns:
        None for fewer than `FEWEST` subjects with voxels and with two atlases.
    """
    used = [votes for votes in subjects if votes.atlases > 1 and votes.voxels]
    if len(used) < FEWEST:
        return None
    found = minimize(_loss, np.zeros(3), (used,), "L-BFGS-B", jac=True, bounds=[(0.0, LARGEST)] * 3)
    return FusionWeights(*(round(float(value), 4) for value in found.x))


def _loss(exponents: NDArray[np.float64], subjects: Sequence[Votes]) -> tuple[float, NDArray[np.float64]]:
    """Mean negative log-likelihood of the truth, and its gradient."""
    total, gradient = 0.0, np.zeros(3)
    for votes in subjects:
        truth, seen = votes.array[0], votes.array[1:]
        share = softmax(np.tensordot(exponents, seen, 1), axis=0)  # (atlases, n)
        fused = (share * truth).sum(0)
        said = np.maximum(fused, _LEAST_PROBABILITY)
        total -= float(np.log(said).mean())
        # An atlas gains as it gave the truth more than the atlases together do.
        pull = share * (truth - fused) / said * (fused > _LEAST_PROBABILITY)
        gradient -= np.tensordot(seen, pull, 2) / votes.voxels
    return total / len(subjects), gradient / len(subjects)

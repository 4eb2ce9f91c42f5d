"""Label fusion with learnt weights: how much an atlas counts at a voxel, learnt from subjects unseen in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

from atlasnet.cohort.structures import Hidden
from atlasnet.execution import save_tensors
from atlasnet.registration import SMALLEST_DISTANCE
from atlasnet.training.evidence import finite

FEWEST = 5
"""Subjects, below which nothing is learnt."""

LARGEST = 10.0
"""No exponent is larger: weights stay within float32, and more would be to choose one atlas."""

_LEAST_CERTAINTY = 1e-3
_LEAST_PROBABILITY = 1e-4  # of the truth: what no atlas held to be possible costs so much and no more


@dataclass(frozen=True)
class FusionWeights:
    """How much an atlas counts at a voxel: more, the better the registration fits and the surer its network is there.

    The weight is (1 - r) ** -fit * c ** certainty * exp(quality * q): r is the local correlation of the scan with the
    atlas (`atlasnet.registration.local_correlation`), 1 - r counting from 0.01 to 2; c is 1 less the entropy of the
    atlas's own probabilities as a share of the largest, at least 0.001; q is the quality of the whole registration.
    With all three exponents 0, atlases count alike.

    Args:
        fit: from 0 to `LARGEST`, and so the others.
        certainty: of the network.
        quality: of the registration.

    Raises:
        ValueError: an exponent is out of its range.
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
        logarithm = torch.zeros_like(correlation)
        for exponent, feature in zip(astuple(self), _FEATURES, strict=True):
            if exponent:
                logarithm += exponent * feature(probabilities, correlation, quality)
        return logarithm.exp()

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


def _fit(probabilities: Tensor, correlation: Tensor, quality: float) -> Tensor:
    return -(1 - correlation).clamp(SMALLEST_DISTANCE, 2).log()


def _certainty(probabilities: Tensor, correlation: Tensor, quality: float) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities.clamp(0, 1)).sum(0) / math.log(len(probabilities))
    return (1 - entropy).clamp(_LEAST_CERTAINTY, 1).log()


def _quality(probabilities: Tensor, correlation: Tensor, quality: float) -> Tensor:
    return torch.full_like(correlation, quality)


_FEATURES = (_fit, _certainty, _quality)
"""What the exponents multiply in a weight's logarithm, in their order: (...) of (classes, ...), (...) and a number."""


@dataclass(frozen=True, eq=False)
class FusionSamples:
    """What the atlases said at some voxels of a subject whose truth is known.

    Args:
        truth: (atlases, n) float32, the probability that each atlas gave to the true class.
        features: (3, atlases, n) float32, what the exponents multiply in the logarithm of its weight.
        reached: (atlases, n) bool, whether its field of view reaches the voxel.
    """

    truth: NDArray[np.float32]
    features: NDArray[np.float32]
    reached: NDArray[np.bool_]

    @classmethod
    def of(
        cls, said: Sequence[tuple[Tensor, Tensor, Tensor, float]], truth: Tensor, hidden: Hidden = ()
    ) -> FusionSamples:
        """Collect them.

        Args:
            said: of every atlas its probabilities (classes, n), its local correlation (n,), the voxels that it reaches
                (n,) and the quality of its registration.
            truth: (n,) int64 class indices.
            hidden: classes that nobody annotated, each with the one that is the truth where there may be one of them.
        """

        def true(probabilities: Tensor) -> Tensor:
            found = probabilities.gather(0, truth[None])[0]
            for index, stands in hidden:
                found = found + probabilities[index] * (truth == stands)
            return found

        features = [
            torch.stack([feature(probabilities, correlation, quality) for feature in _FEATURES])
            for probabilities, correlation, _, quality in said
        ]
        return cls(
            torch.stack([true(probabilities) for probabilities, _, _, _ in said]).cpu().numpy(),
            torch.stack(features, 1).cpu().numpy(),
            torch.stack([reached for _, _, reached, _ in said]).cpu().numpy(),
        )

    @property
    def voxels(self) -> int:
        """How many there are."""
        return int(self.truth.shape[1])

    def joined(self, other: FusionSamples) -> FusionSamples:
        """With those at other voxels."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return FusionSamples(*(np.concatenate(pair, axis=-1) for pair in pairs))

    def at(self, voxels: NDArray[np.intp]) -> FusionSamples:
        """Those at some of the voxels."""
        return FusionSamples(*(array[..., voxels] for array in vars(self).values()))

    def write(self, path: Path) -> None:
        """Keep them, atomically."""
        save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in vars(self).items()})

    @classmethod
    def read(cls, path: Path) -> FusionSamples:
        """Read what `write` wrote, which is taken to be whole."""
        return cls(**load_file(path))


def learn_weights(subjects: Sequence[FusionSamples]) -> FusionWeights | None:
    """The weights with which the truth is most probable in the weighted mean, every subject counting alike.

    Args:
        subjects: samples of what networks said that had not seen them.

    Returns:
        None with voxels of fewer than `FEWEST` subjects.
    """
    used = [samples for samples in subjects if samples.voxels]
    if len(used) < FEWEST:
        return None
    found = minimize(_loss, np.zeros(len(_FEATURES)), (used,), "L-BFGS-B", jac=True, bounds=[(0, LARGEST)] * 3)
    return FusionWeights(*(round(float(value), 4) for value in found.x))


def _loss(exponents: NDArray[np.float64], subjects: Sequence[FusionSamples]) -> tuple[float, NDArray[np.float64]]:
    """Mean negative logarithm of the probability of the truth, and its gradient."""
    total, gradient = 0.0, np.zeros(len(exponents))
    for samples in subjects:
        logarithm = np.where(samples.reached, np.tensordot(exponents, samples.features, 1), -np.inf)
        share = softmax(logarithm, axis=0)  # (atlases, n)
        fused = (share * samples.truth).sum(0)
        said = np.maximum(fused, _LEAST_PROBABILITY)
        total -= float(np.log(said).mean())
        # An atlas should count more where it gave the truth more than the atlases together do.
        pull = share * (samples.truth - fused) / said * (fused > _LEAST_PROBABILITY)
        gradient -= np.tensordot(samples.features, pull, 2) / samples.voxels
    return total / len(subjects), gradient / len(subjects)

"""The convex programme of one iteration, solved by cutting planes.

R(w) + C xi, with xi above the mean hinge of the examples: a plane touches the hinge where the weights are, the
programme under all planes so far is solved, and so on until the next plane cuts off nothing (Joachims, Finley, Yu,
"Cutting-plane training of structural SVMs", Machine Learning 77, 2009; one slack for all examples).

R(w) is half the squared length of what distinguishes the weights from each other, as multiples of those at the start:
what the examples do not speak about stays at the mean of the others. Of the mean itself, which decides how much an
energy counts against the loss, only `SCALE` is charged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from atlasnet.errors import InputError, RegistrationError
from atlasnet.registration.learning.problem import Found

Float = NDArray[np.float64]
# The share of the mean in what is charged for the weights.
SCALE = 1e-3
# Cutting planes of a programme without calls for new labellings; each cuts off what was the optimum.
MOST_PLANES = 400
# What a plane must cut off, relative to the objective.
PLANE_TOLERANCE = 1e-5
# Steps of a least-squares problem of as many unknowns as there are planes.
MOST_STEPS = 10_000
# How often the range of the slack is halved.
HALVINGS = 40
# The residual below which a least-distance programme has no solution.
FEASIBLE = 1e-12
# Beyond, what is charged for the weights drowns in rounding.
LARGEST_COST = 1e6


@dataclass(frozen=True)
class SVMSettings:
    """How the weights are found.

    Args:
        cost: C, of the examples against R.
        eta: how strongly the loss guides the imputation.
        tolerance: of a cutting-plane round and of an iteration, as a share of the objective.
        rounds: of cutting planes in an iteration, at most.
        iterations: of the concave-convex procedure, at most.
        floor: the smallest multiple of the last weight, the smoothness; that of the others is 0.

    Raises:
        InputError: a value that makes no sense.
    """

    cost: float = 30_000.0
    eta: float = 10.0
    tolerance: float = 1e-3
    rounds: int = 5
    iterations: int = 3
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in asdict(self).values()) or self.cost > LARGEST_COST:
            raise InputError(
                "settings of the learning cannot be used",
                expected=f"positive numbers, a cost of at most {LARGEST_COST:g}",
                found=str(self),
            )


class Pool:
    """The labellings of one example that have been met."""

    def __init__(self, found: Sequence[Found] = ()) -> None:
        self.features: list[Float] = [one.features for one in found]
        self.losses: list[float] = [one.loss for one in found]

    def add(self, found: Found) -> None:
        """Keep a labelling, unless one like it is there."""
        same = [loss == found.loss and np.array_equal(f, found.features) for f, loss in self._pairs()]
        if not any(same):
            self.features.append(found.features)
            self.losses.append(found.loss)

    def least(self, weights: Float, factor: float) -> tuple[float, Found]:
        """The smallest w . features + factor * loss, and whose it is."""
        values = np.stack(self.features) @ weights + factor * np.array(self.losses)
        number = int(values.argmin())
        return float(values[number]), Found(self.features[number], self.losses[number])

    def to_json(self) -> list[Any]:
        """A list per labelling: the features and then the loss."""
        return [[*features.tolist(), loss] for features, loss in self._pairs()]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[float]]) -> Pool:
        """Read what `to_json` wrote."""
        return cls([Found(np.array(row[:-1], dtype=np.float64), float(row[-1])) for row in rows])

    def _pairs(self) -> Iterator[tuple[Float, float]]:
        return zip(self.features, self.losses, strict=True)


def regulariser(weights: Float) -> float:
    """R(w)."""
    return float(weights @ _charged(len(weights)) @ weights) / 2


class Programme:
    """The convex programme of one iteration, over the labellings met so far.

    Args:
        imputed: per example the labelling that stands for the truth.
        pools: the labellings met; they may grow.
        settings: see `SVMSettings`.
    """

    def __init__(self, imputed: Sequence[Found], pools: Sequence[Pool], settings: SVMSettings) -> None:
        self.pools, self.settings = pools, settings
        self.truth = np.mean([one.features for one in imputed], axis=0)
        self.truth_loss = settings.eta * float(np.mean([one.loss for one in imputed]))
        self.charged = _charged(len(self.truth))
        self.slopes: list[Float] = []
        self.heights: list[float] = []

    def value(self, weights: Float) -> float:
        """The objective with the imputed labellings in the place of the first minimum."""
        height, slope = self._plane(weights)
        return regulariser(weights) + self.settings.cost * (height - float(slope @ weights))

    def solve(self, start: Float) -> tuple[Float, float]:
        """The minimum over the labellings met so far: where, and a lower bound of what it is.

        Raises:
            RegistrationError: the quadratic programme was not solved.
        """
        weights, lower = start, -np.inf
        for _ in range(MOST_PLANES):
            height, slope = self._plane(weights)
            value = regulariser(weights) + self.settings.cost * (height - float(slope @ weights))
            if value - lower <= PLANE_TOLERANCE * abs(value):
                break
            self.heights.append(height)
            self.slopes.append(slope)
            weights, lower = self._quadratic(weights)
        return weights, lower

    def _plane(self, weights: Float) -> tuple[float, Float]:
        """The plane height - slope . w under the mean hinge that touches it at ``weights``."""
        worst = [pool.least(weights, -1.0)[1] for pool in self.pools]
        slope = np.mean([one.features for one in worst], axis=0) - self.truth
        return self.truth_loss + float(np.mean([one.loss for one in worst])), slope

    def _quadratic(self, start: Float) -> tuple[Float, float]:
        """Minimise R(w) + C xi where xi is above all planes and weights are not below their floors.

        With xi given it is a least-distance programme, which non-negative least squares solve exactly (Lawson and
        Hanson, "Solving least squares problems", 1974, chapter 23). Its multipliers of the planes sum to C at the xi
        wanted, and fall as xi rises.
        """
        # In units in which the numbers of the programme are about 1.
        unit = max(float(start.mean()), self.settings.floor)
        slopes, heights = unit * np.stack(self.slopes), np.array(self.heights)
        lowest = np.append(np.zeros(len(start) - 1), self.settings.floor / unit)
        root = np.linalg.cholesky(self.charged)
        rows = np.linalg.solve(root, np.vstack([slopes, np.eye(len(start))]).T).T

        def nearest(xi: float) -> tuple[Float, float]:
            """The weights, in ``unit``, and what the multipliers of the planes sum to beyond C."""
            ends = np.append(heights - xi, lowest)
            columns = np.vstack([rows.T, ends])
            lengths = np.maximum(np.linalg.norm(columns, axis=0), np.finfo(float).tiny)
            target = np.append(np.zeros(len(start)), 1.0)
            try:
                multipliers = optimize.nnls(columns / lengths, target, maxiter=MOST_STEPS)[0] / lengths
            except RuntimeError as error:
                raise RegistrationError(f"the weights of the metrics cannot be found: {error}") from error
            rest = ends @ multipliers - 1
            if rest > -FEASIBLE:
                return start, np.inf  # no weights are above the planes and this low
            found = np.linalg.solve(root.T, -(multipliers @ rows) / rest)
            return found, -(unit**2) * float(multipliers[: len(heights)].sum()) / rest - self.settings.cost

        high = float((heights - slopes @ lowest).max())
        low, step = high - 1.0, 1.0
        while nearest(low)[1] <= 0:
            step *= 2
            low = high - step
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if nearest(middle)[1] > 0 else (low, middle)
        weights = unit * np.maximum(nearest(high)[0], lowest)
        return weights, regulariser(weights) + self.settings.cost * high


def _charged(dimension: int) -> Float:
    """The matrix of R."""
    return np.asarray(np.eye(dimension) - (1 - SCALE) / dimension)

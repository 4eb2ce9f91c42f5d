"""A latent structured support vector machine for weights of energies.

What labelling carried the labels best is not known: it is latent. The objective

    R(w) + C mean_i ( min_l [w . f_i(l) + eta loss_i(l)] - min_l [w . f_i(l) - loss_i(l)] )

is small where what weights prefer is as good as what they could prefer. Its first part is concave in w and its second
convex. The concave-convex procedure (Yuille and Rangarajan, "The concave-convex procedure", Neural Computation 15(4),
2003; Yu and Joachims, "Learning structural SVMs with latent variables", ICML 2009) alternates imputing the labelling of
the first minimum and minimising over w with that one fixed, by cutting planes (Joachims, Finley, Yu, "Cutting-plane
training of structural SVMs", Machine Learning 77, 2009). Where inference is approximate, the minima are over all
labellings that have been met, and what is reported compares weights over the same ones.
R is that of `atlasnet.registration.learning.programme`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlasnet.registration.learning.problem import Found
from atlasnet.registration.learning.programme import Pool, Programme, SVMSettings, regulariser

Float = NDArray[np.float64]
# Common multiples of the weights that are tried at the start.
START = (10.0, 30.0, 100.0)


class Example(Protocol):
    """What weights are learnt from."""

    def infer(self, weights: Float, factor: float) -> Found:
        """The best labelling met for w . features + factor * loss."""


@dataclass(frozen=True)
class Iteration:
    """One round of imputation and cutting planes.

    Args:
        weights: (d,) after it, as multiples of those at the start.
        before: the objective of the weights before it, over all labellings met until its end.
        objective: of ``weights``, over the same.
        gap: how much less than that the convex programme, with what was imputed, could have at best.
        planes: rounds of cutting planes.
        loss: the mean loss of what ``weights`` prefer among the labellings met.
        pools: the labellings met, per example.
    """

    weights: Float
    before: float
    objective: float
    gap: float
    planes: int
    loss: float
    pools: list[Pool]

    def to_json(self) -> dict[str, Any]:
        """JSON values; ``from_json`` reads them."""
        return {
            "weights": self.weights.tolist(),
            "objective_before": self.before,
            "objective": self.objective,
            "gap": self.gap,
            "rounds": self.planes,
            "loss": self.loss,
            "pools": [pool.to_json() for pool in self.pools],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Iteration:
        """Read what `to_json` wrote."""
        return cls(
            weights=np.array(value["weights"], dtype=np.float64),
            before=float(value["objective_before"]),
            objective=float(value["objective"]),
            gap=float(value["gap"]),
            planes=int(value["rounds"]),
            loss=float(value["loss"]),
            pools=[Pool.from_json(rows) for rows in value["pools"]],
        )

    def converged(self, settings: SVMSettings) -> bool:
        """Whether there is nothing to gain by another iteration."""
        return self.before - self.objective <= settings.tolerance * abs(self.before)


def objective(weights: Float, pools: Sequence[Pool], settings: SVMSettings) -> float:
    """The objective of weights over the labellings that have been met."""
    gaps = [pool.least(weights, settings.eta)[0] - pool.least(weights, -1.0)[0] for pool in pools]
    return regulariser(weights) + settings.cost * float(np.mean(gaps))


def started(
    examples: Sequence[Example], dimension: int, settings: SVMSettings, pause: Callable[[], None] = lambda: None
) -> Iteration:
    """The best common multiple of the weights at the start, one of a few: how much energies count against losses."""
    pools = [Pool() for _ in examples]
    for scale in START:
        for example, pool in zip(examples, pools, strict=True):
            pause()
            for factor in (settings.eta, -1.0):
                pool.add(example.infer(np.full(dimension, scale), factor))
    best = min(START, key=lambda scale: objective(np.full(dimension, scale), pools, settings))
    weights = np.full(dimension, best)
    value = objective(weights, pools, settings)
    return Iteration(weights, value, value, 0.0, 0, _loss(weights, pools), pools)


def improved(
    state: Iteration,
    examples: Sequence[Example],
    settings: SVMSettings,
    pause: Callable[[], None] = lambda: None,
) -> Iteration:
    """One iteration of the concave-convex procedure.

    Args:
        state: from `started` or the iteration before.
        examples: in the order of its pools.
        settings: see `SVMSettings`.
        pause: called between examples; may raise to stop.

    Returns:
        The objective of its weights is not above that of the weights before, over the same labellings.

    Raises:
        RegistrationError: the quadratic programme was not solved.
    """
    pools = [Pool.from_json(pool.to_json()) for pool in state.pools]

    def meet(weights: Float, factor: float) -> None:
        for example, pool in zip(examples, pools, strict=True):
            pause()
            pool.add(example.infer(weights, factor))

    # The weights before have been met from both sides when they were found.
    imputed = [pool.least(state.weights, settings.eta)[1] for pool in pools]
    programme = Programme(imputed, pools, settings)
    # The weights before are a candidate: no iteration makes it worse.
    tried, rounds = [state.weights], 0
    weights, lower = programme.solve(state.weights)
    best, share = state.weights, 0.5
    while rounds < settings.rounds:
        rounds += 1
        # Of few labellings the programme's minimum may lie far off, where all that is met is worse. Between it and the
        # best weights a plane cuts off as much; the way is longer after a step that was good, shorter after a bad one.
        tried.append(best + share * (weights - best))
        meet(tried[-1], -1.0)
        best = min(tried, key=programme.value)
        share = min(1.0, 2 * share) if best is tried[-1] else share / 2
        weights, lower = programme.solve(best)
        if programme.value(best) - lower <= settings.tolerance * abs(lower):
            break
    meet(best, settings.eta)
    value, before = objective(best, pools, settings), objective(state.weights, pools, settings)
    gap = max(0.0, programme.value(best) - lower)
    if value > before:  # what was met last speaks for the weights before
        best, value = state.weights, before
    return Iteration(best, before, value, gap, rounds, _loss(best, pools), pools)


def _loss(weights: Float, pools: Sequence[Pool]) -> float:
    """The mean loss of what weights prefer of all that has been met."""
    return float(np.mean([pool.least(weights, 0.0)[1].loss for pool in pools]))

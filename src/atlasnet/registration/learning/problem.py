"""`Problem`: one search of a registration as an example from which metric weights are learnt.

The energy of a labelling is linear in the weights, w . features. Its loss, 1 - Dice of the carried labels, is not a sum
over control points; inference that takes it into account minimises the sum that touches it at the last labelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from atlasnet.execution import save_tensors
from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.propagation import Smoothness, propagate

Float = NDArray[np.float64]
# How often the loss is replaced by a sum, at most, each time at the labelling found last...
TOUCHES = 2
# ...and the change of a Dice below which that would change nothing.
SAME_DICE = 0.05


@dataclass(frozen=True)
class Found:
    """A labelling, as far as learning is concerned.

    Args:
        features: (d,) for each class the mean over all control points of each metric's cost at those of the class, 0
            at others; last the mean smoothness penalty at alpha 1.
        loss: 1 - mean Dice of the structures, in [0, 1].
    """

    features: Float
    loss: float


@dataclass(frozen=True, eq=False)
class Problem:
    """A search whose costs are known metric by metric, and how well each labelling carries the labels.

    Args:
        costs: (m, lz, ly, lx, cz, cy, cx) of each metric.
        classes: (cz, cy, cx) which class's weights a control point has, from 0.
        count: how many classes there are.
        smoothness: the penalty at alpha 1, without truncation.
        space: the labels.
        overlap: (s, lz, ly, lx, cz, cy, cx) voxels of each structure that a label lays on the same structure of the
            target; every voxel is shared between the control points around it.
        carried: (s, ...) voxels of the structure in the source, where a label takes them from.
        wanted: (s,) voxels of the structure in the target, all above 0.
        iterations: of belief propagation.
        damping: of belief propagation.
    """

    costs: Tensor
    classes: Tensor
    count: int
    smoothness: Smoothness
    space: LabelSpace
    overlap: Tensor
    carried: Tensor
    wanted: Tensor
    iterations: int = 8
    damping: float = 0.5

    @property
    def points(self) -> int:
        """How many control points there are."""
        return self.classes.numel()

    def unary(self, weights: Float) -> Tensor:
        """(lz, ly, lx, cz, cy, cx) costs under weights (d,)."""
        table = torch.from_numpy(weights[:-1].reshape(self.count, -1)).to(self.costs)
        return torch.einsum("mkjizyx,zyxm->kjizyx", self.costs, table[self.classes])

    def features(self, labels: Tensor) -> Float:
        """The features of flat labels (cz, cy, cx), see `Found`."""
        sums = torch.zeros((self.count, len(self.costs)), dtype=torch.float64)
        sums.index_add_(0, self.classes.reshape(-1).cpu(), self._chosen(self.costs, labels).T.cpu())
        penalty = float(self.smoothness.energy(self.space.displacements(labels)))
        return np.append(sums.numpy().ravel(), penalty) / self.points

    def loss(self, labels: Tensor) -> float:
        """The loss of flat labels (cz, cy, cx), see `Found`."""
        dice, _ = self._dice(labels)
        return float(1 - dice.mean())

    def found(self, labels: Tensor) -> Found:
        """Features and loss of flat labels (cz, cy, cx)."""
        return Found(self.features(labels), self.loss(labels))

    def infer(self, weights: Float, factor: float) -> tuple[Tensor, Found]:
        """The best labelling met for w . features + factor * loss, by belief propagation.

        Args:
            weights: (d,), the last one above 0.
            factor: 0 predicts; -1 finds what the weights prefer though it carries the labels badly; a positive one
                imputes what carries them well, among such the one that the weights prefer.

        Returns:
            Flat labels (cz, cy, cx), and what is to know of them.
        """
        penalty = tuple((x * weights[-1], y * weights[-1], z * weights[-1]) for x, y, z in self.smoothness.weights)
        smoothness, data = replace(self.smoothness, weights=penalty), self.unary(weights)
        best = here = torch.full(self.classes.shape, len(self.space) // 2, dtype=torch.long, device=data.device)
        known = self.found(best)
        for _ in range(TOUCHES if factor else 1):
            unary = data + factor * self.points * self._touching(here) if factor else data
            before = self._dice(here)[0]
            here = propagate(unary, smoothness, self.space, iterations=self.iterations, damping=self.damping).labels
            found = self.found(here)
            if _value(found, weights, factor) < _value(known, weights, factor):
                best, known = here, found
            if bool(((self._dice(here)[0] - before).abs() < SAME_DICE).all()):
                break
        return best, known

    def _touching(self, labels: Tensor) -> Tensor:
        """(lz, ly, lx, cz, cy, cx) whose sum over control points is the loss, up to a constant, near ``labels``."""
        dice, total = self._dice(labels)
        slope = (1 / (len(dice) * total)).to(self.overlap)[:, None, None, None, None, None, None]
        share = dice.to(self.overlap)[:, None, None, None, None, None, None]
        return (slope * (share * self.carried - 2 * self.overlap)).sum(0)

    def _dice(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Dice of each structure (s,) and its denominator, in double precision."""
        both = self._chosen(self.overlap, labels).sum(1)
        total = self._chosen(self.carried, labels).sum(1) + self.wanted.double()
        return 2 * both / total, total

    @staticmethod
    def _chosen(tables: Tensor, labels: Tensor) -> Tensor:
        """(n, points) the values of (n, lz, ly, lx, cz, cy, cx) at flat labels (cz, cy, cx), in double precision."""
        flat = tables.reshape(len(tables), -1, labels.numel())
        return flat.gather(1, labels.reshape(1, 1, -1).expand(len(flat), 1, -1))[:, 0].double()

    def save(self, path: Path) -> None:
        """Write a safetensors file that `load` reads."""
        save_tensors(
            path,
            {
                "costs": self.costs.contiguous(),
                "classes": self.classes.contiguous(),
                "offsets": self.smoothness.offsets.contiguous(),
                "factors": torch.tensor(self.smoothness.weights, dtype=torch.float64),
                "overlap": self.overlap.contiguous(),
                "carried": self.carried.contiguous(),
                "wanted": self.wanted.contiguous(),
            },
        )

    @classmethod
    def load(cls, path: Path, *, count: int, iterations: int, damping: float) -> Problem:
        """Read what `save` wrote."""
        read = load_file(path)
        z, y, x = (n // 2 for n in read["costs"].shape[1:4])
        factors: Sequence[Sequence[float]] = read["factors"].tolist()
        return cls(
            read["costs"],
            read["classes"],
            count,
            Smoothness(read["offsets"], tuple((float(a), float(b), float(c)) for a, b, c in factors)),
            LabelSpace((z, y, x)),
            read["overlap"],
            read["carried"],
            read["wanted"],
            iterations,
            damping,
        )


def _value(found: Found, weights: Float, factor: float) -> float:
    return float(weights @ found.features) + factor * found.loss

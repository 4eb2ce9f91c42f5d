"""Belief propagation on a lattice of control points whose labels are displacements.

The energy is

    E(l) = sum_p unary_p(l_p) + sum_(p,q) min(sum_a c_a,e ((D_p + l_p - D_q - l_q)_a)^2, truncation)

over neighbours p and q = p + e of a 6-neighbourhood, with D the displacement that the points already have: the
penalty is on the *total* displacement, so smoothness is not forgotten from level to level. Its min-sum messages are
quadratic distance transforms, one axis of the label block after the other (Felzenszwalb and Huttenlocher, "Efficient
belief propagation for early vision", IJCV 2006); a truncated penalty only needs one more minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.label_space import LabelSpace

AT_ONCE_ON_GPU = 1 << 26  # numbers that one operation may need, 256 MiB
AT_ONCE = 1 << 18  # on the CPU, where beginning an operation on fewer takes longer than doing it


@dataclass(frozen=True)
class Smoothness:
    """The pairwise penalty of a lattice.

    Args:
        offsets: (3, cz, cy, cx) displacement that each control point already has, components (x, y, z), in label units.
        weights: for lattice directions (z, y, x) the factors on the squared differences along components (x, y, z).
        truncation: upper bound of the penalty of one pair; None for none.
    """

    offsets: Tensor
    weights: tuple[tuple[float, float, float], ...]
    truncation: float | None = None

    def differences(self, axis: int) -> Tensor:
        """(3, ...) D_p - D_q of every pair (p, q = p + 1 along lattice ``axis``)."""
        count = self.offsets.shape[axis + 1]
        return self.offsets.narrow(axis + 1, 0, count - 1) - self.offsets.narrow(axis + 1, 1, count - 1)

    def energy(self, displacements: Tensor) -> Tensor:
        """The penalty of choosing ``displacements`` (3, cz, cy, cx), summed over all pairs: a float64 scalar."""
        total = torch.zeros((), dtype=torch.float64, device=displacements.device)
        for axis in range(3):
            count = displacements.shape[axis + 1]
            step = displacements.narrow(axis + 1, 0, count - 1) - displacements.narrow(axis + 1, 1, count - 1)
            factors = torch.tensor(self.weights[axis], dtype=torch.float64, device=step.device)
            pairs = ((step + self.differences(axis)).double().square() * factors[:, None, None, None]).sum(0)
            total += ordered_sum(pairs if self.truncation is None else pairs.clamp(max=self.truncation))
        return total


@dataclass(frozen=True)
class Labelling:
    """What belief propagation found.

    Args:
        labels: (cz, cy, cx) flat label indices, the best labelling met.
        beliefs: (lz, ly, lx, cz, cy, cx) approximate min-marginals of the last iteration.
        energy: of ``labels``, per control point.
        energy_before: of not moving at all, per control point.
    """

    labels: Tensor
    beliefs: Tensor
    energy: float
    energy_before: float


def labelling_energy(unary: Tensor, smoothness: Smoothness, space: LabelSpace, labels: Tensor) -> Tensor:
    """E(l) for flat label indices (cz, cy, cx) and unary costs (lz, ly, lx, cz, cy, cx): a float64 scalar."""
    flat = unary.reshape(len(space), -1)
    data = ordered_sum(flat.gather(0, labels.reshape(1, -1)).double())
    return data + smoothness.energy(space.displacements(labels))


def step_energy(unary: Tensor, smoothness: Smoothness, space: LabelSpace, displacements: Tensor) -> Tensor:
    """The energy of displacements (3, cz, cy, cx) between the labels, components (x, y, z): a float64 scalar.

    The penalty is exact. Costs are known at the labels, and taken to be linear between them (`LabelSpace.between`); of
    a labelling this is `labelling_energy`.
    """
    data = ordered_sum(space.between(unary, displacements).double())
    return data + smoothness.energy(displacements)


def propagate(
    unary: Tensor, smoothness: Smoothness, space: LabelSpace, *, iterations: int, damping: float = 0.5
) -> Labelling:
    """Min-sum belief propagation, all messages at once, damped.

    Exact on chains and trees when undamped and as many iterations are done as the tree is long; on a lattice with
    loops an approximation (Pearl 1988; Weiss and Freeman 2001). The best labelling met is kept, starting from "nobody
    moves", hence its energy is never above that.

    Args:
        unary: (lz, ly, lx, cz, cy, cx) costs.
        smoothness: the pairwise penalty.
        space: the label block.
        iterations: rounds of messages.
        damping: share of the old message that is kept, in [0, 1).
    """
    lattice = unary.shape[3:]
    points = lattice[0] * lattice[1] * lattice[2]
    penalties = [_penalties(smoothness, space, axis) for axis in range(3)]
    # messages[axis][0] arrive from the lower neighbour along the axis, messages[axis][1] from the upper one
    messages = [[torch.zeros_like(unary) for _ in range(2)] if lattice[axis] > 1 else [] for axis in range(3)]
    still = torch.full(lattice, len(space) // 2, dtype=torch.long, device=unary.device)
    before = best_energy = labelling_energy(unary, smoothness, space, still)
    best, beliefs = still, unary
    for _ in range(iterations):
        for axis in range(3):
            if lattice[axis] > 1:
                _exchange(beliefs, messages[axis], penalties[axis], axis, damping, smoothness.truncation)
        beliefs = unary.clone()
        for pair in messages:
            for message in pair:
                beliefs += message
        labels = beliefs.reshape(len(space), -1).argmin(0).reshape(lattice)
        energy = labelling_energy(unary, smoothness, space, labels)
        # Whether it is the best is decided where the numbers are: a GPU need not be waited for in every round.
        better = energy < best_energy
        best, best_energy = torch.where(better, labels, best), torch.where(better, energy, best_energy)
    return Labelling(best, beliefs, float(best_energy) / points, float(before) / points)


def _penalties(smoothness: Smoothness, space: LabelSpace, axis: int) -> list[Tensor]:
    """Per label axis (z, y, x): (l_p, l_q, pairs...) the penalty between labels of p and q = p + 1 along ``axis``."""
    result = []
    differences = smoothness.differences(axis)
    for label_axis, component in ((0, 2), (1, 1), (2, 0)):
        labels = space.positions(label_axis, differences.device)
        gap = labels[:, None] - labels[None, :]
        total = gap[:, :, None, None, None] + differences[component]
        result.append(smoothness.weights[axis][component] * total.square())
    return result


def _exchange(
    beliefs: Tensor,
    messages: list[Tensor],
    penalties: list[Tensor],
    axis: int,
    damping: float,
    truncation: float | None,
) -> None:
    """Replace the messages along one lattice axis by those that follow from ``beliefs``."""
    count = beliefs.shape[3 + axis]
    lower, upper = (0, count - 1), (1, count - 1)
    # what p knows without what q told it, for both directions of every pair at once
    up = (beliefs - messages[1]).narrow(3 + axis, *lower)
    down = (beliefs - messages[0]).narrow(3 + axis, *upper)
    for sender, receiver, into, transposed in ((up, upper, messages[0], False), (down, lower, messages[1], True)):
        message = sender
        for label_axis, penalty in enumerate(penalties):
            message = _minimum_convolution(message, penalty.transpose(0, 1) if transposed else penalty, label_axis)
        if truncation is not None:
            message = torch.minimum(message, sender.amin((0, 1, 2), keepdim=True) + truncation)
        message = message - message.amin((0, 1, 2), keepdim=True)
        into.narrow(3 + axis, *receiver).mul_(damping).add_(message, alpha=1 - damping)


def _minimum_convolution(costs: Tensor, penalty: Tensor, label_axis: int) -> Tensor:
    """Minimum over l of costs[l] + penalty[l, k], along one label axis: (lz, ly, lx, ...) to the same shape."""
    count = costs.shape[label_axis]
    if count * costs.numel() <= (AT_ONCE if costs.device.type == "cpu" else AT_ONCE_ON_GPU):
        # One operation, of as many times the memory as there are labels; many small ones would keep a GPU waiting.
        shape = [1, 1, 1, 1, *penalty.shape[2:]]
        shape[label_axis : label_axis + 2] = penalty.shape[:2]
        return (costs.unsqueeze(label_axis + 1) + penalty.reshape(shape)).amin(label_axis)
    shape = [1, 1, 1, *penalty.shape[2:]]
    shape[label_axis] = count
    result = costs.narrow(label_axis, 0, 1) + penalty[0].reshape(shape)
    for label in range(1, count):
        torch.minimum(result, costs.narrow(label_axis, label, 1) + penalty[label].reshape(shape), out=result)
    return result

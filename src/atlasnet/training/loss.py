"""What training minimises: balanced cross-entropy, soft Dice of structures, over the voxels that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.cohort.structures import Values, all_values
from atlasnet.errors import InputError

UNCOUNTED = -1  # target of voxels that do not count


@dataclass(frozen=True)
class Objective:
    """What counts how much in the loss; by default the cross-entropy of every voxel, and the Dice of every class.

    Args:
        structures: class indices of each structure whose Dice is learnt; none: every foreground class is one.
        class_weights: factor on the cross-entropy of a voxel of each class, background first; none: 1.
        dice_weights: of the structures in the mean of their Dice; none: alike.
    """

    structures: tuple[tuple[int, ...], ...] = ()
    class_weights: tuple[float, ...] = ()
    dice_weights: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        labels: Mapping[str, int],
        structures: Mapping[str, Values],
        values: Sequence[int],
        weights: Mapping[str, float],
    ) -> Objective:
        """What is learnt of these structures.

        Args:
            labels: name to value.
            structures: name to values, those that are learnt and scored.
            values: label value of each class index, background first.
            weights: factors by name of a label or structure, 1 where there is none. That of a label counts in the
                cross-entropy of its voxels, that of a structure in the mean of the Dice, that of both in both.

        Raises:
            InputError: a name is unknown, or a factor is not positive.
        """
        names = {name: value for name, value in labels.items() if value in values}
        unknown = [name for name in weights if name not in names and name not in structures]
        if unknown:
            known = ", ".join(dict.fromkeys([*names, *structures]))
            raise InputError(
                "there is nothing of this name to weight", expected=f"one of {known}", found=repr(unknown[0])
            )
        for name, weight in weights.items():
            if not (isinstance(weight, int | float) and 0 < weight < float("inf")):
                raise InputError(f"the weight of {name!r} in the loss must be a positive number", found=repr(weight))
        by_value = {value: weights.get(name, 1.0) for name, value in names.items()}
        of_classes = tuple(float(by_value.get(value, 1.0)) for value in values)
        of_structures = tuple(float(weights.get(name, 1.0)) for name in structures)
        members = tuple(tuple(values.index(value) for value in all_values(several)) for several in structures.values())
        each_class = members == tuple((index,) for index in range(1, len(values)))
        return cls(
            () if each_class else members,
            () if set(of_classes) <= {1.0} else of_classes,
            () if set(of_structures) <= {1.0} else of_structures,
        )

    def identity(self) -> dict[str, Any]:
        """What a training depends on, nothing of what is so by default."""
        return {name: value for name, value in asdict(self).items() if value}

    def told(self, shown: Tensor) -> Tensor:
        """The structures, or classes where there are none, that the target of a sample tells; (b, structures) bool.

        Args:
            shown: (b, classes), see `segmentation_loss`.
        """
        classes = shown.shape[1]
        members = torch.zeros(len(self.structures) or classes, classes, dtype=torch.bool, device=shown.device)
        for structure, own in zip(members, self.structures or [(index,) for index in range(classes)], strict=True):
            structure[list(own)] = True
        return (members[:, shown] == members[:, None]).all(2).T

    def weights(self, counts: NDArray[np.int64], *, balancing: bool) -> NDArray[np.float32] | None:
        """Factors on the cross-entropy of the classes, (classes,) float32; None where all are 1.

        Args:
            counts: (slices, classes) annotated pixels.
            balancing: by `median_frequency_weights` too.
        """
        own = np.array(self.class_weights, dtype=np.float32) if self.class_weights else None
        if not balancing:
            return own
        balanced = median_frequency_weights(counts)
        return balanced if own is None else balanced * own


EACH_CLASS = Objective()


def median_frequency_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weights of the classes by median frequency balancing (Eigen and Fergus, ICCV 2015; SegNet, PAMI 2017).

    The weight of class c is the median of all frequencies over that of c; the frequency of c is its pixels over all
    annotated pixels of the slices in which c occurs. A class that never occurs gets weight 0 and no part in the median;
    slices in which nobody annotated it are none of those in which it occurs, and change nothing.

    Args:
        counts: (slices, classes) annotated pixels.

    Returns:
        (classes,) float32.
    """
    occurs = counts > 0
    pixels = (counts.sum(1, keepdims=True) * occurs).sum(0)
    frequency = counts.sum(0) / np.maximum(pixels, 1)
    present = frequency > 0
    weights = np.zeros(counts.shape[1], dtype=np.float32)
    weights[present] = np.median(frequency[present]) / frequency[present]
    return weights


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None,
    *,
    dice: bool,
    objective: Objective = EACH_CLASS,
    shown: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, plus one minus the mean soft Dice of the structures over the batch if ``dice``.

    The probability of a structure of several classes is the sum of theirs: a voxel of a region is right in it whichever
    of its classes the network takes it for.

    Where nobody annotated a class, what stands for it in the target, mostly the background, may be that class: the
    probability of such a voxel is the sum of both (the marginal loss of Fang and Yan, IEEE TMI 39(11), 2020, and Shi et
    al., Medical Image Analysis 70, 2021). A structure that the target does not tell has no Dice in that sample, nor in
    the mean where no sample has it.

    Args:
        logits: (b, classes, ...).
        target: (b, ...) int64 class indices, `UNCOUNTED` where a voxel does not count.
        weights: (classes,) of the cross-entropy, or None; see `Objective.weights`.
        dice: add the Dice term (Milletari et al., 3DV 2016; summed over the batch as in nnU-Net).
        objective: which structures the Dice is of, and how much each counts.
        shown: (b, classes) int64 in host memory, the class that stands for each in the target of a sample; None: they
            stand for themselves.

    Returns:
        A scalar; 0 when no voxel counts.
    """
    logits = logits.float()
    counted = target != UNCOUNTED
    safe = target.clamp_min(0)
    logarithm = F.log_softmax(logits, 1)
    voxel = counted.float() if weights is None else counted * weights[safe]
    known = None if shown is None else objective.told(shown).to(logits.device)
    true = logarithm.gather(1, safe[:, None])[:, 0] if shown is None else _marginal(logarithm, safe, shown)
    entropy = -(true * voxel).sum() / voxel.sum().clamp_min(1e-6)
    if not dice:
        return entropy
    mask = counted[:, None].float()
    truth = torch.zeros_like(logarithm).scatter_(1, safe[:, None], mask)
    probability = logarithm.exp() * mask
    if objective.structures:
        truth, probability = (
            torch.stack([part[:, list(classes)].sum(1) for classes in objective.structures], 1)
            for part in (truth, probability)
        )
    if known is not None:
        truth, probability = (part * known.view(*known.shape, *[1] * (part.ndim - 2)) for part in (truth, probability))
    over = [0, *range(2, logits.ndim)]
    common, size = (probability * truth).sum(over), (probability + truth).sum(over)
    found = (2 * common + 1e-5) / (size + 1e-5)
    if not objective.structures:
        found = found[1:]  # the first is the background's
    if not objective.dice_weights and known is None:
        return entropy + 1 - found.mean()
    shares = found.new_tensor(objective.dice_weights or [1.0] * len(found))
    if known is not None:
        shares = shares * known.any(0)[-len(found) :]
    return entropy + 1 - (found * shares).sum() / shares.sum().clamp_min(1e-6)


def _marginal(logarithm: Tensor, target: Tensor, shown: Tensor) -> Tensor:
    """Logarithms (b, ...) of the probability of the target, with that of all classes for which it stands."""
    true, parts = logarithm.gather(1, target[:, None]), logarithm.split(1, 1)
    for stands in sorted({stands for own in shown.tolist() for index, stands in enumerate(own) if stands != index}):
        among = [stands, *(index for index in (shown == stands).any(0).nonzero()[:, 0].tolist() if index != stands)]
        others = shown[:, among] != stands
        others[:, 0] = False
        others = others.view(*others.shape, *[1] * (logarithm.ndim - 2)).to(logarithm.device)
        together = torch.cat([parts[index] for index in among], 1).masked_fill(others, -torch.inf)
        true = torch.where(target[:, None] == stands, together.logsumexp(1, keepdim=True), true)
    return true[:, 0]

"""Fusion of the atlases' probabilities on the subject's own grid, slab by slab.

Every atlas adds its mapped-back probabilities to running sums, so that those of one atlas at a time are held. An atlas
has no say at a voxel that its field of view does not reach. A voxel that none reaches is background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atlasnet.errors import InputError, ModelError
from atlasnet.prediction.decision import Decision
from atlasnet.prediction.staple import Performance
from atlasnet.wording import counted

METHODS = ("mean", "vote", "weighted", "local", "learnt", "staple")
"""``mean``: the class of the highest mean probability. ``vote``: the class that most atlases choose. ``weighted``: the
same, a vote counting as much as the quality of its registration. ``local``: as ``mean``, an atlas counting at every
voxel as much as its registration fits there. ``learnt``: the same, with weights that were learnt from subjects that no
network had seen (see `atlasnet.training.fusion_weights`). ``staple``: the most probable class in view of what every
atlas chooses and how it errs (see `atlasnet.prediction.staple`); background where every atlas that reaches chooses it.
A tie goes to the higher mean probability, then to the lower class. Where labels form regions, they are chosen from the
outside in, by all but ``staple``: see `Decision`."""

BY_VOXEL = ("local", "learnt")
"""Those that weight an atlas at every voxel, for which the local fit of its registration must be known."""

# Probabilities below this are no part of the expected Dice: those of a whole scan would add up to a structure.
LEAST_SAID = 0.01

# float32 counts voxels exactly up to 2^24: at most so many are counted in one product.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class FusedSlab:
    """What the atlases say together about the voxels (z, y, x) of a slab.

    Args:
        labels: (z, y, x) int16, class index, 0 being background.
        probabilities: (classes, z, y, x) float32, mean over the atlases that reach the voxel, whatever the method;
            background has probability 1 where none does.
        share: (z, y, x) float32, the fraction of the atlases reaching the voxel whose own arg max is the result; 0
            where no atlas reaches.
        entropy: (z, y, x) float32, entropy of the mean probabilities over that of a uniform distribution, ln(classes):
            0 where they are certain, 1 where they know nothing or no atlas reaches.
        reached: (z, y, x) int16, how many atlases reach the voxel.
        choices: for each atlas (z, y, x) int16, its own arg max, -1 where it does not reach.
    """

    labels: Tensor
    probabilities: Tensor
    share: Tensor
    entropy: Tensor
    reached: Tensor
    choices: tuple[Tensor, ...]


class SlabFusion:
    """Running sums over the atlases of one slab.

    Args:
        classes: how many, background included; at least 2.
        shape: (z, y, x) voxels of the slab.
        method: one of `METHODS`.
        device: where the sums live; it must be that of what is added.
        performance: of the atlases in the order in which they are added; for ``staple``.
        decision: chooses the class; by default among all alike.

    Raises:
        InputError: there is no such method, or no performance for ``staple``.
    """

    def __init__(
        self,
        classes: int,
        shape: Sequence[int],
        method: str = "mean",
        device: torch.device | str = "cpu",
        performance: Performance | None = None,
        decision: Decision | None = None,
    ) -> None:
        if method not in METHODS:
            raise InputError("no such fusion", expected="one of " + ", ".join(METHODS), found=repr(method))
        self.method = method
        self._decision = decision or Decision.of(classes)
        self._sum = torch.zeros((classes, *shape), dtype=torch.float32, device=device)
        # What decides, where it is not the mean.
        self._scores: Tensor | None = None
        self._evidence: Tensor | None = None  # (atlases, true class, 1 + chosen class), the log-likelihood
        if method == "vote":
            self._scores = torch.zeros_like(self._sum, dtype=torch.int16)
        elif method == "weighted" or method in BY_VOXEL:
            self._scores = torch.zeros_like(self._sum)
        elif method == "staple":
            if performance is None:
                raise InputError("the fusion staple needs the performance of the atlases")
            prior, self._evidence = (table.to(device) for table in _log_likelihoods(performance))
            self._scores = prior.reshape(-1, 1, 1, 1).expand_as(self._sum).clone()
        self._reached = torch.zeros(tuple(shape), dtype=torch.int16, device=device)
        self._choices: list[Tensor] = []

    def add(self, probabilities: Tensor, covered: Tensor, weight: float | Tensor = 1.0) -> None:
        """Take in one atlas.

        Args:
            probabilities: (classes, z, y, x) on the subject's grid; any finite value where it is not covered.
            covered: (z, y, x) bool, where the atlas's field of view reaches.
            weight: 0 or more, of the atlas or (z, y, x) at every voxel; it counts in ``weighted`` and `BY_VOXEL` only.

        Raises:
            ModelError: a probability is not finite.
            InputError: the shapes are not the slab's, a weight is negative or not finite, or ``staple`` knows the
                performance of fewer atlases.
        """
        weight = torch.as_tensor(weight)
        shape = self._reached.shape
        if probabilities.shape != self._sum.shape or covered.shape != shape or weight.shape not in ((), shape):
            raise InputError(
                "an atlas's probabilities do not fit the slab",
                expected=f"{tuple(self._sum.shape)}, coverage {tuple(shape)}, one weight or {tuple(shape)}",
                found=f"{tuple(probabilities.shape)}, coverage {tuple(covered.shape)}, weight {tuple(weight.shape)}",
            )
        impossible = weight[~(weight.isfinite() & (weight >= 0))]
        if len(impossible):
            raise InputError("the weight of an atlas cannot be used", expected="0 or more", found=f"{impossible[0]:g}")
        if self._evidence is not None and len(self._choices) == len(self._evidence):
            raise InputError("an atlas has no performance", expected=f"{counted(len(self._evidence), 'atlas')} at most")
        # A sum of numbers of the size of a probability is finite if and only if they all are. In double precision it
        # would take longer than all that is done with them.
        if not math.isfinite(float(probabilities.sum())):
            raise ModelError(
                "a network gave probabilities that are not finite", remedy="look at its training log; train it again"
            )
        choice = own_choice(probabilities, covered, self._decision)
        everywhere = bool(covered.all())
        for label, probability in enumerate(probabilities):
            own = probability if everywhere else torch.where(covered, probability, 0.0)
            self._sum[label] += own
            if self._scores is None:
                continue
            if self._evidence is not None:
                self._scores[label] += self._evidence[len(self._choices), label, choice.int() + 1]
            elif self.method in BY_VOXEL:
                self._scores[label] += own * weight
            elif self.method == "weighted":
                self._scores[label] += (choice == label) * weight
            else:
                self._scores[label] += choice == label
        self._reached += covered
        self._choices.append(choice)

    def result(self) -> FusedSlab:
        """Fuse what was added; more may be added afterwards."""
        nowhere = self._reached == 0
        count = self._reached.clamp(min=1)
        mean = self._sum / count
        mean[0].masked_fill_(nowhere, 1.0)
        labels = self._winners(mean)
        share = self._votes(labels) / count
        entropy = torch.zeros_like(mean[0])
        for probability in mean:
            entropy += torch.special.entr(probability.clamp(0, 1))
        entropy = (entropy / math.log(len(mean))).clamp_(0, 1).masked_fill_(nowhere, 1.0)
        return FusedSlab(labels, mean, share, entropy, self._reached.clone(), tuple(self._choices))

    def _winners(self, mean: Tensor) -> Tensor:
        """(z, y, x) class indices; background where no atlas reaches, its mean probability being 1 there."""
        if self._scores is None:
            return self._decision.of_highest(mean)
        # Log-likelihoods of a region's classes cannot be added.
        decision = Decision.of(len(mean)) if self.method == "staple" else self._decision
        labels = decision.of_best(self._scores, mean)
        if self.method == "staple":
            # Such voxels were no part of the estimate, which says nothing about them.
            labels.masked_fill_(self._votes(torch.zeros_like(labels)) == self._reached, 0)
        return labels

    def _votes(self, labels: Tensor) -> Tensor:
        """(z, y, x) float32, how many atlases choose these classes."""
        votes = torch.zeros_like(self._sum[0])
        for choice in self._choices:
            votes += choice == labels
        return votes


def _log_likelihoods(performance: Performance) -> tuple[Tensor, Tensor]:
    """Of the classes (classes,) and of what atlases choose (atlases, true, 1 + chosen), 0 where one does not reach."""
    confusion = torch.from_numpy(performance.confusion).log().transpose(1, 2)
    return torch.from_numpy(performance.prior).log().float(), torch.nn.functional.pad(confusion, (1, 0)).float()


def own_choice(probabilities: Tensor, covered: Tensor, decision: Decision | None = None) -> Tensor:
    """(z, y, x) int16, the class that an atlas alone would choose, the lower of two equal ones, -1 off its reach.

    Those are equal that a fusion takes for equal: the result of one atlas is its own choice.
    """
    return (decision or Decision.of(len(probabilities))).of_highest(probabilities).masked_fill_(~covered, -1)


def fuse_slab(
    atlases: Iterable[tuple[Tensor, Tensor, float | Tensor]],
    method: str = "mean",
    performance: Performance | None = None,
    decision: Decision | None = None,
) -> FusedSlab:
    """Fuse (probabilities, covered, weight) of each atlas, taken one at a time; see `SlabFusion`.

    Raises:
        InputError: there is no atlas, no such method, no performance for ``staple``, or an atlas that does not
            fit the first.
        ModelError: a probability is not finite.
    """
    fusion: SlabFusion | None = None
    for probabilities, covered, weight in atlases:
        if fusion is None:
            shape, device = probabilities.shape, probabilities.device
            fusion = SlabFusion(shape[0], shape[1:], method, device, performance, decision)
        fusion.add(probabilities, covered, weight)
    if fusion is None:
        raise InputError("there is no atlas to fuse", expected="at least one")
    return fusion.result()


def fuse_models(slabs: Sequence[FusedSlab], decision: Decision | None = None) -> FusedSlab:
    """Fuse what several models say, each by all of its atlases: the class of the highest mean of their probabilities.

    Every model that reaches a voxel counts alike there, however many atlases it has; a tie goes to the lower class.

    Args:
        slabs: of the same voxels, one a model, at least one.
        decision: chooses the class; by default among all alike.

    Returns:
        ``share``, ``reached`` and ``choices`` are those of all atlases of all models. A single one is left as it is.
    """
    if len(slabs) == 1:
        return slabs[0]
    first = slabs[0].labels
    fusion = SlabFusion(len(slabs[0].probabilities), first.shape, device=first.device, decision=decision)
    for slab in slabs:
        fusion.add(slab.probabilities, slab.reached > 0)
    fused = fusion.result()
    choices = tuple(choice for slab in slabs for choice in slab.choices)
    reached, votes = torch.zeros_like(fused.reached), torch.zeros_like(fused.share)
    for slab in slabs:
        reached += slab.reached
    for choice in choices:
        votes += choice == fused.labels
    return replace(fused, share=votes / reached.clamp(min=1), reached=reached, choices=choices)


class Agreement:
    """How far the atlases agree about one subject, summed over its slabs.

    Two atlases are compared over the voxels that both reach, an atlas and the result over those that the atlas reaches.

    Args:
        atlases: how many.
        structures: name to class indices of all that is reported.
    """

    def __init__(self, atlases: int, structures: Mapping[str, Sequence[int]]) -> None:
        self._atlases, self._names = atlases, tuple(structures)
        self._members = tuple(tuple(members) for members in structures.values())
        count = len(structures)
        self._both = torch.zeros((count, atlases + 1, atlases + 1), dtype=torch.float64)
        self._own = torch.zeros_like(self._both)
        self._covered = torch.zeros(atlases + 1, dtype=torch.int64)
        self._voxels = self._foreground = 0
        self._share = 0.0
        self._entropy = torch.zeros(count, dtype=torch.float64)
        self._found = torch.zeros(count, dtype=torch.float64)
        # The sum of the probabilities that a voxel is not background, where the result says so, and everywhere.
        self._said_inside = self._said = 0.0

    def add(self, fused: FusedSlab) -> None:
        """Count a slab."""
        maps = [choice.flatten() for choice in fused.choices]
        maps.append(torch.where(fused.reached > 0, fused.labels, -1).flatten())
        self._covered += torch.stack([(m >= 0).sum() for m in maps]).cpu()
        self._voxels += fused.labels.numel()
        inside = fused.labels > 0
        self._foreground += int(inside.sum())
        self._share += float(fused.share[inside].sum(dtype=torch.float64))
        said = 1 - fused.probabilities[0]
        self._said_inside += float(said[inside].sum(dtype=torch.float64))
        self._said += float(said[said >= LEAST_SAID].sum(dtype=torch.float64))
        for index, members in self._held(fused.labels):
            entropy = fused.entropy[_belongs(fused.labels, members)]
            self._entropy[index] += float(entropy.sum(dtype=torch.float64))
            self._found[index] += len(entropy)
        for start in range(0, fused.labels.numel(), _CHUNK):
            stack = torch.stack([m[start : start + _CHUNK] for m in maps])
            stack = stack[:, (stack > 0).any(0)]
            reach = (stack >= 0).float()
            for index, members in self._held(stack):
                member = _belongs(stack, members).float()
                self._both[index] += (member @ member.T).double().cpu()
                self._own[index] += (member @ reach.T).double().cpu()

    def _held(self, labels: Tensor) -> list[tuple[int, Sequence[int]]]:
        """The structures, by their number, of which there is something: of many, few are in one slab."""
        held = set(torch.bincount(labels.flatten().clamp_min(0)).nonzero()[:, 0].tolist())
        return [(index, members) for index, members in enumerate(self._members) if held.intersection(members)]

    @property
    def uncovered(self) -> int:
        """Voxels that no atlas reaches."""
        return self._voxels - int(self._covered[-1])

    def voxels(self, name: str) -> list[int]:
        """How many voxels each atlas takes for a structure."""
        index = self._names.index(name)
        return [int(self._own[index, atlas, atlas]) for atlas in range(self._atlases)]

    def summary(self) -> dict[str, Any]:
        """JSON values.

        Returns:
            ``foreground``: mean over the voxels that are not background in the result of the fraction of atlases that
            chose it, None where there is none. ``pairwise_dice``: per structure, mean over the pairs of atlases of
            which at least one holds it, None where no pair does. ``dice_with_result``: per atlas in order, then per
            structure. ``entropy``: per structure, mean over its voxels in the result, None where there is none.
            ``expected_dice``: of all labels as one, the Dice of the result with a truth drawn from the mean
            probabilities, None where the result is background. ``covered``: per atlas, the share of the voxels that it
            reaches.
        """
        n = self._atlases
        pairwise: dict[str, float | None] = {}
        for index, name in enumerate(self._names):
            dice = [self._dice(index, i, j) for i in range(n) for j in range(i)]
            defined = [value for value in dice if value is not None]
            pairwise[name] = sum(defined) / len(defined) if defined else None
        return {
            "foreground": self._share / self._foreground if self._foreground else None,
            "pairwise_dice": pairwise,
            "dice_with_result": [
                {name: self._dice(index, atlas, n) for index, name in enumerate(self._names)} for atlas in range(n)
            ],
            "entropy": {
                name: float(self._entropy[index] / self._found[index]) if self._found[index] else None
                for index, name in enumerate(self._names)
            },
            "expected_dice": 2 * self._said_inside / (self._said + self._foreground) if self._foreground else None,
            "covered": [int(self._covered[atlas]) / max(self._voxels, 1) for atlas in range(n)],
        }

    def _dice(self, index: int, i: int, j: int) -> float | None:
        total = float(self._own[index, i, j] + self._own[index, j, i])
        return 2 * float(self._both[index, i, j]) / total if total else None


def _belongs(labels: Tensor, members: Sequence[int]) -> Tensor:
    """Where class indices are among these."""
    found = labels == members[0]
    for member in members[1:]:
        found |= labels == member
    return found

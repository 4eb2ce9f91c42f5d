"""Which class a voxel is: region by region from the outside in, where classes form regions that are nested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Means, sums of weights and log-likelihoods that differ by the rounding of float32 are equal.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Decision:
    """One choice: among classes, and regions within which there is a choice of their own.

    A voxel that is certainly part of a tumour is so however many of its tissues it may be: that the tumour's
    probability is spread over them must not make it background, the likeliest single class.

    Args:
        members: class indices and further choices, each by its lowest class, in ascending order.
    """

    members: tuple[int | Decision, ...]

    @classmethod
    def of(cls, classes: int, regions: Iterable[Sequence[int]] = ()) -> Decision:
        """The choice among so many classes, background 0 included.

        Args:
            classes: how many.
            regions: class indices of each. Where two overlap and neither holds the other, there is no outside and
                inside, and the likeliest class decides.
        """
        groups = {frozenset(region) for region in regions if len(region) > 1}
        nested = all(a <= b or b <= a or not a & b for a in groups for b in groups)
        return cls._within(frozenset(range(classes)), groups if nested else set())

    @classmethod
    def _within(cls, classes: frozenset[int], groups: set[frozenset[int]]) -> Decision:
        inner = {group for group in groups if group < classes}
        outermost = [group for group in inner if not any(group < other for other in inner)]
        members: list[int | Decision] = [*classes.difference(*outermost)]
        members += [cls._within(group, inner) for group in outermost]
        return cls(tuple(sorted(members, key=lambda member: min(_classes(member)))))

    @property
    def classes(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(index for member in self.members for index in _classes(member))

    @property
    def flat(self) -> bool:
        """Whether there are no regions."""
        return all(isinstance(member, int) for member in self.members)

    def of_highest(self, scores: Tensor) -> Tensor:
        """(z, y, x) int16, the class that the highest of the scores (classes, z, y, x) says; of equals the lower one.

        A region's score is the sum over its classes.
        """
        return self._chosen(scores, None)

    def of_best(self, scores: Tensor, mean: Tensor) -> Tensor:
        """The same; among equal scores the higher mean probability (classes, z, y, x) decides, then the lower class."""
        return self._chosen(mean, scores)

    def _chosen(self, mean: Tensor, scores: Tensor | None) -> Tensor:
        totals = mean if self._every(mean) else self._totals(mean)
        if scores is not None:
            added = scores if self._every(scores) else self._totals(scores)
            best = added.amax(0)
            totals = totals.masked_fill(added < best - ROUNDING * best.abs(), -1.0)
        place = _first_highest(totals)
        if self._every(mean):
            return place
        result = torch.empty_like(place)
        for index, member in enumerate(self.members):
            inside = place == index
            if isinstance(member, int):
                result.masked_fill_(inside, member)
            else:
                result = torch.where(inside, member._chosen(mean, scores), result)
        return result

    def _every(self, scores: Tensor) -> bool:
        """Whether the members are the classes of the scores."""
        return self.flat and len(self.members) == len(scores)

    def _totals(self, scores: Tensor) -> Tensor:
        return torch.stack([scores[list(_classes(member))].sum(0) for member in self.members])


def _classes(member: int | Decision) -> tuple[int, ...]:
    return (member,) if isinstance(member, int) else member.classes


def _first_highest(scores: Tensor) -> Tensor:
    """(z, y, x) int16, the first whose score (n, z, y, x) is no more than rounding below the highest.

    One by one, which is several times faster than torch's arg max over the first axis.
    """
    enough = scores.amax(0) - ROUNDING
    first = torch.zeros(scores.shape[1:], dtype=torch.int16, device=scores.device)
    for index in range(scores.shape[0] - 1, -1, -1):
        first.masked_fill_(scores[index] >= enough, index)
    return first

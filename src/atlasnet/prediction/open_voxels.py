"""Fusion of many classes without asking about all of them where every atlas is sure of background: in most of a scan.

To map back and to add up a hundred probabilities takes a hundred times as long as one. The probability of background
is mapped back first. Where all atlases that reach a voxel have it above one half, no fusion can choose anything else.
What remains, the open voxels, is asked about all classes, with the results of `fuse_slab`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from atlasnet.prediction.answers import MappedAnswer
from atlasnet.prediction.decision import Decision
from atlasnet.prediction.fusion import FusedSlab, fuse_models, fuse_slab, own_choice
from atlasnet.prediction.staple import Performance
from atlasnet.training.fusion_weights import FusionWeights

FEWEST_CLASSES = 8
"""With fewer, asking twice takes longer than it saves."""

# Of background: others have less, whatever half precision and interpolation make of their sum.
_SURE = 0.51

Said = tuple[Tensor, Tensor, float | Tensor]


def may_leave_out(decision: Decision, weights: FusionWeights | None) -> bool:
    """Whether the open voxels have the same results alone, bit for bit, and are faster so.

    Sums over classes, for regions and for how certain an atlas is, are rounded by where a voxel lies in memory.
    """
    many = len(decision.classes) >= FEWEST_CLASSES
    return many and decision.flat and (weights is None or not weights.certainty)


class OpenVoxels:
    """A slab of a scan, and where in it some atlas may see something.

    Args:
        atlases: of all models.
        z0: first slice.
        z1: one past the last.
        at_once: voxels about which atlases are asked together.
    """

    def __init__(self, atlases: Sequence[MappedAnswer], z0: int, z1: int, at_once: int) -> None:
        self._atlases = atlases
        self._readings = [atlas.reading(z0, z1) for atlas in atlases]
        self._background = [a.background(reading) for a, reading in zip(atlases, self._readings, strict=True)]
        unsure = torch.zeros_like(self._readings[0].covered)
        for said, reading in zip(self._background, self._readings, strict=True):
            unsure |= reading.covered & (said <= _SURE)
        self._parts = [part for part in unsure.nonzero().split(max(1, at_once)) if len(part)]

    def choices(self, decision: Decision) -> Iterator[list[Tensor]]:
        """What each atlas chooses at the open voxels, part by part: (1, 1, n) int16, see `own_choice`."""
        for part in self._parts:
            yield [own_choice(*self._at(atlas, part)[:2], decision) for atlas in range(len(self._atlases))]

    def fused(
        self,
        models: Sequence[Sequence[int]],
        method: str,
        performance: Performance | None,
        decision: Decision,
    ) -> FusedSlab:
        """What `fuse_slab`, and of several models `fuse_models`, make of the whole slab.

        Args:
            models: for each, the numbers of its atlases.
            method: one of `METHODS`.
            performance: see `fuse_slab`.
            decision: chooses the class.

        Returns:
            Of its probabilities that of background alone, (1, z, y, x); its entropy is not a number but at open voxels.
        """
        whole = fuse_models([fuse_slab(map(self._something, atlases)) for atlases in models])
        whole = replace(whole, probabilities=whole.probabilities[:1], entropy=torch.full_like(whole.entropy, torch.nan))
        for part in self._parts:
            said = [
                fuse_slab((self._at(atlas, part) for atlas in atlases), method, performance, decision)
                for atlases in models
            ]
            fused, where = fuse_models(said, decision), tuple(part.T)
            for name in ("labels", "share", "entropy"):
                getattr(whole, name)[where] = getattr(fused, name).flatten()
            for choice, own in zip(whole.choices, fused.choices, strict=True):
                choice[where] = own.flatten()
        return whole

    def _something(self, atlas: int) -> Said:
        """Whether there is background or something else, for an atlas."""
        said = self._background[atlas]
        return torch.stack([said, 1 - said]), self._readings[atlas].covered, 1.0

    def _at(self, atlas: int, part: Tensor) -> Said:
        return self._atlases[atlas].at(self._readings[atlas], part)

"""What the atlases say of one scan, each in its own space, before they are fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.errors import InputError
from atlasnet.execution import Stages
from atlasnet.prediction.verdict import Verdict
from atlasnet.training.fusion_weights import FusionWeights
from atlasnet.transform import Coverage, Transform, part_box
from atlasnet.volume import Grid, Orientation
from atlasnet.volume.sampling import Box, inside, lattice, sample

MOST = 0.8
"""Of a scan: where a part of an atlas is read in so much of it, all of it is mapped."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One atlas's opinion, still in its own space.

    Args:
        probabilities: (classes, z, y, x), float16, of the part of the atlas's space in which there is something to
            segment; those at its faces hold beyond.
        grid: of the atlas.
        to_atlas: takes points of the scan, in canonical orientation, into the atlas.
        quality: of the registration.
        correlation: (z, y, x) float16, how well the scan fits the atlas at every voxel (see
            `atlasnet.registration.local_correlation`), beyond the part that at its faces; None where nobody asked.
        model: the number of its model. The opinions of one model are fused with each other before the models are.
        start: the voxel (z, y, x) of ``grid`` with which the part begins.
    """

    probabilities: Tensor
    grid: Grid
    to_atlas: Transform
    quality: float
    correlation: Tensor | None = None
    model: int = 0
    start: tuple[int, int, int] = (0, 0, 0)

    @property
    def part(self) -> Grid:
        """Where the probabilities lie."""
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.to_world(np.array(self.start[::-1], dtype=np.float64))
        z, y, x = self.probabilities.shape[1:]
        return Grid((z, y, x), affine)

    @property
    def is_background_beyond(self) -> bool:
        """Whether what lies beyond the part is nothing but background, with no correlation to be told of it.

        So it is where the faces of the part say so, or are those of the atlas, beyond which it has no say.
        """
        if self.correlation is not None:
            return False
        background = self.probabilities[0]
        for axis, (start, n) in enumerate(zip(self.start, self.grid.shape, strict=True)):
            size = background.shape[axis]
            ends = ([0] if start > 0 else []) + ([size - 1] if start + size < n else [])
            if any(bool((background.select(axis, end) != 1).any()) for end in ends):
                return False
        return True

    def require_fit(self) -> None:
        """Refuse to go on without the local correlation.

        Raises:
            InputError: nobody asked for it.
        """
        if self.correlation is None:
            raise InputError("the local fit of the registrations is not known", remedy="ask with fit=True")


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the voxels of a slab of a scan read an opinion.

    Args:
        start: the slice of the scan with which the slab begins.
        box: (z, y, x) of the slab; beyond it the opinion is background.
        index: (z, y, x, 3) of the box, index points of the atlas.
        covered: (z, y, x) of the slab, bool, what the atlas reaches.
    """

    start: int
    box: Box
    index: Tensor
    covered: Tensor


class MappedAnswer:
    """An opinion that is read on the scan's grid.

    Args:
        answer: the opinion.
        grid: of the scan, in canonical orientation.
        device: where to compute.
        weights: what its weight at every voxel is made of; None: its weight is the registration's quality.
        mask: (z, y, x) of the scan; where it is not set, the atlas is certain of background. None: all is.

    Raises:
        InputError: there are weights, and the fit was not asked for.
    """

    def __init__(
        self,
        answer: Answer,
        grid: Grid,
        *,
        device: torch.device,
        weights: FusionWeights | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        if weights is not None:
            answer.require_fit()
        self._answer, self._grid, self._weights, self._mask = answer, grid, weights, mask
        channels = answer.probabilities
        if answer.correlation is not None:
            channels = torch.cat([channels, answer.correlation[None]])
        self._channels = channels.to(device, torch.float32)
        self._to_atlas = answer.to_atlas.to(device)
        self._reach = self._known_reach() if answer.is_background_beyond else None

    def _known_reach(self) -> tuple[Box, Coverage] | None:
        """Where the part may be read, and the atlas; None where that is most of the scan: telling it costs as much."""
        to_atlas, answer, grid = self._to_atlas, self._answer, self._grid
        box = part_box(to_atlas, answer.part, grid)
        voxels = math.prod(max(0, side.stop - side.start) for side in box)
        if voxels >= MOST * grid.voxels:
            return None
        return box, Coverage(to_atlas, answer.grid, grid, device=self._channels.device)

    def read(self, z0: int, z1: int) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (classes, z1 - z0, y, x), the voxels that the atlas reaches, and its correlation there.

        Where nobody asked for the fit, the correlation is 0.
        """
        reading = self.reading(z0, z1)
        said, correlation = self._split(self._values(reading, len(self._channels)))
        outside = self._outside(reading)
        if outside is not None:
            said = said.masked_fill(outside, 0.0)
            said[0].masked_fill_(outside, 1.0)
        return said, reading.covered, correlation

    def reading(self, z0: int, z1: int) -> Reading:
        """Where slices ``z0 <= z < z1`` of the scan read the opinion."""
        inner, device = self._answer.grid, self._channels.device
        if self._reach is None:
            index = self._to_atlas.index_slab(inner, self._grid, z0, z1, device=device)
            whole = (slice(0, z1 - z0), slice(0, self._grid.shape[1]), slice(0, self._grid.shape[2]))
            return Reading(z0, whole, index, inside(index, inner.shape))
        (z, y, x), coverage = self._reach
        first, last = max(z0, z.start), max(z0, z.start, min(z1, z.stop))
        points = lattice(self._grid.shape, first, last, device=device)[:, y, x]
        empty = not math.prod(points.shape)
        index = points if empty else self._to_atlas.index_at(inner, self._grid, points)
        return Reading(z0, (slice(first - z0, last - z0), y, x), index, coverage.slab(z0, z1))

    def background(self, reading: Reading) -> Tensor:
        """The probability (z, y, x) of background alone: of many classes, a small part of `read`."""
        said, outside = self._values(reading, 1)[0], self._outside(reading)
        return said if outside is None else said.masked_fill(outside, 1.0)

    def at(self, reading: Reading, voxels: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """What `slab` says of single voxels, none of them outside the mask: (classes, 1, 1, n), (1, 1, n), the weight.

        Args:
            reading: of their slab.
            voxels: (n, 3) places (z, y, x) in the slab.
        """
        start, stop = (voxels.new_tensor([getattr(side, end) for side in reading.box]) for end in ("start", "stop"))
        within = ((voxels >= start) & (voxels < stop)).all(1)
        if bool(within.all()):
            values = self._sampled(reading.index[tuple((voxels - start).T)])
        else:
            values = torch.zeros((len(self._channels), len(voxels)), device=self._channels.device)
            values[0] = 1.0
            if bool(within.any()):
                values[:, within] = self._sampled(reading.index[tuple((voxels[within] - start).T)])
        said, correlation = self._split(values[:, None, None])
        covered = reading.covered[tuple(voxels.T)][None, None]
        return said, covered, self._weight(said, correlation)

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities and the correlation, 0 where nobody asked for it."""
        classes = len(self._answer.probabilities)
        said = values[:classes]
        return said, values[classes] if len(values) > classes else torch.zeros_like(said[0])

    def _outside(self, reading: Reading) -> Tensor | None:
        """Where a slab lies outside the mask."""
        if self._mask is None:
            return None
        mask = self._mask[reading.start : reading.start + len(reading.covered)]
        return torch.from_numpy(~mask).to(self._channels.device)

    def _values(self, reading: Reading, count: int) -> Tensor:
        """The first so many channels in a slab (count, z, y, x)."""
        if self._reach is None:
            return self._sampled(reading.index, count)
        values = torch.zeros((count, *reading.covered.shape), device=self._channels.device)
        values[0] = 1.0
        if math.prod(reading.index.shape):
            values[:, *reading.box] = self._sampled(reading.index, count)
        return values

    def _sampled(self, index: Tensor, count: int | None = None) -> Tensor:
        """The channels, or the first so many, at index points of the atlas."""
        return sample(self._channels[:count], index - index.new_tensor(self._answer.start[::-1]))

    def slab(self, z0: int, z1: int) -> tuple[Tensor, Tensor, float | Tensor]:
        """Probabilities (classes, z1 - z0, y, x), the voxels that the atlas reaches, and its weight."""
        said, covered, correlation = self.read(z0, z1)
        return said, covered, self._weight(said, correlation)

    def _weight(self, said: Tensor, correlation: Tensor) -> float | Tensor:
        """Of the atlas, at every voxel or everywhere."""
        if self._weights is None:
            return self._answer.quality
        return self._weights.of(said, correlation, self._answer.quality)


@dataclass(frozen=True, eq=False)
class Answers:
    """What the atlases of one or several models say of one scan.

    Args:
        image: grid of the scan as it was given.
        source: its grid in canonical orientation.
        orientation: takes arrays from there back.
        atlases: per atlas its opinion, None where it was not asked, and what the record says of it.
        stages: what it took.
        warnings: what was said meanwhile.
        verdict: whether the scan is like the training subjects, where that was asked for.
        mask: (z, y, x) on the canonical grid, the organ outside of which there is nothing; None: everywhere.
    """

    image: Grid
    source: Grid
    orientation: Orientation
    atlases: tuple[tuple[Answer | None, dict[str, Any]], ...]
    stages: Stages
    warnings: tuple[str, ...] = ()
    verdict: Verdict | None = None
    mask: NDArray[np.bool_] | None = None

    def first(self, count: int) -> Answers:
        """Those of the first ``count`` atlases; time and warnings stay those of all."""
        return replace(self, atlases=self.atlases[:count])

    def and_those_of(self, others: Sequence[Answers]) -> Answers:
        """With the answers of other predictors with the same labels to the same scan, all to be fused together."""
        stages = self.stages.copy()
        for other in others:
            for stage, value in other.stages.seconds.items():
                stages.seconds[stage] = stages.seconds.get(stage, 0.0) + value
            stages.peak_mib.update(other.stages.peak_mib)
            stages.gpu_mib.update(other.stages.gpu_mib)
        return replace(
            self,
            atlases=(*self.atlases, *(a for o in others for a in o.atlases)),
            stages=stages,
            warnings=(*self.warnings, *(w for o in others for w in o.warnings)),
        )

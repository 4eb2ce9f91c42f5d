"""`AlignedPair`: the images of one level as the metrics see them, and the supports of the control points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atlasnet.registration import lattice
from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.lattice import Lattice
from atlasnet.volume.sampling import Matrices, along_axes

Block = tuple[slice, slice, slice]

DIFFERENCE_BINS = 256  # of intensities, for the expected difference of unrelated images


def values_at_once(device: torch.device) -> int:
    """How many values, one per voxel and label, are held in one array; a few such arrays live at a time.

    On a CPU they stay in its cache. A GPU is kept waiting by many small operations, and holds these in 64 MiB.
    """
    return 1 << 18 if device.type == "cpu" else 1 << 24


@dataclass(frozen=True, eq=False)
class AlignedPair:
    """A target and the source as it is warped now, with a margin for the displacements to be tried.

    Args:
        target: (c, z, y, x) intensities in [0, 1].
        source: (c, z + 2 rz, y + 2 ry, x + 2 rx) warped intensities in [0, 1]; outside its field of view anything
            finite.
        counted: (z, y, x) bool, target voxels that count.
        covered: (z + 2 rz, ...) bool, where the warped source is known.
        target_contrast: (c, z, y, x) `local_contrast` of the target, taken at the resolution of the image.
        source_contrast: (c, z + 2 rz, ...) that of the source, warped as it is.
        target_descriptor: (d, z, y, x) `self_similarity` of the target, likewise; None where no metric asks for it.
        source_descriptor: (d, z + 2 rz, ...) that of the source.
        labels: the displacements, radii (rz, ry, rx).
        image: lattice of the target's voxels.
        control: lattice of the control points.
        bins: per channel the range of the histogram bins in the source and in the target, normalised intensities.
        masked: whether a mask takes voxels of either image away.
    """

    target: Tensor
    source: Tensor
    counted: Tensor
    covered: Tensor
    target_contrast: Tensor
    source_contrast: Tensor
    target_descriptor: Tensor | None
    source_descriptor: Tensor | None
    labels: LabelSpace
    image: Lattice
    control: Lattice
    bins: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    masked: bool = False

    @property
    def everything_counts(self) -> bool:
        """Whether neither a mask nor the source's field of view takes anything away."""
        return bool(self.counted.all()) and bool(self.covered.all())

    def aligned(self, padded: Tensor) -> Tensor:
        """The middle of a padded array (..., z + 2 rz, ...): what lies on the target now."""
        for axis, radius in zip((-3, -2, -1), self.labels.radii, strict=True):
            padded = padded.narrow(axis, radius, padded.shape[axis] - 2 * radius)
        return padded

    def still(self) -> AlignedPair:
        """The same images with one label, which moves nothing, and every voxel a control point of its own."""
        return replace(
            self,
            source=self.aligned(self.source),
            covered=self.aligned(self.covered),
            source_contrast=self.aligned(self.source_contrast),
            source_descriptor=None if self.source_descriptor is None else self.aligned(self.source_descriptor),
            labels=LabelSpace((0, 0, 0)),
            control=self.image,
        )

    def supports(self) -> Supports:
        """The supports of the control points over the target's voxels."""
        return Supports(lattice.support(self.image, self.control, self.target.device))


@dataclass(frozen=True, eq=False)
class Supports:
    """Weighted means over the neighbourhood of every control point.

    Args:
        matrices: (control, voxels) along (z, y, x), rows sum to 1.
    """

    matrices: Matrices

    def mean(self, values: Tensor) -> Tensor:
        """(..., z, y, x) per voxel to (..., cz, cy, cx) per control point."""
        return along_axes(self.matrices, values)

    def halved(self, axes: tuple[bool, bool, bool]) -> Supports:
        """The supports over blocks of two voxels along the chosen ``axes`` (z, y, x); an odd last voxel is a block."""
        result = []
        for matrix, halve in zip(self.matrices, axes, strict=True):
            if halve:
                even = torch.nn.functional.pad(matrix, (0, matrix.shape[1] % 2))
                matrix = even.reshape(len(even), -1, 2).sum(-1)
            result.append(matrix)
        return Supports((result[0], result[1], result[2]))


class VoxelMetric(ABC):
    """A metric that is a number at every voxel, and over a support the mean of these."""

    supports: Supports

    @abstractmethod
    def voxels(self, block: Block) -> Tensor:
        """Costs (k, j, i, z, y, x) of a block of labels, in memory of their own."""

    def unary(self, block: Block) -> Tensor:
        """Costs (k, j, i, cz, cy, cx) of a block of labels."""
        return self.supports.mean(self.voxels(block))


def channel_mean(values: Tensor, axis: int = 0) -> Tensor:
    """The mean over the channels, which lie along ``axis``; of one channel its values, which are not gone through."""
    return values.select(axis, 0) if values.shape[axis] == 1 else values.mean(axis)


def expected_difference(a: Tensor, b: Tensor) -> float:
    """E|A - B| for independent draws A of ``a`` and B of ``b``: the value of a difference metric without alignment."""
    return expected_differences(a.reshape(1, -1), b.reshape(1, -1))[0]


def expected_differences(a: Tensor, b: Tensor) -> list[float]:
    """`expected_difference` of every row of ``a`` (rows, draws) and the same of ``b``; a GPU is waited for twice."""
    if a.numel() == 0 or b.numel() == 0:
        return [0.0] * len(a)
    low, high = torch.minimum(a.amin(1), b.amin(1)), torch.maximum(a.amax(1), b.amax(1))
    limits = torch.stack([low, high], 1).tolist()

    def below(values: Tensor) -> Tensor:
        counts = [torch.histc(row, DIFFERENCE_BINS, *limit) for row, limit in zip(values.float(), limits, strict=True)]
        return torch.stack(counts).double().cumsum(1) / values.shape[1]

    below_a, below_b = below(a), below(b)
    apart = (below_a * (1 - below_b) + below_b * (1 - below_a)).sum(1) * (high.double() - low.double())
    found: list[float] = (apart / DIFFERENCE_BINS).tolist()
    return found

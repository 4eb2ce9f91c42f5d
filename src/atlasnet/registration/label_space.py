"""`LabelSpace`: the quantised displacements among which each control point chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSpace:
    """A dense block of whole-voxel displacements, zero in its middle.

    A dense block, unlike the sparse axis-aligned set of Glocker et al. 2008, is separable: both the minimum
    convolutions of belief propagation and the sub-label refinement work axis by axis.

    Args:
        radii: largest displacement along (z, y, x), in voxels of the level; 0 along the singleton axis of a 2-D image.
    """

    radii: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Labels along (z, y, x)."""
        z, y, x = (2 * radius + 1 for radius in self.radii)
        return z, y, x

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def positions(self, axis: int, device: torch.device | str = "cpu") -> Tensor:
        """The displacements along ``axis`` (0 is z), voxels: -r..r."""
        radius = self.radii[axis]
        return torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)

    def blocks(self, voxels: int, budget: int) -> Iterator[tuple[slice, slice, slice]]:
        """Cut the label block so that a value per voxel and label of a piece stays within ``budget`` numbers.

        Args:
            voxels: voxels per label.
            budget: numbers that a piece may hold; a single label is never cut.
        """
        capacity = max(1, budget // max(voxels, 1))
        z, y, x = self.shape
        step_x = min(x, capacity)
        step_y = min(y, max(1, capacity // x)) if step_x == x else 1
        step_z = min(z, max(1, capacity // (x * y))) if step_y == y and step_x == x else 1
        for k in range(0, z, step_z):
            for j in range(0, y, step_y):
                for i in range(0, x, step_x):
                    yield slice(k, min(k + step_z, z)), slice(j, min(j + step_y, y)), slice(i, min(i + step_x, x))

    def windows(self, padded: Tensor) -> Tensor:
        """All shifted copies of an image, without copying it.

        Args:
            padded: (c, z + 2 rz, y + 2 ry, x + 2 rx).

        Returns:
            (lz, ly, lx, c, z, y, x) view, in which [i, j, k] is the image displaced by that label: value at x + label.
        """
        sizes = [n - 2 * radius for n, radius in zip(padded.shape[1:], self.radii, strict=True)]
        view = padded.unfold(1, sizes[0], 1).unfold(2, sizes[1], 1).unfold(3, sizes[2], 1)
        return view.permute(1, 2, 3, 0, 4, 5, 6)

    def expectation(self, costs: Tensor, temperature: float) -> Tensor:
        """Displacement between the labels: the mean under the Gibbs distribution of ``costs`` (soft arg-min).

        Args:
            costs: (lz, ly, lx, ...), lower is better.
            temperature: in the unit of the costs; towards 0 this becomes the arg-min.

        Returns:
            (3, ...) displacement components (x, y, z), voxels; always within the block.
        """
        # A row per point, which one thread adds up: the bits do not depend on how many there are.
        rows = costs.reshape(len(self), -1).T.contiguous()
        weights = torch.softmax(-rows / temperature, dim=1)
        labels = self.displacements(torch.arange(len(self), device=costs.device))
        return torch.stack([(weights * steps).sum(1) for steps in labels]).reshape(3, *costs.shape[3:])

    def between(self, costs: Tensor, displacements: Tensor) -> Tensor:
        """Costs between the labels, linear along each axis from one label to the next.

        Args:
            costs: (lz, ly, lx, ...).
            displacements: (3, ...) components (x, y, z), voxels, within the block.

        Returns:
            (...), at a label its cost.
        """
        for axis, component in enumerate(displacements.flip(0)):
            labels = self.positions(axis, costs.device).reshape(-1, *[1] * component.ndim)
            weights = (1 - (labels - component).abs()).clamp(min=0)  # (labels along the axis, ...)
            costs = (costs * weights.reshape(len(weights), *[1] * (2 - axis), *component.shape)).sum(0)
        return costs

    def displacements(self, labels: Tensor) -> Tensor:
        """Turn flat label indices (...) into displacements (3, ...), components (x, y, z), voxels."""
        _, count_y, count_x = self.shape
        z, y, x = labels // (count_y * count_x), (labels // count_x) % count_y, labels % count_x
        rz, ry, rx = self.radii
        return torch.stack([x - rx, y - ry, z - rz]).to(torch.float32)

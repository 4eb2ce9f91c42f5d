"""Metric weights by tissue class: what kind of tissue a control point moves decides how similarity is measured there.

Ferrante, Dokania, Marini, Paragios, "Deformable registration through learning of context-specific metric aggregation",
MLMI 2017: the weights of a control point are those of the class most present in its support. How they are learnt is
`atlasnet.registration.learning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atlasnet.errors import InputError, VolumeError
from atlasnet.registration import lattice
from atlasnet.registration.pyramid import Level
from atlasnet.registration.similarity import METRICS
from atlasnet.registration.similarity.pair import Supports
from atlasnet.transform import FramedPoints
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import inside, sample
from atlasnet.volume.sampling import lattice as index_points

LARGEST_CLASS_COUNT = 255  # class indices are stored in a byte, 0 being none of them


@dataclass(frozen=True)
class TissueClass:
    """A class of voxels, and how similarity is measured where it prevails.

    Args:
        name: of the class.
        labels: the values of a label map that belong to it, 0 among them for the background.
        weights: of each metric, in the unit of the class-free weights: a class whose weights sum to more than these
            counts for more against smoothness.

    Raises:
        InputError: no label, an unknown metric, or a weight below 0.
    """

    name: str
    labels: tuple[int, ...]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(int(label) for label in self.labels))
        object.__setattr__(self, "weights", {name: float(weight) for name, weight in self.weights.items()})
        unknown = sorted(set(self.weights) - set(METRICS))
        if not self.labels or unknown or not all(0 <= w < float("inf") for w in self.weights.values()):
            raise InputError(
                f"class {self.name!r} of the metric weights cannot be used",
                expected="labels, and weights >= 0 of metrics among " + ", ".join(METRICS),
                found=f"labels {list(self.labels)}, weights {self.weights}",
            )


def check_classes(classes: Sequence[TissueClass]) -> None:
    """Whether classes can be told apart, and measure something.

    Raises:
        InputError: a label or a name belongs to two, there are too many, or no weight is above 0.
    """
    labels = [label for one in classes for label in one.labels]
    names = [one.name for one in classes]
    if len(set(labels)) < len(labels) or len(set(names)) < len(names) or len(classes) > LARGEST_CLASS_COUNT:
        raise InputError(
            "the classes of the metric weights cannot be told apart",
            expected=f"at most {LARGEST_CLASS_COUNT} classes, every name and every label in one of them",
            found=", ".join(f"{one.name}: {list(one.labels)}" for one in classes)[:200],
        )
    if classes and not any(weight > 0 for one in classes for weight in one.weights.values()):
        raise InputError("no class of the metric weights measures anything", expected="a weight above 0")


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Which class every voxel of the source, or of the target, is of.

    Args:
        indices: (1, z, y, x) uint8, 1 for the first class; 0: of none of them.
        grid: where they lie.
        count: of classes.
        of_source: whose voxels these are.
    """

    indices: Tensor
    grid: Grid
    count: int
    of_source: bool

    @classmethod
    def of(
        cls, labels: Volume, classes: Sequence[TissueClass], device: torch.device, *, of_source: bool = True
    ) -> ClassMap:
        """The classes of a label map (1, z, y, x)."""
        indices = np.zeros(labels.array.shape, dtype=np.uint8)
        for number, one in enumerate(classes, start=1):
            indices[np.isin(labels.array, one.labels)] = number
        return cls(torch.from_numpy(indices).to(device), labels.grid, len(classes), of_source)

    def at(self, index: Tensor) -> Tensor:
        """Class indices (...) of the voxels nearest to index points (..., 3); 0 outside the field of view."""
        found = sample(self.indices, index, mode="nearest")[0]
        return found.masked_fill(~inside(index, self.grid.shape), 0)

    def on(self, grid: Grid) -> Tensor:
        """Class indices (z, y, x) of the voxels of another grid in the same space."""
        points = index_points(grid.shape, 0, grid.shape[0], device=self.indices.device)
        return self.at(FramedPoints(points, grid.affine).relative_to(self.grid.affine))

    def prevailing(self, voxels: Tensor, level: Level) -> Tensor:
        """The class index (cz, cy, cx) most present in the support of each control point of a level.

        Args:
            voxels: (z, y, x) class indices of the level's voxels.
            level: whose control points.

        Returns:
            A tie goes to the class that comes first; 0 where the support holds none.
        """
        supports = Supports(lattice.support(level.image, level.control, voxels.device))
        masks = torch.stack([voxels == number for number in range(1, self.count + 1)]).to(torch.float32)
        shares = supports.mean(masks)
        # Sums of the same shares differ in their last digits from place to place; a tie is a tie.
        largest, winner = (shares * 2**16).round().max(0)
        return torch.where(largest > 0, winner + 1, 0)


def point_weights(
    average: Mapping[str, float], classes: Sequence[TissueClass], prevailing: Tensor | None
) -> dict[str, float | Tensor]:
    """The weight of each metric at the control points, in shares of what the class-free weights sum to.

    Args:
        average: class-free weights.
        classes: with weights in the same unit.
        prevailing: (cz, cy, cx) class indices; where they are 0 the class-free weights hold. None: everywhere.

    Returns:
        By metric a number, or (cz, cy, cx) where there are classes.
    """
    total = sum(average.values())
    if prevailing is None:
        return {name: weight / total for name, weight in average.items() if weight > 0}
    rows = [average, *(one.weights for one in classes)]
    names = [name for name in METRICS if any(row.get(name, 0.0) > 0 for row in rows)]
    return {
        name: prevailing.new_tensor([row.get(name, 0.0) / total for row in rows], dtype=torch.float32)[prevailing]
        for name in names
    }


def check_labels(name: str, image: Volume, labels: Volume | None, classes: Sequence[TissueClass]) -> None:
    """Whether a label map can say of which class an image's voxels are.

    Raises:
        VolumeError: it does not lie on the image's grid, or all its labels but 0 are of no class.
    """
    if labels is None:
        return
    if labels.channels != 1 or not labels.grid.matches(image.grid):
        raise VolumeError(f"the {name} do not lie on their image's grid", expected=repr(image.grid), found=repr(labels))
    known = {label for one in classes for label in one.labels}
    present = np.unique(labels.array[labels.array != 0]).tolist()
    if present and not known & set(present):
        raise VolumeError(
            f"the {name} hold no label of the classes for which metric weights were learnt",
            expected="some of " + ", ".join(map(str, sorted(known - {0}))),
            found=", ".join(map(str, present[:10])),
        )

"""Whether the voxels on which networks work can show the structures of a cohort, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.masks import within
from atlasnet.cohort.plan import Plan
from atlasnet.cohort.spacing import Spacing
from atlasnet.cohort.structures import Values, all_values, where
from atlasnet.errors import InputError
from atlasnet.execution import Reporter, SilentReporter
from atlasnet.volume.grid import Grid
from atlasnet.volume.label_boxes import around, label_boxes
from atlasnet.volume.orientation import canonical, turned_grid
from atlasnet.volume.resample import resample
from atlasnet.volume.volume import Volume

COARSE = 0.85
"""Dice of a reference with itself, there and back, below which voxels are too coarse. Networks lose less than it says,
because probabilities tell where between two voxels a boundary lies: of hippocampi 2 mm keep .89, 3 mm .84, and networks
lost .02 and .05 there against the scans' 1 mm (coarser_voxels.json in benchmarks/results)."""

ENOUGH = 0.9
"""What finer voxels keep of a structure for which others are too coarse."""

_FINER = 2 ** (1 / 3)  # from one spacing that is tried to the next: twice the voxels
_TRIED = 10
# Of a voxel: scans are not mapped by whole numbers of voxels, hence no sample lies midway between two.
_OFF = (0.32, 0.17, 0.05)


@dataclass(frozen=True)
class Kept:
    """What voxels of several sizes keep of the structures.

    Args:
        spacings: (x, y, z) in mm, those of the plan and finer ones, to those of the scans.
        dice: by structure, at each of them, the Dice of a reference with itself when it is sampled there as networks
            learn it and read back as probabilities are, the median over the subjects that have the structure; 1 where
            voxels are as fine as the scan's. Once it is `ENOUGH` it is not measured any finer.
    """

    spacings: tuple[Spacing, ...]
    dice: Mapping[str, tuple[float, ...]]

    def lost(self, number: int = 0) -> dict[str, float]:
        """The structures for which the voxels of this number are too coarse, the smallest Dice first."""
        found = {name: values[number] for name, values in self.dice.items() if values[number] < COARSE}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def more(self, number: int) -> float:
        """How many times as many as the planned ones the voxels of this number are."""
        return float(np.prod(self.spacings[0]) / np.prod(self.spacings[number]))

    def enough(self, names: Iterable[str], most: float = np.inf) -> int:
        """The number of the coarsest voxels that keep `ENOUGH` of these structures, at most ``most`` times as many.

        Where none do, of the finest.
        """
        allowed = [number for number in range(len(self.spacings)) if self.more(number) <= most]
        wanted = [*names]
        keeping = (number for number in allowed if all(self.dice[name][number] >= ENOUGH for name in wanted))
        return next(keeping, allowed[-1])

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "spacings_xyz_mm": [list(spacing) for spacing in self.spacings],
            "dice": {name: list(values) for name, values in self.dice.items()},
        }


def kept_by(cohort: Cohort, plan: Plan, scans: ArrayLike, reporter: Reporter | None = None) -> Kept | None:
    """Measure what voxels keep of the references of a cohort, read one at a time.

    Subjects without a reference say nothing, nor do those whose files cannot be used.

    Args:
        cohort: with organ masks, what lies within them counts.
        plan: for it.
        scans: the median of the subjects', (x, y, z) in mm.
        reporter: follows the reading.

    Returns:
        None where the planned voxels are no coarser than the scans' along any axis, or nothing is labelled.
    """
    tried = spacings(plan.spacing, scans)
    if len(tried) == 1:
        return None
    labelled = [subject for subject in cohort if subject.labels is not None]
    found: dict[str, list[list[float]]] = {}
    for subject in (reporter or SilentReporter()).track(labelled, "what voxels keep", len(labelled)):
        try:
            labels = subject.read_labels()
            mask = subject.read_mask(labels.grid)
        except InputError:
            continue
        turned, _ = canonical(labels if mask is None else within(labels, mask))
        turn = plan.turn(turned.grid)
        turned = Volume(turn.apply(turned.array), turned_grid(turned.grid, turn))
        structures = {name: values for name, values in cohort.told_of(subject).items() if name in cohort.structures}
        for name, dice in there_and_back(turned, structures, tried).items():
            found.setdefault(name, []).append(dice)
    medians = {name: np.median(found[name], axis=0).round(4).tolist() for name in cohort.structures if name in found}
    return Kept(tried, {name: tuple(values) for name, values in medians.items()}) if medians else None


def spacings(planned: Spacing, scans: ArrayLike) -> tuple[Spacing, ...]:
    """The planned spacing and finer ones, by the same factor along every axis, to that of the scans."""
    result = [planned]
    while len(result) < _TRIED and any(np.less(np.multiply(scans, 1.01), result[-1])):
        finer = np.maximum(np.divide(planned, _FINER ** len(result)), np.minimum(planned, scans))
        x, y, z = [float(f"{side:.3g}") for side in finer]
        result.append((x, y, z))
    return tuple(result)


def there_and_back(
    labels: Volume, structures: Mapping[str, Values], tried: Sequence[Spacing]
) -> dict[str, list[float]]:
    """The Dice of each structure with itself after it was sampled at spacings and read back; see `Kept`.

    Args:
        labels: (1, z, y, x), its axes those of the plan.
        structures: by name, their values; those that do not occur are left out.
        tried: (x, y, z) in mm, from coarse to fine.
    """
    array, result = labels.array[0], {}
    boxes = label_boxes(array)
    margin = np.ceil(2 * np.divide(tried[0], labels.grid.spacing))[::-1].astype(int).tolist()
    for name, values in structures.items():
        held = [boxes[value] for value in all_values(values) if value in boxes]
        if not held:
            continue
        box = around(held, margin, array.shape)
        grid, part = labels.grid.cropped(box), where(array[box], values)
        dice: list[float] = []
        for spacing in tried:
            done = dice and dice[-1] >= ENOUGH
            dice.append(dice[-1] if done else _dice_there(part, grid, spacing))
        result[name] = dice
    return result


def _dice_there(inside: NDArray[np.bool_], grid: Grid, spacing: Spacing) -> float:
    """The Dice of a structure with itself on ``grid`` after it was sampled at ``spacing``."""
    if np.all(np.less_equal(spacing, grid.spacing * 1.01)):
        return 1.0
    coarse = grid.with_spacing(spacing)
    coarse = Grid.from_parts(coarse.shape, coarse.spacing, coarse.to_world(_OFF), coarse.direction)
    there = resample(
        Volume(inside[None].astype(np.uint8), grid), coarse, interpolation="label", fill=0, antialias=False
    )
    back = resample(there, grid).array[0] > 0.5
    return float(2 * np.count_nonzero(back & inside) / (np.count_nonzero(back) + np.count_nonzero(inside)))

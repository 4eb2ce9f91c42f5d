"""The built-in transformer: multi-metric discrete deformable registration.

Glocker, Komodakis, Tziritas, Navab, Paragios, "Dense image registration through MRFs and efficient linear
programming", Medical Image Analysis 12(6), 2008, with belief propagation in place of linear programming, a dense
label block in place of a sparse one, a penalty on the total instead of the incremental displacement, and Gauss-Newton
steps between the labels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atlasnet.errors import VolumeError
from atlasnet.execution import Execution
from atlasnet.registration.context import ClassMap, check_labels
from atlasnet.registration.deformation import Witness, deform, prepare_pair
from atlasnet.registration.measured import Found, MeasuringOperator, started
from atlasnet.registration.operator import Registration, Task, tasks
from atlasnet.registration.pyramid import build_levels, registration_grid
from atlasnet.registration.settings import MRFSettings
from atlasnet.transform import (
    AffineMap,
    DisplacementMap,
    Transform,
    compose,
    corner_jacobians,
    displacement_on,
    inverse_grid,
    inverse_on,
    length_summary,
    repair,
    smooth_at,
)
from atlasnet.volume import Grid, Volume

# What every corner Jacobian of the inverse must exceed, and how often the map is smoothed to that end.
SMALLEST_INVERSE_JACOBIAN = 0.05
ROUNDS = 8
# Share of the intensity window up to which a voxel shows air or background, where maps are free to differ: -920
# Hounsfield units in CT.
EMPTY = 0.05


class MRFOperator(MeasuringOperator):
    """Affine alignment, then the discrete free-form deformation; the inverse and every figure of the record with it.

    Args:
        settings: everything it may be told.
    """

    name = "mrf"
    side_by_side = True

    def __init__(self, settings: MRFSettings | None = None) -> None:
        self.options = settings or MRFSettings()
        self.clamp, self.mi_range = self.options.clamp, self.options.mi_range

    @property
    def contextual(self) -> bool:
        """Whether the weights of the metrics depend on the tissue; see `Operator`."""
        return bool(self.options.classes)

    def settings(self) -> dict[str, Any]:
        """All settings as JSON."""
        return self.options.as_json()

    def register(
        self,
        source: Volume,
        targets: Sequence[Volume],
        *,
        source_mask: Volume | None = None,
        target_masks: Sequence[Volume | None] | None = None,
        initial: Sequence[Transform | None] | None = None,
        source_labels: Volume | None = None,
        target_labels: Sequence[Volume | None] | None = None,
        execution: Execution,
    ) -> list[Registration]:
        """See `Operator.register`.

        Where the weights of the metrics depend on the tissue, the class of a control point is the one most present in
        its support in the source as it is mapped at the time, by ``source_labels``; without these by the target's
        labels, which are what the source's are predicted to be; without these either, the class-free average holds.
        ``classes_from`` in the record says which it was: ``source``, ``target`` or ``average``.

        Raises:
            VolumeError: also for labels that do not lie on their image's grid, are of other classes, or are not one
                entry per target.
        """
        wanted = tasks(source, targets, source_mask, target_masks, initial)
        labels = [None] * len(targets) if target_labels is None else list(target_labels)
        if len(labels) != len(targets):
            raise VolumeError(
                "target_labels must have one entry per target", expected=str(len(targets)), found=str(len(labels))
            )
        if self.contextual:
            check_labels("source's labels", source, source_labels, self.options.classes)
            for target, known in zip(targets, labels, strict=True):
                check_labels("target's labels", target, known, self.options.classes)
            wanted = [
                replace(task, labels=known, source_labels=source_labels)
                for task, known in zip(wanted, labels, strict=True)
            ]
        return self._register_all(source, source_mask, wanted, execution)

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The fold-free map, both directions."""
        options, begin = self.options, time.perf_counter()
        affine = options.affine_settings if options.affine else None
        start = started(source, source_mask, task, affine, execution).to(execution.torch_device())
        aligned = time.perf_counter()
        displacement, levels = self._deform(source, source_mask, task, start, execution)
        record: dict[str, Any] = {"levels": levels, "metrics": dict(options.metrics_on(displacement.grid))}
        if self.contextual:
            known = "source" if task.source_labels is not None else "target" if task.labels is not None else "average"
            record["classes_from"] = known
        if options.symmetric:
            swapped = Task(source, source_mask, None, task.source_labels, task.labels)
            back, record["levels_back"] = self._deform(task.target, task.mask, swapped, start.inverse, execution)
            displacement, record["disagreement_mm"] = self._mean(
                displacement, back, start, self._shown(source, source_mask, task, displacement.grid, execution)
            )
        deformed = time.perf_counter()
        found, record["inverse"] = self._invertible(displacement, start, execution)
        transform = found.then(start)
        record |= {
            "seconds_affine": round(aligned - begin, 3),
            "seconds_deformation": round(deformed - aligned, 3),
            "seconds_inverse": round(time.perf_counter() - deformed, 3),
            "spacing_mm": [round(float(s), 4) for s in displacement.grid.spacing],
        }
        return Found(transform, start, record)

    def _deform(
        self, source: Volume, source_mask: Volume | None, task: Task, initial: Transform, execution: Execution
    ) -> tuple[DisplacementMap, list[dict[str, Any]]]:
        """`displacement_of` with the classes of whichever image has labels."""
        classes, device = None, execution.torch_device()
        if task.source_labels is not None:
            classes = ClassMap.of(task.source_labels, self.options.classes, device)
        elif task.labels is not None:
            classes = ClassMap.of(task.labels, self.options.classes, device, of_source=False)
        return displacement_of(source, source_mask, task, initial, self.options, execution, classes=classes)

    def _invertible(
        self, displacement: DisplacementMap, start: Transform, execution: Execution
    ) -> tuple[Transform, dict[str, Any]]:
        """The map with an inverse that does not fold either, nor folds with the start after it, and what that took.

        Where a map bends strongly, the voxels of its inverse are too far apart to follow, and what is interpolated
        between them may fold though the map itself does not; and so may a map and a start that both compress the same
        place. There the map is smoothed, up to `ROUNDS` times.
        """
        execution.pause()
        grid, rounds = displacement.grid, 0
        inverse = inverse_on(displacement, inverse_grid(displacement))
        while True:
            least = corner_jacobians(inverse.displacement, inverse.grid)
            bad = least <= SMALLEST_INVERSE_JACOBIAN
            where = _origins(inverse, bad, grid) | _folding(displacement, start)
            execution.pause()
            if rounds == ROUNDS or not where.any():
                return Transform(displacement, inverse), {
                    "rounds": rounds,
                    "jacobian_min": round(float(least.min()), 4),
                }
            smoother = smooth_at(displacement.displacement, grid, where, reach=2 + rounds)
            displacement = DisplacementMap(repair(smoother, grid, floor=self.options.smallest_jacobian)[0], grid)
            inverse = inverse_on(displacement, inverse_grid(displacement), inverse)
            rounds += 1

    def _shown(
        self, source: Volume, source_mask: Volume | None, task: Task, grid: Grid, execution: Execution
    ) -> Tensor:
        """The voxels (z, y, x) of ``grid`` where the target counts and shows more than air or background; bool."""
        _, target = prepare_pair(
            source,
            source_mask,
            task.target,
            task.mask,
            grid,
            execution,
            clamp=self.clamp,
            mi_range=self.mi_range,
        )
        return target.counted & (target.values > EMPTY).any(0)

    def _mean(
        self, displacement: DisplacementMap, back: DisplacementMap, start: Transform, shown: Tensor
    ) -> tuple[DisplacementMap, dict[str, float]]:
        """Half way between a displacement of the target and what undoes one of the source; how far apart they were,
        where the target shows something.
        """
        grid = displacement.grid
        found_back = Transform.from_displacement(back, measure=False).then(start.inverse)
        undone = found_back.inverse.then(start.inverse).displacement(grid)
        apart = (displacement.displacement - undone).square().sum(0).sqrt()[shown]
        mean, _ = repair((displacement.displacement + undone) / 2, grid, floor=self.options.smallest_jacobian)
        return DisplacementMap(mean, grid), {k: round(v, 4) for k, v in length_summary(apart).items()}


def displacement_of(
    source: Volume,
    source_mask: Volume | None,
    task: Task,
    initial: Transform,
    options: MRFSettings,
    execution: Execution,
    *,
    classes: ClassMap | None = None,
    witness: Witness | None = None,
) -> tuple[DisplacementMap, list[dict[str, Any]]]:
    """The fold-free displacement applied before ``initial``, on the device, and the record of the levels.

    Args:
        source: (c, z, y, x).
        source_mask: where it counts.
        task: the target and its mask.
        initial: from where to start.
        options: everything about the search.
        execution: where to compute.
        classes: see `deform`.
        witness: see `deform`.
    """
    grid = registration_grid(task.target.grid, options.spacing, options.voxels)
    weights = (options.metrics_on(grid), *(one.weights for one in options.classes))
    there, here = prepare_pair(
        source,
        source_mask,
        task.target,
        task.mask,
        grid,
        execution,
        clamp=options.clamp,
        mi_range=options.mi_range,
        descriptor=any(row.get("mind", 0) > 0 for row in weights),
    )
    levels = build_levels(grid, options.levels_on(grid))
    forward = initial.forward.to(execution.torch_device())
    steps, records = deform(there, here, forward, levels, options, execution, classes=classes, witness=witness)
    return DisplacementMap(_to_millimetres(steps, levels[-1].grid), levels[-1].grid), records


def _folding(displacement: DisplacementMap, start: Transform) -> Tensor:
    """The voxels (z, y, x) of a displacement's grid at which it folds once the start is applied after it; bool."""
    if isinstance(start.forward, AffineMap):
        return torch.zeros(displacement.grid.shape, dtype=torch.bool)
    own, whole = (
        corner_jacobians(displacement_on(point_map, displacement.grid), displacement.grid)
        for point_map in (start.forward, compose(displacement, start.forward))
    )
    # A start that shrinks the image as a whole is no fold, and no smoothing would mend it.
    return (whole <= SMALLEST_INVERSE_JACOBIAN * own.min().clamp(0, 1)).cpu()


def _origins(inverse: DisplacementMap, bad: Tensor, grid: Grid) -> Tensor:
    """The voxels (z, y, x) of ``grid`` nearest to where the inverse takes its ``bad`` voxels; bool."""
    z, y, x = bad.nonzero().T
    moved = inverse.displacement[:, z, y, x].T.cpu().numpy()
    points = inverse.grid.to_world(torch.stack([x, y, z], 1).cpu().numpy()) + moved
    index = grid.to_index(points).round().clip(0, grid.size - 1).astype(int)
    where = torch.zeros(grid.shape, dtype=torch.bool)
    where[index[:, 2], index[:, 1], index[:, 0]] = True
    return where


def _to_millimetres(steps: Tensor, grid: Grid) -> Tensor:
    """Steps along the grid's axes in voxels to LPS mm, (3, z, y, x)."""
    linear = torch.tensor(grid.affine[:3, :3].copy(), dtype=torch.float64, device=steps.device)
    return torch.einsum("ij,jzyx->izyx", linear, steps.double()).float()

"""The built-in transformer: multi-metric discrete deformable registration.

Glocker, Komodakis, Tziritas, Navab, Paragios, "Dense image registration through MRFs and efficient linear
programming", Medical Image Analysis 12(6), 2008, with belief propagation in place of linear programming, a dense
label block in place of a sparse one, a penalty on the total instead of the incremental displacement, and Gauss-Newton
steps between the labels.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from atlasnet.execution import Execution
from atlasnet.registration.deformation import deform, prepare_pair
from atlasnet.registration.measured import Found, MeasuringOperator, started
from atlasnet.registration.operator import Task
from atlasnet.registration.pyramid import build_levels, registration_grid
from atlasnet.registration.settings import MRFSettings
from atlasnet.transform import (
    DisplacementMap,
    Transform,
    corner_jacobians,
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


class MRFOperator(MeasuringOperator):
    """Affine alignment, then the discrete free-form deformation; the inverse and every figure of the record with it.

    Args:
        settings: everything it may be told.
    """

    name = "mrf"

    def __init__(self, settings: MRFSettings | None = None) -> None:
        self.options = settings or MRFSettings()
        self.clamp, self.mi_range = self.options.clamp, self.options.mi_range

    def settings(self) -> dict[str, Any]:
        """All settings as JSON."""
        return self.options.as_json()

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The fold-free map, both directions."""
        options, begin = self.options, time.perf_counter()
        affine = options.affine_settings if options.affine else None
        start = started(source, source_mask, task, affine, execution)
        aligned = time.perf_counter()
        displacement, levels = self._deform(source, source_mask, task, start, execution)
        record: dict[str, Any] = {"levels": levels}
        if options.symmetric:
            swapped = Task(source, source_mask, None)
            back, record["levels_back"] = self._deform(task.target, task.mask, swapped, start.inverse, execution)
            displacement, record["disagreement_mm"] = self._mean(displacement, back, start)
        deformed = time.perf_counter()
        found, record["inverse"] = self._invertible(displacement)
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
        """The fold-free displacement applied before ``initial``, and the record of the levels."""
        options, device = self.options, execution.torch_device()
        grid = registration_grid(task.target.grid, options.spacing, options.voxels)
        there, here = prepare_pair(
            source,
            source_mask,
            task.target,
            task.mask,
            grid,
            device,
            clamp=options.clamp,
            mi_range=options.mi_range,
            descriptor=options.metrics.get("mind", 0) > 0,
        )
        plane = min(grid.shape) == 1
        levels = build_levels(grid, options.plane_pyramid if plane else options.pyramid)
        steps, records = deform(there, here, initial.forward.to(device), levels, options, execution)
        return DisplacementMap(_to_millimetres(steps.cpu(), levels[-1].grid), levels[-1].grid), records

    def _invertible(self, displacement: DisplacementMap) -> tuple[Transform, dict[str, Any]]:
        """The map with an inverse that does not fold either, and what that took.

        Where a map bends strongly, the voxels of its inverse are too far apart to follow, and what is interpolated
        between them may fold though the map itself does not. There the map is smoothed, up to `ROUNDS` times.
        """
        grid, rounds = displacement.grid, 0
        inverse = inverse_on(displacement, inverse_grid(displacement))
        while True:
            least = corner_jacobians(inverse.displacement, inverse.grid)
            bad = least <= SMALLEST_INVERSE_JACOBIAN
            if rounds == ROUNDS or not bad.any():
                return Transform(displacement, inverse), {
                    "rounds": rounds,
                    "jacobian_min": round(float(least.min()), 4),
                }
            where = _origins(inverse, bad, grid)
            smoother = smooth_at(displacement.displacement, grid, where, reach=2 + rounds)
            displacement = DisplacementMap(repair(smoother, grid, floor=self.options.smallest_jacobian)[0], grid)
            inverse = inverse_on(displacement, inverse_grid(displacement), inverse)
            rounds += 1

    def _mean(
        self, displacement: DisplacementMap, back: DisplacementMap, start: Transform
    ) -> tuple[DisplacementMap, dict[str, float]]:
        """Half way between a displacement of the target and what undoes one of the source; how far apart they were."""
        grid = displacement.grid
        found_back = Transform.from_displacement(back, measure=False).then(start.inverse)
        undone = found_back.inverse.then(start.inverse).displacement(grid)
        apart = (displacement.displacement - undone).square().sum(0).sqrt().flatten()
        mean, _ = repair((displacement.displacement + undone) / 2, grid, floor=self.options.smallest_jacobian)
        return DisplacementMap(mean, grid), {k: round(v, 4) for k, v in length_summary(apart).items()}


def _origins(inverse: DisplacementMap, bad: Tensor, grid: Grid) -> Tensor:
    """The voxels (z, y, x) of ``grid`` nearest to where the inverse takes its ``bad`` voxels; bool."""
    z, y, x = bad.nonzero().T
    points = inverse.grid.to_world(torch.stack([x, y, z], 1).numpy()) + inverse.displacement[:, z, y, x].T.numpy()
    index = grid.to_index(points).round().clip(0, grid.size - 1).astype(int)
    where = torch.zeros(grid.shape, dtype=torch.bool)
    where[index[:, 2], index[:, 1], index[:, 0]] = True
    return where


def _to_millimetres(steps: Tensor, grid: Grid) -> Tensor:
    """Steps along the grid's axes in voxels to LPS mm, (3, z, y, x)."""
    linear = torch.tensor(grid.affine[:3, :3].copy(), dtype=torch.float64)
    return torch.einsum("ij,jzyx->izyx", linear, steps.double()).float()

"""The built-in transformer: multi-metric discrete deformable registration.

Glocker, Komodakis, Tziritas, Navab, Paragios, "Dense image registration through MRFs and efficient linear
programming", Medical Image Analysis 12(6), 2008, with belief propagation in place of linear programming, a dense
label block in place of a sparse one, and a penalty on the total instead of the incremental displacement.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution
from atlasnet.registration.affine import prealign
from atlasnet.registration.deformation import deform, prepare_pair
from atlasnet.registration.operator import Registration, Task, tasks
from atlasnet.registration.pyramid import build_levels, registration_grid
from atlasnet.registration.quality import geometry, quality, similarities
from atlasnet.registration.settings import MRFSettings
from atlasnet.transform import DisplacementMap, Transform
from atlasnet.volume import Grid, Volume


class MRFOperator:
    """Affine alignment, then the discrete free-form deformation; the inverse and every figure of the record with it.

    Args:
        settings: everything it may be told.
    """

    name = "mrf"

    def __init__(self, settings: MRFSettings | None = None) -> None:
        self.options = settings or MRFSettings()

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
        execution: Execution,
    ) -> list[Registration]:
        """See `Operator.register`."""
        with execution.active():
            results = []
            for task in tasks(source, targets, source_mask, target_masks, initial):
                execution.pause()
                results.append(self._register_one(source, source_mask, task, execution))
            return results

    def _register_one(
        self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution
    ) -> Registration:
        options, start = self.options, time.perf_counter()
        initial = self._initial(source, source_mask, task, execution)
        prealigned = time.perf_counter()
        displacement, levels = self._deform(source, source_mask, task, initial, execution)
        deformed = time.perf_counter()
        inner = Transform.from_displacement(displacement, measure=False)
        transform, measured = geometry(inner.then(initial), task.target.grid, source.grid)
        if measured["folded_share"] > 0:
            raise RegistrationError(
                "the map still folds after its repair: its least Jacobian is "
                f"{measured['jacobian_min']:.3g}; raise alpha or smallest_jacobian, or register at a coarser spacing"
            )
        maps = {"before": Transform.identity().forward, "start": initial.forward, "after": transform.forward}
        similarity = similarities(
            source, source_mask, task, maps, execution, clamp=options.clamp, mi_range=options.mi_range
        )
        end = time.perf_counter()
        record = {
            "operator": self.name,
            "settings": self.settings(),
            "seconds": round(end - start, 3),
            "seconds_affine": round(prealigned - start, 3),
            "seconds_deformation": round(deformed - prealigned, 3),
            "seconds_inverse_and_checks": round(end - deformed, 3),
            "spacing_mm": [round(float(s), 4) for s in displacement.grid.spacing],
            "levels": levels,
            "similarity_before": similarity["before"],
            "similarity_prealigned": similarity["start"],
            "similarity_after": similarity["after"],
            **measured,
            "quality": quality(similarity["after"]),
        }
        return Registration(transform, record)

    def _initial(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Transform:
        if task.initial is not None:
            return task.initial
        if not self.options.affine:
            return Transform.identity()
        return prealign(
            source,
            task.target,
            settings=self.options.affine_settings,
            source_mask=source_mask,
            target_mask=task.mask,
            execution=execution,
        )

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
        )
        levels = build_levels(grid, options.pyramid)
        steps, records = deform(there, here, initial.forward.to(device), levels, options, execution)
        return DisplacementMap(_to_millimetres(steps.cpu(), levels[-1].grid), levels[-1].grid), records


def _to_millimetres(steps: Tensor, grid: Grid) -> Tensor:
    """Steps along the grid's axes in voxels to LPS mm, (3, z, y, x)."""
    linear = torch.tensor(grid.affine[:3, :3].copy(), dtype=torch.float64)
    return torch.einsum("ij,jzyx->izyx", linear, steps.double()).float()

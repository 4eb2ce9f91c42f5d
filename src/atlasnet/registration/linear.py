"""The operators without deformation: the identity and the affine alignment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings, prealign
from atlasnet.registration.operator import Registration, Task, tasks
from atlasnet.registration.quality import geometry, quality, similarities
from atlasnet.transform import Transform
from atlasnet.volume import Volume


class IdentityOperator:
    """Leaves the source where it lies in the world, or where an initial map puts it."""

    name = "identity"

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

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
        results = []
        with execution.active():
            for task in tasks(source, targets, source_mask, target_masks, initial):
                execution.pause()
                start = time.perf_counter()
                transform = task.initial or Transform.identity()
                results.append(_measured(self.name, {}, source, source_mask, task, transform, start, execution))
        return results


class AffineOperator:
    """The affine pre-alignment on its own.

    Args:
        settings: of the alignment.
    """

    name = "affine"

    def __init__(self, settings: AffineSettings | None = None) -> None:
        self.options = settings or AffineSettings()

    def settings(self) -> dict[str, Any]:
        """The settings of the alignment."""
        return asdict(self.options)

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
        """See `Operator.register`; an initial map is taken as the result, as the deformable operator takes it."""
        results = []
        with execution.active():
            for task in tasks(source, targets, source_mask, target_masks, initial):
                execution.pause()
                start = time.perf_counter()
                transform = task.initial or prealign(
                    source,
                    task.target,
                    settings=self.options,
                    source_mask=source_mask,
                    target_mask=task.mask,
                    execution=execution,
                )
                results.append(
                    _measured(self.name, self.settings(), source, source_mask, task, transform, start, execution)
                )
        return results


def _measured(
    name: str,
    settings: dict[str, Any],
    source: Volume,
    source_mask: Volume | None,
    task: Task,
    transform: Transform,
    start: float,
    execution: Execution,
) -> Registration:
    maps = {"before": Transform.identity().forward, "after": transform.forward}
    similarity = similarities(source, source_mask, task, maps, execution)
    transform, measured = geometry(transform, task.target.grid, source.grid)
    record = {
        "operator": name,
        "settings": settings,
        "seconds": round(time.perf_counter() - start, 3),
        "levels": [],
        "similarity_before": similarity["before"],
        "similarity_after": similarity["after"],
        **measured,
        "quality": quality(similarity["after"]),
    }
    return Registration(transform, record)

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


class _LinearOperator:
    """The loop and the record that both operators share; they differ in the map of one target."""

    name: str

    def settings(self) -> dict[str, Any]:
        """What the result depends on besides the images."""
        raise NotImplementedError

    def _map(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Transform:
        """The map of a target that comes without an initial one."""
        raise NotImplementedError

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
        """See `Operator.register`; an initial map is the result."""
        results = []
        with execution.active():
            for task in tasks(source, targets, source_mask, target_masks, initial):
                execution.pause()
                start = time.perf_counter()
                transform = task.initial or self._map(source, source_mask, task, execution)
                maps = {"before": Transform.identity().forward, "after": transform.forward}
                similarity = similarities(source, source_mask, task, maps, execution)
                transform, measured = geometry(transform, task.target.grid, source.grid)
                record = {
                    "operator": self.name,
                    "settings": self.settings(),
                    "seconds": round(time.perf_counter() - start, 3),
                    "levels": [],
                    "similarity_before": similarity["before"],
                    "similarity_after": similarity["after"],
                    **measured,
                    "quality": quality(similarity["after"]),
                }
                results.append(Registration(transform, record))
        return results


class IdentityOperator(_LinearOperator):
    """Leaves the source where it lies in the world, or where an initial map puts it."""

    name = "identity"

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def _map(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Transform:
        return Transform.identity()


class AffineOperator(_LinearOperator):
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

    def _map(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Transform:
        return prealign(
            source,
            task.target,
            settings=self.options,
            source_mask=source_mask,
            target_mask=task.mask,
            execution=execution,
        )

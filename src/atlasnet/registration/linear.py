"""The operators without deformation: the identity and the affine alignment."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings
from atlasnet.registration.measured import Found, MeasuringOperator, started
from atlasnet.registration.operator import Task
from atlasnet.transform import Transform
from atlasnet.volume import Volume


class IdentityOperator(MeasuringOperator):
    """Leaves the source where it lies in the world, or where an initial map puts it."""

    name = "identity"

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The initial map."""
        return Found(started(source, source_mask, task, None, execution))


class CentreOperator(MeasuringOperator):
    """Shifts the middle of the source's field of view onto that of the target, or does what an initial map says."""

    name = "centre"

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The shift, or the initial map."""
        if task.initial is not None:
            return Found(task.initial)
        shift = np.eye(4)
        shift[:3, 3] = source.grid.centre - task.target.grid.centre
        return Found(Transform.affine(shift))


class AffineOperator(MeasuringOperator):
    """The affine pre-alignment on its own; an initial map is the result.

    Args:
        settings: of the alignment.
    """

    name = "affine"
    side_by_side = True

    def __init__(self, settings: AffineSettings | None = None) -> None:
        self.options = settings or AffineSettings()

    def settings(self) -> dict[str, Any]:
        """The settings of the alignment."""
        return asdict(self.options)

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The affine alignment."""
        return Found(started(source, source_mask, task, self.options, execution))

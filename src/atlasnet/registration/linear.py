"""The operators without deformation: the identity and the affine alignment."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings
from atlasnet.registration.measured import Found, MeasuringOperator, started
from atlasnet.registration.operator import Task
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


class AffineOperator(MeasuringOperator):
    """The affine pre-alignment on its own; an initial map is the result.

    Args:
        settings: of the alignment.
    """

    name = "affine"

    def __init__(self, settings: AffineSettings | None = None) -> None:
        self.options = settings or AffineSettings()

    def settings(self) -> dict[str, Any]:
        """The settings of the alignment."""
        return asdict(self.options)

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The affine alignment."""
        return Found(started(source, source_mask, task, self.options, execution))

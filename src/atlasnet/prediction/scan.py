"""`Scan`: one scan on its way through models. What several of them ask of it is found out once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import cached_property

from atlasnet.cohort import Plan
from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution, Stages
from atlasnet.registration import Operator, Registration, Target, register_each
from atlasnet.training.evidence import orientation
from atlasnet.training.mapping import prepare
from atlasnet.volume import Volume, canonical


class Scan:
    """A scan, with what has been found out of it.

    Args:
        image: (c, z, y, x), in any orientation.
        execution: device, threads, seed, progress.
    """

    def __init__(self, image: Volume, execution: Execution) -> None:
        self.given, self.execution = image.grid, execution
        self.stages = Stages(device=execution.device)
        self.source, self.orientation = canonical(image)
        self._prepared: tuple[Plan, Volume] | None = None
        self._registrations: dict[str, Registration | RegistrationError] = {}
        self._margins: dict[str, tuple[float, str] | None] = {}

    @cached_property
    def _keeping(self) -> Execution:
        """With the scan on a GPU, for all its registrations."""
        return self.execution.keeping(self.source.array)

    def prepared(self, plan: Plan) -> Volume:
        """The scan as networks of this plan see it; that of the last plan is kept."""
        if self._prepared is None or self._prepared[0] != plan:
            self._prepared = None  # two copies of a large scan are not held at once
            with self.stages("mapping"):
                self._prepared = plan, prepare(self.source, plan)
        return self._prepared[1]

    def registered(
        self, operator: Operator, atlases: Mapping[str, Target]
    ) -> Generator[Registration | RegistrationError]:
        """The map onto each atlas, or why there is none.

        Args:
            operator: registers.
            atlases: in canonical orientation; equal keys mean an equal operator and an equal atlas.
        """
        missing = [atlas for key, atlas in atlases.items() if key not in self._registrations]
        with closing(register_each(operator, self.source, missing, self._keeping)) as made:
            for key in atlases:
                if key not in self._registrations:
                    with self.stages("registration"):
                        self._registrations[key] = next(made)
                yield self._registrations[key]

    def margin(self, key: str, atlas: Volume) -> tuple[float, str] | None:
        """By how much the scan fits an atlas better than its mirror images do, see `orientation`.

        Args:
            key: equal keys mean an equal atlas.
            atlas: (c, z, y, x), canonical orientation.
        """
        if key not in self._margins:
            self._margins[key] = orientation(self.source, atlas, self.execution)
        return self._margins[key]

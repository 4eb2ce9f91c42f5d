"""The loop and the record that all operators of this package share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlasnet.errors import InputError, RegistrationError
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings, prealign
from atlasnet.registration.intensity import OptionalRanges, Ranges
from atlasnet.registration.operator import Registration, Task, tasks
from atlasnet.registration.quality import geometry, quality, similarities
from atlasnet.transform import Transform
from atlasnet.volume import Volume

LOST = 0.5
"""A deformation whose quality is below this share of that of its start has lost the image, as may happen where images
begin far apart without an affine alignment; the start is the better map."""


@dataclass(frozen=True, eq=False)
class Found:
    """What one operator found for one target.

    Args:
        transform: the map, on any device; its residual is measured afterwards.
        start: where a deformation began, if there was one.
        record: what only this operator knows, JSON-able.
    """

    transform: Transform
    start: Transform | None = None
    record: dict[str, Any] = field(default_factory=dict)


class MeasuringOperator(ABC):
    """One target after the other, each map measured in the same way; subclasses find the map."""

    name: str
    seeded: bool = False
    side_by_side: bool = False
    clamp: Ranges | None = None
    mi_range: OptionalRanges | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """See `Operator.settings`."""

    @abstractmethod
    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The map of one target."""

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
        return self._register_all(
            source, source_mask, tasks(source, targets, source_mask, target_masks, initial), execution
        )

    def _register_all(
        self, source: Volume, source_mask: Volume | None, wanted: Sequence[Task], execution: Execution
    ) -> list[Registration]:
        with execution.active():
            results, holding = [], execution.keeping(*(image.array for image in (source, source_mask) if image))
            for task in wanted:
                execution.pause()
                # Its own target each lets go of.
                results.append(self._register_one(source, source_mask, task, holding.keeping()))
            return results

    def _folding(self, measured: Mapping[str, Any], start: Mapping[str, Any] | None) -> RegistrationError:
        """What is wrong with a map that folds, by its geometry and that of its start, and what would help."""
        least = f"its least Jacobian is {measured['jacobian_min']:.3g}"
        if start is None:
            return RegistrationError(
                f"the map of the operator {self.name} folds or mirrors: {least}; a field is smoothed where it folds by "
                "atlasnet.transform.repair"
            )
        if start["folded_share"] > 0:
            return RegistrationError(
                f"the map that the registration begins with folds or mirrors: its least Jacobian is "
                f"{start['jacobian_min']:.3g}; begin with another one"
            )
        return RegistrationError(
            f"the map of the operator {self.name} still folds after its repair: {least}; raise alpha or "
            "smallest_jacobian, or register at a coarser spacing"
        )

    def _register_one(
        self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution
    ) -> Registration:
        start = time.perf_counter()
        found, device = self.find(source, source_mask, task, execution), execution.torch_device()
        if not isinstance(found, Found):
            raise InputError(
                f"the method find of the operator {self.name} returns something else than is asked for",
                expected="a Found",
                found=type(found).__name__,
                remedy="return Found(transform)",
            )
        mapped = time.perf_counter()
        transform, measured = geometry(found.transform.to(device), task.target.grid, source.grid)
        if not _meets(transform):
            began = None if found.start is None else geometry(found.start.to(device), task.target.grid, source.grid)[0]
            if began is None or not _meets(began):  # else the deformation lost the image, and is left out below
                raise RegistrationError("nothing of the source lies in the target's field of view")
        if measured["folded_share"] > 0:
            at_start = None
            if found.start is not None:
                at_start = geometry(found.start.to(device), task.target.grid, source.grid)[1]
            raise self._folding(measured, at_start)
        maps = {"before": Transform.identity().forward, "after": transform.forward}
        if found.start is not None:
            maps["prealigned"] = found.start.forward
        similarity, covered = similarities(
            source, source_mask, task, maps, execution, clamp=self.clamp, mi_range=self.mi_range
        )
        lost = False
        if found.start is not None:
            # Over all that counts: a deformation must not gain by covering less.
            before, ended = quality(similarity["prealigned"]), quality(similarity["after"])
            lost = ended < LOST * before
            if lost:
                execution.reporter.warn(
                    f"the deformation lost the image and was left out: with it the quality fell from {before:.3f} to "
                    f"{ended:.3f}; the map is that from which it began"
                )
                transform, measured = geometry(found.start.to(device), task.target.grid, source.grid)
                similarity["rejected"], similarity["after"] = similarity["after"], similarity["prealigned"]
                covered["after"] = covered["prealigned"]
                for level in (*found.record.get("levels", ()), *found.record.get("levels_back", ())):
                    level["rejected"] = True
        end = time.perf_counter()
        record = {
            "operator": self.name,
            "settings": self.settings(),
            "seconds": round(end - start, 3),
            "levels": [],
            **found.record,
            "seconds_checks": round(end - mapped, 3),
            **{f"similarity_{name}": values for name, values in similarity.items()},
            **measured,
            "deformation_lost": lost,
            "covered": covered["after"],
            "quality": quality(similarity["after"], covered["after"]),
        }
        return Registration(transform.to("cpu"), record)


def _meets(measured: Transform) -> bool:
    """Whether a map takes anything of one image into the field of view of the other."""
    return any(residual["share"] for residual in measured.residual.values())


def started(
    source: Volume,
    source_mask: Volume | None,
    task: Task,
    settings: AffineSettings | None,
    execution: Execution,
) -> Transform:
    """Where a deformation begins: the initial map that was given, or the affine alignment; without settings nowhere."""
    if task.initial is not None:
        return task.initial
    if settings is None:
        return Transform.identity()
    return prealign(
        source, task.target, settings=settings, source_mask=source_mask, target_mask=task.mask, execution=execution
    )

"""Registrations of scans that are segmented more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlasnet.errors import InputError, RegistrationError
from atlasnet.execution import Execution, WorkFolder
from atlasnet.registration import Operator, Registration, contextual
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.sources import Keyed
from atlasnet.transform import Transform
from atlasnet.volume import Volume


class RememberingOperator:
    """An operator that keeps its maps in a work folder and does not make one twice.

    Args:
        operator: what registers.
        work: where the maps are kept.
    """

    def __init__(self, operator: Operator, work: WorkFolder) -> None:
        self.operator, self.work, self.name = operator, work, operator.name
        self.contextual = contextual(operator)

    def settings(self) -> dict[str, Any]:
        """Those of the operator."""
        return self.operator.settings()

    def register(
        self,
        source: Volume,
        targets: Sequence[Volume],
        *,
        source_mask: Volume | None = None,
        target_masks: Sequence[Volume | None] | None = None,
        initial: Sequence[Transform | None] | None = None,
        target_labels: Sequence[Volume | None] | None = None,
        execution: Execution,
    ) -> list[Registration]:
        """See `Operator.register`; masks, initial maps and labels of the source are not taken.

        Raises:
            InputError: masks or initial maps were given.
        """
        if source_mask is not None or target_masks is not None or initial is not None:
            raise InputError("a registration with masks or an initial map is not remembered")
        registrar = PairRegistrar(self.operator, self.work, execution)
        known = target_labels or [None] * len(targets)
        atlases = [_keyed("an atlas", *pair) for pair in zip(targets, known, strict=True)]
        found = registrar.register(_keyed("the scan", source), atlases)
        results = [registration for registration in found if registration is not None]
        if len(results) < len(targets):
            raise RegistrationError("the operator found no acceptable map")
        return results


def _keyed(name: str, volume: Volume, labels: Volume | None = None) -> Keyed:
    if labels is None:
        return Keyed(name, _content(volume), lambda: volume)
    return Keyed(name, _content(volume), lambda: volume, _content(labels), lambda: labels)


def _content(volume: Volume) -> str:
    key = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes())
    key.update(repr((volume.array.dtype.str, volume.array.shape, volume.grid.affine.tolist())).encode())
    return key.hexdigest()

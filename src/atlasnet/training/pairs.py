"""Registrations of subjects onto atlases, kept in the work folder so that none is made twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlasnet.execution import Execution, WorkFolder, digest, read_json, write_json
from atlasnet.registration import Operator, Registration
from atlasnet.training.sources import Keyed
from atlasnet.transform import Transform

REVISION = 1  # counts up when the same settings would give another map


class PairRegistrar:
    """Registers sources onto atlases through an operator, reusing what the work folder holds.

    Args:
        operator: the transformer.
        work: where finished pairs are kept.
        execution: device, threads and seed. Threads and device change a map by rounding only and are no part of a
            pair's key, so that work can go on with others.
    """

    def __init__(self, operator: Operator, work: WorkFolder, execution: Execution) -> None:
        self.operator, self.work, self.execution = operator, work, execution

    def key(self, source: Keyed, target: Keyed) -> str:
        """What the map of ``source`` onto ``target`` depends on."""
        return digest(
            {
                "revision": REVISION,
                "operator": self.operator.name,
                "settings": self.operator.settings(),
                "source": source.key,
                "target": target.key,
                "seed": self.execution.seed,
            }
        )

    def register(self, source: Keyed, targets: Sequence[Keyed]) -> list[Registration]:
        """Map ``source`` onto each of ``targets``; a target that is the source itself is mapped by the identity."""
        missing = [t for t in targets if t.key != source.key and not self.entry(source, t).is_dir()]
        if missing:
            self.execution.pause()
            made = self.operator.register(source.read(), [t.read() for t in missing], execution=self.execution)
            for target, registration in zip(missing, made, strict=True):
                with self.work.making("registrations", self.key(source, target)) as folder:
                    registration.transform.save(folder / "transform.safetensors")
                    write_json(folder / "record.json", registration.record)
        return [self._load(source, target) for target in targets]

    def entry(self, source: Keyed, target: Keyed) -> Path:
        """The folder of a finished pair."""
        return self.work.entry("registrations", self.key(source, target))

    def _load(self, source: Keyed, target: Keyed) -> Registration:
        if target.key == source.key:
            return Registration(Transform.identity(), {"operator": "identity", "quality": 1.0})
        folder = self.entry(source, target)
        return Registration(Transform.load(folder / "transform.safetensors"), read_json(folder / "record.json"))

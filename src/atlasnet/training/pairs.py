"""Registrations of subjects onto atlases, kept in the work folder so that none is made twice."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from atlasnet.cohort import Plan
from atlasnet.errors import InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution, Reporter, WorkFolder, digest, read_json, write_json
from atlasnet.registration import (
    WITHOUT_SPACING,
    Operator,
    Registration,
    Target,
    contextual,
    make_operator,
    register_each,
)
from atlasnet.training.sources import Keyed
from atlasnet.transform import Transform

REVISION = 6  # counts up when the same settings would give another map


def _own() -> Registration:
    """Of an atlas onto itself."""
    return Registration(Transform.identity(), {"operator": "identity", "quality": 1.0})


def planned_operator(name: str, settings: Mapping[str, Any], plan: Plan) -> Operator:
    """The operator of that name, with what the plan says where ``settings`` are silent; see `make_operator`."""
    chosen = dict(settings)
    if name == "mrf":
        chosen.setdefault("mi_range", plan.mi_range if any(plan.mi_range) else None)
    if name not in WITHOUT_SPACING:
        chosen.setdefault("spacing", min(plan.registration_spacing))
    return make_operator(name, **chosen)


def check_tissues(operator: Operator, values: Sequence[int]) -> None:
    """Whether metric weights by tissue are of the labels that are trained.

    Args:
        operator: registers; if its weights do not depend on the tissue, nothing is asked.
        values: the label value of each class index, background first.

    Raises:
        InputError: they are of none of them.
    """
    if not contextual(operator):
        return
    known = {label for one in operator.settings()["classes"] for label in one["labels"]}
    if not known & set(values[1:]):
        raise InputError(
            "the metric weights were learnt for other labels than the cohort's",
            expected="some of " + ", ".join(map(str, values[1:])),
            found=", ".join(map(str, sorted(known))),
            remedy="learn them from this cohort: atlasnet learn-metrics",
        )


def warn_of_unlabelled(operator: Operator, targets: Sequence[Keyed], reporter: Reporter) -> None:
    """Say which atlases have no reference, where the metric weights depend on the tissue."""
    unlabelled = [target.name for target in targets if contextual(operator) and not target.labels_key]
    if unlabelled:
        reporter.warn(
            "these atlases have no reference, or not with all labels, and the class-free average of the metric weights "
            "holds for them: " + ", ".join(unlabelled)
        )


class PairRegistrar:
    """Registers sources onto atlases through an operator, reusing what the work folder holds.

    Args:
        operator: the transformer.
        work: where finished pairs are kept.
        execution: device, threads and seed. Threads do not change a map, and a device does so by rounding only: they
            are no part of a pair's key, so that work can go on with others.
    """

    def __init__(self, operator: Operator, work: WorkFolder, execution: Execution) -> None:
        self.operator, self.work, self.execution = operator, work, execution

    def key(self, source: Keyed, target: Keyed) -> str:
        """What the map of ``source`` onto ``target`` depends on."""
        depends_on = {
            "revision": REVISION,
            "operator": self.operator.name,
            "settings": self.operator.settings(),
            "source": source.key,
            "target": target.key,
            "seed": self.execution.seed if getattr(self.operator, "seeded", True) else None,
        }
        if (package := getattr(self.operator, "package_version", None)) is not None:
            depends_on["package"] = package
        if contextual(self.operator):
            depends_on["target_labels"] = target.labels_key
        return digest(depends_on)

    def place(self, source: Keyed, target: Keyed) -> Path | None:
        """Where the map and its record lie if the pair is registered already, unverified."""
        return self.work.lying("registrations", self.key(source, target))

    def register(self, source: Keyed, targets: Sequence[Keyed]) -> Generator[Registration | None]:
        """Map ``source`` onto each of ``targets``; a target that is the source itself is mapped by the identity.

        Yields:
            One registration per target, None for one that failed, of which the reporter is warned: of a clinical scan
            each takes tens of megabytes.
        """
        warn, missing = self.execution.reporter.warn, dict[str, Keyed]()
        for target in targets:
            key = self.key(source, target)
            if target.key != source.key and not self.work.finished("registrations", key, warn):
                missing.setdefault(key, target)
        mapped = dict[str, bool]()
        with closing(self._made(source, [*missing.values()])) as made:
            for target in targets:
                if target.key == source.key:
                    yield _own()
                    continue
                key = self.key(source, target)
                if key in missing and key not in mapped:
                    mapped[key] = next(made)
                yield self._load(source, target) if mapped.get(key, True) else None

    def _made(self, source: Keyed, targets: Sequence[Keyed]) -> Generator[bool]:
        """Register onto each target and keep what was found; whether there is an acceptable map."""
        if not targets:
            return
        wanted = []
        for target in targets:
            labels = target.read_labels() if contextual(self.operator) and target.read_labels is not None else None
            wanted.append(Target(f"{source.name} onto atlas {target.name}", target.read(), labels))
        with closing(register_each(self.operator, source.read(), wanted, self.execution)) as made:
            for target in targets:
                try:
                    found = next(made)
                except VolumeError as error:
                    problem = f"{source.name} cannot be mapped onto atlas {target.name}: {error.problem}"
                    raise error.told(problem=problem) from error
                if isinstance(found, RegistrationError):
                    self.execution.reporter.warn(f"{source.name} cannot be mapped onto atlas {target.name}: {found}")
                else:
                    with self.work.making("registrations", self.key(source, target)) as folder:
                        found.transform.save(folder / "transform.safetensors")
                        write_json(folder / "record.json", found.record)
                yield not isinstance(found, RegistrationError)

    def kept(self, source: Keyed, target: Keyed) -> Registration | None:
        """The map of a pair that `register` has made, None where it failed or was never asked for."""
        if target.key == source.key:
            return _own()
        made = self.work.finished("registrations", self.key(source, target), self.execution.reporter.warn)
        return self._load(source, target) if made else None

    def _load(self, source: Keyed, target: Keyed) -> Registration:
        folder = self.work.entry("registrations", self.key(source, target))
        return Registration(Transform.load(folder / "transform.safetensors"), read_json(folder / "record.json"))

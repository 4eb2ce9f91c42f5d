"""The registrations that a training left in its work folder, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from atlasnet.atlas import resolve_atlases
from atlasnet.cohort import Cohort, Subject
from atlasnet.execution import Execution, WorkFolder, digest, read_json, reading_back
from atlasnet.registration import make_operator
from atlasnet.training.model import Atlas, Model
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.sources import Keyed, keyed_subject
from atlasnet.training.update import ATLAS_KEYS
from atlasnet.transform import Transform
from atlasnet.volume import read_volume, volume_digest


@dataclass(frozen=True)
class RegisteredPair:
    """A training subject on an atlas.

    Args:
        subject: that was mapped.
        atlas: onto which.
        quality: of the registration.
        record: see `atlasnet.registration.Registration`.
        folder: where the map lies.
    """

    subject: Subject
    atlas: Atlas
    quality: float
    record: Mapping[str, Any]
    folder: Path

    def transform(self) -> Transform:
        """Takes points of the atlas into the subject.

        Raises:
            TransformError: the file is damaged.
        """
        return Transform.load(self.folder / "transform.safetensors")


def registered_pairs(
    model: Model, cohort: Cohort, work: str | Path, *, named: Sequence[str] = ()
) -> list[RegisteredPair]:
    """The pairs of a model's training that its work folder still holds, the one of the lowest quality first.

    A subject that is the atlas itself was not registered and is not among them.

    Args:
        model: that was trained.
        cohort: on which.
        work: the work folder.
        named: the atlases as they were named, where they were; of those that are no subjects, to find their files.

    Raises:
        InputError: the record of a pair is damaged.
    """
    data, execution = model.provenance["data"], Execution(seed=int(model.provenance["seed"]))
    operator = make_operator(model.operator, **model.operator_settings)
    registrar = PairRegistrar(operator, WorkFolder(work), execution)
    subjects = {s.name: keyed_subject(s, data[s.name]) for s in cohort if s.name in data}
    outside = {s.name: s for s in (resolve_atlases(cohort, named) if named else ()) if s.subject is None}
    keys = model.provenance.get(ATLAS_KEYS, {})  # models of before have none
    found = []
    for atlas in model.atlases:
        if atlas.name in keys:
            target = Keyed(atlas.name, keys[atlas.name], partial(read_volume, model.atlas_path(atlas)))
        elif atlas.subject in subjects:
            target = subjects[atlas.subject]
        elif atlas.name in outside:
            source = outside[atlas.name]
            target = Keyed(atlas.name, digest([volume_digest(path) for path in source.paths]), source.read)
        else:
            continue
        target = replace(target, labels_key=atlas.labels_key)
        for name, keyed in subjects.items():
            if keyed.key == target.key:
                continue
            place = registrar.place(keyed, target)
            if place is not None:
                with reading_back(place / "record.json"):
                    record = read_json(place / "record.json")
                    found.append(RegisteredPair(cohort[name], atlas, float(record["quality"]), record, place))
    return sorted(found, key=lambda pair: (pair.quality, pair.subject.name, pair.atlas.name))

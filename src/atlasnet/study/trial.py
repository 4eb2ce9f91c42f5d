"""What segmenting and scoring a test subject takes: a training subject is segmented by a network without training."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort import Plan
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import SilentReporter, Stages
from atlasnet.network import build_network
from atlasnet.network.weights import write_tensors
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.registration import Registration
from atlasnet.study.certainty import describe
from atlasnet.study.propagation import propagate_labels
from atlasnet.study.records import Run
from atlasnet.study.request import StudyRequest
from atlasnet.training.fit import Fitting
from atlasnet.training.forecast import Pair
from atlasnet.training.model import Atlas, Model, weights_path
from atlasnet.training.sources import Keyed
from atlasnet.volume import Volume, write_labels, write_volume


@dataclass(frozen=True)
class ScanCost:
    """Seconds that parts of segmenting and scoring one scan take, its registrations aside.

    Args:
        ask: to map it into the space of a network and to classify it there.
        fuse: to map back and fuse what one network said, which is less where the network has learnt something.
        score: to score a segmentation and to write it.
        carry: to carry over and fuse the labels of one atlas, by whether they are weighted locally.
    """

    ask: float
    fuse: float
    score: float
    carry: Mapping[bool, float]

    def of(self, job: Run, atlases: int) -> float:
        """Of one scan and all that a job makes of it.

        Args:
            job: a method, for all numbers of atlases.
            atlases: of the study.
        """
        runs = job.with_atlases(atlases)
        if job.method.space == "labels":
            return atlases * self.carry[job.method.local] + len(runs) * self.score
        networks = [run.networks(atlases) for run in runs]
        return max(networks) * self.ask + sum(networks) * self.fuse + len(runs) * self.score

    def to_json(self) -> dict[str, float]:
        """JSON values."""
        carry = {"carry_local" if local else "carry": seconds for local, seconds in self.carry.items()}
        return {"ask": self.ask, "fuse": self.fuse, "score": self.score, **carry}


def measure_scan(run: StudyRequest, fitting: Fitting, plan: Plan, pair: Pair, local: Collection[bool]) -> ScanCost:
    """Segment the subject of a pair as it was registered, and score it.

    Args:
        run: the study.
        fitting: the training of which the network would be.
        plan: of the networks.
        pair: a training subject in the space of another.
        local: ways in which labels are to be carried over.
    """
    execution = replace(run.execution, reporter=SilentReporter())
    wanted = PredictOptions(fusion=run.options.fusion, agreement=True)
    image, given, stages = pair.source.read(), _Given(pair.registration), Stages()
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        model = _untrained(Path(folder), run, fitting, plan, pair)
        predictor = Predictor(model, execution=execution, allow_module=run.options.allow_module, operator=given)
        with stages("ask"):
            answers = predictor.ask(image, minimum_quality=0.0, fit=wanted.by_voxel)
        with stages("fuse"):
            prediction = predictor.fuse(answers, wanted)
        atlas = (pair.target.read(), _reference(pair.target))
        for way in local:
            with stages(f"carry {way}"):
                propagate_labels(image, [atlas], run.values, given, local=way, execution=execution)
        # A segmentation that is wrong by a voxel everywhere, not one of a network that knows nothing.
        reference = _reference(pair.source)
        found = reference.replace(np.roll(reference.array, 1, axis=-1))
        with stages("score"):
            evaluate_subject(found, reference, run.cohort.structures, ignore_label=run.cohort.ignore_label)
            describe(replace(prediction, labels=found), reference, run.cohort.ignore_label)
            write_labels(Path(folder) / "found.nii.gz", found)
    seconds = stages.seconds
    return ScanCost(seconds["ask"], seconds["fuse"], seconds["score"], {way: seconds[f"carry {way}"] for way in local})


def _untrained(folder: Path, run: StudyRequest, fitting: Fitting, plan: Plan, pair: Pair) -> Model:
    """A model of the pair's atlas alone, with fresh weights."""
    atlas = Atlas(
        "atlas", None, region=pair.transformer.region_alone(pair.source, pair.target, pair.registration.transform)
    )
    model = Model(
        folder=folder,
        channels=run.cohort.channels,
        labels=run.cohort.labels,
        ignore_label=run.cohort.ignore_label,
        plan=plan,
        operator=pair.transformer.registrar.operator.name,
        operator_settings=pair.transformer.registrar.operator.settings(),
        network=fitting.planned_spec(plan, fitting.spec(plan), pair.case.labels.shape),
        atlases=(atlas,),
        provenance={},
        regions=run.cohort.regions,
    )
    write_volume(model.atlas_path(atlas), pair.target.read())
    network = build_network(
        model.network, len(model.channels), len(model.values), allow_module=run.options.allow_module
    )
    weights_path(folder, atlas).parent.mkdir()
    write_tensors(weights_path(folder, atlas), network.state_dict(), {})
    model.save()
    return Model.load(folder)


def _reference(subject: Keyed) -> Volume:
    """Of a subject that has one, as those of a study do."""
    assert subject.read_labels is not None
    return subject.read_labels()


class _Given:
    """An operator with a registration that was made, which counts as a good one."""

    def __init__(self, registration: Registration) -> None:
        self._registration = replace(registration, record={**registration.record, "quality": 1.0, "covered": 1.0})
        self.name = "given"

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def register(self, source: Volume, targets: Sequence[Volume], **_: Any) -> list[Registration]:
        """The same for every target; see `Operator`."""
        return [self._registration] * len(targets)

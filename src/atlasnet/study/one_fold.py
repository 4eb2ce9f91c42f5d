"""One fold of a cross-validation: its model, and what that segments, made by one process at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasnet.cohort import Cohort, Plan
from atlasnet.errors import AtlasNetError, Cancelled, InputError
from atlasnet.execution import (
    Execution,
    NamingReporter,
    file_digest,
    hold,
    read_json,
    reading_back,
    remove_begun,
    write_json,
)
from atlasnet.prediction import PredictOptions, Predictor, provenance, write_prediction
from atlasnet.prediction.output import RECORD, output_path
from atlasnet.study.folds import FOLDS, Folds, fold_name, plan_folds, require_same_folds
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.volume import volume_digest
from atlasnet.wording import counted

WORK = "work"  # in the folder of a model or a fold


@dataclass(frozen=True)
class TrainedFold:
    """What `train_fold` gave.

    Args:
        number: of the fold, from 1.
        folds: how many there are.
        model: that was trained without those it leaves out.
        left_out: their names.
        missing: those of them that could not be segmented.
    """

    number: int
    folds: int
    model: Model
    left_out: tuple[str, ...]
    missing: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "fold": self.number,
            "folds": self.folds,
            "model": str(self.model.folder),
            "atlases": [atlas.name for atlas in self.model.atlases],
            "left_out": list(self.left_out),
            "missing": list(self.missing),
        }

    def text(self) -> str:
        """For a person."""
        atlases, subjects = counted(len(self.model.atlases), "atlas"), counted(len(self.left_out), "subject")
        lines = [
            f"fold {self.number} of {self.folds}: model with {atlases}: {self.model.folder}",
            f"{subjects} left out: {len(self.left_out) - len(self.missing)} segmented",
        ]
        if self.missing:
            lines.append(f"without a prediction: {', '.join(self.missing)}")
        return "\n".join(
            [*lines, "the scores come when all folds are gathered, by the same command without --only-fold"]
        )


def train_fold(
    cohort: Cohort,
    folder: str | Path,
    number: int,
    options: FitOptions | None = None,
    *,
    folds: Folds | None = None,
    plan: Plan | None = None,
    work: str | Path | None = None,
    earlier: str | Path | None = None,
    execution: Execution | None = None,
) -> TrainedFold:
    """Do one fold of `cross_validate`: train its model, and segment those whom it leaves out.

    Folds may be trained by several processes at the same time, such as the jobs of a cluster, each in a work folder of
    its own. `cross_validate` with the same arguments then takes what they have made, and trains what is missing.

    Args:
        cohort: all subjects, with references.
        folder: of the cross-validation.
        number: of the fold, from 1.
        options: as for `cross_validate`, and so for ``folds`` and ``plan``.
        folds: see `plan_folds`.
        plan: of all folds, where one was chosen by hand.
        work: folder of intermediate results, ``folder/fold_<number>/work`` by default.
        earlier: another work folder, whose registrations are taken over; it is only read.
        execution: device, threads, seed, progress.

    Raises:
        InputError: as for `cross_validate`; there is no such fold, or another process works at it.
        CohortError: the cohort cannot be trained on.
        RegistrationError: no subject could be mapped onto an atlas.
        Cancelled: on request.
    """
    folder, options, execution = Path(folder), options or FitOptions(), Execution.of(execution)
    groups = plan_folds(cohort, folder, options, folds, execution)
    fold = fold_of(groups, number)
    place = folder / fold_name(number)
    model = FoldWork(cohort, folder, options, groups, plan, execution).done(number, Path(work or place / WORK), earlier)
    missing = tuple(name for name in fold if not prediction_path(folder, name).exists())
    return TrainedFold(number, len(groups), model, fold, missing)


def fold_of(folds: Sequence[tuple[str, ...]], number: int) -> tuple[str, ...]:
    """Whom the fold leaves out, of folds that are counted from 1.

    Raises:
        InputError: there is no such fold.
    """
    if not 1 <= number <= len(folds):
        raise InputError("there is no such fold", expected=f"1 to {len(folds)}", found=str(number))
    return folds[number - 1]


def prediction_path(folder: Path, name: str) -> Path:
    """Where the labels of a subject lie that was left out, in the folder of a cross-validation."""
    return folder / "predictions" / f"{name}.nii.gz"


def samples_path(folder: Path, name: str) -> Path:
    """Where the voxels lie that weights of the fusion are learnt from."""
    return folder / "fusion_samples" / f"{name}.safetensors"


class FoldWork:
    """What makes the folds of one cross-validation."""

    def __init__(
        self,
        cohort: Cohort,
        folder: Path,
        options: FitOptions,
        folds: tuple[tuple[str, ...], ...],
        plan: Plan | None,
        execution: Execution,
    ) -> None:
        self.cohort, self.folder, self.options, self.folds = cohort, folder, options, folds
        self.plan, self.execution = plan, execution
        require_same_folds(folder, folds)  # another job may have begun others while the scans were compared
        write_json(folder / FOLDS, [list(fold) for fold in folds])

    def done(self, number: int, work: Path, earlier: str | Path | None = None) -> Model:
        """The model of the fold, those whom it leaves out segmented."""
        fold, place = self.folds[number - 1], self.folder / fold_name(number)
        self.execution.reporter.note(f"fold {number} of {len(self.folds)}: without {', '.join(fold)}")
        with hold(
            self.folder / f".{place.name}.lock",
            place=place,
            busy="another process works at this fold",
            remedy="give another folder with -o",
        ):
            if self.plan is not None:
                self.plan.write(place / "plan.json")
            rest = [subject.name for subject in self.cohort if subject.name not in fold]
            model = fit(
                self.cohort.select(rest), place, self.options, work=work, earlier=earlier, execution=self.execution
            )
            self._predict(model, fold)
        return model

    def _predict(self, model: Model, fold: Sequence[str]) -> None:
        """Segment the fold's subjects, but for those that this very model has segmented before."""
        (self.folder / "predictions").mkdir(parents=True, exist_ok=True)
        made_of = {name: self._made_of(name, model) for name in fold}
        missing = [name for name in fold if not self._is_of(name, made_of[name])]
        if not missing:
            return
        predictor = Predictor(model, execution=self.execution, allow_module=self.options.allow_module)
        for name in self.execution.reporter.track(missing, "segmenting", len(missing)):
            path, subject = prediction_path(self.folder, name), self.cohort[name]
            naming = predictor.reporting_to(NamingReporter(self.execution.reporter, name))
            path.unlink(missing_ok=True)
            remove_begun([path, output_path(path, RECORD), samples_path(self.folder, name)])
            try:
                image = subject.read_image()
                answers = naming.ask(image, fit=True, judged=True, mask=subject.read_mask(image.grid))
                prediction = naming.fuse(answers)
                samples = naming.fusion_samples(answers, subject.read_labels(image.grid), subject.hidden)
            except Cancelled:
                raise
            except AtlasNetError as error:
                self.execution.reporter.warn(f"{name}: {error}")
                continue
            samples.write(samples_path(self.folder, name))
            kept = {"fusion_samples_sha256": file_digest(samples_path(self.folder, name))}
            write_prediction(prediction, path, provenance=made_of[name] | kept)

    def _made_of(self, name: str, model: Model) -> dict[str, Any]:
        subject = self.cohort[name]
        reference = None if subject.labels is None else volume_digest(subject.labels)
        allowed = self.options.allow_module
        made_of = provenance(subject, model, PredictOptions(), self.execution, allow_module=allowed)
        hidden = {"not_annotated": [list(pair) for pair in subject.hidden]} if subject.hidden else {}
        return made_of | {"reference_sha256": reference} | hidden

    def _is_of(self, name: str, made_of: Mapping[str, Any]) -> bool:
        path, samples = prediction_path(self.folder, name), samples_path(self.folder, name)
        record = output_path(path, RECORD)
        # The record is written last: where it is, labels and samples were whole.
        if not (path.is_file() and samples.is_file() and record.exists()):
            return False
        with reading_back(record):
            content = read_json(record)
            before = content["provenance"]
            return (
                all(before.get(key) == made_of.get(key) for key in ("request", "reference_sha256", "not_annotated"))
                and before.get("fusion_samples_sha256") == file_digest(samples)
                and bool(content["outputs"]["labels"] == file_digest(path))
            )

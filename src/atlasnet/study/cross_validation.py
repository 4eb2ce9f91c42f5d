"""Cross-validation: every subject is segmented by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort import Cohort, Plan
from atlasnet.errors import RegistrationError
from atlasnet.evaluation import Table, evaluate_cohort
from atlasnet.evaluation.table import rows_by_label
from atlasnet.execution import Execution, hold_folder, read_json, reading_back, write_json
from atlasnet.prediction import write_ensemble
from atlasnet.prediction.output import RECORD, output_path
from atlasnet.prediction.verdict import UNUSUAL
from atlasnet.study.folds import Folds, fold_name, plan_folds
from atlasnet.study.one_fold import WORK, FoldWork, TrainedFold, prediction_path, samples_path, train_fold
from atlasnet.study.statistics import FEWEST_FOR_TAIL, few_subjects, interval, worst_tenth
from atlasnet.training.estimate import DiceEstimate, fit_estimate
from atlasnet.training.fit import Fitting
from atlasnet.training.fusion_weights import FusionSamples, FusionWeights, learn_weights
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.wording import MANY_LABELS, counted

CROSS_VALIDATION = "cross_validation"  # in the folder of a model


@dataclass(frozen=True)
class CrossValidation:
    """What cross-validation gave.

    Args:
        folds: names of the subjects that were left out together.
        table: scores of every subject that has a prediction.
        intervals: per label, the 95 % interval of the mean Dice (bias-corrected bootstrap over subjects); None with
            fewer than three subjects or where all scores are equal.
        estimate: what tells the Dice of a result, learnt from these subjects; None where they are too few.
        fusion_weights: how much an atlas counts at a voxel in the fusion ``learnt``; likewise.
        unusual: the subjects that the model that had not seen them found unlike its training subjects.
        never_left_out: those on whom every fold was trained: they are in no fold and have no score.
    """

    folds: tuple[tuple[str, ...], ...]
    table: Table
    intervals: dict[str, tuple[float, float] | None]
    estimate: DiceEstimate | None = None
    fusion_weights: FusionWeights | None = None
    unusual: tuple[str, ...] = ()
    never_left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"CrossValidation({counted(len(self.folds), 'fold')}, {self.table!r})"

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "folds": [list(fold) for fold in self.folds],
            "never_left_out": list(self.never_left_out),
            "dice_interval_95": {name: None if v is None else list(v) for name, v in self.intervals.items()},
            "dice_estimate": None if self.estimate is None else self.estimate.to_json(),
            "fusion_weights": None if self.fusion_weights is None else self.fusion_weights.to_json(),
            "unusual": list(self.unusual),
            "over_labels": self.over_labels(),
            "cautions": self.cautions(),
            **self.table.as_json(),
        }

    def over_labels(self) -> dict[str, Any] | None:
        """Of the subjects' mean Dice over the labels that were annotated in them; None without a result.

        Returns:
            ``dice``, its mean over the ``subjects``, with its ``interval_95``; and ``worst_tenth``, that of the tenth
            with the lowest, with ``worst_tenth_interval_95``, which takes `FEWEST_FOR_TAIL` subjects.
        """
        of_cases: dict[str, list[float]] = {}
        for row in self.table.rows:
            of_cases.setdefault(row.case, []).append(row.dice)
        if not of_cases:
            return None
        dice = np.array([np.mean(values) for values in of_cases.values()])
        return {
            "subjects": len(dice),
            "dice": float(dice.mean()),
            "interval_95": interval(dice),
            "worst_tenth": float(worst_tenth(dice)),
            "worst_tenth_interval_95": interval(dice, worst_tenth) if len(dice) >= FEWEST_FOR_TAIL else None,
        }

    def cautions(self) -> list[str]:
        """What makes the scores less sure than they look."""
        return few_subjects(len(self.table.cases), compared=False)

    def text(self) -> str:
        """For a person: one line per label, one for all, how sure that is, and who failed."""
        subjects, folds = counted(len(self.table.cases), "subject"), counted(len(self.folds), "fold")
        lines = [f"{subjects}, each by a model that has not seen it, {folds}"]
        if self.never_left_out:
            rest = counted(len(self.never_left_out), "subject")
            lines.append(f"{rest} more, left out by no fold: trained on in every one, and without a score")
        rows = rows_by_label(self.table.rows, self.table.labels)
        by_label = {label: [row.dice for row in found] for label, found in rows.items()}
        told = [*by_label]
        if len(told) > MANY_LABELS:
            told = sorted(told, key=lambda name: np.mean(by_label[name] or [1.0]))[:MANY_LABELS]
            lines.append(f"the {MANY_LABELS} of {len(by_label)} labels with the lowest mean Dice; the table has all:")
        for name in told:
            dice = by_label[name]
            if not dice:
                lines.append(f"{name}: no Dice is defined")
                continue
            lines.append(
                f"{name}: Dice {np.mean(dice):.3f} on average{_between(self.intervals[name])}; lowest {min(dice):.3f}"
            )
        lines += self.table.unannotated_lines()
        if (every := self.over_labels()) is not None:
            tail = f"{every['worst_tenth']:.3f}{_between(every['worst_tenth_interval_95'])}"
            lines.append(
                f"mean over labels: Dice {every['dice']:.3f} on average{_between(every['interval_95'])}; "
                f"worst tenth of the subjects {tail}"
            )
        lines += self.cautions()
        if self.estimate is not None:
            lines += self._estimate_lines(self.estimate)
        if self.fusion_weights is not None:
            found = ", ".join(f"{name} {value:.2f}" for name, value in self.fusion_weights.to_json().items())
            lines.append(f"weights learnt for predict --fusion learnt: {found}")
        if self.unusual:
            lines.append(f"found unlike the training subjects: {', '.join(self.unusual)}")
        if self.table.missing:
            lines.append(f"without a prediction, and in no mean: {', '.join(self.table.missing)}")
        return "\n".join(lines)

    def _estimate_lines(self, estimate: DiceEstimate) -> list[str]:
        """How well the Dice of a new scan can be told; there is no mean where a label has no estimate."""
        if set(estimate.lines) == set(self.table.labels):
            return [f"the mean Dice of a new scan can be estimated with an error of {estimate.mean_error:.3f}"]
        if len(self.table.labels) > MANY_LABELS:
            errors = [line.error for line in estimate.lines.values()]
            return [
                f"the Dice of a new scan can be estimated for {len(errors)} of {len(self.table.labels)} labels, with "
                f"errors of {min(errors):.3f} to {max(errors):.3f}"
            ]
        return [
            f"{label}: the Dice of a new scan can be estimated with an error of {line.error:.3f}"
            for label, line in estimate.lines.items()
        ]


def _between(ends: tuple[float, float] | None) -> str:
    """An interval in a sentence; nothing where there is none."""
    return "" if ends is None else f", 95 % interval {ends[0]:.3f} to {ends[1]:.3f}"


def cross_validate(
    cohort: Cohort,
    folder: str | Path,
    options: FitOptions | None = None,
    *,
    folds: Folds | None = None,
    plan: Plan | None = None,
    work: str | Path | None = None,
    execution: Execution | None = None,
) -> CrossValidation:
    """Train one model per fold and segment the subjects that it has not seen.

    Everything is decided anew in every fold, plan and atlases too, from its own training subjects alone, but for a plan
    that is given. Called again with the same arguments after a stop, it goes on.

    Args:
        cohort: subjects with references.
        folder: gets ``fold_1`` and so on (the models), ``predictions``, ``fusion_samples``, ``folds.json``,
            ``table.json`` and ``table.csv``.
        options: of `fit`. Atlases that are named must be image files, not subjects: those are left out in their turn.
        folds: see `plan_folds`.
        plan: of all folds, where one was chosen by hand.
        work: folder of intermediate results that all folds share, ``folder/work`` by default.
        execution: device, threads, seed, progress.

    Raises:
        InputError: the folds or the atlases cannot be used, ``folder`` holds a cross-validation with other folds, or
            another process works there or at a fold.
        CohortError: the cohort cannot be trained on.
        RegistrationError: no subject could be mapped onto an atlas.
        Cancelled: on request.
    """
    folder, options, execution = Path(folder), options or FitOptions(), Execution.of(execution)
    with hold_folder(folder):
        groups = plan_folds(cohort, folder, options, folds, execution)
        one = FoldWork(cohort, folder, options, groups, plan, execution)
        for number, _ in enumerate(groups, start=1):
            place = folder / fold_name(number)
            # What a job that trained this fold alone has begun is gone on with.
            own = place / WORK if (place / WORK).is_dir() else None
            shared = Path(work or folder / WORK)
            one.done(number, own or shared, None if own is None else shared)
        found = _evaluated(cohort, folder, groups, execution)
        found.table.write(folder / "table.json")
        write_json(folder / "cross_validation.json", found.as_json())
        return found


def _evaluated(
    cohort: Cohort, folder: Path, folds: tuple[tuple[str, ...], ...], execution: Execution
) -> CrossValidation:
    """The scores of what the models of all folds have segmented, and what is learnt from them."""
    left_out = {name for fold in folds for name in fold}
    validated = cohort.select([subject.name for subject in cohort if subject.name in left_out])
    never_left_out = tuple(subject.name for subject in cohort if subject.name not in left_out)
    places = {subject.name: prediction_path(folder, subject.name) for subject in validated}
    if not any(place.exists() for place in places.values()):
        raise RegistrationError(
            "no subject could be mapped onto an atlas of the model that has not seen it; the warnings above say why"
        )
    table = evaluate_cohort(validated, places, execution=execution)
    labels, rows = table.labels, table.rows
    intervals = {name: interval([row.dice for row in rows if row.label == name]) for name in labels}
    records = {}
    for name in table.cases:
        place = output_path(places[name], RECORD)
        with reading_back(place):
            records[name] = read_json(place)
    weights = learn_weights([FusionSamples.read(samples_path(folder, name)) for name in table.cases])
    dice = {label: {row.case: row.dice for row in rows if row.label == label} for label in labels}
    unusual = tuple(name for name, r in records.items() if (r.get("verdict") or {}).get("result") == UNUSUAL)
    return CrossValidation(folds, table, intervals, fit_estimate(records, dice), weights, unusual, never_left_out)


def changed_plan(
    folder: Path,
    cohort: Cohort,
    options: FitOptions,
    work: Path,
    execution: Execution,
    hashes: Mapping[str, Any] | None = None,
) -> Plan | None:
    """The plan beside a model where it is not the one that follows from its cohort: somebody changed or brought it.

    A cross-validation takes it for its folds then: what is measured are networks like the model's. Else each fold
    derives its own from the subjects that it trains on.

    Args:
        folder: of the model, which need not be trained yet.
        cohort: all its subjects.
        options: of its training.
        work: its work folder, which may hold the plan that follows; it is only looked at.
        execution: device, threads, seed, progress.
        hashes: of the cohort's files, where they are known.
    """
    run = Fitting(cohort, folder, options, work=work, execution=execution, frozen=True)
    if not run.plan_path.exists():
        return None
    plan = Plan.read(run.plan_path)
    return None if plan == run.derived_plan(run.hashes() if hashes is None else hashes) else plan


def validate_model(
    model: Model,
    cohort: Cohort,
    options: FitOptions,
    folds: Folds,
    *,
    ensemble: bool,
    work: str | Path,
    execution: Execution,
) -> tuple[Model, CrossValidation]:
    """Cross-validate a model that was trained, into `CROSS_VALIDATION` in its folder; see `cross_validate`.

    Args:
        model: that was trained.
        cohort: on which.
        options: with which.
        folds: from `plan_folds`.
        ensemble: whether the models of the folds are kept to segment together.
        work: the model's work folder.
        execution: device, threads, seed, progress.

    Returns:
        The model with what this has learnt, and the result.
    """
    folder, data = model.folder / CROSS_VALIDATION, model.provenance["data"]
    plan = changed_plan(model.folder, cohort, options, Path(work), execution, data)
    found = cross_validate(cohort, folder, options, folds=folds, plan=plan, work=work, execution=execution)
    learnt = keep_learnt(model, found)
    if ensemble:
        keep_ensemble(folder, found)
    return learnt, found


def validate_fold(
    folder: str | Path,
    cohort: Cohort,
    options: FitOptions,
    folds: Folds,
    number: int,
    *,
    work: str | Path | None = None,
    execution: Execution,
) -> TrainedFold:
    """One fold of the cross-validation of a model, whether that is trained already or not; see `train_fold`.

    Args:
        folder: of the model; what its training has registered is taken over from ``work`` in it.
        cohort: all subjects.
        options: of the training.
        folds: from `plan_folds`.
        number: of the fold, from 1.
        work: the work folder of this fold.
        execution: device, threads, seed, progress.
    """
    folder = Path(folder)
    plan = changed_plan(folder, cohort, options, folder / WORK, execution)
    place, earlier = folder / CROSS_VALIDATION, folder / WORK
    return train_fold(
        cohort, place, number, options, folds=folds, plan=plan, work=work, earlier=earlier, execution=execution
    )


def keep_ensemble(folder: str | Path, found: CrossValidation) -> Path:
    """Note that the models of the folds in ``folder`` segment together; see `atlasnet.prediction.Ensemble.load`."""
    return write_ensemble(Path(folder), [fold_name(number) for number, _ in enumerate(found.folds, start=1)])


def keep_learnt(model: Model, found: CrossValidation) -> Model:
    """The model with what its cross-validation has learnt: the Dice of a new scan, whom to believe; on disk too."""
    learnt = replace(model, dice_estimate=found.estimate, fusion_weights=found.fusion_weights)
    if learnt == model:
        return model
    learnt.save()
    return Model.load(model.folder)

"""What a study or a cross-validation would do, what of it is done already, and what the rest takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from atlasnet.cohort import Cohort, Plan, Subject
from atlasnet.execution import Execution, read_json, reading_back
from atlasnet.network import NetworkSpec
from atlasnet.study.methods import Method
from atlasnet.study.records import Run, StudyOptions
from atlasnet.study.request import ATLASES, StudyRequest
from atlasnet.study.shares import share_size
from atlasnet.study.trial import ScanCost, measure_scan
from atlasnet.training.atlases import atlas_count, chosen_names
from atlasnet.training.fit import Fitting
from atlasnet.training.forecast import Cost, cost_of, register_largest
from atlasnet.training.options import FitOptions
from atlasnet.training.sources import keyed_subject


@dataclass(frozen=True)
class StudyForecast:
    """What a call of `atlasnet.study.run_study` would do.

    Args:
        plan: of all methods.
        network: of all methods; what depends on the size of the slices is not decided yet.
        subjects: that are trained on.
        tests: that are tested on.
        atlases: their number.
        chosen: their names, None while they are not chosen.
        jobs: what is trained and tested, and how many test subjects each has still to segment.
        models: how many are trained in all, and how many of them are there.
        pairs: registrations in all, those of the test subjects included, and how many of them are kept.
        epochs: of all networks that are to be trained, at the most.
        steps: of the optimiser in these epochs, by where networks work (see `Method.space`); with part of the subjects
            an epoch has fewer.
        costs: of the parts of a training, where networks work so; empty where nothing is left to do.
        scans: of the parts of segmenting and scoring a test subject, likewise.
        models_mib: what the models that are to be trained take on disk, with their mapped cases.
    """

    plan: Plan
    network: NetworkSpec
    subjects: int
    tests: int
    atlases: int
    chosen: tuple[str, ...] | None
    jobs: tuple[tuple[Run, int], ...]
    models: tuple[int, int]
    pairs: tuple[int, int]
    epochs: int
    steps: Mapping[str, int]
    costs: Mapping[str, Cost]
    scans: Mapping[str, ScanCost]
    models_mib: float

    @property
    def finished(self) -> bool:
        """Whether every test subject is segmented by everything that is asked for."""
        return not any(missing for _, missing in self.jobs)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, of what is left, every test subject taken to be as large as the largest training subject."""
        if not self.costs:
            return {}
        tests = (
            missing * self.scans[_space(job.method)].of(job, self.atlases) for job, missing in self.jobs if missing
        )
        pair = max(cost.pair for cost in self.costs.values())
        return {
            "registration and mapping": (self.pairs[0] - self.pairs[1]) * pair,
            "networks": sum(steps * self.costs[space].step for space, steps in self.steps.items()),
            "segmenting and scoring": sum(tests),
        }

    @property
    def peak_mib(self) -> float | None:
        """The most memory that the trainings need, MiB; None where it is not known."""
        peaks = [cost.peak_of(self.atlases if space == "atlases" else 1) for space, cost in self.costs.items()]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def disk_mib(self) -> float | None:
        """What is added on disk but for the results, MiB; None where nothing is left to train."""
        if not self.costs:
            return None
        pair = max(cost.pair_disk_mib for cost in self.costs.values())
        return (self.pairs[0] - self.pairs[1]) * pair + self.models_mib

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "finished": self.finished,
            "plan": self.plan.to_json(),
            "network": self.network.to_json(),
            "subjects": self.subjects,
            "tests": self.tests,
            "atlases": list(self.chosen) if self.chosen is not None else self.atlases,
            "jobs": [
                {
                    "method": job.method.name,
                    "fraction": job.fraction,
                    "fraction_of": job.fraction_of,
                    "seed": job.seed,
                    "epoch": job.epoch,
                    "missing": missing,
                }
                for job, missing in self.jobs
            ],
            "models": dict(zip(("all", "kept"), self.models, strict=True)),
            "registrations": dict(zip(("all", "kept"), self.pairs, strict=True)),
            "epochs": self.epochs,
            "steps": sum(self.steps.values()),
            "measured": {space: asdict(cost) for space, cost in self.costs.items()},
            "measured_scan": {space: scan.to_json() for space, scan in self.scans.items()},
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
            "peak_memory_mib": None if self.peak_mib is None else round(self.peak_mib),
            "disk_mib": None if self.disk_mib is None else round(self.disk_mib, 4),
        }


def forecast_study(
    cohort: Cohort,
    tests: Sequence[Subject],
    folder: str | Path,
    options: StudyOptions | None = None,
    *,
    execution: Execution | None = None,
) -> StudyForecast:
    """What `run_study` with the same arguments would do; nothing is written but into the system's temporary folder.

    Args:
        cohort: as for `run_study`, and so the others.
        tests: other subjects with references.
        folder: of the study.
        options: what is compared.
        execution: device, threads, the first seed, progress.

    Raises:
        CohortError: as `run_study`, for what can be found beforehand.
        InputError: a test subject is a training subject, or ``folder`` holds another study.
    """
    run = StudyRequest(cohort, tuple(tests), Path(folder), options or StudyOptions(), Execution.of(execution))
    _, plan = run.checked()
    wanted = run.options.atlases
    count = atlas_count(wanted, len(cohort))
    everyone = [subject.name for subject in cohort]
    chosen = wanted if isinstance(wanted, tuple) else chosen_names(run.folder / ATLASES, everyone, count)
    count = count if chosen is None else len(chosen)
    jobs = [(job, len(run.unfinished(job, count))) for job in run.jobs()]
    trained = {
        run.folder / member.model: member
        for job, missing in jobs
        if missing and job.method.seeded
        for member in run.members(job, count)
    }
    asked = {run.folder / m.model for job, _ in jobs if job.method.seeded for m in run.members(job, count)}
    absent = [member for place, member in trained.items() if not (place / "model.json").is_file()]
    epochs = [_epochs(run, member.method, count) for member in absent]
    maps = {job.method.space for job, _ in jobs}
    pairs = count * ((len(cohort) - 1) * ("atlases" in maps) + len(tests) * bool(maps & {"atlases", "labels"}))
    spaces = {_space(job.method) for job, missing in jobs if missing}
    carried = {job.method.local for job, missing in jobs if missing and not job.method.seeded}
    found = {space: _measured(run, plan, space, count, carried) for space in sorted(spaces)}
    costs = {space: cost for space, (cost, _) in found.items()}
    steps = dict.fromkeys(costs, 0)
    for n, member in zip(epochs, absent, strict=True):
        space = member.method.space
        steps[space] += n * max(run.recipe.iterations or 1, ceil(costs[space].steps * member.fraction))
    return StudyForecast(
        plan=plan,
        network=_fitting(run, "atlases", count).spec(plan),
        subjects=len(cohort),
        tests=len(tests),
        atlases=count,
        chosen=chosen,
        jobs=tuple(jobs),
        models=(len(asked), sum((place / "model.json").is_file() for place in asked)),
        pairs=(pairs, min(pairs, _registered(run))),
        epochs=sum(epochs),
        steps=steps,
        costs=costs,
        scans={space: scan for space, (_, scan) in found.items()},
        models_mib=_models_mib(run, absent, costs, count),
    )


def _models_mib(run: StudyRequest, absent: Sequence[Run], costs: Mapping[str, Cost], atlases: int) -> float:
    """What these models take on disk, MiB: weights in the work folder and the model, atlases, mapped cases.

    Cases are mapped once for all models that are trained on the same subjects in the same space.
    """
    found, mapped = 0.0, set()
    for member in absent:
        space = member.method.space
        count = atlases if space == "atlases" else 1
        epochs = count * len(run.options.curve_epochs) if member.fraction == 1 else 0  # kept in both folders
        of_subjects = member.fraction_of == "subjects"
        subjects = share_size(member.fraction, len(run.cohort)) if of_subjects else len(run.cohort)
        data = (space, member.share, None if member.fraction == 1 else member.seed)
        cases = 0 if data in mapped else subjects * count
        mapped.add(data)
        disk = costs[space].disk_of(0, cases, run.sharing.networks(count), count)
        found += disk["work"] + disk["model"] + 2 * epochs * costs[space].network_disk_mib
    return found


def _space(method: Method) -> str:
    """Where a method is measured; labels are carried over by the registrations of AtlasNet."""
    return "own" if method.space == "own" else "atlases"


def _measured(
    run: StudyRequest, plan: Plan, space: str, atlases: int, carried: Collection[bool]
) -> tuple[Cost, ScanCost]:
    # They are read only; nothing is looked up under their keys.
    subjects = [keyed_subject(subject, {"images": [subject.name], "labels": [subject.name]}) for subject in run.cohort]
    fitting = _fitting(run, space, atlases)
    pair = register_largest(fitting, plan, subjects)
    scan = measure_scan(run, fitting, plan, pair, carried if space == "atlases" else ())
    return cost_of(fitting, plan, subjects, pair), scan


def _fitting(run: StudyRequest, space: str, atlases: int) -> Fitting:
    """A training of all subjects whose networks work there."""
    options = FitOptions(
        atlases=atlases,
        network=run.options.network,
        allow_module=run.options.allow_module,
        width=run.options.width,
        preset=run.recipe,
        operator=run.options.operator,
        operator_settings=run.options.operator_settings,
        loss_weights=run.options.loss_weights,
    )
    if space == "own":
        options = replace(options, operator="centre", operator_settings={})
    place, work = run.folder / "models", run.work.root
    return Fitting(run.cohort, place, options, work=work, execution=run.execution, frozen=True)


def _epochs(run: StudyRequest, method: Method, atlases: int) -> int:
    """Of all networks of a model."""
    if method.space == "atlases":
        return run.sharing.epochs(run.recipe.epochs, atlases)
    return run.lengthened(method, run.recipe.epochs, atlases)


def _registered(run: StudyRequest) -> int:
    """How many maps of the study's operator the work folder holds; they are all of this study."""
    found = 0
    for record in (run.work.root / "registrations").glob("[!.]*/record.json"):
        with reading_back(record.parent):
            found += read_json(record)["operator"] == run.options.operator
    return found


def fold_pairs(folds: Sequence[Sequence[str]], subjects: int, atlases: int) -> int:
    """Registrations of the folds that a cross-validation has still to do, at the most, those of the tests included.

    Args:
        folds: the subjects that each leaves out.
        subjects: in all.
        atlases: of a model, where there are so many subjects.
    """
    return sum(min(atlases, rest := subjects - len(fold)) * (rest - 1 + len(fold)) for fold in folds)

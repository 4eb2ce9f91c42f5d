"""What a training would do, what of it is done already, and what the rest takes: measured, not guessed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort import Cohort, Plan
from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution, SilentReporter, peak_memory, read_json, reading_back
from atlasnet.execution.stages import MIB
from atlasnet.network import NetworkSpec
from atlasnet.registration import Registration, Target, at_a_time, make_operator, register_each
from atlasnet.training.fit import Fitting
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import Keyed, keyed_subject
from atlasnet.training.store import STORED_BYTES, MappedCase
from atlasnet.training.transformer import MappedCohort, Transformer
from atlasnet.training.update import Changes
from atlasnet.volume import volume_files

ROOM = 1.15  # by how much a region of all subjects may be longer than one of two
CHECKPOINTS = 3  # of a network at a time, while the newest is written
CHECKPOINT_WEIGHTS = 3  # times its weights: these, and two moments of each


@dataclass(frozen=True)
class Cost:
    """What the parts of a training take on this machine.

    Args:
        pair: seconds to register a subject onto an atlas and to map it.
        step: seconds of a step of the optimiser.
        steps: of an epoch of one network.
        image_mib: of the largest image in memory.
        peak_mib: the most memory that the process had held after the measurement, None where the system does not tell.
        pair_disk_mib: on disk, of a registration that is kept.
        case_disk_mib: likewise of a mapped case.
        atlas_disk_mib: likewise of an atlas's image, as large as the largest image is stored.
        network_disk_mib: likewise of the weights of a network.
    """

    pair: float
    step: float
    steps: int
    image_mib: float
    peak_mib: float | None
    pair_disk_mib: float
    case_disk_mib: float
    atlas_disk_mib: float
    network_disk_mib: float

    def peak_of(self, atlases: int) -> float | None:
        """The most memory that a training with so many atlases needs, MiB.

        As measured, with the images of the others, and the map of one pair while the next is registered.
        """
        more = (atlases - 1) * self.image_mib + self.pair_disk_mib
        return None if self.peak_mib is None else self.peak_mib + more

    def disk_of(self, pairs: int, cases: int, networks: int, atlases: int) -> dict[str, float]:
        """MiB on disk of the work folder and the model of a training, and what is there only while a network trains.

        Args:
            pairs: registrations.
            cases: mapped cases, those of all atlases together.
            networks: that are trained.
            atlases: whose networks the model holds.
        """
        weights = self.network_disk_mib
        return {
            "work": pairs * self.pair_disk_mib + cases * self.case_disk_mib + networks * weights,
            "model": atlases * (self.atlas_disk_mib + weights),
            "training": CHECKPOINTS * CHECKPOINT_WEIGHTS * weights,
        }


@dataclass(frozen=True)
class Forecast:
    """What a call of `atlasnet.training.fit.fit` would do.

    Args:
        plan: from the file beside the model, or the one that would be written there.
        network: of every atlas; what depends on the size of the slices is not decided yet.
        subjects: how many.
        atlases: their number.
        chosen: their names, None while they are not chosen.
        finished: whether the model is there; then there is nothing to do.
        pairs: registrations in all, and how many of them are kept.
        epochs: of all networks in all, and how many of them are kept; None while a time budget is to decide.
        networks: whose epochs they are, in words.
        cost: of the parts, None where nothing is left to do.
        changes: how the subjects differ from those of the model that is updated, None without one.
        trained: how many networks are trained.
    """

    plan: Plan
    network: NetworkSpec
    subjects: int
    atlases: int
    chosen: tuple[str, ...] | None
    finished: bool
    pairs: tuple[int, int] = (0, 0)
    epochs: tuple[int, int] | None = (0, 0)
    networks: str = ""
    cost: Cost | None = None
    changes: Changes | None = None
    trained: int = 0

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, of what is left; a stage whose time cannot be known is not there."""
        if self.cost is None:
            return {}
        found = {"registration and mapping": (self.pairs[0] - self.pairs[1]) * self.cost.pair}
        if self.epochs is not None:
            found["networks"] = (self.epochs[0] - self.epochs[1]) * self.cost.steps * self.cost.step
        return found

    @property
    def peak_mib(self) -> float | None:
        """The most memory that the training needs, MiB; None where it is not known."""
        return None if self.cost is None else self.cost.peak_of(self.atlases)

    @property
    def disk_mib(self) -> dict[str, float]:
        """What it takes on disk in the end, what is kept of it included; see `Cost.disk_of`."""
        if self.cost is None:
            return {}
        return self.cost.disk_of(self.pairs[0], self.subjects * self.atlases, self.trained, self.atlases)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "finished": self.finished,
            "plan": self.plan.to_json(),
            "network": self.network.to_json(),
            "subjects": self.subjects,
            **({} if self.changes is None else {"update": self.changes.to_json()}),
            "atlases": list(self.chosen) if self.chosen is not None else self.atlases,
            "registrations": dict(zip(("all", "kept"), self.pairs, strict=True)),
            "epochs": None if self.epochs is None else dict(zip(("all", "kept"), self.epochs, strict=True)),
            "measured": None if self.cost is None else asdict(self.cost),
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
            "peak_memory_mib": None if self.peak_mib is None else round(self.peak_mib),
            "disk_mib": {part: round(value, 4) for part, value in self.disk_mib.items()},
        }


def forecast_fit(
    cohort: Cohort,
    folder: str | Path,
    options: FitOptions | None = None,
    *,
    update: Model | None = None,
    plan: Plan | None = None,
    work: str | Path | None = None,
    earlier: str | Path | None = None,
    execution: Execution | None = None,
) -> Forecast:
    """What `fit` with the same arguments would do; nothing is written but into the system's temporary folder.

    The files are read and hashed, since the names of what is kept are made of their content. Where something is left to
    do, the largest subject is registered onto the next largest, and steps of a network are timed on it.

    Args:
        cohort: as for `fit`, and so the others.
        folder: of the model.
        options: what the user chooses.
        update: the model that would be updated.
        plan: that will be written into ``folder`` beforehand; None: none will.
        work: folder of intermediate results.
        earlier: another one, from which pieces would be taken over.
        execution: device, threads, seed, progress.

    Raises:
        CohortError: as `fit`, for what can be found beforehand, and so the others.
        InputError: an option cannot be used.
        ModelError: ``folder`` holds another finished model.
    """
    run = Fitting(cohort, folder, options, update=update, work=work, earlier=earlier, execution=execution, frozen=True)
    hashes = run.hashes()
    plan = plan or run.plan(hashes)
    settings, spec = run.settings(plan, hashes), run.spec(plan)
    subjects = [keyed_subject(subject, hashes[subject.name]) for subject in cohort]
    model = run.same_model(settings, plan, hashes)
    if model is not None:
        names = tuple(atlas.name for atlas in model.atlases)
        return Forecast(plan, spec, len(subjects), len(names), names, finished=True)
    changes = None if run.update is None else run.update.changes(hashes, run.atlases.count)
    recipe: Recipe | None = run.planned_recipe(plan)
    if run.options.time_budget is not None:
        path = run.budget_path(settings)
        with reading_back(path):
            recipe = Recipe.from_json(read_json(path)) if path.exists() else None
    count, sources = run.atlases.count, run.atlases.known(subjects)
    settled = run.atlases.old if sources is None else sources
    keys = run.atlases.keys(settled, subjects)
    atlases = [
        Keyed(source.name, keys[source.name], source.read, run.atlases.labels_key(source, subjects))
        for source in settled
    ]
    kept, mapped = run.transformer(plan).kept(subjects, atlases)
    pairs = sum(s.key != a.key for s in subjects for a in atlases), kept
    done = 0
    if sources is None:  # those that will be chosen are subjects
        pairs = pairs[0] + (count - len(atlases)) * (len(subjects) - 1), kept
    elif mapped is not None and recipe is not None:
        planned = run.planned_spec(plan, spec, mapped[0].cases[0].labels.shape)
        done = run.networks([atlas.name for atlas in atlases], mapped, planned).epochs_done(recipe)
    return Forecast(
        plan,
        spec,
        len(subjects),
        count,
        None if sources is None else tuple(source.name for source in sources),
        finished=False,
        pairs=pairs,
        epochs=None if recipe is None else (run.sharing.epochs(recipe.epochs, count), done),
        networks="" if recipe is None else run.sharing.described(recipe.epochs, count),
        cost=measure(run, plan, subjects, count),
        changes=changes,
        trained=run.sharing.networks(count),
    )


@dataclass(frozen=True)
class Pair:
    """The largest subject with a label, registered onto the next largest.

    Args:
        source: that was registered.
        target: the atlas.
        registration: what it gave.
        case: the subject in the atlas's space.
        transformer: that mapped it.
        seconds: that registration and mapping took.
    """

    source: Keyed
    target: Keyed
    registration: Registration
    case: MappedCase
    transformer: Transformer
    seconds: float


def measure(run: Fitting, plan: Plan, subjects: Sequence[Keyed], atlases: int) -> Cost:
    """Register the largest subject with a label as onto so many atlases, map it, and time steps of a network on it."""
    return cost_of(run, plan, subjects, register_largest(run, plan, subjects, atlases))


def register_largest(run: Fitting, plan: Plan, subjects: Sequence[Keyed], atlases: int = 1) -> Pair:
    """Register the largest subject with a label onto the next largest, and map it.

    That is done as often at a time as it will be with so many atlases; of the seconds, each has its share.
    """
    execution = replace(run.execution, reporter=SilentReporter())
    sizes = {subject.name: int(subject.read_grid().size.prod()) for subject in run.cohort}
    ordered = sorted(subjects, key=lambda subject: -sizes[subject.name])
    largest = next((subject for subject in ordered if _labelled(subject, run.values)), ordered[0])
    source, target = largest.remembered(), next((s for s in ordered if s is not largest), largest).remembered()
    transformer = run.transformer(plan)
    run.require_memory(transformer)
    with execution.active():
        operator, image, atlas = transformer.registrar.operator, source.read(), target.read()
        trials = at_a_time(operator, [atlas.grid] * atlases, execution)
        start = time.perf_counter()
        found, *_ = register_each(operator, image, [Target(target.name, atlas)] * trials, execution)
        if isinstance(found, RegistrationError):  # it took its time
            (found,) = make_operator("centre").register(image, [atlas], execution=execution)
        took = (time.perf_counter() - start) / trials
        start = time.perf_counter()
        case = transformer.alone(source, target, found.transform)
        return Pair(source, target, found, case, transformer, took + time.perf_counter() - start)


def cost_of(run: Fitting, plan: Plan, subjects: Sequence[Keyed], pair: Pair) -> Cost:
    """Time steps of a network on a pair that was mapped."""
    source, case = pair.source, pair.case
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        pair.registration.transform.save(Path(folder) / "transform.safetensors")
        pair_bytes = (Path(folder) / "transform.safetensors").stat().st_size
    cohort = MappedCohort("", (case,) * len(subjects), {})
    spec = run.planned_spec(plan, run.spec(plan), case.labels.shape)
    networks = run.networks([pair.target.name], [cohort], spec)
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        step, steps = networks.timed_step(run.planned_recipe(plan), Path(folder) / "timing")
    peak = peak_memory()
    # All subjects' region is larger, and a somewhat larger slice may have a deeper network, of four times the size.
    larger = [ceil(ROOM * side) for side in case.labels.shape]
    networks = replace(networks, spec=run.planned_spec(plan, spec, larger))
    stored = [file for path in run.cohort[source.name].images for file in volume_files(path)]
    return Cost(
        pair.seconds,
        step,
        steps,
        source.read().array.nbytes / MIB,
        None if peak is None else peak / MIB,
        pair_disk_mib=pair_bytes / MIB,
        case_disk_mib=(case.image.size * STORED_BYTES + case.labels.size) / MIB,
        atlas_disk_mib=sum(file.stat().st_size for file in stored) / MIB,
        network_disk_mib=networks.weight_bytes / MIB,
    )


def _labelled(subject: Keyed, values: Sequence[int]) -> bool:
    """Whether a subject has any label that networks learn."""
    return subject.read_labels is not None and bool(np.isin(subject.read_labels().array, values[1:]).any())

"""The networks of all atlases: which is trained from what, and for as many epochs as there is time."""

from __future__ import annotations

import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from atlasnet.errors import InputError
from atlasnet.execution import Execution, Reporter, SilentReporter, WorkFolder, digest
from atlasnet.network import NetworkSpec, Traits, build_network, code_digest
from atlasnet.training.batches import typical_sample
from atlasnet.training.loop import LOG, WEIGHTS, train_network
from atlasnet.training.loss import EACH_CLASS, Objective
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing, pooled
from atlasnet.training.store import MappedCase, SliceTable
from atlasnet.training.transformer import MappedCohort
from atlasnet.wording import counted, duration

TIMED_STEPS = 8
COMMON = "all atlases"  # the name of the network that is trained on all of them
_Start = tuple[Path, str]  # weights, and what they depend on


@dataclass(frozen=True)
class _Training:
    """One network's training: for which atlas (None: all), on which cases, for how long, where, from which weights."""

    atlas: str | None
    cases: Sequence[MappedCase]
    recipe: Recipe
    folder: Path
    start: Path | None

    @property
    def name(self) -> str:
        """What it is called, also as a part of its key."""
        return COMMON if self.atlas is None else self.atlas

    def run(self, networks: AtlasNetworks, after_epoch: Callable[[int, nn.Module], None] | None = None) -> None:
        """Train it, or find it trained."""
        train_network(
            self.cases,
            networks.spec,
            self.recipe,
            networks.classes,
            self.folder,
            networks.execution,
            objective=networks.objective,
            key=self.name,
            allow_module=networks.allow_module,
            start=self.start,
            keep=networks.keep if self.start is None else (),
            after_epoch=after_epoch,
        )

    @property
    def gives(self) -> _Start:
        """The weights that it ends with; the name of their folder is itself a key."""
        return self.folder / WEIGHTS, self.folder.name

    def done(self) -> int:
        """Epochs that need not be done again."""
        if (self.folder / WEIGHTS).is_file():
            return self.recipe.epochs
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.folder.glob("checkpoint-*.json")]
        return max(numbers, default=0)


class _Telling:
    """Says once, by the first epoch that shows it, how fast networks are trained and how long all of them will take."""

    def __init__(self, trainings: Sequence[_Training], reporter: Reporter) -> None:
        self._trainings, self._reporter, self._told = trainings, reporter, False

    def of(self, training: _Training) -> Callable[[int, nn.Module], None]:
        """What a training calls after its epochs. Its first one loads code and data, and says little."""
        begun = training.done()

        def after(epoch: int, _: nn.Module) -> None:
            if self._told or epoch < begun + 2:
                return
            self._told = True
            left = sum(other.recipe.epochs - other.done() for other in self._trainings)
            row = (training.folder / LOG).read_text(encoding="utf-8").splitlines()[-1].split(",")
            each, rate = float(row[3]), float(row[4])  # all epochs have about as many steps, see `pooled`
            speed = f"{each:.1f} s an epoch, {counted(round(rate), 'slice')} a second"
            self._reporter.note(f"networks: {speed}; {counted(left, 'epoch')} left, about {duration(each * left)}")

        return after


@dataclass(frozen=True)
class AtlasNetworks:
    """The networks of a model, one per atlas, all of one architecture.

    Args:
        names: of the atlases.
        mapped: the subjects in the space of each.
        spec: the architecture.
        classes: classes, background included.
        objective: what counts how much in their loss.
        sharing: what the networks have in common.
        starts: the weights, and their checksum, from which the network of each atlas starts, where they are a model's.
        work: where networks and their checkpoints are kept.
        execution: device, threads, seed, progress.
        allow_module: whether ``spec`` may name code to import.
        keep: epochs after which the weights of those that are trained from scratch are kept too, see `train_network`.
    """

    names: Sequence[str]
    mapped: Sequence[MappedCohort]
    spec: NetworkSpec
    classes: int
    sharing: Sharing
    work: WorkFolder
    execution: Execution
    objective: Objective = EACH_CLASS
    starts: Sequence[_Start] = ()
    allow_module: bool = False
    keep: Collection[int] = ()

    @property
    def tuned(self) -> list[str]:
        """The atlases whose networks start from another network's weights."""
        return [*self.names][len(self.names) - self.sharing.tunings(len(self.names)) :]

    def train(self, recipe: Recipe) -> Iterator[tuple[str | None, Path]]:
        """Train the networks, those of the atlases in their order.

        Returns:
            As each is finished, its atlas, None of the common one, and the folder of its `WEIGHTS` and its `LOG`.

        Raises:
            Cancelled: on request; the same call goes on from the last whole epoch.
        """
        trainings = [*self._trainings(recipe)]
        self.execution.reporter.note(f"epochs: {self.sharing.described(recipe.epochs, len(self.mapped))}")
        telling = _Telling(trainings, self.execution.reporter)
        for training in trainings:
            training.run(self, telling.of(training))
            yield training.atlas, training.folder

    def epochs_done(self, recipe: Recipe) -> int:
        """How many epochs of all networks need not be done again."""
        return sum(training.done() for training in self._trainings(recipe))

    def _trainings(self, recipe: Recipe) -> Iterator[_Training]:
        """The trainings in their order, the common one first."""
        start: _Start | None = None
        if self.sharing.kind == "common" and self.tuned:
            cases = [case for mapped in self.mapped for case in mapped.cases]
            slices, batch = self._extent(cases, recipe)
            shared = pooled(recipe, slices, batch, len(self.mapped))
            first = self._training(None, digest([mapped.key for mapped in self.mapped]), cases, shared)
            start = first.gives
            yield first
        for index, (name, mapped) in enumerate(zip(self.names, self.mapped, strict=True)):
            if name in self.tuned:
                origin = self.starts[index] if self.sharing.kind == "model" else start
                yield self._training(name, mapped.key, mapped.cases, self.sharing.tuned(recipe), origin)
            else:
                first = self._training(name, mapped.key, mapped.cases, recipe)
                start = first.gives
                yield first

    def _training(
        self,
        atlas: str | None,
        cases_key: str,
        cases: Sequence[MappedCase],
        recipe: Recipe,
        start: _Start | None = None,
    ) -> _Training:
        """One network's training, from the weights ``start`` if they are given."""
        key = {
            "name": COMMON if atlas is None else atlas,  # part of the seed
            "cases": cases_key,
            "spec": self.spec.to_json(),
            "recipe": recipe.to_json(),
            "seed": self.execution.seed,
        } | self.objective.identity()
        if start is not None:
            key["start"] = start[1]
        if (code := code_digest(self.spec.name, allow_module=self.allow_module)) is not None:
            key["code"] = code
        folder = self.work.entry("networks", digest(key))
        return _Training(atlas, cases, recipe, folder, None if start is None else start[0])

    def within(self, recipe: Recipe, end: float) -> Recipe:
        """The recipe with as many epochs as all networks have time for until ``end`` of `time.perf_counter`.

        Raises:
            InputError: there is not time for an epoch of every network.
        """
        seconds, steps = self.timed_step(recipe, self.work.root / "budget" / "timing")
        # Of all networks together: steps for which there is time. An epoch need not show every slice so often then.
        left = int((end - time.perf_counter()) / seconds)
        each = recipe.iterations or steps
        fewest = self._epochs(1) * each
        if left < fewest:
            raise InputError(
                "the time budget is too short for an epoch of every network",
                expected=f"{(fewest - left) * seconds:.0f} s more",
                remedy="give more time, or fewer atlases; what was registered is kept",
            )
        chosen = recipe
        if left < self._epochs(recipe.epochs) * steps:
            epochs = bisect_right(range(1, recipe.epochs + 1), left // each, key=self._epochs)
            chosen, steps = replace(recipe, passes=0.0, epochs=epochs), each
        minutes = self._epochs(chosen.epochs) * steps * seconds / 60
        self.execution.reporter.note(
            f"{chosen.epochs} of {counted(recipe.epochs, 'epoch')} fit into the time: about {minutes:.1f} minutes"
        )
        return chosen

    def _epochs(self, epochs: int) -> int:
        return self.sharing.epochs(epochs, len(self.mapped))

    def timed_step(self, recipe: Recipe, folder: Path) -> tuple[float, int]:
        """Seconds of a step of the optimiser, and how many an epoch of an atlas's network has.

        Args:
            recipe: of the training.
            folder: for the files of the timing; it is emptied before and removed after.
        """
        cases = self.mapped[0].cases
        short = replace(recipe, epochs=2, iterations=TIMED_STEPS, passes=0.0)
        shutil.rmtree(folder, ignore_errors=True)
        silent = replace(self.execution, reporter=SilentReporter())
        train_network(cases, self.spec, short, self.classes, folder, silent, allow_module=self.allow_module)
        # The first epoch loads code and data.
        row = (folder / LOG).read_text(encoding="utf-8").splitlines()[-1].split(",")
        shutil.rmtree(folder)
        return float(row[3]) / TIMED_STEPS, recipe.steps(*self._extent(cases, recipe))

    @property
    def weight_bytes(self) -> int:
        """Of one network on disk."""
        channels = int(self.mapped[0].cases[0].image.shape[0])
        module = build_network(self.spec, channels, self.classes, allow_module=self.allow_module)
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    def _extent(self, cases: Sequence[MappedCase], recipe: Recipe) -> tuple[int, int]:
        """Slices of the cases, and of a step."""
        channels = int(cases[0].image.shape[0])
        module = build_network(self.spec, channels, self.classes, allow_module=self.allow_module)
        voxels, slices = typical_sample(cases, Traits.of(module, self.spec.name))
        return len(SliceTable.of(cases, self.classes)), recipe.batch(voxels) * slices

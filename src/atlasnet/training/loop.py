"""Training one network on mapped cases: the same bytes again, however often it was interrupted."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atlasnet.errors import AtlasNetError, InputError, ModelError
from atlasnet.execution import Execution, atomic_path, digest, file_digest, kept_memory
from atlasnet.network.inference import mixed, reduced_precision
from atlasnet.network.registry import build_network
from atlasnet.network.spec import NetworkSpec, Traits
from atlasnet.network.weights import channels_last, load_weights, read_tensors, tensor_channels_last, write_tensors
from atlasnet.training.augmentation import Draw, move, recolour
from atlasnet.training.batches import (
    ahead,
    epoch_batches,
    epoch_random,
    load_blocks,
    load_slices,
    network_inputs,
    typical_sample,
)
from atlasnet.training.checkpoint import (
    Progress,
    load_checkpoint,
    remove_checkpoints,
    remove_remains,
    save_checkpoint,
)
from atlasnet.training.loss import EACH_CLASS, Objective, segmentation_loss
from atlasnet.training.memory import step_bytes
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import MappedCase, SliceTable

WEIGHTS = "network.safetensors"
LOG = "log.csv"
_SMALLER = "lower batch_size or width, or raise spacing, in plan.json"
_Batch = tuple[Tensor, Tensor, Draw, Tensor | None]  # images, labels, changes, see `segmentation_loss`
_COLUMNS = ("epoch", "loss", "learning_rate", "seconds", "images_per_second", "waiting")


def train_network(
    cases: Sequence[MappedCase],
    spec: NetworkSpec,
    recipe: Recipe,
    classes: int,
    folder: str | Path,
    execution: Execution,
    *,
    objective: Objective = EACH_CLASS,
    key: str = "",
    allow_module: bool = False,
    start: Path | None = None,
    keep: Collection[int] = (),
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Path:
    """Train a network and write its weights.

    On the CPU the weights are a function of the cases, the arguments, ``execution.seed``, the threads, the versions of
    the libraries and the kind of processor (see `atlasnet.network.inference.reduced_precision`): the same bytes whether
    the training ran through or was killed at any instant and called again. On a GPU cuDNN is held to its deterministic
    algorithms, but pooling with indices and a user's own layers may add in varying order. Each epoch ends with a
    checkpoint (two are kept); a training that is complete returns at once.

    Args:
        cases: mapped cases; they may differ in shape, not in channels.
        spec: the architecture.
        recipe: how it is trained.
        classes: classes, background included.
        folder: gets ``network.safetensors``, ``log.csv`` (a row an epoch; ``waiting`` is the share of its seconds in
            which it waited for slices to be read and cut) and, until the end, the checkpoints; of this training alone.
        execution: device, threads, seed, progress; asked for a stop before each step.
        objective: what counts how much in the loss.
        key: what the caller knows the training by (atlas, hash of the cases); with another key nothing is resumed.
        allow_module: whether ``spec`` may name code to import.
        start: weights of another training of this architecture to start from; fresh ones by default.
        keep: epochs after which the weights are kept too, see `epoch_weights`; asked for when they are past, they cost
            another training.
        after_epoch: called with the epochs done and the network; it must leave the network's weights alone.

    Returns:
        The path of ``network.safetensors``: tensors by name in the module, no optimiser state.

    Raises:
        CohortError: nothing to train on.
        InputError: the architecture cannot be built, or memory does not suffice.
        ModelError: ``start`` cannot be read, or holds the weights of another architecture.
        AtlasNetError: the loss is not finite.
        Cancelled: on request, between two steps; the same call goes on from the last whole epoch.
    """
    folder = Path(folder)
    table = SliceTable.of(cases, classes)
    channels = int(cases[0].image.shape[0])
    depends_on = {
        "key": key,
        "seed": execution.seed,
        "spec": spec.to_json(),
        "recipe": recipe.to_json(),
        "classes": classes,
        "channels": channels,
        "cases": [list(case.labels.shape) for case in cases],
    } | objective.identity()
    if table.shown is not None:
        depends_on["hidden"] = [list(case.hidden) for case in cases]
    if start is not None:
        read_tensors(start)  # says what is wrong with it
        depends_on["start"] = file_digest(start)
    identity = digest(depends_on)
    path = folder / WEIGHTS
    absent = [epoch for epoch in keep if not _finished(epoch_weights(folder, epoch), identity)]
    finished = _finished(path, identity)
    if finished and not absent:
        remove_checkpoints(folder)
        return path
    record = {"key": identity, "network": spec.to_json(), "channels": channels, "classes": classes}
    folder.mkdir(parents=True, exist_ok=True)
    remove_remains(folder)
    with execution.active() as device, _reproducible(device), kept_memory(), _memory_of_the_gpu():
        training = _Training(
            cases, table, spec, recipe, classes, objective, device, execution, key, allow_module, start
        )
        training.require_memory()
        progress, damaged = load_checkpoint(folder, identity, training.module, training.optimiser)
        for sentence in damaged:
            execution.reporter.warn(f"{folder}: {sentence}")
        if progress is None or any(epoch <= progress.epoch for epoch in absent):
            # Those of the training that is given up would count as the newer ones.
            remove_checkpoints(folder)
            training.start()
            progress = Progress(0, [], {})
        if progress.scaler:
            training.scaler.load_state_dict(progress.scaler)
        log = progress.log
        remaining = range(progress.epoch, recipe.epochs)
        work = "training" if start is None else "tuning"
        if progress.epoch:
            at = f"goes on after epoch {progress.epoch} of {recipe.epochs}"
            execution.reporter.note(f"{work} {key or spec.name} {at}")
        for epoch in execution.reporter.track(remaining, f"{work} {key or spec.name}", len(remaining)):
            log = [*log, training.epoch(epoch)]
            if epoch + 1 in absent:
                write_tensors(epoch_weights(folder, epoch + 1), training.module.state_dict(), record)
            progress = Progress(epoch + 1, log, training.scaler.state_dict())
            save_checkpoint(folder, identity, training.module, training.optimiser, progress)
            _write_log(folder / LOG, log)
            if after_epoch is not None:
                after_epoch(epoch + 1, training.module)
        _write_log(folder / LOG, log)
        if not finished:  # on a GPU, the weights that are in use already may have another last bit
            write_tensors(path, training.module.state_dict(), record)
    remove_checkpoints(folder)
    return path


def epoch_weights(folder: Path, epoch: int) -> Path:
    """Where `train_network` keeps the weights after an epoch."""
    return folder / f"epoch-{epoch:06d}.safetensors"


class _Training:
    """The network, its optimiser and its data on one device."""

    def __init__(
        self,
        cases: Sequence[MappedCase],
        table: SliceTable,
        spec: NetworkSpec,
        recipe: Recipe,
        classes: int,
        objective: Objective,
        device: torch.device,
        execution: Execution,
        key: str,
        allow_module: bool,
        origin: Path | None,
    ) -> None:
        self.cases, self.table, self.recipe, self.device = cases, table, recipe, device
        self.execution, self.key, self.origin, self.objective = execution, key, origin, objective
        self._build: Callable[[], nn.Module] = partial(
            build_network, spec, int(cases[0].image.shape[0]), classes, allow_module=allow_module
        )
        self.start()
        self.traits = Traits.of(self.module, spec.name)
        voxels, self.slices = typical_sample(cases, self.traits)
        self.batch = recipe.batch(voxels)
        self.voxels = self.batch * voxels
        self.steps = recipe.steps(len(table), self.batch * self.slices)
        dtype = reduced_precision(device, self.traits.spatial_dims)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        weights = objective.weights(table.counts, balancing=recipe.balancing)
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)
        self.waited = 0.0  # seconds of this epoch

    def start(self) -> None:
        """Fresh weights, or those of the training that this one starts from, and a fresh optimiser."""
        torch.manual_seed(self._seed(-1))
        module = self._build()
        module = channels_last(module) if self.origin is None else load_weights(self.origin, module)
        self.module = module.to(self.device)
        # Momentum and step sizes of another training are those of its last, smallest learning rates and of its own
        # slices: they would steer the first steps of this one, whose rate is higher, where these slices do not point.
        self.optimiser = _optimiser(self.module, self.recipe)

    def require_memory(self) -> None:
        """Refuse steps that the memory does not suffice for; a GPU says so itself.

        Raises:
            InputError: it does not.
        """
        if self.device.type == "cpu" and self.execution.check_memory:
            channels = int(self.cases[0].image.shape[0])
            needed = step_bytes(self.module, self.traits, channels, self.voxels, self.table.shown)
            self.execution.require_memory(needed, _SMALLER)

    def _seed(self, epoch: int) -> int:
        return int(epoch_random(self.execution.seed, self.key, epoch).integers(2**62))

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch and give its row of the log.

        Raises:
            AtlasNetError: the loss is not finite.
        """
        started = time.perf_counter()
        random = epoch_random(self.execution.seed, self.key, epoch)
        torch.manual_seed(self._seed(epoch))  # a network may have dropout
        self.module.train()
        total, seen, rate = torch.zeros((), device=self.device), 0, 0.0
        self.waited = 0.0
        for step, (images, labels, draw, shown) in enumerate(self._batches(random)):
            self.execution.pause()
            rate = self.recipe.rate(epoch * self.steps + step, self.steps)
            total += self._step(images, labels, draw, shown, rate)
            seen += len(images)
        loss = float(total) / self.steps
        if not math.isfinite(loss):
            raise AtlasNetError(
                f"training {self.key or 'the network'} diverged in epoch {epoch + 1}: the loss is {loss}; "
                "to mend it: a lower learning rate, or look for extreme intensities in the mapped cases"
            )
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "loss": round(loss, 6),
            "learning_rate": rate,
            "seconds": round(seconds, 3),
            "images_per_second": round(seen / seconds, 2),
            "waiting": round(self.waited / seconds, 4),
        }

    def _batches(self, random: np.random.Generator) -> Iterator[_Batch]:
        """The batches of an epoch, in host memory; while a GPU works on one, the next is made."""
        batches = self._loaded(random)
        if self.device.type != "cpu":
            batches = ahead(batches)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _loaded(self, random: np.random.Generator) -> Iterator[_Batch]:
        """Every batch; whoever asks for it, the random numbers come in one order."""
        for rows in epoch_batches(self.table, self.recipe, self.batch, random, slices=self.slices):
            if self.traits.spatial_dims == 2:
                images, labels = load_slices(self.cases, self.table, rows, self.traits)
            else:
                images, labels = load_blocks(self.cases, self.table, rows, self.traits, random)
            draw = Draw.of(self.recipe.augmentation, len(rows), random)
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):  # a thread begins on the first GPU
                    images, labels = images.pin_memory(), labels.pin_memory()
            shown = self.table.shown_at(rows)
            yield images, labels, draw, None if shown is None else torch.from_numpy(shown)

    def _step(self, images: Tensor, labels: Tensor, draw: Draw, shown: Tensor | None, rate: float) -> Tensor:
        """One step of the optimiser; gives the loss, still on the device."""
        images, target = network_inputs(*(part.to(self.device, non_blocking=True) for part in (images, labels)))
        shape = images.shape
        planes = images.flatten(1, -3)  # (b, channels [* z], y, x): a block turns as its slices do
        planes, target = move(planes, target, draw)
        images = recolour(planes, draw).reshape(shape)
        if self.traits.spatial_dims == 2:
            target = target[:, 0]
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with mixed(self.device, self.traits.spatial_dims):
            logits = self.module(tensor_channels_last(images))
        loss = segmentation_loss(
            logits, target, self.weights, dice=self.recipe.dice, objective=self.objective, shown=shown
        )
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach()


def _optimiser(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    return torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


class _reproducible(AbstractContextManager[None]):  # noqa: N801 - used as a function
    """Leave torch's random state and cuDNN's choices as they were; inside, cuDNN is deterministic."""

    def __init__(self, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self._random = torch.random.fork_rng(devices)
        self._cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)

    def __enter__(self) -> None:
        self._random.__enter__()
        self._cudnn.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._cudnn.__exit__(*error)
        self._random.__exit__(*error)


@contextmanager
def _memory_of_the_gpu() -> Iterator[None]:
    """Say in words that it does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the memory of the GPU does not suffice for the training",
            found=str(error).splitlines()[0],
            remedy=_SMALLER,
        ) from error


def _finished(path: Path, identity: str) -> bool:
    if not path.is_file():
        return False
    try:
        _, record = read_tensors(path)
    except ModelError:
        return False
    return record.get("key") == identity


def _write_log(path: Path, log: Sequence[dict[str, float]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        writer.writerows(log)

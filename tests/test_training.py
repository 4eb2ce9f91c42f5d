"""Training: it learns, it leaves out what does not count, and it resumes to the same bytes."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from atlasnet.errors import AtlasNetError, Cancelled, InputError, ModelError
from atlasnet.execution import Execution
from atlasnet.network import NetworkSpec, build_network, load_weights, probabilities
from atlasnet.training.loop import train_network
from atlasnet.training.loss import Objective
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import IGNORED, MappedCase

SPEC = NetworkSpec("unet", 0.5, {"depth": 2})
RECIPE = replace(Recipe.preset("default", epochs=4), iterations=6, batch_slices=6)


def discs(name: str, seed: int, shape: tuple[int, int, int] = (6, 24, 20)) -> MappedCase:
    """A bright ball on a noisy ground, its upper half class 2."""
    generator = np.random.default_rng(seed)
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    centre = np.array(shape) / 2 + generator.uniform(-2, 2, 3)
    ball = ((z - centre[0]) * 2) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 40
    labels = (ball * (1 + (y < centre[1]))).astype(np.uint8)
    image = ball * 2.0 - (labels == 2) * 4.0 + generator.normal(0, 0.3, shape)
    return MappedCase(name, image[None].astype(np.float16), labels)


@pytest.fixture
def cases() -> list[MappedCase]:
    return [discs("a", 0), discs("b", 1), discs("c", 2, (5, 20, 27))]


def train(cases: list[MappedCase], folder: Path, **options: object) -> bytes:
    arguments = {"recipe": RECIPE, "spec": SPEC, "execution": Execution(threads=1, seed=3), **options}
    spec, recipe, execution = (arguments.pop(name) for name in ("spec", "recipe", "execution"))
    return train_network(cases, spec, recipe, 3, folder, execution, **arguments).read_bytes()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return train([discs("a", 0), discs("b", 1), discs("c", 2, (5, 20, 27))], tmp_path_factory.mktemp("undisturbed"))


def stopping_after(calls: int) -> Callable[[], bool]:
    counter = iter(range(calls))
    return lambda: next(counter, None) is None


def test_a_network_learns_to_segment(cases: list[MappedCase], tmp_path: Path) -> None:
    train(cases, tmp_path, recipe=replace(RECIPE, epochs=8, iterations=12))
    module = load_weights(tmp_path / "network.safetensors", build_network(SPEC, 1, 3))
    unseen = discs("d", 9)
    found = probabilities(module, unseen.image.astype(np.float32)).argmax(0)
    overlap = ((found > 0) & (unseen.labels > 0)).sum()
    assert 2 * overlap / ((found > 0).sum() + (unseen.labels > 0).sum()) > 0.8


@pytest.mark.parametrize("network", ["unet", "segnet"])
def test_bfloat16_learns_as_float32_does(
    cases: list[MappedCase], tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"depth": 1} if network != "segnet" else {}
    losses: dict[bool, float] = {}
    for can in (False, True):
        # A processor without its instructions computes the same, slowly.
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: {"avx512_bf16": can})
        recipe = replace(RECIPE, epochs=3, iterations=6)
        train(cases, tmp_path / str(can), spec=NetworkSpec(network, 0.25, options), recipe=recipe)
        with (tmp_path / str(can) / "log.csv").open() as stream:
            losses[can] = float([*csv.DictReader(stream)][-1]["loss"])
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.15)


def test_the_published_recipe_lowers_the_loss(cases: list[MappedCase], tmp_path: Path) -> None:
    train(cases, tmp_path, spec=NetworkSpec("segnet", 0.1), recipe=Recipe.preset("publication", epochs=5))
    with (tmp_path / "log.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("calls", [1, 6, 7, 24])
def test_a_stopped_training_ends_in_the_same_bytes(
    cases: list[MappedCase], tmp_path: Path, undisturbed: bytes, calls: int
) -> None:
    with pytest.raises(Cancelled):
        train(cases, tmp_path, execution=Execution(threads=1, seed=3, cancelled=stopping_after(calls - 1)))
    assert train(cases, tmp_path) == undisturbed


class Dropping(nn.Module):
    """A user's network with dropout; it keeps what it was shown while it was trained."""

    spatial_dims, context, divisibility = 2, 0, 1
    seen: ClassVar[list[Tensor]] = []

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.Dropout(), nn.Conv2d(8, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.layers(x)


def test_dropout_is_stopped_to_the_same_bytes_and_stays_where_epochs_end(
    cases: list[MappedCase], tmp_path: Path
) -> None:
    options = {"spec": NetworkSpec(f"{__name__}:Dropping"), "allow_module": True}
    options["recipe"] = replace(RECIPE, epochs=2, iterations=3, passes=0.0)
    expected = train(cases, tmp_path / "undisturbed", **options)
    with pytest.raises(Cancelled):
        train(cases, tmp_path / "a", execution=Execution(threads=1, seed=3, cancelled=stopping_after(4)), **options)
    assert train(cases, tmp_path / "a", **options) == expected
    # Who looks at the network after an epoch may leave it as it is asked.
    assert train(cases, tmp_path / "b", after_epoch=lambda _, network: network.eval(), **options) == expected


def test_no_step_of_any_epoch_shows_what_another_has_shown(cases: list[MappedCase], tmp_path: Path) -> None:
    blank = [replace(case, image=np.zeros_like(case.image)) for case in cases]
    recipe = replace(RECIPE, epochs=2)
    train(blank, tmp_path, spec=NetworkSpec(f"{__name__}:Dropping"), recipe=recipe, allow_module=True)
    # Of blank slices augmentation alone is seen.
    shown = np.array([image.numpy()[0, :20, :20].ravel() for batch in Dropping.seen[-12:] for image in batch])
    assert len(shown) == 2 * 6 * 6
    assert np.abs(np.corrcoef(shown) - np.eye(len(shown))).max() < 0.5


def test_two_threads_resume_to_the_same_bytes(cases: list[MappedCase], tmp_path: Path) -> None:
    recipe, execution = replace(RECIPE, epochs=2, iterations=3, passes=0.0), Execution(threads=2, seed=3)
    expected = train(cases, tmp_path / "undisturbed", recipe=recipe, execution=execution)
    stopped = replace(execution, cancelled=stopping_after(4))
    with pytest.raises(Cancelled):
        train(cases, tmp_path / "stopped", recipe=recipe, execution=stopped)
    assert train(cases, tmp_path / "stopped", recipe=recipe, execution=execution) == expected


def test_a_stopped_training_in_three_dimensions_ends_in_the_same_bytes(cases: list[MappedCase], tmp_path: Path) -> None:
    options = {
        "spec": NetworkSpec("unet3d", 0.5, {"depth": 1}),
        "recipe": replace(RECIPE, epochs=2, iterations=3, passes=0.0),
    }
    expected = train(cases, tmp_path / "undisturbed", **options)
    stopped = Execution(threads=1, seed=3, cancelled=stopping_after(4))
    with pytest.raises(Cancelled):
        train(cases, tmp_path / "stopped", execution=stopped, **options)
    assert train(cases, tmp_path / "stopped", **options) == expected


def test_the_published_recipe_resumes_to_the_same_bytes(cases: list[MappedCase], tmp_path: Path) -> None:
    options = {"spec": NetworkSpec("segnet", 0.1), "recipe": Recipe.preset("publication", epochs=2)}
    expected = train(cases, tmp_path / "undisturbed", **options)
    stopped = Execution(threads=1, seed=3, cancelled=stopping_after(3))
    with pytest.raises(Cancelled):
        train(cases, tmp_path / "stopped", execution=stopped, **options)
    assert train(cases, tmp_path / "stopped", **options) == expected


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import discs, train
print("ready", flush=True)
train([discs("a", 0), discs("b", 1), discs("c", 2, (5, 20, 27))], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_training_ends_in_the_same_bytes(undisturbed: bytes, tmp_path: Path, kills: int) -> None:
    instants = random.Random(0)
    folder = tmp_path / "killed"
    script = _SCRIPT.format(tests=str(Path(__file__).parent))
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(instants.uniform(0.02, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, stdout=subprocess.DEVNULL)
    assert (folder / "network.safetensors").read_bytes() == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", "network.safetensors"]


def stopped_after_three_epochs(cases: list[MappedCase], folder: Path) -> None:
    with pytest.raises(Cancelled):
        train(cases, folder, execution=Execution(threads=1, seed=3, cancelled=stopping_after(20)))


def test_two_generations_of_checkpoints_are_kept(cases: list[MappedCase], tmp_path: Path) -> None:
    stopped_after_three_epochs(cases, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("checkpoint*.safetensors"))
    assert names == ["checkpoint-000002.safetensors", "checkpoint-000003.safetensors"]


@pytest.mark.parametrize("name", ["checkpoint-000003.safetensors", "checkpoint-000003.json"])
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    cases: list[MappedCase], undisturbed: bytes, tmp_path: Path, name: str, keep: int
) -> None:
    stopped_after_three_epochs(cases, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:keep] + bytes([whole[-1] ^ 1]) * (keep < 0))  # cut, or another last byte
    execution = Execution(threads=1, seed=3)
    assert train(cases, tmp_path, execution=execution) == undisturbed
    assert any("checkpoint-000003" in text for text in execution.reporter.warnings)  # type: ignore[attr-defined]


def test_all_checkpoints_damaged_start_the_training_anew(
    cases: list[MappedCase], undisturbed: bytes, tmp_path: Path
) -> None:
    stopped_after_three_epochs(cases, tmp_path)
    for path in tmp_path.glob("checkpoint*.safetensors"):
        path.write_bytes(b"")
    assert train(cases, tmp_path) == undisturbed


def test_a_checkpoint_of_another_training_is_not_resumed(
    cases: list[MappedCase], undisturbed: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        train(cases, tmp_path, key="another", execution=Execution(threads=1, seed=3, cancelled=stopping_after(20)))
    assert train(cases, tmp_path) == undisturbed


@pytest.mark.parametrize("other", ["rate", "balancing", "class weights", "hidden"])
def test_what_was_trained_otherwise_is_trained_anew_and_becomes_another(
    cases: list[MappedCase], tmp_path: Path, other: str
) -> None:
    recipe = replace(RECIPE, epochs=1, iterations=2, passes=0.0)
    options: dict[str, object] = {
        "rate": {"recipe": replace(recipe, learning_rate=1e-4)},
        "balancing": {"recipe": replace(recipe, balancing=True)},
        "class weights": {"recipe": recipe, "objective": Objective(class_weights=(1.0, 4.0, 1.0))},
        "hidden": {"recipe": recipe},
    }[other]
    changed = [replace(case, hidden=((2, 0),)) for case in cases[:1]] + cases[1:] if other == "hidden" else cases
    train(cases, tmp_path / "a", recipe=recipe)
    before = load_file(tmp_path / "a" / "network.safetensors")
    again = train(changed, tmp_path / "a", **options)
    assert again == train(changed, tmp_path / "b", **options)
    after = load_file(tmp_path / "a" / "network.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_log_has_each_epoch_once_after_a_resume(cases: list[MappedCase], tmp_path: Path) -> None:
    stopped_after_three_epochs(cases, tmp_path)
    train(cases, tmp_path)
    with (tmp_path / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {"epoch", "loss", "learning_rate", "seconds", "images_per_second", "waiting"}
    assert all(0 < float(row["waiting"]) < 1 for row in rows)
    rates = [RECIPE.rate(6 * epoch - 1, 6) for epoch in range(1, 5)]  # of the last of six steps
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)


def test_a_finished_training_is_not_repeated(cases: list[MappedCase], tmp_path: Path) -> None:
    first = train(cases, tmp_path)
    assert train(cases, tmp_path, execution=Execution(threads=1, seed=3, cancelled=lambda: True)) == first


def test_weights_hold_no_optimiser_state(cases: list[MappedCase], tmp_path: Path) -> None:
    train(cases, tmp_path)
    with safe_open(tmp_path / "network.safetensors", "pt") as stream:
        assert set(stream.keys()) == set(build_network(SPEC, 1, 3).state_dict())
        assert json.loads(stream.metadata()["atlasnet"])["classes"] == 3
    assert not list(tmp_path.glob("checkpoint*"))


def test_other_seeds_and_keys_give_other_weights(cases: list[MappedCase], undisturbed: bytes, tmp_path: Path) -> None:
    assert train(cases, tmp_path / "seed", execution=Execution(threads=1, seed=4)) != undisturbed
    assert train(cases, tmp_path / "key", key="another atlas") != undisturbed


@pytest.mark.parametrize("calls", [1, 3, 7])
def test_a_training_from_given_weights_is_stopped_to_the_same_bytes(
    cases: list[MappedCase], tmp_path: Path, calls: int
) -> None:
    recipe = replace(RECIPE, epochs=2, iterations=4)
    train(cases, tmp_path / "before", recipe=recipe)
    start = tmp_path / "before" / "network.safetensors"
    expected = train(cases[:2], tmp_path / "undisturbed", recipe=recipe, start=start)
    stopped = Execution(threads=1, seed=3, cancelled=stopping_after(calls - 1))
    with pytest.raises(Cancelled):
        train(cases[:2], tmp_path / "stopped", recipe=recipe, start=start, execution=stopped)
    assert train(cases[:2], tmp_path / "stopped", recipe=recipe, start=start) == expected
    assert train(cases[:2], tmp_path / "fresh", recipe=recipe) != expected


def test_weights_that_cannot_be_started_from_are_refused(cases: list[MappedCase], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, iterations=1)
    start = tmp_path / "before" / "network.safetensors"
    with pytest.raises(ModelError, match="no network weights"):
        train(cases, tmp_path / "new", recipe=recipe, start=start)
    train(cases, tmp_path / "before", recipe=recipe, spec=NetworkSpec("unet", 0.25, {"depth": 2}))
    with pytest.raises(ModelError, match="another network"):
        train(cases, tmp_path / "new", recipe=recipe, start=start)
    start.write_bytes(start.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        train(cases, tmp_path / "new", recipe=recipe, start=start)


def test_ignored_slices_do_not_count(cases: list[MappedCase], tmp_path: Path) -> None:
    spec = NetworkSpec("unet", 0.5, {"depth": 2, "context": 0})
    recipe = replace(RECIPE, epochs=1)
    weights = []
    for value in (0.0, 5.0):
        cases[0].labels[3:] = IGNORED
        cases[0].image[:, 3:] = value
        train(cases, tmp_path / str(value), spec=spec, recipe=recipe)
        module = load_weights(tmp_path / str(value) / "network.safetensors", build_network(spec, 1, 3))
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Points(nn.Module):
    """A 3-D network of the user."""

    spatial_dims, context, divisibility = 3, 0, 4

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, classes, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 5
        return self.layers(x)


def test_a_3d_network_is_trained_on_blocks(cases: list[MappedCase], tmp_path: Path) -> None:
    spec = NetworkSpec(f"{__name__}:Points")
    train(cases, tmp_path, spec=spec, recipe=replace(RECIPE, epochs=6, learning_rate=0.02), allow_module=True)
    with (tmp_path / "log.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_import_path_is_refused_before_anything_is_written(cases: list[MappedCase], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--allow-module"):
        train(cases, tmp_path / "new", spec=NetworkSpec(f"{__name__}:Points"))


def test_a_training_in_three_dimensions_gives_the_same_weights_again(tmp_path: Path) -> None:
    """Whatever was in memory before: in bfloat16 the gradients of its smallest convolutions depend on that."""
    cases = [discs(name, seed, (16, 48, 48)) for seed, name in enumerate("ab")]
    options = {"spec": NetworkSpec("unet3d", 0.25)}
    options |= {"recipe": replace(RECIPE, epochs=1, iterations=2, batch_slices=2)}
    found = set()
    for number in range(4):
        used = [torch.full((1 << (10 + number),), torch.nan) for _ in range(100)]
        del used
        found.add(train(cases, tmp_path / str(number), **options))
    assert len(found) == 1


def test_a_diverging_training_is_stopped_with_the_remedy(cases: list[MappedCase], tmp_path: Path) -> None:
    recipe = replace(Recipe.preset("publication", epochs=3), learning_rate=1e20)
    with pytest.raises(AtlasNetError, match="lower learning rate"):
        train(cases, tmp_path, spec=NetworkSpec("unet", 0.5, {"depth": 1}), recipe=recipe)


def test_training_leaves_the_random_state_of_the_caller_alone(cases: list[MappedCase], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(cases, tmp_path, recipe=replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(3), expected)

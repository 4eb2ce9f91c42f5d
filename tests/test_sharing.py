"""Shared training: networks start from what another one has learnt, cost what is said, and survive a kill."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from atlasnet import AtlasNet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import Cancelled, InputError
from atlasnet.execution import Execution
from atlasnet.network.weights import read_tensors
from atlasnet.prediction import import_models
from atlasnet.study import StudyOptions, cross_validate, run_study
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing, pooled
from atlasnet.volume import write_volume
from synthetic import write_cohort

ATLASES = ("s0", "s1", "s2")
EPOCHS, STEPS = 4, 3
RECIPE = replace(Recipe.preset("default"), epochs=EPOCHS, iterations=STEPS, passes=0.0, batch_slices=4)
OPTIONS = FitOptions(atlases=ATLASES, width=0.25, preset=RECIPE, operator="affine")
HALF = {kind: Sharing(kind, tuning=0.5) for kind in ("independent", "first", "common")}
ONE = Execution(threads=1)
WEIGHTS = "network.safetensors"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(3)))


@pytest.fixture(scope="module")
def mapped(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which everything is done but the training."""
    work = tmp_path_factory.mktemp("mapped") / "work"
    with pytest.raises(Cancelled):
        train(cohort, work.parent / "m", work, execution=replace(ONE, cancelled=(work / "networks").exists))
    shutil.rmtree(work / "networks")
    return work


@pytest.fixture(scope="module")
def trained(cohort: Cohort, mapped: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, int]]:
    """One model of every kind, trained without a stop, and the optimiser's steps that it took."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in HALF:
        shutil.copytree(mapped, folder / kind / "work")
        with counted_steps() as steps:
            model = train(cohort, folder / kind, folder / kind / "work", HALF[kind])
        found[kind] = model, len(steps)
    return found


@pytest.fixture(scope="module")
def models(trained: dict[str, tuple[Model, int]]) -> dict[str, Model]:
    return {kind: model for kind, (model, _) in trained.items()}


@pytest.fixture(scope="module")
def steps(trained: dict[str, tuple[Model, int]]) -> dict[str, int]:
    return {kind: taken for kind, (_, taken) in trained.items()}


def train(cohort: Cohort, folder: Path, work: Path, sharing: str | Sharing = "independent", **changes: object) -> Model:
    execution = changes.pop("execution", ONE)
    options = replace(OPTIONS, sharing=sharing, **changes)  # type: ignore[arg-type]
    return fit(cohort, folder, options, work=work, execution=execution)  # type: ignore[arg-type]


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """What the optimiser changes: everything but the statistics of batch normalisation."""
    tensors, _ = read_tensors(path)
    return {name: t for name, t in tensors.items() if "running" not in name and "tracked" not in name}


def distance(first: Path, second: Path) -> float:
    one, other = parameters(first), parameters(second)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@contextmanager
def counted_steps() -> Iterator[list[None]]:
    """A list that grows by one with every step of any optimiser."""
    steps: list[None] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    try:
        yield steps
    finally:
        hook.remove()


def in_stage(work: Path, stage: int) -> Callable[[], bool]:
    """Whether the network that is trained as the ``stage``-th is past its first epoch and not finished."""

    def reached() -> bool:
        finished = len(list(work.glob(f"networks/*/{WEIGHTS}")))
        return finished == stage - 1 and any(work.glob("networks/*/checkpoint-*.json"))

    return reached


# What it costs


@pytest.mark.parametrize(
    ("kind", "atlases", "networks"),
    [
        ("independent", 6, 6),
        ("first", 6, 2.25),
        ("common", 6, 2.5),
        ("first", 1, 1),
        ("common", 1, 1),
        ("common", 2, 1.5),
    ],
)
def test_the_cost_in_networks(kind: str, atlases: int, networks: float) -> None:
    assert Sharing(kind).epochs(40, atlases) == 40 * networks


def test_who_says_nothing_gets_what_the_recipe_has() -> None:
    assert Sharing.of(None, Recipe.preset("default")) == Sharing("common")
    assert Sharing.of(None, Recipe.preset("publication")) == Sharing("independent")
    assert Sharing.of("first", Recipe.preset("default")) == Sharing("first")


@pytest.mark.parametrize(("kind", "epochs"), [("independent", 3 * 4), ("first", 4 + 2 * 2), ("common", 4 + 3 * 2)])
def test_the_optimiser_takes_the_steps_that_are_counted(steps: dict[str, int], kind: str, epochs: int) -> None:
    assert steps[kind] == epochs * STEPS == HALF[kind].epochs(EPOCHS, len(ATLASES)) * STEPS


def test_one_pass_over_the_slices_of_all_atlases_costs_what_one_atlas_does(
    cohort: Cohort, mapped: Path, tmp_path: Path
) -> None:
    recipe = Recipe.preset("publication", epochs=2)
    taken = {}
    for kind in ("independent", "common"):
        work = Path(shutil.copytree(mapped, tmp_path / kind / "work"))
        with counted_steps() as steps:
            train(cohort, tmp_path / kind, work, HALF[kind], preset=recipe)
        taken[kind] = len(steps)
    # Two epochs of the common network are one network's, and three tunings of one epoch are one and a half.
    assert taken["common"] == pytest.approx(2.5 * taken["independent"] / 3, abs=2)


@pytest.mark.parametrize("slices", [300, 200_000])
def test_the_common_network_has_the_steps_of_one_atlass_network_however_large_the_cohort(slices: int) -> None:
    recipe = Recipe.preset("default")
    assert pooled(recipe, 6 * slices, 32, 6).steps(6 * slices, 32) == recipe.steps(slices, 32)
    assert (recipe.steps(slices, 32) > (recipe.iterations or 0)) == (slices > 300)


@given(
    epochs=st.integers(1, 200),
    tuning=st.floats(0.01, 1.0),
    rate=st.floats(0.01, 1.0),
    slices=st.integers(1, 50_000),
    preset=st.sampled_from(["default", "publication"]),
)
def test_a_tuning_is_the_recipe_made_short_and_low(
    epochs: int, tuning: float, rate: float, slices: int, preset: str
) -> None:
    recipe = Recipe.preset(preset, epochs=epochs)
    tuned = Sharing("first", tuning, rate).tuned(recipe)
    assert tuned.epochs == 1 or tuned.epochs <= tuning * epochs < tuned.epochs + 1
    assert abs(tuned.steps(slices, 8) - recipe.steps(slices, 8)) <= 1
    highest = max(tuned.rate(step, 10) for step in range(10 * tuned.epochs))
    assert 0 < highest <= rate * recipe.learning_rate * (1 + 1e-9)


def test_the_published_schedule_keeps_its_shape() -> None:
    recipe = Recipe.preset("publication", epochs=60)
    tuned = Sharing("common", tuning=0.5, rate=0.1).tuned(recipe)
    expected = [0.1 * recipe.rate(2 * epoch, 1) for epoch in range(30)]
    assert [tuned.rate(epoch, 1) for epoch in range(30)] == pytest.approx(expected)


# What is shared


def test_networks_are_tuned_from_the_first_ones_weights(
    cohort: Cohort, mapped: Path, tmp_path: Path, models: dict[str, Model]
) -> None:
    still = Sharing("first", tuning=0.5, rate=1e-7)
    model = train(cohort, tmp_path / "m", Path(shutil.copytree(mapped, tmp_path / "work")), still)
    first, *others = (model.weights_path(atlas) for atlas in model.atlases)
    assert [distance(first, other) < 1e-5 for other in others] == [True, True]
    scratch, *apart = (models["independent"].weights_path(atlas) for atlas in model.atlases)
    assert first.read_bytes() == scratch.read_bytes()
    assert min(distance(scratch, other) for other in apart) > 0.1


def test_networks_are_tuned_from_the_common_ones_weights(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    still = Sharing("common", tuning=0.5, rate=1e-7)
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    model = train(cohort, tmp_path / "m", work, still)
    weights = [model.weights_path(atlas) for atlas in model.atlases]
    assert max(distance(a, b) for a, b in itertools.combinations(weights, 2)) < 1e-5
    own = {path.read_bytes() for path in weights}
    (common,) = (path for path in work.glob(f"networks/*/{WEIGHTS}") if path.read_bytes() not in own)
    assert distance(common, weights[0]) < 1e-5


def test_the_common_network_learns_from_every_atlas(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    seen = []
    for atlases in (ATLASES[:2], (ATLASES[0], ATLASES[2])):
        work = Path(shutil.copytree(mapped, tmp_path / "-".join(atlases) / "work"))
        model = train(cohort, work.parent, work, Sharing("common", rate=1e-7), atlases=atlases)
        seen.append(model.weights_path(model.atlases[0]))
    assert distance(*seen) > 1e-3


def test_all_kinds_are_the_same_with_one_atlas(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    found = [train(cohort, tmp_path / kind, work, kind, atlases=("s1",)) for kind in HALF]
    assert found[0].checksums == found[1].checksums == found[2].checksums
    assert [model.provenance["sharing"]["tuned"] for model in found] == [[], [], []]


def test_the_model_says_what_was_shared(models: dict[str, Model]) -> None:
    assert {kind: model.provenance["sharing"] for kind, model in models.items()} == {
        "independent": {"kind": "independent", "tuning": 0.5, "rate": 0.5, "tuned": []},
        "first": {"kind": "first", "tuning": 0.5, "rate": 0.5, "tuned": ["s1", "s2"]},
        "common": {"kind": "common", "tuning": 0.5, "rate": 0.5, "tuned": ["s0", "s1", "s2"]},
    }
    log = models["first"].folder / "log"
    rows = {name: len((log / f"{name}.csv").read_text(encoding="utf-8").splitlines()) - 1 for name in ATLASES}
    assert rows == {"s0": 4, "s1": 2, "s2": 2}


def test_the_model_keeps_the_log_of_the_common_network_and_takes_it_along(
    models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["common"]
    log = Path("log/common/log.csv")
    assert len((model.folder / log).read_text(encoding="utf-8").splitlines()) == 1 + EPOCHS
    assert not any((models[kind].folder / log).exists() for kind in ("independent", "first"))
    model.export(tmp_path / "m.zip")
    (copy,) = import_models(tmp_path / "m.zip", tmp_path / "copy").models
    assert (copy.folder / log).read_bytes() == (model.folder / log).read_bytes()
    (copy.folder / log).unlink()  # as in models of before
    assert Model.load(copy.folder).checksums == model.checksums


def test_no_atlas_has_the_name_of_the_common_network(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    names = ("common", "all atlases")
    for name in names:
        write_volume(tmp_path / f"{name}.nii.gz", cohort["s0"].read_image())
    atlases = tuple(str(tmp_path / f"{name}.nii.gz") for name in names)
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    model = train(cohort, tmp_path / "m", work, HALF["common"], atlases=atlases)
    assert [atlas.name for atlas in model.atlases] == [*names]
    logs = {path.relative_to(model.folder / "log").as_posix() for path in model.folder.rglob("log/**/*.csv")}
    assert logs == {"common.csv", "all atlases.csv", "common/log.csv"}


# Going on


@pytest.mark.parametrize(("kind", "stage"), [("first", 3), ("common", 1), ("common", 2)])
def test_a_stop_in_any_network_ends_in_the_same_bytes(
    cohort: Cohort, mapped: Path, models: dict[str, Model], tmp_path: Path, kind: str, stage: int
) -> None:
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    stopped = replace(ONE, cancelled=in_stage(work, stage))
    with pytest.raises(Cancelled):
        train(cohort, tmp_path / "m", work, HALF[kind], execution=stopped)
    assert train(cohort, tmp_path / "m", work, HALF[kind]).checksums == models[kind].checksums


_SCRIPT = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_sharing import HALF, ONE, in_stage, train
from atlasnet.cohort import Cohort
folder, work = Path(sys.argv[2]), Path(sys.argv[3])
for stage in (1, 3):
    child = os.fork()
    if not child:
        reached = in_stage(work, stage)
        dying = replace(ONE, cancelled=lambda: reached() and os.kill(os.getpid(), signal.SIGKILL))
        train(Cohort.read(sys.argv[1]), folder, work, HALF["common"], execution=dying)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_kill_in_the_common_network_and_in_a_tuning_ends_in_the_same_bytes(
    cohort: Cohort, mapped: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    script = _SCRIPT.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", script, str(cohort.root), str(tmp_path / "m"), str(work)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert ended == [str(-signal.SIGKILL)] * 2
    assert train(cohort, tmp_path / "m", work, HALF["common"]).checksums == models["common"].checksums


def test_another_tuning_trains_what_it_starts_from_only_once(
    cohort: Cohort, models: dict[str, Model], tmp_path: Path
) -> None:
    for kind, tunings in (("first", 2), ("common", 3)):
        work = Path(shutil.copytree(models[kind].folder / "work", tmp_path / kind))
        with counted_steps() as steps:
            model = train(cohort, tmp_path / f"model-{kind}", work, Sharing(kind, tuning=0.25))
        assert len(steps) == tunings * STEPS
        assert model.checksums != models[kind].checksums


def test_other_weights_to_start_from_are_another_training(
    cohort: Cohort, models: dict[str, Model], tmp_path: Path
) -> None:
    # The same second atlas, behind another first one.
    work = Path(shutil.copytree(models["first"].folder / "work", tmp_path / "work"))
    model = train(cohort, tmp_path / "m", work, HALF["first"], atlases=("s2", "s1"))
    name = "networks/s1.safetensors"
    assert model.checksums[name] != models["first"].checksums[name]


# What is asked for


@pytest.mark.parametrize("kind", ["first", "common"])
def test_a_time_budget_counts_what_is_shared(
    cohort: Cohort, mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    recipe, sharing = replace(RECIPE, epochs=1000, iterations=1), Sharing(kind, tuning=0.4)
    # Steps of a day: the time for 20 of them and half a day for what comes before them.
    day = 86400.0
    monkeypatch.setattr("atlasnet.training.networks.AtlasNetworks.timed_step", lambda *_: (day, 1))
    with counted_steps() as steps:
        model = train(cohort, tmp_path / "m", work, sharing, preset=recipe, time_budget=20.5 * day)
    epochs = model.provenance["recipe"]["epochs"]
    assert sharing.epochs(epochs, 3) == len(steps) <= 20 < sharing.epochs(epochs + 1, 3)
    assert epochs > 20 / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "second"}, "independent, first, common or model"),
        ({"tuning": 0.0}, "share of the epochs"),
        ({"tuning": 1.01}, "share of the epochs"),
        ({"tuning": float("nan")}, "share of the epochs"),
        ({"rate": 0.0}, "share of the learning rate"),
        ({"rate": 2.0}, "share of the learning rate"),
    ],
)
def test_values_that_cannot_be_used_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sharing(**arguments)  # type: ignore[arg-type]


def test_an_unknown_kind_is_refused_before_any_work(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="'both'"):
        fit(cohort, tmp_path / "m", replace(OPTIONS, sharing="both"))
    with pytest.raises(InputError, match="'both'"):
        StudyOptions(sharing="both")
    with pytest.raises(SystemExit):
        main(["train", str(cohort.root), "-o", str(tmp_path / "m"), "--sharing", "both"])
    assert "first" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_every_fold_shares_as_the_model_does(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, atlases=2, sharing=HALF["common"])
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    found = cross_validate(cohort, tmp_path, options, folds=3, work=work, execution=ONE)
    assert len(found.folds) == 3
    for number in (1, 2, 3):
        model = Model.load(tmp_path / f"fold_{number}")
        assert model.provenance["sharing"]["tuned"] == [atlas.name for atlas in model.atlases]


def test_a_study_shares_and_trains_its_long_network_for_as_long(cohort: Cohort, tmp_path: Path) -> None:
    options = StudyOptions(
        atlases=2,
        methods=("augmented-long", "atlasnet"),
        seeds=1,
        preset=RECIPE,
        sharing=HALF["first"],
        width=0.25,
        operator="affine",
    )
    run_study(cohort.select(["s0", "s1"]), [cohort["s2"]], tmp_path, options, execution=ONE)
    own, atlases = (Model.load(tmp_path / "models" / name / "100" / "seed0") for name in ("own-long", "atlases"))
    assert atlases.provenance["sharing"]["tuned"] == [atlases.atlases[1].name]
    assert own.provenance["recipe"]["epochs"] == 4 + 2


def test_the_command_line_and_the_object_share_alike(cohort: Cohort, mapped: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(mapped, tmp_path / "work"))
    words = ["train", str(cohort.root), "-o", str(tmp_path / "command"), "--work", str(work), "--sharing", "first"]
    words += ["--atlas", "s0", "--atlas", "s1", "--preset", "publication", "--epochs", "2", "--network", "unet"]
    assert main([*words, "--width", "0.25", "--registration", "affine", "--threads", "1", "--quiet"]) == 0
    net = AtlasNet(
        atlases=["s0", "s1"],
        network="unet",
        width=0.25,
        preset="publication",
        epochs=2,
        sharing="first",
        registration="affine",
        execution=ONE,
    ).fit(cohort, tmp_path / "object", work=work)
    command = Model.load(tmp_path / "command")
    assert net.model is not None
    assert net.model.checksums == command.checksums
    assert command.provenance["sharing"]["tuned"] == ["s1"]

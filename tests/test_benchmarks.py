"""The benchmark scripts start: each reads its arguments, and what they compare is compared; mypy checks the rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from atlasnet.training.recipe import Recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKERS = ("bench", "peers", "nnunet_training")  # started by other scripts, the last two by another Python
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in WORKERS)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module of its own; those that it imports lie beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_reads_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script(name, monkeypatch).main()
    assert ended.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


def test_a_study_is_compared_with_an_earlier_result_subject_by_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = script("study", monkeypatch).gain({"a": 0.8, "b": 0.9, "c": 0.7}, {"a": 0.7, "b": 0.7, "z": 0.1})
    assert gain["mean"] == pytest.approx(0.15)
    assert gain["subjects"] == 2


def test_every_row_of_the_recipe_benchmark_is_another_training_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = script("recipe", monkeypatch).CHOICES
    assert (first.made, first.seed, first.how) == (Recipe.preset("default"), 0, "the default")
    trainings = [(choice.made, choice.seed) for choice in (first, *others)]
    assert all(trainings.count(training) == 1 for training in trainings)
    assert len({choice.name for choice in (first, *others)}) == len(trainings)
    assert len({choice.how for choice in (first, *others)}) == len(trainings)


def test_a_row_of_the_recipe_benchmark_goes_on_only_by_the_same_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("recipe", monkeypatch)
    rows = [{"what": "x", "how": "dice=False", "dice": {}}]
    assert module.row_of(module.Choice("x", {"dice": False}), rows) is rows[0]
    with pytest.raises(SystemExit, match="another recipe"):
        module.row_of(module.Choice("x", {"balancing": True}), rows)
    assert module.row_of(module.Choice("y", seed=1), rows) == {"what": "y", "how": "seed + 1"}
    assert [row["what"] for row in rows] == ["x", "y"]


def test_rows_of_the_recipe_benchmark_are_compared_with_the_first_and_with_the_mean_of_its_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = script("recipe", monkeypatch)
    rows = [
        {"what": "baseline", "dice": {"a": 0.8, "b": 0.9, "c": 0.7}},
        {"what": "another seed", "dice": {"a": 0.8, "b": 0.7, "c": 0.7}},
        {"what": "cross-entropy alone", "dice": {"a": 0.7, "b": 0.8, "c": 0.5}},
    ]
    assert module.compared(rows) == {"mean_dice": [0.8, 0.7333], "standard_deviation": 0.0471}
    assert "minus_first" not in rows[0]
    assert "minus_seeds" not in rows[1]
    assert (rows[2]["mean_dice"], rows[2]["median"], rows[2]["worst_tenth"]) == (0.6667, 0.7, 0.5)
    assert rows[2]["minus_first"]["mean"] == -0.1333
    assert rows[2]["minus_seeds"]["mean"] == -0.1

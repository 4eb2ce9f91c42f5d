"""The benchmark scripts start: each reads its arguments, and what they compare is compared; mypy checks the rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

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

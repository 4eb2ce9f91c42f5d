"""Work folders that something has damaged, or that two processes want: the model is what it would have been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from atlasnet.cohort import Cohort
from atlasnet.errors import InputError
from atlasnet.execution import Execution, SilentReporter, WorkFolder, hold_folder
from atlasnet.training.fit import fit
from atlasnet.training.forecast import forecast_fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from synthetic import write_cohort

RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4)
OPTIONS = FitOptions(atlases=1, width=0.25, preset=RECIPE, operator="affine")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS, execution=Execution(threads=1))


@pytest.mark.parametrize(
    "pattern",
    [
        "choice/*/atlases.json",
        "registrations/*/transform.safetensors",
        "registrations/*/record.json",
        "registrations/*/checksums.json",
        "overviews/*/overview.npz",
        "mapped/*/*.image.npy",
        "mapped/*/*.labels.npy",
        "networks/*/network.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["a bit", "truncated", "absent"])
def test_a_damaged_piece_of_work_is_made_again(
    cohort: Cohort, model: Model, tmp_path: Path, pattern: str, damage: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model.folder, folder)
    (folder / "model.json").unlink()
    file = sorted((folder / "work").glob(pattern))[0]
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage != "absent":
        content[-len(content) // 3] ^= 1
        file.write_bytes(content if damage == "a bit" else content[: len(content) // 2])
    reporter = SilentReporter()
    again = fit(cohort, folder, OPTIONS, execution=Execution(threads=1, reporter=reporter))
    assert again.checksums == model.checksums
    if not pattern.startswith("networks"):
        assert any(file.parent.name in text and "done again" in text for text in reporter.warnings)


@pytest.mark.parametrize("name", ["registrations/*/record.json", "choice/*/atlases.json", "overviews/*/overview.npz"])
@pytest.mark.parametrize("content", [b"{", b"PK", b"PK\x03\x04" + bytes(40)], ids=["brace", "short", "zeros"])
def test_a_forecast_names_a_damaged_piece_and_leaves_it(
    cohort: Cohort, model: Model, tmp_path: Path, name: str, content: bytes
) -> None:
    shutil.copytree(model.folder, tmp_path / "m")
    (tmp_path / "m" / "model.json").unlink()
    file = sorted((tmp_path / "m" / "work").glob(name))[0]
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file.parent.name}.*the file is damaged"):
        forecast_fit(cohort, tmp_path / "m", OPTIONS)
    assert file.read_bytes() == content


def test_a_forecast_leaves_a_damaged_plan_that_is_derived_again(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    shutil.copytree(model.folder, tmp_path / "m")
    (tmp_path / "m" / "model.json").unlink()
    (tmp_path / "m" / "plan.json").unlink()
    (file,) = (tmp_path / "m" / "work").glob("plans/*/plan.json")
    file.write_bytes(b"{")
    reporter = SilentReporter()
    found = forecast_fit(cohort, tmp_path / "m", OPTIONS, execution=Execution(threads=1, reporter=reporter))
    assert found.plan == model.plan
    assert file.read_bytes() == b"{"
    assert any("plan.json is not what was written" in text for text in reporter.warnings)


def test_sound_work_is_not_done_again(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model.folder, folder)
    (folder / "model.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()}
    fit(cohort, folder, OPTIONS, execution=Execution(threads=1))
    after = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == set()


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_killed_training_had_begun_to_write_of_the_model_goes(
    cohort: Cohort, model: Model, tmp_path: Path, finished: bool
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model.folder, folder)
    if not finished:
        (folder / "model.json").unlink()
    for place in ("model.json", "plan.json", "networks/s0.safetensors", "log/common/log.csv"):
        begun = folder / place
        begun = begun.with_name(f".{begun.name}.a1b2c3d4") / begun.name
        begun.parent.mkdir(parents=True)
        begun.write_bytes(b"half")
    made = fit(cohort, folder, OPTIONS, execution=Execution(threads=1))
    assert not [path for path in folder.rglob(".*") if "work" not in path.parts]
    assert made.checksums == model.checksums


_HOLDER = """
import sys
from pathlib import Path
from atlasnet.execution import WorkFolder, hold_folder
folder = Path(sys.argv[1])
with WorkFolder(folder).locked() if folder.name == "work" else hold_folder(folder):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(work: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder until it ends."""
    words = [sys.executable, "-c", _HOLDER, str(work)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_two_trainings_with_work_folders_of_their_own_do_not_write_one_model(cohort: Cohort, tmp_path: Path) -> None:
    with held(tmp_path / "m"), pytest.raises(InputError, match="m: another process works in this folder"):
        fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "m" / "model.json").exists()


def test_a_lock_leaves_neither_its_file_nor_a_folder_that_it_made(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "deep" / "m"):
        pass
    assert [path.name for path in (tmp_path / "deep").iterdir()] == []
    with hold_folder(tmp_path / "deep" / "m"):
        (tmp_path / "deep" / "m" / "plan.json").touch()
    assert [path.name for path in (tmp_path / "deep" / "m").iterdir()] == ["plan.json"]


def test_a_second_process_is_turned_away_until_the_first_is_killed(cohort: Cohort, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with held(work) as process:
        with pytest.raises(InputError, match="another process"):
            fit(cohort, tmp_path / "m", OPTIONS, work=work)
        assert not (tmp_path / "m" / "model.json").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with WorkFolder(work).locked():
            pass


@pytest.mark.parametrize("moment", ["acquire", "release"])
def test_ctrl_c_while_a_lock_is_taken_or_given_back_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    usual, signals = getattr(FileLock, moment), [signal.SIGINT]

    def interrupted(lock: FileLock, *args: object, **kwargs: object) -> object:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return usual(lock, *args, **kwargs)

    monkeypatch.setattr(FileLock, moment, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt), hold_folder(tmp_path / "m"):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "m").exists()


def test_a_signal_that_comes_as_a_lock_is_let_go_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = [], signal.getsignal

    def stopped(number: int) -> Any:
        asked.append(number)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return ask(number)

    with pytest.raises(KeyboardInterrupt), hold_folder(tmp_path / "m"):
        monkeypatch.setattr(signal, "getsignal", stopped)  # asked before signals are made to wait
    assert len(asked) > 1
    assert not (tmp_path / "m").exists()
    with hold_folder(tmp_path / "m"):  # nor is it held
        pass


def test_an_error_that_names_its_file_is_told_as_it_is(tmp_path: Path) -> None:
    problem = OSError(f"{tmp_path / 'kind' / '.partial-key' / 'map'}: the disk is full")
    with pytest.raises(OSError, match="disk is full") as caught, WorkFolder(tmp_path).making("kind", "key"):
        raise problem
    assert caught.value is problem

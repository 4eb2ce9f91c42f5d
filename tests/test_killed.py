"""Processes that are killed at random moments: the same command ends as if nothing had been, and redoes nothing."""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from atlasnet.cli.main import main
from atlasnet.volume import write_volume
from synthetic import subject, write_study_cohort

TESTS = ("t0", "t1")
KILLS = 3
STUDY = "--only plain propagation atlasnet --atlases 2 --seeds 1 --epochs 1 --width 0.1 --quiet"
STUDY += " --registration centre --threads 1"

# Children come of a process that has loaded the package and done nothing else: a start takes no seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["atlasnet.cli.main", "atlasnet.study", "atlasnet.prediction"])


def run(words: Sequence[str], begun: Callable[[], bool], until: float | None = None) -> tuple[int | None, float]:
    """Run a command in a process of its own, kill it so many seconds after it has ``begun``: exit code and seconds."""
    process = PROCESSES.Process(target=_exit, args=(list(words),))
    process.start()
    while process.is_alive() and not begun():
        time.sleep(0.002)
    start = time.perf_counter()
    process.join(until)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode, time.perf_counter() - start


def _exit(words: list[str]) -> None:
    raise SystemExit(main(words))


def finished(folder: Path, pattern: str) -> dict[Path, int]:
    """When every label map whose record is whole, and every model, was written."""
    records = [path for path in folder.glob(pattern) if path.with_suffix(".nii.gz").exists() and not is_begun(path)]
    files = [*records, *(path.with_suffix(".nii.gz") for path in records), *folder.glob("models/*/*/*/model.json")]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}


def is_begun(record: Path) -> bool:
    """Whether the record of a prediction waits for the hashes of outputs: it is written before them and after them."""
    return None in json.loads(record.read_text(encoding="utf-8")).get("outputs", {}).values()


def killed_and_repeated(words: Sequence[str], folder: Path, pattern: str, seconds: float, seed: int) -> int:
    """Kill the command at random moments until some of it is finished, then let it end; how often it was killed.

    What is finished is not written again.
    """
    instants, done, kills = random.Random(seed), dict[Path, int](), 0
    while kills < KILLS or not done:
        code, _ = run(words, folder.exists, instants.uniform(0, seconds / 2))
        now = finished(folder, pattern)
        assert {path: now.get(path) for path in done} == done
        done = now
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert run(words, folder.exists)[0] == 0
    now = finished(folder, pattern)
    assert {path: now.get(path) for path in done} == done
    return kills


def timeless(value: Any) -> Any:
    """Without what a clock says."""
    if isinstance(value, dict):
        return {name: timeless(of) for name, of in value.items() if name != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [timeless(row) for row in csv.DictReader(stream)]


def label_maps(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.nii.gz") if "work" not in path.parts
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_cohort(tmp_path_factory.mktemp("data") / "d", range(4), TESTS)


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> tuple[Path, float]:
    """A study, and how many seconds it took."""
    folder = data.parent / "undisturbed"
    code, seconds = run(["study", str(data), "-o", str(folder), *STUDY.split()], folder.exists)
    assert code == 0
    return folder, seconds


def test_a_study_that_is_killed_ends_as_one_that_was_not(
    data: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    (expected, seconds), folder = undisturbed, tmp_path / "s"
    words = ["study", str(data), "-o", str(folder), *STUDY.split()]
    assert killed_and_repeated(words, folder, "runs/*/*/*/t?.json", seconds, seed=0) > 0
    assert label_maps(folder) == label_maps(expected)
    for name in ("table.csv", "cases.csv", "curves.csv", "less_data.csv"):
        assert rows(folder / name) == rows(expected / name)
    ours, theirs = (json.loads((at / "study.json").read_text(encoding="utf-8")) for at in (folder, expected))
    assert timeless(ours) == timeless(theirs)


def test_predictions_that_are_killed_end_as_those_that_were_not(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    for number in range(6):
        write_volume(tmp_path / "in" / f"scan{number}.nii.gz", subject(200 + number)[0])
    model = next((undisturbed[0] / "models" / "atlases" / "100").iterdir())
    words = ["predict", str(tmp_path / "in"), "-m", str(model), "--threads", "1", "--quiet", "-o"]
    code, seconds = run([*words, str(tmp_path / "expected")], (tmp_path / "expected").exists)
    assert code == 0
    assert killed_and_repeated([*words, str(tmp_path / "out")], tmp_path / "out", "scan?.json", seconds, seed=1) > 0
    assert label_maps(tmp_path / "out") == label_maps(tmp_path / "expected")
    assert len(label_maps(tmp_path / "out")) == 6

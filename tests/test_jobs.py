"""Commands as batch systems and containers run them: streams that are closed, no home, few writable places, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import atlasnet
from atlasnet.cohort import Cohort
from atlasnet.execution import Execution
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from synthetic import write_place

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells, signals and users as POSIX has them")

RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
PACKAGE = {"PYTHONPATH": str(Path(atlasnet.__file__).parents[1])}  # commands run in other folders than the tests
OPTIONS = FitOptions(atlases=1, width=0.25, preset=RECIPE, operator="centre")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and two scans."""
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return fit(Cohort.read(place / "data"), place / "model", OPTIONS, execution=Execution(threads=1))


def shell(words: str, place: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a line of a shell, in which ``$A`` is the command."""
    settings = {**os.environ, **PACKAGE, "A": f"{sys.executable} -m atlasnet"}
    settings.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-c", words], cwd=place, env=settings, capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize("closed", [pytest.param("2>&-", marks=pytest.mark.slow), "0<&- 1>&- 2>&-"])
def test_a_command_whose_streams_are_closed_does_its_work(closed: str, place: Path, model: Model) -> None:
    out = f"out{len(closed)}"
    done = shell(f"$A predict scans -m model -o {out} --threads 1 --log {out}.log {closed}", place)
    assert done.returncode == 0
    assert {"c200.nii.gz", "c201.nii.gz"} <= {path.name for path in (place / out).iterdir()}
    assert "Z end exit code 0, " in (place / f"{out}.log").read_text(encoding="utf-8").splitlines()[-1]
    assert shell(f"$A predict scans -m absent -o other {closed}", place).returncode == 2


def test_a_command_in_a_folder_that_was_removed_says_so(place: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    done = shell(f"mkdir {left} && cd {left} && rmdir {left} && $A check {place / 'data'}", place)
    said = "atlasnet check: error: the folder in which the command was given is not there any more; "
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{said}to mend it: change to another one\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full needed")
def test_progress_that_a_full_disk_does_not_take_is_lost_and_nothing_else(place: Path, model: Model) -> None:
    done = shell("$A predict scans -m model -o full --threads 1 2>/dev/full", place)
    assert (done.returncode, done.stdout) == (0, "2 cases: 2 segmented; in full\n")
    assert shell("$A predict absent -m model -o other 2>/dev/full", place).returncode == 2
    closed = shell("$A predict scans -m model -o closed --threads 1 2> >(exec true)", place)
    assert (closed.returncode, closed.stdout) == (0, "2 cases: 2 segmented; in closed\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full needed")
def test_a_result_that_cannot_be_printed_is_an_error_as_others_are(place: Path, model: Model) -> None:
    done = shell("$A model info model --json --log info.log >/dev/full", place)
    assert done.returncode == 1
    assert re.fullmatch(r"atlasnet model: error: .* No space left on device\n", done.stderr)
    assert "Z end exit code 1, " in (place / "info.log").read_text(encoding="utf-8").splitlines()[-1]
    read_no_more = shell("set -o pipefail; $A model info model | sleep 0", place)
    assert (read_no_more.returncode, read_no_more.stderr) == (1, "")


def _without(words: list[str], place: Path, *, writable: bool) -> subprocess.CompletedProcess[str]:
    """A command of a user whom no list names, without a home; and, unless ``writable``, without any place to write."""
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o777)
    who: list[str] = []
    if os.geteuid() == 0:
        keep = "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"  # where Python itself lies
        who = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *keep]
        if subprocess.run([*who, "true"], capture_output=True, check=False).returncode:
            pytest.skip("setpriv cannot lay down the rights of root")
    settings = {**PACKAGE, "HOME": "/nonexistent", "PATH": os.defpath, "TMPDIR": str(temporary)}
    script = "import sys; from atlasnet.cli.main import main; sys.exit(main(sys.argv[1:]))"
    if not writable:
        script = f"import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nonexistent']; {script}"
    return subprocess.run(
        [*who, sys.executable, "-c", script, *words],
        cwd=place, env=settings, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def _open_to_all(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.mark.slow
def test_a_user_without_name_and_home_trains_and_segments_quietly(place: Path) -> None:
    work = _open_to_all(place / "nobody")
    if os.geteuid() == 0:
        os.chown(work, 12345, 12345)
    options = "--atlases 1 --epochs 1 --width 0.1 --registration centre --threads 1 --quiet --report".split()
    trained = _without(["train", "data", "-o", "nobody/model", *options], place, writable=True)
    assert (trained.returncode, trained.stderr) == (0, "")
    words = "predict scans -m nobody/model -o nobody/out --threads 1 --quiet --report".split()
    segmented = _without(words, place, writable=True)
    assert (segmented.returncode, segmented.stderr) == (0, "")
    assert (work / "out" / "c200_report.html").exists()


def test_without_a_place_for_temporary_files_nothing_long_begins(place: Path, model: Model) -> None:
    _open_to_all(place / "untouched")
    words = "predict scans -m model -o untouched/out --threads 1".split()
    done = _without(words, place, writable=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("atlasnet predict: error: there is no folder for temporary files; found ")
    assert done.stderr.endswith("to mend it: name one with TMPDIR=FOLDER\n")
    assert not list((place / "untouched").iterdir())
    assert _without(["model", "info", "model"], place, writable=False).returncode == 0


def test_138_a_job_whose_time_is_nearly_over_ends_in_order_and_goes_on(place: Path, tmp_path: Path) -> None:
    options = "--atlases 1 --width 0.1 --registration centre --threads 1 --epochs 400 --sharing independent --quiet"
    words = ["train", str(place / "data"), "-o", str(tmp_path / "m"), *options.split()]
    job = subprocess.Popen(
        [sys.executable, "-m", "atlasnet.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL) and None,
    )
    for _ in range(3000):
        if any((tmp_path / "m").rglob("checkpoint-*.json")):
            break
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 128 + signal.SIGUSR1
    assert errors.strip() == "atlasnet train: stopped by SIGUSR1; the same command goes on from here"
    left = [path.name for path in (tmp_path / "m").rglob("*")]
    assert not {".lock", "lock"} & set(left)
    assert any(name.startswith("checkpoint-") for name in left)
    assert not [name for name in left if name.startswith(".checkpoint-")]


@pytest.mark.parametrize(("ended", "requeued"), [(0, ""), (2, ""), (138, "requeue 7"), (143, "")])
def test_the_job_script_of_the_docs_passes_on_what_became_of_the_training(
    ended: int, requeued: str, tmp_path: Path
) -> None:
    page = Path(__file__).parents[1] / "docs" / "gpu.md"
    (script,) = (
        block for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S) if "code=0" in block
    )
    for name, does in {"srun": f"exit {ended}", "scontrol": f'echo "$@" > {tmp_path}/said'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.defpath}", "SLURM_JOB_ID": "7"}
    for strict in ("", "set -eu\n"):
        done = subprocess.run(["bash", "-c", strict + script], env=settings, check=False)
        assert done.returncode == ended
        said = tmp_path / "said"
        assert (said.read_text(encoding="utf-8").strip() if said.exists() else "") == requeued


def test_jobs_side_by_side_write_whole_lines_into_one_log(place: Path, model: Model) -> None:
    line = "$A predict scans/c20{n}.nii.gz -m model -o shared --threads 1 --quiet --json --log shared.log"
    both = " & ".join(f"{line.format(n=n)} >{n}.json" for n in (0, 1))
    assert shell(f"{both} & wait", place).returncode == 0
    lines = (place / "shared.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [a-z]+ ", line) for line in lines)
    assert len([line for line in lines if "Z end exit code 0, " in line]) == 2
    for n in (0, 1):
        assert list(json.loads((place / f"{n}.json").read_text(encoding="utf-8"))["written"]) == [f"c20{n}"]

"""Disks that are full, and folders that may not be written: one line says so, nothing is half written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlasnet.cohort import Cohort
from atlasnet.execution import Execution
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from synthetic import write_place

RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
OPTIONS = FitOptions(atlases=1, width=0.25, preset=RECIPE, operator="centre")
ONE_THREAD = Execution(threads=1)
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]


def _can_mount() -> bool:
    """Whether a process may have file systems of its own, which end with it."""
    try:
        words = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/tmp"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not _can_mount(), reason="file systems of one's own (unshare and mount) needed"
)

# The start of every script: `disk` mounts one of so many KiB or makes the one that is there larger.
_BEFORE = """
import contextlib, io, json, shutil, subprocess, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from atlasnet.cli.main import main
place = Path(sys.argv[1])

def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)

def disk(folder, size, *options):
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", ",".join([f"size={{size}}k", *options]), "tmpfs", folder)

def run(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()

def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

found = {{}}
"""


def alone(script: str, place: Path) -> dict[str, Any]:
    """What a script of its own mounts notes in ``found``."""
    text = _BEFORE.format(tests=str(Path(__file__).parent)) + script + "\nprint(json.dumps(found))\n"
    words = [*OWN_MOUNTS, sys.executable, "-c", text, str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model, and two scans."""
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return fit(Cohort.read(place / "data"), place / "model", OPTIONS, execution=ONE_THREAD)


_WRITERS = """
import errno
import numpy as np, torch
from atlasnet.execution import atomic_path, pack, write_json
from atlasnet.network.weights import write_tensors
from atlasnet.transform import AffineMap, DisplacementMap, Transform, compose
from atlasnet.transform.itk import write_itk_field
from atlasnet.volume import Grid, Volume, write_volume
disk(place, 100)
grid = Grid.from_parts((40, 50, 60))
noise = Volume(np.random.default_rng(0).integers(-1000, 1000, grid.shape).astype(np.int16), grid)
dense = DisplacementMap(torch.rand(3, *grid.shape), grid)
def write_array(path, array):
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array(stream, array)

writers = {suffix: lambda path: write_volume(path, noise) for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")}
writers |= {
    "field.nii.gz": lambda path: write_itk_field(path, dense, grid),
    "field.mha": lambda path: write_itk_field(path, dense, grid),
    "map.safetensors": lambda path: Transform(compose(dense, AffineMap(np.eye(4))), dense).save(path),
    "weights": lambda path: write_tensors(path, {"a": torch.zeros(10**6)}, {}),
    "json": lambda path: write_json(path, "x" * 10**6),
    "m.zip": lambda path: pack(path, {"a": "x" * 10**6}),
    "array.npy": lambda path: write_array(path, noise.array),
}
for name, write in writers.items():
    path = place / f"v{name}"
    path.write_text("old")
    try:
        write(path)
        found[name] = "written"
    except OSError as error:
        named = path.name in str(error) and str(error).count(str(path)) < 2
        found[name] = [type(error).__name__, path.read_text(), left(place) == [path.name], named]
    path.unlink()
"""


def test_whatever_is_written_onto_a_full_disk_is_missed_and_the_old_file_stays(tmp_path: Path) -> None:
    found = alone(_WRITERS, tmp_path)
    assert len(found) == 12
    assert {name: what for name, what in found.items() if what != ["OSError", "old", True, True]} == {}


_PREDICTING = """
disk(place / "full", 24)
words = ["predict", place / "scans", "-m", place / "model", "-o", place / "full" / "out", "--agreement", "--threads", 1]
found["full"] = [*run(*words), left(place / "full")]
mount("-o", "remount,size=4m", place / "full")
found["again"] = [*run(*words), left(place / "full")]
"""


def test_predictions_that_a_disk_has_no_room_for_fail_and_are_made_when_it_has(place: Path, model: Model) -> None:
    found = alone(_PREDICTING, place)
    code, said, errors, left = found["full"]
    assert code == 1
    assert said.startswith("2 cases: ")
    assert "failed" in said
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("atlasnet predict: error: c20")
    assert not [name for name in left if "/." in name]
    whole = {name.removesuffix(".json") for name in left if name.endswith(".json")}
    assert len(whole) < 2  # a record is the last file of a case
    code, said, _, left = found["again"]
    assert code == 0
    assert "failed" not in said
    assert {"out/c200.json", "out/c201.json", "out/c201_entropy.nii.gz"} <= set(left)


_TRAINING = """
from atlasnet.cohort import Cohort
from atlasnet.errors import explained
from atlasnet.training.fit import fit
from test_disks import OPTIONS, ONE_THREAD
disk(place / "small", 16)
found["errors"] = []
for size in [*range(16, 400, 24), 8000]:
    mount("-o", f"remount,size={size}k", place / "small")
    try:
        made = fit(Cohort.read(place / "data"), place / "small" / "m", OPTIONS, execution=ONE_THREAD)
    except Exception as error:
        found["errors"].append([str(explained(error)), (place / "small" / "m" / "model.json").exists()])
        continue
    found["checksums"] = dict(made.checksums)
    break
"""


@pytest.mark.slow
def test_a_training_that_fills_the_disk_again_and_again_ends_in_the_same_bytes(place: Path, model: Model) -> None:
    found = alone(_TRAINING, place)
    assert len(found["errors"]) > 3
    for error, finished in found["errors"]:
        assert error.startswith("a file cannot be read or written: ")
        assert str(place / "small") in error
        assert not finished
    assert found["checksums"] == dict(model.checksums)


_READ_ONLY = """
shut = place / "shut"
shutil.copytree(place / "model", shut / "model")
mount("--bind", shut, shut)
mount("-o", "remount,bind,ro", shut)
scan, labels = place / "scans" / "c200.nii.gz", place / "data" / "labelsTr"
for name, words in {
    "train": ["train", place / "data", "-o", shut / "m", "--atlases", 1],
    "predict": ["predict", scan, "-m", place / "model", "-o", shut],
    "predict anew": ["predict", scan, "-m", place / "model", "-o", shut / "out"],
    "register": ["register", scan, place / "scans" / "c201.nii.gz", "-o", shut],
    "log": ["model", "info", place / "model", "--log", shut / "log"],
    "evaluate": ["evaluate", labels, labels, "-o", shut / "table.json"],
    "a model there": ["predict", scan, "-m", shut / "model", "-o", place / "from there"],
}.items():
    found[name] = run(*words)
"""


def test_a_folder_that_may_not_be_written_is_said_to_be_one_before_any_work(place: Path, model: Model) -> None:
    found = alone(_READ_ONLY, place)
    for name in ("train", "predict", "predict anew", "register", "evaluate", "log"):
        code, said, errors = found[name]
        assert (code, said, len(errors.splitlines())) == (2, "", 1), name
        assert "Read-only file system" in errors
        assert "to mend it" in errors
    assert found["a model there"][0] == 0

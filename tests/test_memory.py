"""Memory: what is left, what a piece of work takes, and that work is refused that cannot be held."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cohort import Cohort
from atlasnet.errors import InputError, explained
from atlasnet.execution import Execution, memory_held, memory_left
from atlasnet.network import NetworkSpec, Traits, build_network
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.prediction.memory import prediction_bytes
from atlasnet.registration import FIXED_BYTES, make_operator, registration_bytes
from atlasnet.training.fit import fit
from atlasnet.training.memory import mapping_bytes, step_bytes
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Grid, Volume, write_volume
from synthetic import subject, write_cohort

GIB = 2**30
linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0)
QUICK = FitOptions(atlases=("s0",), width=0.25, preset=RECIPE, operator="affine")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 8 GiB that are free, 1 GiB of them swap, and a process in no control group."""
    write(
        tmp_path / "proc",
        {
            "meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {7 * 2**20} kB\nSwapFree: {2**20} kB\n",
            "self/cgroup": "0::/\n",
            "self/statm": "100 50 0 0 0 0 0\n",
        },
    )
    return tmp_path / "proc"


def left(proc: Path, groups: Path) -> float:
    room = memory_left(proc, groups)
    assert room is not None
    return room.bytes / GIB


def test_without_limits_what_the_machine_has_free_is_left(proc: Path, tmp_path: Path) -> None:
    assert left(proc, tmp_path / "none") == 8


@pytest.mark.parametrize(("used", "files", "expected"), [(1, 0, 3), (3, 2, 3), (5, 0, -1)])
@pytest.mark.parametrize("kind", ["inactive", "active"])
def test_a_control_group_leaves_its_limit_without_what_it_uses_but_for_files(
    proc: Path, tmp_path: Path, kind: str, used: int, files: int, expected: int
) -> None:
    groups = tmp_path / "groups"
    stat = f"anon 5\n{kind}_file {files * GIB}\n"
    write(groups, {"memory.max": f"{4 * GIB}\n", "memory.current": f"{used * GIB}\n", "memory.stat": stat})
    assert left(proc, groups) == expected


def test_the_groups_around_a_group_count_too(proc: Path, tmp_path: Path) -> None:
    write(proc, {"self/cgroup": "0::/outer/inner\n"})
    none = {"memory.current": "0\n", "memory.stat": ""}
    for group, limit in (("outer/inner", "max"), ("outer", str(2 * GIB)), (".", "max")):
        write(tmp_path / "groups" / group, {"memory.max": f"{limit}\n", **none})
    assert left(proc, tmp_path / "groups") == 2


def test_groups_of_the_first_version_are_read(proc: Path, tmp_path: Path) -> None:
    write(proc, {"self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/0123\n"})
    limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
    stat = f"total_inactive_file {GIB // 2}\ntotal_active_file {GIB // 2}\n"
    # In a container, the host's path is not there; the mount shows the container's own group.
    write(tmp_path / "groups/memory", {limit: f"{6 * GIB}\n", usage: f"{2 * GIB}\n", "memory.stat": stat})
    assert left(proc, tmp_path / "groups") == 5


@linux
def test_a_limit_of_the_address_space_counts_what_is_taken_of_it() -> None:
    script = """
import resource
from atlasnet.execution import memory_left
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, -1))
room = memory_left()
print(room.bytes, room.what)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found, what = done.stdout.split(maxsplit=1)
    assert 0.9 * 2**28 < int(found) <= 2**28
    assert "ulimit -v" in what


def test_what_is_held_is_in_memory() -> None:
    before = memory_held()
    array = np.ones(2**25)
    assert memory_held() - before > 0.9 * array.nbytes


# Estimates


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", QUICK)


def test_estimates_grow_with_the_scan_and_with_what_is_asked_for(model: Model) -> None:
    predictor = Predictor(model)
    scan, twice = (Grid.from_parts((n, 512, 512), (0.7, 0.7, 1.0)) for n in (400, 800))
    plain, voxels = prediction_bytes(predictor.members, scan, PredictOptions()), scan.voxels
    assert 8 * voxels < prediction_bytes(predictor.members, twice, PredictOptions()) - plain < 24 * voxels
    maps = prediction_bytes(predictor.members, scan, PredictOptions(probabilities=True, agreement=True))
    assert maps - plain > (3 + 2) * 4 * voxels  # classes, and two maps, in float32
    operator = make_operator("mrf")
    pair = registration_bytes(scan, scan, 1, operator)
    assert pair > 2 * 4 * voxels + 3 * 4 * voxels  # two images and a displacement
    assert registration_bytes(scan, scan, 2, operator) - pair > 2 * 4 * voxels
    assert registration_bytes(scan, scan, 1, operator, fields=True) - pair > 24 * voxels
    assert mapping_bytes([scan, twice], 1, 2, operator) > mapping_bytes([scan, scan], 1, 1, operator)


_FREED = """
from atlasnet.execution import give_back_memory, memory_held
blocks = [bytearray(100_000) for _ in range(2000)]  # below the size from which glibc maps a block by itself
del blocks[:-1]
before = memory_held()  # the last block holds down what lies below it
give_back_memory()
print(before - memory_held())
"""


@linux
def test_memory_that_was_freed_is_given_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150 * 1e6


_AGAIN = """
import resource, torch
from atlasnet.execution import kept_memory
with kept_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(12 * 2**20)  # beyond the largest threshold from which glibc can be told to map
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@linux
def test_while_memory_is_kept_large_tensors_take_pages_that_were_freed() -> None:
    done = subprocess.run([sys.executable, "-c", _AGAIN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 12 * 2**20 * 4 / 4096  # the pages of three of the ten


_STEP = """
import json, sys, torch
from atlasnet.execution import give_back_memory, kept_memory, memory_held, peak_memory
from atlasnet.network import NetworkSpec, Traits, build_network
from atlasnet.network.weights import tensor_channels_last
from atlasnet.training.loss import segmentation_loss
from atlasnet.training.memory import step_bytes
name, width, shape, classes = json.loads(sys.argv[1])
torch.set_num_threads(1)
module = build_network(NetworkSpec(name, width), 1, classes)
optimiser = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
traits = Traits.of(module)
batch, *sides = shape
images, target = torch.zeros(batch, traits.input_channels(1), *sides), torch.zeros(shape, dtype=torch.int64)
estimate = step_bytes(module, traits, 1, target.numel())
give_back_memory()
before = memory_held()
with kept_memory():
    for _ in range(2):
        optimiser.zero_grad()
        segmentation_loss(module(tensor_channels_last(images)), target, None, dice=True).backward()
        optimiser.step()
print(estimate, peak_memory() - before)
"""


@linux
@pytest.mark.parametrize(
    "network",
    [
        ("segnet", 0.5, (4, 96, 96), 4),
        ("unet3d", 1.0, (2, 32, 48, 48), 4),
        ("unet", 0.25, (10, 96, 96), 105),
        ("unet", 1.0, (10, 96, 96), 4),
    ],
)
def test_a_step_takes_about_what_is_said(network: tuple[str, float, tuple[int, ...], int]) -> None:
    words = [sys.executable, "-c", _STEP, json.dumps(network)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    estimate, held = map(float, done.stdout.split())
    assert 0.75 * held < estimate < 2 * held  # as the documentation says of estimates


@pytest.mark.parametrize(("network", "sides"), [("segnet", (160, 160)), ("unet3d", (24, 64, 64))])
def test_a_step_on_cases_without_many_labels_takes_their_probabilities_once_more(
    network: str, sides: tuple[int, ...]
) -> None:
    module = build_network(NetworkSpec(network, 0.25), 1, 21)
    traits, voxels = Traits.of(module), 2 * math.prod(sides)
    shown = np.tile(np.arange(21), (3, 1))
    shown[1, 2:] = 0  # of the second case the first label alone was annotated
    several, all_of_them = (step_bytes(module, traits, 1, voxels, own) for own in (shown, None))
    assert several - all_of_them > 20 * 4 * voxels  # float32, of the background and 19 labels
    assert step_bytes(module, traits, 1, voxels, shown[[0]]) < all_of_them + 4 * 4 * voxels


_MEASURED = """
import resource, sys
from pathlib import Path
from atlasnet.execution import Execution, memory_held, peak_memory
from atlasnet.prediction import PredictOptions, Predictor, find_cases, predict_cases
from atlasnet.training.model import Model
folder = Path(sys.argv[1])
# The limit refuses what is more; a check would find a few pages fewer left than were there when it was set.
execution = Execution(threads=1, check_memory=False)
predictor = Predictor(Model.load(folder / "m"), execution=execution)
before = memory_held()
(case,) = find_cases([folder / "scan.nii"], 1)
options = PredictOptions()
estimate = predictor.require_memory(case.read_grid(), options) - before
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + estimate, -1))
batch = predict_cases(predictor, [case], {case.name: folder / "out.nii"}, options)
assert batch.written, batch
print(estimate, peak_memory() - before)
"""


@linux
def test_a_peak_is_not_that_of_the_process_which_started_this_one() -> None:
    held = np.ones(2**26)  # 512 MiB
    code = "from atlasnet.execution import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**22 < int(done.stdout) < held.nbytes


@linux
def test_a_large_scan_is_segmented_in_no_more_memory_than_is_said_under_a_limit_of_that(
    model: Model, tmp_path: Path
) -> None:
    image, _ = subject(101)
    size, spacing = (80, 256, 256), image.grid.spacing * image.grid.size / (256, 256, 80)
    z, y, x = (np.arange(n) * m // n for n, m in zip(size, image.grid.shape, strict=True))
    noise = np.random.default_rng(0).normal(scale=10, size=size)
    large = (noise + image.array[0][np.ix_(z, y, x)]).astype(np.int16)
    write_volume(tmp_path / "scan.nii", Volume(large, Grid.from_parts(size, spacing, image.grid.origin)))
    (tmp_path / "m").symlink_to(model.folder)
    words = [sys.executable, "-c", _MEASURED, str(tmp_path)]
    # On a busy machine glibc makes an arena for each thread, of 64 MiB of addresses that nothing is written to.
    arenas = os.environ | {"MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=arenas)
    assert done.returncode == 0, done.stderr
    estimate, held = map(int, done.stdout.split())
    assert held <= estimate <= 2 * held + FIXED_BYTES
    assert held > 4 * large.size


# Refusals

# Commands one after the other: libraries take seconds to load, and their room is counted before the limit is set.
_LIMITED = """
import contextlib, io, json, resource, sys
import SimpleITK, torch
import atlasnet.prediction, atlasnet.study
from atlasnet.cli.main import main
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 600 * 2**20, -1))
done = {}
for name, words in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, "--threads", "1"])
    done[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(done))
"""


def limited(commands: dict[str, list[object]]) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and messages of commands that may take 600 MiB of address space."""
    words = json.dumps({name: [str(word) for word in command] for name, command in commands.items()})
    done = subprocess.run([sys.executable, "-c", _LIMITED, words], capture_output=True, text=True, check=True)
    return {name: tuple(found) for name, found in json.loads(done.stdout).items()}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A scan of 50 million voxels, all of them 0, in a sparse file."""
    path = tmp_path / "scans" / "large.nii"
    write_volume(path, Volume(np.zeros((1, 1, 1), np.int16), Grid.from_parts((1, 1, 1), (0.5, 0.5, 0.5))))
    header = bytearray(path.read_bytes()[:352])
    header[40:48] = np.array([3, 500, 500, 200], "<i2").tobytes()
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(352 + 2 * 500 * 500 * 200)
    return path


@linux
def test_what_memory_does_not_suffice_for_is_refused_before_it_begins(
    cohort: Cohort, model: Model, large: Path, tmp_path: Path
) -> None:
    write_volume(large.parent / "small.nii", subject(101)[0])
    data, out = write_cohort(tmp_path / "data", range(0)), tmp_path / "out"
    for place in ("imagesTr/a_0000.nii", "labelsTr/a.nii", "imagesTr/b_0000.nii", "labelsTr/b.nii"):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        (data / place).symlink_to(large)
    declared = data / "dataset.json"
    declared.write_text(declared.read_text(encoding="utf-8").replace(".nii.gz", ".nii"), encoding="utf-8")
    model.plan.write(out / "model" / "plan.json")
    done = limited(
        {
            "folder": ["predict", large.parent, "-m", model.folder, "-o", out / "cases", "--json"],
            "predict": ["predict", large, "-m", model.folder, "-o", out / "one.nii"],
            "register": ["register", large, cohort.subjects[0].images[0], "-o", out / "map"],
            "train": ["train", data, "-o", out / "model", "--atlases", "1"],
            "step": ["train", cohort.root, "-o", tmp_path / "wide", "--width", "8", "--registration", "affine"],
        }
    )
    for verb in ("predict", "register", "train"):
        code, _, said = done[verb]
        assert code == 2
        for part in ("memory does not suffice", "GiB", "ulimit -v", "crop or resample", "--no-memory-check"):
            assert part in said
    code, _, said = done["step"]  # its network is known when all is mapped
    assert code == 2
    for part in ("memory does not suffice", "batch_size", "plan.json", "--no-memory-check"):
        assert part in said
    assert not list((tmp_path / "wide").rglob("network.safetensors"))
    found = json.loads(done["folder"][1])
    assert done["folder"][0] == 1
    assert set(found["written"]) == {"small"}  # the others go on
    assert "large.nii: the memory does not suffice" in found["failed"]["large"]
    record = json.loads((out / "cases" / "small.json").read_text(encoding="utf-8"))
    assert record["estimated_memory_mib"] > 100
    left_behind = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert not any("large" in name or "one" in name or "map" in name for name in left_behind)
    assert not any("registrations" in name or "mapped" in name for name in left_behind)


_LOADING = """
import resource, sys
import numpy  # whose library ends the process by itself
from atlasnet.cli.main import main
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * 2**20, -1))
sys.exit(main(sys.argv[1:]))
"""


@linux
@pytest.mark.parametrize("verb", ["train", "check"])
def test_libraries_that_memory_does_not_suffice_for_are_an_error_as_any_other(
    cohort: Cohort, tmp_path: Path, verb: str
) -> None:
    words = [verb, str(cohort.root), *(["-o", str(tmp_path / "m")] if verb == "train" else [])]
    done = subprocess.run([sys.executable, "-c", _LOADING, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"atlasnet {verb}: error: the memory does not suffice")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "m").exists()


@linux
def test_what_seldom_has_another_reason_is_said_to_be_a_lack_of_memory_it_seems() -> None:
    before = threading.stack_size(2**46)
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    for problem in (caught.value, RuntimeError("could not create a primitive")):  # as oneDNN says it
        assert str(explained(problem)).startswith("the memory does not suffice, it seems")


def test_the_check_can_be_left_out() -> None:
    Execution(check_memory=False).require_memory(1e30, "nothing")
    with pytest.raises(InputError, match="memory does not suffice"):
        Execution().require_memory(1e30, "nothing")

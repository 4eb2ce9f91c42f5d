"""How many threads a process takes by default, in containers and jobs that may use part of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlasnet.execution.control_groups import available_threads


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A machine of 64 processors, all for this process: its ``/proc`` and ``/sys/fs/cgroup``."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    return tmp_path / "proc", tmp_path / "cgroup"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("limit", "threads"), [("max 100000", 64), ("400000 100000", 4), ("150000 100000", 2), ("20000 100000", 1)]
)
def test_a_container_has_the_threads_of_its_share_of_time(limit: str, threads: int, places: tuple[Path, Path]) -> None:
    proc, cgroups = places
    write(proc, {"self/cgroup": "0::/\n"})
    write(cgroups, {"cpu.max": f"{limit}\n"})
    assert available_threads(proc, cgroups, {}) == threads


def test_the_group_around_a_job_s_group_counts_too(places: tuple[Path, Path]) -> None:
    proc, cgroups = places
    write(proc, {"self/cgroup": "0::/slurm/job_1/step_0\n"})
    write(cgroups, {"slurm/job_1/step_0/cpu.max": "max 100000\n", "slurm/job_1/cpu.max": "800000 100000\n"})
    assert available_threads(proc, cgroups, {}) == 8


@pytest.mark.parametrize(("quota", "threads"), [("-1", 64), ("300000", 3)])
def test_version_1_of_control_groups_is_read(quota: str, threads: int, places: tuple[Path, Path]) -> None:
    proc, cgroups = places
    write(proc, {"self/cgroup": "7:memory:/docker/01\n5:cpu,cpuacct:/docker/01\n"})
    write(cgroups / "cpu", {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": "100000\n"})  # what a container sees
    assert available_threads(proc, cgroups, {}) == threads


@pytest.mark.parametrize(
    ("said", "threads"),
    [
        ({}, 64),
        ({"OMP_NUM_THREADS": "6"}, 6),
        ({"OMP_NUM_THREADS": "6,2"}, 6),  # of loops within loops
        ({"SLURM_CPUS_PER_TASK": "8"}, 8),
        ({"SLURM_CPUS_PER_TASK": "8", "OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "200"}, 64),
        ({"OMP_NUM_THREADS": "0", "SLURM_CPUS_PER_TASK": "all"}, 64),
    ],
)
def test_what_the_job_says_of_itself_is_the_most(said: dict[str, str], threads: int, places: tuple[Path, Path]) -> None:
    assert available_threads(*places, said) == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system with affinities needed")
def test_a_process_bound_to_one_processor_takes_one_thread() -> None:
    bind = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    script = f"{bind}; from atlasnet.execution import Execution; print(Execution().threads)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"

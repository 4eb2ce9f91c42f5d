"""What Linux's control groups, of containers and batch systems, allow this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def control_groups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that a process is in, and of those that these are in; there need be none.

    Args:
        controller: ``memory`` or ``cpu``.
        proc: where Linux describes processes (proc(5)).
        cgroups: where control groups are mounted (cgroups(7)).

    Yields:
        a folder, and the version of its control groups, 1 or 2.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = cgroups, 2
        elif controller in controllers.split(","):
            root, version = cgroups / controller, 1
        else:
            continue
        place = root / path.lstrip("/")
        # In a container the path may be that of the host, of which only the mount's root is seen.
        for folder in (place, *place.parents):
            yield folder, version
            if folder == root:
                break


def available_threads(proc: Path = PROC, cgroups: Path = CGROUPS, environment: Mapping[str, str] = os.environ) -> int:
    """The processors that this process may use: at least one.

    No more than its affinity (cpusets, ``taskset``), than a limit of its processor time comes to (``docker --cpus``,
    Kubernetes), and than ``OMP_NUM_THREADS`` and ``SLURM_CPUS_PER_TASK`` say.

    Args:
        proc: as in `control_groups`.
        cgroups: as in `control_groups`.
        environment: variables by name.
    """
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [_share(folder, version) for folder, version in control_groups("cpu", proc, cgroups)]
    said = [environment.get(name, "").split(",")[0] for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")]
    wanted = [int(text) for text in said if text.strip().isdecimal() and int(text) > 0]
    return max(1, min([most, *wanted, *(round(share) for share in shares if share is not None)]))


def _share(folder: Path, version: int) -> float | None:
    """How many processors' time a group may use; None without a limit."""
    try:
        if version == 2:
            quota, period = map(int, (folder / "cpu.max").read_text(encoding="ascii").split())  # else "max 100000"
        else:
            quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))  # -1 without a limit
            period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None

"""How much memory this process may still take, and a refusal to begin what it cannot hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atlasnet.errors import InputError
from atlasnet.execution.control_groups import CGROUPS, PROC, control_groups

GIB = 2**30


@dataclass(frozen=True)
class Room:
    """Memory that is left.

    Args:
        bytes: how much.
        what: sets the limit.
    """

    bytes: int
    what: str


def memory_left(proc: Path = PROC, cgroups: Path = CGROUPS) -> Room | None:
    """What this process may take beyond what it has: the least that machine, control group and ``ulimit`` leave.

    Args:
        proc: where Linux describes processes and memory (proc(5)).
        cgroups: where control groups are mounted (Linux's cgroup-v2 and cgroup-v1/memory documentation).

    Returns:
        None where the system tells nothing of the kind.
    """
    rooms = [_machine(proc), *_groups(proc, cgroups), _address_space(proc)]
    return min((room for room in rooms if room is not None), key=lambda room: room.bytes, default=None)


def memory_held() -> int:
    """Bytes that this process has in memory now; 0 where the system does not tell."""
    return _held(PROC, 1)


def require_memory(needed: float, remedy: str, path: Path | None = None) -> None:
    """Refuse work that would run out of memory.

    Args:
        needed: bytes beyond what the process has.
        remedy: what makes it less.
        path: what is to be worked on.

    Raises:
        InputError: `memory_left` is less than that.
    """
    room = memory_left()
    if room is not None and needed > room.bytes:
        raise InputError(
            "the memory does not suffice",
            path=path,
            expected=f"about {needed / GIB:.1f} GiB",
            found=f"{max(room.bytes, 0) / GIB:.1f} GiB, which {room.what}",
            remedy=f"{remedy}, or give --no-memory-check to try all the same",
        )


def _machine(proc: Path) -> Room | None:
    """Memory that is free or can be freed, and swap; elsewhere than on Linux all that is built in."""
    what = "the machine has left"
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        fields = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return Room(1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0)), what)
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:
        return Room(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine has")
    except (AttributeError, OSError, ValueError):
        return None


def _groups(proc: Path, cgroups: Path) -> list[Room]:
    """What the control groups of this process leave, those that they are in included."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }
    rooms = [_group(folder, *names[version]) for folder, version in control_groups("memory", proc, cgroups)]
    return [room for room in rooms if room is not None]


def _group(folder: Path, limit: str, usage: str, prefix: str) -> Room | None:
    """What one group leaves: its limit without what it uses, but for files that can be dropped from memory."""
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
        rows = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        # A file that was read twice is active; it is dropped all the same where memory runs short.
        used -= sum(int(rows.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return Room(most - used, "the limit of the control group leaves")


def _address_space(proc: Path) -> Room | None:
    """What ``ulimit -v`` leaves."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    return Room(soft - _held(proc, 0), "the limit of the address space (ulimit -v) leaves")


def _held(proc: Path, field: int) -> int:
    """Bytes that this process has: 0 of its address space, 1 in memory; 0 where the system does not tell."""
    try:
        return int((proc / "self" / "statm").read_text(encoding="ascii").split()[field]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0

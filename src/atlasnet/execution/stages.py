"""What the stages of a piece of work took: seconds, and the memory that had been needed by their end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass
class Stages:
    """Seconds and peak memory by stage; a stage may be entered several times.

    Args:
        seconds: that were spent in each.
        peak_mib: the most memory that the process had held when the stage was last left, MiB. It never falls, so the
            stage at which it rises is the one that needs it. Empty where the system does not tell.
        gpu_mib: the same of the tensors on ``device``, by ``torch.cuda.max_memory_allocated``; empty without CUDA.
        device: torch device name.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    gpu_mib: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what happens inside as part of ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            peak = peak_memory()
            if peak is not None:
                self.peak_mib[stage] = peak / MIB
            if self.device.startswith("cuda"):
                import torch

                self.gpu_mib[stage] = torch.cuda.max_memory_allocated(self.device) / MIB

    def copy(self) -> Stages:
        """The same figures, to be counted on."""
        return Stages(dict(self.seconds), dict(self.peak_mib), dict(self.gpu_mib), self.device)

    def to_json(self) -> dict[str, dict[str, float]]:
        """``seconds``, ``peak_memory_mib`` and, with CUDA, ``peak_gpu_memory_mib``, each by stage, rounded."""
        found = {
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "peak_memory_mib": {stage: round(value, 1) for stage, value in self.peak_mib.items()},
        }
        if self.gpu_mib:
            found["peak_gpu_memory_mib"] = {stage: round(value, 1) for stage, value in self.gpu_mib.items()}
        return found


def peak_memory() -> int | None:
    """The most bytes that this process has held in memory so far; None where the system does not tell."""
    try:
        # What `getrusage` says on Linux is also that of the process which started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

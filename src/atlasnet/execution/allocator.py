"""What becomes of freed memory: kept for the next tensors while a network is trained, given back between scans."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# glibc's own adapt themselves up to these. Once they are set they do not, and small ones would have every tensor mapped
# and its pages faulted in.
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_LARGEST_TRIM_THRESHOLD = 2 * _LARGEST_MMAP_THRESHOLD
_MOST_MAPPED = 2**16  # tensors at a time, glibc's own


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside the block, glibc neither maps tensors one by one nor gives freed ones back; elsewhere nothing changes.

    Training on a CPU allocates the same tensors in each iteration; without this a fifth of its time goes into page
    faults, and with a hundred classes, whose probabilities are larger than the largest threshold, a half.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _MOST_MAPPED)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
        give_back_memory()


def give_back_memory() -> None:
    """Give the system what was freed and glibc still holds, in every arena, and a GPU what torch still holds there.

    A process that segments scan after scan would otherwise hold, between them, what the largest pieces left behind.
    Nothing happens with another C library.
    """
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where there is none, as on other systems and with other C libraries."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

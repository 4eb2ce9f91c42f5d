"""What is opened once where one scan is read several times: its grid, its voxels, what its headers say."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_KEPT: ContextVar[tuple[ExitStack, dict[Hashable, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def kept_open() -> Iterator[None]:
    """Within the block, what `opened` opens stays open and is not opened again; files must not change meanwhile."""
    with ExitStack() as stack:
        token = _KEPT.set((stack, {}))
        try:
            yield
        finally:
            _KEPT.reset(token)


@contextmanager
def opened(key: Hashable, make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """What ``make`` opens, for this block; within `kept_open` what was opened under the same key before.

    Args:
        key: what tells it from all else that is opened.
        make: opens it.
    """
    kept = _KEPT.get()
    if kept is None:
        with make() as found:
            yield found
        return
    stack, known = kept
    if key not in known:
        known[key] = stack.enter_context(make())
    yield known[key]

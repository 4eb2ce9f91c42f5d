"""Pieces of work side by side in threads, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_ASKED = 0.1  # seconds after which whoever waits looks whether it shall go on


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    jobs: int,
    *,
    pause: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> Generator[R]:
    """What ``work`` gives for each item, in their order.

    Items are taken in the caller's thread, at most ``jobs`` before their results are asked for, so that no more of them
    are in memory. Where one raises, or the caller asks for no more, nothing that has not begun is done.

    Args:
        work: is called in several threads; numpy and SciPy let them run at the same time.
        items: in order.
        jobs: how many at a time; one is done in the caller's thread.
        pause: is called again and again in the caller's thread while it waits; may raise.
        stop: is called when no more is asked for; what is under way, which is waited for, may end early then.
    """
    if jobs == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == jobs:
                    yield _awaited(waiting.popleft(), pause)
            while waiting:
                yield _awaited(waiting.popleft(), pause)
        finally:
            stop()
            for future in waiting:
                future.cancel()


def _awaited(future: Future[R], pause: Callable[[], None]) -> R:
    while not wait([future], _ASKED).done:
        pause()
    return future.result()

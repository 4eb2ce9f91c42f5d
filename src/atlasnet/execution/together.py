"""Independent pieces of work one after the other, or several at a time where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from atlasnet.execution.context import Execution

Item = TypeVar("Item")
Result = TypeVar("Result")

# A GPU that is given many small operations waits for the thread that gives them: so many threads keep it busy.
AT_ONCE_ON_GPU = 3


def each(function: Callable[[Item], Result], items: Sequence[Item], execution: Execution) -> Iterator[Result]:
    """What ``function`` gives for each item, in their order; on a GPU for several items at a time, in threads.

    Where one fails, those that have begun are waited for and no more are begun.

    Raises:
        Cancelled: the caller asked for it.
    """
    if len(items) < 2 or execution.torch_device().type == "cpu":
        for item in items:
            execution.pause()
            yield function(item)
        return

    def checked(item: Item) -> Result:
        execution.pause()
        return function(item)

    pool = ThreadPoolExecutor(AT_ONCE_ON_GPU)
    try:
        begun: list[Future[Result]] = [pool.submit(checked, item) for item in items]
        for future in begun:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)

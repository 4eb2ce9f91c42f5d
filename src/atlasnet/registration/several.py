"""One image onto several targets: side by side where that is faster, with the same maps as one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Event

from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution, NamingReporter, SilentReporter, in_order, memory_left
from atlasnet.registration.memory import THREAD_BYTES, work_bytes
from atlasnet.registration.operator import Operator, Registration, labelled
from atlasnet.volume import Grid, Volume


@dataclass(frozen=True, eq=False)
class Target:
    """What an image is registered onto.

    Args:
        name: before warnings.
        image: (c, z, y, x).
        labels: (1, z, y, x) of it, for operators whose weights depend on the tissue; None: it has none.
    """

    name: str
    image: Volume
    labels: Volume | None = None


def at_a_time(operator: Operator, targets: Sequence[Grid], execution: Execution) -> int:
    """How many registrations are made at a time: as many as there are threads, within half the memory that is left.

    A thread for each is faster than all threads for one after the other, which wait for each other many thousand times
    (``benchmarks/results/side_by_side.json``). A GPU has enough to do with one.

    Args:
        operator: registers; one at a time unless it says that it may be ``side_by_side``.
        targets: onto these.
        execution: where to compute.
    """
    most = min(len(targets), execution.threads)
    if most <= 1 or not getattr(operator, "side_by_side", False) or execution.torch_device().type != "cpu":
        return 1
    left = memory_left()
    if left is None:
        return most
    each = THREAD_BYTES + max(work_bytes(target, operator) for target in targets)
    return max(1, min(most, left.bytes // 2 // each))


def register_each(
    operator: Operator, source: Volume, targets: Sequence[Target], execution: Execution
) -> Generator[Registration | RegistrationError]:
    """Register an image onto each of the targets.

    Whoever may stop asking, by an error too, closes it: an error keeps alive what was under way where it was raised.

    Args:
        operator: registers.
        source: (c, z, y, x).
        targets: in any number.
        execution: device, threads, seed, progress. Where several are made at a time, they share the threads.

    Yields:
        In the order of the targets the registration, or why there is no acceptable map.

    Raises:
        VolumeError: the image and the target whose turn it is do not fit each other.
        Cancelled: on request.
    """
    jobs = at_a_time(operator, [target.image.grid for target in targets], execution)
    stopped = Event()
    each = replace(
        execution,
        threads=max(1, execution.threads // jobs),
        # The caller's own, which may be of a window, is asked in the caller's thread only.
        cancelled=execution.cancelled if jobs == 1 else stopped.is_set,
    )

    def made(target: Target) -> tuple[Registration | RegistrationError, list[str]]:
        heard = SilentReporter()
        try:
            (found,) = operator.register(
                source, [target.image], execution=replace(each, reporter=heard), **labelled(operator, [target.labels])
            )
        except RegistrationError as error:
            return error, heard.warnings
        return found, heard.warnings

    def awaited() -> Iterator[Target]:
        for target in targets:
            execution.pause()
            yield target

    # What is set for all threads of the process is set here, once: those that end would undo it for the others.
    everything = in_order(made, awaited(), jobs, pause=execution.pause, stop=stopped.set)
    with execution.active(), closing(everything):
        for target, (found, warnings) in zip(targets, everything, strict=True):
            told = NamingReporter(execution.reporter, target.name)
            for warning in warnings:
                told.warn(warning)
            yield found

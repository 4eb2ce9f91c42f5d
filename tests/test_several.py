"""One image onto several targets: side by side or one after the other, the same maps in the same order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlasnet.errors import Cancelled, RegistrationError, VolumeError
from atlasnet.execution import Execution, SilentReporter, WorkFolder
from atlasnet.execution.memory import Room
from atlasnet.registration import (
    Registration,
    Target,
    at_a_time,
    make_operator,
    mrf,
    register_each,
    several,
    work_bytes,
)
from atlasnet.registration.memory import THREAD_BYTES
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.sources import Keyed
from atlasnet.transform import DisplacementMap, Transform, inverse_on
from atlasnet.volume import Volume
from synthetic import subject

WAIT = 60.0  # seconds, after which a test has failed


class Meeting:
    """Registers nothing; some of its calls wait for each other.

    Args:
        parties: how many calls wait for each other.
        fails: the numbers of targets, told by their first voxel, with what is raised for them.
    """

    name = "meeting"
    side_by_side = True

    def __init__(self, parties: int = 1, fails: dict[int, Exception] | None = None) -> None:
        self.meet, self.fails = threading.Barrier(parties, timeout=WAIT), fails or {}
        self.calls: list[tuple[int, int, threading.Thread]] = []

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def register(
        self, source: Volume, targets: Sequence[Volume], *, execution: Execution, **_: Any
    ) -> list[Registration]:
        """The identity, with the number of the target as its quality."""
        number = int(targets[0].array.flat[0])
        self.calls.append((number, execution.threads, threading.current_thread()))
        self.meet.wait()
        execution.reporter.warn(f"number {number}")
        if number in self.fails:
            raise self.fails[number]
        return [Registration(Transform.identity(), {"operator": self.name, "quality": number / 10})]


def numbered(count: int) -> list[Target]:
    image = subject(0)[0]
    return [Target(f"t{number}", image.replace(np.full_like(image.array, number))) for number in range(count)]


def qualities(found: Iterator[Registration | RegistrationError]) -> list[float | str]:
    return [str(one) if isinstance(one, RegistrationError) else one.record["quality"] for one in found]


@pytest.mark.parametrize("name", ["mrf", "affine"])
def test_maps_are_the_same_bytes_one_after_the_other_and_side_by_side(name: str) -> None:
    operator, source = make_operator(name), subject(0)[0]
    targets = [Target(f"s{seed}", subject(seed)[0]) for seed in (1, 2, 3)]
    alone = list(register_each(operator, source, targets, Execution(threads=1)))
    assert at_a_time(operator, [target.image.grid for target in targets], Execution(threads=3)) == 3
    together = list(register_each(operator, source, targets, Execution(threads=3)))
    for target, one, other in zip(targets, alone, together, strict=True):
        assert isinstance(one, Registration)
        assert isinstance(other, Registration)
        assert one.record["quality"] == other.record["quality"] > 0.2
        assert torch.equal(*(found.transform.displacement(target.image.grid) for found in (one, other)))
        assert torch.equal(*(found.transform.inverse.displacement(source.grid) for found in (one, other)))


def test_they_are_made_at_the_same_time_in_threads_that_share() -> None:
    operator, told = Meeting(parties=6), SilentReporter()
    found = register_each(operator, subject(0)[0], numbered(6), Execution(threads=7, reporter=told))
    assert qualities(found) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert {threads for _, threads, _ in operator.calls} == {1}
    assert len({thread for *_, thread in operator.calls}) == 6
    # Whichever of them said it first.
    assert told.warnings == [f"t{number}: number {number}" for number in range(6)]
    two = Meeting(parties=2)
    assert qualities(register_each(two, subject(0)[0], numbered(2), Execution(threads=7))) == [0.0, 0.1]
    assert [threads for _, threads, _ in two.calls] == [3, 3]


def test_who_does_not_say_that_it_may_be_is_called_by_one_thread() -> None:
    operator = Meeting()
    operator.side_by_side = False
    assert qualities(register_each(operator, subject(0)[0], numbered(3), Execution(threads=4))) == [0.0, 0.1, 0.2]
    assert {(threads, thread) for _, threads, thread in operator.calls} == {(4, threading.current_thread())}


def test_as_many_as_half_the_memory_that_is_left_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, grids = make_operator("mrf"), [subject(0)[0].grid, subject(0, shape=(20, 40, 40))[0].grid] * 4
    each = THREAD_BYTES + max(work_bytes(grid, operator) for grid in grids)
    for left, expected in ((1, 1), (3 * each, 1), (4 * each, 2), (11 * each, 5), (40 * each, 6)):
        monkeypatch.setattr(several, "memory_left", lambda left=left: Room(left, "a test leaves"))
        assert at_a_time(operator, grids, Execution(threads=6)) == expected
    monkeypatch.setattr(several, "memory_left", lambda: None)
    assert at_a_time(operator, grids, Execution(threads=6)) == 6
    assert at_a_time(operator, grids, Execution(threads=1)) == 1
    assert at_a_time(operator, grids[:2], Execution(threads=6)) == 2
    assert at_a_time(operator, [], Execution(threads=6)) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_map_that_is_not_found_costs_no_other(threads: int) -> None:
    operator = Meeting(fails={1: RegistrationError("not onto this one")})
    found = qualities(register_each(operator, subject(0)[0], numbered(4), Execution(threads=threads)))
    assert found == [0.0, "not onto this one", 0.2, 0.3]


class Endless(Meeting):
    """Its registrations onto all targets but those that fail end only when they are stopped."""

    ended = 0

    def register(
        self, source: Volume, targets: Sequence[Volume], *, execution: Execution, **rest: Any
    ) -> list[Registration]:
        """Wait to be stopped."""
        made = super().register(source, targets, execution=execution, **rest)
        try:
            while targets[0].array.flat[0]:
                threading.Event().wait(0.01)
                execution.pause()
        finally:
            self.ended += 1
        return made


def test_what_is_under_way_is_stopped_where_one_raises_or_no_more_is_asked_for() -> None:
    operator = Endless(parties=2, fails={0: VolumeError("no such image")})
    with pytest.raises(VolumeError, match="no such image"):
        list(register_each(operator, subject(0)[0], numbered(2), Execution(threads=2)))
    assert operator.ended == 1
    operator = Endless(parties=2)
    found = register_each(operator, subject(0)[0], numbered(2), Execution(threads=2))
    assert next(found)
    found.close()
    assert operator.ended == 2


def test_a_request_to_stop_is_asked_for_by_the_caller_and_reaches_all_that_are_under_way() -> None:
    operator, asking = Endless(parties=3), set[threading.Thread]()

    def cancelled() -> bool:
        asking.add(threading.current_thread())
        return len(operator.calls) == 3

    with pytest.raises(Cancelled):
        list(register_each(operator, subject(0)[0], numbered(4)[1:], Execution(threads=3, cancelled=cancelled)))
    assert operator.ended == 3
    assert asking == {threading.current_thread()}


def test_a_registration_is_stopped_when_its_map_is_found_already(monkeypatch: pytest.MonkeyPatch) -> None:
    inverting = threading.Event()

    def noted(*given: Any) -> DisplacementMap:
        inverting.set()
        return inverse_on(*given)

    monkeypatch.setattr(mrf, "inverse_on", noted)
    operator, images = make_operator("mrf"), [subject(seed)[0] for seed in (0, 1)]
    with pytest.raises(Cancelled):
        operator.register(images[0], images[1:], execution=Execution(threads=1, cancelled=inverting.is_set))


def test_what_holds_for_all_threads_of_the_process_is_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_float32_matmul_precision("high")
    try:
        targets = [Target(f"s{seed}", subject(seed)[0]) for seed in (1, 2)]
        list(register_each(make_operator("affine"), subject(0)[0], targets, Execution(threads=2)))
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_num_threads() == before
    finally:
        torch.set_float32_matmul_precision("highest")


# Pairs of a training


def keyed(count: int) -> list[Keyed]:
    return [Keyed(t.name, t.name, lambda image=t.image: image) for t in numbered(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_pairs_are_kept_and_none_is_made_twice(tmp_path: Path, threads: int) -> None:
    source, told = Keyed("anna", "s", lambda: subject(0)[0]), SilentReporter()
    execution, work = Execution(threads=threads, reporter=told), WorkFolder(tmp_path)
    failing = Meeting(fails={2: RegistrationError("not onto this one")})
    targets = keyed(5)
    twin = replace(targets[1], name="twin")
    registrar = PairRegistrar(failing, work, execution)
    found = list(registrar.register(source, [targets[0], source, *targets[1:3], twin]))
    assert [None if one is None else one.record["quality"] for one in found] == [0.0, 1.0, 0.1, None, 0.1]
    assert sorted(number for number, *_ in failing.calls) == [0, 1, 2]
    assert "anna cannot be mapped onto atlas t2: not onto this one" in told.warnings
    later = Meeting()
    found = list(PairRegistrar(later, work, execution).register(source, targets))
    assert [one.record["quality"] for one in found if one] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert sorted(number for number, *_ in later.calls) == [2, 3, 4]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_does_not_fit_is_told_of_its_pair(tmp_path: Path, threads: int) -> None:
    operator = Meeting(fails={1: VolumeError("no such image")})
    registrar = PairRegistrar(operator, WorkFolder(tmp_path), Execution(threads=threads))
    with pytest.raises(VolumeError, match="anna cannot be mapped onto atlas t1: no such image"):
        list(registrar.register(Keyed("anna", "s", lambda: subject(0)[0]), keyed(3)))
    assert [one.is_dir() for one in (tmp_path / "registrations").iterdir()] == [True]  # the first, and nothing begun


def test_what_is_under_way_is_stopped_where_a_map_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "registrations").write_text("no folder", encoding="utf-8")
    operator = Endless(parties=2)
    registrar = PairRegistrar(operator, WorkFolder(tmp_path), Execution(threads=2))
    with pytest.raises(OSError, match="registrations") as kept:
        list(registrar.register(Keyed("anna", "s", lambda: subject(0)[0]), keyed(2)))
    assert operator.ended == 2
    assert kept.traceback  # in which what was asked for lives on

"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# As on the command line, and before any test brings torch: idle threads sleep, or tests beside a busy process crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A worker of pytest-xdist keeps to one processor: two workers with two threads each take twice the time of one thread.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_processors[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(_processors)]})


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans; a test that needs it is skipped, by name, where it is not there."""
    value = os.environ.get("ATLASNET_TEST_DATA")
    if not value:
        pytest.skip("real scans needed: set ATLASNET_TEST_DATA to their folder")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"ATLASNET_TEST_DATA names {folder}, which is not a folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """What is written is left to the system to bring to the disk: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Presets with four small steps an epoch, for modules in which nothing depends on what the networks have learnt."""
    from synthetic import shorten_presets

    with pytest.MonkeyPatch.context() as patch:
        shorten_presets(patch)
        yield

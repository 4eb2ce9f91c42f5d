"""Folders that several users and machines work in: locks where file systems have none, and what others may read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from atlasnet.errors import InputError
from atlasnet.execution import WorkFolder, atomic_folder, atomic_path, hold_folder, made_alone, pack
from atlasnet.training.fusion_weights import FusionSamples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks and permissions as POSIX has them")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system that answers every lock with this error."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.parametrize("without_locks", [errno.ENOSYS], indirect=True)
def test_where_files_cannot_be_locked_the_file_is_the_lock(without_locks: None, tmp_path: Path) -> None:
    busy = pytest.raises(InputError, match="another process works in this folder")
    with hold_folder(tmp_path), busy, hold_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with hold_folder(tmp_path):
        pass


@pytest.mark.parametrize("without_locks", [errno.ENOSYS], indirect=True)
def test_a_lock_that_a_process_left_is_taken_or_said_to_be_one_to_delete(without_locks: None, tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_hold_and_die, args=(tmp_path,))
    killed.start()
    killed.join()
    assert lock.exists()
    with hold_folder(tmp_path):  # of a process of this machine that is no more
        pass
    lock.write_text("4242\nnode7\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"if it was killed on another machine, delete {lock}"), hold_folder(tmp_path):
        pass
    assert lock.exists()
    lock.unlink()
    with hold_folder(tmp_path):
        pass


def _hold_and_die(folder: Path) -> None:
    with hold_folder(folder):
        os._exit(9)


@pytest.mark.parametrize("without_locks", [errno.ENOLCK, errno.EOPNOTSUPP], indirect=True)
def test_a_file_system_that_refuses_locks_is_said_to_do_so(without_locks: None, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, WorkFolder(tmp_path).locked():
        pass
    assert "the file system locks no files" in str(caught.value)
    assert "--work on another file system" in str(caught.value)


def test_a_work_folder_that_is_a_link_to_what_is_gone_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "work").symlink_to(tmp_path / "scratch")
    refused = pytest.raises(InputError, match="work: the link leads nowhere; found ")
    with refused, WorkFolder(tmp_path / "work").locked():
        pass
    (tmp_path / "scratch").mkdir()
    with WorkFolder(tmp_path / "work").locked():
        pass


def test_the_lock_of_another_user_s_killed_process_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        lock = Path(place) / ".lock"
        with _bound_by_permissions(lock), pytest.raises(InputError) as caught, hold_folder(lock.parent):
            pass
    assert "another user works there, or was stopped there" in str(caught.value)
    assert str(caught.value).endswith(f"if nobody works there any more, delete {lock}")


@contextmanager
def _bound_by_permissions(file: Path) -> Iterator[None]:
    """Inside the block a file is there that this process may not write, in a folder in which it may."""
    root = os.geteuid() == 0
    file.touch()
    file.chmod(0o444)
    file.parent.chmod(0o777)
    if root:
        os.seteuid(65534)
    try:
        if not os.access(file, os.R_OK, effective_ids=True):
            pytest.skip("TMPDIR lies in a folder that is closed to other users")
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_what_a_killed_process_had_begun_is_no_more_closed_than_what_it_had_finished(mask: int, tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path, mask))
    killed.start()
    killed.join()
    below = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert [path.name.partition("-")[0] for path in below if path.name.startswith(".partial")] == [".partial"]
    assert any(path.name.startswith(".map.nii.") for path in below)
    assert {stat.S_IMODE(path.stat().st_mode) for path in below} == {0o777 & ~mask}


def _write_and_die(folder: Path, mask: int) -> None:
    os.umask(mask)
    with WorkFolder(folder).making("registrations", "a") as made, atomic_path(made / "map.nii"):
        os._exit(9)


def test_a_folder_and_a_zip_are_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "cohort"), pytest.raises(InputError, match="cohort: another process is making this"):
        _make_folder(tmp_path / "cohort")
    with made_alone(tmp_path / "m.zip"), pytest.raises(InputError, match=r"m\.zip: another process is making this"):
        pack(tmp_path / "m.zip", {})
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


@pytest.mark.parametrize("name", ["cohort", "m.zip"])
def test_what_a_killed_process_had_begun_to_make_goes_when_it_is_made(name: str, tmp_path: Path) -> None:
    make = _make_zip if name == "m.zip" else _make_folder
    (tmp_path / f".{name}.original" / "data").mkdir(parents=True)  # somebody's own
    killed = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path / name, True))
    killed.start()
    killed.join()
    assert len(list(tmp_path.rglob(name))) == 1  # as far as it was made
    make(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, f".{name}.original"}


def _make_folder(target: Path, die: bool = False) -> None:
    with atomic_folder(target) as folder:
        if die:
            os._exit(9)
        (folder / "file").touch()


def _make_zip(target: Path, die: bool = False) -> None:
    if die:
        zipfile.ZipFile.writestr = lambda *_: os._exit(9)
    pack(target, {"model.json": "{}"})


def test_what_is_taken_over_from_a_folder_closed_to_writing_can_be_removed(tmp_path: Path) -> None:
    theirs = WorkFolder(tmp_path / "theirs")
    with theirs.making("registrations", "a") as made:
        (made / "below").mkdir()
        (made / "below" / "map").write_text("whole", encoding="utf-8")
    folders = [made for made in (tmp_path / "theirs").rglob("*") if made.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    ours = WorkFolder(tmp_path / "ours", earlier=tmp_path / "theirs")
    assert ours.finished("registrations", "a", pytest.fail)
    assert (ours.entry("registrations", "a") / "below" / "map").read_text(encoding="utf-8") == "whole"
    plain = (tmp_path / "ours").stat().st_mode
    assert {folder.stat().st_mode for folder in (tmp_path / "ours").rglob("*") if folder.is_dir()} == {plain}
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_what_is_kept_of_a_fold_has_the_permissions_that_other_files_have(mask: int, tmp_path: Path) -> None:
    samples = FusionSamples(np.ones((2, 3)), np.ones((3, 2, 3)), np.ones((2, 3), bool))
    before = os.umask(mask)
    try:
        samples.write(tmp_path / "new" / "s.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "s.safetensors").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask
    assert FusionSamples.read(tmp_path / "new" / "s.safetensors").reached.dtype == np.bool_

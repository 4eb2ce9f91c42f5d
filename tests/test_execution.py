"""Atomic files, content keys, devices, progress and cancellation."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from atlasnet import AtlasNet
from atlasnet.errors import Cancelled, InputError, VolumeError
from atlasnet.execution import (
    Execution,
    SilentReporter,
    Stages,
    TextReporter,
    atomic_folder,
    atomic_path,
    digest,
    file_digest,
    in_order,
    pack,
    peak_memory,
    read_json,
    write_json,
)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "labels.nii.gz"
    target.write_text("old")

    def interrupted() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_atomic_write_replaces_the_file_and_keeps_its_suffixes(tmp_path: Path) -> None:
    target = tmp_path / "new" / "labels.nii.gz"
    with atomic_path(target) as path:
        assert path.name.endswith(".nii.gz")
        path.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_folder_is_absent_and_a_finished_one_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"

    def written(interrupt: bool) -> None:
        with atomic_folder(target) as folder:
            (folder / "file").write_text("whole")
            if interrupt:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(interrupt=True)
    assert list(target.parent.iterdir()) == []
    written(interrupt=False)
    assert list(target.parent.iterdir()) == [target]
    assert [path.read_text() for path in target.iterdir()] == ["whole"]
    assert target.stat().st_mode == target.parent.stat().st_mode
    with pytest.raises(InputError, match="exists already"):
        written(interrupt=False)
    target = tmp_path / "link"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link: the folder exists already"):
        written(interrupt=False)


def test_a_zip_holds_files_of_any_date_and_texts_or_is_absent(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"\0\1")
    os.utime(file, (0, 0))  # before a zip's calendar begins
    pack(tmp_path / "m.zip", {"list.json": "[]", "networks/a": file})
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"list.json": b"[]", "networks/a": b"\0\1"}
    with pytest.raises(FileNotFoundError):
        pack(tmp_path / "n.zip", {"a": file, "b": tmp_path / "absent"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zip", "weights"]


def test_json_survives_a_round_trip_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    value = {"labels": {"background": 0, "lung": 1}, "spacing": [1.5, 2.0]}
    write_json(tmp_path / "plan.json", value)
    assert read_json(tmp_path / "plan.json") == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "plan.json", {"dice": float("nan")})
    assert read_json(tmp_path / "plan.json") == value


def test_a_digest_depends_on_content_not_on_key_order() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"atlas")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"atlas").hexdigest()


def test_an_absent_device_is_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match="--device cpu"):
        Execution(device="cuda:99").torch_device()
    with pytest.raises(InputError, match="'warp-drive' cannot be used"):
        Execution(device="warp-drive").torch_device()
    for name in ("gpu", "cuda:one"):
        with pytest.raises(InputError) as caught:
            Execution(device=name).torch_device()
        told = str(caught.value)
        assert told.startswith(f"device {name!r} cannot be used; expected cpu, cuda (")
        assert told.endswith("cuda:1 (the second one); to mend it: choose --device cpu or --device cuda")
    with pytest.raises(InputError, match="'hpu' cannot be used"):
        Execution(device="hpu").torch_device()


def test_threads_hold_inside_the_block_only() -> None:
    before = torch.get_num_threads()
    with Execution(threads=1).active() as device:
        assert torch.get_num_threads() == 1
        assert device == torch.device("cpu")
    assert torch.get_num_threads() == before


def test_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="positive"):
        Execution(threads=0)


def test_what_numpy_and_torch_call_numbers_and_devices_is_as_good_as_ours() -> None:
    given = Execution(device=torch.device("cpu"), threads=np.int64(2), seed=np.int64(3))  # type: ignore[arg-type]  # what is tested
    assert json.loads(json.dumps([given.device, given.threads, given.seed])) == ["cpu", 2, 3]


def test_what_would_fail_only_at_the_end_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"whole numbers; found seed=1\.5"):
        Execution(seed=1.5)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InputError, match=r"reporter=TextReporter\(\)"):
        Execution(reporter=TextReporter)  # type: ignore[arg-type]  # what is tested


def test_the_name_of_a_device_is_no_execution() -> None:
    with pytest.raises(InputError, match=r"pass Execution\(device='cuda'\)"):
        AtlasNet(execution="cuda")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InputError, match="that is no Execution"):
        Execution.of(Execution)  # type: ignore[arg-type]


def test_an_array_that_nobody_may_write_to_is_taken_without_a_warning() -> None:
    array = np.arange(6, dtype=np.float32)
    array.setflags(write=False)
    torch.set_warn_always(True)  # else once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Execution().tensor(array).tolist() == [0, 1, 2, 3, 4, 5]
    finally:
        torch.set_warn_always(False)


def test_a_cancelled_execution_stops_at_the_next_pause() -> None:
    with pytest.raises(Cancelled):
        Execution(cancelled=lambda: True).pause()
    Execution().pause()


def test_piped_progress_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TextReporter()
    assert list(reporter.track([1, 2, 3], "registering")) == [1, 2, 3]
    reporter.warn("a scan is short")
    assert reporter.warnings == ["a scan is short"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "registering: 3 done\nwarning: a scan is short\n"


def test_piped_progress_of_long_work_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlasnet.execution.reporter._SILENCE", 0.0)  # however short the work is
    assert list(TextReporter().track(range(3), "registering", 3)) == [0, 1, 2]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("registering: 1 of 3 done, about ")
    assert second.startswith("registering: 2 of 3 done, about ")
    assert last == "registering: 3 done"


def test_of_a_task_within_a_task_a_pipe_gets_the_outer_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TextReporter()
    for _ in reporter.track(range(2), "segmenting", 2):
        assert list(reporter.track(range(3), "registering", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == "segmenting: 2 done\n"


def test_a_silent_reporter_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = SilentReporter()
    reporter.note("hidden")
    assert list(reporter.track(range(2), "hidden")) == [0, 1]
    assert capsys.readouterr() == ("", "")


def test_work_is_done_side_by_side_and_given_in_order() -> None:
    meet = threading.Barrier(3, timeout=30)  # which one thread alone would never pass

    def work(number: int) -> int:
        meet.wait()
        time.sleep(0.02 * (3 - number))
        return number * number

    assert list(in_order(work, range(3), 3)) == [0, 1, 4]
    assert list(in_order(lambda number: number, range(3), 1)) == [0, 1, 2]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_no_more_is_taken_than_is_done_at_a_time_and_an_error_ends_it(jobs: int) -> None:
    taken, began, found = list[int](), list[int](), list[int]()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        began.append(number)
        if number == 4:
            raise ValueError("four")
        return number

    with pytest.raises(ValueError, match="four"):
        found.extend(in_order(work, items(), jobs))
    assert found == [0, 1, 2, 3]
    assert len(taken) <= 4 + jobs
    assert set(began) <= set(taken)


def test_an_error_names_file_expectation_finding_and_remedy() -> None:
    error = VolumeError("the file is truncated", path="a.nii", expected="10 bytes", found="3", remedy="copy it again")
    assert str(error) == "a.nii: the file is truncated; expected 10 bytes; found 3; to mend it: copy it again"
    assert isinstance(error, InputError)
    assert error.exit_code == 2


if sys.platform == "linux":

    def test_the_peak_of_the_memory_is_the_kernels() -> None:
        np.ones(10 * 2**20).sum()  # 80 MiB that are given back
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (kernel,) = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
        peak = peak_memory()
        assert peak is not None
        assert abs(peak - kernel) < 2**20
        stages = Stages()
        with stages("sum"):
            pass
        assert stages.to_json()["peak_memory_mib"]["sum"] == pytest.approx(kernel / 2**20, abs=1)

    def test_the_default_threads_are_those_of_the_process() -> None:
        import os

        assert Execution().threads == len(os.sched_getaffinity(0))

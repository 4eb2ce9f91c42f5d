"""What Windows and macOS do otherwise than Linux, as far as it can be had here."""

from __future__ import annotations

import builtins
import io
import json
import locale
import ntpath
import os
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.apart import require_apart
from atlasnet.errors import InputError
from atlasnet.execution import Execution, WorkFolder, place_of, write_json
from atlasnet.prediction.output import check_places
from atlasnet.report.curves import save_svg
from atlasnet.report.page import Page
from atlasnet.volume import Grid, Volume, read_grid, read_volume, write_volume
from atlasnet.volume.names import is_file_name
from synthetic import write_cohort


def image() -> Volume:
    return Volume(np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4), Grid((2, 3, 4), np.eye(4)))


@pytest.fixture
def lines_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is written as Windows does it: with its ends of lines, unless the caller says which."""
    real = io.open

    def opened(file: Any, mode: str = "r", *words: Any, newline: str | None = None, **options: Any) -> Any:
        options |= dict(zip(("buffering", "encoding", "errors", "newline"), words, strict=False))
        newline = options.pop("newline", newline)
        if newline is None and "b" not in mode and "r" not in mode:
            newline = "\r\n"
        return real(file, mode, newline=newline, **options)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.usefixtures("lines_of_windows")
def test_text_files_have_the_same_bytes_on_every_system(tmp_path: Path) -> None:
    (tmp_path / "any.txt").write_text("\n", encoding="utf-8")
    assert (tmp_path / "any.txt").read_bytes() == b"\r\n"
    write_json(tmp_path / "a.json", {"a": 1})
    page = Page("Title")
    page.heading("Heading")
    page.write(tmp_path / "a.html")
    save_svg(Figure(), tmp_path / "a.svg")
    assert (tmp_path / "a.json").read_bytes() == b'{\n "a": 1\n}\n'
    for name in ("a.html", "a.svg"):
        assert b"\n" in (tmp_path / name).read_bytes()
        assert b"\r" not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_names_that_the_console_has_no_letters_for_are_printed_all_the_same(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_cohort(tmp_path / "data", range(2))
    for path in (data / "imagesTr" / "s0_0000.nii.gz", data / "labelsTr" / "s0.nii.gz"):
        path.rename(path.with_name(path.name.replace("s0", "Łódź")))
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["check", str(data)]) == 0
    console.seek(0)
    assert "Łódź".encode(encoding, errors="backslashreplace") in console.buffer.read()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_itk_is_given_paths_while_the_system_reads_them_as_utf_8(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = ["English_United States.1252"]
    seen = []

    def setlocale(category: int, name: str | None = None) -> str:
        assert category == locale.LC_CTYPE
        if name is not None:
            spoken.append(name)
        return spoken[-1]

    def witnessed(function: Any) -> Any:
        def called(*words: Any, **options: Any) -> Any:
            seen.append(spoken[-1])
            return function(*words, **options)

        return called

    windows = SimpleNamespace(LC_CTYPE=locale.LC_CTYPE, Error=locale.Error, setlocale=setlocale)
    monkeypatch.setattr("atlasnet.volume.io.locale", windows)
    monkeypatch.setattr("atlasnet.volume.io.sys", SimpleNamespace(platform="win32"))
    for holder, name in ((sitk, "ReadImage"), (sitk, "WriteImage"), (sitk.ImageFileReader, "ReadImageInformation")):
        monkeypatch.setattr(holder, name, witnessed(getattr(holder, name)))
    path = tmp_path / f"Müller{suffix}"
    write_volume(path, image())
    assert (read_volume(path).array == image().array).all()
    assert read_grid(path).shape == (2, 3, 4)
    assert seen == [".UTF-8"] * 3
    assert spoken[-1] == "English_United States.1252"


def test_on_macos_paths_that_differ_in_capitals_or_accents_are_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = {name: tmp_path / name / "scan.nii.gz" for name in ("Anna", "anna")}
    for scan in scans.values():
        write_volume(scan, image())
    cases = [Subject(name, (scan,)) for name, scan in scans.items()]
    places = {name: tmp_path / "out" / f"{name}.nii.gz" for name in scans}
    check_places(cases, places, ())
    monkeypatch.setattr("atlasnet.execution.folders.sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(InputError, match="would both be this file"):
        check_places(cases, places, ())
    with pytest.raises(InputError, match="would take the place of what is read"):
        check_places(cases[:1], {"Anna": tmp_path / "Anna" / "SCAN.nii.gz"}, ())
    assert place_of(tmp_path / "e\u0301") == place_of(tmp_path / "É")


def test_scans_on_several_drives_of_windows_are_apart_from_results_on_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("a", (tmp_path / "c" / "a.nii.gz",), labels=tmp_path / "d" / "a.nii.gz")

    def common(folders: Any) -> str:  # of paths as Windows has them
        return ntpath.commonpath([f"{folder.name}:\\scans" for folder in folders])

    monkeypatch.setattr(os.path, "commonpath", common)
    require_apart(tmp_path / "results", [subject])
    with pytest.raises(InputError, match="among the scans"):
        require_apart(tmp_path / "d", [subject])


def test_the_gpu_of_a_mac_is_refused_and_no_driver_advised() -> None:
    with pytest.raises(InputError, match=r"to mend it: choose --device cpu$"):
        Execution(device="mps").torch_device()


@pytest.mark.parametrize("name", [r"..\..\theirs", r"C:\theirs", "C:theirs", "../theirs"])
def test_on_windows_no_atlas_of_a_model_leads_out_of_its_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlasnet.volume.names.PurePath", PureWindowsPath)
    assert is_file_name("theirs")
    assert not is_file_name(name)


@pytest.mark.parametrize(("layout", "number"), [("Decathlon", ""), ("nnU-Net", "_0000")])
def test_files_may_be_listed_with_the_backslashes_of_windows(tmp_path: Path, layout: str, number: str) -> None:
    data = write_cohort(tmp_path, range(2))
    declared = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    cases = {name: (rf"imagesTr\{name}{number}.nii.gz", rf".\labelsTr\{name}.nii.gz") for name in ("s0", "s1")}
    if layout == "nnU-Net":
        declared["dataset"] = {name: {"images": [image], "label": label} for name, (image, label) in cases.items()}
    else:
        declared["training"] = [{"image": image, "label": label} for image, label in cases.values()]
    for path in (data / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", number)))
    write_json(data / "dataset.json", declared)
    cohort = Cohort.read(data)
    assert (cohort.format, [subject.name for subject in cohort]) == (layout, ["s0", "s1"])
    assert cohort["s1"].images == (data / "imagesTr" / f"s1{number}.nii.gz",)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_virus_scanner_of_windows_holds_open_for_a_moment_is_renamed_all_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, name = [True, True], {"file": "replace", "folder": "rename"}[kind]
    real = getattr(os, name)

    def refused_twice(source: Path, target: Path) -> None:
        if held:
            held.pop()
            raise PermissionError(13, "Access is denied", str(source))
        real(source, target)

    def write() -> None:
        if kind == "file":
            write_json(tmp_path / "a.json", {"a": 1})
        else:
            with WorkFolder(tmp_path).making("maps", "key") as folder:
                (folder / "map").write_bytes(b"1")

    monkeypatch.setattr("atlasnet.execution.files._SCANNED", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, name, refused_twice)
    with pytest.raises(PermissionError):
        write()
    held[:] = [True, True]
    monkeypatch.setattr("atlasnet.execution.files.sys", SimpleNamespace(platform="win32"))
    write()
    assert (tmp_path / {"file": "a.json", "folder": "maps/key/map"}[kind]).is_file()

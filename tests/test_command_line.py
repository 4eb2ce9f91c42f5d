"""The command line as a whole: exit codes, the log, Ctrl-C, what a pipe gets."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dicoms
from atlasnet import __version__
from atlasnet.cli.main import VERBS, main, parser
from atlasnet.cli.signals import ended_by_signals
from atlasnet.cohort import Cohort, Subject, with_masks
from atlasnet.cohort.apart import require_apart
from atlasnet.errors import InputError
from atlasnet.execution import Hidden, LogReporter, SilentReporter, open_log, write_json
from atlasnet.prediction import Predictor
from atlasnet.study import read_test_subjects, run_study
from atlasnet.study.methods import METHODS
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import write_volume
from synthetic import subject, write_cohort, write_study_cohort

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    cohort = Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))
    recipe = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
    options = FitOptions(atlases=1, width=0.25, preset=recipe, operator="centre")
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", options)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_volume(tmp_path / "scan.nii.gz", subject(300)[0])
    return tmp_path / "scan.nii.gz"


def predict(inputs: Path, model: Model, *options: str) -> list[str]:
    return ["predict", str(inputs), "-m", str(model.folder), "-o", str(model.folder.parent / inputs.stem), *options]


# Exit codes


def test_0_what_was_asked_for_is_done(scan: Path, model: Model) -> None:
    assert main(predict(scan, model, "--quiet")) == 0


@pytest.mark.parametrize("words", [["check", "data", "--thread", "1"], ["model", "info", "m", "--thread", "1"]])
def test_2_an_option_that_a_verb_does_not_have_is_told_with_that_verbs_help(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    verb = f"atlasnet {words[0]}"
    said = capsys.readouterr().err
    assert said == f"{verb}: error: unrecognized arguments: --thread 1; to mend it: see {verb} --help\n"


def test_1_the_work_itself_failed(scan: Path, model: Model, capsys: Capture) -> None:
    write_volume(scan, subject(300)[0].replace(np.random.default_rng(0).normal(size=(14, 28, 32)).astype("f4")))
    assert main(predict(scan, model, "--overwrite", "--quiet")) == 1
    assert "could not be mapped onto any atlas" in capsys.readouterr().err


def test_1_a_case_of_several_failed(scan: Path, model: Model, tmp_path: Path) -> None:
    scan.rename(tmp_path / "b.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    assert main(predict(tmp_path, model, "--quiet")) == 1


def test_1_a_result_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    labels = write_cohort(tmp_path, range(1)) / "labelsTr"
    table, log = tmp_path / "table.json", tmp_path / "log"
    words = ["evaluate", labels, labels, "-o", table, "--log", log, "--quiet"]
    assert main([str(word) for word in words]) == 0
    capsys.readouterr()
    (tmp_path / "table.csv").unlink()
    (tmp_path / "table.csv" / "in the way").mkdir(parents=True)
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("atlasnet evaluate: error: a file cannot be read or written: ")
    assert len(said.splitlines()) == 1
    assert "a file cannot be read or written" in log.read_text(encoding="utf-8")


def test_1_a_cohort_has_errors(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path, range(2))
    (folder / "labelsTr" / "s1.nii.gz").write_bytes(b"no labels")
    assert main(["check", str(folder), "--quiet"]) == 1


def test_2_an_input_cannot_be_used(model: Model, tmp_path: Path, capsys: Capture) -> None:
    assert main(predict(tmp_path / "absent.nii.gz", model)) == 2
    error = capsys.readouterr().err
    assert error.startswith("atlasnet predict: error: ")
    assert len(error.splitlines()) == 1


def test_2_the_output_is_named_like_a_file_that_is_no_image(scan: Path, model: Model, capsys: Capture) -> None:
    for name in ("seg.dcm", "seg.xyz"):
        assert main(["predict", str(scan), "-m", str(model.folder), "-o", str(scan.parent / name)]) == 2
        assert f"{name}: this is the name of a file that cannot be written" in capsys.readouterr().err
        assert not (scan.parent / name).exists()


def test_2_the_one_case_fails_and_leaves_no_empty_folder(model: Model, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    for out in ("out", "out/deep/deeper", "out/deep/seg.nii.gz"):
        words = ["predict", str(tmp_path / "a.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / out), "--report"]
        assert main(words) == 2
        assert capsys.readouterr().err.count("a.nii.gz") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_2_the_output_would_take_the_place_of_a_folder_or_a_file(
    scan: Path, model: Model, tmp_path: Path, capsys: Capture, dry: list[str]
) -> None:
    for folder in ("seg.nii.gz", "s.json", "out/scan.nii.gz", "out/scan_report.html", "page/report.html"):
        (tmp_path / folder).mkdir(parents=True)
    words = ["predict", str(scan), "-m", str(model.folder), "--report", "--quiet", *dry, "-o"]
    for output in ("seg.nii.gz", "s.nii.gz", "out", "page"):
        assert main([*words, str(tmp_path / output)]) == 2
        assert "folder" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != scan]
    (tmp_path / "file").touch()
    assert main([*words, str(tmp_path / "file")]) == 2
    assert "file: the output folder cannot be made: a file of that name exists" in capsys.readouterr().err


def test_the_demo_takes_the_place_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    own = tmp_path / "predictions" / "atlasnet" / "anna.nii.gz"
    own.parent.mkdir(parents=True)
    own.write_text("of somebody", encoding="utf-8")
    assert main(["demo", "-o", str(tmp_path), "--quiet"]) == 2
    assert "predictions: the demo would take the place of what is of no demo" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]


def test_the_epochs_in_the_help_are_those_of_the_recipes(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    usual, published = (Recipe.preset(name).epochs for name in ("default", "publication"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"(default: {usual}; with --preset publication {published})" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict"], "atlasnet predict: error: the following arguments are required: INPUT, -m/--model, -o/--output"),
        (["predict", "a", "-m", "b", "-o", "c", "--fusion", "sum"], "invalid choice: 'sum' (choose from"),
        (["model", "show"], "'export'"),
        (["segment"], "'predict'"),
    ],
)
def test_2_the_command_line_cannot_be_used(words: list[str], said: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("'", "") in line.replace("'", "")  # newer versions of Python leave out the quotes
    assert line.endswith(" --help")


def test_the_exit_codes_are_in_the_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    codes = re.findall(r"^  (\d+) ", said.split("exit codes:")[1], re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "129", "130", "138", "143"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_130_ctrl_c_ends_cleanly_and_says_how_to_go_on(scan: Path, model: Model, tmp_path: Path) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for number in range(60):  # far more than can be done between a line and its reader
        os.link(scan, scans / f"case{number:02d}.nii.gz")
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasnet.cli.main", "predict", scans, "-m", model.folder, "-o", out, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("case00: ")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "")
    assert errors.splitlines()[-1] == "atlasnet predict: stopped by the user; the same command goes on from here"
    assert "Traceback" not in errors
    names = {path.name for path in out.iterdir()}
    assert "case59.nii.gz" not in names
    assert not [name for name in names if name.startswith(".")]
    first = (out / "case00.nii.gz").stat().st_mtime_ns
    again = ["predict", str(scans / "case00.nii.gz"), "-m", str(model.folder), "-o", str(out), "--quiet"]
    assert main([*again, "--threads", "1"]) == 0
    assert (out / "case00.nii.gz").stat().st_mtime_ns == first


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)  # who runs the tests may ignore them


def _on_a_terminal() -> None:
    _default_signals()
    fcntl = importlib.import_module("fcntl")
    fcntl.ioctl(2, importlib.import_module("termios").TIOCSCTTY, 0)


def _until(found: Callable[[], bool]) -> None:
    for _ in range(3000):
        if found():
            return
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_143_a_prediction_that_is_told_to_end_leaves_nothing_of_a_patient_behind(model: Model, tmp_path: Path) -> None:
    image = subject(300)[0]
    made = dicoms.slices(np.rint(image.array[0]).astype(np.int16), spacing=image.grid.spacing.tolist())
    zips = [tmp_path / f"scan{number:02d}.zip" for number in range(40)]
    with zipfile.ZipFile(zips[0], "w") as archive:
        for file in dicoms.save(tmp_path / "scan", made).iterdir():
            archive.write(file, f"Doe^Jane/{file.name}")
    for other in zips[1:]:
        os.link(zips[0], other)
    out, log, temporary = tmp_path / "out", tmp_path / "run.log", tmp_path / "tmp"
    temporary.mkdir()
    words = ["predict", *zips, "-m", model.folder, "-o", out, "--log", log, "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasnet.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=_default_signals,
    )
    _until(lambda: any(temporary.glob("atlasnet-*/**/Doe^Jane")) and any(out.glob(".*.lock")))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "atlasnet predict: stopped by SIGTERM; the same command goes on from here"
    assert not list(temporary.iterdir())
    assert not list(out.glob(".*"))
    assert "Z end stopped by SIGTERM, exit code 143, " in log.read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_129_a_training_whose_terminal_is_closed_ends_in_order(tmp_path: Path) -> None:
    data, log = write_cohort(tmp_path / "data", range(2)), tmp_path / "run.log"
    words = ["train", data, "-o", tmp_path / "m", "--log", log, "--threads", "1"]
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasnet.cli.main", *words],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=_on_a_terminal,
    )
    os.close(end)
    _until(lambda: any((tmp_path / "m").rglob(".lock")))
    os.close(terminal)
    assert process.wait(timeout=300) == 129
    assert not list((tmp_path / "m").rglob(".lock"))
    assert "Z end stopped by SIGHUP, exit code 129, " in log.read_text(encoding="utf-8").splitlines()[-1]


_SWALLOWED = """
import os, signal, time
from atlasnet.cli.signals import Ended, ended_by_signals
from atlasnet.execution import Execution, say
with ended_by_signals() as asked:
    execution = Execution(cancelled=asked)
    execution.pause()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except Ended:
        pass  # as a library does
    try:
        execution.pause()
    except Ended as again:
        say(again.signal.name)
import multiprocessing
print(hasattr(multiprocessing, "synchronize"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_signal_that_a_library_has_swallowed_ends_the_work_at_its_next_pause_and_lines_take_no_lock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SWALLOWED], capture_output=True, text=True, check=True, preexec_fn=_default_signals
    )
    assert (done.stdout, done.stderr) == ("False\n", "SIGTERM\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_signals_are_caught_only_where_nobody_else_does_and_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # at once after the first: the same
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with ThreadPoolExecutor(1) as pool:
            pool.submit(main, ["model", "info", "absent", "--quiet"]).result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_signal_while_a_temporary_folder_is_removed_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, signals = os.unlink, [signal.SIGTERM]

    def unlink(*args: Any, **options: Any) -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())
        usual(*args, **options)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            (Path(folder) / "Jane Doe").touch()
        time.sleep(60)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(os, "unlink", unlink)
    try:
        with ended_by_signals(), pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not signals
    assert not list(tmp_path.iterdir())


# Where results may lie


@pytest.mark.parametrize("verb", ["train", "study"])
@pytest.mark.parametrize("place", [".", "imagesTr", "labelsTr/model", "linked/x", "imagesTs/x"])
def test_results_among_the_scans_are_refused_before_any_work(
    tmp_path: Path, verb: str, place: str, capsys: Capture
) -> None:
    data = write_study_cohort(tmp_path / "data", range(2), ["t0"])
    (data / "linked").symlink_to(data / "labelsTr")
    before = sorted(data.rglob("*"))
    assert main([verb, str(data), "-o", str(data / place), "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert f"{data / place}: results would lie among the scans; expected another folder than that of the scans" in error
    assert f"give another one, such as {data / 'results'}" in error
    assert sorted(data.rglob("*")) == before


def test_the_work_folder_is_refused_among_the_scans_too(tmp_path: Path, capsys: Capture) -> None:
    data = write_cohort(tmp_path / "data", range(2))
    words = ["train", str(data), "-o", str(tmp_path / "m"), "--work", str(data / "imagesTr")]
    assert main(words) == 2
    assert f"{data / 'imagesTr'}: results would lie among the scans" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_results_may_lie_in_a_folder_of_their_own_in_that_of_the_scans(tmp_path: Path) -> None:
    data = write_study_cohort(tmp_path / "data", range(2), ["t0"])
    for verb in ("train", "study"):
        assert main([verb, str(data), "-o", str(data / verb), "--atlases", "1", "--dry-run", "--quiet"]) == 0


def test_scans_that_lie_above_the_folder_that_lists_them_leave_room_in_it(tmp_path: Path) -> None:
    subjects = [Subject("s0", (tmp_path / "s0_0000.nii.gz",))]
    require_apart(tmp_path / "task" / "m", subjects, tmp_path / "task")
    with pytest.raises(InputError, match="among the scans"):
        require_apart(tmp_path / "task", subjects, tmp_path / "task")


def test_python_refuses_results_among_scans_references_and_masks_too(tmp_path: Path) -> None:
    data = write_study_cohort(tmp_path / "data", range(2), ["t0"])
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("s0", "s1"):
        (masks / f"{name}.nii.gz").write_bytes((data / "labelsTr" / f"{name}.nii.gz").read_bytes())
    cohort = with_masks(Cohort.read(data), masks)
    for place in (data, data / "imagesTr", masks / "model"):
        with pytest.raises(InputError, match="among the scans"):
            fit(cohort, place)
    elsewhere = replace(cohort, root=tmp_path / "other")  # the test subjects are those of another folder
    with pytest.raises(InputError, match="among the scans"):
        run_study(elsewhere, read_test_subjects(data, cohort), data / "labelsTs" / "study")
    assert sorted(path.name for path in masks.iterdir()) == ["s0.nii.gz", "s1.nii.gz"]


# The log


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_the_log_holds_what_was_said_with_the_time(scan: Path, model: Model, tmp_path: Path, quiet: list[str]) -> None:
    log = tmp_path / "logs" / "run.txt"
    arguments = predict(scan, model, "--overwrite", "--log", str(log), *quiet)
    assert main(arguments) == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \w+ \S", line) for line in lines)
    kinds = [line.split()[1] for line in lines]
    tasks = ["begin", "done"] * 2  # registrations, networks
    assert kinds == ["begin", "begin", *tasks, "note", "done", "result", "end"]
    assert "core " in lines[6]
    assert "exit code 0" in lines[-1]
    assert main(arguments) == 0
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2 * len(lines)


def test_the_log_names_no_patient(scan: Path, model: Model, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "Smith, John"
    folder.mkdir()
    scan.rename(folder / "DOE^JANE_0000.nii.gz")
    (folder / "Müller Eva 77.nii.gz").write_bytes(b"no image")
    log = tmp_path / "run.log"
    assert main(predict(folder, model, "--log", str(log))) == 1
    said = capsys.readouterr()
    text = log.read_text(encoding="utf-8")
    for name in ("Smith", "John", "DOE", "JANE", "Müller", "Eva", str(tmp_path), model.atlases[0].name):
        assert name not in text
    assert "Müller" in said.err  # who looks at the terminal must know which
    assert re.search(r"warning <\d+>: <inputs>: ", text)
    assert re.search(r"note <\d+>: .*core ", text)


def test_the_log_names_no_folder_behind_a_link(tmp_path: Path, capsys: Capture) -> None:
    made = dicoms.slices(np.zeros((3, 4, 5), np.int16))
    for number in ("1", "2"):
        dicoms.save(tmp_path / "elsewhere" / "Jane_Doe" / number, made)
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "all").symlink_to(tmp_path / "elsewhere")
    log = tmp_path / "run.log"
    scan = str(tmp_path / "ct")
    assert main(["register", scan, scan, "-o", str(tmp_path / "out"), "--log", str(log)]) == 2
    assert "Jane_Doe" in capsys.readouterr().err
    assert "Jane_Doe" not in log.read_text(encoding="utf-8")


def test_the_log_names_nobody_whom_a_zip_in_a_folder_or_a_pattern_names(
    scan: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    made = dicoms.slices(np.zeros((5, 4, 5), np.int16))
    dicoms.save(tmp_path / "export" / "Jane_Doe", [*made[:2], *made[3:]])
    shutil.make_archive(str(tmp_path / "scans" / "export"), "zip", tmp_path / "export")
    scan.rename(tmp_path / "scans" / "a.nii.gz")
    log = tmp_path / "run.log"
    assert main(predict(tmp_path / "scans", model, "--log", str(log))) == 1
    assert "mm between Jane_Doe/" in capsys.readouterr().err
    assert main(predict(tmp_path / "scans", model, "--log", str(log), "--image", "Eva_Roe*")) == 2
    assert "0 files or folders fit --image “Eva_Roe*”" in capsys.readouterr().err
    text = log.read_text(encoding="utf-8")
    for name in ("Jane", "Doe", "Eva", "Roe"):
        assert name not in text


def test_the_log_names_nobody_of_whom_there_is_a_list_but_no_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("imagesTr", "labelsTr"):
        write_volume(tmp_path / folder / "Li.nii.gz", subject(0)[folder == "labelsTr"])
    listed = ["./imagesTr/Li.nii.gz", "./imagesTr/Jane_Doe.nii.gz", 3]
    cases = [{"image": image, "label": str(image).replace("imagesTr", "labelsTr")} for image in listed]
    cases.append({"image": 3, "label": "./labelsTr/Max_Muster.nii.gz"})
    declared = {"modality": {"0": "MR"}, "labels": {"0": "background", "2": "shell", "4": "core"}, "training": cases}
    write_json(tmp_path / "dataset.json", declared)
    (tmp_path / "names.txt").write_text("Li\nEva Roe\nEva Roe\n", encoding="utf-8")
    log = tmp_path / "run.log"
    assert main(["check", str(tmp_path), "--log", str(log)]) == 1
    train = ["train", str(write_cohort(tmp_path / "sound", range(2))), "-o", str(tmp_path / "m"), "--log", str(log)]
    assert main([*train, "--subjects", str(tmp_path / "names.txt")]) == 2
    said, text = capsys.readouterr(), log.read_text(encoding="utf-8")
    for name in ("Li", "Jane_Doe", "Max_Muster", "Eva Roe"):
        assert name in said.out + said.err
        assert name not in text
    write_json(tmp_path / "Ann_Other.json", [["s0"], ["s1", "Joe_Public"]])
    assert main([*train, "--folds", str(tmp_path / "Ann_Other.json")]) == 2
    monkeypatch.chdir(tmp_path)
    assert main([*train, "--folds", "Ann_Other.json"]) == 2
    assert main([*train, "--folds", "No_Body.json"]) == 2
    said, text = capsys.readouterr(), log.read_text(encoding="utf-8")
    for name in ("Joe_Public", "No_Body"):
        assert name in said.err
    for name in ("Joe_Public", "Ann_Other", "No_Body"):
        assert name not in text


def test_a_name_that_is_no_unicode_is_written_with_its_bytes(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as stream:
        LogReporter(SilentReporter(), stream).note("M\udcfcller")
    assert "M\\udcfcller" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, needed")
def test_a_full_disk_of_the_log_alone_is_said_before_the_work(scan: Path, model: Model, capsys: Capture) -> None:
    out = scan.parent / "seg.nii.gz"
    assert main(["predict", str(scan), "-m", str(model.folder), "-o", str(out), "--log", "/dev/full"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("atlasnet predict: error: /dev/full: the log cannot be written; found [Errno 28]")
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_a_log_that_ends_on_the_way_does_not_end_the_work(
    scan: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out, log = scan.parent / "seg.nii.gz", scan.parent / "log"
    register = Predictor.ask

    def ask(*args: Any, **options: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, limits[1]))
        try:
            return register(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(Predictor, "ask", ask)
    try:
        words = ["predict", str(scan), "-m", str(model.folder), "-o", str(out), "--log", str(log), "--threads", "1"]
        assert main(words) == 1
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("warning: the log cannot be written any more, and ends here: [Errno 27]")
    assert said[-1].startswith(f"atlasnet predict: error: {log}: the log is not whole")
    assert out.is_file()
    assert "segmenting: 1" in log.read_text(encoding="utf-8")


def test_an_error_that_ends_the_work_is_in_the_log(model: Model, tmp_path: Path) -> None:
    (tmp_path / "secret.nii.gz").write_bytes(b"no image")
    log = tmp_path / "run.log"
    assert main(predict(tmp_path / "secret.nii.gz", model, "--quiet", "--log", str(log))) == 2
    text = log.read_text(encoding="utf-8")
    assert " error <inputs>: " in text
    assert "exit code 2" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus", "Jane_Doe"], "unrecognized arguments: --bogus <value>"),
        (["--seed", "Jane_Doe"], "argument --seed: invalid int value: '<value>'"),
        (["--fusion=Jane_Doe"], "argument --fusion: invalid choice: '<value>' (choose from "),
        (["--Jane_Doe=1"], "unrecognized arguments: <value>"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_an_error_of_the_command_line_itself_is_in_the_log(
    tmp_path: Path, capsys: Capture, words: list[str], said: str, joined: bool
) -> None:
    log = tmp_path / "run.log"
    named = [f"--log={log}"] if joined else ["--log", str(log)]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *named, "-m", "model", "-o", "out", str(tmp_path / "Jane_Doe.nii.gz"), *words])
    assert stop.value.code == 2
    assert "Jane_Doe" in capsys.readouterr().err
    begin, error, end = log.read_text(encoding="utf-8").splitlines()
    assert begin.endswith(f"Z begin atlasnet {__version__} predict")
    assert f"Z error {said}" in error
    assert end.endswith("Z end exit code 2, 0.0 s")
    assert "Jane" not in log.read_text(encoding="utf-8")


def test_an_error_of_the_command_line_itself_damages_nothing_that_is_named_after_log(scan: Path) -> None:
    before = scan.read_bytes()
    for log in (scan, scan.parent / "out.json"):
        with pytest.raises(SystemExit):
            main(["predict", str(scan), "--log", str(log)])
    assert scan.read_bytes() == before
    assert not (scan.parent / "out.json").exists()


def test_a_log_that_cannot_be_written_is_refused(model: Model, tmp_path: Path, capsys: Capture) -> None:
    assert main(["model", "info", str(model.folder), "--log", str(tmp_path)]) == 2
    assert "the log cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("scan.nii.gz", "a log needs a name that no image and no result has"),
        ("out/scan.json", "a log needs a name that no image and no result has"),
        ("notes", "this is not a log of AtlasNet"),
        ("out", "the log would be what another argument names"),
    ],
)
def test_a_log_never_takes_the_place_of_something_else(
    scan: Path, model: Model, capsys: Capture, log: str, problem: str, dry: list[str]
) -> None:
    (scan.parent / "notes").write_text("somebody's own\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in scan.parent.rglob("*")}
    words = ["predict", str(scan), "-m", str(model.folder), "-o", str(scan.parent / "out"), *dry]
    assert main([*words, "--log", str(scan.parent / log)]) == 2
    assert problem in capsys.readouterr().err
    assert {path: path.read_bytes() for path in scan.parent.rglob("*")} == before


@pytest.mark.parametrize("place", ["patient/run.log", "patient/series/run.log", "patient/new/run.log"])
def test_a_log_never_lies_among_the_slices_that_are_read(
    model: Model, tmp_path: Path, capsys: Capture, place: str
) -> None:
    scans = tmp_path / "patient"
    dicoms.save(scans / "series", dicoms.slices(np.zeros((3, 4, 5), np.int16)))
    words = ["predict", str(scans), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--log"]
    assert main([*words, str(tmp_path / place)]) == 2
    assert "the log would lie among the files of a DICOM series" in capsys.readouterr().err
    assert not (tmp_path / place).exists()


def test_a_log_may_lie_beside_scans_and_in_the_folder_of_a_cohort(
    scan: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    dicoms.save(tmp_path / "b", dicoms.slices(np.zeros((3, 4, 5), np.int16)))
    words = ["predict", str(scan.parent), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--dry-run"]
    main([*words, "--log", str(tmp_path / "run.log")])
    assert "dry run" in capsys.readouterr().out
    dicoms.save(tmp_path / "data" / "images" / "s0", dicoms.slices(np.zeros((3, 4, 5), np.int16)))
    main(["check", str(tmp_path / "data"), "--log", str(tmp_path / "data" / "run.log")])
    assert " begin atlasnet " in (tmp_path / "data" / "run.log").read_text(encoding="utf-8")


def test_a_log_is_not_in_the_way_of_a_folder_that_is_made(tmp_path: Path, capsys: Capture) -> None:
    data = write_cohort(tmp_path / "data", range(2))
    assert main(["train", str(data), "-o", str(tmp_path / "m"), "--log", str(tmp_path / "m" / "log")]) == 2
    assert main(["convert", str(data), "-o", str(tmp_path / "n"), "--log", str(tmp_path / "n" / "run.log")]) == 2
    assert capsys.readouterr().err.count("the log would be in the way of what is written there") == 2
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_a_log(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([verb, "info", "--help"] if verb == "model" else [verb, "--help"])
    assert "--log FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/in/P1: damaged", "<scan>: damaged"),
        ("/in/P1/a, b/IM 1.dcm: damaged; found /in/P1/c", "<scan>: damaged; found <scan>"),
        ("/in/P12 is another", "/in/P12 is another"),
        ("registering /in/P1 onto /in/T.nii.gz", "registering <scan> onto <target>"),
        ("3 in data beside data/P1.nii: damaged", "3 in data beside <data>: damaged"),
        ("Ann is not Anna, Ann-Lee is Ann Lee", "<1> is not <2>, <1>-Lee is <1> Lee"),
        ("1 of 12 cases", "1 of 12 cases"),
        ("/in/P1/Roe; Max: 7/1.dcm: damaged; found 3", "<scan>: damaged; found 3"),
    ],
)
def test_paths_and_names_are_replaced_where_they_stand_as_such(text: str, expected: str) -> None:
    hidden = Hidden(
        [("scan", Path("/in/P1")), ("target", Path("/in/T.nii.gz")), ("data", Path("data"))],
        {"Ann", "Anna", "Roe; Max: 7"},
    )
    assert hidden(text) == expected


# What a terminal and a pipe get


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals as POSIX has them")
def test_a_terminal_gets_bars_without_colours_and_a_pipe_plain_lines(scan: Path, model: Model) -> None:
    import pty
    import termios

    command = [sys.executable, "-m", "atlasnet.cli.main", *predict(scan, model, "--overwrite", "--threads", "1")]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(ours)
        assert process.stdout is not None
        result = process.stdout.read()
    assert b"segmenting:" in said
    assert b"\r" in said
    assert not re.search(rb"\x1b\[[0-9;]*m", said)
    assert re.fullmatch(rb"[ -~]+\n", result)
    piped = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert re.fullmatch(rb"[ -~\n]+", piped.stdout + piped.stderr)
    assert len(piped.stderr.splitlines()) == 2  # the case, and that all are done


# Completion


def completed(line: str) -> set[str]:
    """What a shell would offer at the end of ``line``: argcomplete's protocol, over the file of _ARGCOMPLETE_STDOUT."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        environment = {
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(path),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
        code = "import sys; sys.argv = ['atlasnet']; from atlasnet.cli.main import main; main()"
        subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True)
        return {word.strip() for word in path.read_text(encoding="utf-8").split("\n")}


def test_a_shell_completes_verbs_options_and_choices() -> None:
    assert set(VERBS) <= completed("atlasnet ")
    assert completed("atlasnet pred") == {"predict"}
    assert {"--dry-run", "--device"} <= completed("atlasnet predict --d")
    assert {"mean", "staple"} <= completed("atlasnet predict --fusion ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_printed(shell: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--completion", shell])
    assert stopped.value.code == 0
    code = capsys.readouterr().out
    assert "atlasnet" in code
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_the_help_of_a_study_names_every_method() -> None:
    (verbs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    (only,) = (action for action in verbs.choices["study"]._actions if "--only" in action.option_strings)
    named = (only.help or "").rpartition(": ")[2].split(", ")
    assert named == [method.name for method in METHODS]

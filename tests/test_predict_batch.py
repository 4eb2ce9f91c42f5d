"""Many scans at once: the run record, what is kept and what is done again, and cases that fail."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import dicoms
from atlasnet import __version__, evaluate
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.conversion.structures import SlicerSegmentation
from atlasnet.cohort.segments import Code, Segment
from atlasnet.errors import InputError, RegistrationError, UnusualInputError, explained
from atlasnet.execution import Execution, move, write_json
from atlasnet.prediction import Prediction, PredictOptions, Predictor, find_cases, predict_cases, write_prediction
from atlasnet.prediction.output import check_own, check_places, is_whole, is_written, withdraw
from atlasnet.prediction.record import doubts
from atlasnet.prediction.slicer import slicer_fields
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Volume, read_labels, read_volume, write_labels, write_volume
from synthetic import dice, subject, write_cohort

Capture = pytest.CaptureFixture[str]
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
QUICK = FitOptions(atlases=1, width=0.25, preset=RECIPE, operator="centre")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", QUICK)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans."""
    for number, name in enumerate(("anna", "bert"), start=200):
        write_volume(tmp_path / "in" / f"{name}.nii.gz", subject(number)[0])
    return tmp_path / "in"


def test_a_scan_that_was_trained_on_is_told(
    cohort: Cohort, scans: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = cohort.subjects[0].images[0]
    (scans / "carl.nii.gz").write_bytes(learnt.read_bytes())
    assert main(predict(scans, model)) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "was trained on this scan" in line]
    assert len(told) == 1
    assert "carl: " in told[0]
    for name, count in (("carl", 1), ("anna", 0)):
        record = json.loads((scans.parent / "out" / f"{name}.json").read_text(encoding="utf-8"))
        assert sum("was trained on" in text for text in record["warnings"]) == count


def test_scans_of_one_name_are_called_after_their_folders_and_the_log_names_none(
    scans: Path, model: Model, tmp_path: Path
) -> None:
    for name in ("anna", "bert"):
        (tmp_path / "patients" / name).mkdir(parents=True)
        (scans / f"{name}.nii.gz").rename(tmp_path / "patients" / name / "CT.nii.gz")
    files = sorted(map(str, tmp_path.glob("patients/*/CT.nii.gz")))
    log = tmp_path / "run.log"
    words = ["predict", *files, "-m", str(model.folder), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert main([*words, "--quiet"]) == 2
    assert main([*words, "--name-from", "folder", "--quiet", "--log", str(log)]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"anna.nii.gz", "bert.nii.gz"}
    assert "anna" not in log.read_text()
    assert "bert" not in log.read_text()


def test_what_is_no_scan_among_several_inputs_is_passed_over_and_told(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    (scans / "notes.txt").write_text("of the day")
    (scans / "anna.seg.nrrd").write_text("of Slicer")
    (scans / "empty").mkdir()
    words = ["predict", *sorted(map(str, scans.iterdir())), "-m", str(model.folder), "-o", str(tmp_path / "out")]
    strays = [str(scans / name) for name in ("anna.seg.nrrd", "empty", "notes.txt")]
    assert main([*words, "--dry-run", "--quiet"]) == 1
    assert capsys.readouterr().err == f"atlasnet predict: error: no scan, and not read: {', '.join(strays)}\n"
    assert main([*words, "--json"]) == 1
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert ([*result["written"]], result["failed"], result["not_read"]) == (["anna", "bert"], {}, strays)
    assert said.err.splitlines()[-1] == f"atlasnet predict: error: no scan, and not read: {', '.join(strays)}"
    assert said.err.count("notes.txt") == 1
    assert main(["predict", str(scans), *words[-4:], "--quiet"]) == 0  # of a folder nobody named them
    assert main(["predict", strays[2], strays[1], *words[-4:]]) == 2
    assert "notes.txt: the file is not an image that can be read" in capsys.readouterr().err
    (scans / "carl.nii.gz").write_text("of no scan")
    assert main(["predict", str(scans / "carl.nii.gz"), strays[2], *words[-4:]]) == 2
    assert f"error: no scan, and not read: {strays[2]}" in capsys.readouterr().err


def test_the_quality_that_is_asked_of_registrations_is_an_option(
    cohort: Cohort, scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    assert main(predict(scans, model, "--minimum-quality", "0.999", "--report")) == 1
    said = capsys.readouterr().err
    assert "a registration quality of at least 0.999 is needed" in said
    assert "if it does, ask for less with --minimum-quality" in said
    page = (scans.parent / "out" / "report.html").read_text(encoding="utf-8")
    assert "at least 0.999 is needed" in page
    assert "Cases with warnings come first" not in page
    assert main(predict(scans, model, "--minimum-quality", "1.5")) == 2
    assert "expected 0 to 1; found 1.5" in capsys.readouterr().err
    assert main(predict(scans, model, "--minimum-quality", "0", "--quiet")) == 0
    made_of = json.loads((tmp_path / "out" / "anna.json").read_text(encoding="utf-8"))["provenance"]
    assert made_of["options"]["minimum_quality"] == 0
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--atlas", "s0", "--registration", "centre"]
    assert main([*words, "--epochs", "1", "--width", "0.25", "--minimum-quality", "0.999"]) == 0
    assert "s1 does not train the network of atlas s0: registration quality" in capsys.readouterr().err
    assert main([*words, "--minimum-quality", "nan"]) == 2


_SEGMENTING = """
import sys
from pathlib import Path
from atlasnet.prediction.batch import _held
with _held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_case_that_another_process_segments_is_left_to_it(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    assert main(predict(scans, model, "--quiet")) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    words = [sys.executable, "-c", _SEGMENTING, str(tmp_path / "out" / "anna.nii.gz")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main(predict(scans, model, "--quiet")) == 0  # what is there need not be written
        assert main(predict(scans, model, "--overwrite")) == 1
        error = capsys.readouterr().err
        assert f"anna: {tmp_path / 'out' / 'anna.nii.gz'}: another process is segmenting this case" in error
        assert {name: (tmp_path / "out" / name).read_bytes() for name in before if name.startswith("anna")} == {
            name: content for name, content in before.items() if name.startswith("anna")
        }
        assert (tmp_path / "out" / "bert.json").read_bytes() != before["bert.json"]  # its times are others
        other.kill()
        other.wait()
    assert main(predict(scans, model, "--quiet")) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)


_WRITING = """
import sys
from pathlib import Path
from atlasnet.execution import atomic_path
from atlasnet.prediction.batch import _held
path = Path(sys.argv[1])
maps, record = path.with_name("anna_entropy.nii.gz"), path.with_name("anna.json")
with _held(path), atomic_path(maps), atomic_path(record), atomic_path(path) as place:
    place.write_bytes(b"half of it")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_that_was_killed_had_begun_is_removed_and_what_one_that_runs_writes_is_not(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main(predict(scans, model, "--quiet")) == 0
    before = {path.name for path in out.iterdir()}
    foreign = out / ".notes.nii.gz.abcdefgh"
    foreign.mkdir()
    words = [sys.executable, "-c", _WRITING, str(out / "anna.nii.gz")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        begun = {path for path in out.iterdir() if path.name.startswith(".anna") and path.is_dir()}
        assert len(begun) == 3
        assert main(predict(scans, model)) == 0
        assert all(path.is_dir() for path in begun)
        assert "was killed" not in capsys.readouterr().err
        other.kill()
        other.wait()
    assert all(path.is_dir() for path in begun)
    assert main(predict(scans, model)) == 0
    said = capsys.readouterr().err
    assert "anna: what a process that was killed had begun to write was removed: 3 temporary folders" in said
    assert {path.name for path in out.iterdir()} == {*before, foreign.name}


_UNTIL = """
import sys, time
from pathlib import Path
from atlasnet.prediction.batch import _held
with _held(Path(sys.argv[1])):
    print("held", flush=True)
    while not Path(sys.argv[2]).is_file():
        time.sleep(0.02)
"""


def test_a_case_that_another_process_was_at_is_looked_at_again_after_the_others(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", _UNTIL, str(out / "anna.nii.gz"), str(out / ".bert.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main(predict(scans, model, "--json")) == 0
    said = capsys.readouterr()
    assert set(json.loads(said.out)["written"]) == {"anna", "bert"}
    assert "anna: another process is segmenting this case; it is looked at again after the others" in said.err


def predict(scans: Path, model: Model, *options: str) -> list[str]:
    return ["predict", str(scans), "-m", str(model.folder), "-o", str(scans.parent / "out"), *options]


def done(capsys: Capture, arguments: list[str]) -> dict[str, set[str]]:
    """Which cases were written, kept and so on, where any were."""
    main([*arguments, "--json"])
    return {what: set(cases) for what, cases in json.loads(capsys.readouterr().out).items() if cases}


def test_the_record_tells_what_was_done_and_not_to_whom(scans: Path, model: Model, capsys: Capture) -> None:
    assert main(predict(scans, model, "--agreement")) == 0
    out = scans.parent / "out"
    text = (out / "anna.json").read_text(encoding="utf-8")
    assert not [word for word in ("anna", "bert", str(scans)) if word in text]
    record = json.loads(text)
    origin = record["provenance"]
    assert origin["input_sha256"] == [hashlib.sha256((scans / "anna.nii.gz").read_bytes()).hexdigest()]
    main(["model", "info", str(model.folder), "--json"])
    assert origin["model"] == json.loads(capsys.readouterr().out.splitlines()[-1])["checksum"]
    assert (origin["atlasnet"], origin["torch"], origin["python"]) == (
        __version__,
        torch.__version__,
        platform.python_version(),
    )
    stages = ["fusion", "mapping", "network", "postprocessing", "reading", "registration", "verdict", "writing"]
    assert sorted(record["seconds"]) == sorted(record["peak_memory_mib"]) == stages
    assert record["peak_memory_mib"]["writing"] == max(record["peak_memory_mib"].values())
    assert record["warnings"] == []
    labels = sitk.ReadImage(out / "anna.nii.gz")
    core = np.count_nonzero(sitk.GetArrayFromImage(labels) == 4) * np.prod(labels.GetSpacing()) / 1000
    assert record["volumes_ml"]["core"] == pytest.approx(core, rel=1e-3)
    for output, name in (("labels", "anna.nii.gz"), ("agreement", "anna_agreement.nii.gz")):
        assert record["outputs"][output] == hashlib.sha256((out / name).read_bytes()).hexdigest()


def test_labels_are_called_labels_and_maps_are_not(scans: Path, model: Model) -> None:
    assert main(predict(scans, model, "--agreement", "--probabilities")) == 0
    for name, intent in (("anna", "1002"), ("anna_agreement", "0"), ("anna_probabilities", "0")):
        assert sitk.ReadImage(scans.parent / "out" / f"{name}.nii.gz").GetMetaData("intent_code") == intent


def test_a_result_of_which_the_networks_are_unsure_is_warned_of(scans: Path, model: Model, capsys: Capture) -> None:
    main(predict(scans, model))
    said = capsys.readouterr().err
    for name in ("anna", "bert"):
        record = json.loads((scans.parent / "out" / f"{name}.json").read_text(encoding="utf-8"))
        expected = record["agreement"]["expected_dice"]
        told = [text for text in record["warnings"] if "unsure" in text]
        assert bool(told) == (expected is not None and expected < 0.5)
        assert all(f"{expected:.2f}" in text and text in said for text in told)
    assert doubts({"expected_dice": 0.49})
    assert not doubts({"expected_dice": 0.5})
    assert not doubts({"expected_dice": None})


def test_warnings_of_a_case_are_in_its_record(scans: Path, model: Model) -> None:
    from atlasnet.registration import Registration, make_operator

    class Doubtful:
        """Finds fault with every scan."""

        name = "doubtful"

        def settings(self) -> dict:
            return {}

        def register(self, *args: object, execution: Execution, **options: object) -> list[Registration]:
            execution.reporter.warn("the scan is dark")
            return make_operator("identity").register(*args, execution=execution, **options)

    predictor = Predictor(model, operator=Doubtful())
    prediction = predictor.predict(subject(200)[0], PredictOptions(minimum_quality=0.0))
    assert prediction.record["warnings"] == ["atlas s0: the scan is dark"]
    assert predictor.execution.reporter.warnings == ["atlas s0: the scan is dark"]


def test_warnings_name_their_case_where_there_are_several(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal by its name, the log by its number, the record not at all."""
    monkeypatch.setattr("atlasnet.prediction.record.UNSURE_DICE", 1.0)  # networks are never that sure
    log = tmp_path / "log"
    assert main(predict(scans, model, "--log", str(log))) == 0
    told = capsys.readouterr().err.splitlines()
    records = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))["warnings"]
        for name in ("anna", "bert")
    }
    assert all(records.values())
    assert not any("anna" in text or "bert" in text for text in [*records["anna"], *records["bert"]])
    named = [f"warning: {name}: {text}" for name, texts in records.items() for text in texts]
    assert [line for line in told if line.startswith("warning: ")] == named
    logged = [line.split(" ", 1)[1] for line in log.read_text(encoding="utf-8").splitlines()]
    warned = [line for line in logged if line.startswith("warning ")]
    numbers = [re.fullmatch(r"warning (<\d+>): [^<>:]+.*", line) for line in warned]
    assert len(warned) == len(named)
    assert all(numbers)
    anna, bert = sorted({found[1] for found in numbers if found}, key=lambda text: int(text[1:-1]))
    assert [line for line in logged if line.startswith(f"note {anna}: ")]  # that of the line on the result
    assert [line for line in logged if line.startswith(f"note {bert}: ")]
    # A single scan is that of the command.
    words = ["predict", str(scans / "anna.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "one")]
    assert main(words) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("warning: ")] == [f"warning: {text}" for text in records["anna"]]


def test_what_is_done_is_kept(scans: Path, model: Model, capsys: Capture) -> None:
    main(predict(scans, model, "--quiet"))
    files = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (scans.parent / "out").iterdir()}
    assert done(capsys, predict(scans, model)) == {"kept": {"anna", "bert"}}
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files} == files
    # Another number of threads changes no more than rounding.
    assert done(capsys, predict(scans, model, "--threads", "1"))["kept"] == {"anna", "bert"}
    assert done(capsys, predict(scans, model, "--overwrite"))["written"] == {"anna", "bert"}


def test_files_among_the_scans_that_are_not_read_are_told(scans: Path, model: Model, capsys: Capture) -> None:
    for name in ("carl.mgz", "IM1.dcm", "notes.txt"):
        (scans / name).write_bytes(b"something")
    assert main(predict(scans, model, "--json")) == 0
    said = capsys.readouterr()
    left = [str(scans / "IM1.dcm"), str(scans / "carl.mgz")]
    assert json.loads(said.out)["not_read"] == left
    assert f"warning: not read: {', '.join(left)}; " in said.err
    assert main(predict(scans, model, "--json", "--dry-run")) == 0
    assert json.loads(capsys.readouterr().out)["not_read"] == left


@pytest.mark.parametrize("change", ["another scan", "a damaged output", "an absent output", "a damaged record"])
def test_only_what_changed_is_done_again(scans: Path, model: Model, capsys: Capture, change: str) -> None:
    main(predict(scans, model, "--quiet"))
    labels, record = scans.parent / "out" / "bert.nii.gz", scans.parent / "out" / "bert.json"
    expected = read_volume(labels).array
    if change == "another scan":
        write_volume(scans / "bert.nii.gz", subject(203)[0])
    elif change == "a damaged output":
        labels.write_bytes(labels.read_bytes()[:-7])
    elif change == "an absent output":
        labels.unlink()
    else:
        record.write_text('{"provenance": []}', encoding="utf-8")
    assert done(capsys, predict(scans, model)) == {"written": {"bert"}, "kept": {"anna"}}
    assert np.array_equal(read_volume(labels).array, expected) == (change != "another scan")


@pytest.mark.parametrize("options", [["--fusion", "vote"], ["--largest-component"], ["--agreement"], ["--seed", "1"]])
def test_other_options_are_another_prediction(scans: Path, model: Model, capsys: Capture, options: list[str]) -> None:
    main(predict(scans, model, "--quiet"))
    assert done(capsys, predict(scans, model, *options))["written"] == {"anna", "bert"}
    assert done(capsys, predict(scans, model, *options))["kept"] == {"anna", "bert"}


def test_names_and_colours_of_labels_lie_beside_them(scans: Path, model: Model, tmp_path: Path) -> None:
    assert main(predict(scans, model, "--quiet")) == 0
    assert main(["predict", str(scans / "anna.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "a.nrrd")]) == 0
    for stem in (scans.parent / "out" / "labels", tmp_path / "a"):
        for suffix in (".label", ".ctbl"):
            rows = stem.with_name(stem.name + suffix).read_text(encoding="utf-8").splitlines()
            assert [row.split()[0] for row in rows if not row.startswith("#")] == ["0", "2", "4"]
            assert any("shell" in row for row in rows)
    assert not sitk.ReadImage(tmp_path / "a.nrrd").HasMetaDataKey("Segment0_Name")  # that is for a .seg.nrrd


def test_slicer_gets_a_segmentation_with_names_and_colours(scans: Path, model: Model, capsys: Capture) -> None:
    arguments = [*predict(scans, model), "--suffix", ".seg.nrrd", "--agreement"]
    assert done(capsys, arguments)["written"] == {"anna", "bert"}
    out = scans.with_name("out")
    assert not [*out.glob("*.nii.gz")]
    assert (out / "anna_agreement.nrrd").is_file()
    image = sitk.ReadImage(str(out / "anna.seg.nrrd"))
    found = {int(image.GetMetaData(f"Segment{n}_LabelValue")): image.GetMetaData(f"Segment{n}_Name") for n in (0, 1)}
    assert found == {value: name for name, value in model.labels.items() if value}
    colour = [float(share) for share in image.GetMetaData("Segment0_Color").split()]
    np.testing.assert_allclose(colour, np.array(model.segments[0].rgb) / 255, atol=1e-6)
    # What Slicer reads is what `convert` makes a cohort of again.
    read = SlicerSegmentation(out / "anna.seg.nrrd")
    labels = read_labels(out / "anna.seg.nrrd")
    for name, value in model.labels.items():
        if value:
            np.testing.assert_array_equal(read.mask(name, labels.grid), labels.array[0] == value)
    assert done(capsys, arguments) == {"kept": {"anna", "bert"}}
    write_labels(scans.with_name("refs") / "anna.nii.gz", labels)
    assert list(evaluate(out, scans.with_name("refs")).cases) == ["anna"]
    assert done(capsys, [*arguments, "--suffix", ".mha"])["written"] == {"anna", "bert"}
    assert not [*out.glob("*.seg.nrrd"), *out.glob("*.nrrd")]


def test_a_segmentation_of_slicer_says_where_its_segments_may_lie_and_what_they_are() -> None:
    kind, category = Code("1", "99OWN", "tumour^~|core"), Code("49755003", "SCT", "Morphologically Altered Structure")
    fields = slicer_fields([Segment("tumour", 4, category, kind, None, "#ff0033")], (5, 6, 7))
    assert {name: text for name, text in fields.items() if name.startswith("Segmentation_")} == {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    found = {name.removeprefix("Segment0_"): text for name, text in fields.items() if name.startswith("Segment0")}
    assert found == {
        **{"ID": "Segment_4", "Name": "tumour", "NameAutoGenerated": "0", "ColorAutoGenerated": "0"},
        **{"Color": "1 0 0.2", "LabelValue": "4", "Layer": "0", "Extent": "0 6 0 5 0 4"},
        # As "File format" of Slicer's module Segmentations orders them: three codes, then those of a region, here none.
        "Tags": "TerminologyEntry:Segmentation category and type - 3D Slicer General Anatomy list~"
        "SCT^49755003^Morphologically Altered Structure~99OWN^1^tumour   core~^^"
        "~Anatomic codes - DICOM master list~^^~^^|",
    }


def test_a_suffix_for_a_file_that_has_one_is_refused(scans: Path, model: Model, capsys: Capture) -> None:
    scan = str(next(scans.glob("anna*")))
    assert main(["predict", scan, "-m", str(model.folder), "-o", str(scans / "x.nii"), "--suffix", ".mha"]) == 2
    assert "--suffix is for a folder" in capsys.readouterr().err


def test_a_segmentation_of_slicer_is_no_scan(scans: Path, model: Model, capsys: Capture) -> None:
    image = read_volume(scans / "anna.nii.gz")
    write_labels(scans / "Segmentation.seg.nrrd", image.replace(image.array > 0))
    assert {case.name for case in find_cases([scans], 1)} == {"anna", "bert"}
    with pytest.raises(InputError, match="a segmentation of 3D Slicer and no scan"):
        find_cases([scans / "Segmentation.seg.nrrd"], 1)


def test_maps_that_nobody_asks_for_again_change_nothing(scans: Path, model: Model, capsys: Capture) -> None:
    main(predict(scans, model, "--quiet", "--agreement"))
    assert done(capsys, predict(scans, model))["kept"] == {"anna", "bert"}


def test_what_an_earlier_request_left_does_not_lie_beside_another_result(scans: Path, model: Model) -> None:
    main(predict(scans, model, "--quiet", "--agreement"))
    out = scans.parent / "out"
    (out / "bert_entropy.nii.gz").write_bytes(b"somebody's own")
    (out / "anna_report.html").write_text("somebody's own")
    main(predict(scans, model, "--quiet", "--fusion", "vote"))
    assert {path.name for path in out.iterdir() if path.suffix not in (".label", ".ctbl")} == {
        *("anna.nii.gz", "anna.json", "bert.nii.gz", "bert.json"),
        *("bert_entropy.nii.gz", "anna_report.html"),
    }


def test_the_voxels_beside_a_header_are_looked_at_too(scans: Path, model: Model, capsys: Capture) -> None:
    words = ["predict", str(scans / "anna.nii.gz"), "-m", str(model.folder), "-o", str(scans.parent / "a.mhd")]
    assert done(capsys, words) == {"written": {"anna"}}
    assert done(capsys, words) == {"kept": {"anna"}}
    voxels = bytearray((scans.parent / "a.raw").read_bytes())
    voxels[100] ^= 1
    (scans.parent / "a.raw").write_bytes(voxels)
    assert main([*words, "--json"]) == 2
    assert "edited, it seems" in capsys.readouterr().err
    assert done(capsys, [*words, "--overwrite"]) == {"written": {"anna"}}


@pytest.mark.parametrize("options", [[], ["--fusion", "vote"]])
def test_labels_that_somebody_edited_are_not_lost(
    scans: Path, model: Model, capsys: Capture, options: list[str]
) -> None:
    main(predict(scans, model, "--quiet"))
    labels = scans.parent / "out" / "bert.nii.gz"
    edited = read_labels(labels)
    edited.array[0, :3] = 4
    write_labels(labels, edited)
    for _ in range(2):
        assert done(capsys, predict(scans, model, *options))["failed"] == {"bert"}
        assert np.array_equal(read_labels(labels).array, edited.array)
    (scans / "bert.nii.gz").write_bytes(b"not a scan any more")
    assert done(capsys, predict(scans, model, *options))["failed"] == {"bert"}
    assert np.array_equal(read_labels(labels).array, edited.array)
    write_volume(scans / "bert.nii.gz", subject(201)[0])
    assert "bert" in done(capsys, predict(scans, model, *options, "--overwrite"))["written"]


def test_labels_without_a_record_are_not_lost(scans: Path, model: Model, capsys: Capture) -> None:
    """The folder of the references given as that of the results."""
    reference = scans.parent / "out" / "bert.nii.gz"
    write_labels(reference, subject(201)[1])
    before = reference.read_bytes()
    (scans.parent / "out" / "anna.nii.gz").touch()  # a place that was made for the result
    assert done(capsys, predict(scans, model)) == {"written": {"anna"}, "failed": {"bert"}}
    assert reference.read_bytes() == before
    assert main(predict(scans, model)) == 1
    assert "no record tells of" in capsys.readouterr().err
    assert done(capsys, predict(scans, model, "--overwrite"))["written"] == {"anna", "bert"}


@pytest.mark.parametrize("then", ["again", "the scan is broken"])
def test_what_was_being_written_when_the_program_was_stopped_is_no_obstacle(
    scans: Path, model: Model, capsys: Capture, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    out = scans.parent / "out"

    def stopped(path: Path, labels: Volume, _: object) -> None:
        write_labels(path, labels)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr("atlasnet.prediction.output.write_labels", stopped)
        assert main(predict(scans, model, "--quiet", "--agreement")) not in (0, 1)
    assert {"anna.nii.gz", "anna_agreement.nii.gz"} <= {path.name for path in out.iterdir()}
    write_labels(out / "anna.mha", subject(200)[1])  # nothing of ours
    capsys.readouterr()
    if then == "again":
        assert done(capsys, predict(scans, model)) == {"written": {"anna", "bert"}}
        assert {path.name for path in out.glob("anna*.nii.gz")} == {"anna.nii.gz"}
    else:
        (scans / "anna.nii.gz").write_bytes(b"not a scan any more")
        assert done(capsys, predict(scans, model)) == {"written": {"bert"}, "failed": {"anna"}}
        assert not [*out.glob("anna*.nii.gz"), *out.glob("anna.json")]
    assert (out / "anna.mha").is_file()


def test_a_json_file_that_is_no_record_is_not_lost(scans: Path, model: Model, capsys: Capture) -> None:
    """Nor one with a number that JSON does not know and many programs write."""
    (scans.parent / "out").mkdir()
    sidecars = {"anna": '{"Modality": "MR"}', "bert": '{"EchoTime": NaN}'}
    for name, text in sidecars.items():
        (scans.parent / "out" / f"{name}.json").write_text(text, encoding="utf-8")
    assert done(capsys, predict(scans, model, "--overwrite")) == {"failed": {"anna", "bert"}}
    for name, text in sidecars.items():
        assert (scans.parent / "out" / f"{name}.json").read_text(encoding="utf-8") == text


_OTHERS = (b"[]", b"7", b"{}")
_DAMAGED = (b"", b"[", bytes(9), b"\xff", b'{"provenance": []}', b'{"provenance": {"request": "r"}}')
_DAMAGED += tuple(b'{"provenance": {"request": "r"}, "outputs": %s}' % of for of in (b"7", b'["labels"]'))


@pytest.mark.parametrize("record", [*_OTHERS, *_DAMAGED])
def test_what_lies_beside_a_damaged_record_is_no_whole_result(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.with_name("a.json").write_bytes(record)
    path.write_bytes(b"labels")
    assert not is_whole(path)
    assert not is_written(path, {"request": "r"}, ())
    if record in _OTHERS:
        with pytest.raises(InputError, match="take the place of a file that is none"):
            check_own(path, edited=True)
    else:
        check_own(path, edited=False)
    assert not withdraw(path)
    assert path.is_file()


def test_a_result_is_taken_away_with_all_that_its_record_knows_and_nothing_else(tmp_path: Path) -> None:
    path, before = tmp_path / "a.mha", tmp_path / "a.nii.gz"  # under another suffix than today's
    names = {
        **{"labels": "a.nii.gz", "dicom_seg": "a_seg.dcm", "rtstruct": "a_rtstruct.dcm", "report": "a_report.html"},
        **{name: f"a_{name}.nii.gz" for name in ("probabilities", "agreement", "entropy")},
    }
    for name in (*names.values(), "a_notes.txt", "a_agreement.mha", "ab.nii.gz"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    hashes = {output: hashlib.sha256(name.encode()).hexdigest() for output, name in names.items()}
    write_json(tmp_path / "a.json", {"outputs": hashes, "provenance": {"request": "r"}})
    assert is_written(before, {"request": "r"}, [*names])
    assert is_whole(before)
    assert not is_whole(path)
    (tmp_path / "a_entropy.nii.gz").write_text("changed since", encoding="utf-8")
    assert is_written(before, {"request": "r"}, ["agreement"])
    assert not is_written(before, {"request": "r"}, ["entropy"])
    assert withdraw(path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("a_notes.txt", "a_agreement.mha", "ab.nii.gz", "a_entropy.nii.gz")
    }


@pytest.fixture(scope="module")
def prediction(model: Model) -> Prediction:
    return Predictor(model).predict(subject(200)[0], PredictOptions(agreement=True))


def test_what_is_said_to_be_written_are_all_files(prediction: Prediction, tmp_path: Path) -> None:
    written = write_prediction(prediction, tmp_path / "a.mhd", provenance={"request": "r"})
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert is_written(tmp_path / "a.mhd", {"request": "r"}, ["agreement", "entropy"])


def _stopped(work: Callable[..., None], after: int) -> Callable[..., None]:
    """The work, so many times, and then what Ctrl-C does."""
    left = [None] * after

    def limited(*args: object, **options: object) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        work(*args, **options)

    return limited


def test_whenever_the_writing_is_stopped_what_lies_there_is_known_for_what_it_is(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an earlier result, before each of the files comes to its place."""
    path, earlier = tmp_path / "a.nii.gz", replace(prediction, labels=subject(200)[1], agreement=None)
    for step in range(5):  # the record, two maps, the labels, the record
        write_prediction(earlier, path, provenance={"request": "earlier"})
        before = path.read_bytes()
        with monkeypatch.context() as stopping:
            stopping.setattr("atlasnet.execution.files.move", _stopped(move, step))
            with pytest.raises(KeyboardInterrupt):
                write_prediction(prediction, path, provenance={"request": "new"})
        assert path.with_name("a_entropy.nii.gz").exists() == (step > 2)
        assert not is_written(path, {"request": "new"}, ())
        assert is_written(path, {"request": "earlier"}, ()) == is_whole(path) == (step == 0)
        assert (path.read_bytes() == before) == (step < 4)
        assert withdraw(path) == (step == 0)
        assert not list(tmp_path.iterdir())


def test_a_result_whose_removal_was_stopped_is_removed_by_the_next_call(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    for step in range(4):
        write_prediction(prediction, path, provenance={"request": "r"})
        with monkeypatch.context() as stopping:
            stopping.setattr(Path, "unlink", _stopped(Path.unlink, step))
            with pytest.raises(KeyboardInterrupt):
                withdraw(path)
        withdraw(path)
        assert not list(tmp_path.iterdir())


def test_an_earlier_result_of_a_case_that_fails_now_is_removed(scans: Path, model: Model, capsys: Capture) -> None:
    main(predict(scans, model, "--quiet", "--report", "--agreement"))
    out = scans.parent / "out"
    assert (out / "bert_agreement.nii.gz").is_file()
    (out / "bert_notes.txt").write_text("somebody's own", encoding="utf-8")
    (scans / "bert.nii.gz").write_bytes(b"not a scan any more")
    assert done(capsys, predict(scans, model)) == {"kept": {"anna"}, "failed": {"bert"}}
    assert [path.name for path in out.glob("bert*")] == ["bert_notes.txt"]
    assert not (out / "report.html").exists()
    assert (out / "anna.nii.gz").is_file()


def _unplugged(scan: Path) -> None:
    scan.unlink()
    scan.symlink_to("/proc/self/mem")  # whose first byte is an input/output error, as on a share that goes away


def _closed(scan: Path) -> None:
    scan.chmod(0)


def _dangling(scan: Path) -> None:
    scan.unlink()
    scan.symlink_to("/annex/objects/none")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        pytest.param(
            _unplugged,
            "Input/output error",
            marks=pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux's /proc needed"),
        ),
        pytest.param(
            _closed,
            "Permission denied",
            marks=pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root reads everything"),
        ),
        (_dangling, "the link leads nowhere"),
    ],
)
def test_an_earlier_result_stays_where_its_scan_cannot_be_read_for_now(
    scans: Path, model: Model, capsys: Capture, harm: Callable[[Path], None], why: str
) -> None:
    assert main(predict(scans, model, "--quiet")) == 0
    out = scans.parent / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    whole = (scans / "bert.nii.gz").read_bytes()
    capsys.readouterr()
    harm(scans / "bert.nii.gz")
    for overwrite in ([], ["--overwrite"]):
        assert main(predict(scans, model, *overwrite)) == 1
        said = capsys.readouterr().err
        assert "warning: bert: its earlier result stays: whether it is of this scan is unknown" in said
        assert why in said.splitlines()[-1]
        assert {name for name in before if not (out / name).exists()} == set()
        assert (out / "bert.nii.gz").read_bytes() == before["bert.nii.gz"]
        assert (out / "bert.json").read_bytes() == before["bert.json"]
    (scans / "bert.nii.gz").unlink()
    (scans / "bert.nii.gz").write_bytes(whole)
    assert done(capsys, predict(scans, model)) == {"kept": {"anna", "bert"}}


@pytest.mark.parametrize("kind", ["dicom", "mhd"])
def test_an_earlier_result_stays_where_a_part_of_its_scan_is_not_there_for_now(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    if kind == "mhd":
        scan, part = tmp_path / "scan.mhd", tmp_path / "scan.raw"
        write_volume(scan, subject(200)[0])
    else:
        scan = tmp_path / "scan"
        image = subject(200)[0]
        made = dicoms.slices(np.rint(image.array[0]).astype(np.int16), spacing=image.grid.spacing.tolist())
        part = sorted(dicoms.save(scan, made).iterdir())[3]
    words = ["predict", str(scan), "-m", str(model.folder), "-o", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 0
    part.rename(tmp_path / "elsewhere")
    if kind == "dicom":
        part.symlink_to("/annex/objects/none")
    capsys.readouterr()
    assert main(words) == 2
    assert "its earlier result stays" in capsys.readouterr().err
    part.unlink(missing_ok=True)
    (tmp_path / "elsewhere").rename(part)
    assert set(done(capsys, words)) == {"kept"}


def test_an_earlier_result_of_the_same_request_stays_where_the_work_fails(
    scans: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    class Failing(Predictor):
        """Finds too little memory."""

        def predict(self, *args: object, **options: object) -> NoReturn:
            raise MemoryError

    cases = find_cases([scans], 1)
    paths = {case.name: tmp_path / "out" / f"{case.name}.nii.gz" for case in cases}
    assert set(predict_cases(Predictor(model), cases, paths).written) == {"anna", "bert"}
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(predict_cases(Failing(model), cases, paths, overwrite=True).failed) == {"anna", "bert"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_result_in_another_format_does_not_lie_beside_its_successor(scans: Path, model: Model) -> None:
    words = ["predict", str(scans / "anna.nii.gz"), "-m", str(model.folder), "--quiet", "-o"]
    assert main([*words, str(scans.parent / "out" / "a.nii.gz"), "--agreement"]) == 0
    assert main([*words, str(scans.parent / "out" / "a.mha")]) == 0
    assert {path.name for path in (scans.parent / "out").glob("a*")} == {"a.mha", "a.json", "a.label", "a.ctbl"}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("inputs", "output", "problem"),
    [
        ("in/anna.nii.gz", "in", "would take the place of what is read"),
        ("in/anna.nii.gz", "in/anna.nii.gz", "would take the place of what is read"),
        ("in/anna.nii.gz", "link.nii.gz", "would take the place of what is read"),
        ("in/anna.nii.gz in/bert.nii.gz", "in/../in", "would take the place of what is read"),
        ("in", "in", "would lie among the scans"),
        ("dicom", "dicom/out", "lie in its midst"),
    ],
)
def test_a_result_never_takes_the_place_of_a_scan(
    scans: Path, model: Model, capsys: Capture, inputs: str, output: str, problem: str, dry: list[str]
) -> None:
    place = scans.parent
    (place / "link.nii.gz").symlink_to(scans / "anna.nii.gz")
    (place / "dicom").mkdir()
    (place / "dicom" / "IM1").write_bytes(bytes(128) + b"DICM")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    words = ["predict", *(str(place / name) for name in inputs.split()), "-m", str(model.folder)]
    assert main([*words, "-o", str(place / output), *dry]) == 2
    assert problem in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_places_that_are_taken_are_found_before_any_work(tmp_path: Path) -> None:
    """As only the Python interface may name them."""
    cases = [Subject(name, (tmp_path / f"{name}.nii.gz",), mask=tmp_path / "mask.nii.gz") for name in ("anna", "bert")]
    out = tmp_path / "out"
    with pytest.raises(InputError, match="take the place of what is read"):
        check_places(cases[:1], {"anna": tmp_path / "mask.nii.gz"}, ())
    with pytest.raises(InputError, match=r"x\.json: results of 'anna' and of 'bert' would both be this file"):
        check_places(cases, {"anna": out / "x.nii.gz", "bert": out / "x.mha"}, ())
    (out / "anna.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"anna\.json: the result would take the place of a folder"):
        check_places(cases[:1], {"anna": out / "anna.nii.gz"}, ())
    out.joinpath("file").touch()
    with pytest.raises(InputError, match="a file of that name exists"):
        check_places(cases[:1], {"anna": out / "file" / "anna.nii.gz"}, ())
    with pytest.raises(InputError, match="no such image can be written"):
        check_places(cases[:1], {"anna": out / "anna.nhdr"}, ())


def test_two_results_are_never_one_file(scans: Path, model: Model, capsys: Capture) -> None:
    (scans / "bert.nii.gz").rename(scans / "anna_agreement.nii.gz")
    assert main(predict(scans, model, "--agreement")) == 2
    assert "results of 'anna' and of 'anna_agreement' would both be this file" in capsys.readouterr().err
    assert main(predict(scans, model, "--quiet")) == 0


def test_another_model_predicts_anew(
    scans: Path, model: Model, cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    main(predict(scans, model, "--quiet"))
    other = fit(cohort, tmp_path / "other", QUICK, execution=Execution(seed=1))
    assert done(capsys, predict(scans, other))["written"] == {"anna", "bert"}


def test_a_failing_case_is_reported_at_the_end_and_done_when_it_is_mended(
    scans: Path, model: Model, capsys: Capture
) -> None:
    whole = (scans / "anna.nii.gz").read_bytes()
    (scans / "anna.nii.gz").write_bytes(b"not an image")
    assert main(predict(scans, model)) == 1
    said = capsys.readouterr()
    assert said.out.startswith("2 cases: 1 segmented, 1 failed")
    last = said.err.splitlines()[-1]
    assert last.startswith("atlasnet predict: error: anna: ")
    assert main(predict(scans, model, "--quiet")) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()) == ("", [last])
    (scans / "anna.nii.gz").write_bytes(whole)
    assert done(capsys, predict(scans, model)) == {"written": {"anna"}, "kept": {"bert"}}


@pytest.mark.parametrize("error", [UnusualInputError("unlike"), RegistrationError("unmapped"), OSError("full")])
def test_nothing_of_a_case_that_fails_is_held_while_the_next_one_is_read(
    scans: Path, model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Failing(Predictor):
        """Fails when the scan is read, as far as its caller can tell."""

        def predict(self, image: Volume, *args: object, **options: object) -> NoReturn:
            images.append(weakref.ref(image))
            try:
                raise ValueError("the cause")
            except ValueError as cause:
                raise type(error)(str(error)) from cause

    images: list[weakref.ref[Volume]] = []
    held: list[bool] = []
    read = Subject.read_image

    def read_image(subject: Subject) -> Volume:
        held.extend(image() is not None for image in images)
        return read(subject)

    monkeypatch.setattr(Subject, "read_image", read_image)
    cases = find_cases([scans], 1)
    batch = predict_cases(Failing(model), cases, {case.name: scans.parent / f"{case.name}.nii" for case in cases})
    assert len(batch.failed) + len(batch.refused) == 2
    assert held == [False]
    assert not [image for image in images if image() is not None]


def test_what_became_of_the_cases_is_told_though_a_table_beside_them_cannot_be_written(
    scans: Path, model: Model, capsys: Capture
) -> None:
    (scans / "anna.nii.gz").write_bytes(b"not an image")
    (scans.parent / "out" / "labels.label").mkdir(parents=True)
    assert main(predict(scans, model)) == 1
    said = capsys.readouterr()
    assert said.out.startswith("2 cases: 1 segmented, 1 failed")
    case, table = said.err.splitlines()[-2:]
    assert case.startswith("atlasnet predict: error: anna: ")
    assert "labels.label" in table


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_name_that_is_no_unicode_fails_its_case_alone(scans: Path, model: Model) -> None:
    (scans / "anna.nii.gz").rename(scans / os.fsdecode(b"M\xfcller.nii.gz"))
    words = [sys.executable, "-m", "atlasnet.cli.main", *predict(scans, model, "--report", "--threads", "1")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the name of the file is not in UTF-8" in done.stderr
    assert done.stdout.startswith("2 cases: 1 segmented, 1 failed")
    assert "M\\udcfcller" in (scans.parent / "out" / "report.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_fails_its_case_alone(scans: Path, model: Model) -> None:
    long = "a" * 240  # the temporary file beside it has a longer name than file systems allow
    (scans / "anna.nii.gz").rename(scans / f"{long}.nii.gz")
    cases = find_cases([scans], 1)
    paths = {case.name: scans.parent / "out" / f"{case.name}.nii.gz" for case in cases}
    batch = predict_cases(Predictor(model), cases, paths)
    assert (set(batch.failed), set(batch.written)) == ({long}, {"bert"})
    assert "cannot be read or written" in str(batch.failed[long])


def test_a_scan_of_800_slices_is_segmented_and_one_of_a_single_slice_refused(
    cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    model = fit(cohort, tmp_path / "m", replace(QUICK, operator="affine"))
    image, _ = subject(200)
    rows = np.arange(800) * image.grid.shape[0] // 800
    tall = image.grid.with_spacing(image.grid.spacing * (1, 1, image.grid.shape[0] / 800))
    write_volume(tmp_path / "in" / "short.nii.gz", image)
    write_volume(tmp_path / "in" / "tall.nii.gz", Volume(image.array[0][rows], tall))
    write_volume(tmp_path / "in" / "one.nii.gz", Volume(image.array[0][7:8], image.grid.padded((0, 0, -7), (0, 0, -6))))
    flat = sitk.GetImageFromArray(image.array[0, 7])
    sitk.WriteImage(flat, tmp_path / "in" / "flat.nii.gz")
    assert main(predict(tmp_path / "in", model)) == 1
    said = capsys.readouterr().err
    for name in ("one", "flat"):
        problem = f"{tmp_path / 'in' / name}.nii.gz: the scan does not extend as the model's training scans do"
        assert f"error: {name}: {problem}; expected several slices; found a single slice (xy)" in said
    found, short = (read_volume(tmp_path / "out" / f"{name}.nii.gz") for name in ("tall", "short"))
    assert found.grid.matches(tall)
    assert dice(found.array[0] > 0, short.array[0][rows] > 0) > 0.6  # of a network of twelve steps


@pytest.mark.parametrize(
    "take",
    [
        lambda: np.empty(2**50, np.uint8),
        lambda: torch.empty(2**46),
        lambda: sitk.Image([60_000] * 3, sitk.sitkFloat64),
    ],
    ids=["numpy", "torch", "itk"],
)
def test_a_lack_of_memory_is_said_to_be_one(take: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        take()
    assert "the memory does not suffice" in str(explained(caught.value))


def test_an_error_of_ours_is_not_taken_for_a_case_that_fails() -> None:
    assert explained(RuntimeError("shapes cannot be multiplied")) is None

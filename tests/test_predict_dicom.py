"""``atlasnet predict`` from a DICOM export to DICOM objects, by the command line."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

import dicoms
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import InputError
from atlasnet.execution import read_json, write_json
from atlasnet.prediction import Ensemble, find_cases
from atlasnet.prediction.dicom import find_origin
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.volume import dicom_series, read_volume, write_volume
from synthetic import subject, write_cohort

pytestmark = pytest.mark.usefixtures("brief")
Capture = pytest.CaptureFixture[str]
OPTIONS = FitOptions(atlases=("s0",), width=0.25, epochs=1, operator="affine")
SHELL = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["39607008", "SCT", "Lung"]}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("cohort"), range(2))
    write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "segments": {"shell": SHELL}})
    return folder


@pytest.fixture(scope="module")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(Cohort.read(cohort), tmp_path_factory.mktemp("model") / "m", OPTIONS)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A study of two series below one folder."""
    image, _ = subject(100)
    array = np.rint(image.array[0]).astype(np.int16)
    grid = image.grid
    for series, voxels in (("3", array), ("4", array[::2])):
        made = dicoms.slices(voxels, spacing=grid.spacing.tolist(), origin=grid.origin.tolist(), series=series)
        dicoms.save(tmp_path / "export" / series, made)
    return tmp_path / "export"


def test_a_ct_series_that_states_no_rescale_is_segmented_with_a_warning(
    model: Model, tmp_path: Path, capsys: Capture
) -> None:
    image, _ = subject(100)
    made = dicoms.slices(np.rint(image.array[0]).astype(np.int16), spacing=image.grid.spacing.tolist())
    for dataset in made:
        values = np.frombuffer(dataset.PixelData, np.int16) - 1024  # as tools write them that make DICOM of NIfTI
        dataset.PixelData = values.astype(np.int16).tobytes()
        del dataset.RescaleSlope, dataset.RescaleIntercept
    dicoms.save(tmp_path / "export", made)
    shutil.copytree(model.folder, tmp_path / "m", ignore=shutil.ignore_patterns("work"))
    replace(Model.load(tmp_path / "m"), channels=("CT",)).save()
    arguments = ["predict", str(tmp_path / "export"), "-m", str(tmp_path / "m"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--threads", "1"]) == 0
    assert "no rescale slope and intercept" in capsys.readouterr().err
    assert "no rescale slope and intercept" in read_json(tmp_path / "out" / "export.json")["warnings"][0]
    np.testing.assert_array_equal(read_volume(tmp_path / "export").array, np.rint(image.array))


def test_a_dicom_scan_gives_dicom_objects_with_the_labels_of_the_nifti(
    model: Model, export: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["predict", str(export), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--series", "3"]
    assert main([*arguments, "--dicom-seg", "--rtstruct", "--threads", "1"]) == 0
    labels = read_volume(tmp_path / "out" / "export.nii.gz")
    assert labels.array.any()
    seg = hd.seg.segread(str(tmp_path / "out" / "export_seg.dcm"))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["shell", "core"]
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lung"
    found = np.zeros_like(labels.array[0])
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        slice_ = int(np.rint(labels.grid.to_index(place)[2]))
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[slice_][frame > 0] = {1: 2, 2: 4}[number]
    np.testing.assert_array_equal(found, labels.array[0])
    regions = pydicom.dcmread(tmp_path / "out" / "export_rtstruct.dcm").StructureSetROISequence
    assert [region.ROIName for region in regions] == ["shell", "core"]
    told = capsys.readouterr()
    record = (tmp_path / "out" / "export.json").read_text(encoding="utf-8")
    for secret in (dicoms.NAME, dicoms.PATIENT_ID):
        assert secret not in told.out + told.err + record
    assert len(json.loads(record)["provenance"]["input_sha256"]) == len(list(export.rglob("IM*")))


def test_a_zip_is_unpacked_once_and_each_header_read_once(
    model: Model, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.make_archive(str(tmp_path / "scan"), "zip", export / "3")
    counts: Counter[str] = Counter()

    def counted(name: str) -> None:
        known = getattr(dicom_series, name)
        monkeypatch.setattr(dicom_series, name, lambda *a, **k: counts.update([name]) or known(*a, **k))

    counted("unpack")
    counted("read_header")
    words = ["predict", str(tmp_path / "scan.zip"), "-m", str(model.folder), "-o", str(tmp_path / "out")]
    assert main([*words, "--dicom-seg", "--threads", "1"]) == 0
    assert counts == {"unpack": 1, "read_header": 14}


def test_the_regions_of_a_model_follow_its_labels(model: Model, export: Path) -> None:
    with_region = replace(
        model, regions={"whole": (1, 2), "core": 2}, labels={"background": 0, "label 1": 1, "core": 2}, segment_table={}
    )
    (case,) = find_cases([export / "3"], 1)
    origin = find_origin(case, Ensemble.of(with_region))
    assert [(segment.name, segment.values) for segment in origin.segments] == [
        ("label 1", (1,)),
        ("core", (2,)),
        ("whole", (1, 2)),
    ]


def test_several_series_are_refused_with_their_list_before_the_networks_run(
    model: Model, export: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["predict", str(export), "-m", str(model.folder), "-o", str(tmp_path / "out.nii.gz")]) == 2
    told = capsys.readouterr().err
    assert "3: “thorax 3”, CT, 14 slices; 4: “thorax 4”, CT, 7 slices" in told
    assert "--series" in told
    assert not list(tmp_path.glob("out*"))


def test_no_description_enters_the_log_for_one_case_or_many(
    model: Model, export: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = 'called “Buddy”, "it\'s him"'
    tags = {"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": text}
    made = dicoms.slices(np.zeros((3, 8, 8), np.int16), series="5", **tags)
    dicoms.save(export / "5", made)
    shutil.copytree(export, tmp_path / "second")
    inputs, log = [str(export), str(tmp_path / "second")], tmp_path / "run.log"
    for given, code in ((inputs[:1], 2), (inputs, 1)):
        words = ["predict", *given, "-m", str(model.folder), "-o", str(tmp_path / "out"), "--log", str(log)]
        assert main(words) == code
        assert '“called "Buddy", "it\'s him"”' in capsys.readouterr().err
    text = log.read_text(encoding="utf-8")
    assert text.count("3: <text>, CT, 14 slices; 4: <text>, CT, 7 slices; 5: <text>, CT, 3 slices") >= 3
    for word in ("thorax", "called", "Buddy", "him"):
        assert word not in text


def test_the_log_names_no_folder_in_a_zip_with_the_slashes_of_windows(model: Model, tmp_path: Path) -> None:
    made = dicoms.slices(np.zeros((5, 8, 8), np.int16))
    folder = dicoms.save(tmp_path / "ct", [made[0], made[1], made[3], made[4]])
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in folder.iterdir():
            archive.writestr(zipfile.ZipInfo(f"Buddy\\{file.name}"), file.read_bytes())
    words = ["predict", str(tmp_path / "export.zip"), "-m", str(model.folder), "-o", str(tmp_path / "out.nii.gz")]
    assert main([*words, "--log", str(tmp_path / "run.log")]) == 2
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "slices are missing" in text
    assert "Buddy" not in text


def test_dicom_objects_of_a_scan_that_is_not_dicom_are_refused(model: Model, tmp_path: Path, capsys: Capture) -> None:
    write_volume(tmp_path / "a.nii.gz", subject(100)[0])
    arguments = ["predict", str(tmp_path / "a.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--dicom-seg"]) == 2
    assert "made of a DICOM scan only" in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    model: Model, export: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    arguments = ["predict", str(export), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--series", "3"]
    assert main([*arguments, "--rtstruct"]) == 2
    assert "pip install '.[dicom]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_new_codes_reach_a_finished_model_without_training(cohort: Path, model: Model) -> None:
    before = (model.folder / "networks" / "s0.safetensors").stat().st_mtime_ns
    declared = read_json(cohort / "dataset.json")
    write_json(cohort / "dataset.json", {**declared, "segments": {"shell": {**SHELL, "colour": "#010203"}}})
    again = fit(Cohort.read(cohort), model.folder, OPTIONS)
    assert again.segments[0].rgb == (1, 2, 3)
    assert (model.folder / "networks" / "s0.safetensors").stat().st_mtime_ns == before
    write_json(cohort / "dataset.json", declared)


def test_dicom_files_and_zips_are_cases_named_without_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "study.zip").touch()
    (tmp_path / "slice.dcm").touch()
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    cases = find_cases([tmp_path / name for name in ("study.zip", "slice.dcm", "IM0001")], 1, "7")
    assert [(case.name, case.series) for case in cases] == [("study", ("7",)), ("slice", ("7",)), ("IM0001", ("7",))]
    with pytest.raises(InputError, match=r"study\.zip: .*damaged"):
        find_cases([tmp_path / "study.zip"], 2)

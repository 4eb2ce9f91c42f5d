"""Several DICOM series as the channels of one scan: chosen by what they are called, from cohort to segmentation."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

import dicoms
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import InputError, VolumeError
from atlasnet.estimator import AtlasNet
from atlasnet.execution import Execution
from atlasnet.prediction import find_cases
from atlasnet.training.fit import fit
from atlasnet.training.options import FitOptions
from atlasnet.volume import dicom_series, read_grid, read_labels, read_volume, write_labels, write_volume
from synthetic import subject

pytestmark = pytest.mark.usefixtures("brief")
Capture = pytest.CaptureFixture[str]
NAMES = {"3": "T1 [MPR] sag", "7": "FLAIR tra", "9": "T1 FLAIR cor"}
OPTIONS = FitOptions(atlases=("a",), width=0.25, epochs=1, operator="affine")


def series(number: str, array: NDArray[Any], step: int = 1, **tags: Any) -> list[pydicom.Dataset]:
    """One series of every ``step``-th slice, called as `NAMES` has it."""
    grid, tags = subject(0)[0].grid, {"SeriesDescription": NAMES[number], "Modality": "MR", **tags}
    return dicoms.slices(
        np.rint(array[::step]).astype(np.int16),
        spacing=grid.spacing * [1, 1, step],
        origin=grid.origin,
        series=number,
        **tags,
    )


def save(folder: Path, seed: int, **flair: Any) -> Path:
    """An export of three series whose files lie beside each other, as archives leave them."""
    image = subject(seed)[0].array[0]
    made = [*series("3", image), *series("7", 300 - image, 2, **flair), *series("9", image * 0)]
    folder.mkdir(parents=True)
    for index, dataset in enumerate(made):
        dataset.save_as(folder / f"IM{index:04d}", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exports, each with a label map on the grid of its first channel."""
    folder = tmp_path_factory.mktemp("dicom") / "cases"
    for seed, name in enumerate("ab"):
        export = save(folder / name / "export", seed)
        labels = subject(seed)[1].array
        write_labels(folder / name / "drawn.nii.gz", read_volume(export, series="3").replace(labels))
    return folder


def test_a_series_is_chosen_by_number_uid_or_description(cases: Path) -> None:
    export = cases / "a" / "export"
    wanted = read_volume(export, series="3").array
    for name in (f"{dicoms.ROOT}.3", NAMES["3"], "t1 [mpr] SAG", "*mpr*", "T1 ?MPR? *"):
        np.testing.assert_array_equal(read_volume(export, series=name).array, wanted)
    with pytest.raises(VolumeError, match=r"2 of the DICOM series are “t1\*”; expected the number, the SeriesInstance"):
        read_volume(export, series="t1*")
    with pytest.raises(VolumeError, match=r"none of the DICOM series is “T2”; .*found 3: “T1 \[MPR\] sag”, MR, 14 sl"):
        read_volume(export, series="T2")


def test_a_number_counts_more_than_a_description(tmp_path: Path) -> None:
    for number, text in (("3", "7"), ("7", "3")):
        made = series(number, subject(0)[0].array[0] * 0 + int(number), SeriesDescription=text)
        dicoms.save(tmp_path / number, made)
    assert np.unique(read_volume(tmp_path, series="3").array).tolist() == [3]


def test_a_description_is_taken_as_it_is_listed_and_letter_by_letter_before_it_is_a_pattern(tmp_path: Path) -> None:
    texts = {"3": "T2* [axial]", "7": "T2*  [axial]  “fat” sat", "9": "Schädel T2"}
    for number, text in texts.items():
        voxels = subject(0)[0].array[0] * 0 + int(number)
        dicoms.save(
            tmp_path / number, series(number, voxels, SeriesDescription=text, SpecificCharacterSet="ISO_IR 192")
        )
    for wanted, number in (
        ("t2* [axial]", 3),
        ("*[axial]", 3),
        ('T2* [axial] "fat" sat', 7),
        (unicodedata.normalize("NFD", "schädel*"), 9),
    ):
        assert np.unique(read_volume(tmp_path, series=wanted).array).tolist() == [number]
    with pytest.raises(VolumeError, match="none of the DICOM series is “”"):
        read_volume(tmp_path, series=" ")


def test_no_number_is_none_that_can_be_asked_for(tmp_path: Path) -> None:
    dicoms.save(tmp_path / "3", series("3", subject(0)[0].array[0], SeriesNumber=None))
    with pytest.raises(VolumeError, match="none of the DICOM series is “”"):
        read_volume(tmp_path, series="")


def test_channels_are_those_of_the_series_read_alone(cases: Path, tmp_path: Path) -> None:
    export = cases / "a" / "export"
    (case,) = find_cases([export], 2, ["*mpr*", "flair*"])
    files = tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"
    for file, number in zip(files, "37", strict=True):
        write_volume(file, read_volume(export, series=number))
    alone = Subject("a", files, channels=2).read_image()
    found = case.read_image()
    assert found.grid.matches(read_grid(export, series="3"))
    np.testing.assert_array_equal(found.array, alone.array)
    assert "0000" not in str(case.sources[1])
    assert case.hashes()["images"] == Subject("a", (export,)).hashes()["images"]


@pytest.mark.parametrize(
    ("channels", "named", "said"),
    [
        (
            2,
            None,
            r"is one channel, and the model expects 2; expected --series once for.*found none named; .*9: “T1 FL",
        ),
        (2, 3, r"expects 2; .*found 3; there are 3: “T1"),
        (1, ["3", "7"], r"expects 1; .*found 3, 7; there are"),
    ],
)
def test_as_many_series_as_channels_are_asked_for_with_their_list(
    cases: Path, channels: int, named: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        find_cases([cases / "a" / "export"], channels, named)


def test_exports_of_several_channels_lie_among_files_of_cases(cases: Path, tmp_path: Path) -> None:
    shutil.copytree(cases / "a" / "export", tmp_path / "scans" / "export")
    for number in range(2):
        write_volume(tmp_path / "scans" / f"c_000{number}.nii", subject(2)[0])
    assert [case.name for case in find_cases([tmp_path / "scans"], 2)] == ["c"]
    with pytest.raises(InputError, match=r"c_0000\.nii: a series can be chosen"):
        find_cases([tmp_path / "scans" / "c_0000.nii"], 2, ["3", "7"])
    found = find_cases([tmp_path / "scans"], 2, ["3", "7"])
    assert [(case.name, case.series, case.channels) for case in found] == [("c", (), 2), ("export", ("3", "7"), 2)]


def test_one_series_is_not_two_channels(cases: Path) -> None:
    (case,) = find_cases([cases / "a" / "export"], 2, ["3", "*mpr*"])
    with pytest.raises(
        VolumeError, match=r"two channels are one DICOM series; .*found series “\*mpr\*” of export, which"
    ):
        case.read_image()


def test_channels_of_two_patients_are_refused_without_a_name(tmp_path: Path) -> None:
    save(tmp_path / "export", 0, PatientID="MRN-0815", PatientName="Roe^Richard")
    (case,) = find_cases([tmp_path / "export"], 2, ["3", "7"])
    with pytest.raises(VolumeError, match=r"not of one patient; .*found series 3 of export and series 7") as refusal:
        case.read_image()
    for secret in ("MRN", "Roe", "Doe"):
        assert secret not in str(refusal.value)


@pytest.fixture(scope="module")
def data(cases: Path) -> Path:
    """The cohort that is made of `cases`."""
    words = ["convert", cases, "-o", cases.parent / "data", "--structures", "drawn.nii.gz", "--image", "export"]
    named = ["--series", "*mpr*", "--channel", "T1", "--series", "flair*", "--channel", "FLAIR", "--quiet"]
    assert main(list(map(str, [*words, *named]))) == 0
    return cases.parent / "data"


def test_a_cohort_is_made_of_exports_by_the_names_of_series(cases: Path, data: Path) -> None:
    cohort = Cohort.read(data)
    assert cohort.channels == ("T1", "FLAIR")
    for name in "ab":
        (case,) = find_cases([cases / name / "export"], 2, ["3", "7"])
        np.testing.assert_array_equal(cohort[name].read_image().array, case.read_image().array)
        np.testing.assert_array_equal(
            cohort[name].read_labels().array, read_labels(cases / name / "drawn.nii.gz").array
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--image", "export", "--series", "3", "--channel", "T1", "--channel", "T2"],
            "found 1.*give --series once for each",
        ),
        (["--image", "export", "--series", "3", "--series", "7", "--channel", "T1"], "2 of them, 1 channel"),
        (["--image", "a", "--image", "b", "--series", "3"], "with one --image at most; found 2 images, 1 series"),
        (["--image", "drawn.nii.gz", "--series", "3", "--channel", "T1"], "of a DICOM export only; found series 3"),
        (["--image", "export", "--channel", "T1"], r"there are 3 DICOM series.*name one with --series, or its folder"),
        (["--image", "export", "--series", "T2", "--channel", "T1"], "none of the DICOM series is “T2”"),
        (["--image", "export", "--series", "3", "--series", "7"], "what the images show is not known"),
    ],
)
def test_series_of_a_cohort_that_cannot_be_chosen_are_told(
    cases: Path, tmp_path: Path, words: list[str], said: str, capsys: Capture
) -> None:
    assert main(["convert", str(cases), "-o", str(tmp_path / "data"), "--structures", "drawn.nii.gz", *words]) == 2
    told = capsys.readouterr().err
    assert said.split(".*")[0] in told
    assert said.split(".*")[-1] in told
    assert not (tmp_path / "data").exists()


def test_the_series_of_one_channel_is_named_where_a_label_map_names_none(cases: Path, tmp_path: Path) -> None:
    words = ["convert", cases, "-o", tmp_path / "data", "--structures", "drawn.nii.gz", "--image", "export", "--quiet"]
    assert main(list(map(str, [*words, "--series", "3"]))) == 0
    assert Cohort.read(tmp_path / "data").channels == ("MR",)


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    return fit(Cohort.read(data), data.parent / "model", OPTIONS).folder


def test_an_export_is_segmented_as_its_channels_are_and_refers_to_the_first(
    cases: Path, data: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    export = save(tmp_path / "export", 1, FrameOfReferenceUID=f"{dicoms.ROOT}.88")
    common = ["-m", str(model), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert main(["predict", str(data / "imagesTr" / "b_0000.nii.gz"), *common]) == 0
    capsys.readouterr()
    named = ["--series", "*mpr*", "--series", "flair*", "--dicom-seg", "--rtstruct"]
    assert main(["predict", str(export), *common, *named]) == 0
    told = capsys.readouterr().err
    assert "channel FLAIR states another frame of reference than T1" in told
    assert "channel FLAIR has a grid of its own" in told
    labels = read_labels(tmp_path / "out" / "export.nii.gz").array
    assert labels.any()
    np.testing.assert_array_equal(labels, read_labels(tmp_path / "out" / "b.nii.gz").array)
    seg = hd.seg.segread(str(tmp_path / "out" / "export_seg.dcm"))
    regions = pydicom.dcmread(tmp_path / "out" / "export_rtstruct.dcm")
    assert {str(item.SeriesInstanceUID) for item in seg.ReferencedSeriesSequence} == {f"{dicoms.ROOT}.3"}
    assert regions.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == f"{dicoms.ROOT}.8"
    record = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert len(record["provenance"]["input_sha256"]) == len(list(export.iterdir()))
    assert main(["predict", str(export), *common, *named]) == 0
    assert "kept, it is of the same model" in capsys.readouterr().err
    # A series that is not there says nothing of the result.
    assert main(["predict", str(export), *common, "--series", "*mpr*", "--series", "flare"]) == 2
    assert "its earlier result stays" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8")) == record
    # Other series of the same files are another input.
    assert main(["predict", str(export), *common, "--series", "3", "--series", "9"]) == 0
    assert (
        json.loads((tmp_path / "out/export.json").read_text())["provenance"]["request"]
        != record["provenance"]["request"]
    )


def test_files_of_any_name_and_series_are_the_channels_from_the_command_line_and_from_python(
    cases: Path, data: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = [tmp_path / "sub-b" / name for name in ("t1.nii.gz", "flair.nii.gz")]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(data / "imagesTr" / f"b_000{number}.nii.gz", file)
    words = ["predict", files[0].parent, "-m", model, "-o", tmp_path / "out", "--image", "t1*", "--image", "flair*"]
    assert main([*map(str, words), "--threads", "1", "--quiet"]) == 0
    inside = str(files[0].parent / "flair_seg.nii.gz")
    assert main([*map(str, [*words[:5], inside, *words[6:]]), "--threads", "1", "--quiet"]) == 2
    assert (
        "flair_seg.nii.gz: the result would lie in the folder of a case, and the next call" in capsys.readouterr().err
    )
    found = read_labels(tmp_path / "out" / "sub-b.nii.gz").array
    net, export = AtlasNet.load(model, execution=Execution(threads=1)), cases / "b" / "export"
    for image, series in ((export, ["3", "flair*"]), (files, None), ([export, export], ["3", "7"])):
        np.testing.assert_array_equal(net.predict(image, series=series).labels.array, found)
    with pytest.raises(InputError, match="the model expects 2"):
        net.predict(export, series="3")
    batch = net.predict_all(files[0].parent, tmp_path / "out", images=["t1*", "flair*"])
    assert [*batch.kept] == ["sub-b"]


def test_a_zip_of_both_channels_is_unpacked_once(
    cases: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", cases / "a" / "export"))
    counts: Counter[str] = Counter()
    unpack = dicom_series.unpack
    monkeypatch.setattr(dicom_series, "unpack", lambda path, *a, **k: counts.update([path]) or unpack(path, *a, **k))
    words = ["predict", scan, "-m", model, "-o", tmp_path / "out", "--series", "3", "--series", "7", "--dicom-seg"]
    for more in (["--dry-run"], []):
        assert main([*map(str, words), *more, "--threads", "1", "--quiet"]) == 0
        assert counts.pop(scan) == 1
    channels = ["--source-channel", scan, "--source-series", "3", "--source-series", "7", "--target-channel", scan]
    words = ["register", scan, scan, "-o", tmp_path / "pair", *channels, "--target-series", "3", "--target-series", "7"]
    assert main([*map(str, words), "--operator", "identity", "--threads", "1", "--quiet"]) == 0
    assert counts[scan] == 1


def test_series_of_source_and_target_are_registered_as_channels(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = (str(cases / name / "export") for name in "ab")
    words = ["register", a, b, "-o", str(tmp_path / "out"), "--source-channel", a, "--target-channel", b]
    both = ["--source-series", "3", "--target-series", "*mpr*", "--source-series", "7", "--target-series", "7"]
    assert main([*words, *both, "--operator", "affine", "--threads", "1"]) == 0
    assert capsys.readouterr().err.count("channel series 7 of export has a grid of its own") == 2
    warped = read_volume(tmp_path / "out" / "warped.nii.gz", channels=True)
    assert warped.channels == 2
    assert warped.grid.matches(read_grid(Path(b), series="3"), 1e-3)
    assert main(["register", a, b, "-o", str(tmp_path / "same"), *both, "--operator", "affine", "--threads", "1"]) == 0
    found = read_volume(tmp_path / "same" / "warped.nii.gz", channels=True)
    np.testing.assert_array_equal(found.array, warped.array)
    capsys.readouterr()
    assert main([*words, *both[:4], "--operator", "affine"]) == 2
    assert "--source-series must be given once for each channel; expected 2: of export, export; found 3" in (
        capsys.readouterr().err
    )

"""Cohorts made of masks, label maps, segmentations of Slicer and DICOM, structure sets: the same labels each time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage
from scipy.spatial.transform import Rotation

import dicoms
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, check_cohort
from atlasnet.cohort.annotated import check_hidden
from atlasnet.cohort.conversion import convert_cohort
from atlasnet.cohort.conversion.structure_set import StructureSet
from atlasnet.cohort.segments import label_segments, region_segments
from atlasnet.cohort.structures import where
from atlasnet.errors import CohortError, InputError, VolumeError
from atlasnet.prediction.dicom import Origin
from atlasnet.prediction.dicom_seg import write_dicom_seg
from atlasnet.prediction.rtstruct import write_rtstruct
from atlasnet.volume import Grid, Volume, read_volume, write_labels, write_volume
from atlasnet.volume.dicom import read_dicom_source
from atlasnet.volume.dicom_files import quiet_pydicom

SPACING, ORIGIN = (0.8, 1.1, 2.5), (12.0, -34.0, 56.0)
VALUES = {"background": 0, "Lung": 1, "tumour": 2}  # in the order of their names
TABLE = {
    "Lung": {
        "category": ["123037004", "SCT", "Anatomical Structure"],
        "type": ["39607008", "SCT", "Lung"],
        "modifier": ["7771000", "SCT", "Left"],
        "colour": "#80AE80",
    },
    "tumour": {
        "category": ["49755003", "SCT", "Morphologically Altered Structure"],
        "type": ["108369006", "SCT", "Neoplasm"],
        "colour": "#D08040",
    },
}
OBLIQUE = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
TURNS = [
    np.eye(3)[:, list(order)] * np.array(signs)
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def painted() -> NDArray[np.uint8]:
    """(z, y, x) values: a lopsided lung with a hole, a tumour in the hole and one at the border."""
    array = np.zeros((6, 13, 11), np.uint8)
    array[1:5, 2:12, 1:7] = 1
    array[1:3, 2:6, 7:9] = 1
    array[2:4, 5:9, 3:6] = 0
    array[3, 6:8, 4] = 2
    array[5, 0, 0:3] = 2
    return array


def image(direction: NDArray[np.float64] | None = None) -> Volume:
    """CT numbers that tell where a voxel is, on an oblique grid by default."""
    array = np.arange(painted().size, dtype=np.int16).reshape(1, *painted().shape) - 200
    axes = OBLIQUE if direction is None else direction
    return Volume(array, Grid.from_parts(painted().shape, SPACING, ORIGIN, axes))


def write_image(case: Path, direction: NDArray[np.float64] | None = None) -> Volume:
    volume = image(direction)
    write_volume(case / "ct.nii.gz", volume)
    return volume


def write_masks(case: Path) -> None:
    volume = write_image(case)
    for name, value in list(VALUES.items())[1:]:
        mask = np.where(painted() == value, 255, 0).astype(np.uint8)
        write_labels(case / "segmentations" / f"{name}.nii.gz", Volume(mask[None], volume.grid))


def write_label_map(case: Path) -> None:
    volume = write_image(case)
    write_labels(case / "drawn.nrrd", Volume(painted()[None], volume.grid))


def write_slicer(case: Path, *, layers: bool = False) -> None:
    """As 3D Slicer saves it: no more than what is segmented, values in another order, possibly in layers."""
    volume = write_image(case)
    part = np.zeros_like(painted())
    part[painted() == 1], part[painted() == 2] = 7, 3
    grid = volume.grid.padded((0, 0, -1), (-2, -1, 0))
    part = part[1:, :-1, :-2]
    stacked = [np.where(part == 7, 1, 0), np.where(part == 3, 1, 0)] if layers else [part]
    drawn = sitk.GetImageFromArray(np.stack(stacked, axis=-1).astype(np.uint8), isVector=True)
    if not layers:
        drawn = sitk.GetImageFromArray(part)
    drawn.SetSpacing(grid.spacing.tolist())
    drawn.SetOrigin(grid.origin.tolist())
    drawn.SetDirection(grid.direction.ravel().tolist())
    for number, (name, value) in enumerate((("tumour", 3), ("Lung", 7))):
        entry = TABLE[name]
        codes = [entry["category"], entry["type"], entry.get("modifier", ["", "", ""])]
        terms = "~".join("^".join((str(c[1]), str(c[0]), str(c[2]))) for c in codes)
        rgb = bytes.fromhex(str(entry["colour"])[1:])
        fields = {
            "ID": f"Segment_{number + 1}",
            "Name": name,
            "Layer": str(1 - number) if layers else "0",
            "LabelValue": "1" if layers else str(value),
            "Color": " ".join(f"{share / 255:.6g}" for share in rgb),
            "Tags": f"Segmentation.Status:completed|TerminologyEntry:General~{terms}~Anatomic~^^~^^|",
        }
        for key, text in fields.items():
            drawn.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(drawn, str(case / "Segmentation.seg.nrrd"), useCompression=True)


def write_layers(case: Path) -> None:
    write_slicer(case, layers=True)


def series_of(case: Path, direction: NDArray[np.float64] | None = None, series: str = "1") -> tuple[Volume, Origin]:
    """The image as a DICOM series in a folder of its own, and what refers to it."""
    axes = OBLIQUE if direction is None else direction
    axes = axes if np.linalg.det(axes) > 0 else axes * [1, 1, -1]  # slices are stacked along their normal
    folder = dicoms.save(
        case / f"ct{series}",
        dicoms.slices(image().array[0], spacing=SPACING, origin=ORIGIN, direction=axes, series=series),
    )
    table = label_segments(VALUES, TABLE)
    origin = Origin(read_dicom_source(folder), table, model="m", created=datetime(2026, 3, 4, 5, 6, 7))
    return read_volume(folder), origin


def write_seg(case: Path, direction: NDArray[np.float64] | None = None) -> None:
    volume, origin = series_of(case, direction)
    write_dicom_seg(case / "objects" / "SEG.dcm", volume.replace(painted()[None]), origin)


def write_structures(case: Path, direction: NDArray[np.float64] | None = None) -> None:
    volume, origin = series_of(case, direction)
    write_rtstruct(case / "RS", volume.replace(painted()[None]), origin)


FORMS: dict[str, tuple[Callable[[Path], None], Mapping[str, Any]]] = {
    "masks": (write_masks, {}),
    "label map": (
        write_label_map,
        {"images": ["ct.nii.gz"], "structures": "drawn.*", "labels": {"Lung": ["1"], "tumour": ["2"]}},
    ),
    "Slicer": (write_slicer, {}),
    "Slicer, in layers": (write_layers, {}),
    "DICOM segmentation": (write_seg, {}),
    "structure set": (write_structures, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_cohort(tmp_path: Path, form: str) -> None:
    write, options = FORMS[form]
    for name in ("a", "b"):
        write(tmp_path / "cases" / name)
    channels = () if form in ("DICOM segmentation", "structure set") else ["CT"]
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=channels, **options)
    assert (made.cases, made.channels, made.labels) == (("a", "b"), ("CT",), VALUES)
    cohort = Cohort.read(tmp_path / "data")
    assert cohort.channels == ("CT",)
    assert dict(cohort.labels) == VALUES
    for subject in cohort:
        read = subject.read_image()
        np.testing.assert_array_equal(read.array, image().array)
        assert read.grid.matches(image().grid)
        np.testing.assert_array_equal(subject.read_labels().array[0], painted())
    segments = json.loads((tmp_path / "data" / "dataset.json").read_text()).get("segments", {})
    if form.startswith("Slicer"):
        assert segments == TABLE
    elif form == "structure set":
        assert {name: entry["colour"] for name, entry in segments.items()} == {n: t["colour"] for n, t in TABLE.items()}
    elif form == "DICOM segmentation":
        for name, entry in TABLE.items():
            assert {key: segments[name].get(key) for key in ("category", "type", "modifier")} == {
                key: entry.get(key) for key in ("category", "type", "modifier")
            }
            shades = [bytes.fromhex(found["colour"][1:]) for found in (segments[name], entry)]
            assert np.abs(np.subtract(*(np.array(list(shade)) for shade in shades))).max() <= 1  # through CIELab
    else:
        assert segments == {}


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: str(turn.astype(int).tolist()))
def test_masks_in_all_orientations_lie_where_they_were_drawn(tmp_path: Path, turn: NDArray[np.float64]) -> None:
    case = tmp_path / "cases" / "a"
    volume = write_image(case)
    axes = np.abs(turn).argmax(axis=0)
    signs = turn[axes, range(3)].astype(int)
    for name, value in list(VALUES.items())[1:]:
        turned = (painted() == value).T.transpose(axes)[tuple(slice(None, None, int(s)) for s in signs)]
        first = np.zeros(3)
        first[axes] = np.where(signs < 0, np.array(turned.shape) - 1, 0)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = volume.grid.affine[:3, :3] @ turn, volume.grid.to_world(first)
        grid = Grid(turned.T.shape, affine)
        write_labels(case / "masks" / f"{name}.nrrd", Volume(turned.T[None].astype(np.uint8), grid))
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())


@pytest.mark.parametrize("write", [write_seg, write_structures])
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: str(turn.astype(int).tolist()))
def test_dicom_in_all_orientations(
    tmp_path: Path, turn: NDArray[np.float64], write: Callable[[Path, NDArray[np.float64]], None]
) -> None:
    write(tmp_path / "cases" / "a", turn)
    convert_cohort(tmp_path / "cases", tmp_path / "data")
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())


def test_the_cohort_passes_the_check(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_masks(tmp_path / "cases" / name)
        volume = read_volume(tmp_path / "cases" / name / "ct.nii.gz")
        volume.array[0, 0, 0, 0] = ord(name)  # else the three are one scan
        write_volume(tmp_path / "cases" / name / "ct.nii.gz", volume)
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    assert check_cohort(tmp_path / "data").errors == ()


def structure_set(path: Path, regions: Mapping[str, list[NDArray[np.float64]]], kind: str = "CLOSED_PLANAR") -> Path:
    """Contours (n, 3) in LPS mm, made with pydicom alone."""
    made = dicoms.header(str(RTStructureSetStorage), "99", "9")
    made.Modality = "RTSTRUCT"
    made.StructureSetROISequence = [
        dicoms.item(ROINumber=number, ROIName=name) for number, name in enumerate(regions, start=4)
    ]
    made.ROIContourSequence = [
        dicoms.item(
            ReferencedROINumber=number,
            ContourSequence=[
                dicoms.item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.5f}" for value in points.ravel()],
                )
                for points in contours
            ],
        )
        for number, contours in enumerate(regions.values(), start=4)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def circle(grid: Grid, centre: tuple[float, float, float], radius: float) -> NDArray[np.float64]:
    """In a slice of the grid: centre in voxels (x, y, z), radius in mm."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1) * radius / grid.spacing
    return grid.to_world(np.array(centre) + ring)


def test_contours_are_filled_to_their_area_and_inner_ones_are_holes(tmp_path: Path) -> None:
    grid = Grid.from_parts((3, 200, 160), (0.5, 0.4, 3.0), ORIGIN, OBLIQUE)
    rings = [circle(grid, (80.3, 99.7, 1), 25.0), circle(grid, (84, 95, 1), 10.0)]
    found = StructureSet(structure_set(tmp_path / "rs.dcm", {"ring": rings, "empty": []}))
    assert found.names == ("ring",)
    mask = found.mask("ring", grid)
    assert not mask[0].any()
    assert not mask[2].any()
    area = np.count_nonzero(mask[1]) * 0.5 * 0.4
    assert area == pytest.approx(np.pi * (25.0**2 - 10.0**2), rel=5e-3)
    y, x = np.indices(mask.shape[1:])
    inside = ((x - 80.3) * 0.5) ** 2 + ((y - 99.7) * 0.4) ** 2 < 25.0**2
    hole = ((x - 84) * 0.5) ** 2 + ((y - 95) * 0.4) ** 2 < 10.0**2
    assert np.count_nonzero(mask[1] != (inside & ~hole)) < 10  # a polygon is no circle


def test_outlines_that_overlap_in_part_are_united_and_told_and_those_of_the_type_xor_are_not(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume, _ = series_of(case)
    grid = volume.grid
    centres, radius = ((3.0, 6.0), (6.0, 6.0)), 2.6
    rings = [circle(grid, (*centre, 2), radius) for centre in centres]
    hole = circle(grid, (3, 6, 2), 0.9)
    y, x = np.indices(grid.shape[1:])
    one, other = (((x - c[0]) * SPACING[0]) ** 2 + ((y - c[1]) * SPACING[1]) ** 2 < radius**2 for c in centres)
    structure_set(case / "rs.dcm", {"node": [rings[0], hole, rings[1]]})
    made = convert_cohort(tmp_path / "cases", tmp_path / "data")
    inner = ((x - 3) * SPACING[0]) ** 2 + ((y - 6) * SPACING[1]) ** 2 < 0.9**2
    found = Cohort.read(made.folder)["a"].read_labels().array[0, 2]
    np.testing.assert_array_equal(found, (one | other) & ~inner)
    common = np.count_nonzero(one & other)
    (note,) = made.notes
    assert note.startswith(f"a: contours of 'node' overlap in part, in {common} voxels of 1 slice: they are united")
    structure_set(case / "rs.dcm", {"node": rings}, kind="CLOSEDPLANAR_XOR")
    made = convert_cohort(tmp_path / "cases", tmp_path / "exclusive")
    np.testing.assert_array_equal(Cohort.read(made.folder)["a"].read_labels().array[0, 2], one ^ other)
    assert made.notes == ()


def test_a_structure_set_with_values_that_are_not_valid_is_read_without_a_warning(tmp_path: Path) -> None:
    grid = Grid.from_parts((3, 20, 20), (1, 1, 3.0))
    path = structure_set(tmp_path / "rs.dcm", {"ring": [circle(grid, (10, 10, 1), 5)]})
    with quiet_pydicom():
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 999"
        dataset.save_as(path)
    assert StructureSet(path).names == ("ring",)  # a warning, which may quote values, is an error here


def test_contours_beside_the_slices_are_refused(tmp_path: Path) -> None:
    grid = Grid.from_parts((3, 20, 20), (1, 1, 3.0))
    for height in (0.4, -1.0, 3.0):
        ring = circle(grid, (10, 10, height), 5)
        found = StructureSet(structure_set(tmp_path / "rs.dcm", {"ring": [ring]}))
        with pytest.raises(VolumeError, match="is not in a slice of the image"):
            found.mask("ring", grid)
    sagittal = circle(grid, (10, 10, 1), 3)[:, [2, 1, 0]]
    with pytest.raises(VolumeError, match="is not in a slice of the image"):
        StructureSet(structure_set(tmp_path / "rs.dcm", {"ring": [sagittal]})).mask("ring", grid)


def test_skipped_slices_are_told(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume, _ = series_of(case)
    rings = [circle(volume.grid, (5, 6, z), 2) for z in (1, 4)]
    structure_set(case / "rs.dcm", {"node": rings})
    made = convert_cohort(tmp_path / "cases", tmp_path / "data")
    assert made.notes == ("a: 'node' has no contour in 2 slices between others",)


def test_labels_unite_cover_and_leave_out(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume = write_image(case)
    whole = (painted() > 0).astype(np.uint8)
    for name, mask in (("organ", whole), ("Left", painted() == 2), ("RIGHT", painted() * 0), ("else", whole)):
        write_labels(case / "masks" / f"{name}.nii.gz", Volume(mask[None].astype(np.uint8), volume.grid))
    with pytest.raises(CohortError, match=r"overlaps other structures in .* --label in the order .* --overlapping"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    assert not (tmp_path / "data").exists()
    words = ["convert", str(tmp_path / "cases"), "-o", str(tmp_path / "data"), "--channel", "CT"]
    assert main([*words, "--label", "organ", "--label", "spot = left, right"]) == 0
    cohort = Cohort.read(tmp_path / "data")
    assert dict(cohort.labels) == {"background": 0, "organ": 1, "spot": 2}
    np.testing.assert_array_equal(cohort["a"].read_labels().array[0], painted())


def test_structures_that_overlap_are_kept_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole, beside = np.zeros(painted().shape, bool), np.zeros(painted().shape, bool)
    whole[1:5, 2:10, 2:9], beside[2:4, 8:12, 3:6] = True, True
    core = whole & (random.random(whole.shape) < 0.4)
    unclear = random.random(whole.shape) < 0.05
    drawn = {
        "a": {"tumour": whole, "core": core, "node": whole & False},
        "b": {"tumour": whole, "core": core, "node": beside, "ignore": unclear},
    }
    for name, masks in drawn.items():
        write_named(tmp_path / "cases" / name, **masks)
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], overlapping=True, allow_missing=True)
    cohort = Cohort.read(tmp_path / "data")
    assert cohort.ignore_label == 255
    assert cohort.structures == {name: values for name, values in made.labels.items() if values not in (0, 255)}
    for name, masks in drawn.items():
        found = cohort[name].read_labels().array[0]
        counts = ~masks.get("ignore", whole & False)
        np.testing.assert_array_equal(found == 255, ~counts)
        for structure in ("tumour", "core", "node"):
            np.testing.assert_array_equal(where(found, made.labels[structure]), masks[structure] & counts)
    # Of the first case the tumour alone and with its core; of the second, the node alone, with the tumour, with both.
    assert made.labels["tumour"] == (1, 2, 4, 5)
    assert made.labels["core"] == (2, 5)
    assert made.labels["node"] == (3, 4, 5)
    both = int((whole & core).sum() + (whole & core & ~beside & ~unclear).sum())
    assert f"2 is 'core' and 'tumour': {both} voxels in 2 cases" in made.notes
    assert check_cohort(tmp_path / "data").ok


def test_a_structure_that_others_lie_in_keeps_its_code_and_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        volume, origin = series_of(tmp_path / "cases" / name)
        both, table = {"both": (1, 2)}, {"both": {**TABLE["Lung"], "colour": "#204060"}}
        origin = replace(origin, segments=(*origin.segments, *region_segments(VALUES, table, both)))
        write_dicom_seg(tmp_path / "cases" / name / "SEG.dcm", volume.replace(painted()[None]), origin)
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", overlapping=True)
    assert isinstance(made.labels["both"], tuple)
    cohort = Cohort.read(tmp_path / "data")
    assert cohort.segments["both"]["type"] == TABLE["Lung"]["type"]
    shade = np.array(list(bytes.fromhex(cohort.segments["both"]["colour"][1:])))
    assert np.abs(shade - (0x20, 0x40, 0x60)).max() <= 1  # through CIELab


def test_structures_that_do_not_overlap_are_the_same_with_overlaps_allowed(tmp_path: Path) -> None:
    write_masks(tmp_path / "cases" / "a")
    words = ["convert", str(tmp_path / "cases"), "-o", str(tmp_path / "data"), "--channel", "CT", "--overlapping"]
    assert main(words) == 0
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert content["labels"] == VALUES
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())


def test_more_overlaps_than_a_label_map_has_values_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_named(tmp_path / "cases" / "a", **{f"s{n}": random.random(painted().shape) < 0.5 for n in range(9)})
    with pytest.raises(CohortError, match="overlap in too many ways"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], overlapping=True)
    assert not (tmp_path / "data").exists()


def test_an_empty_entry_of_a_label_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_masks(tmp_path / "cases" / "a")
    words = ["convert", str(tmp_path / "cases"), "-o", str(tmp_path / "data"), "--channel", "CT"]
    assert main([*words, "--label", "both=Lung,,tumour"]) == 2
    assert "an entry of the list is empty" in capsys.readouterr().err


def test_a_missing_structure_is_refused_or_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_masks(tmp_path / "cases" / name)
    (tmp_path / "cases" / "b" / "segmentations" / "tumour.nii.gz").rename(
        tmp_path / "cases" / "b" / "segmentations" / "met.nii.gz"
    )
    words = ["convert", str(tmp_path / "cases"), "-o", str(tmp_path / "data"), "--channel", "CT"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "'met' in a; 'tumour' in b" in said
    assert "--allow-missing" in said
    assert main([*words, "--label", "Lung", "--label", "tumour", "--allow-missing"]) == 0
    assert "taken for absent: 'tumour' in b" in capsys.readouterr().out
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["b"].read_labels().array[0] == 1, painted() == 1)


def test_a_missing_structure_may_be_one_that_nobody_annotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_masks(tmp_path / "cases" / name)
    (tmp_path / "cases" / "b" / "segmentations" / "tumour.nii.gz").unlink()
    words = ["convert", str(tmp_path / "cases"), "-o", str(tmp_path / "data"), "--channel", "CT", "--partial"]
    assert main([*words, "--allow-missing"]) == 2
    assert "one of --allow-missing and --partial" in capsys.readouterr().err
    assert main(words) == 0
    assert "not annotated: 'tumour' in b" in capsys.readouterr().out
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["annotated"] == {"b": ["Lung"]}
    assert Cohort.read(tmp_path / "data").hidden == {"b": ((2, 0),)}
    assert not check_cohort(tmp_path / "data").errors
    (tmp_path / "cases" / "b" / "segmentations" / "Lung.nii.gz").rename(tmp_path / "cases" / "b" / "notes.nii.gz")
    with pytest.raises(CohortError):
        convert_cohort(tmp_path / "cases", tmp_path / "other", channels=["CT"], partial=True)


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_label_of_which_a_case_has_a_part_was_not_annotated_there(tmp_path: Path, overlapping: bool) -> None:
    cases, left, right = tmp_path / "cases", painted() == 1, painted() == 2
    write_named(cases / "a", Lung_L=left, Lung_R=right, heart=painted() == 0)
    write_named(cases / "b", lung_l=left, heart=painted() == 0)
    write_named(cases / "c", Lungs=painted() > 0)
    write_named(cases / "d", Lung_L=left, Lung_R=right & False)
    labels = {"lung": ["Lung_L", "Lung_R", "Lungs"], "heart": ["heart"]}
    options: dict[str, Any] = {"channels": ["CT"], "labels": labels, "partial": True, "overlapping": overlapping}
    made = convert_cohort(cases, tmp_path / "data", **options)
    assert "b: lung_l alone is not the whole of 'lung', and is left out" in made.notes
    assert "not annotated: 'lung' in b" in made.notes
    cohort = Cohort.read(made.folder)
    lung, heart = made.labels["lung"], made.labels["heart"]
    assert cohort.hidden == {"b": ((lung, 0),), "c": ((heart, 0),), "d": ((heart, 0),)}
    assert set(np.unique(cohort["b"].read_labels().array)) == {0, heart}
    np.testing.assert_array_equal(cohort["c"].read_labels().array[0] == lung, painted() > 0)
    assert not check_cohort(made.folder).errors
    (cases / "b" / "masks" / "heart.nii.gz").unlink()
    with pytest.raises(CohortError, match=r"one label at least, and all of the structures that it unites; found b"):
        convert_cohort(cases, tmp_path / "other", **options)


def test_structures_that_overlap_are_kept_whole_where_some_are_not_annotated(tmp_path: Path) -> None:
    for case in ("a", "b"):
        structures = {"organ": painted() > 0, "tumour": painted() == 2, "unclear": painted() == 1}
        write_named(tmp_path / "cases" / case, **structures)
    next((tmp_path / "cases" / "b").rglob("tumour.nii.gz")).unlink()
    options: dict[str, Any] = {"channels": ["CT"], "partial": True}
    labels = {"organ": ["organ"], "tumour": ["tumour"]}
    with pytest.raises(CohortError, match=r"'tumour' overlaps other structures.*--overlapping"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", labels=labels, **options)
    labels = {"organ": ["organ"], "ignore": ["unclear"]}
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", labels=labels, **options)
    assert not Cohort.read(made.folder).hidden
    labels = {"organ": ["organ"], "tumour": ["tumour"]}
    made = convert_cohort(tmp_path / "cases", tmp_path / "both", labels=labels, overlapping=True, **options)
    assert made.labels == {"background": 0, "organ": (1, 2), "tumour": 2}
    cohort = Cohort.read(made.folder)
    assert cohort.hidden == {"b": ((2, 1),)}  # what is organ there may be tumour
    np.testing.assert_array_equal(cohort["b"].read_labels().array[0], painted() > 0)


def test_a_tumour_without_its_organ_is_the_value_that_it_has_within_the_organ(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    for case in ("a", "b", "c"):
        write_named(cases / case, organ=painted() > 0, tumour=painted() == 2)
    next((cases / "a").rglob("organ.nii.gz")).unlink()
    options: dict[str, Any] = {"channels": ["CT"], "partial": True, "overlapping": True}
    made = convert_cohort(cases, tmp_path / "data", **options)
    assert made.labels == {"background": 0, "organ": (1, 2), "tumour": 2}
    assert sum(": 2 is 'organ' and 'tumour'" in f": {note}" and "in 3 cases" in note for note in made.notes) == 1
    cohort = Cohort.read(made.folder)
    assert cohort.hidden == {"a": ((1, 0),)}
    np.testing.assert_array_equal(cohort["a"].read_labels().array[0], np.where(painted() == 2, 2, 0))
    assert not check_cohort(made.folder).errors
    for case in ("b", "c"):  # now nobody knows that it lies within
        next((cases / case).rglob("tumour.nii.gz")).unlink()
    made = convert_cohort(cases, tmp_path / "apart", **options)
    assert made.labels == {"background": 0, "tumour": 1, "organ": 2}
    assert not check_cohort(made.folder).errors


@pytest.mark.parametrize("seed", range(12))
def test_whatever_was_drawn_is_told_by_the_values_of_its_case(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    names = ["a", "b", "c", "d"]
    drawn: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for case in map(str, range(5)):
        combinations = [0, 0b0110, *random.permutation([0b1000, 0b1100, 0b0011, 0b0111])[:2]]  # of the four, as bits
        codes = random.choice(combinations, painted().shape)
        told = random.choice(names, random.integers(1, 5), replace=False)
        drawn[case] = {name: (codes >> names.index(name) & 1).astype(bool) for name in sorted(told)}
        write_named(tmp_path / "cases" / case, **drawn[case])
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], partial=True, overlapping=True)
    cohort = Cohort.read(made.folder)
    for subject in cohort:
        labels = subject.read_labels()
        check_hidden(labels, subject.hidden, subject.name)
        for name, mask in drawn[subject.name].items():
            np.testing.assert_array_equal(where(labels.array[0], made.labels[name]), mask)


def test_channels_on_one_grid(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume = image()
    write_volume(case / "a_t1.nii.gz", volume)
    write_volume(case / "a_t2.nii.gz", volume.replace(volume.array * 2))
    write_labels(case / "a_seg.nii.gz", volume.replace(painted()[None]))
    options: dict[str, Any] = {"images": ["*_t1.nii.gz", "*_t2.nii.gz"], "structures": "*_seg.nii.gz"}
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["T1", "T2"], **options)
    assert made.labels == {"background": 0, "1": 1, "2": 2}
    subject = Cohort.read(tmp_path / "data")["a"]
    np.testing.assert_array_equal(subject.read_image().array, np.concatenate([volume.array, volume.array * 2]))
    with pytest.raises(InputError, match="not as many"):
        convert_cohort(tmp_path / "cases", tmp_path / "other", channels=["T1"], **options)


@pytest.mark.parametrize("vector", [False, True], ids=["4-D", "5-D"])
def test_channels_in_one_file_become_a_file_each(tmp_path: Path, vector: bool) -> None:
    case = tmp_path / "cases" / "a"
    write_masks(case)
    volume = read_volume(case / "ct.nii.gz")
    both = np.concatenate([volume.array, volume.array * 2])
    arranged = np.moveaxis(both, 0, -1) if vector else both
    image = sitk.GetImageFromArray(np.ascontiguousarray(arranged), isVector=vector)
    sitk.WriteImage(image, str(case / "ct.nii.gz"))
    for mask in (case / "segmentations").iterdir():
        plain = sitk.GetImageFromArray(read_volume(mask).array[0])
        sitk.WriteImage(plain, str(mask))
    data = tmp_path / "data"
    with pytest.raises(CohortError, match=r"the image is 4-D.*found 2 volumes.*name its channels, in their order"):
        convert_cohort(tmp_path / "cases", data, channels=["T1"])
    with pytest.raises(CohortError, match=r"declared number of channels; expected 3; found 2.*--channel once for each"):
        convert_cohort(tmp_path / "cases", data, channels=["T1", "T2", "FLAIR"])
    convert_cohort(tmp_path / "cases", data, channels=["T1", "T2"])
    assert sorted(path.name for path in (data / "imagesTr").iterdir()) == ["a_0000.nii.gz", "a_0001.nii.gz"]
    cohort = Cohort.read(data)
    assert cohort.channels == ("T1", "T2")
    np.testing.assert_array_equal(cohort["a"].read_image().array, both)
    np.testing.assert_array_equal(cohort["a"].read_labels().array[0], painted())


def test_folders_of_texts_alone_are_left_out_and_others_without_images_refused(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    write_masks(cases / "a")
    for name in ("docs/README", "docs/pages/how.md", "logs/2026.log"):
        (cases / name).parent.mkdir(parents=True, exist_ok=True)
        (cases / name).write_text("nothing to see")
    made = convert_cohort(cases, tmp_path / "data", channels=["CT"])
    assert made.cases == ("a",)
    assert made.notes == ("left out, with texts and tables alone: docs, logs",)
    write_slices = dicoms.slices(image().array[0], spacing=SPACING, origin=ORIGIN, direction=np.eye(3), series="1")
    dicoms.save(tmp_path / "ct", write_slices)
    doubtful = {"sidecar": "a.json", "unknown": "a.mgz", "hidden": ".a.txt", "disguised": "slice.txt"}
    for name, file in doubtful.items():
        (cases / name).mkdir()
        (cases / name / file).write_text("{}")
    next((tmp_path / "ct").iterdir()).rename(cases / "disguised" / "slice.txt")
    with pytest.raises(CohortError, match="4 cases cannot be converted") as told:
        convert_cohort(cases, tmp_path / "other", channels=["CT"])
    for name in doubtful:
        assert f"{cases / name}: there is no annotation" in str(told.value)
    assert "fetch what belongs there, or move the folder away if it is no case" in str(told.value)


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    write_masks(cases / "good")
    write_image(cases / "bare")
    write_masks(cases / "two")
    write_image(cases / "two" / "more")
    write_masks(cases / "torn")
    (cases / "torn" / "segmentations" / "Lung.nii.gz").write_bytes(b"no image")
    (cases / "empty").mkdir()
    with pytest.raises(CohortError) as told:
        convert_cohort(cases, tmp_path / "data", channels=["CT"])
    text = str(told.value)
    assert "3 cases cannot be converted" in text
    assert "bare: there is no annotation" in text
    assert "two: there are several annotations" in text
    assert "empty: there is no annotation" in text
    assert not (tmp_path / "data").exists()
    for name in ("bare", "two", "empty"):
        (cases / name).rename(tmp_path / name)
    with pytest.raises(CohortError, match=r"1 case cannot be converted(.|\n)*torn.*Lung\.nii\.gz"):
        convert_cohort(cases, tmp_path / "data", channels=["CT"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("data", ".data"))] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grid: grid.with_spacing((0.4, 0.55, 1.25)), "not drawn on the voxels of the image"),
        (
            lambda grid: Grid.from_parts(grid.shape, grid.spacing, grid.origin + 0.3, grid.direction),
            "not drawn on the voxels",
        ),
        (lambda grid: grid.padded((3, 0, 0), (-3, 0, 0)), "reaches out of the image; .* 13 voxels outside"),
        (lambda grid: grid.padded((0, 0, 60), (0, 0, -60 + 0)), "reaches out of the image"),
    ],
)
def test_masks_of_other_voxels_are_refused(tmp_path: Path, change: Callable[[Grid], Grid], message: str) -> None:
    case = tmp_path / "cases" / "a"
    volume = write_image(case)
    grid = change(volume.grid)
    mask = np.zeros((1, *grid.shape), np.uint8)
    mask[:, :, :13, 1] = 1 if grid.shape == volume.grid.shape else 0
    mask[0, 0, 0, 0] = 1
    write_labels(case / "masks" / "m.nii.gz", Volume(mask, grid))
    with pytest.raises(CohortError, match=message.replace("13", r"\d+")):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])


def test_a_label_map_among_masks_is_refused(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume = write_image(case)
    write_labels(case / "masks" / "all.nii.gz", volume.replace(painted()[None]))
    with pytest.raises(CohortError, match=r"no mask of one structure.*found 0, 1, 2"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])


def test_a_cohort_needs_no_conversion(tmp_path: Path) -> None:
    write_masks(tmp_path / "cases" / "a")
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    with pytest.raises(CohortError, match="this is a cohort already"):
        convert_cohort(tmp_path / "data", tmp_path / "again", channels=["CT"])
    with pytest.raises(InputError, match="the folder exists already"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    with pytest.raises(CohortError, match="there is no folder of a case"):
        convert_cohort(tmp_path / "data" / "labelsTr", tmp_path / "again", channels=["CT"])


def test_what_an_image_shows_must_be_known(tmp_path: Path) -> None:
    write_masks(tmp_path / "cases" / "a")
    with pytest.raises(InputError, match=r"--channel CT.*found images that do not say it"):
        convert_cohort(tmp_path / "cases", tmp_path / "data")


def test_an_image_that_says_that_it_is_no_ct_is_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_seg(tmp_path / "cases" / name)
    for file in (tmp_path / "cases" / "b" / "ct1").iterdir():
        stored = pydicom.dcmread(file)
        stored.Modality = "MR"
        stored.save_as(file)
    with pytest.raises(InputError, match=r"the images show is not known.*found CT, MR"):
        convert_cohort(tmp_path / "cases", tmp_path / "data")
    with pytest.raises(CohortError, match=r"not all images are CT.*found b \(MR\)"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["anything"])


def test_the_series_on_which_was_drawn_is_taken(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    write_seg(case)
    other = dicoms.slices(image().array[0][:, ::-1] * 0, spacing=SPACING, origin=ORIGIN, direction=OBLIQUE, series="2")
    dicoms.save(case / "other", other)
    convert_cohort(tmp_path / "cases", tmp_path / "data")
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_image().array, image().array)
    for named, told in ((["2"], True), (["1"], False), (["2", "1"], False)):
        found = convert_cohort(
            tmp_path / "cases", tmp_path / "_".join(named), series=named, channels=["a", "b"][: len(named)]
        )
        assert any("another series than the one that was named" in note for note in found.notes) == told
    (case / "objects" / "SEG.dcm").unlink()
    write_labels(case / "masks" / "m.nii.gz", image().replace(painted()[None] == 1))
    with pytest.raises(CohortError, match=r"there are 2 DICOM series.*with --image"):
        convert_cohort(tmp_path / "cases", tmp_path / "again")
    convert_cohort(tmp_path / "cases", tmp_path / "again", images=["ct1"])


@pytest.mark.parametrize("drawn", ["seg", "structures"])
def test_an_image_that_is_named_is_taken_where_its_identifiers_were_replaced(tmp_path: Path, drawn: str) -> None:
    case = tmp_path / "cases" / "a"
    {"seg": write_seg, "structures": write_structures}[drawn](case)
    for file in (case / "ct1").iterdir():
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID = "1.2.3.4"
        header.save_as(file)
    with pytest.raises(CohortError, match=r"none of the DICOM series is .*; where its identifiers were replaced, name"):
        convert_cohort(tmp_path / "cases", tmp_path / "data")
    found = convert_cohort(tmp_path / "cases", tmp_path / "data", images=["ct1"])
    assert (
        "a: the structures state another series than the one that was named, which is taken for theirs" in found.notes
    )
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_image().array, image().array)


def probabilities(case: Path) -> None:
    write_seg(case)
    path = case / "objects" / "SEG.dcm"
    seg = pydicom.dcmread(path)
    seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue = "FRACTIONAL", "PROBABILITY", 1
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    pixels = bits[: seg.NumberOfFrames * seg.Rows * seg.Columns]
    seg.BitsAllocated = seg.BitsStored = 8
    seg.HighBit = 7
    seg.PixelData = pixels.tobytes() + b"\0" * (len(pixels) % 2)
    seg.save_as(path)


def damaged(case: Path) -> None:
    write_structures(case)
    made = pydicom.dcmread(case / "RS")
    made.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2"]
    made.save_as(case / "RS")


def twice(case: Path) -> None:
    write_structures(case)
    made = pydicom.dcmread(case / "RS")
    made.StructureSetROISequence[1].ROIName = made.StructureSetROISequence[0].ROIName
    made.save_as(case / "RS")


def image_alone(case: Path) -> None:
    series_of(case)
    (case / "objects").mkdir()
    (case / "objects" / "SEG.dcm").write_bytes((case / "ct1" / "IM000").read_bytes())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (probabilities, {}, "the segmentation holds probabilities"),
        (damaged, {}, "a damaged structure set"),
        (twice, {}, "two regions are called"),
        (write_seg, {"structures": "nothing"}, "0 files or folders fit --structures “nothing”"),
        (write_masks, {"structures": "ct.nii.gz", "channels": ["CT"]}, "there is no image"),
        (image_alone, {"structures": "objects/SEG.dcm"}, "this holds no structures"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(
    tmp_path: Path, make: Callable[[Path], None], options: Mapping[str, Any], message: str
) -> None:
    make(tmp_path / "cases" / "a")
    with pytest.raises(InputError, match=message):
        convert_cohort(tmp_path / "cases", tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_a_label_map_in_dicom_is_read(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    write_seg(case)
    binary = hd.seg.segread(case / "objects" / "SEG.dcm")
    sources: list[Dataset] = [pydicom.dcmread(file) for file in sorted((case / "ct1").iterdir())]
    sources.sort(key=lambda s: float(s.InstanceNumber))
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=painted(),
        segmentation_type=hd.seg.SegmentationTypeValues.LABELMAP,
        segment_descriptions=[binary.get_segment_description(n) for n in binary.segment_numbers],
        series_instance_uid=hd.UID(),
        series_number=3,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(case / "objects" / "SEG.dcm")
    convert_cohort(tmp_path / "cases", tmp_path / "data")
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())


def write_named(case: Path, **masks: NDArray[np.bool_]) -> None:
    volume = write_image(case)
    for name, mask in masks.items():
        write_labels(case / "masks" / f"{name}.nii.gz", volume.replace(mask[None].astype(np.uint8)))


def test_one_name_in_two_spellings_is_one_label(tmp_path: Path) -> None:
    cases, lung = tmp_path / "cases", painted() == 1
    for name, spelling in {"a": "L\u00e4sion", "b": "la\u0308sion", "c": "L\u00c4SION"}.items():
        write_named(cases / name, **{spelling: lung})
    made = convert_cohort(cases, tmp_path / "data", channels=["CT"])
    assert made.labels == {"background": 0, "L\u00e4sion": 1}
    assert made.notes == ()
    for subject in Cohort.read(tmp_path / "data"):
        np.testing.assert_array_equal(subject.read_labels().array[0], lung)


def test_structures_of_one_case_that_differ_in_capitals_alone_are_united_and_told(tmp_path: Path) -> None:
    structure_set(
        tmp_path / "cases" / "a" / "rs.dcm",
        {name: [circle(image().grid, (5, 6, height), 3)] for name, height in (("GTV", 1), ("gtv", 2))},
    )
    write_image(tmp_path / "cases" / "a")
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    assert made.labels == {"background": 0, "GTV": 1}
    assert made.notes == ("a: 'GTV' unites GTV, gtv",)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("2", "10"), {"2": 2, "10": 10}),
        (("0", "1"), {"0": 1, "1": 2}),
        (("1", "01"), {"01": 1, "1": 2}),
        (("20240101123456",), {"20240101123456": 1}),
    ],
)
def test_names_are_values_where_they_can_be(tmp_path: Path, names: tuple[str, ...], values: dict[str, int]) -> None:
    masks = {name: np.arange(painted().size).reshape(painted().shape) == place for place, name in enumerate(names)}
    write_named(tmp_path / "cases" / "a", **masks)
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    assert made.labels == {"background": 0, **values}
    labels = Cohort.read(tmp_path / "data")["a"].read_labels().array.ravel()
    assert labels[: len(names)].tolist() == [values[name] for name in names]


def test_masks_may_lie_beside_the_image(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    write_masks(case)
    for mask in (case / "segmentations").iterdir():
        mask.rename(case / mask.name)
    (case / "segmentations").rmdir()
    options: dict[str, Any] = {"channels": ["CT"], "structures": "."}
    with pytest.raises(CohortError, match=r"there are several images.*--image"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", **options)
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", images=["ct.nii.gz"], **options)
    assert made.labels == VALUES
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())
    for name in VALUES:
        (case / f"{name}.nii.gz").unlink(missing_ok=True)
    with pytest.raises(CohortError, match="the folder holds no mask"):
        convert_cohort(tmp_path / "cases", tmp_path / "again", **options)


def test_voxels_that_nobody_annotated_are_ignored(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_masks(tmp_path / "cases" / name)
    unclear = (painted() == 0) & (np.arange(6) > 3)[:, None, None]
    write_labels(
        tmp_path / "cases" / "b" / "segmentations" / "unclear.nii.gz", image().replace(unclear[None].astype(np.uint8))
    )
    labels = {"Lung": ["Lung"], "tumour": ["tumour"], "ignore": ["unclear"]}
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], labels=labels)
    cohort = Cohort.read(tmp_path / "data")
    assert dict(cohort.labels) == VALUES
    assert cohort.ignore_label == 3
    np.testing.assert_array_equal(cohort["a"].read_labels().array[0], painted())
    np.testing.assert_array_equal(cohort["b"].read_labels().array[0], np.where(unclear, 3, painted()))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"lung": ["Lung"], "ignore": ["tumour"], "Ignore": ["edge"]}, "--label ignore=tumour,edge"),
        ({"ignore": ["tumour"]}, "no label but what is to be ignored"),
    ],
)
def test_labels_of_which_no_cohort_can_be_made_are_refused(
    tmp_path: Path, labels: dict[str, list[str]], problem: str
) -> None:
    write_masks(tmp_path / "cases" / "a")
    with pytest.raises(InputError, match=problem):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], labels=labels)


def test_a_cohort_is_not_made_among_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masks(tmp_path / "cases" / "a")
    monkeypatch.chdir(tmp_path / "cases")
    for source in (tmp_path / "cases", Path()):
        with pytest.raises(InputError, match=r"would lie among the cases.*/cases_data$"):
            convert_cohort(source, Path("data"), channels=["CT"])
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["a"]


def test_a_structure_called_background_is_left_out_by_naming_the_others(tmp_path: Path) -> None:
    write_named(tmp_path / "cases" / "a", Background=painted() == 0, lung=painted() == 1)
    with pytest.raises(InputError, match=r"cannot be called that.*'Background'.*--label"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    made = convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], labels={"lung": ["lung"]})
    assert made.labels == {"background": 0, "lung": 1}


def test_a_label_made_of_less_in_one_case_is_told(tmp_path: Path) -> None:
    cases, left, right = tmp_path / "cases", painted() == 1, painted() == 2
    write_named(cases / "a", Lung_L=left, Lung_R=right)
    write_named(cases / "b", Lung_L=left)
    lung = {"lung": ["Lung_L", "Lung_R"]}
    made = convert_cohort(cases, tmp_path / "data", channels=["CT"], labels=lung)
    assert made.notes == ("b: 'lung' is Lung_L alone",)
    options: dict[str, Any] = {"channels": ["CT"], "labels": {"lung": ["Lung_L", "Lugn_R"]}}
    with pytest.raises(CohortError, match="no case has the structure 'Lugn_R'"):
        convert_cohort(cases, tmp_path / "other", **options)
    made = convert_cohort(cases, tmp_path / "other", allow_missing=True, **options)
    assert made.notes == ("in no case: 'Lugn_R'",)


def test_files_in_no_folder_of_a_case_are_told(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    write_masks(cases / "a")
    (cases / "b.zip").write_bytes(b"PK")
    (cases / ".DS_Store").write_bytes(b"")
    (cases / "__MACOSX").mkdir()
    made = convert_cohort(cases, tmp_path / "data", channels=["CT"])
    assert made.cases == ("a",)
    assert made.notes == ("left out, in no folder of a case: b.zip",)


def test_a_mask_that_was_not_fetched_is_not_absent(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    write_masks(case)
    (case / "segmentations" / "node.nii.gz").symlink_to(tmp_path / "annex" / "node.nii.gz")
    with pytest.raises(CohortError, match=r"node\.nii\.gz: the link leads nowhere"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], allow_missing=True)


def test_what_headers_leave_open_is_told(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    volume, _ = series_of(cases / "a")
    for file in (cases / "a" / "ct1").iterdir():
        stored = pydicom.dcmread(file)
        del stored.RescaleSlope, stored.RescaleIntercept
        stored.save_as(file)
    write_labels(cases / "a" / "masks" / "m.nii.gz", volume.replace((painted() == 1)[None].astype(np.uint8)))
    write_named(cases / "b", m=painted() == 1)
    for file in ((cases / "b" / "ct.nii.gz"), (cases / "b" / "masks" / "m.nii.gz")):
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[252:256] = bytes(4)  # qform_code and sform_code
        file.write_bytes(gzip.compress(content))
    made = convert_cohort(cases, tmp_path / "data", channels=["CT"])
    assert [note[:60] for note in made.notes] == [
        "a: the CT series states no rescale slope and intercept: its ",
        "b: the NIfTI header has neither form (both codes are 0): lef",
    ]


def test_a_contour_that_is_there_twice_is_one(tmp_path: Path) -> None:
    grid = image().grid
    ring = circle(grid, (5, 6, 1), 3)
    once = StructureSet(structure_set(tmp_path / "once.dcm", {"node": [ring]})).mask("node", grid)
    twice = StructureSet(structure_set(tmp_path / "twice.dcm", {"node": [ring, ring]})).mask("node", grid)
    assert once.any()
    np.testing.assert_array_equal(twice, once)


def test_a_contour_without_points_is_left_out(tmp_path: Path) -> None:
    grid = image().grid
    path = structure_set(tmp_path / "rs.dcm", {"node": [circle(grid, (5, 6, 1), 3)], "nothing": [np.zeros((0, 3))]})
    found = StructureSet(path)
    assert found.names == ("node",)
    assert found.mask("node", grid).any()


def test_a_keyhole_is_a_hole(tmp_path: Path) -> None:
    grid = Grid.from_parts((1, 60, 60), (1, 1, 3.0))
    outer, inner = circle(grid, (30.3, 29.8, 0), 20), circle(grid, (30.3, 29.8, 0), 8)
    key = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
    regions = {"key": [key], "two": [outer, inner]}
    found = StructureSet(structure_set(tmp_path / "rs.dcm", regions))
    np.testing.assert_array_equal(found.mask("key", grid), found.mask("two", grid))


def test_contours_beside_the_pixels_are_refused(tmp_path: Path) -> None:
    grid = Grid.from_parts((3, 20, 30), (1, 1, 3.0))
    for centre, fits in (((15, 10, 1), True), ((25.5, 10, 1), True), ((28, 10, 1), False), ((15, 50, 1), False)):
        found = StructureSet(structure_set(tmp_path / "rs.dcm", {"ring": [circle(grid, centre, 5)]}))
        if fits:
            assert found.mask("ring", grid).any()
        else:
            with pytest.raises(VolumeError, match=r"reaches out of the image.*--label names the others"):
                found.mask("ring", grid)


def test_contours_around_no_voxel_are_told(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume, _ = series_of(case)
    small = circle(volume.grid, (5.5, 6.5, 1), 0.2)
    structure_set(case / "rs.dcm", {"node": [circle(volume.grid, (5, 6, 2), 3)], "spot": [small]})
    made = convert_cohort(tmp_path / "cases", tmp_path / "data")
    assert made.notes == ("a: the contours of 'spot' enclose the centre of no voxel",)


def test_channels_of_dicom_are_series_of_their_own(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    write_seg(case)  # drawn on the first
    other = dicoms.slices(image().array[0] * 2, spacing=SPACING, origin=ORIGIN, direction=OBLIQUE, series="2")
    dicoms.save(case / "other", other)
    convert_cohort(tmp_path / "cases", tmp_path / "data", images=["ct1", "other"], channels=["T1", "T2"])
    read = Cohort.read(tmp_path / "data")["a"].read_image().array
    np.testing.assert_array_equal(read, np.concatenate([image().array, image().array * 2]))


def test_structures_are_named_by_the_folder_that_they_lie_in(tmp_path: Path) -> None:
    case = tmp_path / "cases" / "a"
    volume, _ = series_of(case)
    for rater, height in (("rater1", 1), ("rater2", 2)):
        structure_set(case / rater / "RS.dcm", {"node": [circle(volume.grid, (5, 6, height), 3)]})
    with pytest.raises(CohortError, match=r"several annotations.*rater1/RS\.dcm, rater2/RS\.dcm"):
        convert_cohort(tmp_path / "cases", tmp_path / "data")
    convert_cohort(tmp_path / "cases", tmp_path / "data", structures="rater2")
    labels = Cohort.read(tmp_path / "data")["a"].read_labels().array[0]
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [2]


def test_a_case_may_lie_one_folder_deeper(tmp_path: Path) -> None:
    write_masks(tmp_path / "cases" / "a" / "study 1")
    with pytest.raises(CohortError, match=r"with --structures, and an image in another folder with --image"):
        convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"])
    options: dict[str, Any] = {"images": ["*/ct.nii.gz"], "structures": "*/segmentations"}
    convert_cohort(tmp_path / "cases", tmp_path / "data", channels=["CT"], **options)
    np.testing.assert_array_equal(Cohort.read(tmp_path / "data")["a"].read_labels().array[0], painted())

"""What voxels keep of the structures: against ITK, in every orientation, and that following the advice helps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Plan, plan, planning, take_fingerprint
from atlasnet.cohort.check import CheckReport, check_cohort
from atlasnet.cohort.planning import Planned, plan_for
from atlasnet.cohort.voxels import COARSE, ENOUGH, Kept, kept_by, spacings, there_and_back
from atlasnet.execution import read_json, write_json
from atlasnet.volume import Grid, Volume, read_labels, read_volume, write_labels, write_volume
from atlasnet.wording import lengths
from synthetic import write_cohort
from test_orientation import STORAGES, stored

SHAPE = (30, 36, 40)
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def ball(grid: Grid, centre: tuple[float, float, float], diameter: float) -> np.ndarray:
    """The voxels (z, y, x) whose centres lie within ``diameter`` / 2 mm of index ``centre`` (x, y, z)."""
    z, y, x = np.indices(grid.shape)
    offset = (np.stack([x, y, z], -1) - centre) * grid.spacing
    inside: np.ndarray = (offset**2).sum(-1) < (diameter / 2) ** 2
    return inside


def lesions(folder: Path, *, subjects: int = 3) -> Path:
    """Organs of 50 mm, each with a lesion of 8 mm elsewhere, in voxels of 2 mm."""
    for number in range(subjects):
        random = np.random.default_rng(number)
        grid = Grid.from_parts(SHAPE, (2.0, 2.0, 2.0))
        labels = ball(grid, (20, 18, 15), 50).astype(np.uint8)
        centre = np.array([20.0, 18.0, 15.0]) + random.uniform(-6, 6, 3)
        labels[ball(grid, tuple(centre.tolist()), 8)] = 2
        image = random.normal(100, 5, SHAPE) + 50 * labels
        write_volume(folder / f"imagesTr/s{number}_0000.nii.gz", Volume(image.astype(np.float32), grid))
        write_volume(folder / f"labelsTr/s{number}.nii.gz", Volume(labels, grid))
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": subjects, "file_ending": ".nii.gz"},
    )
    return folder


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.0, 2.5, 4.0), (4.7, 4.7, 2.0)])
@pytest.mark.parametrize("diameter", [9.0, 14.0, 26.0])
def test_there_and_back_is_what_itk_makes_of_it(spacing: tuple[float, float, float], diameter: float) -> None:
    grid = Grid.from_parts((40, 44, 48), (1.0, 1.0, 1.0))
    inside = ball(grid, (22.3, 21.6, 19.4), diameter)
    ours = there_and_back(Volume(inside[None].astype(np.uint8), grid), {"ball": 1}, [spacing])["ball"][0]
    # On another lattice of that spacing: the place of samples in a smooth body is chance.
    image = sitk.GetImageFromArray(inside.astype(np.float32))
    found = []
    for place in np.random.default_rng(0).random((20, 3)):
        size = [int(n / s) for n, s in zip((48, 44, 40), spacing, strict=True)]
        there = sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, (place * spacing).tolist(), spacing)
        back = sitk.Resample(sitk.Cast(there > 0.5, sitk.sitkFloat32), image, sitk.Transform(), sitk.sitkLinear)
        again = sitk.GetArrayFromImage(back) > 0.5
        found.append(2 * np.count_nonzero(again & inside) / (again.sum() + inside.sum()))
    assert min(found) - 0.01 <= ours <= max(found) + 0.01


def test_voxels_as_fine_as_the_scans_lose_nothing_and_finer_ones_ever_less() -> None:
    grid = Grid.from_parts((40, 44, 48), (1.0, 1.0, 1.0))
    labels = Volume(ball(grid, (22.3, 21.6, 19.4), 12)[None].astype(np.uint8), grid)
    (dice,) = there_and_back(labels, {"ball": 1, "absent": 2}, [(5.0,) * 3, (4.0,) * 3, (3.0,) * 3]).values()
    assert dice == sorted(dice)
    assert there_and_back(labels, {"ball": 1}, [(1.0, 1.0, 1.0)]) == {"ball": [1.0]}


def test_spacings_end_at_that_of_the_scans_along_every_axis() -> None:
    tried = spacings((4.0, 4.0, 5.0), (0.8, 0.8, 5.0))
    assert tried[0] == (4.0, 4.0, 5.0)
    assert tried[3] == (2.0, 2.0, 5.0)
    assert tried[-1] == (0.8, 0.8, 5.0)
    assert spacings((0.7, 0.7, 1.0), (1.0, 1.0, 1.0)) == ((0.7, 0.7, 1.0),)
    assert spacings((2.0, 2.0, 3.0), (1.0, 1.0, 5.0))[-1] == (1.0, 1.0, 3.0)  # none is coarser than the plan's


def few_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget by which organs of 50 mm are seen in voxels of 4.5 mm."""
    monkeypatch.setattr(plan, "NETWORK_VOXELS", 5.5e3)
    monkeypatch.setattr(plan, "REGION_VOXELS", 5.5e3)


def test_voxels_too_coarse_for_a_structure_are_planned_finer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_voxels(monkeypatch)
    data = lesions(tmp_path / "data")
    cohort = Cohort.read(data)
    fingerprint = take_fingerprint(cohort)
    planned = plan_for(cohort, fingerprint)
    usual = Plan.derive(fingerprint)
    assert planned.kept is not None
    assert planned.note is not None
    assert planned.kept.spacings[0] == usual.spacing
    assert list(planned.kept.lost()) == ["lesion"]
    assert planned.kept.dice["lesion"][planned.number] >= ENOUGH
    assert planned.kept.dice["lesion"][planned.number - 1] < ENOUGH
    assert planned.doubt is None
    assert planned.plan == Plan.derive(fingerprint, spacing=planned.kept.spacings[planned.number])
    assert f"too coarse for lesion ({planned.kept.dice['lesion'][0]:.2f})" in planned.note
    asked = plan_for(cohort, fingerprint, spacing=usual.spacing)
    assert (asked.plan.spacing, asked.note) == (usual.spacing, None)
    assert asked.doubt is not None


def test_a_plan_has_so_many_more_voxels_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_voxels(monkeypatch)
    monkeypatch.setattr(planning, "MOST_FINER", 2.1)
    cohort = Cohort.read(lesions(tmp_path / "data"))
    planned = plan_for(cohort, take_fingerprint(cohort))
    assert planned.number == 1
    assert planned.note is not None
    assert planned.doubt is not None
    monkeypatch.setattr(planning, "MANY_STRUCTURES", 1)  # of which there are two
    assert plan_for(cohort, take_fingerprint(cohort)).number == 0
    monkeypatch.setattr(planning, "MANY_STRUCTURES", 0.5)  # a fourth: what is usual, nevertheless
    assert plan_for(cohort, take_fingerprint(cohort)).number == 0


def test_following_the_advice_ends_the_warning(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data")
    report = check_cohort(data, spacing=(5.0, 5.0, 5.0))
    (warning,) = report.warnings
    kept = measured(report)
    lesion, organ = kept.dice["lesion"][0], kept.dice["organ"][0]
    assert lesion < COARSE < ENOUGH < organ
    assert f"too coarse for lesion ({lesion:.2f})" in warning.text
    advised = re.search(r"--spacing ([\d.]+) keeps (0\.\d\d|1\.00) or more, with ([\d.]+) times", warning.text)
    assert advised is not None
    side = float(advised[1])
    assert float(advised[3]) == pytest.approx((5 / side) ** 3, abs=0.06)
    assert check_cohort(data, spacing=(side, side, side)).warnings == ()
    report = check_cohort(data, spacing="scan")
    assert report.planned is not None
    assert report.planned.kept is None


def test_a_training_says_it_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lesions(tmp_path / "data")
    words = ["train", str(data), "-o", str(tmp_path / "m"), "--atlases", "2", "--registration", "affine"]
    words += ["--width", "0.25", "--threads", "1", "--dry-run"]
    assert main([*words, "--spacing", "5"]) == 0
    printed = capsys.readouterr()
    assert "are too coarse for lesion" in printed.err + printed.out
    few_voxels(monkeypatch)
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "times as many as usual" in printed.err + printed.out
    report = check_cohort(data)
    assert report.plan is not None
    assert f"networks work at        {lengths(report.plan.spacing)} mm" in printed.out
    assert not (tmp_path / "m").exists()


def test_check_prints_what_the_plans_voxels_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_cohort(tmp_path / "data", range(3))
    assert main(["check", str(data), "--spacing", "4"]) == 0
    printed = capsys.readouterr().out
    dice = measured(check_cohort(data, spacing=(4.0, 4.0, 4.0))).dice
    assert f"these voxels keep       core {dice['core'][0]:.2f}, shell {dice['shell'][0]:.2f} (Dice" in printed
    few_voxels(monkeypatch)
    assert main(["check", str(lesions(tmp_path / "lesions"))]) == 0
    assert "times as many as usual" in capsys.readouterr().out


def measured(report: CheckReport) -> Kept:
    assert report.planned is not None
    assert report.planned.kept is not None
    return report.planned.kept


def test_it_does_not_depend_on_how_a_scan_is_stored(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data", subjects=1)
    paths = data / "imagesTr/s0_0000.nii.gz", data / "labelsTr/s0.nii.gz"
    volumes = [read_volume(path) for path in paths]
    wanted = Plan.derive(take_fingerprint(Cohort.read(data)), spacing=(5.0, 4.0, 3.0))
    found = set()
    for axes, flips in STORAGES:
        for path, volume in zip(paths, volumes, strict=True):
            write_volume(path, stored(volume, axes, flips))
        kept = kept_by(Cohort.read(data), wanted, (2.0, 2.0, 2.0))
        assert kept is not None
        found.add(tuple(kept.dice.items()))
    assert len(found) == 1


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_thick_oblique_slices_are_read_along_the_plans(tmp_path: Path, normal: int) -> None:
    cosines = np.full(3, 0.5)
    cosines[normal] = np.sqrt(0.5)
    turn, _ = Rotation.align_vectors(cosines[None], np.array([[0.0, 0.0, 1.0]]))
    grid = Grid.from_parts((9, 40, 44), (1.4, 1.4, 8.0), direction=turn.as_matrix())
    inside = ball(grid, (21.3, 18.2, 4.1), 30).astype(np.uint8)
    write_volume(tmp_path / "images/s.nii.gz", Volume(inside * np.float32(100), grid))
    write_volume(tmp_path / "labels/s.nii.gz", Volume(inside, grid))
    cohort = Cohort.read(tmp_path)
    plan = replace(Plan.derive(take_fingerprint(cohort)), slice_axis="y", spacing=(2.8, 8.0, 2.8))
    kept = kept_by(cohort, plan, (1.4, 8.0, 1.4))
    assert kept is not None
    assert kept.spacings[-1] == (1.4, 8.0, 1.4)
    upright = there_and_back(Volume(inside, Grid.from_parts(grid.shape, grid.spacing)), {"1": 1}, [(2.8, 2.8, 8.0)])
    assert kept.dice["label 1"][0] == pytest.approx(upright["1"][0], abs=0.02)


def test_nothing_is_said_of_cohorts_without_references(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data")
    fingerprint = take_fingerprint(Cohort.read(data))
    for path in (data / "labelsTr").iterdir():
        path.unlink()
    assert plan_for(Cohort.read(data, labelled=False), fingerprint, spacing=(5.0, 5.0, 5.0)).kept is None
    report = check_cohort(data, labelled=False, spacing=(5.0, 5.0, 5.0))
    assert report.planned is not None
    assert report.planned.kept is None


def test_where_no_spacing_suffices_the_finest_is_advised(tmp_path: Path) -> None:
    cohort = Cohort.read(lesions(tmp_path / "data", subjects=1))
    kept = Kept(((4.0, 4.0, 4.0), (2.0, 2.0, 3.0)), {"thin": (0.3, 0.7)})
    doubt = Planned(Plan.derive(take_fingerprint(cohort)), kept).doubt
    assert doubt is not None
    assert "--spacing 2 2 3 keeps 0.70 or more, with 5.3 times the voxels" in doubt


def test_a_structure_is_measured_where_it_was_annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two subjects one has the lesion alone, whose region is a part of what the other has of it."""
    few_voxels(monkeypatch)
    data = lesions(tmp_path / "data", subjects=2)
    regions = {"background": 0, "all": [1, 2], "lesion": 2}
    content = read_json(data / "dataset.json") | {"labels": regions}
    write_json(data / "dataset.json", content)
    labels = read_labels(data / "labelsTr/s1.nii.gz")
    write_labels(data / "labelsTr/s1.nii.gz", labels.replace(labels.array * (labels.array == 2)))
    write_json(data / "dataset.json", content | {"annotated": {"s1": ["lesion"]}})
    both = Cohort.read(data)
    planned = Plan.derive(take_fingerprint(both))
    one = replace(both, subjects=both.subjects[:1])
    found, whole = (kept_by(cohort, planned, (2.0, 2.0, 2.0)) for cohort in (both, one))
    assert found is not None
    assert whole is not None
    assert found.dice["all"] == whole.dice["all"]
    assert found.dice["lesion"] != whole.dice["lesion"]

"""What voxels keep of the structures: against ITK, in every orientation, and that following the advice helps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.cohort.check import check_cohort
from atlasnet.cohort.voxels import COARSE, ENOUGH, Kept, kept_by, spacings, there_and_back
from atlasnet.execution import write_json
from atlasnet.volume import Grid, Volume, read_volume, write_volume
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


def test_following_the_advice_ends_the_warning(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data")
    report = check_cohort(data, spacing=(5.0, 5.0, 5.0))
    (warning,) = report.warnings
    assert report.kept is not None
    assert report.kept.planned["lesion"] < COARSE < ENOUGH < report.kept.planned["organ"]
    assert f"too coarse for lesion ({report.kept.planned['lesion']:.2f})" in warning.text
    advised = re.search(r"--spacing ([\d.]+) keeps (0\.\d\d|1\.00) or more, with ([\d.]+) times", warning.text)
    assert advised is not None
    side = float(advised[1])
    assert float(advised[3]) == pytest.approx((5 / side) ** 3, abs=0.06)
    again = check_cohort(data, spacing=(side, side, side))
    assert again.warnings == ()
    assert check_cohort(data, spacing="scan").kept is None


def test_a_training_says_it_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lesions(tmp_path / "data")
    words = ["train", str(data), "-o", str(tmp_path / "m"), "--atlases", "2", "--spacing", "5", "--dry-run"]
    assert main([*words, "--registration", "affine", "--width", "0.25", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert "too coarse for lesion" in printed.err + printed.out
    assert not (tmp_path / "m").exists()


def test_check_prints_what_the_plans_voxels_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_cohort(tmp_path / "data", range(3))
    assert main(["check", str(data), "--spacing", "4"]) == 0
    printed = capsys.readouterr().out
    kept = check_cohort(data, spacing=(4.0, 4.0, 4.0)).kept
    assert kept is not None
    assert (
        f"these voxels keep       core {kept.planned['core']:.2f}, shell {kept.planned['shell']:.2f} (Dice" in printed
    )


def test_it_does_not_depend_on_how_a_scan_is_stored(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data", subjects=1)
    paths = data / "imagesTr/s0_0000.nii.gz", data / "labelsTr/s0.nii.gz"
    volumes = [read_volume(path) for path in paths]
    found = set()
    for axes, flips in STORAGES:
        for path, volume in zip(paths, volumes, strict=True):
            write_volume(path, stored(volume, axes, flips))
        kept = kept_by(Cohort.read(data), (5.0, 4.0, 3.0), (2.0, 2.0, 2.0))
        assert kept is not None
        found.add(tuple(kept.dice.items()))
    assert len(found) == 1


def test_nothing_is_said_of_cohorts_without_references(tmp_path: Path) -> None:
    data = lesions(tmp_path / "data")
    for path in (data / "labelsTr").iterdir():
        path.unlink()
    report = check_cohort(data, labelled=False, spacing=(5.0, 5.0, 5.0))
    assert report.kept is None


def test_where_no_spacing_suffices_the_finest_is_advised() -> None:
    kept = Kept(((4.0, 4.0, 4.0), (2.0, 2.0, 3.0)), {"thin": (0.3, 0.7)})
    assert kept.doubt is not None
    assert "--spacing 2 2 3 keeps 0.70 or more, with 5.3 times the voxels" in kept.doubt

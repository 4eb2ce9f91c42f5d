"""Names of cases, whose letters and accents macOS writes apart and others in one: they mean the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atlasnet.atlas import resolve_atlases
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, find_masks
from atlasnet.evaluation import evaluate_folder
from atlasnet.prediction import find_cases
from atlasnet.study import read_test_subjects
from atlasnet.study.folds import read_folds
from atlasnet.study.subjects import observer_files
from atlasnet.training.subjects import read_names
from atlasnet.volume import Grid, Volume, write_labels, write_volume

APART, ONE = "Fa\u0308lle", "F\u00e4lle"


def write(path: Path) -> Path:
    array = np.zeros((1, 3, 4, 5), np.uint8)
    array[0, 1] = 1
    volume = Volume(array, Grid.from_parts((3, 4, 5), (1, 1, 1)))
    (write_labels if "labels" in path.parent.name else write_volume)(path, volume)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images as macOS calls them, references as others do."""
    for part in ("Tr", "Ts"):
        write(tmp_path / f"images{part}" / f"{APART}_0000.nii.gz")
        write(tmp_path / f"labels{part}" / f"{ONE}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lung": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_an_image_and_its_reference_are_one_subject(data: Path) -> None:
    cohort = Cohort.read(data)
    assert [subject.name for subject in cohort] == [ONE]
    assert cohort[APART].images == (data / "imagesTr" / f"{APART}_0000.nii.gz",)
    assert [source.subject for source in resolve_atlases(cohort, [APART])] == [ONE]


def test_lists_of_subjects_name_those_whose_files_are_spelt_otherwise(data: Path) -> None:
    (data / "names.txt").write_text(f"{APART}\n", encoding="utf-8")
    names = read_names(data / "names.txt")
    assert [test.name for test in read_test_subjects(data, Cohort.read(data), names)] == [ONE]
    (data / "folds.json").write_text(json.dumps([[APART]]), encoding="utf-8")
    assert [*read_folds(data / "folds.json")] == [(ONE,)]


def test_folders_beside_are_found_by_either_spelling(data: Path) -> None:
    tests = read_test_subjects(data, Cohort.read(data))
    mine = write(data / "mine_labels" / f"{APART}.nii.gz")
    assert observer_files(mine.parent, tests) == {ONE: mine}
    assert find_masks([ONE], mine.parent) == {ONE: mine}
    table = evaluate_folder(mine.parent, data / "labelsTr")
    assert [(row.case, row.dice) for row in table.rows] == [(ONE, 1.0)]


def test_what_is_predicted_is_called_the_same_whatever_the_spelling_of_its_files(data: Path) -> None:
    (case,) = find_cases([data / "imagesTs"], 1)
    assert (case.name, case.images) == (ONE, (data / "imagesTs" / f"{APART}_0000.nii.gz",))
    for channel in range(2):
        write(data / "two" / f"{APART}_{channel:04d}.nii.gz")
    (case,) = find_cases([data / "two"], 2)
    assert (case.name, [path.is_file() for path in case.images]) == (ONE, [True, True])


@pytest.mark.parametrize("name", [APART, ONE])
def test_the_log_hides_either_spelling(data: Path, name: str) -> None:
    (data / "labelsTr" / f"{ONE}.nii.gz").unlink()
    (data / "imagesTr" / f"{APART}_0000.nii.gz").rename(data / "imagesTr" / f"{name}_0000.nii.gz")
    assert main(["check", str(data), "--log", str(data / "run.log"), "--quiet"]) == 1
    said = (data / "run.log").read_text(encoding="utf-8")
    assert "the labels are missing" in said
    assert "lle" not in said.replace("file", "")

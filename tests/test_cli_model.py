"""``atlasnet model``: what it says, what it refuses, and that a model travels as a zip."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from synthetic import LABELS, write_cohort

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    cohort = Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))
    options = FitOptions(atlases=1, width=0.25, epochs=1, operator="affine")
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", options)


def test_info_says_what_the_model_is_for(model: Model, capsys: Capture) -> None:
    assert main(["model", "info", str(model.folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["labels"] == LABELS
    assert summary["training_subjects"] == 2
    assert summary["epochs"] == 1
    assert summary["network_spacing_mm"] == list(model.plan.spacing)
    assert summary["bytes"] == sum((model.folder / name).stat().st_size for name in model.checksums)
    assert main(["model", "info", str(model.folder)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("core = 4", "2 subjects", "affine", model.atlases[0].name))
    assert "unet, width 0.25, voxels of" in text
    assert "epochs       1 for its network" in text
    spacing = " x ".join(f"{mm:g}" for mm in model.plan.spacing)
    assert f"voxels of {spacing} mm" in text
    seen = summary["atlases"][0]["network_sees_mm"]
    assert f"network sees {' x '.join(f'{mm:g}' for mm in seen)} mm" in text


def test_info_tells_the_epochs_of_networks_that_were_tuned_and_says_where_nobody_noted_them(
    model: Model, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns("work"))
    tuned = {"recipe": {"epochs": 60}, "sharing": {"kind": "model", "tuning": 0.25}}
    for provenance, expected in ((tuned, "15 for its network"), ({}, "not known")):
        replace(Model.load(copy), provenance={**model.provenance, "recipe": {}} | provenance).save()
        assert main(["model", "info", str(copy)]) == 0
        assert f"epochs       {expected}" in capsys.readouterr().out


def test_info_leaves_out_the_quality_of_an_atlas_onto_itself(model: Model, tmp_path: Path, capsys: Capture) -> None:
    (record,) = (model.folder / "work" / "registrations").glob("*/record.json")
    quality = json.loads(record.read_text(encoding="utf-8"))["quality"]
    assert set(model.atlases[0].quality.values()) == {quality}
    alone = Cohort.read(write_cohort(tmp_path / "data", range(1)))
    short = replace(Recipe.preset("default"), epochs=1, iterations=1, passes=0.0, batch_slices=4)
    fit(alone, tmp_path / "m", FitOptions(atlases=1, width=0.25, preset=short, operator="affine"))
    assert main(["model", "info", str(tmp_path / "m")]) == 0
    assert "s0: there is no other subject" in capsys.readouterr().out


def test_logs_of_another_training_do_not_travel(model: Model, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns("work"))
    (copy / "log" / "somebody.csv").write_text("epoch,loss\n", encoding="utf-8")
    shipped = Model.load(copy).shipped
    assert [name for name in shipped if name.startswith("log/")] == [f"log/{model.atlases[0].name}.csv"]


def test_a_model_travels_as_a_zip(model: Model, tmp_path: Path, capsys: Capture) -> None:
    archive, folder = tmp_path / "m.zip", tmp_path / "deep" / "copy"
    assert main(["model", "export", str(model.folder), "-o", str(archive)]) == 0
    assert not [name for name in zipfile.ZipFile(archive).namelist() if name.startswith("work")]
    assert main(["model", "import", str(archive), "-o", str(folder)]) == 0
    assert Model.load(folder).checksums == model.checksums
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]
    assert main(["model", "verify", str(folder)]) == 0
    assert f"{len(model.checksums)} files" in capsys.readouterr().out
    assert main(["model", "import", str(archive), "-o", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["networks", "atlases"])
def test_verify_names_the_file_that_changed(model: Model, tmp_path: Path, capsys: Capture, which: str) -> None:
    archive, folder = tmp_path / "m.zip", tmp_path / "copy"
    main(["model", "export", str(model.folder), "-o", str(archive)])
    main(["model", "import", str(archive), "-o", str(folder)])
    (file,) = (folder / which).iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["model", "verify", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert "checksum" in error


def test_a_damaged_archive_leaves_nothing_behind(model: Model, tmp_path: Path, capsys: Capture) -> None:
    archive = tmp_path / "m.zip"
    main(["model", "export", str(model.folder), "-o", str(archive)])
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert main(["model", "import", str(archive), "-o", str(tmp_path / "copy")]) == 2
    assert str(archive) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zip"]


def test_an_export_must_be_a_zip(model: Model, tmp_path: Path) -> None:
    assert main(["model", "export", str(model.folder), "-o", str(tmp_path / "m.tar")]) == 2
    assert not list(tmp_path.iterdir())

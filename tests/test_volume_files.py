"""A volume is all of its files: the voxels beside a header decide keys, records and what may be written over."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import InputError
from atlasnet.execution import Execution, SilentReporter
from atlasnet.prediction import PredictOptions
from atlasnet.prediction.output import check_places, provenance
from atlasnet.study.subjects import subject_digests
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import cohort_hashes
from atlasnet.volume import read_volume, volume_digest, volume_files
from synthetic import write_cohort

DETACHED = {".mhd": ".raw", ".nhdr": ".raw"}


def write(path: Path, value: int) -> Path:
    """An image with its voxels beside its header; returns where these are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int16)), str(path))
    return path.with_suffix(DETACHED[path.suffix])


@pytest.mark.parametrize("suffix", DETACHED)
def test_voxels_beside_a_header_are_part_of_the_hash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    voxels = write(path, 1)
    header, before = path.read_bytes(), volume_digest(path)
    assert volume_files(path) == [path, voxels]
    write(path, 2)
    assert path.read_bytes() == header
    assert volume_digest(path) != before
    write(path, 1)
    assert volume_digest(path) == before


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_the_hash_of_one_file_is_its_sha256(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path))
    assert volume_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"damaged")  # whoever reads it says so
    assert volume_digest(path) == hashlib.sha256(b"damaged").hexdigest()


def test_a_header_without_its_voxels_stands_alone(tmp_path: Path) -> None:
    write(tmp_path / "v.mhd", 1).unlink()
    assert volume_files(tmp_path / "v.mhd") == [tmp_path / "v.mhd"]


def test_new_voxels_under_an_old_header_are_new_work(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "data", range(2))
    for kind in ("imagesTr", "labelsTr"):
        for path in sorted((root / kind).iterdir()):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".mhd"))
            path.unlink()
    text = (root / "dataset.json").read_text(encoding="utf-8").replace(".nii.gz", ".mhd")
    (root / "dataset.json").write_text(text, encoding="utf-8")
    cohort = Cohort.read(root)
    hashes = cohort_hashes(cohort, SilentReporter())
    digests = subject_digests(cohort["s0"])
    recipe = Recipe.preset("default", epochs=1)
    options = FitOptions(atlases=("s1",), width=0.25, preset=recipe, operator="affine")
    model = fit(cohort, tmp_path / "m", options)
    request = provenance(cohort["s0"], model, PredictOptions(), Execution())["request"]
    for file in (cohort["s0"].images[0], cohort["s0"].labels):
        assert file is not None
        voxels = volume_files(file)[1]
        content = bytearray(voxels.read_bytes())
        content[-2:] = content[:2]
        voxels.write_bytes(
            bytes(reversed(content)) if file is cohort["s0"].images[0] else bytes(content[2:] + content[:2])
        )
    assert cohort_hashes(cohort, SilentReporter())["s0"] != hashes["s0"]
    assert subject_digests(cohort["s0"]) != digests
    assert provenance(cohort["s0"], model, PredictOptions(), Execution())["request"] != request


@pytest.mark.parametrize("output", ["voxels.mhd", "voxels.raw.mhd", "../scans/voxels.mhd"])
def test_the_voxels_of_a_scan_are_not_written_over(tmp_path: Path, output: str) -> None:
    scan = tmp_path / "scans" / "ct.mhd"
    voxels = write(scan, 1)
    voxels.rename(scan.with_name("voxels.raw"))
    scan.write_text(scan.read_text(encoding="utf-8").replace("ct.raw", "voxels.raw"), encoding="utf-8")
    before = read_volume(scan).array
    place = scan.parent / output
    if place.resolve().with_suffix(".raw") == voxels.with_name("voxels.raw"):
        with pytest.raises(InputError, match="take the place"):
            check_places([Subject("ct", (scan,))], {"ct": place}, ())
    else:
        check_places([Subject("ct", (scan,))], {"ct": place}, ())
    np.testing.assert_array_equal(read_volume(scan).array, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit open files")
@pytest.mark.parametrize(("hard", "end"), [(2000, "1256"), (600, "InputError")])
def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_it(hard: int, end: str) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
from atlasnet.errors import InputError
from atlasnet.execution import allow_open_files
try:
    allow_open_files(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    allow_open_files(1000)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except InputError as error:
    assert "ulimit -n 1256" in str(error)
    print("InputError")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == end


def test_a_model_remembers_what_it_was_trained_on(tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "data", range(2)))
    options = FitOptions(atlases=("s1",), width=0.25, preset=Recipe.preset("default", epochs=1), operator="affine")
    data = Model.load(fit(cohort, tmp_path / "m", options).folder).provenance["data"]
    (image,) = data["s0"]["images"]
    assert image == hashlib.sha256(cohort["s0"].images[0].read_bytes()).hexdigest()

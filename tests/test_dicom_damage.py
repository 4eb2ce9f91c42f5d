"""Damaged DICOM: always the package's own error or a volume, nothing on the console, no memory beyond reason."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

import dicoms
from atlasnet.cohort import Subject
from atlasnet.cohort.doubts import header_doubts
from atlasnet.errors import VolumeError
from atlasnet.volume import read_volume

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (3, 16, 12)).astype(np.int16)
KINDS = ("explicit", "implicit", "RLE", "JPEG-LS", "multi-frame")
CASES = 80


def whole(kind: str) -> list[Dataset]:
    made = dicoms.slices(VOXELS)
    if kind == "implicit":
        for dataset in made:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif kind in ("RLE", "JPEG-LS"):
        for dataset in made:
            dicoms.compress(dataset, RLELossless if kind == "RLE" else JPEGLSLossless)
    return [dicoms.enhanced(made, [2, 0, 1])] if kind == "multi-frame" else made


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Bits flipped, a run overwritten, a length made absurd, a part cut out, or the end cut off."""
    data = bytearray(content)
    way = random.integers(5)
    at = int(random.integers(len(data)))
    if way == 0:
        for place in random.integers(0, len(data), random.integers(1, 30)):
            data[place] ^= 1 << int(random.integers(8))
    elif way == 1:
        data[at : at + 8] = random.bytes(8)
    elif way == 2:
        data[at : at + 4] = struct.pack("<I", int(random.choice([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0])))
    elif way == 3:
        del data[at : at + int(random.integers(1, 64))]
    else:
        del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_a_volume_or_our_own_error(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(KINDS.index(kind))
    folder = dicoms.save(tmp_path / "ct", whole(kind))
    files = sorted(folder.iterdir())
    refused = 0
    for _ in range(CASES):
        file = files[int(random.integers(len(files)))]
        content = file.read_bytes()
        file.write_bytes(damaged(content, random))
        try:
            read_volume(folder)
        except VolumeError as error:
            assert dicoms.NAME not in str(error)  # noqa: PT017 - most cases raise, some damage does no harm
            refused += 1
        file.write_bytes(content)
    assert refused > CASES / 4
    assert sorted(tmp_path.iterdir()) == [folder]
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(read_volume(folder).array[0], VOXELS)


def test_damage_in_a_series_that_nobody_asked_for_is_counted_and_harms_no_other(tmp_path: Path) -> None:
    dicoms.save(tmp_path, dicoms.slices(VOXELS), "A")
    other = dicoms.slices(VOXELS, series="2")
    del other[0].PixelData
    other[1].NumberOfFrames = 7
    dicoms.save(tmp_path, other, "B")
    cut, malformed = tmp_path / "B000", tmp_path / "B007"
    content = malformed.read_bytes()
    assert content.count(b"IS\x02\x007 ") == 1
    malformed.write_bytes(content.replace(b"IS\x02\x007 ", b"IS\x02\x00x "))
    np.testing.assert_array_equal(read_volume(tmp_path, series="1").array[0], VOXELS)
    assert [text for _, text in header_doubts(Subject("a", (tmp_path,), series=("1",)), ["MR"])] == [
        "2 files of series that were not asked for cannot be read; to mend it, where they are wanted: export them again"
    ]
    with pytest.raises(VolumeError, match=r"B000: .*no pixels: the file is cut off"):
        read_volume(tmp_path, series="2")
    with pytest.raises(VolumeError, match=r"2: “thorax 2”, CT, 3 slices, 2 files damaged"):
        read_volume(tmp_path)
    # A file that is cut off within its series' identifier, or before, may be of any.
    content = cut.read_bytes()
    at = content.index(b"\x20\x00\x0e\x00")
    for end in (at, at + 8 + len(f"{dicoms.ROOT}.2") - 2):
        cut.write_bytes(content[:end])
        with pytest.raises(VolumeError, match=r"B000: the DICOM file cannot be read"):
            read_volume(tmp_path, series="1")


def test_a_compression_that_is_not_read_is_told_by_name(tmp_path: Path) -> None:
    made = dicoms.slices(VOXELS)
    for dataset in made:
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        dataset.PixelData = encapsulate([b"no frame"])
        dataset["PixelData"].is_undefined_length = True
    with pytest.raises(VolumeError, match="a compression that is not read: MPEG2 Main Profile"):
        read_volume(dicoms.save(tmp_path, made))

"""What the headers of NRRD and MetaImage files say and ITK does not heed is refused, not read as something else."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from atlasnet.errors import VolumeError
from atlasnet.volume import read_grid, read_volume

ARRAY = np.arange(4 * 5 * 6, dtype="<i2").reshape(4, 5, 6)
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}
BARE = {name: value for name, value in NRRD.items() if not name.startswith("space")}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "1 2 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
}


def nrrd(path: Path, fields: dict[str, str], voxels: bytes = ARRAY.tobytes()) -> Path:
    header = "".join(f"{name}: {value}\n" for name, value in fields.items())
    path.write_bytes(f"NRRD0004\n{header}\n".encode() + voxels)
    return path


def meta(path: Path, fields: dict[str, str], voxels: bytes = ARRAY.tobytes(), file: str = "LOCAL") -> Path:
    header = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(f"{header}ElementDataFile = {file}\n".encode() + (voxels if file == "LOCAL" else b""))
    if file != "LOCAL":
        (path.parent / file).write_bytes(voxels)
    return path


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-LEFT-handed", "scanner-xyz-time"])
def test_an_nrrd_space_that_is_not_the_patients_is_refused(tmp_path: Path, space: str) -> None:
    path = nrrd(tmp_path / "v.nrrd", NRRD | {"space": space})
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match=f"in the patient.*{space}"):
            read(path)


@pytest.mark.parametrize("spacings", ["1 2 nan", "NaN 2 3"])
@pytest.mark.parametrize("kinds", ["domain domain domain", "??? ??? ???", None])
def test_an_nrrd_axis_in_space_without_a_spacing_is_refused(tmp_path: Path, spacings: str, kinds: str | None) -> None:
    fields = BARE | {"spacings": spacings} | ({} if kinds is None else {"kinds": kinds})
    if kinds is None:
        del fields["kinds"]
    with pytest.raises(VolumeError, match="spacing is not positive"):
        read_volume(nrrd(tmp_path / "v.nrrd", fields))


def test_an_nrrd_axis_of_channels_needs_no_spacing(tmp_path: Path) -> None:
    fields = {"dimension": "4", "sizes": "2 6 5 4", "spacings": "nan 1 2 3", "kinds": "vector domain domain domain"}
    path = nrrd(tmp_path / "v.nrrd", BARE | fields, np.repeat(ARRAY, 2).tobytes())
    read = read_volume(path, channels=True)
    np.testing.assert_array_equal(read.array, np.stack([ARRAY, ARRAY]))
    np.testing.assert_allclose(read.grid.spacing, (1, 2, 3))


@pytest.mark.parametrize("units", ['"um" "um" "um"', '"mm" "mm" "cm"', '"m"'])
def test_an_nrrd_in_other_units_than_millimetres_is_refused(tmp_path: Path, units: str) -> None:
    with pytest.raises(VolumeError, match="not in millimetres"):
        read_volume(nrrd(tmp_path / "v.nrrd", NRRD | {"space units": units}))


@pytest.mark.parametrize(
    ("units", "wrong"),
    [('"mm" "mm" "mm"', False), ('"" "" ""', False), ('"cm" "cm" "cm"', True), ('"mm" "mm" "m"', True)],
)
def test_an_nrrd_whose_axes_have_other_units_than_millimetres_is_refused(
    tmp_path: Path, units: str, wrong: bool
) -> None:
    path = nrrd(tmp_path / "v.nrrd", BARE | {"spacings": "3 2 1", "units": units})
    if wrong:
        with pytest.raises(VolumeError, match="not in millimetres; expected units mm"):
            read_volume(path)
    else:
        np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


def test_an_nrrd_axis_of_time_or_channels_may_have_a_unit_of_its_own(tmp_path: Path) -> None:
    fields = {"dimension": "4", "sizes": f"2 {NRRD['sizes']}", "kinds": "list domain domain domain"}
    fields |= {"spacings": "nan 1 1 1", "units": '"HU" "mm" "mm" "mm"'}
    path = nrrd(tmp_path / "v.nrrd", BARE | fields, np.repeat(ARRAY, 2).tobytes())
    assert read_volume(path, channels=True).channels == 2


@pytest.mark.parametrize("name", ["v.nrrd", "v.nhdr"])
def test_an_nrrd_with_more_voxels_than_its_header_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "v.raw").write_bytes(2 * ARRAY.tobytes())
    beside = {"data file": "v.raw"} if name == "v.nhdr" else {}
    with pytest.raises(VolumeError, match=r"more voxels.*expected 240 bytes; found 480 bytes"):
        read_volume(nrrd(tmp_path / name, NRRD | beside, b"" if beside else 2 * ARRAY.tobytes()))


@pytest.mark.parametrize("skip", ["7", "-1"])
def test_an_nrrd_may_have_what_its_header_skips_before_the_voxels(tmp_path: Path, skip: str) -> None:
    path = nrrd(tmp_path / "v.nrrd", NRRD | {"byte skip": skip}, b"\1" * 7 + ARRAY.tobytes())
    np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


def test_lines_that_an_nrrd_skips_may_have_any_length(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "v.nrrd", NRRD | {"line skip": "2"}, b"a line\nand another one\n" + ARRAY.tobytes())
    np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


@pytest.mark.parametrize("unit", ["um", "cm", "m"])
def test_a_metaimage_in_other_units_than_millimetres_is_refused(tmp_path: Path, unit: str) -> None:
    with pytest.raises(VolumeError, match="not in millimetres"):
        read_volume(meta(tmp_path / "v.mha", META | {"DistanceUnits": unit}))


@pytest.mark.parametrize(("slope", "offset"), [("2", "0"), ("1", "-1024"), ("1e-3", "5")])
def test_a_metaimage_whose_intensities_are_to_be_scaled_is_refused(tmp_path: Path, slope: str, offset: str) -> None:
    fields = {"ElementToIntensityFunctionSlope": slope, "ElementToIntensityFunctionOffset": offset}
    with pytest.raises(VolumeError, match="ElementToIntensityFunction"):
        read_volume(meta(tmp_path / "v.mha", META | fields))


def test_fields_that_change_nothing_are_read_over(tmp_path: Path) -> None:
    fields = {
        "DistanceUnits": "mm",
        "ElementToIntensityFunctionSlope": "1",
        "ElementToIntensityFunctionOffset": "0.0",
    }
    np.testing.assert_array_equal(read_volume(meta(tmp_path / "v.mha", META | fields)).array[0], ARRAY)
    path = nrrd(tmp_path / "v.nrrd", NRRD | {"space units": '"mm" "mm" "mm"'})
    np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


@pytest.mark.parametrize(("name", "file"), [("v.mha", "LOCAL"), ("v.mhd", "v.raw")])
def test_a_metaimage_with_more_voxels_than_its_header_says_is_refused(tmp_path: Path, name: str, file: str) -> None:
    with pytest.raises(VolumeError, match=r"more voxels.*expected 240 bytes; found 480 bytes"):
        read_volume(meta(tmp_path / name, META, 2 * ARRAY.tobytes(), file))


@pytest.mark.parametrize("yes", ["True", "true", "1"])
@pytest.mark.parametrize("short", [0, 1])
def test_a_compressed_metaimage_must_say_how_long_its_voxels_are(tmp_path: Path, yes: str, short: int) -> None:
    voxels = zlib.compress(ARRAY.tobytes())
    fields = META | {"CompressedData": yes, "CompressedDataSize": str(len(voxels) - short)}
    path = meta(tmp_path / "v.mha", fields, voxels)
    if short:
        with pytest.raises(VolumeError, match=f"CompressedDataSize.*expected {len(voxels)} bytes"):
            read_volume(path)
    else:
        np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


def test_fields_of_a_metaimage_before_the_number_of_axes_or_given_twice_are_refused(tmp_path: Path) -> None:
    late = {name: value for name, value in META.items() if name != "NDims"} | {"NDims": "3"}
    with pytest.raises(VolumeError, match=r"NDims.*before the fields that depend on it.*after TransformMatrix"):
        read_volume(meta(tmp_path / "late.mha", late))
    path = meta(tmp_path / "twice.mha", META)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 6 5 4\n", b"DimSize = 6 5 4\nDimSize = 6 5 3\n"))
    with pytest.raises(VolumeError, match=r"DimSize.*one such field"):
        read_volume(path)
    twice = nrrd(tmp_path / "twice.nrrd", NRRD)
    twice.write_bytes(twice.read_bytes().replace(b"sizes: 6 5 4\n", b"sizes: 6 5 4\nsizes: 6 5 3\n"))
    with pytest.raises(VolumeError, match=r"sizes.*one such field"):
        read_volume(twice)


@pytest.mark.parametrize("origin", ["1e12 0 0", "0 -1e12 0"])
def test_a_text_header_that_places_an_image_out_of_this_world_is_refused(tmp_path: Path, origin: str) -> None:
    with pytest.raises(VolumeError, match=r"Offset.*numbers below"):
        read_volume(meta(tmp_path / "v.mha", META | {"Offset": origin}))


@pytest.mark.parametrize(("kind", "width"), [("LONG", 4), ("LONG_LONG", 8), ("UINT", 4)])
def test_whole_numbers_of_every_width_are_read_from_a_metaimage(tmp_path: Path, kind: str, width: int) -> None:
    path = meta(tmp_path / "v.mha", META | {"ElementType": f"MET_{kind}"}, ARRAY.astype(f"<i{width}").tobytes())
    np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)


def test_a_metaimage_may_have_what_its_header_skips_before_the_voxels(tmp_path: Path) -> None:
    for size in ("7", "-1"):
        path = meta(tmp_path / "v.mhd", META | {"HeaderSize": size}, b"\1" * 7 + ARRAY.tobytes(), "v.raw")
        np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)
    path = meta(tmp_path / "v.mha", META | {"HeaderSize": "400"})
    start = len(path.read_bytes()) - ARRAY.nbytes
    path.write_bytes(path.read_bytes()[:start].ljust(400, b"\1") + ARRAY.tobytes())
    np.testing.assert_array_equal(read_volume(path).array[0], ARRAY)

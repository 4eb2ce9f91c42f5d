"""Pages: well-formed, self-contained, with the numbers of the records and pictures of what is in the volumes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tomllib
from base64 import b64decode
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from atlasnet.errors import AtlasNetError, UnusualInputError
from atlasnet.prediction import Batch, Prediction
from atlasnet.report.page import Cell, Page
from atlasnet.report.pair import add_panels, pair_panels
from atlasnet.report.prediction_page import _time, write_batch_report
from atlasnet.report.stack import add_stacks, image_layer, label_layer, stacks
from atlasnet.report.viewer import BUNDLE, LICENCE, SHA256, VERSION, Shown, add_viewer
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume
from pages import Reader, check, pixels
from synthetic import subject

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "src/atlasnet/report/assets"
GREY = (0.0, 255.0)


def block() -> Volume:
    """Bright on top, at the front, and on the patient's left; on the axes of LPS."""
    array = np.zeros((24, 32, 40), np.uint8)
    array[16:, :8, 30:] = 250
    return Volume(array, Grid.from_parts(array.shape, (2.0, 2.0, 3.0)))


# The page


def test_what_is_written_is_text_and_never_markup(tmp_path: Path) -> None:
    page = Page("a <b> & c")
    page.warnings(["<i>"], "none")
    page.table(["case"], [[Cell("<script>", link='x".html')], ["</td>"]])
    assert (
        Cell("scan", link="scan#2 100%25?_report.html").html()
        == '<a href="scan%232%20100%2525%3F_report.html">scan</a>'
    )
    assert 'href="javascript%3A' in Cell("scan", link="javascript:alert(1)").html()
    page.text("</p>")
    with page.fold("</summary>"):
        page.text("inside")
    found = check(page.write(tmp_path / "page.html"))
    assert found.table("case") == [{"case": "<script>"}, {"case": "</td>"}]
    assert "a <b> & c" in found.text


def test_a_page_without_warnings_says_so(tmp_path: Path) -> None:
    page = Page("title")
    page.warnings([], "Nothing to warn of.")
    assert "Nothing to warn of." in check(page.write(tmp_path / "page.html")).text


def pictured(tmp_path: Path) -> Page:
    """Text, a small part, a large part and a larger one."""
    page = Page("title")
    page.text("a paragraph that stays")
    for size in (10, 3000, 6000):
        page.part(f"<p>{'x' * size}</p>", what=f"part of {size}")
    return page


def test_a_page_that_would_be_too_large_loses_its_largest_pictures_and_says_so(tmp_path: Path) -> None:
    whole = pictured(tmp_path).html()
    for less, lost in ((1, {6000}), (7000, {6000, 3000})):
        most = len(whole.encode()) - less
        text = pictured(tmp_path).html(most=most)
        assert len(text.encode()) <= most
        assert {size for size in (10, 3000, 6000) if "x" * size not in text} == lost
        assert {size for size in (10, 3000, 6000) if f"left out: part of {size}." in text} == lost
        assert "a paragraph that stays" in text


def test_what_fills_a_page_may_be_left_out(tmp_path: Path) -> None:
    page, volume = Page("title"), block()
    add_viewer(page, [Shown("scan", volume, window=GREY)])
    layers = [image_layer(volume, GREY)]
    add_stacks(page, stacks(volume.grid, layers), layers, "a scan")
    add_panels(page, pair_panels(volume, volume, Transform.identity(), names=("a", "b")))
    (tmp_path / "page.html").write_text(page.html(most=0), encoding="utf-8")
    text = check(tmp_path / "page.html").text
    for what in ("the volume to look through, scan", "the slices of a scan", "pictures of a registration"):
        assert f"is left out: {what}" in text or what in text


def test_gpu_memory_has_its_column_where_there_is_a_gpu() -> None:
    record = {"seconds": {"network": 1.5}, "peak_memory_mib": {"network": 700.0}}
    for more, expected in (({}, 3), ({"peak_gpu_memory_mib": {"network": 2345.6}}, 4)):
        page = Page("title")
        _time(page, record | more)
        assert page.html().count("<th") - page.html().count("<thead") == expected
        assert ("2346" in page.html()) == bool(more)


def test_cases_without_a_result_are_on_top_of_a_batchs_page(tmp_path: Path) -> None:
    batch = Batch(failed={"s1": AtlasNetError("no atlas")}, refused={"s2": UnusualInputError("the scan is mirrored")})
    text = check(write_batch_report(tmp_path / "report.html", batch, ["core"])).text
    assert "s1: no atlas" in text
    assert "s2: refused: the scan is mirrored" in text
    assert "Every case was segmented" not in text


@pytest.mark.parametrize("count", [2, 40])
def test_a_batchs_page_has_a_column_for_each_label_unless_they_are_many(tmp_path: Path, count: int) -> None:
    names = [f"rib {n}" for n in range(1, count + 1)]
    volumes = dict.fromkeys(names, 1.5) | {"rib 1": 0.0}
    record: dict[str, Any] = {"agreement": {"foreground": 0.9}, "warnings": [], "atlases": [{"quality": 0.8}]}
    record |= {"volumes_ml": volumes, "seconds": {"network": 1.0}}
    (tmp_path / "s1.json").write_text(json.dumps(record))
    batch = Batch(written={"s1": tmp_path / "s1.nii.gz"})
    (row,) = check(write_batch_report(tmp_path / "report.html", batch, names)).table("case")
    told = {"rib 1, ml": "0", "rib 2, ml": "1.5"} if count == 2 else {"labels found": "39 of 40"}
    assert {name: value for name, value in row.items() if "rib" in name or "labels" in name} == told
    line = Prediction(labels=block(), record=record).summary()
    assert line == ("rib 1 0 ml, rib 2 1.5 ml" if count == 2 else "39 of 40 labels found") + "; agreement 0.900"


# Slices


def test_slices_show_the_voxels_the_right_way_up() -> None:
    volume = block()
    axial, coronal, sagittal = stacks(volume.grid, [image_layer(volume, GREY)])
    assert (axial.count, coronal.count, sagittal.count) == (24, 32, 40)
    # Front up, the patient's left on the right; head up; front on the left.
    bright = [
        pixels(stack.pictures[0][place])[..., 0] > 128 for stack, place in ((axial, 20), (coronal, 4), (sagittal, 35))
    ]
    assert bright[0].shape == (32, 40)
    np.testing.assert_array_equal(np.argwhere(bright[0])[[0, -1]], [[0, 30], [7, 39]])
    np.testing.assert_array_equal(np.argwhere(bright[1])[[0, -1]], [[0, 30], [7, 39]])
    np.testing.assert_array_equal(np.argwhere(bright[2])[[0, -1]], [[0, 0], [7, 7]])
    assert axial.size == (80.0, 64.0)


def letters(page: Path, picture: str) -> list[dict[str, str]]:
    """The letters over every picture whose words begin so."""
    text = page.read_text(encoding="utf-8")
    lettered = re.findall(r'<div class="[a-z ]*lettered"[^>]*>(?:(?!</div>).)*', text)
    return [
        dict(re.findall(r'<span class="edge (\w+)" aria-hidden="true">(\w+)</span>', found))
        for found in lettered
        if f'alt="{picture}' in found
    ]


def test_every_picture_of_a_slice_has_its_letters(tmp_path: Path) -> None:
    page, volume = Page("title"), block()
    layers = [image_layer(volume, GREY), label_layer(volume, {250: "#E69F00"})]
    add_stacks(page, stacks(volume.grid, layers), layers, "a scan")
    add_panels(page, pair_panels(volume, volume, Transform.identity(), planes=("axial", "sagittal")))
    path = page.write(tmp_path / "page.html")
    axial = {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    sagittal = {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    assert letters(path, "axial slice of a scan") == letters(path, "axial slice of target") == [axial]
    assert letters(path, "coronal slice of a scan") == [{"left": "R", "right": "L", "top": "S", "bottom": "I"}]
    assert letters(path, "checkerboard") == letters(path, "Jacobian") == [axial, sagittal]
    assert len(letters(path, "")) == sum("labels" not in image["alt"] for image in check(path).images)


def test_labels_have_their_colours_and_the_background_none() -> None:
    labels = block().replace((block().array > 0).astype(np.uint8) * 7)
    (axial, _, _) = stacks(labels.grid, [label_layer(labels, {3: "#000000", 7: "#E69F00"})], labels=labels)
    drawn = np.asarray(Image.open(io.BytesIO(axial.pictures[0][20])).convert("RGBA"))
    assert drawn[0, 35].tolist() == [0xE6, 0x9F, 0x00, 255]
    assert drawn[20, 5, 3] == 0
    assert axial.slices[axial.first] >= 16


def test_the_planes_open_at_one_point_where_the_rarest_label_is() -> None:
    values = np.zeros((20, 30, 40), np.uint8)
    values[2:18, 5:25, 5:35] = 1
    values[12:15, 7:10, 26:29] = 2
    labels = Volume(values, Grid.from_parts(values.shape))
    found = stacks(labels.grid, [label_layer(labels, {1: "#000000", 2: "#E69F00"})], labels=labels)
    assert [stack.slices[stack.first] for stack in found] == [13, 8, 27]
    assert [stack.slices[stack.first] for stack in stacks(labels.grid, [image_layer(labels, GREY)])] == [10, 15, 20]


def test_the_viewer_opens_at_the_same_point(tmp_path: Path) -> None:
    page, volume = Page("title"), block()
    add_viewer(page, [Shown("scan", volume, window=GREY)], at=(3.0, -4.0, 5.0))
    (settings,) = re.findall(r'<script type="application/json">(\{"volumes".*?)</script>', page.html(), re.DOTALL)
    assert json.loads(settings)["at"] == [-3.0, 4.0, 5.0]  # NiiVue's millimetres are RAS


def test_many_slices_are_thinned_evenly_to_the_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 60, 60), np.uint8)
    volume = Volume(noise, Grid.from_parts(noise.shape))
    found = stacks(volume.grid, [image_layer(volume, GREY)], limit=200_000)
    assert sum(stack.bytes for stack in found) <= 200_000
    for stack in found:
        steps = np.diff(stack.slices)
        assert stack.slices[0] == 0
        assert stack.slices[-1] == stack.count - 1
        assert steps.max() - steps.min() <= 1


def test_an_image_of_one_slice_is_shown_in_its_own_plane() -> None:
    volume = Volume(np.zeros((20, 1, 30), np.uint8), Grid.from_parts((20, 1, 30)))
    (only,) = stacks(volume.grid, [image_layer(volume, GREY)])
    assert (only.plane, only.count) == ("coronal", 1)


# Registrations


def test_the_map_that_moves_nothing_is_white_and_its_checkerboard_is_the_image() -> None:
    image = Volume(np.tile(np.linspace(0, 250, 40), (24, 32, 1)).astype(np.float32), block().grid)
    panels = {
        panel.title: pixels(panel.picture).astype(int)
        for panel in pair_panels(image, image, Transform.identity(), planes=("axial",))
    }
    assert panels["Jacobian"].min() > 240
    assert np.abs(panels["checkerboard"] - panels["target, axial"]).max() < 12
    assert np.ptp(panels["both, grey where alike"], axis=-1).max() < 12


def test_what_only_one_of_two_images_shows_is_coloured() -> None:
    array = np.zeros((3, 64, 64), np.uint8)
    target, source = array.copy(), array.copy()
    target[:, 8:24, 8:24] = source[:, 40:56, 40:56] = 255
    target[:, 8:24, 40:56] = source[:, 8:24, 40:56] = 255
    grid = Grid.from_parts(array.shape)
    panels = pair_panels(Volume(target, grid), Volume(source, grid), Transform.identity(), planes=("axial",))
    (both,) = (pixels(panel.picture).astype(int) for panel in panels if panel.title.startswith("both"))
    for (row, column), colour in (((16, 16), (0, 255, 0)), ((48, 48), (255, 0, 255)), ((16, 48), (255, 255, 255))):
        assert np.abs(both[4 * row, 4 * column] - colour).max() < 12


def test_the_colour_of_the_jacobian_is_that_of_the_change_of_volume() -> None:
    image = Volume(np.zeros((24, 32, 40), np.float32), block().grid)
    (change,) = [
        pixels(panel.picture)
        for panel in pair_panels(image, image, Transform.affine(np.diag([2 ** (1 / 3)] * 3 + [1])), planes=("coronal",))
        if panel.title == "Jacobian"
    ]
    expected = 255 * np.array(mpl.colormaps["RdBu_r"](0.5 + 0.5 * np.log(2) / np.log(3))[:3])
    assert np.abs(change - expected).max() < 8


def test_the_lines_of_the_grid_lie_where_the_map_takes_them() -> None:
    """Target points x are taken to 2 x in the source, so that its lines, 10 mm apart, are 5 mm apart in the target."""
    dark = Volume(np.zeros((24, 32, 40), np.float32), block().grid)
    (lines,) = [
        pixels(panel.picture)[..., 0].astype(int)
        for panel in pair_panels(dark, dark, Transform.affine(np.diag([2.0, 2.0, 2.0, 1.0])), planes=("axial",))
        if panel.title.startswith("grid of 10 mm")
    ]
    x = (np.arange(256) + 0.5) / 256 * 80 - 1
    off = np.abs(x / 5 - np.rint(x / 5)) * 5
    row = np.median(lines, axis=0)
    assert row[off < 0.1].min() > 180
    assert row[off > 1.0].max() < 140


def test_a_registration_of_single_slices_is_shown_in_their_plane() -> None:
    image = Volume(block().array[0, 20:21], Grid.from_parts((1, 32, 40), (2.0, 2.0, 3.0)))
    panels = pair_panels(image, image, Transform.identity())
    assert {panel.plane for panel in panels} == {"axial"}
    assert pixels(panels[-1].picture).min() > 240


# The viewer


def test_the_viewer_is_the_pinned_one_and_its_licence_is_shipped() -> None:
    bundle = (ASSETS / BUNDLE).read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == SHA256
    told = (ASSETS / "README.md").read_text(encoding="utf-8")
    assert SHA256 in told
    assert VERSION in told
    assert "Copyright (c) 2021, Niivue" in (ASSETS / LICENCE).read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {path for pattern in project["project"]["license-files"] for path in ROOT.glob(pattern)}
    assert ASSETS / LICENCE in shipped


def volumes(page: Path, folder: Path) -> list[sitk.Image]:
    """What a page hands to the viewer, read by another library."""
    texts = [text for attributes, text in Reader(page).scripts if attributes.get("type") == "application/json"]
    (held,) = [found["volumes"] for found in map(json.loads, texts) if "volumes" in found]
    images = []
    for volume in held:
        path = folder / volume["name"]
        path.write_bytes(b64decode(volume["url"].partition("base64,")[2]))
        images.append(sitk.ReadImage(path))
    return images


def test_the_viewer_gets_the_voxels_and_the_labels_by_their_place(tmp_path: Path) -> None:
    image, labels = subject(0)
    page = Page("title")
    named = {2: ("shell", "#ff0000"), 4: ("core", "#00ff00")}
    add_viewer(page, [Shown("scan", image, window=GREY), Shown("labels", labels, labels=named)])
    scan, found = volumes(page.write(tmp_path / "page.html"), tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan), np.rint(image.array[0]))
    np.testing.assert_allclose(scan.GetOrigin(), image.grid.origin, atol=1e-4)
    expected = np.select([labels.array[0] == 2, labels.array[0] == 4], [1, 2], 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)


def test_a_large_volume_is_made_coarser_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlasnet.report.viewer.MOST_VOXELS", 5_000)
    image, _ = subject(0)
    page = Page("title")
    add_viewer(page, [Shown("scan", image, window=GREY)])
    path = page.write(tmp_path / "page.html")
    (scan,) = volumes(path, tmp_path)
    assert 4_000 < scan.GetNumberOfPixels() <= 5_000
    assert "Made coarser" in check(path).text


@pytest.mark.parametrize("thickness", [0.01, 1.0, 9.0])
def test_a_large_slice_is_made_coarser_within_its_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thickness: float
) -> None:
    monkeypatch.setattr("atlasnet.report.viewer.MOST_VOXELS", 5_000)
    values = np.arange(90_000, dtype=np.float32).reshape(1, 300, 300)
    image = Volume(values, Grid.from_parts(values.shape, (0.2, 0.2, thickness)))
    page = Page("title")
    add_viewer(page, [Shown("scan", image, window=GREY)])
    (scan,) = volumes(page.write(tmp_path / "page.html"), tmp_path)
    assert 4_000 < scan.GetNumberOfPixels() <= 5_000
    assert scan.GetSize()[2] == 1
    assert scan.GetSpacing()[2] == pytest.approx(thickness)


def test_the_viewers_code_is_whole_in_the_page(tmp_path: Path) -> None:
    page = Page("title")
    add_viewer(page, [Shown("scan", block(), window=GREY)])
    found = check(page.write(tmp_path / "page.html"))
    (held,) = [text for attributes, text in found.scripts if attributes.get("id") == "niivue-bundle"]
    assert gzip.decompress(b64decode(held)) == (ASSETS / BUNDLE).read_bytes()
    assert "Copyright (c) 2021, Niivue" in found.text

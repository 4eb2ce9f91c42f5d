"""Pages in a real headless Chromium: no complaint, sliders move, tables sort, the viewer opens, nothing is cut off."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from atlasnet.evaluation import Table, evaluate_subject
from atlasnet.report import Point, curve_figure, svg, write_evaluation_report
from atlasnet.report.page import Page
from atlasnet.report.pair import add_panels, add_scale, pair_panels
from atlasnet.report.stack import add_stacks, agreement_layer, image_layer, label_layer, stacks
from atlasnet.report.viewer import Shown, add_viewer
from atlasnet.transform import Transform
from chromium import Tab, browser, find_chromium
from synthetic import LABELS, subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium needed: no chromium, chromium-browser, google-chrome"),
]
WINDOW = (0.0, 320.0)
COLOURS = {2: "#56B4E9", 4: "#E69F00"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part that pages are made of."""
    image, labels = subject(0)
    share = image.replace(np.linspace(0, 1, image.grid.voxels).reshape(image.array.shape))
    page = Page("Every part of a page")
    page.warnings(["something"], "nothing")
    page.table(["case", "Dice"], [["case10", "0.9"], ["case2", ""], ["case9", "0.85"], ["1", "10.5"]])
    layers = [image_layer(image, WINDOW), label_layer(labels, COLOURS), agreement_layer(share, labels)]
    add_stacks(page, stacks(image.grid, layers, labels=labels), layers, "a scan")
    named = {value: (str(value), colour) for value, colour in COLOURS.items()}
    add_viewer(page, [Shown("scan", image, window=WINDOW), Shown("labels", labels, labels=named)])
    add_scale(page)
    add_panels(page, pair_panels(image, image, Transform.identity()))
    head = [f"a heading of several words {place}" for place in range(12)]
    page.table(head, [["0.123"] * len(head)])
    page.svg(svg(curve_figure({"one": [Point(1, 0.5)], "two": [Point(1, 0.6)]}, x="x", y="y")), "curves")
    return page.write(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    # Chromium may still write into its profile while it ends.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, browser(Path(folder)) as opened:
        yield opened


def column(tab: Tab, number: int) -> list[str]:
    """Of the first table."""
    cells = tab.run(f"[...document.querySelector('tbody').rows].map(row => row.cells[{number}].textContent)")
    return [str(cell) for cell in cells]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_at_every_width_and_in_both_colours(
    tab: Tab, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(page, width=width, dark=dark)
    assert tab.complaints == []
    assert [address for address in tab.requests if not address.startswith(("file:", "data:"))] == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    pixels = imread(tab.picture(tmp_path / "page.png"))[..., :3]
    assert pixels.shape[1] == width
    # The page's ground, at its left edge.
    assert (np.median(pixels[:, 2]) < 0.3) == dark


@pytest.mark.parametrize("width", [1280, 400])
def test_headings_have_two_lines_and_charts_fit(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width=width)
    lines = tab.run(
        "[...document.querySelectorAll('thead th')].map(th => new Set([...th.querySelectorAll('span')]"
        ".flatMap(span => [...span.getClientRects()].map(box => Math.round(box.top)))).size)"
    )
    assert max(lines) == 2
    box = tab.run(
        "(() => { const box = document.querySelector('figure.drawing svg').getBoundingClientRect();"
        "return [box.left, box.right, innerWidth]; })()"
    )
    assert 0 <= box[0] < box[1] <= width == box[2]


def test_the_scores_of_cases_fit_a_screen_and_name_their_case_on_a_telephone(tab: Tab, tmp_path: Path) -> None:
    labels = subject(0)[1]
    rows = evaluate_subject(labels, labels, LABELS, case="subject_2019-04_thorax_baseline").rows
    table = Table({name: value for name, value in LABELS.items() if value}, rows)
    page = write_evaluation_report(tmp_path / "page.html", table.as_json())
    cases = (
        "[...document.querySelectorAll('.wide')].find(box => box.querySelector('th').textContent.startsWith('case'))"
    )
    tab.open(page)
    assert tab.run(f"{cases}.scrollWidth - {cases}.clientWidth") == 0
    tab.open(page, width=400)
    tab.run(f"{cases}.scrollTo(10000, 0)")
    assert tab.run(f"{cases}.scrollLeft") > 0
    left, right = tab.run(
        f"(() => {{ const box = {cases}.querySelector('td').getBoundingClientRect(); return [box.left, box.right] }})()"
    )
    assert 0 <= left < right <= 400


def test_a_name_that_has_room_stays_in_one_line(tab: Tab, tmp_path: Path) -> None:
    labels = subject(0)[1]
    rows = evaluate_subject(labels, labels, LABELS, case="hippocampus_001").rows
    table = Table({name: value for name, value in LABELS.items() if value}, rows)
    page = write_evaluation_report(tmp_path / "page.html", table.as_json())
    for width in (1280, 400):
        tab.open(page, width=width)
        lines = tab.run(
            "[...document.querySelectorAll('.dense td:first-child')].map(cell => { const text = document.createRange();"
            " text.selectNodeContents(cell); return new Set([...text.getClientRects()].map(line => line.top)).size })"
        )
        assert set(lines) == {1}


def test_a_name_without_blanks_pushes_no_column_off_the_screen(tab: Tab, tmp_path: Path) -> None:
    page = Page("a long name")
    head = [f"h{place}" for place in range(8)]
    page.table(head, [["L" * 150, "L" * 150, *["0.123"] * 6]], words=head[1:2])
    tab.open(page.write(tmp_path / "page.html"))
    assert tab.run("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.dense'))") == 0


def test_letters_lie_at_their_edges_of_every_picture(tab: Tab, page: Path) -> None:
    tab.open(page)
    places = tab.run("""[...document.querySelectorAll('.edge')].map(letter => {
        const own = letter.getBoundingClientRect();
        const box = letter.parentElement.querySelector('img').getBoundingClientRect();
        const x = ((own.left + own.right) / 2 - box.left) / box.width;
        const y = ((own.top + own.bottom) / 2 - box.top) / box.height;
        return [letter.classList[1], x, y];
    })""")
    assert len(places) == 4 * (3 + 12)
    expected = {"left": (0, 0.5), "right": (1, 0.5), "top": (0.5, 0), "bottom": (0.5, 1)}
    for side, x, y in places:
        assert (x, y) == pytest.approx(expected[side], abs=0.1)


def test_a_click_on_a_heading_sorts_numbers_by_value_and_names_as_people_do(tab: Tab, page: Path) -> None:
    tab.open(page)
    click = "document.querySelectorAll('thead th')[{}].click()"
    tab.run(click.format(1))
    assert column(tab, 1) == ["0.85", "0.9", "10.5", ""]
    tab.run(click.format(1))
    assert column(tab, 1) == ["10.5", "0.9", "0.85", ""]
    tab.run(click.format(0))
    assert column(tab, 0) == ["1", "case2", "case9", "case10"]


def test_a_slider_leafs_through_its_plane(tab: Tab, page: Path) -> None:
    tab.open(page)
    move = """(() => {
        const stack = document.querySelector('.stack.coronal'), images = [...stack.querySelectorAll('img')];
        const before = images.map(image => image.src), slider = stack.querySelector('input');
        slider.value = 3;
        slider.dispatchEvent(new Event('input'));
        return [stack.querySelector('output').textContent, images.map((image, i) => image.src !== before[i])];
    })()"""
    assert tab.run(move) == ["4", [True, True, True]]


def test_layers_are_switched_and_fade(tab: Tab, page: Path) -> None:
    tab.open(page)
    hidden = "document.querySelector('img.{}').hidden"
    assert (tab.run(hidden.format("labels")), tab.run(hidden.format("agreement"))) == (False, True)
    tab.run("document.querySelectorAll('input[data-layer]').forEach(box => box.click())")
    assert (tab.run(hidden.format("labels")), tab.run(hidden.format("agreement"))) == (True, False)
    tab.run(
        "(() => { const range = document.querySelector('input[data-opacity]'); range.value = 20;"
        "range.dispatchEvent(new Event('input')); })()"
    )
    assert tab.run("document.querySelector('img.agreement').style.opacity") == "0.2"


def test_the_viewer_opens_on_a_click_and_shows_scan_and_labels(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(page)
    assert tab.run("window.niivue === undefined")
    tab.run("document.querySelector('.viewer button').click()")
    tab.wait_for("document.querySelector('.viewer').dataset.open === '1'")
    tab.run("document.querySelector('.viewer').scrollIntoView()")
    tab.wait_for("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    pixels = imread(tab.picture(tmp_path / "viewer.png", whole=False))[..., :3]
    assert tab.complaints == []
    assert [address for address in tab.requests if not address.startswith(("file:", "data:"))] == []
    place = tab.run(
        "(() => { const box = document.querySelector('canvas').getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom].map(Math.round); })()"
    )
    seen = pixels[place[1] : place[3], place[0] : place[2]]
    blue, orange = seen[..., 2] > seen[..., 0] + 0.1, seen[..., 0] > seen[..., 2] + 0.2
    assert blue.mean() > 0.05
    assert orange.mean() > 0.01

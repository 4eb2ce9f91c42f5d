"""Letters of orientation around the pictures of slices: at the right edges, legible, and hiding nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox
from scipy.spatial.transform import Rotation

from atlasnet.report import overlay, registration_figure, stages_figure, take_slice
from atlasnet.volume import Grid, Volume
from test_report import NAMES, named, world

TURNED = Rotation.from_euler("xyz", (10, -20, 40), degrees=True).as_matrix()


def scan(direction: np.ndarray) -> tuple[Volume, Volume]:
    """Noise and a label, stored with the patient's left, back and feet first."""
    grid = Grid.from_parts((10, 24, 30), (2.0, 2.0, 5.0), (3.0, -9.0, 40.0), direction @ np.diag([-1.0, -1.0, -1.0]))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:8, 6:12, 6:20] = 1
    labels[5, 6:16, 6:20] = 1  # so that three slices are shown
    return Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid), Volume(labels, grid)


def draw_overlay(path: Path, image: Volume, labels: Volume) -> Path:
    return overlay(path, image, labels, labels, names=NAMES, title="a case")


def draw_stages(path: Path, image: Volume, labels: Volume) -> Path:
    share = image.replace(np.ones(image.array.shape, np.float32))
    whole = {"source": image, "atlas": image, "mapped": image, "prediction": labels, "agreement": share}
    return stages_figure(path, **whole, names=NAMES, title="a case")


def draw_registration(path: Path, image: Volume, labels: Volume) -> Path:
    ones = image.replace(np.ones(image.array.shape, np.float32))
    return registration_figure(path, target=image, warped=image, jacobian=ones, title="a case")


Draw = Callable[[Path, Volume, Volume], Path]
FIGURES = pytest.mark.parametrize(
    ("draw", "planes"),
    [
        (draw_overlay, ["axial"] * 3),
        (draw_stages, ["axial"] * 5),
        (draw_registration, ["axial"] * 4 + ["coronal"] * 4),
    ],
    ids=["overlay", "stages", "registration"],
)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written from now on."""
    figures: list[Figure] = []
    write = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        figures.append(figure)
        write(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def pictures(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_images()]


def letters(axes: Axes) -> dict[str, str]:
    """What is written on each side of a picture."""
    picture, found = axes.get_window_extent(), {}
    for text in axes.texts:
        box = text.get_window_extent()
        sides = {
            "left": box.x1 <= picture.x0,
            "right": box.x0 >= picture.x1,
            "top": box.y0 >= picture.y1,
            "bottom": box.y1 <= picture.y0,
        }
        (side,) = (name for name, there in sides.items() if there)
        found[side] = text.get_text()
    return found


@FIGURES
@pytest.mark.parametrize("direction", [np.eye(3), TURNED], ids=["straight", "oblique"])
def test_every_slice_has_the_letters_of_where_its_drawn_pixels_lie(
    saved: list[Figure], tmp_path: Path, draw: Draw, planes: list[str], direction: np.ndarray
) -> None:
    image, labels = scan(direction)
    draw(tmp_path / "figure.png", image, labels)
    drawn = pictures(saved[0])
    assert len(drawn) == len(planes)
    for axes, plane in zip(drawn, planes, strict=True):
        places = [take_slice(world(image.grid, axis), 3, plane).pixels for axis in range(3)]  # type: ignore[arg-type]
        right = np.array([pixels[0, -1] - pixels[0, 0] for pixels in places])
        down = np.array([pixels[-1, 0] - pixels[0, 0] for pixels in places])
        expected = {"left": named(-right), "right": named(right), "top": named(-down), "bottom": named(down)}
        assert letters(axes) == expected


@FIGURES
@pytest.mark.parametrize("direction", [np.eye(3), TURNED], ids=["straight", "oblique"])
def test_no_writing_lies_over_a_picture_over_other_writing_or_beyond_the_edge(
    saved: list[Figure], tmp_path: Path, draw: Draw, planes: list[str], direction: np.ndarray
) -> None:
    draw(tmp_path / "figure.png", *scan(direction))
    figure = saved[0]
    texts = [text for axes in pictures(figure) for text in (*axes.texts, axes.title)]
    boxes = [text.get_window_extent() for text in (*texts, *figure.texts)]
    shown = [axes.get_window_extent() for axes in pictures(figure)]
    assert len(boxes) == 5 * len(planes) + 1
    for one, other in [*combinations(boxes, 2), *((box, picture) for box in boxes for picture in shown)]:
        assert not Bbox.intersection(one, other), (one, other)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


@FIGURES
def test_letters_of_two_pictures_side_by_side_are_further_apart_than_from_their_own(
    saved: list[Figure], tmp_path: Path, draw: Draw, planes: list[str]
) -> None:
    draw(tmp_path / "figure.png", *scan(np.eye(3)))
    drawn = pictures(saved[0])
    for first, second in pairwise(drawn):
        own, next_one = first.get_window_extent(), second.get_window_extent()
        if next_one.x0 < own.x1:
            continue  # the first of a new row
        ours = next(text.get_window_extent() for text in first.texts if text.get_text() == "L")
        theirs = next(text.get_window_extent() for text in second.texts if text.get_text() == "R")
        assert theirs.x0 - ours.x1 > 2 * (ours.x0 - own.x1)


@pytest.mark.parametrize("ground", [-1000.0, 1000.0], ids=["dark", "light"])
def test_letters_are_dark_on_white_whatever_the_picture(saved: list[Figure], tmp_path: Path, ground: float) -> None:
    image, labels = scan(np.eye(3))
    path = draw_overlay(tmp_path / "figure.png", image.replace(np.full_like(image.array, ground)), labels)
    pixels = imread(path)[..., :3]
    for axes in pictures(saved[0]):
        for text in axes.texts:
            box = text.get_window_extent()
            rows = slice(int(len(pixels) - box.y1), int(len(pixels) - box.y0) + 1)
            part = pixels[rows, int(box.x0) : int(box.x1) + 1]
            assert part.max() == 1.0
            assert part.min() < 0.2  # WCAG asks for 0.18 of white's luminance at most
            assert max(to_rgb(text.get_color())) == 0
            assert text.get_fontsize() >= 10

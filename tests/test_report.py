"""Figures: slices the right way up, true proportions, colours that stay, and files that hold what was drawn."""

from __future__ import annotations

from html import escape
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from atlasnet.cohort.segments import PALETTE
from atlasnet.errors import InputError
from atlasnet.report import (
    Point,
    colours,
    comparison_figure,
    curve_figure,
    overlay,
    registration_figure,
    richest_slice,
    same_level,
    slice_count,
    stages_figure,
    svg,
    take_slice,
    window,
)
from atlasnet.report.curves import scatter_figure
from atlasnet.report.display import opening_point, slice_through
from atlasnet.report.panel import look
from atlasnet.volume import Grid, Volume

NAMES = {"background": 0, "lung": 1, "disease": 2}
SPACING = (1.5, 2.0, 5.0)


def patient() -> Volume:
    """A head (100) on top, a nose (50) in front, a mark (20) on the patient's left, on the axes of LPS."""
    array = np.zeros((8, 10, 12), np.int16)
    array[-1] = 100
    array[:, 0] = 50
    array[:, :, -1] = 20
    return Volume(array, Grid.from_parts(array.shape, SPACING, (-8.0, -9.0, -17.5)))


def stored(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same volume with its array axes permuted and flipped, the header along with them."""
    affine = np.eye(4)
    old = volume.grid
    array = volume.array[0].transpose(axes)
    shape = array.shape
    for new, axis in enumerate(axes):
        column = old.affine[:3, 2 - axis].copy()
        affine[:3, 2 - new] = -column if flips[new] else column
    origin = old.origin
    for new, axis in enumerate(axes):
        if flips[new]:
            origin = origin + old.affine[:3, 2 - axis] * (shape[new] - 1)
    affine[:3, 3] = origin
    return Volume(array[tuple(slice(None, None, -1 if f else 1) for f in flips)], Grid(shape, affine))


ORIENTATIONS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_slices_do_not_depend_on_how_the_volume_is_stored(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    for plane in ("axial", "coronal", "sagittal"):
        expected = take_slice(patient(), 3, plane)
        found = take_slice(stored(patient(), axes, flips), 3, plane)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.aspect == pytest.approx(expected.aspect)


def named(direction: np.ndarray) -> str:
    """The patient's sides that lie in a direction, LPS: all of those within 67.5 degrees of it, the nearest first."""
    sides = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    angles = {side: np.degrees(np.arccos(direction @ axis / np.linalg.norm(direction))) for side, axis in sides.items()}
    return "".join(sorted((side for side, angle in angles.items() if angle < 67.5), key=angles.__getitem__))


def world(grid: Grid, axis: int) -> Volume:
    """Every voxel says where it lies along an axis of the world, mm."""
    z, y, x = np.indices(grid.shape)
    return Volume(grid.to_world(np.stack([x, y, z], -1))[..., axis], grid)


TURNED = [Rotation.from_euler("xyz", angles, degrees=True).as_matrix() for angles in ((0, 0, 30), (8, -20, 40))]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("turned", [np.eye(3), *TURNED], ids=["straight", "oblique", "doubly oblique"])
def test_the_letters_at_the_edges_say_where_the_drawn_pixels_lie_in_the_patient(turned: np.ndarray, plane: str) -> None:
    for axes, flips in ORIENTATIONS:
        straight = stored(patient(), axes, flips).grid
        grid = Grid.from_parts(straight.shape, straight.spacing, straight.origin, turned @ straight.direction)
        drawn = [take_slice(world(grid, axis), 3, plane) for axis in range(3)]  # type: ignore[arg-type]
        right = np.array([picture.pixels[0, -1] - picture.pixels[0, 0] for picture in drawn])
        down = np.array([picture.pixels[-1, 0] - picture.pixels[0, 0] for picture in drawn])
        expected = {"left": named(-right), "right": named(right), "top": named(-down), "bottom": named(down)}
        assert vars(drawn[0].edges) == expected


def test_the_left_edge_of_an_axial_slice_is_the_patients_right() -> None:
    edges = take_slice(patient(), 3, "axial").edges
    assert (edges.left, edges.right, edges.top, edges.bottom) == ("R", "L", "A", "P")


def test_axial_slice_has_the_front_up_and_the_patients_left_on_the_right() -> None:
    pixels = take_slice(patient(), 2, "axial").pixels
    assert (pixels[0, :-1] == 50).all()
    assert (pixels[:, -1] == 20).all()


def test_coronal_slice_has_the_head_up_and_the_patients_left_on_the_right() -> None:
    pixels = take_slice(patient(), 4, "coronal").pixels
    assert (pixels[0, :-1] == 100).all()
    assert (pixels[:, -1] == 20).all()


def test_sagittal_slice_has_the_head_up_and_the_front_on_the_left() -> None:
    pixels = take_slice(patient(), 4, "sagittal").pixels
    assert (pixels[0, 1:] == 100).all()
    assert (pixels[:, 0] == 50).all()


@pytest.mark.parametrize(("plane", "aspect"), [("axial", 2.0 / 1.5), ("coronal", 5.0 / 1.5), ("sagittal", 5.0 / 2.0)])
def test_pixels_have_the_proportions_of_the_spacing(plane: str, aspect: float) -> None:
    assert take_slice(patient(), 1, plane).aspect == pytest.approx(aspect)


@pytest.mark.parametrize(("plane", "count"), [("axial", 8), ("coronal", 10), ("sagittal", 12)])
def test_every_slice_can_be_taken_and_no_other(plane: str, count: int) -> None:
    assert slice_count(patient(), plane) == count
    take_slice(patient(), count - 1, plane)
    with pytest.raises(InputError, match=f"no {plane} slice"):
        take_slice(patient(), count, plane)


def test_an_unknown_plane_is_refused() -> None:
    with pytest.raises(InputError, match="plane"):
        take_slice(patient(), 0, "oblique")  # type: ignore[arg-type]


def test_richest_slice_is_the_one_with_most_of_the_rarest_label() -> None:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[:, 2:8, 2:8] = 1
    labels[3, 3, 3], labels[5, 3:6, 3] = 2, 2
    assert richest_slice(patient().replace(labels)) == 5
    assert richest_slice(patient().replace(np.zeros_like(labels))) == 4


def test_a_viewer_opens_in_the_largest_piece_of_the_rarest_label_near_its_centroid() -> None:
    labels = np.zeros(patient().array.shape, np.uint8)
    labels[0, :, :3] = 1
    labels[0, 1, 5, 5] = 2
    labels[0, 4, 4:7, 3] = labels[0, 4, 4:7, 7] = labels[0, 4, 6, 3:8] = 2  # a U, whose centroid lies outside of it
    for axes, flips in (((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True))):
        found = opening_point(stored(patient().replace(labels), axes, flips))
        assert found == (4, 6, 5)
        assert [slice_through(found, plane) for plane in ("axial", "coronal", "sagittal")] == [4, 6, 5]
    nothing = patient().replace(np.zeros_like(labels))
    assert opening_point(nothing) == (4, 5, 6)


def test_same_level_finds_the_slice_at_the_same_height_of_another_grid() -> None:
    fine = Volume(np.zeros((40, 4, 4)), Grid.from_parts((40, 4, 4), (1, 1, 1.25), (0, 0, -20.0)))
    height = fine.grid.to_world((0, 0, 21))[2]
    found = same_level(fine, 21, patient())
    heights = patient().grid.origin[2] + 5.0 * np.arange(8)
    assert found == int(np.abs(heights - height).argmin())
    assert same_level(Volume(np.zeros((1, 1, 1)), Grid.from_parts((1, 1, 1), origin=(0, 0, 999))), 0, patient()) == 7


def test_ct_is_shown_in_the_lung_window_where_there_is_lung() -> None:
    air = patient().replace(np.where(patient().array == 0, -850, 40))
    assert window(air, "CT") == window(air, " ct ") == (-1150.0, 150.0)
    assert window(patient(), "CT") == (-160.0, 240.0)


def test_other_modalities_are_shown_between_their_percentiles() -> None:
    values = np.linspace(0, 1000, 960).reshape(8, 10, 12)
    assert window(patient().replace(values), "T1") == pytest.approx((10.0, 990.0))
    low, high = window(patient().replace(np.full((8, 10, 12), 3.0)), "T1")
    assert low < 3 < high


def test_a_labels_colour_does_not_depend_on_what_else_is_shown() -> None:
    assert colours(NAMES) == colours({"disease": 2, "lung": 1})


def test_no_two_labels_have_one_colour() -> None:
    many = colours({str(i): i for i in range(1, 301)})
    assert len(set(many.values())) == 300
    assert list(many.values())[:7] == list(PALETTE)


def scene() -> tuple[Volume, Volume]:
    """A grey block and a label in its lower left quarter."""
    grid = Grid.from_parts((6, 40, 40), (2.0, 2.0, 4.0))
    labels = np.zeros(grid.shape, np.uint8)
    labels[:, 20:, :20] = 1
    labels[2:4, 25:30, 5:10] = 2
    return Volume(np.zeros(grid.shape, np.int16), grid), Volume(labels, grid)


def test_overlay_paints_each_label_in_its_colour(tmp_path: Path) -> None:
    image, labels = scene()
    path = overlay(tmp_path / "overlay.png", image, labels, names=NAMES, slices=[3])
    pixels = imread(path)[..., :3].reshape(-1, 3)
    grey = (0 - -160) / 400  # 0 HU in the soft tissue window
    for value in (1, 2):
        expected = 0.45 * np.array(to_rgb(colours(NAMES)[value])) + 0.55 * grey
        assert (np.abs(pixels - expected).max(1) < 0.02).sum() > 100


def test_overlay_chooses_slices_that_hold_labels(tmp_path: Path) -> None:
    image, labels = scene()
    path = overlay(tmp_path / "overlay.png", image, labels, labels, names=NAMES, title="case")
    assert imread(path).shape[1] > imread(path).shape[0]


def test_of_many_labels_the_legend_names_those_that_are_drawn(tmp_path: Path) -> None:
    """A hundred names would lie over the pictures."""
    image, labels = scene()
    many = NAMES | {f"vertebra that is not in the picture {i}": 10 + i for i in range(100)}
    few, all_of_them = (imread(overlay(tmp_path / f"{len(n)}.png", image, labels, names=n)) for n in (NAMES, many))
    np.testing.assert_array_equal(few, all_of_them)


def test_a_figure_grows_with_its_legend(tmp_path: Path) -> None:
    image, labels = scene()
    array = labels.array.copy()
    array[0, 3, :30, 20] = 10 + np.arange(30)
    names = NAMES | {f"label {i}": 10 + i for i in range(30)}
    few = imread(overlay(tmp_path / "few.png", image, labels, names=names, slices=[3]))
    many = imread(overlay(tmp_path / "many.png", image, labels.replace(array), names=names, slices=[3]))
    assert 100 < len(many) - len(few) < 250


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Neither a formula between two dollars, nor hidden for an underscore, nor warned of for lack of a letter."""
    names = ["a$_$", r"$\foo$", "_lung", "<b>", "肝臓 🫀"]
    drawn = svg(curve_figure({name: [Point(1, 0.5), Point(2, 0.6)] for name in names}, x="$x_$", y="y", title="$^$"))
    shown = [escape(name) for name in (*names, "$x_$", "$^$")]
    assert [name in drawn for name in shown] == [True] * len(shown)
    drawn = svg(scatter_figure({name: [(1.0, 0.5)] for name in names}, x="x", y="y"))
    assert all(escape(name) in drawn for name in names)
    image, labels = scene()
    overlay(tmp_path / "a.png", image, labels, names={"$_$": 1, "_b 肝臓": 2}, title=r"$\foo$")


def test_many_curves_look_different() -> None:
    looks = [look(place) for place in range(200)]
    assert len(set(looks)) == 200
    assert {colour for colour, _ in looks[:7]} == set(PALETTE)


def test_overlay_refuses_labels_of_another_grid(tmp_path: Path) -> None:
    image, labels = scene()
    other = Volume(labels.array, image.grid.padded((1, 0, 0), (-1, 0, 0)))
    with pytest.raises(InputError, match="one grid"):
        overlay(tmp_path / "overlay.png", image, other, names=NAMES)
    assert not list(tmp_path.iterdir())


def test_stages_are_drawn_with_and_without_references_and_agreement(tmp_path: Path) -> None:
    image, labels = scene()
    agreement = image.replace(np.where(labels.array == 2, 1 / 3, 1.0).astype(np.float32))
    shared = {"source": image, "atlas": image, "mapped": image, "prediction": labels, "names": NAMES}
    full = stages_figure(
        tmp_path / "full.png", **shared, reference=labels, mapped_reference=labels, agreement=agreement, title="case"
    )
    bare = stages_figure(tmp_path / "bare.png", **shared)
    assert imread(full).std() > imread(bare).std() > 0


def test_comparison_marks_every_method_on_every_case(tmp_path: Path) -> None:
    cases = ("a", "b", "c")
    scores = {
        method: {label: {case: 0.5 + 0.1 * i + shift for i, case in enumerate(cases)} for label in ("lung", "disease")}
        for method, shift in (("AtlasNet", 0.1), ("plain", 0.0))
    }
    pixels = imread(comparison_figure(tmp_path / "dice.png", scores))[..., :3].reshape(-1, 3)
    for colour in ("#0072B2", "#D55E00"):
        assert (np.abs(pixels - np.array(to_rgb(colour))).max(1) < 0.02).sum() > 6 * 40


def test_comparison_refuses_methods_with_other_cases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same labels and cases"):
        comparison_figure(tmp_path / "dice.png", {"x": {"lung": {"a": 1.0}}, "y": {"lung": {"b": 1.0}}})
    with pytest.raises(InputError, match="no scores"):
        comparison_figure(tmp_path / "dice.png", {})


def test_the_preview_of_a_registration_marks_folds_and_shows_both_images(tmp_path: Path) -> None:
    grid = Grid.from_parts((12, 18, 18), SPACING)
    images = [Volume(np.full((1, *grid.shape), value, np.float32), grid) for value in (0.0, 1.0)]
    images[0].array[..., 0], images[1].array[..., 0] = 1.0, 0.0  # so that each has a window
    black = []
    for name, folded in (("whole", 0), ("half", 9)):
        jacobian = np.ones((1, *grid.shape), np.float32)
        jacobian[:, :, :folded] = -1.0
        change = Volume(jacobian, grid)
        path = registration_figure(tmp_path / f"{name}.png", target=images[0], warped=images[1], jacobian=change)
        pixels = imread(path)[..., :3]
        width = pixels.shape[1]
        black.append((pixels[:, int(0.7 * width) : int(0.9 * width)] == 0).all(-1).mean())
    assert black[1] > black[0] + 0.03
    board = pixels[:, int(0.5 * width) : int(0.65 * width)]
    assert 0.1 < (board < 0.1).all(-1).mean() < 0.9


def test_an_image_of_one_slice_is_previewed_in_its_own_plane(tmp_path: Path) -> None:
    grid = Grid.from_parts((20, 1, 16), (1.0, 5.0, 1.0))
    image = Volume(np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32), grid)
    ones = Volume(np.ones((1, *grid.shape), np.float32), grid)
    path = registration_figure(tmp_path / "preview.png", target=image, warped=image, jacobian=ones)
    height, width = imread(path).shape[:2]
    assert width > 2 * height

"""The layers of a picture: the grey image, filled labels, outlines, a map with its scale, the legend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import NDArray

from atlasnet.cohort.segments import PALETTE, palette_colour
from atlasnet.execution import atomic_path
from atlasnet.report.display import Edges, Slice
from atlasnet.report.pixels import SHARE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

FILL = 0.45  # opacity of filled labels: the image still shows through
PIXELS_PER_INCH = 110
TITLE, TEXT = 13, 11  # points
LETTER_GAP = 4  # points between a picture and the letters at its edges
LEGEND_COLUMNS, LEGEND_ROW = 5, 0.24  # entries beside each other; inches of a row of them
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
AROUND = 0.5  # inches that the letters beside a picture, or above and below it, need, with some room between pictures


def look(place: int) -> tuple[str, str]:
    """Colour and mark of the curve at this place of a list."""
    turn, index = divmod(place, len(PALETTE))
    # The two darkest first, as lines need them. After a round the marks are shifted, so that prints in grey differ too.
    colour = palette_colour(turn * len(PALETTE) + (5 + index) % len(PALETTE))
    return colour, MARKERS[(place + turn) % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches, without matplotlib's global state."""
    figure = Figure(figsize=(width, height), layout="compressed", dpi=PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def picture_figure(width: float, height: float) -> Figure:
    """A figure for pictures side by side, with room between the L of one and the R of the next."""
    figure = new_figure(width, height)
    figure.set_layout_engine("compressed", w_pad=0.1)
    return figure


@contextmanager
def taken_literally(figure: Figure) -> Iterator[None]:
    """Names are shown as they are: what stands between two dollars in one is no formula.

    A letter that the font lacks is a box in a PNG; a browser that shows an SVG has other fonts. Nobody is warned of it.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    with atomic_path(path) as temporary, taken_literally(figure):
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def draw_image(axes: Axes, image: Slice, window: tuple[float, float], title: str = "") -> None:
    """The grey image, in true proportions."""
    axes.imshow(image.pixels, cmap="gray", vmin=window[0], vmax=window[1], aspect=image.aspect, interpolation="nearest")
    axes.set_axis_off()
    draw_frame(axes, image.edges, title)


def draw_frame(axes: Axes, edges: Edges, title: str = "") -> None:
    """Around a picture its title and, beyond each edge, what of the patient lies there: letters within hide anatomy."""
    axes.set_title(title, fontsize=TITLE, pad=TEXT + 2 * LETTER_GAP)
    for letters, x, y, horizontal, vertical in (
        (edges.left, 0.0, 0.5, "right", "center"),
        (edges.right, 1.0, 0.5, "left", "center"),
        (edges.top, 0.5, 1.0, "center", "baseline"),
        (edges.bottom, 0.5, 0.0, "center", "top"),
    ):
        axes.annotate(
            letters,
            (x, y),
            xycoords="axes fraction",
            xytext=(2 * LETTER_GAP * (x - 0.5), 2 * LETTER_GAP * (y - 0.5)),
            textcoords="offset points",
            horizontalalignment=horizontal,
            verticalalignment=vertical,
            fontsize=TEXT,
        )


def draw_labels(axes: Axes, labels: Slice, colours: Mapping[int, str]) -> None:
    """Labels filled in their colours, half transparent."""
    rgba = np.zeros((*labels.pixels.shape, 4))
    for value, colour in colours.items():
        rgba[labels.pixels == value] = to_rgba(colour, FILL)
    axes.imshow(rgba, aspect=labels.aspect, interpolation="nearest")


def draw_outlines(axes: Axes, labels: Slice, colours: Mapping[int, str]) -> None:
    """The outline of each label, on a dark line so that it is seen on any ground."""
    for value, colour in colours.items():
        # A border of nothing closes outlines at the picture's edge.
        mask = np.pad((labels.pixels == value).astype(float), 1)
        if not mask.any():
            continue
        rows, columns = (np.arange(-1, n - 1) for n in mask.shape)
        axes.contour(columns, rows, mask, levels=[0.5], colors="black", linewidths=2.4, alpha=0.6)
        axes.contour(columns, rows, mask, levels=[0.5], colors=[colour], linewidths=1.3)


def draw_map(axes: Axes, values: Slice, shown: NDArray[np.bool_]) -> ScalarMappable:
    """A map of shares from 0 to 1 over what is there, where ``shown``."""
    return axes.imshow(
        np.ma.masked_array(values.pixels, ~shown),
        cmap=SHARE_COLOURS,
        vmin=0,
        vmax=1,
        aspect=values.aspect,
        interpolation="nearest",
    )


def legend_entries(
    names: Mapping[str, int], colours: Mapping[int, str], *, filled: str | None, outlined: str | None
) -> list[Any]:
    """Legend handles: each label's colour, then what fills and what lines mean."""
    entries: list[Any] = [
        Patch(facecolor=colours[value], label=name) for name, value in names.items() if value in colours
    ]
    if filled is not None:
        entries.append(Patch(facecolor=to_rgba("grey", FILL), label=f"filled: {filled}"))
    if outlined is not None:
        entries.append(Line2D([], [], color="black", linewidth=1.6, label=f"outlined: {outlined}"))
    return entries


def draw_legend(figure: Figure, entries: Sequence[Any]) -> None:
    """One legend under all panels; from the second row on the figure grows by what it needs."""
    columns = min(LEGEND_COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * (rows - 1))
    figure.legend(handles=list(entries), loc="outside lower center", ncols=columns, fontsize=TEXT, frameon=False)

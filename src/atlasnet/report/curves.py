"""Curves with their intervals, points against points, and either as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from atlasnet.execution import atomic_path
from atlasnet.report.panel import LEGEND_ROW, TEXT, TITLE, look, new_figure, taken_literally

MOST_TICKS = 12  # as many points have a tick each
LONGEST_OF_TWO = 44  # letters of a name, with which the legend has room for two columns


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        x: where.
        y: what was measured.
        interval: its interval, if it has one.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None


def curve_figure(
    curves: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    title: str = "",
    second: Sequence[Point] = (),
    second_y: str = "",
    order: Sequence[str] = (),
    diagonal: str = "",
    marked: bool = True,
) -> Figure:
    """Curves over one axis, their intervals as bars.

    Args:
        curves: name to points.
        x: what the axis shows.
        y: likewise.
        title: over the figure.
        second: a dashed grey curve with an axis of its own on the right.
        second_y: what that shows.
        order: names whose place decides colour and mark, so that these are the same in several figures.
        diagonal: name of a dashed grey line where y is x, along the curves.
        marked: whether every point has a mark.
    """
    columns = 2 if max(map(len, curves), default=0) <= LONGEST_OF_TWO else 1
    rows = -(-len(curves) // columns)
    figure = new_figure(8.2, 4.8 + LEGEND_ROW * max(0, rows - 3))
    axes, handles = figure.subplots(), list[Artist]()
    for name, points in curves.items():
        colour, marker = look([*(order or curves)].index(name))
        places, values = [p.x for p in points], [p.y for p in points]
        handles += axes.plot(places, values, color=colour, marker=marker if marked else "", zorder=3)
        for point in points:
            if point.interval is not None:
                axes.vlines(point.x, *point.interval, color=colour, alpha=0.45, linewidth=2, zorder=2)
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    places = sorted({point.x for points in curves.values() for point in points})
    if len(places) <= MOST_TICKS and not diagonal:
        axes.set_xticks(places, [f"{place:.3g}" for place in places])
    if diagonal:
        ends = [places[0], places[-1]]
        handles += axes.plot(ends, ends, color="0.45", linestyle="dashed")
    if second:
        other = axes.twinx()
        handles += other.plot([p.x for p in second], [p.y for p in second], color="0.45", linestyle="dashed")
        other.set_ylim(bottom=0)
        other.set_ylabel(second_y, fontsize=TEXT)
    figure.suptitle(title, fontsize=TITLE)
    names = [*curves, *([diagonal] if diagonal else []), *([second_y] if second else [])]
    # Handles and names are given: by itself matplotlib leaves out names that begin with an underscore.
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=TEXT, frameon=False)
    return figure


def scatter_figure(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    title: str = "",
) -> Figure:
    """Points (x, y), a colour and a mark for each group."""
    figure = new_figure(8.2, 4.8)
    axes, handles = figure.subplots(), list[Artist]()
    for number, points in enumerate(groups.values()):
        colour, marker = look(number)
        places, values = [p[0] for p in points], [p[1] for p in points]
        handles.append(axes.scatter(places, values, s=34, color=colour, marker=marker, alpha=0.8))
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=TITLE)
    figure.legend(handles, [*groups], loc="outside lower center", ncols=2, fontsize=TEXT, frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element, the same for the same figure."""
    text = io.StringIO()
    with taken_literally(figure), mpl.rc_context({"svg.hashsalt": "atlasnet", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def save_svg(figure: Figure, path: str | Path) -> Path:
    """Write a figure as SVG, whole or not at all."""
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text('<?xml version="1.0" encoding="utf-8"?>\n' + svg(figure), encoding="utf-8", newline="\n")
    return path

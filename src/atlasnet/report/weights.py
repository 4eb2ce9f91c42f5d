"""Learnt metric weights as a figure."""

from __future__ import annotations

from pathlib import Path

from atlasnet.cohort.segments import PALETTE
from atlasnet.registration import MetricWeights
from atlasnet.report.curves import save_svg
from atlasnet.report.panel import TEXT, new_figure


def write_weights_figure(path: str | Path, weights: MetricWeights) -> None:
    """Draw the weight of every metric in every class, and the class-free average, as SVG.

    Args:
        path: of the SVG file.
        weights: that are drawn.
    """
    metrics = list(weights.average)
    rows = [(one.name, one.weights) for one in weights.classes] + [("average", weights.average)]
    figure = new_figure(1.6 + 0.9 * len(metrics) * len(rows) / 3, 3.4)
    axes = figure.subplots()
    width = 0.8 / len(metrics)
    for number, metric in enumerate(metrics):
        places = [row + (number - (len(metrics) - 1) / 2) * width for row in range(len(rows))]
        axes.bar(
            places, [row[1][metric] for row in rows], width, label=metric, color=PALETTE[(5 + number) % len(PALETTE)]
        )
    axes.set_xticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylabel("weight", fontsize=TEXT)
    axes.set_title(f"smoothness {weights.alpha:.3g}", fontsize=TEXT)
    axes.legend(fontsize=TEXT, frameon=False)
    save_svg(figure, path)

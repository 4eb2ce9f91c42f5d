"""Methods side by side: the Dice of every subject, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist

from atlasnet.errors import InputError
from atlasnet.report.panel import TEXT, TITLE, look, new_figure, save


def comparison_figure(
    path: str | Path,
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    title: str = "",
) -> Path:
    """A strip for each label: a row for each subject, a mark for each method, a dashed line at each method's mean.

    Args:
        path: of the PNG.
        scores: method to label to case to Dice; every method has the same labels and cases.
        title: over all panels.

    Raises:
        InputError: there is nothing to show, or the methods' labels or cases differ.
    """
    methods = list(scores)
    if not methods or not scores[methods[0]]:
        raise InputError("there are no scores to compare")
    labels = list(scores[methods[0]])
    cases = list(scores[methods[0]][labels[0]])
    for method in methods:
        for label in labels:
            if sorted(scores[method].get(label, {})) != sorted(cases) or set(scores[method]) != set(labels):
                raise InputError(
                    "the methods were not scored on the same labels and cases",
                    expected=f"{', '.join(labels)}; {', '.join(cases)}",
                    found=f"{method}: {label}: {', '.join(scores[method].get(label, {})) or 'nothing'}",
                )
    figure = new_figure(1.5 + 4.2 * len(labels), 1.9 + 0.34 * len(cases))
    panels = np.atleast_1d(figure.subplots(1, len(labels), sharey=True))
    rows, handles = np.arange(len(cases)), dict[str, Artist]()
    for axes, label in zip(panels, labels, strict=True):
        values = np.array([[scores[method][label][case] for case in cases] for method in methods], float)
        axes.hlines(rows, values.min(0), values.max(0), color="0.75", linewidth=2, zorder=1)
        for i, (method, row) in enumerate(zip(methods, values, strict=True)):
            colour, marker = look(i)
            handles[method] = axes.scatter(row, rows, s=52, color=colour, marker=marker, zorder=3)
            axes.axvline(float(row.mean()), color=colour, linestyle="dashed", linewidth=1.4, zorder=2)
        means = ", ".join(f"{method} {row.mean():.3f}" for method, row in zip(methods, values, strict=True))
        axes.set_title(f"{label}\nmean: {means}", fontsize=TEXT)
        axes.set_xlabel("Dice", fontsize=TEXT)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.set_yticks(rows, cases, fontsize=TEXT - 1)
        axes.margins(x=0.08)
    panels[0].invert_yaxis()
    figure.legend(
        [*handles.values()], methods, loc="outside lower center", ncols=len(methods), fontsize=TEXT, frameon=False
    )
    figure.suptitle(title, fontsize=TITLE)
    return save(figure, path)

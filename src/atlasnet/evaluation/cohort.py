"""Scores of predictions that were made of a cohort's subjects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atlasnet.cohort import Cohort
from atlasnet.cohort.masks import are_masked
from atlasnet.evaluation.scores import LabelScores, evaluate_subject
from atlasnet.evaluation.table import Table, unannotated
from atlasnet.execution import Execution
from atlasnet.volume import read_labels


def evaluate_cohort(cohort: Cohort, predictions: Mapping[str, Path], *, execution: Execution | None = None) -> Table:
    """Compare label maps with the references of a cohort, within its organ masks where it has them.

    Args:
        cohort: whose structures are scored.
        predictions: a label map by the name of its subject; a subject without one, or whose file is not there, or
            without a reference, is named in the table as missing.
        execution: its reporter and its cancellation are used.

    Raises:
        VolumeError: a file cannot be read, or prediction and reference do not lie on one grid.
        CohortError: a reference holds labels that nobody is said to have annotated in it.
    """
    execution = Execution.of(execution)
    rows: list[LabelScores] = []
    missing = []
    for subject in execution.reporter.track(cohort, "evaluating", len(cohort)):
        execution.pause()
        path = predictions.get(subject.name)
        if path is None or not path.exists() or subject.labels is None:
            missing.append(subject.name)
            continue
        scores = evaluate_subject(
            read_labels(path),
            read_labels(subject.labels),
            cohort.structures,
            case=subject.name,
            ignore_label=cohort.ignore_label,
            hidden=subject.hidden,
            mask=subject.read_mask(),
        )
        rows += scores.rows
    return Table(
        labels=cohort.structures,
        rows=tuple(rows),
        ignore_label=cohort.ignore_label,
        organ_mask=are_masked(cohort),
        missing=tuple(missing),
        unannotated=unannotated(cohort.structures, {s.name: s.hidden for s in cohort if s.name not in missing}),
    )

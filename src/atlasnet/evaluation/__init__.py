"""Evaluation: overlap, contour distances and volumes per subject, label and slice; tables over subjects."""

from atlasnet.evaluation.contour import ContourDistances, contour
from atlasnet.evaluation.folder import evaluate_folder
from atlasnet.evaluation.scores import LabelScores, SliceScores, SubjectScores, evaluate_subject
from atlasnet.evaluation.table import Table, table_path

__all__ = [
    "ContourDistances",
    "LabelScores",
    "SliceScores",
    "SubjectScores",
    "Table",
    "contour",
    "evaluate_folder",
    "evaluate_subject",
    "table_path",
]

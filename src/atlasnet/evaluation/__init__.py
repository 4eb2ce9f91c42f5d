"""Evaluation: overlap, contour distances and volumes per subject, label and slice; patches; tables over subjects."""

from atlasnet.evaluation.cohort import evaluate_cohort
from atlasnet.evaluation.contour import ContourDistances, contour
from atlasnet.evaluation.folder import evaluate_folder
from atlasnet.evaluation.patches import PatchCounts, PatchProtocol, classify_patches, region_mask
from atlasnet.evaluation.scores import LabelScores, SliceScores, SubjectScores, evaluate_subject
from atlasnet.evaluation.table import Table, beside_table, table_path

__all__ = [
    "ContourDistances",
    "LabelScores",
    "PatchCounts",
    "PatchProtocol",
    "SliceScores",
    "SubjectScores",
    "Table",
    "beside_table",
    "classify_patches",
    "contour",
    "evaluate_cohort",
    "evaluate_folder",
    "evaluate_subject",
    "region_mask",
    "table_path",
]

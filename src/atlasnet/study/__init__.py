"""Studies on a user's own data: how good is the method here, and how sure can one be of that."""

from atlasnet.study.cross_validation import (
    CROSS_VALIDATION,
    CrossValidation,
    changed_plan,
    cross_validate,
    keep_ensemble,
    keep_learnt,
    validate_fold,
    validate_model,
)
from atlasnet.study.folds import FoldsFile, fold_name, plan_folds, read_folds, split
from atlasnet.study.forecast import StudyForecast, fold_pairs, forecast_study
from atlasnet.study.one_fold import TrainedFold, fold_of, train_fold
from atlasnet.study.page import PAGE, write_study
from atlasnet.study.records import Study, StudyOptions
from atlasnet.study.study import run_study
from atlasnet.study.subjects import read_test_subjects
from atlasnet.study.summary import summarise
from atlasnet.study.tables import main_table

__all__ = [
    "CROSS_VALIDATION",
    "PAGE",
    "CrossValidation",
    "FoldsFile",
    "Study",
    "StudyForecast",
    "StudyOptions",
    "TrainedFold",
    "changed_plan",
    "cross_validate",
    "fold_name",
    "fold_of",
    "fold_pairs",
    "forecast_study",
    "keep_ensemble",
    "keep_learnt",
    "main_table",
    "plan_folds",
    "read_folds",
    "read_test_subjects",
    "run_study",
    "split",
    "summarise",
    "train_fold",
    "validate_fold",
    "validate_model",
    "write_study",
]

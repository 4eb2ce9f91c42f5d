"""Studies on a user's own data: how good is the method here, and how sure can one be of that."""

from atlasnet.study.cross_validation import CrossValidation, cross_validate, plan_folds, split

__all__ = ["CrossValidation", "cross_validate", "plan_folds", "split"]

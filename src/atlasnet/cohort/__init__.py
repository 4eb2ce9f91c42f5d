"""Subjects with images and references: the layouts on disk, checks, fingerprint, plan, the embedded phantom cohort."""

from atlasnet.cohort.check import CheckReport, check_cohort
from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.fingerprint import Fingerprint, take_fingerprint
from atlasnet.cohort.masks import find_masks, masked, with_masks
from atlasnet.cohort.normalisation import Normalisation
from atlasnet.cohort.plan import Plan
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.subject import Subject

__all__ = [
    "CheckReport",
    "Cohort",
    "Fingerprint",
    "Normalisation",
    "Plan",
    "Problem",
    "Subject",
    "check_cohort",
    "find_masks",
    "masked",
    "take_fingerprint",
    "with_masks",
]

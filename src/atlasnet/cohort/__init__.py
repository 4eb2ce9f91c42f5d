"""Subjects with images and references: the layouts on disk, checks, fingerprint, plan, the embedded phantom cohort."""

from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.subject import Subject

__all__ = ["Cohort", "Problem", "Subject"]

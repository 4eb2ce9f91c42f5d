"""Cohorts made of what annotation tools write: a mask for each structure, Slicer's and DICOM's segmentations."""

from atlasnet.cohort.conversion.convert import Conversion, convert_cohort

__all__ = ["Conversion", "convert_cohort"]

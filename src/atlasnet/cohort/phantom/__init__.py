"""Phantom cohort: synthetic chest CT with interstitial lung disease and its exact mask, at any size."""

from atlasnet.cohort.phantom.canvas import TISSUES
from atlasnet.cohort.phantom.render import LABELS, Rendering
from atlasnet.cohort.phantom.subject import phantom_grid, phantom_rendering, phantom_subject
from atlasnet.cohort.phantom.write import write_phantom_cohort

__all__ = [
    "LABELS",
    "TISSUES",
    "Rendering",
    "phantom_grid",
    "phantom_rendering",
    "phantom_subject",
    "write_phantom_cohort",
]

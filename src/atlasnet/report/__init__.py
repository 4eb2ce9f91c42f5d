"""What people look at: figures of segmentations and of scores, as PNG."""

from atlasnet.report.comparison import comparison_figure
from atlasnet.report.display import Slice, colours, richest_slice, same_level, slice_count, take_slice, window
from atlasnet.report.overlay import overlay
from atlasnet.report.registration import registration_figure
from atlasnet.report.stages import stages_figure

__all__ = [
    "Slice",
    "colours",
    "comparison_figure",
    "overlay",
    "registration_figure",
    "richest_slice",
    "same_level",
    "slice_count",
    "stages_figure",
    "take_slice",
    "window",
]

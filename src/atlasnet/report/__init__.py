"""What people look at: figures of segmentations and of scores, and pages that hold them."""

from atlasnet.report.comparison import comparison_figure
from atlasnet.report.curves import Point, curve_figure, save_svg, scatter_figure, svg
from atlasnet.report.display import Slice, colours, richest_slice, same_level, slice_count, take_slice, window
from atlasnet.report.evaluation_page import write_evaluation_report
from atlasnet.report.overlay import overlay
from atlasnet.report.page import Page
from atlasnet.report.prediction_page import PredictionReport, write_beside_cases
from atlasnet.report.registration import registration_figure
from atlasnet.report.registration_page import write_registration_report
from atlasnet.report.stages import stages_figure
from atlasnet.report.training_page import write_training_report
from atlasnet.report.weights import write_weights_figure

__all__ = [
    "Page",
    "Point",
    "PredictionReport",
    "Slice",
    "colours",
    "comparison_figure",
    "curve_figure",
    "overlay",
    "registration_figure",
    "richest_slice",
    "same_level",
    "save_svg",
    "scatter_figure",
    "slice_count",
    "stages_figure",
    "svg",
    "take_slice",
    "window",
    "write_beside_cases",
    "write_evaluation_report",
    "write_registration_report",
    "write_training_report",
    "write_weights_figure",
]

"""From a scan to its segmentation: transformer, network, de-transformer, fusion."""

from atlasnet.prediction.answers import Answers
from atlasnet.prediction.batch import Batch, predict_cases
from atlasnet.prediction.ensemble import Ensemble, import_models, write_ensemble
from atlasnet.prediction.inputs import find_case, find_cases, unread, warn_of_unread
from atlasnet.prediction.label_tables import write_label_tables
from atlasnet.prediction.output import provenance, write_prediction
from atlasnet.prediction.prediction import Prediction, PredictOptions
from atlasnet.prediction.predictor import Predictor

__all__ = [
    "Answers",
    "Batch",
    "Ensemble",
    "PredictOptions",
    "Prediction",
    "Predictor",
    "find_case",
    "find_cases",
    "import_models",
    "predict_cases",
    "provenance",
    "unread",
    "warn_of_unread",
    "write_ensemble",
    "write_label_tables",
    "write_prediction",
]

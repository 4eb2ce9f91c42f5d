"""From a scan to its segmentation: transformer, network, de-transformer, fusion."""

from atlasnet.prediction.answers import Answers
from atlasnet.prediction.inputs import find_cases
from atlasnet.prediction.output import write_prediction
from atlasnet.prediction.predictor import Prediction, PredictOptions, Predictor

__all__ = ["Answers", "PredictOptions", "Prediction", "Predictor", "find_cases", "write_prediction"]

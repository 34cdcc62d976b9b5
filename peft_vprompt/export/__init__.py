"""What becomes of a trained adapter: predictions, plain classifiers, ONNX."""

from .classifier import Classifier, Prediction
from .folder import Exported, export
from .predictions import predict
from .tables import PredictOptions


__all__ = ["Classifier", "Exported", "PredictOptions", "Prediction", "export", "predict"]

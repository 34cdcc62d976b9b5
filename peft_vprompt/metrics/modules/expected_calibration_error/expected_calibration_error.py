"""Expected calibration error for Hugging Face `evaluate`: `evaluate.load(str(metric_path("expected_calibration_error")))`."""

import datasets
import evaluate

from peft_vprompt.metrics.reliability import expected_calibration_error


class ExpectedCalibrationError(evaluate.Metric):
    """Expected calibration error, see `reliability.calibration`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean distance of confidence and accuracy over equally wide bins of the top predictions (Guo et al. 2017).",
            citation="",
            inputs_description="predictions: probabilities of the classes, a list for each image. references: true labels. bins: number of bins.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, bins=15):
        return {"expected_calibration_error": expected_calibration_error(predictions, references, bins)}

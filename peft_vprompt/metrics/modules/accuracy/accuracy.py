"""Accuracy for Hugging Face `evaluate`: `evaluate.load(str(metric_path("accuracy")))`."""

import datasets
import evaluate

from peft_vprompt.metrics.scores import accuracy


class Accuracy(evaluate.Metric):
    """Accuracy, see `scores.accuracy`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of images that are classified correctly, over all images alike.",
            citation="",
            inputs_description="predictions: predicted labels. references: true labels.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references):
        return {"accuracy": accuracy(predictions, references)}

"""Mean per-class accuracy for Hugging Face `evaluate`: `evaluate.load(str(metric_path("mean_per_class_accuracy")))`."""

import datasets
import evaluate

from peft_vprompt.metrics.scores import mean_per_class_accuracy


class MeanPerClassAccuracy(evaluate.Metric):
    """Mean per-class accuracy, see `scores.mean_per_class_accuracy`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean over classes of the share of a class's images that are classified correctly.",
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
        return {"mean_per_class_accuracy": mean_per_class_accuracy(predictions, references)}

"""Mean average precision for Hugging Face `evaluate`: `evaluate.load(str(metric_path("mean_average_precision")))`."""

import datasets
import evaluate

from peft_vprompt.metrics.scores import mean_average_precision


class MeanAveragePrecision(evaluate.Metric):
    """Mean average precision, see `scores.mean_average_precision`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean over classes of the average precision, for images of several classes or none.",
            citation="",
            inputs_description="predictions: scores of the classes, a list for each image. references: 1 or 0 for each, -100 where nobody knows.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references):
        return {"mean_average_precision": mean_average_precision(predictions, references)}

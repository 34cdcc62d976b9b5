"""Base, novel and their harmonic mean for Hugging Face `evaluate`: `evaluate.load(str(metric_path("harmonic_mean")))`."""

import datasets
import evaluate
import numpy as np

from peft_vprompt.metrics.scores import accuracy, harmonic_mean


class HarmonicMean(evaluate.Metric):
    """Base, novel and their harmonic mean, see `scores.harmonic_mean`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy on images of base and of novel classes, each told apart among their own, and the harmonic mean.",
            citation="",
            inputs_description="predictions: predicted labels. references: true labels. novel: whether an image is of a novel class.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "novel": datasets.Value("bool"),
                }
            ),
        )

    def _compute(self, predictions, references, novel):
        predicted, true, is_novel = map(np.asarray, (predictions, references, novel))
        base = accuracy(predicted[~is_novel], true[~is_novel])
        other = accuracy(predicted[is_novel], true[is_novel])
        return {"base": base, "novel": other, "harmonic_mean": harmonic_mean(base, other)}

"""What a model card says of a training, which the adapter itself does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import EvalResult


@dataclass(frozen=True)
class Score:
    """What was measured on one set of classes, in percent.

    Attributes:
        name: of the set: "base", "novel", "hm" or "all".
        meaning: what that is, for readers.
        value: with the adapter.
        zero_shot: without it; None where the base model has no text tower.
        chance: of guessing; None where that is not known.
    """

    name: str
    meaning: str
    value: float
    zero_shot: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class CardDetails:
    """A training as its card tells it. Nothing here may name a path of the machine: the card is for others.

    Attributes:
        data: what the images are called; None where nobody said.
        data_set: their id on the Hub, None where they have none.
        split: the split that was tested on.
        metric: "accuracy", or "mean average precision" of images of several classes.
        scores: what was measured.
        training: how it was trained: what is said, by what it is about.
        versions: of packages, by name.
        language: of the class names, such as "en"; None where nobody said.
        license: of the adapter, such as "mit"; None where nobody said.
    """

    data: str | None = None
    data_set: str | None = None
    split: str | None = None
    metric: str = "accuracy"
    scores: tuple[Score, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    language: str | None = None
    license: str | None = None

    def results(self, task: str) -> list[EvalResult]:
        """Return the scores as the Hub has them, as shares, of a pipeline's task."""
        return [
            EvalResult(
                task_type=task,
                dataset_type=self.data_set or "custom",
                dataset_name=self.data or "images of the author's own",
                dataset_split=self.split,
                metric_type=self.metric.replace(" ", "_"),
                metric_name=f"{self.metric.capitalize()} ({score.name})",
                metric_value=round(score.value / 100, 6),
            )
            for score in self.scores
        ]

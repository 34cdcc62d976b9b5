"""An evaluation with test-time tuning: its settings, and views of the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from datasets import Dataset

from ..data import AugmentedRows, ViewTransform
from ..data.feature_folders import require_images
from ..training.evaluation import EvalSet
from ..training.test_time import TestTimeTuning
from .eval_sets import eval_sets


@dataclass(frozen=True)
class TestTimeSettings(TestTimeTuning):
    """How the context of each test image is tuned, and on which views.

    Attributes:
        views: number of views of each image, the plain one among them.
        augmix: mix crops with distorted copies, as the authors do on fine-grained data.
        seed: seed of the crops.

    Raises:
        ValueError: a value of another type or out of range.
    """

    views: int = field(default=64, metadata={"min": 1})
    augmix: bool = False
    seed: int = field(default=0, metadata={"min": 0})

    def __post_init__(self):
        super().__post_init__()
        self.kept(self.views)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> TestTimeSettings:
        """Return settings with some values changed.

        Raises:
            ValueError: a name that is no setting, or a value that is not allowed.
        """
        known = [each.name for each in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"Test-time tuning has no option {', '.join(unknown)}. It has: {', '.join(known)}.")
        return cls(**values)  # pyrefly: ignore[bad-argument-type]  # checked when it is made


def view_sets(
    test: Dataset, classes: Mapping[str, Sequence[str]], image_processor, settings: TestTimeSettings
) -> dict[str, EvalSet]:
    """Return the test images of every split as views, whose random numbers depend on the seed and the image alone.

    Raises:
        ValueError: as `eval_sets`, or a model that takes images of any shape.
    """
    require_images(test, ", of which test-time tuning looks at views")
    views = ViewTransform(image_processor, settings.views, settings.augmix)
    keep = lambda rows, transform: AugmentedRows(rows, views, settings.seed)  # noqa: E731
    return eval_sets(test, {name: list(names) for name, names in classes.items()}, image_processor, keep)

"""Configuration of few-shot adaptation in two stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.class_name_checks import check_class_names
from ..ln_tuning.config import NormTuningConfig


@dataclass
class TwoStageConfig(NormTuningConfig):
    """2SFS: the norms of both towers first; then, started from the tuned texts, one vector for each class.

    Paper: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025.
    `model.start_class_head()` begins the second stage, in which the norms stay as they are. Later on classes that were
    learned are told by their vectors, others by the tuned text encoder.

    Example:

    ```python
    model = get_peft_model(clip, TwoStageConfig(class_names=["cat", "dog"]))
    ...  # train
    model.start_class_head()
    ...  # train on, with a new optimizer
    ```
    """

    head_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Set by start_class_head: the classes with learned vectors; None in the first stage."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.TWO_STAGE
        if self.head_classes is not None:
            self.head_classes = check_class_names(self.head_classes)

    @property
    def learned_classes(self) -> list[str] | None:
        """The classes with learned vectors."""
        return self.head_classes

"""Configuration of prompt distillation."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ...errors import ClassNamesError
from ..base.config import PromptConfig


@dataclass
class PromptKDConfig(PromptConfig):
    """PromptKD: deep visual prompts and a projector that learn a teacher's predictions from unlabelled images.

    The class features are the teacher's; `training.take_teacher` gives them. Trained by labels that are the teacher's
    probabilities, see `training.DistillationRows`.

    Paper: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024. Defaults are those
    of the authors' scripts.

    Example:

    ```python
    PromptKDConfig(class_names=["cat", "dog"], teacher_dim=768)
    ```
    """

    num_virtual_tokens: int = field(default=4, metadata={"help": "Visual prompts per prompted layer.", "min": 1})
    prompt_depth: int = field(
        default=9, metadata={"help": "How many layers of the image tower, from the first, get prompts.", "min": 1}
    )
    teacher_dim: int | None = field(
        default=None,
        metadata={
            "help": "Size of the teacher's joint space. Default: the model's own, with its own class features, until there "
            "is a teacher.",
            "min": 1,
        },
    )
    distillation_weight: float = field(
        default=1000.0, metadata={"help": "Weight of the divergence from the teacher.", "min": 0}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "What logits are divided by in the divergence; the teacher's come divided.", "above": 0},
    )

    belongs_to_classes = True

    def __post_init__(self):
        self.peft_type = PeftType.PROMPTKD
        super().__post_init__()
        if self.class_names is None:
            raise ClassNamesError("Expected class_names: there is one feature of the teacher for each class.")
        held = [name for name in ("text_consistency_weight", "image_consistency_weight") if getattr(self, name)]
        if held and self.teacher_dim is not None:
            raise ValueError(
                f"Expected no {' or '.join(held)} with a teacher, whose features are in a space of its own. Received: "
                f"teacher_dim={self.teacher_dim}. Use logit_consistency_weight."
            )

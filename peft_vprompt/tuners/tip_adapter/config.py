"""Configuration of Tip-Adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from peft.utils import PeftType

from ...errors import ClassNamesError
from ...utils.fields import check_values
from ..base.config import PromptConfig


@dataclass
class TipAdapterConfig(PromptConfig):
    """Tip-Adapter: zero-shot logits, and a cache of labelled images that are looked up by their features.

    Paper: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022. Defaults are
    those of the authors' ImageNet configuration. `model.set_support` fills the cache.

    Example:

    ```python
    TipAdapterConfig(class_names=["cat", "dog"])                   # Tip-Adapter: nothing is trained
    TipAdapterConfig(class_names=["cat", "dog"], train_keys=True)  # Tip-Adapter-F
    ```
    """

    alpha: float = field(
        default=1.17, metadata={"help": "Weight of what the cache adds to the logits.", "min": 0, "max": 1e6}
    )
    beta: float = field(
        default=1.0,
        metadata={"help": "Sharpness: how fast a cached image counts less with its distance.", "min": 0, "max": 1e6},
    )
    train_keys: bool = field(
        default=False, metadata={"help": "Whether the cached features are trained (Tip-Adapter-F)."}
    )
    num_support_images: int | None = field(
        default=None,
        metadata={
            "help": "Images in the cache: set by `set_support`. Given in advance, keys are random until then.",
            "min": 1,
        },
    )
    logit_scale: float | None = field(
        default=100.0, metadata={"help": "What cosines are multiplied by; None: the model's own scale.", "above": 0}
    )
    search_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Bounds [beta, alpha] of the values that `vprompt train` tries on validation images, such as [7, 3]; "
            "None: beta and alpha stay as they are.",
            "above": 0,
            "items": 2,
        },
    )
    search_step: list[int] = field(
        default_factory=lambda: [200, 20],
        metadata={"help": "How many values [beta, alpha] it tries.", "min": 1, "items": 2},
    )

    belongs_to_classes = True

    def __post_init__(self):
        self.peft_type = PeftType.TIP_ADAPTER
        super().__post_init__()
        if self.class_names is None:
            raise ClassNamesError("Expected class_names: each cached image is of one of the classes.")
        check_grid(self.search_scale, self.search_step)


def check_grid(scale: Sequence[float] | None, step: Sequence[int]) -> None:
    """Refuse what is no grid of beta and alpha.

    Raises:
        ValueError: names the value.
    """
    check_values(TipAdapterConfig, {"search_scale": scale, "search_step": step})
    for name, value in {"search_scale": scale, "search_step": step}.items():
        if value is not None and len(value) != 2:
            raise ValueError(f"Expected {name} to be a pair, for beta and for alpha. Received: {name}={value!r}.")

"""Configuration of visual prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ...config import PromptConfig, require_choice, require_int


@dataclass
class VisualPromptConfig(PromptConfig):
    """VPT: learned tokens beside the image tokens, in the first layer (shallow) or in every layer (deep).

    Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022. On a `CLIPModel` this is the "VPT" baseline of
    multimodal-prompt-learning: the text side stays frozen and reads `template`.

    Example:

    ```python
    VisualPromptConfig(num_virtual_tokens=50, deep=True)
    ```
    """

    num_virtual_tokens: int = field(default=5, metadata={"help": "Prompts per prompted layer."})
    deep: bool = field(
        default=False, metadata={"help": "Prompts in every layer (VPT-deep) instead of the first only."}
    )
    num_deep_layers: int | None = field(
        default=None,
        metadata={"help": "With deep: how many layers, from the first, get prompts of their own. Default: all."},
    )
    deep_shared: bool = field(default=False, metadata={"help": "With deep: one set of prompts for all layers."})
    location: str = field(default="prepend", metadata={"help": "Where prompts go: 'prepend' (beside the tokens)."})
    pooling: str = field(default="original", metadata={"help": "What is read out: 'original' (as the model does)."})
    projection_dim: int | None = field(
        default=None,
        metadata={"help": "Size of the learned prompts, if smaller than the tower's; one linear map brings them up."},
    )
    prompt_dropout: float = field(default=0.0, metadata={"help": "Dropout on the prompts, drawn for each image."})

    def __post_init__(self):
        self.peft_type = PeftType.VISUAL_PROMPT
        super().__post_init__()
        require_int("num_virtual_tokens", self.num_virtual_tokens, 1)
        require_choice("location", self.location, ("prepend",))
        require_choice("pooling", self.pooling, ("original",))
        for name in ("num_deep_layers", "projection_dim"):
            if getattr(self, name) is not None:
                require_int(name, getattr(self, name), 1)
        for name in ("num_deep_layers", "deep_shared"):
            if getattr(self, name) and not self.deep:
                raise ValueError(f"Expected deep=True with {name}={getattr(self, name)!r}. Received: deep=False.")
        if not 0.0 <= self.prompt_dropout < 1.0:
            raise ValueError(f"Expected prompt_dropout in [0, 1). Received: prompt_dropout={self.prompt_dropout!r}.")

    def depth(self, num_layers: int) -> int:
        """How many layers of a tower with `num_layers` get prompts."""
        return (self.num_deep_layers or num_layers) if self.deep else 1

"""Configuration of visual prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import PromptConfig


#: Locations whose prompts are tokens or are added to tokens: they may be deep, projected and dropped out.
TOKEN_LOCATIONS = ("prepend", "add", "add-1")
#: Locations whose prompts are patches of learned pixels.
STRIP_LOCATIONS = ("prepend-pixel", "prepend-pixel-gaussian", "prepend-pixel-imgnettransform")
#: Locations whose prompts change the image itself.
IMAGE_LOCATIONS = ("pad", "below")
#: Locations whose prompts are pixels, in front of the first layer.
PIXEL_LOCATIONS = (*STRIP_LOCATIONS, *IMAGE_LOCATIONS)
#: Locations that leave no row to the prompts.
ROWLESS_LOCATIONS = ("add", "add-1", *IMAGE_LOCATIONS)


@dataclass
class VisualPromptConfig(PromptConfig):
    """VPT: learned tokens beside the image tokens, in the first layer (shallow) or in every layer (deep).

    The paper's ablations too: prompts that are added to tokens or made of pixels (`location`), other readouts
    (`pooling`). Beyond it: a range of layers (`first_layer`) and prompts that nobody reads (`read_only`).

    Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022. On a `CLIPModel` this is the "VPT" baseline of
    multimodal-prompt-learning: the text side stays frozen and reads `template`.

    Example:

    ```python
    VisualPromptConfig(num_virtual_tokens=50, deep=True)
    ```
    """

    num_virtual_tokens: int = field(
        default=5,
        metadata={
            "help": "Prompts per prompted layer; with location 'pad' the width of the border in pixels, with 'below' the "
            "number of channels. 'add' (one per token) and 'add-1' (one) set their own number.",
            "min": 1,
        },
    )
    deep: bool = field(
        default=False, metadata={"help": "Prompts in every layer (VPT-deep) instead of the first only."}
    )
    num_deep_layers: int | None = field(
        default=None,
        metadata={
            "help": "With deep: how many layers, from first_layer on, get prompts of their own. Default: all.",
            "min": 1,
        },
    )
    first_layer: int = field(
        default=0,
        metadata={
            "help": "The layer in front of which prompts come in; num_layers - 6 with deep: the last six layers.",
            "min": 0,
        },
    )
    deep_shared: bool = field(default=False, metadata={"help": "With deep: one set of prompts for all layers."})
    location: Literal[
        "prepend",
        "add",
        "add-1",
        "prepend-pixel",
        "prepend-pixel-gaussian",
        "prepend-pixel-imgnettransform",
        "pad",
        "below",
    ] = field(
        default="prepend",
        metadata={
            "help": "Where prompts go: 'prepend' (beside the tokens), 'add' (one added to each token), 'add-1' (one added "
            "to all), 'prepend-pixel' (patches of learned pixels; '-gaussian' and '-imgnettransform' start otherwise), "
            "'pad' (a learned border), 'below' (learned channels; the patch embedding is trained too)."
        },
    )
    pooling: Literal["original", "imgprompt_pool", "img_pool", "prompt_pool"] = field(
        default="original",
        metadata={
            "help": "What is read out: 'original' (as the model does; read-only prompts: the mean over them), or the mean "
            "over patches and prompts ('imgprompt_pool'), patches ('img_pool') or prompts ('prompt_pool')."
        },
    )
    read_only: bool = field(
        default=False,
        metadata={
            "help": "Prompts read the image tokens and nobody reads them; what they have read is the feature. With deep, "
            "each layer's prompts are added to what the prompts before it have read."
        },
    )
    projection_dim: int | None = field(
        default=None,
        metadata={
            "help": "Size of the learned prompts, if smaller than the tower's; one linear map brings them up.",
            "min": 1,
            "max": 65536,
        },
    )
    prompt_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the prompts, drawn for each image.", "min": 0, "below": 1}
    )

    def __post_init__(self):
        self.peft_type = PeftType.VISUAL_PROMPT
        super().__post_init__()
        for name in ("num_deep_layers", "deep_shared"):
            if getattr(self, name) and not self.deep:
                raise ValueError(f"Expected deep=True with {name}={getattr(self, name)!r}. Received: deep=False.")
        self._check_location()
        self._check_read_only()

    def _check_location(self) -> None:
        """Refuse what prompts at this location cannot do."""
        if self.location in PIXEL_LOCATIONS:
            for name in ("deep", "first_layer", "projection_dim", "prompt_dropout"):
                if getattr(self, name):
                    raise ValueError(
                        f"Prompts at location={self.location!r} are pixels of the input: they cannot be deep or come in "
                        f"at a later layer, and are neither projected nor dropped out. Received: {name}="
                        f"{getattr(self, name)!r}. Leave it out, or use one of {list(TOKEN_LOCATIONS)}."
                    )
        if self.location in ROWLESS_LOCATIONS and self.pooling == "prompt_pool":
            raise ValueError(
                f"With location={self.location!r} no output belongs to the prompts alone. Received: "
                "pooling='prompt_pool'. Use 'original', 'img_pool' or 'imgprompt_pool'."
            )

    def _check_read_only(self) -> None:
        """Refuse read-only prompts that nothing would ever be read out of."""
        if self.read_only and self.location != "prepend":
            raise ValueError(
                "Expected location='prepend' with read_only=True: only tokens of their own can read. "
                f"Received: location={self.location!r}."
            )
        if self.read_only and self.pooling not in ("original", "prompt_pool"):
            raise ValueError(
                "Nobody reads read-only prompts, so they learn only if they are read out themselves. Expected pooling "
                f"'original' or 'prompt_pool' (both: the mean over them). Received: pooling={self.pooling!r}."
            )

    def depth(self, num_layers: int) -> int:
        """Return how many layers of a tower with `num_layers` get prompts."""
        return (self.num_deep_layers or num_layers - self.first_layer) if self.deep else 1

    @property
    def pooling_rows(self) -> str:
        """Which rows become the feature, see `core.pooling.pool`."""
        return "prompt_pool" if self.read_only else self.pooling


#: The name people say.
VPTConfig = VisualPromptConfig

"""Multi-modal read-only prompts.

Paper: Seo and Lee, "Multi-modal Read-only Prompt Optimization", Kookmin University, equations 2-7. No code of theirs is
known; the method builds on RPO, https://github.com/mlvlab/RPO.

Deviations: the paper leaves the readout and the start of the prompts open; they are read out pairwise like RPO's and start
like MaPLe's.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...prompts.base import PromptModule, placed_like
from ...prompts.coupling import LinearCoupling
from ...readouts import PairwiseReadout
from ..base.method import PromptMethod, check_depth
from ..base.tuner import PromptTuner
from ..rpo.method import free_prompts
from .config import MRPOConfig


class MRPO(PromptMethod):
    """Read-only prompts that start at layer J ("replace") or that each of the first J layers adds to ("accumulate")."""

    needs_read_only = True
    has_image_layers = True

    def check(self, config: MRPOConfig, vision: VisionView, text: TextView) -> None:
        """Refuse more prompted layers than a tower has."""
        check_depth(
            "prompt_depth", config.prompt_depth, min(vision, text, key=lambda view: view.num_layers), "smaller tower"
        )

    def text_prompts(
        self, config: MRPOConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return prompts P_k."""
        return free_prompts(config.num_virtual_tokens, view, *first_and_depth(config))

    def vision_prompts(self, config: MRPOConfig, view: VisionView, text: TextView, feature_dim: int) -> PromptModule:
        """Return prompts F_k(P_k), or free ones."""
        first_layer, depth = first_and_depth(config)
        if config.coupling == "none":
            return free_prompts(config.num_virtual_tokens, view, first_layer, depth)
        size = (depth, text.width, view.width)
        return LinearCoupling(*size, read_only=True, first_layer=first_layer, **placed_like(view))

    def readout(self, config: MRPOConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the mean over the pairs."""
        return PairwiseReadout()


class MRPOModel(PromptTuner):
    """MRPO's tuner."""

    peft_name = "mrpo"
    prefix = "linked_prompt_"
    method = MRPO()


def first_and_depth(config: MRPOConfig) -> tuple[int, int]:
    """Return where the prompts that are ever read out start, and at how many layers prompts of their own come in."""
    return (config.prompt_depth - 1, 1) if config.prompt_update == "replace" else (0, config.prompt_depth)

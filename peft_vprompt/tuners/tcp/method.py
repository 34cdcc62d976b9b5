"""Textual-based class-aware prompts.

Paper: Yao et al., "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR 2024, section 3.
Authors' code: htyao89/Textual-based_Class-aware_prompt_tuning `trainers/tcp.py`.

As in that code, the class tokens replace the context wholly, whatever its configured weight is, in front of one layer.

Deviation: the frozen class features come from the model in its own precision (the authors' are of half precision).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...core.tokenization import TokenSequence, context_sequences
from ...prompts.base import PromptModule, placed_like
from ...prompts.class_aware import ClassAwareContext
from ..base.method import PromptMethod
from ..base.tuner import PromptTuner
from ..coop.method import start_contexts
from .config import TCPConfig


class TCP(PromptMethod):
    """A context, and tokens made of frozen class features."""

    needs_class_features = True

    def check(self, config: TCPConfig, vision: VisionView, text: TextView) -> None:
        """Refuse a layer that the text tower does not have.

        Raises:
            ValueError: names the layers that it has.
        """
        if config.class_token_layer >= text.num_layers:
            raise ValueError(
                f"Expected class_token_layer < {text.num_layers}, the layers of the text tower. Received: "
                f"class_token_layer={config.class_token_layer}."
            )

    def text_prompts(
        self, config: TCPConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the context, random or from the words, and the network."""
        sizes = (config.length, view.width, feature_dim, config.num_class_tokens, config.class_token_layer)
        context = ClassAwareContext(*sizes, **placed_like(view))
        start_contexts(context.tokens, config, view, tokenizer)
        return context

    def class_sequences(
        self, config: TCPConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return `[SOS] context, name in its text [EOT]`, with rows of its own for each class."""
        text = config.prompt_template
        return [context_sequences(tokenizer, names, config.length, config.words, class_specific=True, text=text)]


class TCPModel(PromptTuner):
    """TCP's tuner."""

    peft_name = "tcp"
    prefix = "class_aware_prompt_"
    method = TCP()

"""Context optimisation.

Paper: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, section 3.2.
Authors' code: KaiyangZhou/CoOp `trainers/coop.py`.
With `tune`: class-name tokens, alone or with the context. Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language
Models Robust to Noisy Labels?", ICCV 2023, section 3 (CLS Tuning, Full Prompt Tuning).
With `num_contexts`: several contexts. Paper: Huang et al., "Unsupervised Prompt Learning for Vision-Language Models",
2022, section 3.3.

Deviation: contexts of single classes may start from words too (the authors ignore the words there).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...backbones.supported import TextView
from ...core.tokenization import TokenSequence, context_sequences, name_tokens
from ...errors import ClassNamesError
from ...prompts.base import PromptModule
from ...prompts.tokens import ClassPrompts, NamedPrompts, TokenPrompts, start_from_words
from ..base.config import digest_names
from ..base.tuner import PromptTuner
from .config import ContextOptConfig


class ContextOptModel(PromptTuner):
    """A context on the text tower's first layer, class-name tokens, or both."""

    prefix = "context_prompt_"

    @classmethod
    def needs_tokenizer(cls, config: ContextOptConfig) -> bool:
        """Also where class-name tokens are learned: their number depends on it."""
        return config.tune != "context" or super().needs_tokenizer(config)

    @classmethod
    def text_prompts(
        cls, config: ContextOptConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """The context, shared by all classes or one per class, and the names."""
        holder = context(config, tower, tokenizer) if "context" in config.learn else None
        if "class_name" not in config.learn:
            return holder
        ids = [token for name in config.class_names for token in name_tokens(tokenizer, name)]
        return NamedPrompts(holder, tower.word_vectors(ids))

    @classmethod
    def class_sequences(
        cls, config: ContextOptConfig, names: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """`[SOS] context name . [EOT]`, the name at the end, in the middle or in front; one list per context."""
        first = context_sequences(
            tokenizer,
            names,
            config.num_virtual_tokens,
            config.words,
            config.class_token_position,
            config.class_specific,
            config.learn,
        )
        rows = [context * config.num_virtual_tokens for context in range(config.num_contexts)]
        return [[[entry - row if entry < 0 else entry for entry in ids] for ids in first] for row in rows]

    @classmethod
    def combine(cls, features: list[Tensor]) -> Tensor:
        """The mean over contexts, not normalised again: its cosines are the mean of theirs, as UPL averages logits."""
        return features[0] if len(features) == 1 else torch.stack(features).mean(0)

    @classmethod
    def check_new_classes(cls, config: ContextOptConfig, names: list[str]) -> None:
        """What is learned for each class belongs to those classes."""
        if config.belongs_to_classes and digest_names(names) != digest_names(config.class_names):
            raise ClassNamesError(
                f"This adapter learned {'one context' if config.class_specific else 'name tokens'} for each of its "
                f"{len(config.class_names)} classes ({', '.join(config.class_names[:3])}, ...); they mean nothing for "
                "other names. Train an adapter with class_specific=False and tune='context' to move to new classes."
            )


def context(config: ContextOptConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None) -> PromptModule:
    """Context vectors, random or from the words."""
    weight, length = tower.reference_weight, config.num_virtual_tokens
    factory = {"dtype": weight.dtype, "device": weight.device}
    if config.class_specific:
        holder = ClassPrompts(len(config.class_names), length, tower.width, **factory)
    else:
        holder = TokenPrompts(1, length * config.num_contexts, tower.width, **factory)
        # At the end position a context stands right after the start token, whatever the text is.
        one_at_end = config.class_token_position == "end" and config.num_contexts == 1
        holder.text_placement = "insert" if one_at_end else None
    if tokenizer is not None and config.words is not None:
        contexts = holder.tokens.detach().view(-1, length, tower.width)  # shares the parameter's memory
        start_from_words(contexts, tower, tokenizer, config.words)
    return holder

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

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...core.tokenization import TokenSequence, context_sequences, name_tokens
from ...prompts.base import PromptModule, placed_like
from ...prompts.tokens import ClassContexts, ClassNameTokens, TokenPrompts, start_from_words
from ...utils.name_keys import rows_of
from ..base.config import ContextConfig
from ..base.method import PromptMethod, check_length, refuse_other_classes
from ..base.tuner import PromptTuner
from .config import ContextOptConfig


class CoOpContext(PromptMethod):
    """A context right before the name, shared by all classes or one per class: what later methods build on."""

    def check(self, config: ContextConfig, vision: VisionView, text: TextView) -> None:
        """Refuse a context that no text has room for."""
        check_length("num_virtual_tokens", config.length, text)

    def text_prompts(
        self, config: ContextConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the context, random or from the words."""
        return new_context(config, view, tokenizer)

    def class_sequences(
        self, config: ContextConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return `[SOS] context name . [EOT]`."""
        return [prompt_sequences(config, names, tokenizer, config.words)]

    def check_new_classes(self, config: ContextConfig, names: Sequence[str]) -> None:
        """Refuse other classes than those that each have a context.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """
        if config.class_specific:
            remedy = "Or train an adapter with class_specific=False to move to new classes."
            refuse_other_classes(config, names, "one context", remedy)


class CoOp(CoOpContext):
    """A context on the text tower's first layer, class-name tokens, or both."""

    def needs_tokenizer(self, config: ContextOptConfig) -> bool:
        """Return True also where class-name tokens are learned: their number depends on it."""
        return config.tune != "context" or super().needs_tokenizer(config)

    def text_prompts(
        self, config: ContextOptConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the context, shared by all classes or one per class, and the names."""
        context = None
        if "context" in config.learn:
            context = new_context(config, view, tokenizer, config.num_contexts, config.class_token_position)
        if "class_name" not in config.learn:
            return context
        # pyrefly: ignore[bad-argument-type]  # `needs_tokenizer`
        ids = [token for name in config.own_classes for token in name_tokens(tokenizer, name)]
        return ClassNameTokens(context, view.word_vectors(ids))

    def class_sequences(
        self, config: ContextOptConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return `[SOS] context name . [EOT]`, the name at the end, in the middle or in front; a list per context.

        Where something is learned for each class, its rows are found by the class's name.
        """
        options = {"position": config.class_token_position, "learn": config.learn}
        first = prompt_sequences(config, names, tokenizer, config.words, **options)
        rows = [context * config.length for context in range(config.num_contexts)]
        return [[[entry - row if entry < 0 else entry for entry in ids] for ids in first] for row in rows]

    def combine(self, features: list[Tensor]) -> Tensor:
        """Return the mean over contexts, not normalised again: its cosines are the mean of theirs, as UPL averages."""
        return features[0] if len(features) == 1 else torch.stack(features).mean(0)

    def check_new_classes(self, config: ContextOptConfig, names: Sequence[str]) -> None:
        """Refuse other classes than those that something was learned for, one by one.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """
        if config.belongs_to_classes:
            learned = "one context" if config.class_specific else "name tokens"
            remedy = "Or train an adapter with class_specific=False and tune='context' to move to new classes."
            refuse_other_classes(config, names, learned, remedy)


class ContextOptModel(PromptTuner):
    """CoOp's tuner."""

    peft_name = "context_opt"
    prefix = "context_prompt_"
    method = CoOp()


def new_context(
    config: ContextConfig,
    view: TextView,
    tokenizer: PreTrainedTokenizerBase | None,
    num_contexts: int = 1,
    position: str = "end",
) -> TokenPrompts | ClassContexts:
    """Return context vectors that all classes share, or those of each class, random or from the words."""
    if config.class_specific:
        own = ClassContexts(len(config.own_classes), config.length, view.width, **placed_like(view))
        start_contexts(own.tokens, config, view, tokenizer)
        return own
    # At the end position a context stands right after the start token, whatever the text is.
    placement = "insert" if position == "end" and num_contexts == 1 else None
    count = config.length * num_contexts
    context = TokenPrompts(1, count, view.width, text_placement=placement, **placed_like(view))
    start_contexts(context.tokens, config, view, tokenizer)
    return context


def start_contexts(
    tokens: Tensor, config: ContextConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Set every context of `tokens` [..., d] to the initial words, if the config has some."""
    if tokenizer is not None and config.words is not None:
        contexts = tokens.detach().view(-1, config.length, view.width)  # shares the parameter's memory
        start_from_words(contexts, view, tokenizer, config.words)


def prompt_sequences(
    config: ContextConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, words: str | None, **options
) -> list[TokenSequence]:
    """Return the class prompts of names as `context_sequences` writes them; learned rows of a class are found by its name."""
    own = config.own_classes if config.belongs_to_classes else names
    options["class_specific"] = config.class_specific
    prompts = context_sequences(tokenizer, own, config.length, words, **options)
    # pyrefly: ignore[bad-index]  # `check_new_classes` has refused others
    return [prompts[row] for row in rows_of(names, own)] if config.belongs_to_classes else prompts

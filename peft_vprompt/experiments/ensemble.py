"""Several learned contexts as one adapter, whose logits are the mean of theirs (UPL, Huang et al. 2022, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from ..tuners.coop import ContextOptConfig


def context_tokens(model: PeftModel) -> torch.Tensor:
    """Return a copy of the active adapter's context, [1, n, width].

    Raises:
        ValueError: the adapter is not a context that all classes share.
    """
    config = model.active_peft_config
    if not isinstance(config, ContextOptConfig) or config.belongs_to_classes:
        raise ValueError(
            "Expected an adapter that learned a context for all classes (ContextOptConfig with tune='context' and "
            f"class_specific=False). Received: {type(config).__name__}."
        )
    return model.base_model.text_encoder.active_prompts.tokens.detach().clone()


@torch.no_grad()
def set_contexts(model: PeftModel, contexts: Sequence[torch.Tensor]) -> None:
    """Put contexts from `context_tokens`, each [1, n, width], into the active adapter, which has room for as many.

    Raises:
        ValueError: another number of contexts, or another length, than the adapter's.
    """
    config: Any = model.active_peft_config  # an adapter that `context_tokens` takes
    tokens = model.base_model.text_encoder.active_prompts.tokens
    expected = (1, config.num_virtual_tokens, tokens.shape[-1])
    if len(contexts) != config.num_contexts or any(tuple(context.shape) != expected for context in contexts):
        raise ValueError(
            f"Expected {config.num_contexts} contexts of shape {expected}. "
            f"Received: {[tuple(context.shape) for context in contexts]}."
        )
    tokens.copy_(torch.cat([context.to(tokens) for context in contexts], dim=1))

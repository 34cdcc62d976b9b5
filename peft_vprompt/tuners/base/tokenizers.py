"""`Tokenizers`: the tokenizer that was handed over, or those that configs and the base model name, each loaded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.tokenization import find_tokenizer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizers:
    """Finds tokenizers for the adapters of one model.

    Args:
        base_model_name: name or path of the base model, None for one built in memory.
        revision: commit of the Hub that the base model was loaded from, at which its tokenizer is read too.

    Attributes:
        given: the tokenizer that was handed over; it goes before all others.
        token: what the Hub is asked with; None: what the user is logged in with.
        revision: that of the base model, whose tokenizer is as old.
    """

    def __init__(self, base_model_name: str | None, revision: str | None = None):
        self.base_model_name = base_model_name
        self.revision = revision
        self.given: PreTrainedTokenizerBase | None = None
        self.token: str | bool | None = None
        self._found: dict[str | None, PreTrainedTokenizerBase] = {}

    def find(self, name_or_path: str | None) -> PreTrainedTokenizerBase:
        """Return the tokenizer for an adapter whose config names `name_or_path`.

        Raises:
            TokenizerNotFoundError: there is none.
        """
        if self.given is not None:
            return self.given
        if name_or_path not in self._found:
            names = (name_or_path, self.base_model_name)
            self._found[name_or_path] = find_tokenizer(*names, self.token, self.revision)
        return self._found[name_or_path]

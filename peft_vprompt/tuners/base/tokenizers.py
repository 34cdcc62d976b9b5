"""`Tokenizers`: the tokenizer that was handed over, or those that configs and the base model name, each loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...core.tokenization import find_tokenizer
from ...utils.fields import shown


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

    @contextmanager
    def handed_over(self, tokenizer: Any) -> Iterator[None]:
        """Go on with another tokenizer, if the block succeeds with it; None changes nothing.

        Raises:
            TypeError: it is no tokenizer.
        """
        if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "eos_token_id")):
            raise TypeError(
                f"Expected tokenizer to be one of transformers, such as AutoTokenizer.from_pretrained(...) gives. Received: "
                f"tokenizer={shown(tokenizer)}."
            )
        before = self.given
        new: Any = before if tokenizer is None else tokenizer
        self.given = new
        try:
            yield
        except BaseException:
            self.given = before
            raise

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

"""From texts to token ids: finding the tokenizer, and checking that what it gives fits the text tower.

A *token sequence* is a list of integers. Numbers >= 0 are token ids; a negative number -(k + 1) stands for row k of
the learned prompts (`learned(k)`), so that one plain list says where words and where learned vectors stand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from ..errors import PromptTooLongError, TokenizerNotFoundError
from ..utils.hub import split_revision
from ..utils.name_keys import readable
from ..utils.validation import first_line


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: One class prompt: token ids, and negative numbers for learned rows.
TokenSequence = list[int]


def learned(row: int) -> int:
    """Return the entry of a token sequence that stands for row `row` of the learned prompts."""
    return -(row + 1)


def find_tokenizer(
    tokenizer_name_or_path: str | None,
    base_model_name_or_path: str | None,
    token: str | bool | None = None,
    base_model_revision: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the configured tokenizer, or else the base model's own at the revision of the base model.

    A configured one may be `id@revision`. Nothing that a tokenizer brings along is run: one that needs code of its own is none.

    A configured local path that does not exist here (an adapter that came from another machine) falls back to the
    base model's tokenizer with a warning.

    Raises:
        TokenizerNotFoundError: neither can be loaded.
        ValueError: a name of which one side of the @ is empty.
    """
    failures = []
    for name in dict.fromkeys(n for n in (tokenizer_name_or_path, base_model_name_or_path) if n):
        place, revision = split_revision(name)
        if revision is None and name == base_model_name_or_path:
            revision = base_model_revision
        options = {key: value for key, value in {"token": token, "revision": revision}.items() if value is not None}
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        except Exception as error:  # of damaged files the tokenizers library raises nothing more special
            failures.append(f"{name!r}: {first_line(error)}")
            continue
        if failures:
            warnings.warn(
                f"The tokenizer {tokenizer_name_or_path!r} of this adapter cannot be loaded here; using the base "
                f"model's, {name!r}, instead.",
                stacklevel=3,
            )
        return tokenizer
    tried = f" Tried {'; '.join(failures)}." if failures else " The base model was built in memory and has none."
    raise TokenizerNotFoundError(
        "No tokenizer found to read class names and prompt texts with."
        + tried
        + " Set tokenizer_name_or_path in the config. Where no prompts start from words (prompt_init='random'), "
        "set_class_names(names, tokenizer=...) will do, too."
    )


def resolve_local_path(name_or_path: str | None) -> str | None:
    """Make an existing relative folder absolute, so that a saved config still finds it from another directory."""
    return os.path.abspath(name_or_path) if name_or_path and os.path.isdir(name_or_path) else name_or_path


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenSequence:
    """Tokenise `text`: ids from the start token to the end token, where the tokenizer has them, neither padded nor cut."""
    return list(tokenizer(text, padding=False, truncation=False).input_ids)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TokenSequence]:
    """Tokenise several texts as `encode_text` does, in one call of the tokenizer, which takes a tenth of the time."""
    return [list(ids) for ids in tokenizer(list(texts), padding=False, truncation=False).input_ids] if texts else []


def require_end(tokenizer: PreTrainedTokenizerBase, ids: TokenSequence) -> None:
    """Refuse a tokenised text without an end token, for a tower that reads texts there.

    Raises:
        ValueError: the tokenizer does not put an end token behind the text.
    """
    if len(ids) < 2 or not num_end_tokens(tokenizer, ids):
        raise ValueError(
            f"Expected {type(tokenizer).__name__} to give [..., {tokenizer.eos_token or tokenizer.sep_token!r}]. "
            f"Received {ids}. Use the tokenizer that the model was trained with."
        )


def num_start_tokens(tokenizer: PreTrainedTokenizerBase, ids: TokenSequence) -> int:
    """Count the tokens before the text: 1 where the tokenizer puts a start token there, else 0 (SigLIP)."""
    return int(bool(ids) and ids[0] in {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None})


def num_end_tokens(tokenizer: PreTrainedTokenizerBase, ids: TokenSequence) -> int:
    """Count the tokens behind the text: 1 where the tokenizer puts an end token there, else 0 (TIPSv2)."""
    return int(bool(ids) and ids[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None})


def text_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenSequence:
    """Tokenise a text alone, without start and end token."""
    return without_ends(tokenizer, encode_text(tokenizer, text))


def without_ends(tokenizer: PreTrainedTokenizerBase, ids: TokenSequence) -> TokenSequence:
    """Return a tokenised text without start and end token."""
    return ids[num_start_tokens(tokenizer, ids) : len(ids) - num_end_tokens(tokenizer, ids)]


def fill(template: str, name: str, verbatim: bool = False) -> str:
    """Put a class name, readable or verbatim, in the place of the template's `{}`; all other braces are text."""
    return template.replace("{}", name if verbatim else readable(name))


def template_sequences(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], template: str) -> list[TokenSequence]:
    """Tokenise the template filled with each name."""
    return encode_texts(tokenizer, [fill(template, name) for name in names])


def context_sequences(
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    num_context: int,
    words: str | None = None,
    position: str = "end",
    class_specific: bool = False,
    learn: tuple[str, ...] = ("context",),
    text: str = "{}.",
) -> list[TokenSequence]:
    """Write `[SOS] context name . [EOT]` for each name, with learned rows for what is learned of it.

    `text` is what stands behind the context, with {} for the name; another one than "{}." leaves the name at its end.

    `words`, if given, are the text whose first `num_context` tokens are the context; what is left of them stays as
    plain tokens. `position` moves the name: "end", "middle" (half of the context, rounded down, before it) or "front"
    (the context after it, before the full stop). `learn` says what has learned rows: "context", "class_name" or both.
    The rows are numbered contexts first (with `class_specific`, those of all classes one after another), then the
    names' tokens, class by class.

    Source: `PromptLearner` of KaiyangZhou/CoOp `trainers/coop.py` and of muzairkhattak/multimodal-prompt-learning
    `trainers/maple.py`; as there, a name that ends in punctuation may merge with the full stop into one token.
    """
    sequences = []
    split = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
    next_row = num_context * (len(names) if class_specific else 1) if "context" in learn else 0
    names = list(map(readable, names))
    filled = [text.replace("{}", name) for name in names]
    texts = encode_texts(tokenizer, [*(f"{words} {each}" for each in filled), words] if words else filled)
    taken = min(num_context, len(without_ends(tokenizer, texts.pop()))) if words else 0
    takes_apart = position != "end" or "class_name" in learn
    alone = encode_texts(tokenizer, names) if takes_apart else [[]] * len(names)
    for index, (name, ids, name_alone) in enumerate(zip(names, texts, alone, strict=True)):
        first = num_start_tokens(tokenizer, ids)
        start, ids = ids[:first], ids[first:]
        context = ids[:num_context]
        suffix = ids[taken:]
        if "context" in learn:
            first_row = index * num_context if class_specific else 0
            context = [learned(first_row + k) for k in range(num_context)]
        name_length = len(without_ends(tokenizer, name_alone))
        if "class_name" in learn:
            # The suffix may begin with words that the context did not take; the name and the full stop end it.
            at = len(suffix) - len(text_tokens(tokenizer, f"{name}.")) - num_end_tokens(tokenizer, ids)
            suffix[at : at + name_length] = [learned(next_row + k) for k in range(name_length)]
            next_row += name_length
        after_name = 0 if position == "end" else name_length
        sequences.append(start + context[:split] + suffix[:after_name] + context[split:] + suffix[after_name:])
    return sequences


def name_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> TokenSequence:
    """Tokenise a class name alone."""
    return text_tokens(tokenizer, readable(name))


def check_lengths(sequences: list[TokenSequence], names: Sequence[str], max_positions: int) -> None:
    """Refuse texts whose end token would be cut off.

    Raises:
        PromptTooLongError: names the first class that does not fit, its length and the limit.
    """
    for name, sequence in zip(names, sequences, strict=True):
        if len(sequence) > max_positions:
            raise PromptTooLongError(
                f"The prompt of class {name!r} has {len(sequence)} tokens, start, context and end included; the text "
                f"tower has {max_positions} positions. Shorten the name, or learn fewer context tokens (num_virtual_tokens)."
            )


def warn_alike(sequences: list[TokenSequence], names: Sequence[str]) -> None:
    """Warn of different names that the tokenizer reads alike ("Cat" and "cat", or letters that it does not know)."""
    first: dict[tuple[int, ...], str] = {}
    pairs = [(first.setdefault(tuple(s), name), name) for s, name in zip(sequences, names, strict=True)]
    if alike := [f"{one!r} and {other!r}" for one, other in pairs if one != other]:
        warnings.warn(
            f"The tokenizer reads class names alike: {'; '.join(alike[:3])}. These classes get the same text features and "
            "cannot be told apart; write their names in other words.",
            stacklevel=2,
        )

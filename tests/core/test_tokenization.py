"""Class names are read in one call of the tokenizer, and as each would be alone."""

import pytest

from peft_vprompt.core.tokenization import context_sequences, encode_text, encode_texts, template_sequences
from tests.support.models import CLASS_NAMES, tiny_tokenizer


NAMES = [*CLASS_NAMES, "x", "herbaceous vegetation land with many words in it", "sea_lion", "boeing 737-800!"]


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self):
        self.tokenizer = tiny_tokenizer()
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_many_texts_are_tokenised_as_each_alone():
    tokenizer = tiny_tokenizer()
    assert encode_texts(tokenizer, NAMES) == [encode_text(tokenizer, name) for name in NAMES]
    assert encode_texts(tokenizer, []) == []


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 1),
        ({"words": "a photo of a"}, 1),
        ({"position": "middle"}, 2),
        ({"position": "front", "words": "a photo of a"}, 2),
    ],
)
def test_names_in_a_context(options, calls):
    tokenizer = Counting()
    together = context_sequences(tokenizer, NAMES, 4, **options)
    assert tokenizer.calls == calls
    assert together == [context_sequences(tokenizer, [name], 4, **options)[0] for name in NAMES]


def test_names_in_a_template():
    tokenizer = Counting()
    together = template_sequences(tokenizer, NAMES, "a photo of a {}.")
    assert tokenizer.calls == 1
    assert together == [template_sequences(tokenizer, [name], "a photo of a {}.")[0] for name in NAMES]

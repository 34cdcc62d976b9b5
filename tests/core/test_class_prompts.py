"""Packed and padded class prompts: one protocol, and the learned vectors in their rows."""

import dataclasses

import pytest
import torch
from torch import nn

from peft_vprompt.core.packed_prompts import pack
from peft_vprompt.core.padded_prompts import pad
from peft_vprompt.core.tokenization import learned


#: Start, two learned rows, a name, end; the names have one and two tokens.
SEQUENCES = [[1, learned(0), learned(1), 4, 9], [1, learned(0), learned(1), 5, 6, 9]]


class Embedding:
    """A text encoder's embeddings; what it adds to tokens shows who embeds positions."""

    def __init__(self):
        torch.manual_seed(0)
        self.token_embedding = nn.Embedding(10, 3)
        self.position_embedding = nn.Embedding(8, 3)

    def embed(self, vectors):
        return vectors + self.position_embedding.weight[: vectors.shape[1]]


@pytest.fixture
def encoder():
    return Embedding()


def expected(encoder, vectors):
    """Each class's own rows, [l, d]."""
    rows = []
    for sequence in SEQUENCES:
        tokens = [encoder.token_embedding.weight[e] if e >= 0 else vectors[-e - 1] for e in sequence]
        rows.append(torch.stack(tokens) + encoder.position_embedding.weight[: len(sequence)])
    return rows


@pytest.mark.parametrize("images", (None, 3))
def test_both_put_the_same_rows_before_the_first_layer(encoder, images):
    packed, padded = pack(SEQUENCES), pad(SEQUENCES, start=1, pad_token_id=0, length=None)
    assert packed.num_classes == padded.num_classes == 2
    assert (packed.num_rows, padded.num_rows) == (8, 12)
    vectors = torch.randn(2, 3) if images is None else torch.randn(images, 2, 3)
    rows, batch = packed.embed(encoder, vectors), padded.embed(encoder, vectors)
    assert rows.shape == (images or 1, 8, 3) and batch.shape == (2 * (images or 1), 6, 3)
    for image, own in enumerate(vectors.reshape(-1, 2, 3)):
        first, second = expected(encoder, own)
        assert torch.equal(rows[image], torch.cat([first, second[3:]]))
        assert torch.equal(batch[2 * image, :5], first) and torch.equal(batch[2 * image + 1], second)


def test_without_learned_rows_there_is_nothing_to_put(encoder):
    plain = [[1, 4, 9], [1, 5, 9]]
    packed, padded = pack(plain), pad(plain, start=1, pad_token_id=0, length=None)
    assert packed.embed(encoder, None).shape == (1, 5, 3)
    assert torch.equal(padded.embed(encoder, None)[0], packed.embed(encoder, None)[0, :3])


@pytest.mark.parametrize("prompts", (pack(SEQUENCES), pad(SEQUENCES, start=1, pad_token_id=0, length=8)))
def test_all_tensors_move_and_nothing_moves_twice(prompts):
    assert prompts.to(torch.device("cpu")) is prompts
    moved = prompts.to(torch.device("meta"))
    assert type(moved) is type(prompts) and moved.to(torch.device("meta")) is moved
    for field in dataclasses.fields(moved):
        value = getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta"
        elif field.name == "pattern":
            assert value.places.device.type == value.groups.rows.device.type == "meta"
        else:
            assert value == getattr(prompts, field.name)

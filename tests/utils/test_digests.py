"""Digests: the same for the same content, other for any other."""

import hashlib

import numpy as np
import pytest
import torch

from peft_vprompt.utils.digests import Digest, digest_arrays, digest_json


def test_the_order_of_keys_does_not_count_and_that_of_items_does():
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": (1, 2), "a": 1})
    assert digest_json({"a": [1, 2]}) != digest_json({"a": [2, 1]})


@pytest.mark.parametrize("length", (8, 64))
def test_a_digest_is_the_beginning_of_sha256(length):
    assert digest_json([1, "é"], length) == hashlib.sha256(b'[1, "\\u00e9"]').hexdigest()[:length]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([1, 2, 3],), ([1, 2], [3])),  # the same values, cut elsewhere
        (([[1, 2]],), ([[1], [2]],)),
        ((np.zeros(2, np.int32),), (np.zeros(1, np.int64),)),  # the same bytes
        (([1], [2]), ([2], [1])),
    ],
)
def test_arrays_differ_in_type_shape_and_order(one, other):
    assert digest_arrays(*one) != digest_arrays(*other)


def test_arrays_are_read_as_they_stand_and_not_as_they_lie():
    table = np.arange(6).reshape(2, 3)
    assert digest_arrays(table.T) == digest_arrays(table.T.copy()) != digest_arrays(table.reshape(3, 2))


def test_tensors_differ_in_name_type_shape_and_values():
    def of(name, tensor):
        return Digest().add_tensor(name, tensor).hex()

    weight = torch.arange(6.0).reshape(2, 3)
    others = [
        ("bias", weight),
        ("weight", weight.reshape(3, 2)),
        ("weight", weight.bfloat16()),
        ("weight", weight.view(torch.int32)),
        ("weight", -weight),
    ]
    assert of("weight", weight.requires_grad_()) == of("weight", weight.detach().t().contiguous().t())
    assert of("weight", weight) not in {of(*other) for other in others}

"""The layer loop calls Hugging Face's layers itself, and asks an encoder for their arguments as often as it has to."""

import inspect

import pytest
import torch
from torch import nn

from peft_vprompt.backbones.supported import view
from peft_vprompt.core.insertion import InsertRows
from peft_vprompt.core.layer_loop import encode, fill_kv_cache
from tests.support.models import images, tiny_clip, tiny_vit


class Stack:
    """An encoder of plain layers that counts how often its arguments are asked for."""

    def __init__(self, layers):
        self.layers = layers
        self.num_layers = len(layers)
        self.asked = []

    def layer_arguments(self, hidden, **options):
        self.asked.append((hidden.shape[1], options))
        return (), {"rows": hidden.shape[1]}


class Layer(nn.Module):
    """Adds one, and wants to know how many rows there are."""

    def forward(self, hidden, rows):
        assert rows == hidden.shape[1]
        return (hidden + 1,)


@pytest.mark.parametrize(("first_layer", "asked"), ((0, [5]), (2, [3, 5])))
def test_arguments_are_made_anew_where_rows_come_in(first_layer, asked):
    stack = Stack([Layer() for _ in range(4)])
    hidden, states = torch.zeros(1, 5 if first_layer == 0 else 3, 2), []
    prompts = torch.full((2, 2, 2), 10.0)
    output = encode(stack, hidden, prompts, InsertRows(1), first_layer, states, key=1)
    assert [rows for rows, options in stack.asked] == asked
    assert all(options == {"key": 1} for _, options in stack.asked)
    # The last prompts come into layer first_layer + 1, and meet it and what follows.
    assert output[0, :, 0].tolist() == [4.0, *[10.0 + 4 - (first_layer + 1)] * 2, 4.0, 4.0]
    assert [state.shape[1] for state in states] == ([5] * 5 if first_layer == 0 else [3, 3, 3, 5, 5])


@pytest.mark.parametrize("side", ("vision", "text"))
def test_no_frame_of_ours_between_the_loop_and_a_layer(side):
    clip = tiny_clip()
    tower = view(clip.vision_model if side == "vision" else clip.text_model)
    callers = []

    def look(module, args):
        frames = [frame for frame in inspect.stack() if "peft_vprompt" in frame.filename]
        callers.append(frames[0].function)

    handles = [layer.register_forward_pre_hook(look) for layer in tower.layers]
    encode(tower, torch.zeros(1, 4, tower.width))
    assert callers == ["encode"] * 3
    callers.clear()
    handles[-1].remove()  # of the last layer keys and values are wanted alone
    fill_kv_cache(tower, torch.zeros(1, 4, tower.width))
    assert callers == ["fill_kv_cache"] * 2


def test_run_layer_is_the_models_own_layer():
    vit = tiny_vit(bare=True)
    tower, hidden = view(vit), vit.embeddings(images())
    with torch.no_grad():
        assert torch.equal(tower.run_layer(tower.layers[0], hidden), vit.layers[0](hidden))

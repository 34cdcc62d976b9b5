"""What takes the place of a layer's own call is computed again where that layer would be."""

import pytest
import torch
from torch import nn

from peft_vprompt.core.checkpointing import recompute


class Layer(nn.Module):
    """As transformers' `GradientCheckpointingLayer` after `gradient_checkpointing_enable`."""

    def __init__(self, reentrant):
        super().__init__()
        self.gradient_checkpointing = True
        self.reentrant = reentrant

    def _gradient_checkpointing_func(self, function, *args):
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", (False, True))
def test_recomputed_in_the_backward_pass(reentrant):
    calls = []

    def function(hidden, factor):
        calls.append(torch.is_grad_enabled())
        return hidden.pow(3) * factor

    layer = Layer(reentrant)
    gradients = []
    for training in (True, False):
        hidden, factor = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
        recompute(layer.train(training), function, hidden, factor).sum().backward()
        gradients += [hidden.grad, factor.grad]
    assert len(calls) == 3  # twice in training, once out of it
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])
    assert torch.equal(gradients[0], torch.tensor([6.0, 13.5]))


def test_a_layer_that_knows_no_checkpointing_is_called_once():
    calls = []
    result = recompute(nn.Identity(), lambda hidden: calls.append(1) or hidden, torch.ones(2))
    assert calls == [1] and torch.equal(result, torch.ones(2))

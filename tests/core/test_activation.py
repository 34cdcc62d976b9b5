"""CLIP's activation in one buffer: transformers' own values, its gradient, and nothing left behind."""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from transformers.activations import ACT2FN, QuickGELUActivation

from peft_vprompt import ContextOptConfig, VisualPromptConfig
from peft_vprompt.core.quick_gelu import LeanQuickGELU, install, uninstall
from tests.support.models import CLASS_NAMES, images, tiny_clip


pytestmark = pytest.mark.core


@pytest.fixture
def lean():
    parent = torch.nn.Sequential(QuickGELUActivation())
    install(parent)
    return parent[0]


def activations(model):
    return {type(module) for module in model.modules() if isinstance(module, QuickGELUActivation)}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_values_are_those_of_transformers_to_the_bit(dtype, lean):
    hidden = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, torch.inf, torch.nan])]).to(dtype)
    assert torch.equal(lean(hidden).nan_to_num(7), QuickGELUActivation()(hidden).nan_to_num(7))


def test_gradients_are_those_of_transformers(lean):
    hidden = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 5
    gradients = []
    for activation in (lean, QuickGELUActivation()):
        leaf = hidden.clone().requires_grad_()
        activation(leaf).pow(2).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_first_and_second_derivative_are_right(lean):
    hidden = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lean, hidden)
    assert torch.autograd.gradgradcheck(lean, hidden)


def test_function_transforms_work(lean):
    hidden = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    per_row = torch.func.vmap(torch.func.grad(lambda row: lean(row).sum()))(hidden)
    leaf = hidden.clone().requires_grad_()
    QuickGELUActivation()(leaf).sum().backward()
    torch.testing.assert_close(per_row, leaf.grad, rtol=1e-6, atol=1e-6)


def test_keeps_one_tensor_for_the_backward_pass(lean):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hidden = torch.randn(10, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lean(hidden)
    assert sum(kept.values()) == hidden.untyped_storage().nbytes()


def test_the_very_modules_come_back_with_their_hooks():
    original, calls = QuickGELUActivation(), []
    parent = torch.nn.Sequential(original, torch.nn.Linear(2, 2))
    original.register_forward_hook(lambda *args: calls.append("before"))
    install(parent)
    lean = parent[0]
    assert (
        type(lean) is LeanQuickGELU
        and original not in parent.modules()
        and parent.state_dict().keys()
        == {
            "1.weight",
            "1.bias",
        }
    )
    lean.register_forward_hook(lambda *args: calls.append("meanwhile"))
    parent(torch.ones(1, 2))
    assert calls == ["before", "meanwhile"]
    install(parent)
    assert parent[0] is lean
    parent.eval()
    uninstall(parent)
    assert parent[0] is original and not original.training
    parent(torch.ones(1, 2))
    assert calls == ["before", "meanwhile"] * 2


def test_other_activations_are_left_alone():
    gelu = ACT2FN["gelu"]
    parent = torch.nn.Sequential(gelu)
    install(parent)
    assert parent[0] is gelu
    uninstall(parent)
    assert parent[0] is gelu


@pytest.mark.parametrize("config", (ContextOptConfig, VisualPromptConfig))
def test_both_towers_have_it_while_prompts_are_on(config, tokenizer_path):
    clip = tiny_clip()
    assert activations(clip) == {QuickGELUActivation}
    model = get_peft_model(clip, config(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    assert activations(model) == {LeanQuickGELU}
    with model.disable_adapter():
        assert activations(model) == {QuickGELUActivation}
    assert activations(model) == {LeanQuickGELU}
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert activations(twin) == {LeanQuickGELU}
    with torch.no_grad():
        assert torch.equal(twin(pixel_values=images()).logits, model(pixel_values=images()).logits)
    assert activations(model.unload()) == {QuickGELUActivation}

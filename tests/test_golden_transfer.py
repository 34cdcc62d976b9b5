"""Equal to the authors' own baselines of visual prompt tuning, on ViT and Swin."""

import json

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from test_golden_clip import TOLERANCE, load_recipe

from peft_vprompt.transfer import TRANSFERS


pytestmark = pytest.mark.core

#: Golden case -> the way to transfer and its options.
CASES = {
    "vit_linear": ("linear", {}),
    "vit_bias": ("bias", {}),
    "vit_partial1": ("partial-1", {}),
    "vit_adapter_r4": ("adapter", {"reduction_factor": 4}),
    "swin4_linear": ("linear", {}),
}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "vpt"


@pytest.fixture(scope="module")
def recipe(golden):
    return load_recipe(golden)


@pytest.fixture(params=CASES)
def case(request, golden, recipe):
    """The PEFT model with the authors' first values, their tensors and their facts."""
    name, options = CASES[request.param]
    kind = request.param.partition("_")[0]
    base = recipe.build_vit() if kind == "vit" else recipe.build_swin(4)
    if recipe.fingerprint(base) != json.loads((golden / "fingerprint.json").read_text())["fingerprint"][kind]:
        pytest.skip("this transformers release names the parameters otherwise, so the reference weights differ")
    model = get_peft_model(base, TRANSFERS[name].config(base, **options)).eval()
    reference = load_file(golden / f"{request.param}.safetensors")
    load_adapters(model, reference)
    return model, reference, json.loads((golden / f"{request.param}.json").read_text()), recipe.make_inputs(kind)


def load_adapters(model, reference):
    """Give our adapters the authors' values."""
    ours = dict(model.named_parameters())
    for name, value in reference.items():
        if name.startswith("param.") and ".adapter_" in name:
            layer, part, kind = name.split(".")[-3:]
            part = "down" if part == "adapter_downsample" else "up"
            (key,) = [key for key in ours if f"layers.{layer}." in key and key.endswith(f"default.{part}.{kind}")]
            ours[key].data.copy_(value)


def test_logits_and_count(case):
    model, reference, facts, (pixel_values, labels) = case
    output = model(pixel_values=pixel_values, labels=labels)
    torch.testing.assert_close(output.logits, reference["eval.logits"].float(), **TOLERANCE)
    torch.testing.assert_close(output.loss, torch.tensor(facts["eval_loss"]), **TOLERANCE)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["trainable_numel"]


def test_gradients(case):
    model, reference, facts, (pixel_values, labels) = case
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    if "grad.head.last_layer.weight" in reference:
        head = next(p.grad for n, p in model.named_parameters() if "classifier" in n and p.requires_grad)
        torch.testing.assert_close(head, reference["grad.head.last_layer.weight"].float(), **TOLERANCE)
    theirs = sorted(value for name, value in facts["norms_fp64"].items() if name.startswith("grad."))
    if theirs:  # the file has norms only where the tensors would be large
        ours = [p.grad for name, p in model.named_parameters() if p.grad is not None and "classifier" not in name]
        norms = torch.tensor(sorted(gradient.double().norm() for gradient in ours))
        torch.testing.assert_close(norms, torch.tensor(theirs, dtype=norms.dtype), **TOLERANCE)


def test_ten_sgd_steps(case):
    model, reference, facts, (pixel_values, labels) = case
    settings = {key: facts["sgd"][key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)
    losses = []
    for _ in range(facts["sgd"]["steps"]):
        loss = model(pixel_values=pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        final = model(pixel_values=pixel_values, labels=labels)
    losses.append(final.loss)
    torch.testing.assert_close(torch.stack(losses), reference["sgd.losses"].float(), **TOLERANCE)
    torch.testing.assert_close(final.logits, reference["sgd.logits"].float(), **TOLERANCE)

"""Equal to the authors' own baselines of visual prompt tuning, on ViT and Swin."""

import re

import pytest
import torch
from peft import get_peft_model

from peft_vprompt.tuners.base.registry import METHODS
from tests.support.golden_vpt import Reference, close, load_recipe, sgd_losses


pytestmark = pytest.mark.core

#: Reference case -> the fine-tuning baseline and its options.
CASES = {
    "vit_linear": ("linear", {}),
    "vit_bias": ("bias", {}),
    "vit_partial1": ("partial-1", {}),
    "vit_adapter_r4": ("adapter", {"reduction_factor": 4}),
    "swin4_linear": ("linear", {}),
}

#: The authors' names of modules, and transformers'.
NAMES = {
    "enc.transformer.embeddings.patch_embeddings": "vit.embeddings.patch_embeddings.projection",
    "enc.transformer.encoder.encoder_norm": "vit.layernorm",
    "enc.transformer.encoder.layer": "vit.layers",
    "attention_norm": "layernorm_before",
    "ffn_norm": "layernorm_after",
    "attn.query": "attention.q_proj",
    "attn.key": "attention.k_proj",
    "attn.value": "attention.v_proj",
    "attn.out": "attention.o_proj",
    "ffn.fc": "mlp.fc",
    "adapter_downsample": "mlp.fc2.down",
    "adapter_upsample": "mlp.fc2.up",
    "head.last_layer": "classifier",
}


@pytest.fixture(scope="module")
def recipe(shared):
    return load_recipe(shared / "golden" / "vpt")


@pytest.fixture(params=CASES)
def case(request, shared, recipe):
    """The PEFT model with the authors' first values, and the reference."""
    name, options = CASES[request.param]
    reference = Reference.load(shared / "golden" / "vpt", recipe, request.param)
    base = reference.build()
    model = get_peft_model(base, METHODS[name].configure(base, **options)).eval()
    parameters = plain(model.named_parameters())
    for key, value in reference.section("param").items():
        parameters[translated(key)].data.copy_(value)
    return model, reference


def plain(tensors) -> dict[str, torch.Tensor]:
    """Our trained tensors by the names that they have in the model itself."""
    inside = r"\.(\w+_modules|modules_to_save)\.default(\.module)?"
    return {
        re.sub(inside, "", name.removeprefix("base_model.model.")): t for name, t in tensors if ".default." in name
    }


def translated(name: str) -> str:
    """Transformers' name for one of the authors'."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def assert_equal(tensors, reference: Reference, section: str) -> None:
    """Compare with the authors' tensors of a section; of large ones the reference has the norms alone."""
    ours, theirs = plain(tensors), reference.section(section)
    packed = theirs.pop("enc.packed", None)
    if packed is not None:
        names, shapes = zip(*reference.facts["packed"][f"{section}.enc"], strict=True)
        pieces = packed.split([torch.Size(shape).numel() for shape in shapes])
        theirs |= {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    norms = reference.facts["norms_fp64"]
    norms = {name.removeprefix(f"{section}."): norm for name, norm in norms.items() if name.startswith(f"{section}.")}
    assert {translated(name) for name in (*theirs, *norms)} == ours.keys()
    for name, value in theirs.items():
        close(ours[translated(name)], value)
    for name, norm in norms.items():
        close(ours[translated(name)].double().norm().float(), torch.tensor(norm))


def test_logits_and_count(case):
    model, reference = case
    output = model(**reference.inputs())
    close(output.logits, reference.tensors["eval.logits"])
    close(output.loss, torch.tensor(reference.facts["eval_loss"]))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference.facts["trainable_numel"]


def test_gradients(case):
    model, reference = case
    model(**reference.inputs()).loss.backward()
    assert_equal([(name, p.grad) for name, p in model.named_parameters() if p.grad is not None], reference, "grad")


def test_ten_sgd_steps(case):
    model, reference = case
    inputs = reference.inputs()
    close(sgd_losses(model, inputs, reference.facts), reference.tensors["sgd.losses"])
    close(model(**inputs).logits, reference.tensors["sgd.logits"])
    trained = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
    assert_equal(trained, reference, "sgd.param")

"""Equal to the authors' own visual prompt tuning, on ViT and Swin, through the converter and the public API alone."""

import pytest
import torch
from peft import PeftModel

from peft_vprompt.convert import convert_checkpoint
from tests.support.golden_vpt import Reference, assert_equal_to_authors, close, load_recipe, sgd_losses


pytestmark = pytest.mark.core

#: Reference case -> what its tensors cannot tell. "swin4_shallow" is not among them: there, the authors' windows read
#: the prompts of other images of the batch; see test_swin.
CASES = {
    "vit_shallow": {},
    "vit_deep": {},
    "vit_deep_project12": {},
    "abl_deep_n2": {},
    "abl_add_shallow": {"location": "add"},
    "abl_add1_deep": {"location": "add-1"},
    "abl_prepend_pixel": {},
    "abl_pad_p2": {},
    "abl_below_p1": {},
    "abl_deep_imgprompt_pool": {"pooling": "imgprompt_pool"},
    "abl_shallow_prompt_pool": {"pooling": "prompt_pool"},
    "swin4_shallow_single": {},
    "swin4_deep": {},
}


@pytest.fixture(scope="module")
def recipe(shared):
    return load_recipe(shared / "golden" / "vpt")


@pytest.fixture(params=CASES)
def case(request, shared, recipe, tmp_path):
    """A model with the authors' prompts, and the reference."""
    reference = Reference.load(shared / "golden" / "vpt", recipe, request.param)
    checkpoint = {"model": reference.section("param")}
    convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=reference.build(), **CASES[request.param])
    return PeftModel.from_pretrained(reference.build(), str(tmp_path), is_trainable=True).eval(), reference


def test_logits_and_encoded_tokens(case):
    model, reference = case
    inputs = reference.inputs()
    output = model(**inputs)
    close(output.logits, reference.tensors["eval.logits"])
    close(output.loss, torch.tensor(reference.facts["eval_loss"]))
    tower = model.base_model.vision_encoder(inputs["pixel_values"])
    close(tower.last_hidden_state, reference.tensors["eval.encoded"])
    pooled = tower.last_hidden_state[:, 0] if tower.pooler_output is None else tower.pooler_output
    close(pooled, reference.tensors["eval.features"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference.facts["trainable_numel"]


def test_gradients(case):
    model, reference = case
    model(**reference.inputs()).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_to_authors(gradients, reference.section("grad"))


def test_ten_sgd_steps(case):
    model, reference = case
    inputs = reference.inputs()
    close(sgd_losses(model, inputs, reference.facts), reference.tensors["sgd.losses"])
    close(model(**inputs).logits, reference.tensors["sgd.logits"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert_equal_to_authors(trained, reference.section("sgd.param"))

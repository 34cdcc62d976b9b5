"""Equal to the authors' own visual prompt tuning on ViT, through the converter and the public API alone."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_golden_clip import TOLERANCE, load_recipe

from peft_vprompt.convert import LAYOUTS, convert_checkpoint


pytestmark = pytest.mark.core

#: What the tensors of a case cannot tell.
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
}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "vpt"


@pytest.fixture(scope="module")
def recipe(golden):
    recipe = load_recipe(golden)
    if (
        recipe.fingerprint(recipe.build_vit())
        != json.loads((golden / "fingerprint.json").read_text())["fingerprint"]["vit"]
    ):
        pytest.skip("this transformers release names ViT's parameters otherwise, so the reference weights differ")
    return recipe


@pytest.fixture(params=CASES)
def case(request, golden, recipe, tmp_path):
    reference = load_file(golden / f"{request.param}.safetensors")
    facts = json.loads((golden / f"{request.param}.json").read_text())
    convert_checkpoint(
        {"model": section(reference, "param")},
        "vpt",
        tmp_path,
        base_model=recipe.build_vit(),
        **CASES[request.param],
    )
    model = PeftModel.from_pretrained(recipe.build_vit(), str(tmp_path), is_trainable=True).eval()
    return model, reference, facts


def section(reference, name):
    """The tensors `<name>.<authors' key>` of a reference file, by the authors' key."""
    return {key.removeprefix(f"{name}."): value for key, value in reference.items() if key.startswith(f"{name}.")}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs.float(), **TOLERANCE)


def assert_equal_to_authors(ours, theirs):
    """Compare tensors of our parameters, by name, with the authors', by theirs; none may be left over."""
    named = LAYOUTS["vpt"](theirs).tensors
    assert len(ours) == len(named)
    for (place, name), tensor in named.items():
        middle = "classifier.modules_to_save.default" if place == "head" else "visual_prompt_learner.default"
        close(next(value for key, value in ours.items() if key.endswith(f"{middle}.{name}")), tensor)


def test_logits_and_encoded_tokens(case, recipe):
    model, reference, facts = case
    pixel_values, labels = recipe.make_inputs("vit")
    output = model(pixel_values=pixel_values, labels=labels)
    close(output.logits, reference["eval.logits"])
    close(output.loss, torch.tensor(facts["eval_loss"]))
    tower = model.get_base_model().vit(pixel_values)
    close(tower.last_hidden_state, reference["eval.encoded"])
    pooled = tower.last_hidden_state[:, 0] if tower.pooler_output is None else tower.pooler_output
    close(pooled, reference["eval.features"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["trainable_numel"]


def test_gradients(case, recipe):
    model, reference, _ = case
    pixel_values, labels = recipe.make_inputs("vit")
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_to_authors(gradients, section(reference, "grad"))


def test_ten_sgd_steps(case, recipe):
    model, reference, facts = case
    pixel_values, labels = recipe.make_inputs("vit")
    settings = {key: facts["sgd"][key] for key in ("lr", "momentum", "weight_decay")}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), **settings)
    losses = []
    for _ in range(facts["sgd"]["steps"]):
        loss = model(pixel_values=pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        final = model(pixel_values=pixel_values, labels=labels)
    losses.append(final.loss)  # the reference has the loss after the last step too
    close(torch.stack(losses), reference["sgd.losses"])
    close(final.logits, reference["sgd.logits"])
    assert_equal_to_authors(trained, section(section(reference, "sgd"), "param"))

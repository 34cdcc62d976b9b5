"""Equal to the authors' own visual prompt tuning on ViT, through the converter and the public API alone."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_golden_clip import TOLERANCE, load_recipe

from peft_vprompt.convert import convert_checkpoint


pytestmark = pytest.mark.core

CASES = ["vit_shallow", "vit_deep", "vit_deep_project12", "abl_deep_n2"]


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
    state = {name.removeprefix("param."): value for name, value in reference.items() if name.startswith("param.")}
    base = recipe.build_vit()
    convert_checkpoint({"model": state}, "vpt", tmp_path, base_model=base)
    model = PeftModel.from_pretrained(recipe.build_vit(), str(tmp_path), is_trainable=True).eval()
    return model, reference, facts


def test_logits_and_encoded_tokens(case, recipe):
    model, reference, facts = case
    pixel_values, labels = recipe.make_inputs("vit")
    output = model(pixel_values=pixel_values, labels=labels)
    torch.testing.assert_close(output.logits, reference["eval.logits"].float(), **TOLERANCE)
    torch.testing.assert_close(output.loss, torch.tensor(facts["eval_loss"]), **TOLERANCE)
    tokens = model.get_base_model().vit(pixel_values).last_hidden_state
    torch.testing.assert_close(tokens, reference["eval.encoded"].float(), **TOLERANCE)
    torch.testing.assert_close(tokens[:, 0], reference["eval.features"].float(), **TOLERANCE)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["trainable_numel"]


def test_gradients(case, recipe):
    model, reference, _ = case
    pixel_values, labels = recipe.make_inputs("vit")
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    tokens = next(grad for name, grad in gradients.items() if name.endswith("learner.default.tokens"))
    theirs = [reference["grad.enc.transformer.prompt_embeddings"]]
    if (deep := reference.get("grad.enc.transformer.deep_prompt_embeddings")) is not None:
        theirs.append(deep)
    torch.testing.assert_close(tokens, torch.cat(theirs).float(), **TOLERANCE)
    head = next(grad for name, grad in gradients.items() if name.endswith("classifier.modules_to_save.default.weight"))
    torch.testing.assert_close(head, reference["grad.head.last_layer.weight"].float(), **TOLERANCE)


def test_ten_sgd_steps(case, recipe):
    model, reference, facts = case
    pixel_values, labels = recipe.make_inputs("vit")
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
    losses.append(final.loss)  # the reference has the loss after the last step too
    torch.testing.assert_close(torch.stack(losses), reference["sgd.losses"].float(), **TOLERANCE)
    torch.testing.assert_close(final.logits, reference["sgd.logits"].float(), **TOLERANCE)

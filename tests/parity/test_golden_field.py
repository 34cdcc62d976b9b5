"""Equal to the authors' own code of later methods, through the converter and the public API alone.

The reference outputs are kept beside the checkout; every case of a method that is there is run.
"""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from peft_vprompt.convert import convert_checkpoint
from tests.support.golden_vpt import load_recipe


pytestmark = pytest.mark.core

LOGITS = {"atol": 5e-5, "rtol": 0}
LOSSES = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def recipe(shared):
    return load_recipe(shared / "golden" / "clip")


@pytest.fixture(scope="module")
def inputs(recipe):
    return recipe.make_inputs()


@pytest.fixture(params=["words_w8"])
def case(request, recipe, inputs, shared, tmp_path):
    folder = shared / "golden" / "field"
    reference = load_file(folder / f"kgcoop_{request.param}.safetensors")
    facts = json.loads((folder / f"kgcoop_{request.param}.json").read_text())
    never_used = {"meta_net.linear1.weight": torch.zeros(2, 24), "bias_vectors": torch.zeros(1, 24)}
    state = {"ctx": reference["param.prompt_learner.ctx"], "token_prefix": torch.zeros(5, 1, 32)} | never_used
    torch.save({"state_dict": state, "epoch": 5}, tmp_path / "model.pth.tar-5")
    convert_checkpoint(
        tmp_path / "model.pth.tar-5",
        "kgcoop",
        tmp_path / "adapter",
        base_model=recipe.build_clip(),
        class_names=inputs["base_classes"],
        tokenizer_name_or_path=str(shared / "clip-tokenizer"),
        text_consistency_weight=facts["hyperparameters"]["w"],
        frozen_template=facts["hyperparameters"]["frozen_template"],
    )
    model = PeftModel.from_pretrained(recipe.build_clip(), str(tmp_path / "adapter"), is_trainable=True)
    return model, reference, facts


def test_each_term_of_the_loss(case, inputs):
    model, reference, facts = case
    rows = facts["loss_and_grad_indices"]
    output = model.train()(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
    torch.testing.assert_close(output.logits, reference["logits"], **LOGITS)
    torch.testing.assert_close(output.loss, reference["loss"].reshape(()), **LOSSES)
    weight = facts["hyperparameters"]["w"]
    torch.testing.assert_close(output.aux_loss / weight, reference["reg"].reshape(()), **LOSSES)
    torch.testing.assert_close(output.loss - output.aux_loss, reference["loss_ce"].reshape(()), **LOSSES)
    output.loss.backward()
    (gradient,) = [p.grad for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(gradient[0], reference["grad.prompt_learner.ctx"], atol=4e-5, rtol=1e-4)


def test_ten_steps_and_new_classes(case, inputs):
    model, reference, facts = case
    (context,) = [p for p in model.train().parameters() if p.requires_grad]
    settings = {k: facts["optimizer"][k] for k in ("lr", "momentum", "weight_decay", "dampening", "nesterov")}
    optimizer = torch.optim.SGD([context], **settings)
    losses, terms = [], []
    for rows in facts["traj_batches"]:
        output = model(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.detach())
        terms.append(output.aux_losses["text_consistency"].detach() / facts["hyperparameters"]["w"])
    torch.testing.assert_close(torch.stack(losses), reference["traj_loss"], **LOSSES)
    torch.testing.assert_close(torch.stack(terms), reference["traj_reg"], **LOSSES)
    torch.testing.assert_close(context.detach()[0], reference["final.prompt_learner.ctx"], atol=1e-5, rtol=0)
    model.eval()
    with torch.no_grad():
        pixel_values = inputs["pixel_values"][facts["logits_indices"]]
        torch.testing.assert_close(model(pixel_values=pixel_values).logits, reference["final_logits"], **LOGITS)
        model.set_class_names(inputs["novel_classes"])
        torch.testing.assert_close(model(pixel_values=pixel_values).logits, reference["final_novel_logits"], **LOGITS)


def test_the_frozen_features(case):
    model, reference, _ = case
    frozen = model.class_name_classifier.frozen_text()
    torch.testing.assert_close(frozen, reference["frozen.text_features"], atol=5e-6, rtol=0)

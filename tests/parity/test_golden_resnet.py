"""ResNet CLIP equal to CoOp's code on the same weights: zero-shot, and CoOp's training with its norms at rest."""

import json
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from peft_vprompt import ContextOptConfig
from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.models import ResNetCLIPConfig, ResNetCLIPModel
from peft_vprompt.models.open_clip import from_state_dict
from tests.support.golden_vpt import load_recipe


pytestmark = pytest.mark.core

LOGITS = {"atol": 5e-5, "rtol": 0}
LOSSES = {"atol": 1e-4, "rtol": 0}
GRADIENTS = {"atol": 4e-5, "rtol": 1e-4}
VALUES = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def recipe_rn(shared, recipe):
    """The recipe of the ResNets, which imports that of the text tower by its plain name."""
    sys.modules.setdefault("recipe", recipe)
    return load_recipe(shared / "golden" / "field", "recipe_rn")


@pytest.fixture(scope="module")
def load(shared, recipe_rn):
    """Return a case's reference tensors, its facts, its images and labels, and a function that builds its model."""

    def load(name):
        folder = shared / "golden" / "field"
        facts = json.loads((folder / f"{name}.json").read_text())
        config = facts["hyperparameters"]["config"]

        def build():
            # The recipe's text tower has heads of 16 numbers, all published ones have 64.
            return from_state_dict(recipe_rn.state_dict_openai(config), text_head_size=16)

        return load_file(folder / f"{name}.safetensors"), facts, recipe_rn.make_inputs(config), build

    return load


def classes(facts, shared):
    return {"class_names": facts["base_classes"], "tokenizer_name_or_path": str(shared / "clip-tokenizer")}


@pytest.mark.parametrize("case", ["rn_zeroshot_w8_1111", "rn_zeroshot_w8_2121"])
@torch.no_grad()
def test_zero_shot(case, load, shared):
    reference, facts, inputs, build = load(case)
    images = inputs["pixel_values"][facts["logits_indices"]]
    base = build()
    features = base.get_image_features(images[:2], output_hidden_states=True)
    for stage, state in enumerate(features.hidden_states[1:], start=1):
        torch.testing.assert_close(state.mean((2, 3)), reference[f"feat.layer{stage}_mean"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(features.hidden_states[0][:1], reference["feat.stem_first_image"], atol=1e-5, rtol=1e-5)
    own = base.get_image_features(images).pooler_output
    torch.testing.assert_close(own, reference["feat.image_features"], atol=1e-5, rtol=0)
    model = get_peft_model(
        base, ContextOptConfig(**classes(facts, shared), template=facts["hyperparameters"]["template"])
    )
    with model.disable_adapter():
        torch.testing.assert_close(model(pixel_values=images).logits, reference["logits"], **LOGITS)
        model.set_class_names(facts["novel_classes"])
        torch.testing.assert_close(model(pixel_values=images).logits, reference["novel_logits"], **LOGITS)


@pytest.mark.parametrize("column", ["openai", "open_clip", "open_clip_custom_text"])
@torch.no_grad()
def test_the_three_layouts_are_one_model(column, shared, recipe_rn):
    facts = json.loads((shared / "golden" / "field" / "openclip_name_map.json").read_text())
    index = facts["columns"].index(column)
    state = recipe_rn.state_dict_openai(facts["config"])
    assert set(state) == {row[0] for row in facts["rows"]}
    model = from_state_dict({row[index]: state[row[0]] for row in facts["rows"]}, text_head_size=16)
    images = recipe_rn.make_inputs(facts["config"])["pixel_values"][:2]
    texts = torch.tensor([[49406, 320, 1125, 49407]])
    plain = from_state_dict(state, text_head_size=16)
    call = {"pixel_values": images, "input_ids": texts}
    assert torch.equal(model(**call).logits_per_image, plain(**call).logits_per_image)


def test_the_names_and_shapes_of_rn50(shared):
    facts = json.loads((shared / "golden" / "field" / "openclip_name_map_rn50.json").read_text())
    with torch.device("meta"):
        model = ResNetCLIPModel(ResNetCLIPConfig.of("RN50"))
    ours = {name: list(value.shape) for name, value in model.vision_model.state_dict().items()}
    visual = [row for row in facts["rows"] if row[0].startswith("visual.")]
    assert ours == {row[0].removeprefix("visual."): row[3] for row in visual}
    assert model.text_projection.weight.shape == (1024, 512)


class TestCoOp:
    @pytest.fixture
    def case(self, load, shared, tmp_path):
        reference, facts, inputs, build = load("coop_rn_w8_1111_m4_end")
        state = {"ctx": reference["param.prompt_learner.ctx"], "token_prefix": torch.zeros(5, 1, 32)}
        base = build()
        convert_checkpoint({"state_dict": state}, "coop", tmp_path, base_model=base, **classes(facts, shared))
        model = PeftModel.from_pretrained(build(), str(tmp_path), is_trainable=True)
        return model, reference, facts, inputs

    def test_logits_loss_and_gradient(self, case):
        model, reference, facts, inputs = case
        rows = facts["loss_and_grad_indices"]
        output = model.train()(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
        torch.testing.assert_close(output.logits, reference["logits"], **LOGITS)
        torch.testing.assert_close(output.loss.item(), facts["loss"], **LOSSES)
        output.loss.backward()
        (gradient,) = (p.grad for p in model.parameters() if p.requires_grad)
        torch.testing.assert_close(gradient[0], reference["grad.prompt_learner.ctx"], **GRADIENTS)

    def test_ten_steps_with_norms_at_rest(self, case):
        model, reference, facts, inputs = case
        (context,) = (p for p in model.parameters() if p.requires_grad)
        before = {name: value.clone() for name, value in model.named_buffers()}
        settings = {key: facts["optimizer"][key] for key in ("lr", "momentum", "weight_decay")}
        optimizer = torch.optim.SGD([context], **settings)
        losses = []
        for rows in facts["traj_batches"]:
            output = model.train()(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            losses.append(output.loss.item())
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(facts["traj_loss"]), **LOSSES)
        torch.testing.assert_close(context.detach()[0], reference["final.prompt_learner.ctx"], **VALUES)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        assert model.training and len(norms) == facts["bn_training_flags"]["n_batchnorm"]
        assert not any(norm.training for norm in norms)
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
        model.eval()
        with torch.no_grad():
            images = inputs["pixel_values"][facts["logits_indices"]]
            torch.testing.assert_close(model(pixel_values=images).logits, reference["final_logits"], **LOGITS)
            model.set_class_names(facts["novel_classes"])
            torch.testing.assert_close(model(pixel_values=images).logits, reference["final_novel_logits"], **LOGITS)

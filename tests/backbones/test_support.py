"""Every method on every class of base models: it works, or it is refused with the reason that the registry gives."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.models.auto import modeling_auto as auto

from peft_vprompt import VisualPromptConfig
from peft_vprompt.backbones.supported import DUAL_ENCODERS, ENCODERS, HEADS, OPAQUE, UNSUPPORTED, find_backbone
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.tuners.base.registry import BASELINES, PROMPT_METHODS, unsupported
from tests.support.backbones import (
    DUAL_MODELS,
    OPAQUE_ENCODERS,
    OPAQUE_MODELS,
    VISION_MODELS,
    find_class,
    frame,
    inputs,
    tiny,
)
from tests.support.models import CLASS_NAMES, CONFIGS, labels, often, tiny_tokenizer
from tests.support.training_cases import TRAINS_AS


MODELS = [*DUAL_MODELS, *OPAQUE_MODELS, *VISION_MODELS, *OPAQUE_ENCODERS]
#: Methods that learn nothing on a text tower, so that a model may lack one.
IMAGE_ONLY = {"visual_prompt"}
#: Methods that read a text at its end token, and the models whose text towers let every token read every other.
#: Methods that read a class token, or texts from left to right.
IN_ORDER = {"read_only_prompt", "mrpo", "mmrl"}
#: Methods that put something into the layers of the image tower, unless their configs say otherwise.
IN_LAYERS = {"visual_prompt", "maple", "promptsrc", "promptkd", "norm_tuning", "two_stage", "clip_lora", *IN_ORDER}
BIDIRECTIONAL = {"SiglipModel", "Siglip2Model", "ChineseCLIPModel", "AltCLIPModel", "VisionTextDualEncoderModel"}
BIDIRECTIONAL |= {"Aimv2Model", "Tipsv2Model"}


def refusal(method, model) -> str | None:
    """Why a method cannot work on a model, as a pattern; None where it must work."""
    if model not in DUAL_ENCODERS and method not in IMAGE_ONLY:
        return f"learns text prompts, and {model} has no text tower"
    if model in OPAQUE and method in IN_LAYERS:
        return f"does not work on {model}: its image encoder gives one vector for each image.*(Set|Use) "
    if model in BIDIRECTIONAL and method in IN_ORDER:
        return f"does not work on {model}: it"
    return None


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in {frame(name) for name in DUAL_ENCODERS}:
        tiny_tokenizer(kind).save_pretrained(folder / kind)
    return folder


def test_nothing_is_left_out():
    assert set(CONFIGS) == set(PROMPT_METHODS)
    # A class that this release of transformers lacks is the only one that may be missing.
    assert {name for name in (*DUAL_ENCODERS, *ENCODERS, *HEADS) if find_class(name)} == set(MODELS)
    assert not set(MODELS) & set(UNSUPPORTED)


CELLS = [(method, model) for method in PROMPT_METHODS for model in MODELS]
USUAL = [(method, model) for method, model in CELLS if method not in TRAINS_AS or model == "SiglipModel"]


@pytest.mark.parametrize(("method", "model"), often(CELLS, USUAL))
def test_cell(method, model, tokenizers, tmp_path):
    build = next(iter(CONFIGS[method].values()))
    options = {}
    if model in DUAL_ENCODERS or method not in IMAGE_ONLY:
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tokenizers / frame(model))}
    base, reason = tiny(model), refusal(method, model)
    if reason is not None:
        before = str(base)
        with pytest.raises(UnsupportedModelError, match=reason) as error:
            get_peft_model(base, build(**options))
        assert str(error.value).startswith(PROMPT_METHODS[method].title)
        assert str(error.value) == unsupported(method, model)  # known without a model, too
        assert str(base) == before
        return
    assert unsupported(method, model) is None
    prompted = get_peft_model(base, build(**options))
    if model in DUAL_ENCODERS or model in HEADS:
        prompted(**inputs(model), labels=labels()).loss.backward()
    else:
        prompted.encode_images(**inputs(model)).sum().backward()
    assert all(p.grad is not None for p in prompted.parameters() if p.requires_grad)
    prompted.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(model), str(tmp_path))
    with torch.no_grad():
        if model in ENCODERS:
            answers = [m.encode_images(**inputs(model)) for m in (prompted, loaded)]
        else:
            answers = [m(**inputs(model)).logits for m in (prompted, loaded)]
    if model == "Aimv2Model":  # the last digit of its attention pool depends on where weights lie in memory
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(*answers)


@pytest.mark.parametrize("model", [name for name in HEADS if name in VISION_MODELS])
@pytest.mark.parametrize("method", BASELINES)
def test_other_ways_to_transfer(method, model):
    base = tiny(model)
    before = str(base)
    if (method, model) == ("side_tuning", "Siglip2ForImageClassification"):
        with pytest.raises(UnsupportedModelError, match="takes images.*padded rows of patches"):
            get_peft_model(base, BASELINES[method].config_class())
        assert str(base) == before
        return
    prompted = get_peft_model(base, BASELINES[method].config_class())
    prompted(**inputs(model), labels=labels()).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in prompted.parameters())


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_models_that_are_refused_as_a_whole(name):
    look_alike = type(name, (nn.Module,), {})()  # looked up by name: timm need not be installed
    with pytest.raises(UnsupportedModelError) as error:
        get_peft_model(look_alike, VisualPromptConfig())
    assert str(error.value) == unsupported("visual_prompt", name)
    assert name in str(error.value) and "Use " in str(error.value)


@pytest.mark.skipif(not find_class("Tipsv2Model"), reason="the tables follow newer releases of transformers")
def test_all_of_transformers_is_supported_or_refused_by_name():
    folder = Path(transformers.__file__).parent / "models"
    found = set(auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values())
    for heads in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        found |= {heads} if isinstance(heads, str) else set(heads)
    existing = set()
    for file in folder.glob("*/modeling_*.py"):
        classes = re.split(r"^class (\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        existing |= set(classes[::2])
        pairs = zip(classes[::2], classes[1::2], strict=True)
        found |= {name for name, body in pairs if "def get_text_features" in body}
    with_two = {"DeiTForImageClassificationWithTeacher"}  # heads, which take no labels: a reader of `DeiTModel`
    assert found - {*DUAL_ENCODERS, *HEADS, *UNSUPPORTED} == with_two
    assert set(UNSUPPORTED) <= existing


def test_what_is_refused_may_stand_beside_what_is_not():
    refused = type("ResNetModel", (nn.Module,), {})
    both = nn.ModuleDict({"other": refused(), "clip": tiny("CLIPModel")})
    assert find_backbone(both).dual == "clip"
    assert find_backbone(nn.ModuleDict({"other": refused(), "vit": tiny("ViTModel")})).vision == "vit"
    around = refused()
    around.vit = tiny("ViTModel")
    for model in (around, nn.ModuleDict({"other": refused()})):
        with pytest.raises(UnsupportedModelError, match="Cannot put prompts into ResNetModel: it is a ConvNet"):
            find_backbone(model)

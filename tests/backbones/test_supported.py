"""Which view a model gets, whose class may extend a supported one, and whether it is a dual encoder."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import CLIPConfig, CLIPModel, SwinConfig, SwinModel, ViTForImageClassification, ViTMAEForPreTraining

from peft_vprompt import ContextOptConfig, VisualPromptConfig
from peft_vprompt.backbones.clip import CLIPTextView, CLIPVisionView
from peft_vprompt.backbones.dual_encoder import DualEncoderView, SiglipDualEncoderView
from peft_vprompt.backbones.supported import (
    class_name,
    dual_encoder_view,
    find_backbone,
    is_dual_encoder,
    view,
)
from peft_vprompt.backbones.vit import ViTView
from peft_vprompt.errors import UnsupportedModelError
from tests.support.models import CLASS_NAMES, images, labels, tiny_clip, tiny_vit


class MyCLIP(CLIPModel):
    """A user's subclass, with a method of its own."""

    def get_image_features(self, *args, **kwargs):
        self.asked = True
        return super().get_image_features(*args, **kwargs)


class MyViT(ViTForImageClassification):
    """A user's subclass of a classifier."""


class MyMAE(ViTMAEForPreTraining):
    """A user's subclass of a model that is refused."""


class MySwin(SwinModel):
    """A user's subclass of an encoder whose view makes the model's own kind of output."""


def extended(model: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """The same model as an instance of a subclass."""
    model.__class__ = cls
    return model


class Wrapper(nn.Module):
    """As PEFT wraps a module."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


def test_a_subclass_is_known_by_what_it_extends():
    clip = extended(tiny_clip(), MyCLIP)
    backbone = find_backbone(clip)
    assert (backbone.vision, backbone.text, backbone.dual) == ("vision_model", "text_model", "")
    assert class_name(clip) == "CLIPModel"
    vision_class = type("MyVision", (type(clip.vision_model),), {})
    clip.vision_model = extended(clip.vision_model, vision_class)
    assert type(view(clip.vision_model)) is CLIPVisionView and type(view(clip.text_model)) is CLIPTextView
    vit = extended(tiny_vit(), MyViT)
    assert find_backbone(vit).head == "classifier"
    assert type(view(Wrapper(extended(vit.vit, type("Mine", (type(vit.vit),), {}))))) is ViTView


def test_a_subclass_of_what_is_refused_is_refused_for_the_same_reason():
    refused = MyMAE.__new__(MyMAE)
    nn.Module.__init__(refused)
    with pytest.raises(UnsupportedModelError, match="ViTMAEForPreTraining: its decoder rebuilds patches"):
        find_backbone(refused)


def test_a_class_that_nothing_knows_has_its_own_name():
    assert class_name(nn.Linear(1, 1)) == "Linear"
    with pytest.raises(UnsupportedModelError, match="Cannot put prompts into Linear. Supported models: "):
        find_backbone(nn.Linear(1, 1))


def test_prompts_on_a_subclass_are_those_on_the_class_itself():
    logits = []
    for cls in (ViTForImageClassification, MyViT):
        torch.manual_seed(0)
        model = get_peft_model(extended(tiny_vit(), cls), VisualPromptConfig(num_virtual_tokens=2, deep=True)).eval()
        logits.append(model(pixel_values=images(), labels=labels()).logits)
        assert type(model.unload()) is cls
    assert torch.equal(*logits)


def test_a_subclass_of_swin_gives_the_models_own_kind_of_output():
    config = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=32, patch_size=8)
    model = get_peft_model(MySwin(config).eval(), VisualPromptConfig(num_virtual_tokens=2))
    assert type(model(pixel_values=images())).__name__ == "SwinModelOutput"


def test_class_names_on_a_subclass_of_clip(tokenizer_path):
    logits = []
    for cls in (CLIPModel, MyCLIP):
        torch.manual_seed(0)
        config = ContextOptConfig(num_virtual_tokens=2, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
        model = get_peft_model(extended(tiny_clip(), cls), config).eval()
        logits.append(model(pixel_values=images()).logits)
        model.get_base_model().get_image_features(pixel_values=images())
        base = model.unload()
        assert type(base) is cls and getattr(base, "asked", cls is CLIPModel)
    assert torch.equal(*logits)


# ---- dual encoders ----------------------------------------------------------------------------------------------


def test_one_question_for_models_and_configs():
    clip = tiny_clip()
    assert is_dual_encoder(clip) and is_dual_encoder(clip.config) and is_dual_encoder(extended(tiny_clip(), MyCLIP))
    assert is_dual_encoder(nn.ModuleDict({"wrapped": clip}))
    assert not is_dual_encoder(tiny_vit()) and not is_dual_encoder(tiny_vit().config)
    assert not is_dual_encoder(CLIPConfig(architectures=["CLIPForImageClassification"]))
    assert dual_encoder_view(tiny_vit()) is None
    assert type(dual_encoder_view(nn.ModuleDict({"wrapped": clip}))) is DualEncoderView


def test_logits_are_the_models_own():
    clip = tiny_clip()
    dual, pixel_values = dual_encoder_view(clip), images()
    input_ids = torch.tensor([[0, 5, 6, clip.config.text_config.eos_token_id]])
    with torch.no_grad():
        expected = clip(input_ids=input_ids, pixel_values=pixel_values)
        image = dual.project_image(clip.vision_model(pixel_values).pooler_output)
        text = dual.project_text(clip.text_model(input_ids).pooler_output)
        assert torch.equal(dual.scaled(image @ text.T), expected.logits_per_image)
    assert dual.bias is None and dual.logit_scale == clip.logit_scale.exp()
    assert (dual.dtype, dual.device) == (torch.float32, torch.device("cpu"))


def test_siglips_logits_have_its_bias():
    module = nn.Module()
    module.logit_scale = nn.Parameter(torch.tensor(2.0).log())
    module.logit_bias = nn.Parameter(torch.tensor(-3.0))
    dual = SiglipDualEncoderView(module)
    torch.testing.assert_close(dual.scaled(torch.tensor([[0.5, -1.0]])), torch.tensor([[-2.0, -5.0]]))
    feature = torch.tensor([[3.0, 4.0]])
    assert torch.equal(dual.project_image(feature), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(dual.project_text(feature), torch.tensor([[0.6, 0.8]]))

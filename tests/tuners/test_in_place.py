"""A bare encoder carries its prompts itself: what a user holds stays what it was, and everything around it works."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model
from peft import get_peft_model
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTModel,
)

from peft_vprompt import VisualPromptConfig
from peft_vprompt.errors import UnsupportedModelError
from tests.support.models import VISION, disturb, images, tiny_vit


def prompted(base=None):
    base = tiny_vit(bare=True) if base is None else base
    return disturb(get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2, deep=True)))


@torch.no_grad()
def answer(model) -> torch.Tensor:
    return model(images()).pooler_output


def test_the_users_object_is_the_prompted_one():
    base = tiny_vit(bare=True)
    plain, parts = answer(base), dict(base.named_modules())
    seen = []
    base.register_forward_hook(lambda module, args, output: seen.append(output))
    model = prompted(base)
    assert model.get_base_model() is base and isinstance(base, ViTModel) and type(base).__name__ == "ViTModel"
    assert not torch.allclose(answer(base), plain) and len(seen) == 1
    assert base.layers is parts["layers"] and base.get_submodule("layers.0") is parts["layers.0"]
    assert base.get_input_embeddings() is parts["embeddings.patch_embeddings"]
    twins = [copy.deepcopy(base)]
    base._forward_hooks.clear()
    twins.append(pickle.loads(pickle.dumps(base)))
    for twin in twins:
        assert torch.equal(answer(twin), answer(base))
    base.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in base.parameters())
    unloaded = model.unload().to(torch.float32)
    assert unloaded is base and type(base) is ViTModel and dict(base.named_modules()).keys() == parts.keys()
    assert torch.allclose(answer(base), plain)


def test_auto_model_gives_the_prompted_encoder(tmp_path):
    tiny_vit(bare=True).save_pretrained(tmp_path / "base")
    model = prompted(ViTModel.from_pretrained(tmp_path / "base").eval())
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path / "adapter").eval()), answer(model))


def test_hooks_that_place_a_model_stay_with_it():
    base = dispatch_model(tiny_vit(bare=True), {"": "cpu"}, force_hooks=True)
    hook = base._hf_hook
    model = prompted(base)
    assert base._hf_hook is hook and torch.equal(answer(base), answer(prompted()))
    assert model.unload()._hf_hook is hook
    assert torch.equal(answer(base), answer(tiny_vit(bare=True)))


def test_a_replaced_forward_is_refused():
    base = tiny_vit(bare=True)
    base.forward = base.forward
    with pytest.raises(UnsupportedModelError, match="forward is that of its class"):
        prompted(base)


def llava():
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 100,
    }
    vision = CLIPVisionConfig(**VISION)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text)))


@pytest.mark.parametrize("base", [llava, lambda: ViTForMaskedImageModeling(ViTConfig(**VISION, encoder_stride=8))])
def test_models_that_count_the_encoders_rows_are_refused(base):
    model = base()
    with pytest.raises(
        UnsupportedModelError, match=f"image encoder of {type(model).__name__}, which may count its rows"
    ):
        prompted(model)

"""timm's networks. timm imports torchvision, which is made for one build of torch: where that is not there, these are skipped.

docs/backbones.md says how they run beside a CPU build.
"""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F

from peft_vprompt import ContextOptConfig, MaPLeConfig, ReadOnlyPromptConfig, VisualPromptConfig
from peft_vprompt.backbones.supported import view
from peft_vprompt.backbones.timm_wrapper import TimmView, TimmViTView
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.models import OpaqueCLIPModel
from tests.support.backbones import shake, tiny
from tests.support.models import CLASS_NAMES, images, labels


pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))

from transformers import TimmWrapperConfig, TimmWrapperModel


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
#: What a plain ViT of timm's may have or lack.
VITS = {
    "class-token": {},
    "mean": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "pre_norm": True, "init_values": 0.1},
    "attention-pool": {"global_pool": "map", "class_token": False},
    "no-positions": {"pos_embed": "none"},
    "norm-after": {"block_fn": "ResPostBlock"},
}


def vit(**options):
    torch.manual_seed(0)
    if "block_fn" in options:
        import timm.models.vision_transformer as blocks

        options["block_fn"] = getattr(blocks, options["block_fn"])
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=SMALL | options)
    return shake(TimmWrapperModel(config).eval())


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return TimmWrapperModel(TimmWrapperConfig(architecture="resnet18")).eval()


def clip(network, size, dim):
    config = tiny("OpaqueCLIPModel").config
    config.projection_dim = dim
    return OpaqueCLIPModel(config, network, image_size=size)


@torch.no_grad()
def plain(model, prompts):
    """Insert prompts [j, n, d] by hooks on timm's own network."""
    network, count = model.timm_model, prompts.shape[1]
    first = network.num_prefix_tokens

    def put(hidden, new, skip):
        return torch.cat([hidden[:, :first], new.expand(len(hidden), -1, -1), hidden[:, first + skip :]], dim=1)

    handles = []
    for index, block in enumerate(network.blocks):
        if index < len(prompts):
            skip = count if index else 0
            new = prompts[index]
            handles.append(
                block.register_forward_pre_hook(lambda m, a, new=new, skip=skip: (put(a[0], new, skip), *a[1:]))
            )
    handles.append(network.norm.register_forward_pre_hook(lambda m, a: (put(a[0], a[0][:, :0], count),)))
    output = model(images())
    for handle in handles:
        handle.remove()
    return output


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", VITS)
def test_prompts_in_a_plain_vit(kind, deep, tmp_path):
    base = vit(**VITS[kind])
    with torch.no_grad():
        before = base(images())
    model = get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2, deep=deep)).eval()
    assert type(model.base_model.vision_encoder.view) is TimmViTView
    tokens = shake(next(p for p in model.parameters() if p.requires_grad))
    output = model(pixel_values=images())
    (output.pooler_output.square().sum() + output.last_hidden_state.square().sum()).backward()
    assert tokens.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit(**VITS[kind]), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).pooler_output, output.pooler_output)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(pixel_values=images()).pooler_output, before.pooler_output)
    expected = plain(model.unload(), tokens.detach())
    for name in ("pooler_output", "last_hidden_state"):
        torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", VITS)
def test_without_prompts_the_view_is_the_network(kind):
    base = vit(**VITS[kind])
    tower = view(base)
    with torch.no_grad():
        hidden = tower.embed(images())
        for layer in tower.layers:
            hidden = tower.run_layer(layer, hidden)
        torch.testing.assert_close(tower.finish(hidden).pooler_output, base(images()).pooler_output)


def test_pixels_and_what_a_plain_vit_refuses():
    for location in ("pad", "below", "prepend-pixel"):
        model = get_peft_model(vit(), VisualPromptConfig(num_virtual_tokens=2, location=location))
        model.encode_images(images()).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(UnsupportedModelError, match="read-only prompts: timm's attention cannot be told"):
        get_peft_model(vit(), VisualPromptConfig(num_virtual_tokens=2, read_only=True))
    model = get_peft_model(vit(), VisualPromptConfig(num_virtual_tokens=2))
    with pytest.raises(TypeError, match="does not take interpolate_pos_encoding"):
        model(pixel_values=images(), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="Expected images of 32x32 pixels"):
        model(pixel_values=torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="Attention weights of a prompted TimmWrapperModel"):
        model(pixel_values=images(), output_attentions=True)


def test_other_networks_are_opaque(resnet, tokenizer_path):
    assert type(view(resnet)) is TimmView
    names = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    with pytest.raises(UnsupportedModelError, match="VPT does not work on TimmWrapperModel.*location='pad'"):
        get_peft_model(resnet, VisualPromptConfig(num_virtual_tokens=2))
    model = get_peft_model(resnet, VisualPromptConfig(num_virtual_tokens=2, location="pad"))
    model.encode_images(torch.zeros(2, 3, 224, 224)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    resnet = model.unload()
    for network, size, dim in ((resnet, 32, 512), (vit(), 32, 24)):
        model = get_peft_model(clip(network, size, dim), ContextOptConfig(**names))
        model.train()(pixel_values=images(), labels=labels()).loss.backward()
        with torch.no_grad():
            plain_features = F.normalize(network.eval()(images()).pooler_output, dim=-1)
        torch.testing.assert_close(model.eval().encode_images(images()), plain_features)
        for config_class in (MaPLeConfig, ReadOnlyPromptConfig):
            with pytest.raises(UnsupportedModelError, match="does not work on OpaqueCLIPModel"):
                get_peft_model(clip(network, size, dim), config_class(**names))

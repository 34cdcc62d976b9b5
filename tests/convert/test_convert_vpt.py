"""Checkpoints of VPT's authors: every location on ViT, and Swin, by the names their code gives the tensors."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_vprompt import VisualPromptConfig
from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.errors import AdapterMismatchError
from tests.support.models import images, tiny_vit
from tests.support.swin import learned, swin


VIT, SWIN = "enc.transformer.", "enc."

#: Options, and how our tensors are called in the authors' checkpoint of a ViT.
ON_VIT = [
    ({"num_virtual_tokens": 3}, {"tokens": "prompt_embeddings"}),
    ({"location": "add"}, {"tokens": "prompt_embeddings"}),
    ({"location": "add-1", "pooling": "img_pool"}, {"tokens": "prompt_embeddings"}),
    ({"location": "prepend-pixel-gaussian", "num_virtual_tokens": 2}, {"pixels": "prompt_embeddings"}),
    ({"location": "pad", "num_virtual_tokens": 3}, "border"),
    ({"location": "below", "num_virtual_tokens": 2}, "embeddings.patch_embeddings"),
]
ON_SWIN = [
    ({"num_virtual_tokens": 3}, {"tokens_0": "prompt_embeddings"}),
    ({"location": "add-1"}, {"tokens": "prompt_embeddings"}),
    ({"location": "pad", "num_virtual_tokens": 4}, "border"),
    ({"location": "below", "num_virtual_tokens": 1}, "patch_embed.proj"),
]


def authors_names(kind):
    """Our names -> theirs, spelled out for the locations that have several tensors."""
    if kind == "border":
        return {"left_right": "prompt_embeddings_lr", "top_bottom": "prompt_embeddings_tb"}
    if isinstance(kind, str):
        return {"pixels": "prompt_embeddings", "patch_weight": f"{kind}.weight", "patch_bias": f"{kind}.bias"}
    return kind


def checkpoint_of(model, prefix, names):
    """What the authors' trainer would have saved: the whole model, prompts and head among it."""
    head = model.get_base_model().classifier.modules_to_save["default"]
    tensors = {prefix + theirs: learned(model)[ours].detach().clone() for ours, theirs in names.items()}
    tensors |= {f"head.last_layer.{name}": value.detach().clone() for name, value in head.named_parameters()}
    whole = {f"{prefix}encoder.norm.weight": torch.ones(3)}
    if prefix == VIT:
        whole[f"{VIT}embeddings.patch_embeddings.weight"] = torch.zeros(24, 3, 8, 8)
    return {"model": whole | tensors}


def disturbed(base, options):
    model = get_peft_model(base, VisualPromptConfig(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model


@pytest.mark.parametrize("base_is_given", [True, False])
@pytest.mark.parametrize(
    ("build", "prefix", "options", "names"),
    [(tiny_vit, VIT, *case) for case in ON_VIT] + [(swin, SWIN, *case) for case in ON_SWIN],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_every_location(build, prefix, options, names, base_is_given, tmp_path):
    model = disturbed(build(), options)
    told = {key: value for key, value in options.items() if key != "num_virtual_tokens"}
    checkpoint = checkpoint_of(model, prefix, authors_names(names))
    config = convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=build() if base_is_given else None, **told)
    assert config.location == options.get("location", "prepend")
    loaded = PeftModel.from_pretrained(build(), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)


def test_deep_prompts_of_the_stages_of_swin(tmp_path):
    model = disturbed(swin(depths=[2, 3]), {"num_virtual_tokens": 2, "deep": True})
    tensors = learned(model)
    checkpoint = {
        "enc.prompt_embeddings": tensors["tokens_0"][:1],
        "enc.deep_prompt_embeddings_0": tensors["tokens_0"][1:],
        "enc.deep_prompt_embeddings_1": tensors["tokens_1"],
        "head.last_layer.weight": model.get_base_model().classifier.weight,
        "head.last_layer.bias": model.get_base_model().classifier.bias,
    }
    config = convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=swin(depths=[2, 3]))
    assert (config.deep, config.num_deep_layers, config.num_virtual_tokens) == (True, 5, 2)
    loaded = PeftModel.from_pretrained(swin(depths=[2, 3]), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)
    del checkpoint["enc.deep_prompt_embeddings_0"]
    with pytest.raises(AdapterMismatchError, match="count up from 0 without gaps"):
        convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=swin(depths=[2, 3]))


def test_new_channels_alone_take_the_others_from_the_base_model(tmp_path):
    extra = torch.randn(24, 2, 8, 8)
    checkpoint = {
        f"{VIT}prompt_embeddings": torch.randn(1, 2, 32, 32),
        f"{VIT}embeddings.patch_embeddings.weight.extra_channels": extra,
    }
    base = tiny_vit()
    convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=base)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    own = base.vit.embeddings.patch_embeddings.projection
    name = "base_model.model.vit.visual_prompt_learner.patch_"
    assert torch.equal(weights[f"{name}weight"], torch.cat([own.weight, extra], dim=1))
    assert torch.equal(weights[f"{name}bias"], own.bias)
    with pytest.raises(AdapterMismatchError, match="only what was added to the patch embedding. Pass base_model"):
        convert_checkpoint(checkpoint, "vpt", tmp_path)


TOKENS = {f"{VIT}prompt_embeddings": torch.zeros(1, 3, 24)}
BORDER = {
    f"{VIT}prompt_embeddings_tb": torch.zeros(1, 3, 4, 36),
    f"{VIT}prompt_embeddings_lr": torch.zeros(1, 3, 32, 4),
}
STRIP = {f"{VIT}prompt_embeddings": torch.zeros(1, 3, 8, 16)}
STAGES = {"enc.prompt_embeddings": torch.zeros(1, 3, 8)}
MISFITS = [
    (TOKENS, {"location": "pad"}, r"location in \['prepend', 'add', 'add-1'\].*Received: location='pad'"),
    (STRIP, {"location": "add"}, r"location in \['prepend-pixel'.*Received: location='add'"),
    (BORDER, {"location": "prepend"}, "tensors say location='pad'.*Received: location='prepend'"),
    (BORDER | {f"{VIT}prompt_embeddings_lr": torch.zeros(1, 3, 30, 4)}, {}, "left_right has shape"),
    ({name: value for name, value in BORDER.items() if name.endswith("tb")}, {}, "prompt_embeddings_lr'"),
    (TOKENS, {"location": "add"}, r"tokens has shape \(1, 3, 24\) instead of \(1, 17, 24\)"),
    (STAGES, {}, "missing.*tokens.*unexpected.*tokens_0"),
    (TOKENS | {"head.last_layer.weight": torch.zeros(9, 24)}, {}, r"classifier.weight has shape \(9, 24\)"),
    ({"ctx": torch.zeros(4, 24)}, {}, "Expected 'enc.transformer.prompt_embeddings'.*Received one with ctx"),
]


@pytest.mark.parametrize(("checkpoint", "config", "message"), MISFITS)
def test_what_does_not_fit_is_named(checkpoint, config, message, tmp_path):
    with pytest.raises(AdapterMismatchError, match=message):
        convert_checkpoint(checkpoint, "vpt", tmp_path / "adapter", base_model=tiny_vit(), **config)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("base_is_given", [True, False])
def test_deep_prompts_that_shared_training_never_used_are_left_out(base_is_given, tmp_path):
    model = disturbed(tiny_vit(), {"num_virtual_tokens": 3, "deep": True, "deep_shared": True})
    checkpoint = checkpoint_of(model, VIT, {"tokens": "prompt_embeddings"})
    layers = model.get_base_model().config.num_hidden_layers
    checkpoint["model"][f"{VIT}deep_prompt_embeddings"] = torch.randn(layers - 1, 3, 24)
    base = tiny_vit() if base_is_given else None
    with pytest.warns(UserWarning, match=f"prompts of {layers - 1} deeper layers.*are left out"):
        convert_checkpoint(checkpoint, "vpt", tmp_path, base_model=base, deep_shared=True)
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)


def test_a_head_with_hidden_layers_is_refused(tmp_path):
    hidden = {"head.projection.0.weight": torch.zeros(24, 24), "head.last_layer.weight": torch.zeros(5, 24)}
    with pytest.raises(AdapterMismatchError, match="one with hidden layers, 'head.projection'"):
        convert_checkpoint(TOKENS | hidden, "vpt", tmp_path / "adapter", base_model=tiny_vit())

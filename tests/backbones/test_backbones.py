"""Every supported image encoder: prompts against a plain computation, and what each model has of its own."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F

from peft_vprompt import AutoPeftModelForImageClassification, VisualPromptConfig
from peft_vprompt.backbones.supported import ENCODER_VIEWS, HEADS, view
from peft_vprompt.backbones.vit import IJepaView
from peft_vprompt.core.attention import ReadAll
from peft_vprompt.core.layer_loop import OutputRows
from peft_vprompt.errors import UnsupportedModelError
from tests.support.backbones import FLAT_MODELS, VISION_MODELS, inputs, shake, tiny
from tests.support.models import CONFIGS, labels, often
from tests.support.watching import InputsOf


CLIP_LIKE = ("CLIP", "MetaClip2", "ChineseCLIP", "AltCLIP", "Siglip", "MLCD", "Aimv2")  # prompts follow the patches
SHALLOW, DEEP = {"num_virtual_tokens": 3}, {"num_virtual_tokens": 2, "deep": True}


def tokens(model):
    """The prompts of the default adapter, [j, n, d]."""
    return next(p for name, p in model.named_parameters() if "prompt_learner.default.tokens" in name)


def encoder_of(model):
    """The module with the embeddings."""
    return next(m for m in model.modules() if type(m).__name__ in ENCODER_VIEWS and hasattr(m, "embeddings"))


def numbers(output):
    """What a model is called for: logits, projected features, or all tokens and the pooled one."""
    names = ("logits", "image_embeds", "pooler_output", "summary", "features", "last_hidden_state")
    return [output[name] for name in names if output.get(name) is not None]


# ---- the plain way -------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain(name, model, prompts, **call):
    """Insert prompts [j, n, d] by hooks on Hugging Face's own model: before the first layer, replaced later."""
    encoder, count, handles = encoder_of(model), prompts.shape[1], []
    layers = next(m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList))
    at_end = name.startswith(CLIP_LIKE)

    def put(hidden, new, skip):
        new, start = new.expand(len(hidden), -1, -1), hidden.shape[1] - skip if at_end else 1
        return torch.cat([hidden[:, :start], new, hidden[:, start + skip :]], dim=1)

    def insert(module, args, output):
        first = put(output[0] if isinstance(output, tuple) else output, prompts[0], 0)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    def leave(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = put(hidden, hidden[:, :0], count)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def widen(module, args, bias):
        rows = bias.shape[-1] + count
        place = torch.tensor([0, *range(1 + count, rows)])
        wide = bias.new_zeros(*bias.shape[:2], rows, rows)
        wide[:, :, place[:, None], place] = bias
        return wide

    def no_rotation(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        rows = (0, 0, 0, count)
        kwargs["position_embeddings"] = [F.pad(cos, rows, value=1.0), F.pad(sin, rows)]
        return args, kwargs

    if name.startswith("MLCD"):
        handles.append(encoder.encoder.register_forward_pre_hook(no_rotation, with_kwargs=True))
    handles.append(encoder.embeddings.register_forward_hook(insert))
    for layer, new in list(zip(layers, prompts, strict=False))[1:]:
        handles.append(layer.register_forward_pre_hook(lambda m, a, new=new: (put(a[0], new, count), *a[1:])))
    if not name.startswith("ViTF") and name != "ViTModel":
        handles.append(layers[-1].register_forward_hook(leave))
    for module in model.modules():
        if type(module).__name__.endswith("RelativePositionBias"):
            handles.append(module.register_forward_hook(widen))
    output = numbers(model(**call))
    for handle in handles:
        handle.remove()
    return output


def plain_calls(name):
    """The calls a plain model answers as a prompted one does: SigLIP 2's images one by one, without padding."""
    call = inputs(name)
    if name == "ViTMAEModel":
        return [call | {"noise": torch.arange(16.0).expand(4, -1)}]
    if not name.startswith("Siglip2"):
        return [call]
    lengths = call["pixel_attention_mask"].sum(1)
    return [
        {key: v[k : k + 1] if key == "spatial_shapes" else v[k : k + 1, :n] for key, v in call.items()}
        for k, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("options", [SHALLOW, DEEP], ids=["shallow", "deep"])
@pytest.mark.parametrize("name", FLAT_MODELS)
def test_prompts_equal_the_plain_computation(name, options):
    base = tiny(name, **({"mask_ratio": 0.0} if name == "ViTMAEModel" else {}))
    model = get_peft_model(base, VisualPromptConfig(**options)).eval()
    shake(tokens(model))
    with torch.no_grad():
        mine = numbers(model(**inputs(name)))
    prompts, base = tokens(model).detach(), model.unload()
    for k, call in enumerate(plain_calls(name)):
        for my, expected in zip(mine, plain(name, base, prompts, **call), strict=True):
            my = my[k : k + 1, : expected.shape[1]] if len(expected) == 1 else my
            torch.testing.assert_close(my, expected, atol=1e-5, rtol=1e-5)


# ---- what every encoder must do ----------------------------------------------------------------------------------


@torch.no_grad()
def answer(name, model):
    """What the model gives, with MAE's random masking in a known state."""
    torch.manual_seed(0)
    return numbers(model(**inputs(name)))


def loss_of(name, model):
    """A number to learn from."""
    if name in HEADS:
        return model(**inputs(name), labels=labels()).loss
    return numbers(model(**inputs(name)))[-1].square().mean()


@pytest.mark.parametrize("name", VISION_MODELS)
def test_life_of_an_adapter(name, tmp_path):
    base = tiny(name)
    base.save_pretrained(tmp_path / "base")
    plain = answer(name, base)
    model = get_peft_model(type(base).from_pretrained(tmp_path / "base"), VisualPromptConfig(**DEEP)).eval()
    shake(tokens(model))
    loss_of(name, model).backward()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n.rpartition(".default")[0].rpartition(".")[2] for n in learning} <= {
        "visual_prompt_learner",
        "modules_to_save",
    }
    assert len(learning) == (2 if name.startswith("Swin") else 1) + (2 if name in HEADS else 0)

    model.save_pretrained(tmp_path / "adapter")
    mine = answer(name, model)
    assert mine[0].shape != plain[0].shape or not torch.allclose(mine[0], plain[0], atol=1e-4)
    for loaded in (
        PeftModel.from_pretrained(tiny(name), str(tmp_path / "adapter")),
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter")),
    ):
        assert all(map(torch.equal, answer(name, loaded), mine))
    with model.disable_adapter():
        assert all(map(torch.equal, answer(name, model), plain))
    unloaded = model.unload()
    assert type(unloaded) is type(base) and str(unloaded) == str(base)
    assert all(map(torch.equal, answer(name, unloaded), plain))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())


@pytest.mark.parametrize("name", FLAT_MODELS)
def test_hidden_states_and_attention_weights(name):
    base = tiny(name, attn_implementation="eager")
    flags = {"output_hidden_states": True, "output_attentions": True}
    plain = base(**inputs(name), **flags)
    output = get_peft_model(base, VisualPromptConfig(**SHALLOW)).eval()(**inputs(name), **flags)
    assert len(output.hidden_states) == len(plain.hidden_states) == 3
    assert len(output.attentions) == len(plain.attentions) == 2
    rows = (17 if "MAE" in name else plain.hidden_states[0].shape[1]) + 3
    assert all(states.shape == (4, rows, 24) for states in output.hidden_states)
    assert all(weights.shape == (4, 2, rows, rows) for weights in output.attentions)


@pytest.mark.parametrize("name", [name for name in FLAT_MODELS if not name.startswith("Siglip2")])
def test_images_of_another_size(name):
    base = tiny(name)
    model = get_peft_model(base, VisualPromptConfig(**DEEP)).eval()
    large = torch.randn(2, 3, 48, 40)
    tower = view(encoder_of(model))
    if tower.fixed_size:
        remedy = "pass interpolate_pos_encoding=True" if tower.resizes_positions else "image processor.$"
        with pytest.raises(ValueError, match=rf"32x32 pixels.*\[2, 3, 48, 40\].*{remedy}"):
            model(pixel_values=large)
        if not tower.resizes_positions:
            with pytest.raises(TypeError, match="does not take interpolate_pos_encoding"):
                model(pixel_values=large, interpolate_pos_encoding=True)
            return
        options = {"interpolate_pos_encoding": True}
    else:
        options = {}
    model.base_model.vision_encoder.requires_grad_(False)
    mine = numbers(model(pixel_values=large, **options))
    prompts, base = tokens(model).detach(), model.unload()
    if name == "ViTMAEModel":
        base.config.mask_ratio = 0.0
        options["noise"] = torch.arange(30.0).expand(2, -1)
    for my, expected in zip(mine, plain(name, base, prompts, pixel_values=large, **options), strict=True):
        torch.testing.assert_close(my, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VISION_MODELS)
def test_gradient_checkpointing_changes_nothing(name):
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny(name), VisualPromptConfig(**DEEP)).train()
        torch.manual_seed(0)  # of dropout and of DINOv3's random rotations
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        shake(tokens(model))
        loss_of(name, model).backward()
        gradients.append(tokens(model).grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


KINDS = [(name, variant) for name in VISION_MODELS for variant in CONFIGS["visual_prompt"]]
USUAL = [
    (name, variant) for name, variant in KINDS if name.startswith(("ViT", "Swin")) or variant in ("deep", "pixels")
]


@pytest.mark.parametrize(("name", "variant"), often(KINDS, USUAL))
def test_every_kind_of_visual_prompt_learns_or_is_refused(name, variant):
    # These models have two layers, where those of CONFIGS have three.
    options = {"num_deep_layers": 1} if variant == "two-layers" else {}
    config = dataclasses.replace(CONFIGS["visual_prompt"][variant](), **options)
    base = tiny(name)
    try:
        model = get_peft_model(base, config).train()
    except UnsupportedModelError as error:
        assert type(encoder_of(base)).__name__ in str(error) and "Use " in str(error)
        of_one_width = ("shared", "projected") if name.startswith("Swin") else ()
        assert variant in ("added", "pixels", "border", "channels", "read-only", *of_one_width)
        assert str(base) == str(tiny(name))
        return
    loss = model(**inputs(name), labels=labels()).loss if name in HEADS else model.encode_images(**inputs(name)).sum()
    loss.backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert learning and all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    assert any(p.grad.abs().sum() > 0 for p in learning)


@pytest.mark.parametrize("name", [name for name in FLAT_MODELS if name in HEADS and not name.startswith("Siglip2")])
def test_heads_find_a_feature_of_another_pooling(name):
    model = get_peft_model(tiny(name), VisualPromptConfig(**SHALLOW, pooling="img_pool")).eval()
    tower = model.base_model.vision_encoder.view
    with torch.no_grad():
        output = model(**inputs(name), output_hidden_states=True)
        first = 1 if name.startswith(("CLIP", "MetaClip2")) else tower.num_prefix_tokens
        last = tower.final_norm(output.hidden_states[-1])
        patches = last[:, first : first + 16] if name.startswith(CLIP_LIKE) else last[:, first + 3 :]
        feature = patches.mean(dim=1)
        if name.startswith("Dinov2"):
            feature = torch.cat([feature, feature], dim=-1)
        if name.startswith(("Beit", "Data2Vec")):
            feature = tower.pooled_output(feature)
        head = model.get_base_model().classifier
        torch.testing.assert_close(output.logits, head(feature), atol=1e-5, rtol=1e-5)


# ---- what is not computed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAT_MODELS)
def test_rows_alone_get_what_they_get_in_a_whole_layer(name):
    tower = view(encoder_of(tiny(name)))
    layer, hidden = list(tower.layers)[-1], torch.randn(2, 9, tower.width, requires_grad=True)
    if tower.layer_parts is None:
        pytest.skip("its layers run whole, here or in this release of transformers")
    with torch.no_grad():
        whole = tower.run_layer(layer, hidden)
    rows = OutputRows(slice(1, 4), ReadAll)(tower, layer, hidden)
    torch.testing.assert_close(rows, whole[:, 1:4], atol=1e-6, rtol=1e-5)
    rows.sum().backward()
    assert hidden.grad.abs().sum(-1).gt(0).all()  # of all rows, keys and values are read


@pytest.mark.parametrize("name", [name for name in FLAT_MODELS if name in HEADS])
def test_a_head_has_the_last_layer_compute_no_other_rows(name):
    model = get_peft_model(tiny(name), VisualPromptConfig(**DEEP)).train()
    tower, rows, results = model.base_model.vision_encoder.view, [], []
    norms = [module for module in list(tower.layers)[-1].modules() if isinstance(module, torch.nn.LayerNorm)]
    for whole in (False, True):  # who asks for hidden states gets all of them
        model.zero_grad()
        with InputsOf(norms[-1].weight) as norm:
            output = model(**inputs(name), labels=labels(), output_hidden_states=whole)
        rows += [hidden.shape[1] for hidden in norm.seen]
        output.loss.backward()
        results.append((output.logits.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert (rows[0] < rows[1]) == (tower.head_rows is not None)
    if tower.head_rows is not None:
        assert rows[0] == tower.head_rows.stop


# ---- what single models have of their own --------------------------------------------------------------------------


def test_mae_encodes_all_patches_and_takes_no_noise():
    model = get_peft_model(tiny("ViTMAEModel"), VisualPromptConfig(**SHALLOW)).eval()
    first, second = (model(**inputs("ViTMAEModel")).last_hidden_state for _ in range(2))
    assert first.shape == (4, 17, 24) and torch.equal(first, second)
    with pytest.raises(ValueError, match=r"Expected no noise.*\[4, 16\].*disable_adapter"):
        model(**inputs("ViTMAEModel"), noise=torch.rand(4, 16))
    assert model.encode_images(**inputs("ViTMAEModel")).shape == (4, 24)
    with model.disable_adapter():
        assert model(**inputs("ViTMAEModel")).last_hidden_state.shape == (4, 5, 24)
        assert model.encode_images(**inputs("ViTMAEModel")).shape == (4, 24)


def test_siglip2_asks_for_the_shapes_of_images():
    model = get_peft_model(tiny("Siglip2VisionModel"), VisualPromptConfig(**SHALLOW))
    with pytest.raises(ValueError, match="spatial_shapes and pixel_attention_mask.*Siglip2ImageProcessor"):
        model(pixel_values=inputs("Siglip2VisionModel")["pixel_values"])


def test_aimv2_of_native_resolution_takes_any_size():
    base = tiny("Aimv2VisionModel", is_native=True)
    large = torch.randn(2, 3, 48, 40)
    model = get_peft_model(base, VisualPromptConfig(**DEEP)).eval()
    mine = numbers(model(pixel_values=large))
    prompts, base = tokens(model).detach(), model.unload()
    torch.testing.assert_close(mine, plain("Aimv2VisionModel", base, prompts, pixel_values=large))
    with pytest.raises(
        UnsupportedModelError, match="are pixels, and Aimv2VisionModel does not embed.*location='prepend'"
    ):
        get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2, location="pad"))


def test_deit_with_two_heads_reads_both_special_tokens():
    model = tiny("DeiTForImageClassificationWithTeacher")
    encoder = model.deit
    prompted = get_peft_model(model, VisualPromptConfig(**SHALLOW)).eval()
    with torch.no_grad():
        tokens = prompted.get_base_model().deit(**inputs("DeiTModel")).last_hidden_state
        output = prompted(**inputs("DeiTModel"))
    assert torch.equal(output.distillation_logits, model.distillation_classifier(tokens[:, 1]))
    assert tokens.shape[1] == 2 + encoder.embeddings.patch_embeddings.num_patches


@pytest.mark.parametrize("name", [name for name in HEADS if name in VISION_MODELS])
def test_heads_normalise_their_loss_by_the_batch_or_say_that_they_do_not(name):
    model = get_peft_model(tiny(name), VisualPromptConfig(**SHALLOW)).eval()
    mean = model(**inputs(name), labels=labels()).loss
    half = model(**inputs(name), labels=labels(), num_items_in_batch=torch.tensor(8)).loss
    if getattr(model.get_base_model(), "accepts_loss_kwargs", True):
        torch.testing.assert_close(half, mean / 2)
    else:
        torch.testing.assert_close(half, mean)


def test_the_documented_example_of_a_new_tower(monkeypatch):
    page = (Path(__file__).parents[2] / "docs/backbones.md").read_text()
    monkeypatch.setitem(ENCODER_VIEWS, "IJepaModel", None)
    monkeypatch.setitem(HEADS, "IJepaForImageClassification", None)
    code = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class IJepaView" in code)
    assert inspect.getsource(IJepaView) in code
    exec(code, {})
    model = get_peft_model(tiny("IJepaForImageClassification"), VisualPromptConfig(**DEEP)).eval()
    model(**inputs("IJepa"), labels=labels()).loss.backward()
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters()) == 3
    assert model.get_base_model().ijepa(**inputs("IJepa")).last_hidden_state.shape == (4, 16, 24)

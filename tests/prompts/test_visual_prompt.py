"""VPT in all its variants against a plain implementation, and what each location is made of."""

import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from scipy import stats
from transformers import ViTConfig, ViTForImageClassification

from peft_vprompt import VisualPromptConfig
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.prompts.visual import vpt_bound
from peft_vprompt.tuners.vpt.config import PIXEL_LOCATIONS, TOKEN_LOCATIONS
from tests.support.backbones import tiny
from tests.support.models import NUM_LABELS, VISION, images, labels, often, tiny_clip, tiny_vit
from tests.support.plain import masked_read_only
from tests.support.plain_visual import plain_read_only, plain_vit
from tests.support.watching import InputsOf


CLOSE = {"rtol": 0, "atol": 2e-5}

TOKENS = [
    {"num_virtual_tokens": 1},
    {"num_virtual_tokens": 6, "deep": True},
    {"num_virtual_tokens": 3, "deep": True, "num_deep_layers": 2},
    {"num_virtual_tokens": 3, "deep": True, "first_layer": 1},
    {"num_virtual_tokens": 2, "deep": True, "num_deep_layers": 1, "first_layer": 2},
    {"num_virtual_tokens": 2, "first_layer": 1},
    {"num_virtual_tokens": 2, "deep": True, "deep_shared": True},
    {"num_virtual_tokens": 3, "deep": True, "projection_dim": 5},
    {"location": "add"},
    {"location": "add", "deep": True, "num_deep_layers": 2},
    {"location": "add", "deep": True, "first_layer": 1, "projection_dim": 5},
    {"location": "add-1", "projection_dim": 4},
    {"location": "add-1", "deep": True},
]
PIXELS = [
    {"location": "prepend-pixel", "num_virtual_tokens": 1},
    {"location": "prepend-pixel-gaussian", "num_virtual_tokens": 3},
    {"location": "prepend-pixel-imgnettransform", "num_virtual_tokens": 2},
    {"location": "pad", "num_virtual_tokens": 1},
    {"location": "pad", "num_virtual_tokens": 4},
    {"location": "pad", "num_virtual_tokens": 13},
    {"location": "below", "num_virtual_tokens": 1},
    {"location": "below", "num_virtual_tokens": 4},
]
NO_ROWS = ("add", "add-1", "pad", "below")
CASES = [
    options | {"pooling": pooling}
    for options in TOKENS + PIXELS
    for pooling in ("original", "imgprompt_pool", "img_pool", "prompt_pool")
    if not (pooling == "prompt_pool" and options.get("location") in NO_ROWS)
]


def named(options):
    return "-".join(str(value) for value in options.values())


def shaken(model):
    """Every parameter moved, so that biases and the new channels' weights are not what they start as."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tall_vit():
    """A ViT for images that are higher than wide."""
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VISION | {"image_size": (40, 24)}, num_labels=NUM_LABELS))


def learned(model):
    """The adapter's tensors by their own names."""
    middle = "visual_prompt_learner.default."
    return {name.split(middle)[1]: p for name, p in model.named_parameters() if middle in name}


@pytest.mark.parametrize("build", often([tiny_vit, tall_vit], [tall_vit]))
@pytest.mark.parametrize("options", CASES, ids=named)
def test_equals_the_plain_implementation(options, build):
    base = shaken(build().eval())
    config = VisualPromptConfig(**options)
    model = get_peft_model(base, config).eval()
    tensors, vision = learned(model), model.base_model.vision_encoder
    pixel_values = torch.randn(2, 3, *vision.view.image_size, generator=torch.Generator().manual_seed(2))
    logits, tokens = model(pixel_values=pixel_values).logits, vision(pixel_values).last_hidden_state
    head = base.classifier.modules_to_save["default"]
    base.vit = vision.base_layer
    encoded, feature = plain_vit(base, pixel_values, config, tensors)
    torch.testing.assert_close(tokens, encoded, **CLOSE)
    torch.testing.assert_close(logits, head(feature), **CLOSE)
    gradients = torch.autograd.grad(logits.square().sum(), tensors.values())
    expected = torch.autograd.grad(head(feature).square().sum(), tensors.values())
    for name, ours, theirs in zip(tensors, gradients, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


READ_ONLY = [
    {"num_virtual_tokens": 3},
    {"num_virtual_tokens": 2, "first_layer": 1},
    {"num_virtual_tokens": 2, "deep": True},
    {"num_virtual_tokens": 2, "deep": True, "num_deep_layers": 2, "first_layer": 1, "projection_dim": 5},
]


@pytest.mark.parametrize("options", READ_ONLY, ids=named)
def test_read_only_prompts_read_and_are_not_read(options):
    base = shaken(tiny_vit())
    config = VisualPromptConfig(read_only=True, **options)
    plain = base.vit(images()).last_hidden_state
    model = get_peft_model(base, config).eval()
    tensors, vision = learned(model), model.base_model.vision_encoder
    logits, output = model(pixel_values=images()).logits, vision(images())
    assert torch.equal(output.last_hidden_state, plain)
    head, tokens = base.classifier.modules_to_save["default"], tensors["tokens"]
    if config.projection_dim:
        tokens = tokens @ tensors["projection_weight"].t() + tensors["projection_bias"]
    base.vit = vision.base_layer
    feature = plain_read_only(base, images(), config, list(tokens))
    torch.testing.assert_close(output.pooler_output, feature, **CLOSE)
    torch.testing.assert_close(logits, head(feature), **CLOSE)
    gradients = torch.autograd.grad(logits.square().sum(), tensors.values())
    expected = torch.autograd.grad(head(feature).square().sum(), tensors.values())
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=2e-5)


def test_read_only_prompts_on_clip_vote(tokenizer_path):
    config = VisualPromptConfig(
        read_only=True, num_virtual_tokens=3, class_names=["cat", "dog"], tokenizer_name_or_path=tokenizer_path
    )
    model = get_peft_model(tiny_clip(), config).eval()
    features, texts = model.encode_images(images()), model.encode_classes()
    assert features.shape == (4, 3, 16) and texts.shape == (2, 16)
    votes = torch.stack([features[:, k] @ texts.t() for k in range(3)]).mean(0)
    scale = model.get_base_model().logit_scale.exp()
    torch.testing.assert_close(model(pixel_values=images()).logits, scale * votes, **CLOSE)


def test_hidden_states_and_attentions_with_a_range_of_layers():
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=3, deep=True, first_layer=1)).eval()
    output = model(pixel_values=images(), output_hidden_states=True, output_attentions=True)
    assert [state.shape[1] for state in output.hidden_states] == [17, 17, 20, 20]
    assert len(output.attentions) == 3
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=3, read_only=True)).eval()
    output = model(pixel_values=images(), output_hidden_states=True)
    assert [state.shape[1] for state in output.hidden_states] == [17, 17, 17, 17]


@pytest.mark.parametrize("read_only", [False, True])
def test_pooled_heads_with_gradient_checkpointing(read_only):
    def gradients(checkpointing):
        torch.manual_seed(0)
        options = {"read_only": True} if read_only else {"deep": True, "pooling": "imgprompt_pool"}
        model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2, **options)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values=images(), labels=labels()).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    torch.testing.assert_close(gradients(True), gradients(False), **CLOSE)


@pytest.mark.parametrize("options", PIXELS[:1] + PIXELS[3:4] + PIXELS[6:7] + TOKENS[8:9], ids=named)
@pytest.mark.parametrize("base", [tiny_vit, tiny_clip])
def test_autocast_and_half_precision(options, base, tokenizer_path):
    names = {"class_names": ["cat", "dog"], "tokenizer_name_or_path": tokenizer_path}
    config = VisualPromptConfig(**options, **(names if base is tiny_clip else {}))
    model = get_peft_model(base(), config).eval()
    with torch.no_grad():
        expected = model(pixel_values=images()).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(pixel_values=images()).logits.float(), expected, rtol=0.1, atol=0.1)
        half = model.to(torch.bfloat16)(pixel_values=images().bfloat16()).logits
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


BOUND = math.sqrt(6 / (3 * 8**2 + 24))  # patches of 8 pixels, tokens of 24 numbers
VPT_UNIFORM = stats.uniform(-BOUND, 2 * BOUND)
NORMAL, UNIT = stats.norm(), stats.uniform()

#: Location -> its tensors with 50 prompts on a ViT for images of 32 x 32: shape, and how they start.
STARTS = {
    "prepend": {"tokens": ((1, 50, 24), VPT_UNIFORM)},
    "add": {"tokens": ((1, 17, 24), VPT_UNIFORM)},
    "add-1": {"tokens": ((1, 1, 24), VPT_UNIFORM)},
    "prepend-pixel": {"pixels": ((1, 3, 8, 400), VPT_UNIFORM)},
    "prepend-pixel-gaussian": {"pixels": ((1, 3, 8, 400), NORMAL)},
    "prepend-pixel-imgnettransform": {"pixels": ((1, 3, 8, 400), UNIT)},
    "pad": {"left_right": ((1, 3, 32, 100), UNIT), "top_bottom": ((1, 3, 100, 132), UNIT)},
    "below": {
        "pixels": ((1, 50, 32, 32), VPT_UNIFORM),
        "patch_weight": ((24, 53, 8, 8), None),
        "patch_bias": ((24,), None),
    },
}


def assert_drawn_from(values, distribution):
    """A Kolmogorov-Smirnov test; the values are the same in every run."""
    low, high = distribution.support()
    assert low <= values.min() and values.max() <= high
    assert stats.kstest(values.flatten().numpy(), distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("location", [*TOKEN_LOCATIONS, *PIXEL_LOCATIONS])
def test_prompts_start_as_the_authors(location):
    base = tiny_vit()
    tensors = learned(get_peft_model(base, VisualPromptConfig(num_virtual_tokens=50, location=location)))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: shape for name, (shape, _) in STARTS[location].items()
    }
    assert all(tensor.requires_grad for tensor in tensors.values())
    for name, (_, distribution) in STARTS[location].items():
        if distribution is not None:
            assert_drawn_from(tensors[name].detach(), distribution)


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (3, 50, 24)), ({"location": "add"}, (3, 17, 24)), ({"location": "add-1"}, (3, 1, 24))]
)
def test_deep_prompts_start_alike_in_every_layer(options, shape):
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=50, deep=True, **options))
    tokens = learned(model)["tokens"].detach()
    assert tokens.shape == shape
    for layer in tokens:
        assert_drawn_from(layer, VPT_UNIFORM)


def test_projected_prompts_start_by_the_size_of_the_projection():
    tensors = learned(get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=50, projection_dim=6)))
    bound = math.sqrt(6 / (3 * 8**2 + 6))
    assert_drawn_from(tensors["tokens"].detach(), stats.uniform(-bound, 2 * bound))
    assert_drawn_from(
        tensors["projection_weight"].detach(), stats.norm(scale=math.sqrt(2 / 24))
    )  # kaiming, fan-out 24
    assert_drawn_from(tensors["projection_bias"].detach(), stats.uniform(-(6**-0.5), 2 * 6**-0.5))


def test_vit_b16_has_the_published_bound():
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig())
    assert vpt_bound(vit.config.patch_size, vit.config.hidden_size) == pytest.approx(0.0625)


def test_prompts_of_all_stages_start_by_the_width_of_the_first():
    model = get_peft_model(tiny("SwinForImageClassification"), VisualPromptConfig(num_virtual_tokens=50, deep=True))
    tensors = learned(model)
    assert [tuple(tensor.shape) for tensor in tensors.values()] == [(1, 50, 24), (1, 50, 48)]
    for tensor in tensors.values():
        assert_drawn_from(tensor.detach(), VPT_UNIFORM)


@pytest.mark.parametrize("options", [{}, {"prompt_dropout": 0.1}, {"deep": True, "deep_shared": True}])
def test_tokens_on_a_clip_start_as_in_the_clip_methods(options, tokenizer_path):
    options = options | {"class_names": ["cat", "dog"], "tokenizer_name_or_path": tokenizer_path}
    model = get_peft_model(tiny_clip(), VisualPromptConfig(num_virtual_tokens=50, **options))
    assert_drawn_from(learned(model)["tokens"].detach(), stats.norm(scale=0.02))


def test_the_patch_embedding_of_channels_starts_from_the_models():
    base = tiny_vit()
    convolution = base.vit.embeddings.patch_embeddings.projection
    weight, bias = convolution.weight.detach().clone(), convolution.bias.detach().clone()
    tensors = learned(get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2, location="below")))
    assert torch.equal(tensors["patch_weight"][:, :3], weight) and torch.equal(tensors["patch_bias"], bias)
    assert_drawn_from(tensors["patch_weight"][:, 3:].detach(), VPT_UNIFORM)


def test_dropout_has_a_mask_of_its_own_for_each_image():
    config = VisualPromptConfig(location="add-1", deep=True, prompt_dropout=0.5)
    model = get_peft_model(tiny_vit(), config).train()
    prompts = model.base_model.vision_encoder.prompt_vectors("default", 4)
    assert prompts.shape == (3, 4, 1, 24)
    kept = prompts != 0
    assert (kept[:, 0] != kept[:, 1]).any() and 0.3 < kept.float().mean() < 0.7
    assert model(pixel_values=images()).logits.shape == (4, NUM_LABELS)


@pytest.mark.parametrize("options", [{"location": "pad"}, {"location": "below"}], ids=named)
def test_pixels_of_one_size_refuse_others(options):
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=1, **options))
    larger = torch.randn(1, 3, 48, 48)
    with pytest.raises(ValueError, match="fit images of one size.*Received: interpolate_pos_encoding"):
        model(pixel_values=larger, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="Expected images of 32x32"):
        model(pixel_values=larger)


def test_one_prompt_per_token_refuses_more_tokens():
    model = get_peft_model(tiny_vit(), VisualPromptConfig(location="add"))
    with pytest.raises(ValueError, match="each of 17 tokens. Received: 37 tokens"):
        model(pixel_values=torch.randn(1, 3, 48, 48), interpolate_pos_encoding=True)


def test_clip_normalises_pixels_in_its_own_way(tokenizer_path):
    options = {"class_names": ["cat", "dog"], "tokenizer_name_or_path": tokenizer_path}
    config = VisualPromptConfig(num_virtual_tokens=2, location="prepend-pixel-imgnettransform", **options)
    model = get_peft_model(tiny_clip(), config).eval()
    pixels = learned(model)["pixels"]
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    normal = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    vision = model.base_model.vision_encoder
    weight = vision.embeddings.patch_embedding.weight
    expected = torch.stack([(weight * normal[0, :, :, k : k + 8]).sum((1, 2, 3)) for k in (0, 8)])
    torch.testing.assert_close(vision.prompt_vectors("default", 1)[0], expected, **CLOSE)


def test_unloading_takes_the_hook_of_the_head_away(tmp_path):
    base = tiny_vit()
    expected = base(images()).logits
    model = get_peft_model(base, VisualPromptConfig(pooling="img_pool", deep=True)).eval()
    model.add_adapter("plain", VisualPromptConfig())
    pooled = model(pixel_values=images()).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(tiny_vit(), str(tmp_path))(pixel_values=images()).logits, pooled)
    model.set_adapter("plain")
    assert not torch.equal(model(pixel_values=images()).logits, pooled)
    unloaded = model.unload()
    assert not unloaded._forward_pre_hooks and torch.equal(unloaded(images()).logits, expected)


def test_towers_that_do_not_embed_by_one_convolution_refuse_pixels(monkeypatch):
    monkeypatch.setattr("peft_vprompt.backbones.vit.ViTView.patch_embedding", None)
    with pytest.raises(UnsupportedModelError, match="'pad' are pixels, and ViTModel does not embed"):
        get_peft_model(tiny_vit(), VisualPromptConfig(location="pad"))


def test_a_range_of_layers_on_clip(tokenizer_path):
    """Prompts that come in later do not pass the norm in front of the first layer."""
    names = {"class_names": ["cat", "dog"], "tokenizer_name_or_path": tokenizer_path}
    base = shaken(tiny_clip())
    model = get_peft_model(base, VisualPromptConfig(num_virtual_tokens=3, first_layer=1, **names)).eval()
    prompts, features = learned(model)["tokens"][0].detach(), model.encode_images(images())
    vision = model.unload().vision_model
    vision.encoder.layers[1].register_forward_pre_hook(
        lambda module, args: (torch.cat([args[0], prompts.expand(4, -1, -1)], dim=1), *args[1:])
    )
    pooled = base.visual_projection(vision(images()).pooler_output)
    torch.testing.assert_close(features, torch.nn.functional.normalize(pooled, dim=-1), **CLOSE)


def test_read_only_prompts_on_clip_equal_masked_attention(tokenizer_path):
    names = {"class_names": ["cat", "dog"], "tokenizer_name_or_path": tokenizer_path}
    config = VisualPromptConfig(num_virtual_tokens=3, read_only=True, deep=True, num_deep_layers=2, **names)
    base = shaken(tiny_clip())
    model = get_peft_model(base, config).eval()
    prompts, features = list(learned(model)["tokens"]), model.encode_images(images())
    vision = model.unload().vision_model
    hidden = vision.embeddings(images())
    read = masked_read_only(vision.encoder.layers, hidden, prompts, False, "accumulate", vision.pre_layrnorm)
    expected = base.visual_projection(vision.post_layernorm(read))
    torch.testing.assert_close(features, torch.nn.functional.normalize(expected, dim=-1), **CLOSE)


@pytest.mark.core
@pytest.mark.parametrize(
    "config", [{"deep": True}, {"location": "add"}, {"deep": True, "num_deep_layers": 2}], ids=str
)
def test_a_head_that_reads_the_class_token_has_the_last_layer_compute_no_other(config):
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=3, **config)).train()
    layer = list(model.base_model.vision_encoder.view.layers)[-1]
    rows = []
    norms = [module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm)]
    results = []
    for whole in (False, True):  # who asks for hidden states gets all of them
        model.zero_grad()
        with InputsOf(norms[-1].weight) as norm:
            output = model(pixel_values=images(), labels=labels() % NUM_LABELS, output_hidden_states=whole)
        rows += [hidden.shape[1] for hidden in norm.seen]
        output.loss.backward()
        results.append((output.logits.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    if model.base_model.vision_encoder.view.head_rows is None:
        pytest.skip("this release of transformers has layers of other parts, which run whole")
    assert rows[0] == 1 and rows[1] >= 17

"""Prompts in the windows of Swin and Swin v2 against a plain implementation that loops over windows."""

import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    SwinConfig,
    SwinModel,
)

from peft_vprompt import VisualPromptConfig
from peft_vprompt.errors import UnsupportedModelError
from tests.support.golden_vpt import Reference, close, load_recipe
from tests.support.models import NUM_LABELS, images, labels
from tests.support.plain_visual import plain_swin
from tests.support.swin import SIZES, learned, swin


pytestmark = pytest.mark.core

CLOSE = {"rtol": 0, "atol": 2e-5}


#: Prompts in this many images of this size, on Swins of this shape: one window, odd grids, windows that hang over.
CASES = [
    ({"num_virtual_tokens": 1}, {}, (32, 32)),
    ({"num_virtual_tokens": 3, "deep": True}, {}, (32, 32)),
    ({"num_virtual_tokens": 2, "deep": True}, {"window_size": 2, "image_size": 16}, (16, 16)),
    ({"num_virtual_tokens": 2, "deep": True}, {"window_size": 8}, (32, 32)),
    ({"num_virtual_tokens": 2, "deep": True, "num_deep_layers": 3}, {}, (32, 32)),
    ({"num_virtual_tokens": 2, "deep": True, "first_layer": 1}, {}, (24, 20)),
    ({"num_virtual_tokens": 2, "first_layer": 3}, {}, (32, 24)),
    ({"num_virtual_tokens": 2, "deep": True}, {"window_size": 3}, (18, 22)),
    ({"num_virtual_tokens": 2, "deep": True}, {"depths": [1, 3], "window_size": 4}, (32, 32)),
    ({"num_virtual_tokens": 2, "deep": True}, {"depths": [3]}, (32, 32)),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("options", "shape", "size"), CASES, ids=str)
def test_equals_the_plain_implementation(version, options, shape, size):
    base, config = swin(version, **shape), VisualPromptConfig(**options)
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    model = get_peft_model(base, config).eval()
    tensors, vision = learned(model), model.base_model.vision_encoder
    logits = model(pixel_values=pixel_values).logits
    prompts = [prompt for tensor in tensors.values() for prompt in tensor]
    encoded = plain_swin(vision.base_layer, pixel_values, prompts, config.first_layer)
    torch.testing.assert_close(vision(pixel_values).last_hidden_state, encoded, **CLOSE)
    expected = base.classifier.modules_to_save["default"](encoded.mean(1))
    torch.testing.assert_close(logits, expected, **CLOSE)
    gradients = torch.autograd.grad(logits.square().sum(), tensors.values())
    theirs = torch.autograd.grad(expected.square().sum(), tensors.values())
    torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (24, 20), (18, 22)])
def test_without_prompts_it_is_the_model_itself(version, size):
    base = swin(version)
    pixel_values = torch.randn(2, 3, *size)
    expected = base(pixel_values).logits
    model = get_peft_model(base, VisualPromptConfig(location="add-1")).eval()
    assert not torch.allclose(model(pixel_values=pixel_values).logits, expected)
    with torch.no_grad():
        learned(model)["tokens"].zero_()
    torch.testing.assert_close(model(pixel_values=pixel_values).logits, expected, **CLOSE)


@pytest.mark.parametrize("version", [1, 2])
def test_no_image_sees_another(version):
    model = get_peft_model(swin(version), VisualPromptConfig(num_virtual_tokens=2)).eval()
    together = model(pixel_values=images()).logits
    alone = torch.cat([model(pixel_values=image[None]).logits for image in images()])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_the_authors_windows_read_prompts_of_other_images(shared):
    """Their shallow batch is what the plain implementation gives with prompts dealt out to windows in turn."""
    folder = shared / "golden" / "vpt"
    reference = Reference.load(folder, load_recipe(folder), "swin4_shallow")
    model, pixel_values = reference.build(), reference.inputs()["pixel_values"]
    prompts = [reference.tensors["param.enc.prompt_embeddings"][0]]
    with torch.no_grad():
        encoded = plain_swin(model.swin, pixel_values, prompts, mixed=True)
        close(encoded, reference.tensors["eval.encoded"])
        close(model.classifier(encoded.mean(1)), reference.tensors["eval.logits"])


@pytest.mark.parametrize("pooling", ["original", "imgprompt_pool", "img_pool", "prompt_pool"])
def test_pooling(pooling):
    model = get_peft_model(swin(), VisualPromptConfig(num_virtual_tokens=3, pooling=pooling)).eval()
    tokens = model.base_model.vision_encoder(images()).last_hidden_state
    rows = {"img_pool": tokens[:, 3:], "prompt_pool": tokens[:, :3]}.get(pooling, tokens)
    expected = model.get_base_model().classifier(rows.mean(1))
    torch.testing.assert_close(model(pixel_values=images()).logits, expected, **CLOSE)


@pytest.mark.parametrize("version", [1, 2])
def test_borders_and_channels(version):
    base = swin(version)
    model = get_peft_model(base, VisualPromptConfig(num_virtual_tokens=4, location="pad")).eval()
    border = learned(model)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    sides, ends = (((border[name] - mean) / std).expand(4, -1, -1, -1) for name in ("left_right", "top_bottom"))
    framed = torch.cat([sides[..., :4], images(), sides[..., 4:]], dim=3)
    framed = torch.cat([ends[..., :4, :], framed, ends[..., 4:, :]], dim=2)
    padded = model(pixel_values=images()).logits
    with model.disable_adapter():
        torch.testing.assert_close(padded, model(pixel_values=framed).logits, **CLOSE)
        plain = model(pixel_values=images()).logits
    model = get_peft_model(model.unload(), VisualPromptConfig(num_virtual_tokens=2, location="below")).eval()
    assert not torch.allclose(model(pixel_values=images()).logits, plain)
    with torch.no_grad():
        learned(model)["pixels"].zero_()
    torch.testing.assert_close(model(pixel_values=images()).logits, plain, **CLOSE)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("options", [{"deep": True}, {"location": "add"}, {"location": "below"}], ids=str)
def test_trains_saves_and_loads(version, options, tmp_path):
    model = get_peft_model(swin(version), VisualPromptConfig(num_virtual_tokens=2, **options)).train()
    model(pixel_values=images(), labels=labels()).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all("visual_prompt_learner.default." in name or "classifier" in name for name in trained)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(swin(version), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(version, reentrant):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = get_peft_model(swin(version), VisualPromptConfig(num_virtual_tokens=2, deep=True)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(pixel_values=images(), labels=labels()).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    torch.testing.assert_close(gradients(True), gradients(False), **CLOSE)


def test_drop_path_and_dropout_are_drawn_for_images():
    config = {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    prompts = VisualPromptConfig(num_virtual_tokens=2, deep=True, prompt_dropout=0.3)
    for version in (1, 2):
        model = get_peft_model(swin(version, **config), prompts).train()
        first, second = (model(pixel_values=images()).logits for _ in range(2))
        assert not torch.allclose(first, second)
        with torch.no_grad():
            assert torch.equal(model.eval()(pixel_values=images()).logits, model(pixel_values=images()).logits)


@pytest.mark.nightly
@pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="torch 2.6 does not trace PEFT's context managers")
def test_compiled():
    model = get_peft_model(swin(2), VisualPromptConfig(num_virtual_tokens=2, deep=True)).eval()
    expected = model(pixel_values=images()).logits
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixel_values=images()).logits, expected, **CLOSE)


def test_copied_and_in_half_precision():
    model = get_peft_model(swin(2), VisualPromptConfig(num_virtual_tokens=2, deep=True)).eval()
    with torch.no_grad():
        expected = model(pixel_values=images()).logits
        assert torch.equal(pickle.loads(pickle.dumps(model))(pixel_values=images()).logits, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(pixel_values=images()).logits.float()
        half = model.to(torch.bfloat16)(pixel_values=images().bfloat16()).logits.float()
    torch.testing.assert_close(mixed, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(half, expected, rtol=0, atol=0.05)


def test_hidden_states_are_those_of_the_stages():
    model = get_peft_model(swin(), VisualPromptConfig(num_virtual_tokens=3, deep=True, first_layer=1)).eval()
    output = model(pixel_values=images(), output_hidden_states=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(4, 256, 8), (4, 67, 16), (4, 67, 16)]
    with pytest.raises(ValueError, match="prompted SwinModel are not available.*output_attentions=True"):
        model(pixel_values=images(), output_attentions=True)
    model.set_attn_implementation("eager")
    with model.disable_adapter():
        assert len(model(pixel_values=images(), output_attentions=True).attentions) == 2


def test_prompts_have_the_width_and_start_of_their_stage():
    options = {"num_virtual_tokens": 50, "deep": True, "first_layer": 1, "num_deep_layers": 2}
    tensors = learned(get_peft_model(swin(), VisualPromptConfig(**options)))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"tokens_0": (1, 50, 8), "tokens_1": (1, 50, 16)}
    bound = (6 / (3 * 2**2 + 8)) ** 0.5  # the first stage's width, for all
    for tensor in tensors.values():
        assert tensor.abs().max() <= bound and tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_absolute_positions_want_their_own_image_size():
    base = swin(use_absolute_embeddings=True)
    if base.swin.embeddings.position_embeddings.shape[1] != 256:
        pytest.skip("this transformers release has one position too many and cannot add them")
    with torch.no_grad():
        base.swin.embeddings.position_embeddings.normal_()
    expected = base(images()).logits
    model = get_peft_model(base, VisualPromptConfig(location="below", num_virtual_tokens=1)).eval()
    with torch.no_grad():
        learned(model)["pixels"].zero_()
    torch.testing.assert_close(model(pixel_values=images()).logits, expected, **CLOSE)
    with pytest.raises(ValueError, match="Expected images of 32x32 pixels"):
        model(pixel_values=torch.randn(1, 3, 40, 40))


def test_bare_model():
    torch.manual_seed(0)
    model = get_peft_model(SwinModel(SwinConfig(**SIZES, window_size=4, image_size=32)), VisualPromptConfig()).eval()
    features = model.encode_images(images())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    pooled = model(pixel_values=images()).pooler_output
    torch.testing.assert_close(features, torch.nn.functional.normalize(pooled, dim=1))


REFUSED = [
    ({"deep": True, "projection_dim": 4}, "projection_dim=4.*width grows"),
    ({"deep": True, "deep_shared": True}, "deep_shared=True.*width grows"),
    ({"location": "prepend-pixel"}, "location='prepend-pixel'.*grid"),
    ({"location": "add", "deep": True}, "deep=True with location='add'.*width grows"),
    ({"location": "add-1", "first_layer": 1}, "first_layer=1.*width grows"),
]


def test_windows_take_no_readers():
    with pytest.raises(UnsupportedModelError, match="Swinv2Model takes no read-only prompts: it mixes"):
        get_peft_model(swin(2), VisualPromptConfig(read_only=True))


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_has_no_meaning_in_windows_is_refused(options, message):
    for version in (1, 2):
        base = swin(version)
        with pytest.raises(UnsupportedModelError, match=f"Swin(v2)?Model cannot take {message}"):
            get_peft_model(base, VisualPromptConfig(**options))
        assert base(images()).logits.shape == (4, NUM_LABELS)

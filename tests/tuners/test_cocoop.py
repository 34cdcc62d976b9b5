"""CoCoOp: all images and classes in one packed batch equal the authors' loop over images."""

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from peft_vprompt.tuners.base import class_list
from tests.support.models import CLASS_NAMES, CONFIGS, NEW_NAMES, images, labels, tiny_clip, tiny_tokenizer
from tests.support.plain import plain_text_features


pytestmark = pytest.mark.core


@pytest.fixture(params=CONFIGS["cocoop"])
def model(request, tokenizer_path):
    config = CONFIGS["cocoop"][request.param](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    return get_peft_model(tiny_clip(), config).eval()


def loop_over_images(model, pixel_values):
    """One image at a time, its context repeated for every padded class."""
    plain, tuner = tiny_clip(), model.base_model
    sequences = tuner.method.class_sequences(model.active_peft_config, model.class_names, tiny_tokenizer())[0]
    holder, rows = tuner.text_encoder.active_prompts, []
    features = F.normalize(plain.get_image_features(pixel_values).pooler_output, dim=-1)
    for feature in features:
        hidden = F.relu(F.linear(feature, holder.meta_net[0].weight, holder.meta_net[0].bias))
        context = holder.tokens[0] + F.linear(hidden, holder.meta_net[2].weight, holder.meta_net[2].bias)
        classes = plain_text_features(plain, sequences, context[None])
        rows.append(plain.logit_scale.exp() * classes @ feature)
    return torch.stack(rows)


def gradients(model, logits):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(F.cross_entropy(logits, labels()), parameters)


def test_one_batch_equals_the_loop(model):
    mine, loop = model(pixel_values=images()).logits, loop_over_images(model, images())
    torch.testing.assert_close(mine, loop, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(model, mine), gradients(model, loop), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing(model, monkeypatch):
    whole = model(pixel_values=images()).logits
    expected = gradients(model, whole)
    monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", 1)
    passes = []
    tower = model.base_model.text_encoder
    original = tower.encode_class_prompts
    monkeypatch.setattr(
        tower,
        "encode_class_prompts",
        lambda packed, image_features: passes.append(len(image_features)) or original(packed, image_features),
    )
    chunked = model(pixel_values=images()).logits
    assert passes == [1, 1, 1, 1]
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(model, chunked), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert passes == [1] * 7  # all but the last are computed again for the backward pass


def test_class_features_belong_to_images(model):
    features = model.encode_classes(images())
    assert features.shape == (4, 5, 16)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"depend on the image. Pass encode_classes\(pixel_values\)"):
        model.encode_classes()
    model.set_class_names(NEW_NAMES)
    assert model.encode_classes(images(2)).shape == (2, 3, 16)


def test_disabled_it_is_zero_shot(model):
    with model.disable_adapter(), torch.no_grad():
        assert model.encode_classes().shape == (5, 16)
        assert model(pixel_values=images()).logits.shape == (4, 5)

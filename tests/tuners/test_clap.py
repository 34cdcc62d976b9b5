"""CLAP and ZS-LP: the start, the penalties and what is refused. Their numbers are compared in tests/parity."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_vprompt import CLAPConfig
from tests.support.models import CLASS_NAMES, images, labels, logits, tiny_clip


@pytest.fixture
def clap(tokenizer_path):
    def build(**options):
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} | options
        return get_peft_model(tiny_clip(), CLAPConfig(**options)).eval()

    return build


def support(count=10):
    return [{"pixel_values": images(count, 7), "labels": torch.arange(count) % len(CLASS_NAMES)}]


@pytest.mark.parametrize("template", ["a photo of a {}.", ["a photo of a {}.", "{}, drawn", "art of {}"]])
def test_the_start_is_zero_shot(template, clap):
    model = clap(template=template)
    before = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    close = {"rtol": 0, "atol": 1e-5}
    if isinstance(template, str):
        torch.testing.assert_close(before, plain, **close)
    else:  # the mean is of features of any length
        assert (before - plain).abs().max() > 1e-4
    torch.testing.assert_close(model.encode_classes().norm(dim=-1), torch.ones(5), **close)


def test_names_with_underscores(clap):
    names = [name.replace(" ", "_") for name in CLASS_NAMES]
    spaces = logits(clap())
    torch.testing.assert_close(logits(clap(class_names=names, keep_underscores=False)), spaces)
    changed = (logits(clap(class_names=names)) - spaces).abs().amax(0) > 1e-4
    assert changed.tolist() == ["_" in name for name in names]


def test_penalties_are_needed_in_training_alone(clap, tmp_path):
    model = clap()
    assert model(pixel_values=images(), labels=labels()).aux_loss is None
    model.train()
    with pytest.raises(ValueError, match=r"class_penalties.*model.set_support.*constraint='none'"):
        model(pixel_values=images(), labels=labels())
    model.set_support(support())
    loss = model(pixel_values=images(), labels=labels())
    assert loss.aux_loss.item() == 0 and loss.aux_losses.keys() == {"constraint"}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path), is_trainable=True).train()
    assert loaded.active_peft_config.class_penalties == model.active_peft_config.class_penalties
    (parameter,) = (p for p in loaded.parameters() if p.requires_grad)
    with torch.no_grad():
        parameter += 0.5
    expected = torch.tensor(model.active_peft_config.class_penalties).mean() * 16 * 0.25
    torch.testing.assert_close(loaded(pixel_values=images(), labels=labels()).aux_loss, expected)


def test_penalties_are_by_name(clap):
    own, other = clap(), clap()
    other.set_class_names(CLASS_NAMES[::-1])
    own.set_support(support())
    other.set_support([batch | {"labels": 4 - batch["labels"]} for batch in support()])
    assert other.active_peft_config.class_penalties == own.active_peft_config.class_penalties


def test_a_class_without_images(clap):
    model = clap()
    batch = {"pixel_values": images(4), "labels": torch.tensor([0, 2, 3, 4])}
    with pytest.raises(ValueError, match="Received none of: sea lion"):
        model.set_support([batch])
    assert model.active_peft_config.class_penalties is None
    with pytest.raises(ValueError, match="Received one of CLAPConfig"):
        clap(constraint="none").set_support(support())


def test_configs_that_are_refused():
    with pytest.raises(ValueError, match="each class has a prototype"):
        CLAPConfig()
    with pytest.raises(ValueError, match="for each of 5 classes. Received: 2 of them"):
        CLAPConfig(class_names=CLASS_NAMES, class_penalties=[0.1, 0.2])

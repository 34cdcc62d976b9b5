"""What a merged adapter refuses, since the base model's weights could not be told from the adapter's any more."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_vprompt import BiasTuningConfig, FineTuningConfig, MLPHeadConfig
from tests.support.models import CLASS_NAMES, disturb, images, logits, tiny_clip, tiny_tokenizer, tiny_vit


def lora():
    config = LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_clip(), config)
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    return model


@pytest.mark.parametrize("build", [lora, lambda: get_peft_model(tiny_vit(), BiasTuningConfig())], ids=["lora", "bias"])
def test_other_values_are_not_loaded_into_a_merged_adapter(build, tmp_path):
    """They would be taken out of weights that hold the old ones."""
    other, model = disturb(build(), seed=2), disturb(build())
    expected, before = logits(other), logits(model)
    with model.disable_adapter():
        plain = logits(model)
    other.save_pretrained(tmp_path)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"'default', which is. Call unmerge_adapter\(\) first"):
        model.load_adapter(str(tmp_path), "default")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    model.load_adapter(str(tmp_path), "default")
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-4)


def test_a_merged_adapter_is_not_moved_towards_the_frozen_model():
    model = disturb(lora())
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model.interpolate(0.5)


@pytest.mark.parametrize("config", [BiasTuningConfig, FineTuningConfig, MLPHeadConfig])
def test_only_the_adapter_whose_head_answers_is_merged(config):
    model = disturb(get_peft_model(tiny_vit(), config()))
    model.add_adapter("other", config())
    with pytest.raises(ValueError, match=r"Expected the active adapter.*Call set_adapter\('other'\) first"):
        model.merge_adapter(["other"])
    model.set_adapter("other")
    expected = logits(disturb(model, 3))
    model.merge_adapter(["other"])
    torch.testing.assert_close(logits(model), expected)


def test_a_merged_head_leaves_the_trained_one_as_it_is():
    """In its precision, and in the running statistics of its norms."""
    model = disturb(get_peft_model(tiny_vit().to(torch.bfloat16), MLPHeadConfig(num_layers=2)))
    before = {name: value.clone() for name, value in model.state_dict().items() if "mlp_head_" in name}
    model.merge_adapter()
    model.train()(pixel_values=images().to(torch.bfloat16))
    model.unmerge_adapter()
    after = model.state_dict()
    assert all(
        value.dtype == before[name].dtype and torch.equal(value, before[name])
        for name, value in before.items()
        for value in [after[name]]
    )

"""The method table: its order, the names people type, and which row a config is."""

import pytest
from peft import get_peft_model

import peft_vprompt
from peft_vprompt import MaPLeConfig
from peft_vprompt.experiments.models import METHODS, build_model
from peft_vprompt.peft_models.model_card import render_model_card
from peft_vprompt.tuners.base.registry import find_row, get_method
from tests.support.models import CLASS_NAMES, NEW_NAMES, images, labels, tiny_clip


def test_zero_shot_comes_first_and_no_row_is_lost():
    assert list(METHODS)[:5] == ["zero-shot", "vpt", "vpt-shallow", "vpt-deep", "coop"]
    assert len(METHODS) == len({spec.title for spec in METHODS.values()})


def test_names_people_type_are_the_same_classes():
    assert peft_vprompt.CoOpConfig is peft_vprompt.ContextOptConfig
    assert peft_vprompt.VPTConfig is peft_vprompt.VisualPromptConfig
    assert peft_vprompt.RPOConfig is peft_vprompt.ReadOnlyPromptConfig
    assert {"CoOpConfig", "VPTConfig", "RPOConfig"} <= set(peft_vprompt.__all__)


@pytest.mark.parametrize("method", [*(name for name in METHODS if name != "zero-shot"), "partial-2", "mlp-2"])
def test_the_card_has_the_title_of_the_row(method, clip_path, vit_path):
    row = get_method(method)
    model = build_model(vit_path if row.is_baseline else clip_path, method, CLASS_NAMES).model
    if method == "lora":  # PEFT writes its card
        return
    assert find_row(model.active_peft_config, row.is_baseline).title == row.title
    card = render_model_card(model)
    assert f"# {row.title} adapter for" in card and row.paper.citation in card and row.learns in card


def test_changed_fields_do_not_hide_the_row():
    config = MaPLeConfig(coupling="none", prompt_depth=2, prompt_init="random", num_virtual_tokens=3)
    assert find_row(config, is_classifier=False).name == "ivlp"


def test_the_callers_config_stays_as_it_is(tokenizer_path):
    config = MaPLeConfig(tokenizer_name_or_path=tokenizer_path, prompt_depth=2)
    model, other = (get_peft_model(tiny_clip(), config) for _ in range(2))
    model.set_class_names(CLASS_NAMES)
    model.add_adapter("second", config)
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    model.set_class_names(NEW_NAMES)
    assert config.class_names is None and other.class_names is None
    assert model.peft_config["default"].class_names == CLASS_NAMES
    assert model.peft_config["second"].class_names is None


def test_a_tuple_has_tensors_alone(make):
    model = get_peft_model(tiny_clip(), make("kgcoop", "words")).train()
    inputs = {"pixel_values": images(), "labels": labels()}
    output, given = model(**inputs), model(**inputs, return_dict=False)
    assert output.aux_losses is not None
    assert [type(value).__name__ for value in given] == ["Tensor"] * 3
    assert given[0].item() == pytest.approx(output.loss.item()) and given[1].shape == output.logits.shape

"""Adapters added, deleted, exchanged and asked in any order, by several threads: what answers, learns and is said of it."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from peft_vprompt import (
    BiasTuningConfig,
    BottleneckAdapterConfig,
    ContextOptConfig,
    TipAdapterConfig,
    VisualPromptConfig,
)
from peft_vprompt.errors import UnsupportedModelError
from tests.support.models import (
    CLASS_NAMES,
    CONFIGS,
    NUM_LABELS,
    disturb,
    images,
    logits,
    tiny_clip,
    tiny_tokenizer,
    tiny_vit,
)


def lora(**options):
    return LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], init_lora_weights=False, **options)


def on_names(template=None):
    """A CLIP under PEFT's own LoRA, on class names."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_clip(), lora()).eval()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer(), template=template)
    return model


def trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_threads_that_compare_with_other_names_do_not_mix():
    model = get_peft_model(tiny_clip(), ContextOptConfig(num_virtual_tokens=2)).eval()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    lists = [["fox", "owl"], ["car", "bus"], ["red", "blue"]]

    @torch.no_grad()
    def compare(names):
        return model.class_name_classifier.compare(names, pixel_values=images()).logits

    expected = [compare(names) for names in lists]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(compare, lists * 20))
    assert all(torch.allclose(each, expected[index % 3], atol=1e-6) for index, each in enumerate(found))
    assert model.class_names == CLASS_NAMES


def test_labels_are_those_of_the_adapter_that_is_left(tmp_path):
    for tag in "ab":
        vit = tiny_vit()
        vit.config.id2label = {index: f"{tag}{index}" for index in range(NUM_LABELS)}
        vit.config.label2id = {name: index for index, name in vit.config.id2label.items()}
        get_peft_model(vit, BiasTuningConfig()).save_pretrained(tmp_path / tag)
    model = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "a"), adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), "b")
    model.delete_adapter("a")
    assert model.get_base_model().config.id2label[0] == "b0"
    model.save_pretrained(tmp_path / "out")
    assert model.peft_config["b"].id2label[0] == "b0"


@pytest.mark.parametrize("unload", ["unload", "merge_and_unload"])
def test_the_base_model_comes_back_after_the_last_adapter_was_deleted(unload):
    model = get_peft_model(tiny_vit(), BottleneckAdapterConfig())
    model.delete_adapter("default")
    base = getattr(model, unload)()
    with torch.no_grad():
        assert torch.equal(base(images()).logits, tiny_vit()(images()).logits)


@pytest.mark.parametrize("way", ["weighted", "interpolated"])
def test_an_adapter_made_of_a_lora_has_its_classes_and_its_template(way):
    model = on_names("a drawing of a {}.")
    expected = logits(model)
    if way == "weighted":
        model.add_adapter("b", lora())
        model.add_weighted_adapter(["default", "b"], [1.0, 0.0], "new")
    else:
        model.interpolate(1.0, "new")
    model.set_adapter("new")
    assert model.class_names == CLASS_NAMES
    torch.testing.assert_close(logits(model), expected)


def test_a_weighted_sum_of_configs_that_compute_otherwise_names_the_fields(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"), "end")
    model.add_adapter("also", make("context_opt", "end", class_names=CLASS_NAMES[::-1]))
    model.add_adapter("front", make("context_opt", "end", class_token_position="front"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.add_weighted_adapter(["end", "also"], [0.5, 0.5], "alike")
    with pytest.warns(
        UserWarning, match="config of 'end'.*'front' has class_token_position='front' .here 'end'.. Sum"
    ):
        model.add_weighted_adapter(["end", "also", "front"], [0.0, 0.0, 1.0], "other")


def test_a_copy_of_a_whole_text_encoder_is_refused_and_its_parts_are_not():
    base = tiny_clip()
    with pytest.raises(UnsupportedModelError, match="whole of it, 'text_model'.*parts: .*text_model.encoder"):
        get_peft_model(base, lora(modules_to_save=["text_model"]))
    assert str(base) == str(tiny_clip())
    get_peft_model(base, lora(modules_to_save=["text_model.encoder"]))


def test_a_weighted_sum_takes_no_name_that_is_there():
    model = on_names()
    model.add_adapter("b", lora())
    with pytest.raises(
        ValueError, match="name of a new adapter. Received: 'b', which this model has. Delete it first"
    ):
        model.add_weighted_adapter(["default"], [1.0], "b")


def test_an_unloaded_encoder_collects_each_state_once():
    encoder = tiny_vit(bare=True)
    model = get_peft_model(encoder, VisualPromptConfig(num_virtual_tokens=2)).eval()
    with model.disable_adapter():
        model(images(), output_hidden_states=True)
    base = model.unload()
    assert len(base(images(), output_hidden_states=True).hidden_states) == 1 + base.config.num_hidden_layers


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_a_tower_that_is_exchanged_answers(tower):
    model = on_names()
    before = logits(model)
    other = getattr(tiny_clip(seed=5), tower)
    setattr(model.get_base_model(), tower, other)
    found = logits(model)
    assert not torch.allclose(found, before, atol=1e-3)
    fresh = tiny_clip()
    setattr(fresh, tower, getattr(tiny_clip(seed=5), tower))
    with model.disable_adapter():
        plain = logits(model)
    expected = get_peft_model(fresh, ContextOptConfig(num_virtual_tokens=2)).eval()
    expected.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    with expected.disable_adapter():
        # The LoRA's layers in the other tower are gone with the old one.
        torch.testing.assert_close(plain, logits(expected))


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_what_the_config_asks_for_is_given(name):
    vit = tiny_vit()
    if name == "output_attentions":
        vit.set_attn_implementation("eager")
    setattr(vit.config, name, True)
    model = get_peft_model(vit, VisualPromptConfig(num_virtual_tokens=2)).eval()
    found = getattr(model(images()), name.removeprefix("output_"))
    assert found is not None and len(found) >= vit.config.num_hidden_layers
    setattr(vit.config, name, False)
    assert getattr(model(images()), name.removeprefix("output_")) is None
    with pytest.raises(ValueError, match=f"Expected {name} as True or False.*Pass True"):
        model(images(), **{name: [0]})


def test_threads_have_images_of_their_own_behind_the_first_convolution():
    torch.manual_seed(0)
    config = ConvNextConfig(image_size=32, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_labels=5)
    prompts = VisualPromptConfig(num_virtual_tokens=1, location="below")
    model = get_peft_model(ConvNextForImageClassification(config), prompts).eval()
    pixels = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    @torch.no_grad()
    def answer(index):
        return model(pixel_values=pixels[index]).logits

    expected = [answer(index) for index in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(answer, [0, 1, 2] * 30))
    assert all(torch.allclose(each, expected[index % 3], atol=1e-5) for index, each in enumerate(found))


@pytest.mark.parametrize("make", [VisualPromptConfig, BiasTuningConfig, BottleneckAdapterConfig])
def test_an_adapter_that_was_loaded_to_be_used_does_not_learn_when_another_goes(make, tmp_path):
    get_peft_model(tiny_vit(), make()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_vit(), str(tmp_path), adapter_name="a")
    model.add_adapter("b", make())
    model.set_adapter("b")
    model.delete_adapter("b")
    assert model.active_adapters == ["a"] and trained(model) == []


@pytest.mark.parametrize("copies", ["norms", "text", "projection", "lora"])
def test_the_adapter_that_is_left_answers_and_learns_with_its_own_copies(copies, make):
    second = {
        "norms": lambda: make("norm_tuning", "both"),
        "text": lambda: make("text_encoder", "whole"),
        "projection": lambda: make("context_opt", "end", modules_to_save=["visual_projection"]),
        "lora": lambda: lora(modules_to_save=["visual_projection"]),
    }[copies]()
    model = on_names() if copies == "lora" else get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.add_adapter("second", second)
    model.set_adapter("second")
    if copies == "lora":
        model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    disturb(model)
    expected, learns = logits(model.eval()), trained(model)
    model.set_adapter("default")
    model.delete_adapter("default")
    assert torch.equal(logits(model), expected) and trained(model) == learns


def test_the_others_answer_when_the_first_of_several_active_adapters_goes(tmp_path):
    model = get_peft_model(tiny_vit(), lora(), adapter_name="first").eval()
    for name in ("second", "third"):
        model.add_adapter(name, lora())
    disturb(model)
    model.base_model.set_adapter(["second", "third"])
    expected = model(pixel_values=images()).logits
    model.base_model.set_adapter(["first", "second", "third"])
    model.delete_adapter("first")
    assert model.active_adapter == "second" and torch.equal(model(pixel_values=images()).logits, expected)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "second").is_dir() and (tmp_path / "third").is_dir()


def test_what_learns_stays_so_when_another_adapter_comes_and_goes(tmp_path):
    get_peft_model(tiny_vit(), VisualPromptConfig()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_vit(), str(tmp_path))
    model.set_adapter("default")
    before = trained(model)
    model.add_adapter("idle", VisualPromptConfig())
    assert before and trained(model) == before
    model.delete_adapter("idle")
    assert trained(model) == before


@pytest.mark.parametrize("make", [VisualPromptConfig, BiasTuningConfig])
def test_an_adapter_that_is_loaded_to_be_used_where_none_is_does_not_learn(make, tmp_path):
    get_peft_model(tiny_vit(), make()).save_pretrained(tmp_path)
    model = get_peft_model(tiny_vit(), make())
    model.delete_adapter("default")
    model.load_adapter(str(tmp_path), "loaded")
    assert model.active_adapter == "loaded" and trained(model) == []
    model.delete_adapter("loaded")
    model.load_adapter(str(tmp_path), "learning", is_trainable=True)
    assert trained(model)


@pytest.mark.parametrize("names", [("0", "1"), ("weight", "text_model")])
@pytest.mark.parametrize("method", ["cocoop", "tcp", "text_encoder", "norm_tuning", "clip_lora"])
def test_an_adapter_may_be_called_like_a_part_of_the_model(method, names, make, tmp_path):
    config = lambda: make(method, next(iter(CONFIGS[method])))  # noqa: E731
    model = get_peft_model(tiny_clip(), config(), adapter_name=names[0])
    model.add_adapter(names[1], config())
    expected = {}
    for seed, name in enumerate(names):
        model.set_adapter(name)
        disturb(model, seed=seed)
        expected[name] = logits(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / names[0]), adapter_name=names[0]).eval()
    again.load_adapter(str(tmp_path / names[1]), names[1])
    for name in names:
        again.set_adapter(name)
        assert torch.equal(logits(again), expected[name])
        alone = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / name)).eval()
        assert torch.equal(logits(alone), expected[name])
    if method != "clip_lora":  # PEFT's own sum
        model.add_weighted_adapter(list(names), [0.0, 1.0], "2")
        model.set_adapter("2")
        assert torch.allclose(logits(model), expected[names[1]], atol=1e-5)


def test_adapters_stay_apart_in_modules_that_are_called_like_a_method():
    base = nn.ModuleDict({"text_encoder_1": nn.ModuleDict({"q": nn.Linear(4, 4), "head": nn.Linear(4, 4)})})
    config = LoraConfig(r=2, target_modules=["q"], modules_to_save=["head"])
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    place = "base_model.model.text_encoder_1."
    expected = {f"{place}{name}" for name in ("q.lora_A.weight", "q.lora_B.weight", "head.weight", "head.bias")}
    for name in ("one", "two"):
        assert set(get_peft_model_state_dict(model, adapter_name=name)) == expected


def test_names_that_are_refused_change_no_template():
    model = on_names()
    before = logits(model)
    with pytest.raises(ValueError, match="class"):
        model.set_class_names([""], template="xyz {}")
    assert torch.equal(logits(model), before)


def test_weights_of_another_config_are_told(tmp_path):
    def made(**options):
        config = TipAdapterConfig(class_names=CLASS_NAMES, num_support_images=10, **options)
        return get_peft_model(tiny_clip(), config).eval()

    made(alpha=8.0).save_pretrained(tmp_path)
    model = made()
    with pytest.warns(UserWarning, match=r"saved with alpha=8.0 \(here 1.17\).*the config stays. Delete it first"):
        model.load_adapter(str(tmp_path), "default")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.load_adapter(str(tmp_path), "new")
        made(alpha=8.0).load_adapter(str(tmp_path), "default")
    assert model.peft_config["new"].alpha == 8.0

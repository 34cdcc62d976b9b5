"""What one adapter, one mode or one replica does stays out of the answers of another."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from peft_vprompt import VisualPromptConfig
from tests.support.backbones import tiny
from tests.support.models import (
    CLASS_NAMES,
    CONFIGS,
    NEW_NAMES,
    PAIRS,
    disturb,
    every_config,
    images,
    labels,
    logits,
    tiny_clip,
    tiny_tokenizer,
    tiny_vit,
)
from tests.support.replicas import replica_of
from tests.support.watching import InputsOf


pytestmark = pytest.mark.core


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- replicas -----------------------------------------------------------------------------------------------------------


@every_config
def test_a_replica_learns_and_answers_as_the_model_does(method, case, make):
    model = get_peft_model(tiny_clip(), make(method, case)).eval()
    disturb(model)
    logits(model)  # fills the caches that replicas share
    disturb(model, seed=2)
    expected = model(pixel_values=images(), labels=labels())
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in trained(model).items()}
    model.zero_grad()
    output = replica_of(model)(pixel_values=images(), labels=labels())
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
    for name, parameter in trained(model).items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-6)
    with torch.no_grad():
        again = replica_of(model)(pixel_values=images()).logits
    torch.testing.assert_close(again, expected.logits, rtol=0, atol=1e-6)


# ---- dropout ------------------------------------------------------------------------------------------------------------


def with_dropout(where):
    """A CLIP whose text encoder drops out attention weights, or the input of a LoRA."""
    clip = tiny_clip()
    if where == "attention":
        for layer in clip.text_model.encoder.layers:
            layer.self_attn.dropout = 0.5
        return clip
    config = LoraConfig(target_modules=r"text_model.*q_proj", lora_dropout=0.5, init_lora_weights=False)
    return inject_adapter_in_model(config, clip).requires_grad_(False)


@pytest.mark.parametrize("where", ("attention", "lora"))
@pytest.mark.parametrize(("method", "case"), (("visual_prompt", "shallow"), ("read_only_prompt", "rpo")))
def test_what_dropout_has_changed_is_not_kept(where, method, case, make):
    torch.manual_seed(0)
    model = get_peft_model(with_dropout(where), make(method, case))
    expected = logits(copy.deepcopy(model).eval())
    model.train()
    first, second = logits(model), logits(model)
    assert not torch.equal(first, second)
    assert torch.equal(logits(model.eval()), expected)


# ---- several adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ("border", "channels", "added"))
def test_read_only_prompts_see_images_without_the_prompts_of_the_active_adapter(case, make):
    model = get_peft_model(tiny_clip(), make("read_only_prompt", "rpo"), adapter_name="rpo").eval()
    expected = logits(model)
    model.add_adapter("visual", make("visual_prompt", case))
    model.set_adapter("visual")
    disturb(model)
    with torch.no_grad():
        results = model.classify_with_adapters(images(), ["rpo"])
    assert torch.equal(results["rpo"].logits, expected)


@pytest.mark.parametrize("projection", ("visual_projection", "text_projection"))
def test_every_adapter_answers_with_its_own_copies_of_whole_modules(projection, make):
    config = lambda: make("read_only_prompt", "rpo", modules_to_save=[projection])  # noqa: E731
    model = get_peft_model(tiny_clip(), config(), adapter_name="a").eval()
    model.add_adapter("b", config())
    model.add_adapter("plain", make("read_only_prompt", "rpo"))
    expected = {}
    for seed, name in enumerate(("a", "b", "plain")):
        model.set_adapter(name)
        disturb(model, seed=seed)
        expected[name] = logits(model)
    model.set_adapter("a")
    with torch.no_grad():
        results = model.classify_with_adapters(images(), ["b", "plain", "a"])
    for name, output in results.items():
        torch.testing.assert_close(output.logits, expected[name], rtol=0, atol=1e-6)
    for name, value in expected.items():
        model.set_adapter(name)
        assert torch.equal(logits(model), value)


def test_features_of_other_adapters_are_kept_while_one_learns(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end")).eval()
    for name in ("a", "b"):
        model.add_adapter(name, make("read_only_prompt", "rpo"))
    with torch.no_grad():
        expected = model.classify_with_adapters(images(), ["a", "b"])
    layer = model.base_model.text_encoder.view.layers[0]
    with InputsOf(layer.mlp.fc1.weight) as feed_forward:
        results = model.classify_with_adapters(images(), ["a", "b"])
    assert not feed_forward.seen
    for name, output in results.items():
        assert torch.equal(output.logits, expected[name].logits)


@pytest.mark.parametrize("method", ("context_opt", "text_encoder"))
def test_a_further_adapter_changes_nothing_of_what_is_trained(method, make, tmp_path):
    case = next(iter(CONFIGS[method]))
    get_peft_model(tiny_clip(), make("maple", "maple")).save_pretrained(tmp_path / "other")
    model = get_peft_model(tiny_clip(), make(method, case))
    before = trained(model).keys()
    model.load_adapter(str(tmp_path / "other"), "loaded")
    model.add_adapter("added", make("text_encoder", "whole"))
    assert before and trained(model).keys() == before
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    model.save_pretrained(tmp_path / "one")

    frozen = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / "one"))
    frozen.add_adapter("new", make("maple", "maple"))
    assert not trained(frozen)
    frozen.set_adapter("new")
    assert trained(frozen)
    frozen.delete_adapter("new")
    assert not trained(frozen)


@pytest.mark.parametrize("options", ({}, {"modules_to_save": ["visual_projection"]}))
def test_deleting_an_idle_adapter_leaves_the_active_one(options, make):
    first = ("text_encoder", "whole") if not options else ("context_opt", "end")
    model = get_peft_model(tiny_clip(), make(*first, **options), adapter_name="b")
    model.add_adapter("c", make(*first, **options))
    model.add_adapter("a", make("context_opt", "end"))
    model.set_adapter("a")
    expected = logits(model.eval())
    model.delete_adapter("c")
    assert list(model.peft_config) == ["b", "a"] and model.active_adapter == "a"
    assert torch.equal(logits(model), expected)
    model.delete_adapter("a")
    assert model.active_adapter == "b" and model.peft_type == model.peft_config["b"].peft_type
    logits(model)


def test_a_head_starts_from_the_frozen_encoder_whatever_is_active(make):
    expected = get_peft_model(tiny_clip(), make("class_head", "text")).eval()
    model = get_peft_model(tiny_clip(), make("text_encoder", "whole")).eval()
    disturb(model)
    tuned = logits(model)
    model.add_adapter("head", make("class_head", "text"))
    assert torch.equal(logits(model), tuned)
    model.set_adapter("head")
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=1e-6)


# ---- failures -----------------------------------------------------------------------------------------------------------


def test_a_name_too_long_for_the_head_leaves_the_model_alone(make):
    clip = tiny_clip()
    before = str(clip)
    with pytest.raises(ValueError, match="tokens"):
        get_peft_model(clip, make("class_head", "text", class_names=[*NEW_NAMES, "long " * 80]))
    assert str(clip) == before and all(parameter.requires_grad for parameter in clip.parameters())
    model = get_peft_model(clip, make("context_opt", "end"))
    with pytest.raises(ValueError, match="tokens"):
        model.add_adapter("head", make("class_head", "text", class_names=[*NEW_NAMES, "long " * 80]))
    assert list(model.peft_config) == ["default"] and logits(model).shape == (4, len(CLASS_NAMES))


def test_adapters_with_heads_do_not_share_a_pass(make):
    model = get_peft_model(tiny_vit(), CONFIGS["visual_prompt"]["read-only"]())
    with pytest.raises(ValueError, match="compares images with class names. Received: ViTForImageClassification"):
        model.classify_with_adapters(images(), ["default"])


def test_texts_all_padded_on_the_left_are_named_as_such(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    end = model.config.text_config.eos_token_id
    input_ids = torch.tensor([[end, end, end - 1, 3, 4, end]] * 2)
    with pytest.raises(ValueError, match="padding on the left"):
        model(input_ids=input_ids, pixel_values=images(2))


def test_deleting_an_idle_adapter_keeps_what_is_trained(make, tmp_path):
    get_peft_model(tiny_clip(), make("context_opt", "end")).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))  # for inference
    model.add_adapter("idle", make("context_opt", "end"))
    model.set_adapter("default")  # and now it is trained after all
    before = trained(model).keys()
    model.delete_adapter("idle")
    assert before and trained(model).keys() == before

    model.add_adapter("idle", make("context_opt", "end"))
    model.set_requires_grad("default", requires_grad=False)
    model.delete_adapter("idle")
    assert not trained(model)


def test_set_adapter_takes_peft_s_second_argument(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.set_adapter("default", True)
    assert not trained(model)


def test_class_features_are_the_callers_own(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end")).eval()
    expected = logits(model)
    with torch.no_grad():
        model.encode_classes().zero_()
    assert torch.equal(logits(model), expected)


@every_config
def test_a_call_in_inference_mode_does_not_hinder_training(method, case, make):
    model = get_peft_model(tiny_clip(), make(method, case)).eval()
    with torch.inference_mode():
        model(pixel_values=images())
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    assert all(parameter.grad is not None for parameter in trained(model).values() if parameter.numel())


@pytest.mark.parametrize("adapter", ("default", "new"))
def test_a_base_model_with_copies_of_whole_modules_is_refused(adapter):
    lora = LoraConfig(target_modules=r".*\.(q_proj|query)", modules_to_save=["classifier"])
    base = get_peft_model(tiny_vit(), lora)
    expected = logits(base)
    with pytest.raises(ValueError, match="trained copies of whole modules.*merge_and_unload"):
        get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2), adapter_name=adapter)
    assert torch.equal(logits(base), expected)
    get_peft_model(base.merge_and_unload(), VisualPromptConfig(num_virtual_tokens=2))


# ---- gradients through what readers read --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "case"), [(m, c) for m, c in PAIRS if m in ("read_only_prompt", "mrpo")])
def test_readers_pass_gradients_on_to_images_and_towers_that_want_some(method, case, make):
    model = get_peft_model(tiny_clip().double(), make(method, case)).double().eval()
    disturb(model)
    pixels = images().double().requires_grad_()
    towers = (model.base_model.vision_encoder, model.base_model.text_encoder)
    weights = [tower.base_layer.encoder.layers[0].mlp.fc1.weight.requires_grad_() for tower in towers]
    loss = lambda: model(pixel_values=pixels, labels=labels()).loss  # noqa: E731
    for tensor, gradient in zip([pixels, *weights], torch.autograd.grad(loss(), [pixels, *weights]), strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor.add_(direction, alpha=1e-5)
            ahead = loss()
            tensor.add_(direction, alpha=-2e-5)
            slope = (ahead - loss()) / 2e-5
            tensor.add_(direction, alpha=1e-5)
        assert slope.abs() > 1e-7
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


# ---- precision and device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", (tiny_clip, tiny_vit))
def test_weights_loaded_without_a_copy_go_where_the_base_model_is(build, make, tmp_path):
    config = make("maple", "maple") if build is tiny_clip else VisualPromptConfig(num_virtual_tokens=2)
    get_peft_model(build(), config).save_pretrained(tmp_path)
    base = build().to("meta")
    model = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=True, torch_device="cpu")
    prompts = [p for name, p in model.named_parameters() if ".default" in name and "modules_to_save" not in name]
    assert prompts and {p.device.type for p in prompts} == {"meta"}


class Int8(nn.Module):
    """A linear layer whose weight is stored in eight bits, as bitsandbytes does: floats in and out."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.abs().max().item() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale, self.bias)


@pytest.mark.parametrize(("backbone", "name"), [("SiglipModel", "text_model.head"), ("CLIPModel", "text_projection")])
def test_a_text_head_in_eight_bits(backbone, name):
    def answer(quantised: bool):
        base = tiny(backbone)
        int8 = Int8(base.get_submodule(name))
        if quantised:
            base.set_submodule(name, int8)
        else:  # the same values, in floats
            base.get_submodule(name).weight.data = int8.weight * int8.scale
        torch.manual_seed(0)
        model = get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2)).eval()
        model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer("siglip" if "Siglip" in backbone else "clip"))
        return logits(model)

    torch.testing.assert_close(answer(True), answer(False), rtol=1e-5, atol=1e-5)

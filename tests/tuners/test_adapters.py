"""What every adapter of every method must do: train, save, load, switch, disable, delete, unload."""

import copy
import json
import pickle

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from peft_vprompt import AutoPeftModelForImageClassification, VisualPromptConfig
from peft_vprompt.errors import AdapterMismatchError
from peft_vprompt.tuners.base.registry import PROMPT_METHODS, shares_model
from tests.support.models import (
    BACKBONES,
    CLASS_NAMES,
    CONFIGS,
    NEW_NAMES,
    PAIRS,
    class_by_class,
    disturb,
    every_config,
    images,
    labels,
    logits,
    often,
    tiny_clip,
    tiny_vit,
)


pytestmark = pytest.mark.core

VISION_BACKBONES = [name for name in BACKBONES if name != "CLIPModel"]
#: Methods that learn copies of modules alone.
COPIES = ("TEXT_ENCODER", "NORM_TUNING", "TWO_STAGE")
HEADED = ("CLIPForImageClassification", "ViTForImageClassification")


def test_every_registered_method_is_tested():
    assert set(CONFIGS) == set(PROMPT_METHODS)


@pytest.fixture
def config(method, case, tokenizer_path):
    return CONFIGS[method][case](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)


@every_config
def test_only_prompts_learn_and_all_of_them(config):
    model = get_peft_model(tiny_clip(), config).train()
    for name, parameter in model.named_parameters():
        if name.endswith("meta_net.0.bias"):  # the one hidden unit of the tiny Meta-Net may start dead
            torch.nn.init.ones_(parameter)
        if name.endswith("down"):  # a second factor that starts at zero leaves the first one without a gradient
            torch.nn.init.ones_(parameter)
    model(pixel_values=images(), labels=labels()).loss.backward()
    prompts = {name for name, p in model.named_parameters() if ".default." in name}
    assert prompts
    assert {name for name, p in model.named_parameters() if p.requires_grad} == prompts
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == prompts


@every_config
def test_save_and_load_is_bit_identical(config, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), config))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.class_names == CLASS_NAMES
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_tensors_may_be_renamed_while_they_are_loaded(make, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), make("context_opt", "end")))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("context_prompt_", "old_"): tensor for name, tensor in load_file(path).items()}, path)
    mapping = {r"\.old_": ".context_prompt_"}
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path), key_mapping=mapping).eval()
    assert torch.equal(logits(loaded), logits(model))
    loaded.load_adapter(str(tmp_path), "second", key_mapping=mapping)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(AdapterMismatchError, match="missing"):
        loaded.load_adapter(str(tmp_path), "third", key_mapping={"old_": "other_"})


@every_config
def test_low_cpu_mem_usage_loads_the_same(config, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), config))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


@every_config
def test_a_loaded_adapter_trains_on(config, tmp_path):
    disturb(get_peft_model(tiny_clip(), config)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path), is_trainable=True).train()
    loaded(pixel_values=images(), labels=labels()).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters() if p.requires_grad)
    assert any(p.requires_grad for p in loaded.parameters())


NORMS = {
    f"{tower}_model.base_layer.encoder.layers.{layer}.layer_norm{number}.{part}": (width,)
    for tower, width in (("text", 32), ("vision", 24))
    for layer in range(3)
    for number in (1, 2)
    for part in ("weight", "bias")
}
STATE_KEYS = {
    ("visual_prompt", "deep"): {"vision_model.visual_prompt_learner.tokens": (3, 2, 24)},
    ("visual_prompt", "projected"): {
        "vision_model.visual_prompt_learner.tokens": (3, 3, 6),
        "vision_model.visual_prompt_learner.projection_weight": (24, 6),
        "vision_model.visual_prompt_learner.projection_bias": (24,),
    },
    ("context_opt", "end"): {"text_model.context_prompt_learner.tokens": (1, 4, 32)},
    ("context_opt", "full"): {
        "text_model.context_prompt_learner.tokens": (1, 3, 32),
        "text_model.context_prompt_learner.name_tokens": (40, 32),
    },
    ("context_opt", "class-specific"): {"text_model.context_prompt_learner.tokens": (5, 2, 32)},
    ("kgcoop", "words"): {"text_model.knowledge_prompt_learner.tokens": (1, 4, 32)},
    ("prograd", "words"): {"text_model.aligned_prompt_learner.tokens": (1, 5, 32)},
    ("promptsrc", "independent"): {
        "text_model.self_regulating_prompt_learner.tokens": (2, 4, 32),
        "vision_model.self_regulating_prompt_learner.tokens": (2, 4, 24),
    },
    ("promptkd", "own-space"): {
        "text_model.distilled_prompt_readout.class_features": (5, 16),
        "vision_model.distilled_prompt_learner.tokens": (2, 2, 24),
        "vision_model.distilled_prompt_learner.projector.0.weight": (16, 16),
        "vision_model.distilled_prompt_learner.projector.0.bias": (16,),
        "vision_model.distilled_prompt_learner.projector.1.weight": (16,),
        "vision_model.distilled_prompt_learner.projector.1.bias": (16,),
        "vision_model.distilled_prompt_learner.projector.1.running_mean": (16,),
        "vision_model.distilled_prompt_learner.projector.1.running_var": (16,),
        "vision_model.distilled_prompt_learner.projector.3.weight": (16, 16),
        "vision_model.distilled_prompt_learner.projector.3.bias": (16,),
    },
    ("mmrl", "mmrl"): {
        "text_model.representation_prompt_learner.tokens": (5, 12),
        "text_model.representation_prompt_learner.maps.weight": (2, 32, 12),
        "text_model.representation_prompt_learner.maps.bias": (2, 32),
        "vision_model.representation_prompt_learner.maps.weight": (2, 24, 12),
        "vision_model.representation_prompt_learner.maps.bias": (2, 24),
        "vision_model.representation_prompt_learner.projection": (24, 16),
    },
    ("mmrl", "low-rank"): {
        "text_model.representation_prompt_learner.tokens": (5, 12),
        "text_model.representation_prompt_learner.maps.weight": (32, 12),
        "text_model.representation_prompt_learner.maps.bias": (2, 32),
        "text_model.representation_prompt_learner.maps.up": (2, 32, 2),
        "text_model.representation_prompt_learner.maps.down": (2, 2, 12),
        "vision_model.representation_prompt_learner.maps.weight": (24, 12),
        "vision_model.representation_prompt_learner.maps.bias": (2, 24),
        "vision_model.representation_prompt_learner.maps.up": (2, 24, 2),
        "vision_model.representation_prompt_learner.maps.down": (2, 2, 12),
        "vision_model.representation_prompt_learner.projection_up": (24, 4),
        "vision_model.representation_prompt_learner.projection_down": (4, 16),
    },
    ("norm_tuning", "both"): NORMS,
    ("two_stage", "first"): NORMS,
    ("clip_lora", "both"): {
        f"{tower}_model.encoder.layers.{layer}.self_attn.{projection}_proj.lora_{factor}.weight": shape
        for tower, width in (("text", 32), ("vision", 24))
        for layer in range(3)
        for projection in "qkv"
        for factor, shape in (("A", (2, width)), ("B", (width, 2)))
    },
    ("tcp", "random"): {
        "text_model.class_aware_prompt_learner.tokens": (1, 4, 32),
        "text_model.class_aware_prompt_learner.meta_net.0.weight": (4, 16),
        "text_model.class_aware_prompt_learner.meta_net.0.bias": (4,),
        "text_model.class_aware_prompt_learner.meta_net.2.weight": (128, 4),
        "text_model.class_aware_prompt_learner.meta_net.2.bias": (128,),
    },
    ("class_head", "text"): {"text_model.class_head_readout.weight": (5, 16)},
    ("tip_adapter", "trained"): {
        "text_model.image_cache_readout.keys": (10, 16),
        "text_model.image_cache_readout.labels": (10,),
    },
    ("clap", "held"): {"text_model.prototype_readout.weight": (5, 16), "text_model.prototype_readout.start": (5, 16)},
    ("cocoop", "words"): {
        "text_model.conditional_prompt_learner.tokens": (1, 4, 32),
        "text_model.conditional_prompt_learner.meta_net.0.weight": (1, 16),
        "text_model.conditional_prompt_learner.meta_net.0.bias": (1,),
        "text_model.conditional_prompt_learner.meta_net.2.weight": (32, 1),
        "text_model.conditional_prompt_learner.meta_net.2.bias": (32,),
    },
    ("read_only_prompt", "rpo"): {
        "text_model.readonly_prompt_learner.tokens": (1, 4, 32),
        "vision_model.readonly_prompt_learner.tokens": (1, 4, 24),
    },
    ("mrpo", "replace"): {
        "text_model.linked_prompt_learner.tokens": (1, 4, 32),
        "vision_model.linked_prompt_learner.weight": (1, 24, 32),
        "vision_model.linked_prompt_learner.bias": (1, 24),
    },
    ("mrpo", "free"): {
        "text_model.linked_prompt_learner.tokens": (2, 4, 32),
        "vision_model.linked_prompt_learner.tokens": (2, 4, 24),
    },
    ("maple", "maple"): {
        "text_model.multimodal_prompt_learner.tokens": (2, 2, 32),
        "vision_model.multimodal_prompt_learner.weight": (2, 24, 32),
        "vision_model.multimodal_prompt_learner.bias": (2, 24),
    },
    ("maple", "ivlp"): {
        "text_model.multimodal_prompt_learner.tokens": (3, 1, 32),
        "vision_model.multimodal_prompt_learner.tokens": (3, 4, 24),
    },
}


@pytest.mark.parametrize(("method", "case"), STATE_KEYS, ids="-".join)
def test_names_of_saved_tensors_are_pinned(method, case, make, tmp_path):
    get_peft_model(tiny_clip(), make(method, case)).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    expected = {f"base_model.model.{key}": shape for key, shape in STATE_KEYS[method, case].items()}
    assert {key: tuple(value.shape) for key, value in saved.items()} == expected


def test_every_method_has_pinned_names():
    assert {method for method, _ in STATE_KEYS} | {"text_encoder"} == set(PROMPT_METHODS)


def test_a_text_encoder_is_saved_whole_and_nothing_else(make, tmp_path):
    get_peft_model(tiny_clip(), make("text_encoder", "whole")).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    expected = {
        f"base_model.model.text_model.base_layer.{key}" for key, _ in tiny_clip().text_model.named_parameters()
    }
    assert set(saved) == expected


@every_config
def test_disable_gives_the_base_model_back(config, tokenizer_path):
    base = tiny_clip()
    ids = torch.tensor([[136, 3, 74, 137], [136, 5, 75, 137]])
    with torch.no_grad():
        expected = base(input_ids=ids, pixel_values=images())
    model = disturb(get_peft_model(base, config))
    before = logits(model)
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=ids, pixel_values=images())
        zero_shot = model(pixel_values=images()).logits
    assert torch.equal(plain.logits_per_image, expected.logits_per_image)
    assert torch.equal(plain.vision_model_output.last_hidden_state, expected.vision_model_output.last_hidden_state)
    assert zero_shot.shape == (4, 5)
    assert not torch.allclose(before, zero_shot, atol=1e-4)
    assert torch.equal(logits(model), before)


@every_config
def test_unload_gives_the_untouched_base_back(config):
    base, reference = tiny_clip(attn_implementation="eager"), tiny_clip(attn_implementation="eager")
    trainable = {name for name, p in base.named_parameters() if p.requires_grad}
    unloaded = disturb(get_peft_model(base, config)).unload()
    assert unloaded is base and type(unloaded) is CLIPModel
    assert str(unloaded) == str(reference)
    assert not hasattr(unloaded, "peft_config")
    assert {name for name, p in unloaded.named_parameters() if p.requires_grad} == trainable
    assert all(m.self_attn.config is unloaded.text_model.config for m in unloaded.text_model.encoder.layers)
    for (name, mine), (other, theirs) in zip(
        unloaded.state_dict().items(), reference.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(mine, theirs)
    get_peft_model(unloaded, config)  # and it can be wrapped again


@every_config
def test_merging_is_refused(config):
    model = get_peft_model(tiny_clip(), config)
    if not shares_model(config.peft_type):  # PEFT's own tuner, which merges
        return
    if config.peft_type in COPIES:
        assert type(model.merge_and_unload()) is CLIPModel
        return
    with pytest.raises(ValueError, match="cannot be merged.*unload"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged.*unload"):
        model.merge_adapter()


@every_config
def test_new_class_names(config):
    model = disturb(get_peft_model(tiny_clip(), config))
    if getattr(config, "belongs_to_classes", False):
        with pytest.raises(
            ValueError, match="each of its 5 classes.*nothing for other names. Received: fox, wolf pack"
        ):
            model.set_class_names(["cat", *NEW_NAMES])
        return
    before = logits(model)
    model.set_class_names(NEW_NAMES)
    assert logits(model).shape == (4, 3)
    assert model.encode_classes(images()).shape[-1] == 16
    model.set_class_names(CLASS_NAMES)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("method", "case"), [("context_opt", "class-specific"), ("class_head", "random")])
def test_accents_of_trained_classes_are_read_in_both_forms(method, case, make):
    model = disturb(get_peft_model(tiny_clip(), make(method, case, class_names=["caf\u00e9", "tea"])))
    whole = logits(model)
    model.set_class_names(["tea", "cafe\u0301"])
    torch.testing.assert_close(logits(model), whole[:, [1, 0]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "case"), often([*PAIRS, ("mmrl", "decoupled")], [*class_by_class(), ("mmrl", "decoupled")])
)
def test_trained_classes_are_found_by_their_names(method, case, make, tmp_path):
    config = make("mmrl", "mmrl", readout="decoupled") if case == "decoupled" else make(method, case)
    model = disturb(get_peft_model(tiny_clip(), config))
    whole = logits(model)
    for names in (CLASS_NAMES[::-1], ["dog", "sea_lion"]):
        rows = [CLASS_NAMES.index(name.replace("_", " ")) for name in names]
        model.set_class_names(names)
        torch.testing.assert_close(logits(model), whole[:, rows], atol=1e-5, rtol=1e-4)
        assert model.get_base_model().config.id2label == dict(enumerate(names))
    learned = {}
    for names in (CLASS_NAMES, CLASS_NAMES[::-1]):
        model.set_class_names(names)
        numbers = torch.tensor([names.index(CLASS_NAMES[label]) for label in labels()])
        model.zero_grad()
        model.train()(pixel_values=images(), labels=numbers).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(
                    parameter.grad, learned.setdefault(name, parameter.grad.clone()), atol=1e-5, rtol=1e-3
                )
    assert learned
    if config.belongs_to_classes:
        assert model.peft_config["default"].class_names == CLASS_NAMES
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).eval()
        assert loaded.class_names == CLASS_NAMES
        torch.testing.assert_close(logits(loaded), logits(model.eval()).flip(1), atol=1e-5, rtol=1e-4)


def test_saved_names_are_those_of_training(make, tmp_path):
    model = get_peft_model(tiny_clip(), make("context_opt", "end")).eval()
    model.set_class_names(NEW_NAMES)
    logits(model)
    model.save_pretrained(tmp_path / "evaluated")
    assert json.loads((tmp_path / "evaluated/adapter_config.json").read_text())["class_names"] == CLASS_NAMES
    model.train()
    loss = model(pixel_values=images(), labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    model.save_pretrained(tmp_path / "trained")
    assert json.loads((tmp_path / "trained/adapter_config.json").read_text())["class_names"] == NEW_NAMES


def test_an_adapter_without_names_keeps_the_first(make, tmp_path):
    model = get_peft_model(tiny_clip(), make("context_opt", "end", class_names=None)).eval()
    for names in (NEW_NAMES, CLASS_NAMES):
        model.set_class_names(names)
        logits(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["class_names"] == NEW_NAMES


def companions(method):
    """The methods whose adapters live on one model with those of `method`, itself included."""
    if method == "clip_lora":  # PEFT's own tuner has the model for itself
        return [method]
    norms = {"norm_tuning", "two_stage"}  # are no part of a copy of the whole text encoder
    others = {"clip_lora"} | (norms if method == "text_encoder" else {"text_encoder"})
    return [name for name in PROMPT_METHODS if name not in others]


@pytest.mark.parametrize("method", often(PROMPT_METHODS, ["visual_prompt", "maple", "clip_lora"]))
def test_several_adapters_of_different_methods(method, make, tmp_path):
    methods = companions(method)
    cases = {name: next(iter(CONFIGS[name])) for name in methods}
    expected = {}
    for name, case in cases.items():
        alone = disturb(get_peft_model(tiny_clip(), make(name, case)))
        alone.save_pretrained(tmp_path / name)
        expected[name] = logits(alone)
    model = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / method), adapter_name=method)
    for name in methods:
        if name != method:
            model.load_adapter(str(tmp_path / name), name)
    assert torch.equal(logits(model), expected[method])
    for name in methods:
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    model.save_pretrained(tmp_path / "all")
    again = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / "all" / method))
    assert torch.equal(logits(again), expected[method])


@pytest.mark.parametrize("active", ["default", "other"])
def test_disabling_reaches_every_copy_of_the_text_encoder(active, make):
    model = disturb(get_peft_model(tiny_clip(), make("context_opt", "end")))
    model.add_adapter("other", make("text_encoder", "whole"))
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = logits(disturb(model))
    model.set_adapter(active)
    with model.disable_adapter():
        logits(model)
    for name, value in expected.items():
        model.set_adapter(name)
        assert torch.equal(logits(model), value)


def test_classes_belong_to_the_adapter(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end")).eval()
    model.add_adapter("other", make("maple", "maple", class_names=NEW_NAMES))
    assert logits(model).shape == (4, 5)
    model.set_adapter("other")
    assert model.class_names == NEW_NAMES and logits(model).shape == (4, 3)
    model.set_adapter("default")
    assert model.class_names == CLASS_NAMES and logits(model).shape == (4, 5)


def test_only_the_active_adapter_learns(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.add_adapter("other", make("maple", "maple"))
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"default"}
    model.set_adapter("other")
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"other"}
    model.train()(pixel_values=images(), labels=labels()).loss.backward()


def test_delete_adapter(make):
    model = disturb(get_peft_model(tiny_clip(), make("context_opt", "end")))
    expected = logits(model)
    model.add_adapter("other", make("maple", "maple"))
    model.set_adapter("other")
    model.delete_adapter("other")
    assert list(model.peft_config) == ["default"] and model.active_adapter == "default"
    assert torch.equal(logits(model), expected)
    assert not any(".other." in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="other"):
        model.delete_adapter("other")


def test_a_foreign_method_keeps_pefts_error(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))


def with_lora() -> CLIPModel:
    base = inject_adapter_in_model(
        LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False), tiny_clip()
    )
    return base.eval()


@every_config
def test_base_that_carries_a_lora(config, tmp_path):
    torch.manual_seed(7)
    base = with_lora()
    ids = torch.tensor([[136, 3, 74, 137]])
    with torch.no_grad():
        expected = base(input_ids=ids, pixel_values=images()).logits_per_image
    weights = copy.deepcopy(base.state_dict())
    if config.peft_type == "TEXT_ENCODER":
        with pytest.raises(ValueError, match="carries adapters.*Merge"):
            get_peft_model(base, config)
        return
    if config.peft_type == "CLIP_LORA":  # whose layers those are
        with pytest.raises(ValueError, match="without adapters of other methods.*merge_and_unload"):
            get_peft_model(base, config)
        assert base.state_dict().keys() == weights.keys()
        return
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(base, config)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    disturb(model).save_pretrained(tmp_path)
    assert not any("lora" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids, pixel_values=images()).logits_per_image, expected)
    after = logits(model)
    other = with_lora()
    other.load_state_dict(weights)
    assert torch.equal(logits(PeftModel.from_pretrained(other, str(tmp_path))), after)
    unloaded = model.unload()
    assert all(torch.equal(weights[k], v) for k, v in unloaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(unloaded(input_ids=ids, pixel_values=images()).logits_per_image, expected)


def test_a_block_without_adapters_inside_another_leaves_them_off_beside_a_lora_of_the_base(make):
    model = disturb(get_peft_model(with_lora(), make("context_opt", "end")))
    learned = logits(model)
    with model.disable_adapter():
        expected = logits(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), learned) and not torch.equal(learned, expected)
    model.disable_adapter_layers()
    with model.disable_adapter():
        logits(model)
    assert torch.equal(logits(model), expected)


def test_base_that_is_a_peft_model(make):
    lora = get_peft_model(tiny_clip(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    with pytest.warns(UserWarning, match="second time"):
        model = disturb(get_peft_model(lora, make("maple", "maple")))
    assert logits(model).shape == (4, 5)
    assert model.unload() is lora


@pytest.mark.parametrize("backbone", VISION_BACKBONES)
@pytest.mark.parametrize("case", often(CONFIGS["visual_prompt"], ["deep", "border"]))
def test_vision_backbones(backbone, case, tmp_path):
    config = CONFIGS["visual_prompt"][case]()
    base = BACKBONES[backbone]()
    with torch.no_grad():
        expected = base(pixel_values=images())
    model = get_peft_model(base, config).train()
    output = model(pixel_values=images(), **({"labels": labels()} if backbone in HEADED else {}))
    (output.loss if backbone in HEADED else model.encode_images(images()).sum()).backward()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in model.named_parameters() if p.grad is not None}
    assert any("classifier" in name for name in learning) == (backbone in HEADED)

    disturb(model).save_pretrained(tmp_path)
    key = "logits" if backbone in HEADED else "last_hidden_state"
    with torch.no_grad():
        mine = model(pixel_values=images())[key]
        loaded = PeftModel.from_pretrained(BACKBONES[backbone](), str(tmp_path))
        assert torch.equal(loaded(pixel_values=images())[key], mine)
        with model.disable_adapter():
            assert torch.equal(model(pixel_values=images())[key], expected[key])
        unloaded = model.unload()
        assert unloaded is base and type(unloaded).__name__ == backbone
        assert torch.equal(unloaded(pixel_values=images())[key], expected[key])


def test_heads_switch_with_the_adapter():
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2))
    first = disturb(model)(pixel_values=images()).logits.detach()
    model.add_adapter("other", VisualPromptConfig(num_virtual_tokens=4, deep=True))
    model.set_adapter("other")
    assert not torch.allclose(model(pixel_values=images()).logits, first)
    model.set_adapter("default")
    assert torch.equal(model(pixel_values=images()).logits, first)


def test_shallow_is_deep_with_one_layer(make):
    states = []
    for case in ({"deep": False}, {"deep": True, "num_deep_layers": 1}):
        torch.manual_seed(3)
        states.append(logits(get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=4, **case)).eval()))
    assert torch.equal(*states)


@every_config
def test_auto_class_rebuilds_the_base_model(config, tmp_path, tokenizer_path):
    tiny_clip().save_pretrained(tmp_path / "base")
    model = disturb(get_peft_model(CLIPModel.from_pretrained(tmp_path / "base"), config))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert type(loaded.get_base_model()).__name__ == "CLIPModel"
    assert torch.equal(logits(loaded), logits(model))


def test_auto_class_for_a_vision_model(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    model = get_peft_model(
        type(tiny_vit()).from_pretrained(tmp_path / "base"), VisualPromptConfig(num_virtual_tokens=2)
    )
    disturb(model).save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))


def test_auto_class_refuses_foreign_libraries(make, tmp_path):
    get_peft_model(tiny_clip(), make("maple", "maple")).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}}))
    with pytest.raises(ValueError, match="import 'os'.*not allowed"):
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path))
    path.write_text(json.dumps(config | {"auto_mapping": None}))
    with pytest.raises(ValueError, match="does not name its base model's class"):
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path))


@every_config
def test_peft_config_reads_our_configs(config, tmp_path):
    get_peft_model(tiny_clip(), config).save_pretrained(tmp_path)
    read = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert type(read) is type(config)
    assert read.class_names == CLASS_NAMES


def test_modules_to_save(make, tmp_path):
    model = get_peft_model(tiny_clip(), make("context_opt", "end", modules_to_save=["visual_projection"])).train()
    model(pixel_values=images(), labels=labels()).loss.backward()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("visual_projection" in n for n in trained)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    disturb(model).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(model.encode_images(images()), clean_features(), atol=1e-6)


@torch.no_grad()
def clean_features():
    return torch.nn.functional.normalize(tiny_clip().get_image_features(images()).pooler_output, dim=-1)


@every_config
def test_copies_and_pickles(config):
    model = disturb(get_peft_model(tiny_clip(), config))
    expected = logits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        disturb(model)
        assert torch.equal(logits(other), expected)
        assert other.unload().__class__ is CLIPModel
        model = disturb(get_peft_model(tiny_clip(), config))


def test_print_trainable_parameters(make, capsys):
    get_peft_model(tiny_clip(), make("context_opt", "end")).print_trainable_parameters()
    assert "trainable params: 128 ||" in capsys.readouterr().out


def test_state_dict_of_an_inactive_adapter(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.add_adapter("other", make("maple", "maple"))
    keys = get_peft_model_state_dict(model, adapter_name="other").keys()
    assert {key.split(".")[3] for key in keys} == {"multimodal_prompt_learner"}
    assert all(".other" not in key for key in keys)


def test_model_card_names_the_import(make, tmp_path):
    get_peft_model(tiny_clip(), make("maple", "maple")).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import peft_vprompt" in card and "MaPLe" in card and ", ".join(CLASS_NAMES) in card

"""Bad input gets an error that names the value, what is allowed and the remedy, and leaves nothing half-done."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from peft_vprompt import (
    BiasTuningConfig,
    ClassHeadConfig,
    CoCoOpConfig,
    ContextOptConfig,
    MaPLeConfig,
    MMRLConfig,
    MRPOConfig,
    PromptConfig,
    ReadOnlyPromptConfig,
    TCPConfig,
    VisualPromptConfig,
)
from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.errors import AdapterMismatchError
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.models import (
    BACKBONES,
    CLASS_NAMES,
    CONFIGS,
    NEW_NAMES,
    TEXT,
    VISION,
    VOCABULARY_SIZE,
    class_by_class,
    images,
    labels,
    tiny_clip,
    tiny_tokenizer,
    tiny_vit,
)


pytestmark = pytest.mark.core


def coop(tokenizer_path, base=None, **options):
    values = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path, "num_virtual_tokens": 4} | options
    return get_peft_model(base or tiny_clip(), ContextOptConfig(**values)).eval()


# ---- class names -------------------------------------------------------------------------------------------------


malformed_names = pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one class name"),
        ("cat", r"Expected a list of class names.*\['cat'\]"),
        ({"cat": 0}, r"Expected a list of class names. Received: class_names=\{'cat': 0\}\.$"),
        (["cat", ""], r"class_names\[1\]=''"),
        (["cat", " _ "], r"class_names\[1\]=' _ '"),
        (["cat", "\u00a0"], r"class_names\[1\]='\\xa0'"),
        (["cat", 3], r"class_names\[1\]=3"),
    ],
)


@malformed_names
@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_malformed_class_names_of_a_config(method, names, message):
    build = next(iter(CONFIGS[method].values()))
    with pytest.raises(ValueError, match=message):
        build(class_names=names)


@malformed_names
def test_malformed_class_names_change_nothing(names, message, tokenizer_path):
    model = coop(tokenizer_path)
    before = model.encode_classes()
    with pytest.raises(ValueError, match=message):
        model.set_class_names(names)
    assert model.class_names == CLASS_NAMES and torch.equal(model.encode_classes(), before)


def test_repeated_class_names_only_warn(tokenizer_path):
    with pytest.warns(UserWarning, match=r"repeats \['dog'\]"):
        model = coop(tokenizer_path, class_names=["dog", "cat", "dog"])
    features = model.encode_classes()
    assert torch.equal(features[0], features[2])


def test_names_that_a_tokenizer_reads_alike_warn(tokenizer_path):
    with pytest.warns(UserWarning, match="alike: 'Dog' and 'dog'; 'sea lion' and 'sea_lion'.*cannot be told apart"):
        coop(tokenizer_path).set_class_names(["Dog", "sea lion", "dog", "sea_lion"])
    names = ["Dog", "dog"]
    model = coop(tokenizer_path, class_names=names, class_specific=True)  # each learns a context of its own
    assert not torch.equal(*model.encode_classes())


def test_names_longer_than_the_text_tower(tokenizer_path):
    long = "x" * 80
    model = coop(tokenizer_path)
    with pytest.raises(ValueError, match=r"'xxx.*' has \d+ tokens.*77 positions.*Shorten the name"):
        model.set_class_names(["cat", long])
    assert model.class_names == CLASS_NAMES
    late = coop(tokenizer_path, class_names=["cat", long])
    with pytest.raises(ValueError, match="77 positions"):
        late(pixel_values=images())
    with late.disable_adapter(), pytest.raises(ValueError, match="77 positions"):
        late(pixel_values=images())


def test_no_class_names(tokenizer_path):
    model = coop(tokenizer_path, class_names=None)
    with pytest.raises(ValueError, match="has no class names.*set_class_names"):
        model(pixel_values=images())
    model.set_class_names(NEW_NAMES)
    assert model(pixel_values=images()).logits.shape == (4, 3)


def test_class_specific_needs_names(tokenizer_path):
    with pytest.raises(ValueError, match="class_specific=True"):
        ContextOptConfig(class_specific=True)


def test_class_names_on_a_model_without_text():
    model = get_peft_model(tiny_vit(), VisualPromptConfig())
    for call in (lambda: model.set_class_names(NEW_NAMES), model.encode_classes):
        with pytest.raises(ValueError, match="CLIPModel.*ViTModel has none"):
            call()


# ---- tokenizers --------------------------------------------------------------------------------------------------


def test_a_model_built_in_memory_has_no_tokenizer():
    model = get_peft_model(tiny_clip(), ContextOptConfig(class_names=CLASS_NAMES))
    with pytest.raises(ValueError, match="No tokenizer found.*built in memory.*tokenizer_name_or_path"):
        model(pixel_values=images())
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    assert model(pixel_values=images()).logits.shape == (4, 5)


def test_words_ask_for_a_tokenizer_before_anything_is_changed():
    base = tiny_clip()
    with pytest.raises(ValueError, match="No tokenizer found"):
        get_peft_model(base, MaPLeConfig(prompt_depth=2))
    assert str(base) == str(tiny_clip())


def test_the_tokenizer_of_the_base_model_is_found(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = get_peft_model(CLIPModel.from_pretrained(tmp_path), MaPLeConfig(class_names=CLASS_NAMES, prompt_depth=2))
    assert model(pixel_values=images()).logits.shape == (4, 5)


def test_a_path_from_another_machine_falls_back_with_a_warning(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    gone = str(tmp_path / "gone")
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=gone)
    model = get_peft_model(CLIPModel.from_pretrained(tmp_path), config).eval()
    with pytest.warns(UserWarning, match="cannot be loaded here"):
        model(pixel_values=images())


def test_a_tokenizer_without_end_token(tokenizer_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    model = coop(tokenizer_path)
    with pytest.raises(ValueError, match="tokenizer that the model was trained with"):
        model.set_class_names(NEW_NAMES, tokenizer=tokenizer)


# ---- configs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VisualPromptConfig(num_virtual_tokens=0), "num_virtual_tokens to be an integer >= 1.*=0"),
        (lambda: VisualPromptConfig(num_virtual_tokens=2.5), "num_virtual_tokens=2.5"),
        (lambda: VisualPromptConfig(num_deep_layers=2), "deep=True with num_deep_layers=2"),
        (lambda: VisualPromptConfig(deep_shared=True), "deep=True with deep_shared"),
        (lambda: VisualPromptConfig(prompt_dropout=1.0), r"\[0, 1\)"),
        (lambda: VisualPromptConfig(projection_dim=0), "projection_dim"),
        (lambda: VisualPromptConfig(location="bottom"), r"location to be one of \['prepend', 'add'.*'bottom'"),
        (lambda: VisualPromptConfig(pooling="max"), r"pooling to be one of \['original'.*'max'"),
        (lambda: VisualPromptConfig(first_layer=-1), "first_layer to be an integer >= 0"),
        (lambda: VisualPromptConfig(location="pad", deep=True), "'pad' are pixels.*deep=True"),
        (lambda: VisualPromptConfig(location="below", first_layer=1), "'below' are pixels.*first_layer=1"),
        (lambda: VisualPromptConfig(location="prepend-pixel", projection_dim=4), "are pixels.*projection_dim=4"),
        (lambda: VisualPromptConfig(location="pad", prompt_dropout=0.1), "are pixels.*prompt_dropout=0.1"),
        (lambda: VisualPromptConfig(location="add", pooling="prompt_pool"), "'add' no output belongs"),
        (lambda: VisualPromptConfig(location="add-1", read_only=True), "location='prepend' with read_only.*'add-1'"),
        (lambda: VisualPromptConfig(read_only=True, pooling="img_pool"), "'original' or 'prompt_pool'.*'img_pool'"),
        (lambda: ContextOptConfig(tune="all"), "'context', 'class_name', 'full'.*'all'"),
        (lambda: ContextOptConfig(tune="full"), "class_names with class_specific=True or learned class names"),
        (lambda: MRPOConfig(prompt_update="add"), "'replace', 'accumulate'.*'add'"),
        (lambda: ReadOnlyPromptConfig(num_virtual_tokens=0), "num_virtual_tokens"),
        (lambda: CoCoOpConfig(prompt_init_text=" "), "Expected prompt_init_text"),
        (lambda: ClassHeadConfig(), "one row for each class"),
        (lambda: ContextOptConfig(class_token_position="back"), "'end', 'middle', 'front'.*'back'"),
        (lambda: ContextOptConfig(prompt_init="zeros"), "'random', 'text'.*'zeros'"),
        (lambda: ContextOptConfig(prompt_init="text"), "Expected prompt_init_text"),
        (lambda: MaPLeConfig(coupling="mlp"), "'linear', 'none'.*'mlp'"),
        (lambda: MaPLeConfig(prompt_depth=0), "at least one tower"),
        (lambda: MaPLeConfig(vision_num_virtual_tokens=4), "2 text and 4 visual.*coupling='none'"),
        (lambda: MaPLeConfig(text_prompt_depth=1), "9 > 1.*coupling='none'"),
        (lambda: MaPLeConfig(template="a photo"), "exactly one '{}'.*'a photo'"),
        (lambda: MaPLeConfig(template=[]), r"a template or a list of them.*template=\[\]"),
        (lambda: MaPLeConfig(template=None), "a template or a list of them.*template=None"),
        (lambda: PromptConfig(task_type="SEQ_CLS"), "task_type='SEQ_CLS'.*Leave it out"),
    ],
)
def test_refused_config_values(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_words_set_the_length():
    assert ContextOptConfig(prompt_init="text", prompt_init_text="a photo of a").num_virtual_tokens == 4
    with pytest.warns(UserWarning, match="num_virtual_tokens=16 is ignored"):
        config = ContextOptConfig(prompt_init="text", prompt_init_text="a_photo_of", num_virtual_tokens=16)
    assert config.num_virtual_tokens == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MaPLeConfig(prompt_init="random"),
            "<= 3, the layers of the text tower. Received: text_prompt_depth=9. Set prompt_depth",
        ),
        (
            MaPLeConfig(prompt_init="random", coupling="none", text_prompt_depth=1, vision_prompt_depth=4),
            "<= 3, the layers of the vision tower. Received: vision_prompt_depth=4",
        ),
        (VisualPromptConfig(deep=True, num_deep_layers=4), "num_deep_layers <= 3"),
        (VisualPromptConfig(deep=True, num_deep_layers=2, first_layer=2), "<= 3.*first_layer=2, num_deep_layers=2"),
        (VisualPromptConfig(first_layer=3), "<= 3.*first_layer=3"),
        (
            MMRLConfig(),
            "representation_layers <= 3, the layers of the text tower. Received: representation_layers=12.$",
        ),
        (TCPConfig(), "class_token_layer < 3, the layers of the text tower. Received: class_token_layer=8.$"),
    ],
)
def test_more_prompted_layers_than_there_are(config, message):
    base = tiny_clip()
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, config)
    assert str(base) == str(tiny_clip())
    assert all(layer.self_attn.config is base.config.text_config for layer in base.text_model.encoder.layers)


# ---- base models -------------------------------------------------------------------------------------------------


def test_unsupported_backbone():
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(ValueError, match="Cannot put prompts into BertModel.*CLIPModel.*ViTForImageClassification"):
        get_peft_model(bert, VisualPromptConfig())


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "CLIPModel"])
@pytest.mark.parametrize(
    "method", [name for name in PROMPT_METHODS if PROMPT_METHODS[name].tuner_class.method.needs_text]
)
def test_text_methods_need_a_text_tower(method, backbone):
    config = next(iter(CONFIGS[method].values()))(class_names=CLASS_NAMES)
    with pytest.raises(ValueError, match="no text tower. Supported models: CLIPModel"):
        get_peft_model(BACKBONES[backbone](), config)


def test_wrapping_a_peft_model(tokenizer_path):
    base = coop(tokenizer_path)
    with (
        pytest.warns(UserWarning, match="second time"),
        pytest.raises(ValueError, match="carries prompt adapters already.*unload.*add_adapter"),
    ):
        coop(tokenizer_path, base)


# ---- images and labels -------------------------------------------------------------------------------------------


def test_labels_out_of_range(tokenizer_path):
    model = coop(tokenizer_path)
    with pytest.raises(ValueError, match="labels from 0 to 4.*Received labels from 0 to 5"):
        model(pixel_values=images(), labels=torch.tensor([0, 1, 2, 5]))
    with pytest.raises(ValueError, match="Received labels from -1 to 2"):
        model(pixel_values=images(), labels=torch.tensor([0, -1, 2, 1]))
    assert model(pixel_values=images(), labels=torch.tensor([0, 1, 2, -100])).loss.isfinite()


def test_nan_images(tokenizer_path):
    bad = images()
    bad[1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="finite pixel_values"):
        coop(tokenizer_path)(pixel_values=bad)


@pytest.mark.parametrize("base", [tiny_clip, tiny_vit])
def test_images_of_another_size(base, tokenizer_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} if base is tiny_clip else {}
    model = get_peft_model(base(), VisualPromptConfig(num_virtual_tokens=2, deep=True, **options)).eval()
    large = torch.randn(2, 3, 48, 64)
    with pytest.raises(ValueError, match=r"32x32 pixels.*\[2, 3, 48, 64\].*interpolate_pos_encoding=True"):
        model(pixel_values=large)
    assert model(pixel_values=large, interpolate_pos_encoding=True).logits.shape == (2, 5)


def test_images_without_a_batch(tokenizer_path):
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\].*Received.*\[3, 32, 32\]"):
        coop(tokenizer_path)(pixel_values=images()[0])


@pytest.mark.parametrize("base", [tiny_clip, tiny_vit])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (images()[:, 0], r"height, width\] with 3 channels.*shape \[4, 32, 32\].*make grey ones RGB"),
        (images()[:, :1], r"with 3 channels.*shape \[4, 1, 32, 32\].*make grey ones RGB"),
        (images()[:0], r"Expected at least one image. Received: pixel_values of shape \[0, 3, 32, 32\]"),
    ],
    ids=["no channels", "one channel", "no image"],
)
def test_grey_and_no_images(base, bad, message, tokenizer_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} if base is tiny_clip else {}
    model = get_peft_model(base(), VisualPromptConfig(num_virtual_tokens=2, **options)).eval()
    calls = [lambda: model(pixel_values=bad), lambda: model.encode_images(bad)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    if base is tiny_clip:
        with model.disable_adapter(), pytest.raises(ValueError, match=message):
            model(pixel_values=bad)


def test_images_that_are_no_tensor(tokenizer_path):
    with pytest.raises(TypeError, match=r"pixel_values as a tensor.*return_tensors='pt'.*Received: list"):
        coop(tokenizer_path)(pixel_values=images().tolist())


@pytest.mark.parametrize("base", [tiny_clip, tiny_vit])
def test_images_of_whole_numbers(base, tokenizer_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} if base is tiny_clip else {}
    model = get_peft_model(base(), VisualPromptConfig(num_virtual_tokens=2, **options)).eval()
    with pytest.raises(TypeError, match="normalised pixels, as the model's image processor.*Received: torch.uint8"):
        model(pixel_values=images().to(torch.uint8))
    torch.testing.assert_close(model(pixel_values=images().double()).logits, model(pixel_values=images()).logits)


def test_images_by_position(tokenizer_path):
    model = coop(tokenizer_path)
    with pytest.raises(ValueError, match=r"by name: model\(pixel_values=...\).*Received: 1 inputs by position"):
        model(images())
    with pytest.raises(ValueError, match="Received: 0 inputs by position and return_loss by name"):
        model(return_loss=True)


def test_no_image_features(tokenizer_path):
    with pytest.raises(ValueError, match=r"at least one image. Received: image_features of shape \[0, 16\]"):
        coop(tokenizer_path)(image_features=torch.zeros(0, 16))


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.uint8, np.int32, lambda y: torch.tensor(y).int()])
def test_labels_may_be_a_list(kind, tokenizer_path):
    given, numbers = labels(), kind(labels().tolist())
    for model in (coop(tokenizer_path), get_peft_model(tiny_vit(), VisualPromptConfig()).eval()):
        assert torch.equal(
            model(pixel_values=images(), labels=numbers).loss, model(pixel_values=images(), labels=given).loss
        )
    features = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    assert coop(tokenizer_path)(image_features=features, labels=numbers).loss.isfinite()


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (["cat"] * 4, TypeError, r"list of integers.*place of its class in class_names.*\['cat', "),
        ([0, 1], ValueError, r"one integer label per image, \[4\].*shape \[2\]"),
        (torch.zeros(4, 1, dtype=torch.long), ValueError, r"\[4, 5\].*Received: labels of shape \[4, 1\]"),
        ([True, False, True, True], ValueError, "one integer label per image.*dtype torch.bool"),
        ([0.0, 1.0, 2.0, 3.0], ValueError, r"or probabilities \[4, 5\].*dtype torch.float32"),
    ],
)
def test_labels_that_are_none(bad, error, message, tokenizer_path):
    with pytest.raises(error, match=message):
        coop(tokenizer_path)(pixel_values=images(), labels=bad)


def test_probabilities_as_labels(tokenizer_path):
    one_hot = torch.nn.functional.one_hot(labels(), len(CLASS_NAMES)).float()
    given = (one_hot, one_hot.double(), one_hot.half(), labels())
    *soft, hard = (coop(tokenizer_path)(pixel_values=images(), labels=y).loss for y in given)
    for loss in soft:
        torch.testing.assert_close(loss, hard)


def test_unknown_keywords(tokenizer_path):
    model = coop(tokenizer_path)
    message = "unexpected keyword arguments: {}. .*takes interpolate_pos_encoding.*own call, with input_ids"
    for call in (model, model.encode_images):
        with pytest.raises(TypeError, match=message.format("interpolate_positions")):
            call(pixel_values=images(), interpolate_positions=True)
    with pytest.raises(TypeError, match=message.format("output_hidden_states")):
        model(pixel_values=images(), output_hidden_states=True)
    with pytest.raises(TypeError, match="image_features got unexpected keyword arguments: pixels"):
        model(image_features=torch.ones(1, 16) / 4, pixels=True)
    model = get_peft_model(tiny_clip(), ReadOnlyPromptConfig(class_names=CLASS_NAMES, num_virtual_tokens=2)).eval()
    with pytest.raises(TypeError, match="arguments: patches"):
        model.classify_with_adapters(images(), ["default"], patches=1)


def test_keywords_of_training_loops_and_pipelines(tokenizer_path):
    model = coop(tokenizer_path)
    expected = model(pixel_values=images(), labels=labels())
    idle = {"input_ids": None, "attention_mask": None, "output_attentions": False, "return_loss": None}
    call = {"pixel_values": images(), "labels": labels(), "num_items_in_batch": torch.tensor(8), **idle}
    assert torch.equal(model(**call, return_dict=True).loss, expected.loss)
    features = model.encode_images(images())
    for inputs in ({"pixel_values": images()}, {"image_features": features}):
        loss, logits = model(**inputs, labels=labels(), return_dict=False)
        assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
        (logits,) = model(**inputs, return_dict=False)
        assert torch.equal(logits, expected.logits)
    model.get_base_model().config.return_dict = False
    assert isinstance(model(pixel_values=images()), tuple)


@pytest.mark.parametrize("name", ["half", "forward", "training", "__base__", "a.b", "", "/a", "x" * 201, "\0", None])
def test_names_that_no_adapter_can_have(name, tokenizer_path, tmp_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config)
    model.save_pretrained(tmp_path)
    before = str(model)
    for call in (
        lambda: model.add_adapter(name, config),
        lambda: model.load_adapter(str(tmp_path), name),
        lambda: get_peft_model(tiny_clip(), config, adapter_name=str(name or "")),
        lambda: PeftModel.from_pretrained(tiny_clip(), str(tmp_path), adapter_name=name),
        lambda: get_peft_model(tiny_vit(), BiasTuningConfig(), adapter_name=str(name or "")),
        lambda: inject_adapter_in_model(config, tiny_clip(), adapter_name=name),
    ):
        with pytest.raises(ValueError, match="Expected an adapter name.*Received: adapter_name=.*Use another"):
            call()
    assert str(model) == before and list(model.peft_config) == ["default"]


@pytest.mark.parametrize(
    "name", ["weight", "learner", "text_model", "context_prompt_learner", "prompt", "0", "me/mine"]
)
def test_names_that_stand_in_keys_are_loaded_as_they_were_saved(name, tokenizer_path, tmp_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config, adapter_name=name).eval()
    model.save_pretrained(tmp_path)
    for as_name in ("default", name):
        loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path / name), adapter_name=as_name).eval()
        with torch.no_grad():
            assert torch.equal(loaded(pixel_values=images(2)).logits, model(pixel_values=images(2)).logits)


@pytest.mark.parametrize("tokenizer", [5, "openai/clip", {}, object()], ids=["number", "name", "dict", "object"])
def test_what_is_no_tokenizer_changes_nothing(tokenizer, tokenizer_path):
    model = coop(tokenizer_path)
    with pytest.raises(TypeError, match="Expected tokenizer to be one of transformers.*Received: tokenizer="):
        model.set_class_names(NEW_NAMES, tokenizer=tokenizer)
    assert model.class_names == CLASS_NAMES and model(pixel_values=images(1)).logits.isfinite().all()


def test_a_tokenizer_that_fails_is_not_kept(tokenizer_path):
    model = coop(tokenizer_path)
    broken = tiny_tokenizer()
    broken.backend_tokenizer.post_processor = processors.TemplateProcessing("$A")
    with pytest.raises(ValueError, match="to give"):
        model.set_class_names(NEW_NAMES, tokenizer=broken)
    model.set_class_names(NEW_NAMES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.set_class_names(["\ud800"]), ValueError, "whole|class name to be a non-empty string"),
        (lambda m: m(pixel_values=images(2).to_sparse()), TypeError, "pixel_values as a dense tensor"),
        (lambda m: m(pixel_values=images(2).to("meta")), TypeError, "pixel_values with values"),
        (lambda m: m(pixel_values=images(2), labels=labels(2).to_sparse()), TypeError, "labels as a dense tensor"),
        (lambda m: m.encode_images(images(2) * float("nan")), ValueError, "Expected finite pixel_values"),
        (lambda m: m(image_features=[1.0]), TypeError, "image_features as a tensor.*Received: list"),
        (lambda m: m(image_features=np.zeros((1, 16))), TypeError, "image_features as a tensor.*Received: ndarray"),
        (lambda m: m(image_features=torch.ones(2, 5)), ValueError, r"image_features \[batch, 16\].*\[2, 5\]"),
        (lambda m: m(image_features=torch.ones(16)), ValueError, r"image_features \[batch, 16\].*\[16\]"),
        (lambda m: m(pixel_values=images(2), adapter_names=5), TypeError, "Received: adapter_names=5"),
        (lambda m: m.classify_with_adapters(images(2), [None]), TypeError, r"Received: adapter_names=\[None\]"),
        (lambda m: m.set_adapter(["default"]), ValueError, "not found. This model has"),
        (lambda m: m.add_weighted_adapter([], None, "w"), ValueError, "names of the adapters to sum up"),
        (lambda m: m.add_weighted_adapter("default", None, "w"), TypeError, "Received: adapter_names='default'"),
        (lambda m: m.add_weighted_adapter(["default"], [float("nan")], "w"), ValueError, r"weights=\[nan\]"),
        (lambda m: m.add_weighted_adapter(["default"], ["1"], "w"), ValueError, r"weights=\['1'\]"),
        (
            lambda m: m.add_weighted_adapter(["default"], [10**400], "w"),
            ValueError,
            "one weight for each adapter, finite",
        ),
        (lambda m: m.add_weighted_adapter(["default"], 1.0, "w"), ValueError, "weights=1.0"),
    ],
)
def test_values_of_calls_that_are_none(call, error, message, tokenizer_path):
    model = coop(tokenizer_path)
    with pytest.raises(error, match=message):
        call(model)
    assert list(model.peft_config) == ["default"] and model(pixel_values=images(1)).logits.isfinite().all()


def test_adapter_names_that_are_not_there(tokenizer_path):
    with pytest.raises(ValueError, match=r"adapter_names from \['default', '__base__'\]. Received: \['other'\]"):
        coop(tokenizer_path)(pixel_values=images(2), adapter_names=["default", "other"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("logit_scale", "'logit_scale', which is no module"), ("post_layernorm", "'post_layernorm', which is inside")],
)
def test_modules_to_save_that_cannot_be(name, message, tokenizer_path):
    base = tiny_clip()
    with pytest.raises(ValueError, match=message):
        coop(tokenizer_path, base, modules_to_save=[name])
    assert type(base) is CLIPModel and not any("learner" in key for key, _ in base.named_modules())


@pytest.mark.parametrize("template", ["a {", "{type} "])
def test_other_braces_of_a_template_are_text(template, tokenizer_path):
    config = VisualPromptConfig(template=f"{template}{{}}", class_names=["cat"], tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config)
    sequences = model.base_model.method.class_sequences(config, ["cat"], tiny_tokenizer())
    assert sequences == [[tiny_tokenizer()(f"{template}cat").input_ids]]
    with model.disable_adapter():
        zero_shot = model.encode_classes()
    torch.testing.assert_close(model.encode_classes(), zero_shot, rtol=0, atol=1e-5)


def test_labels_on_the_base_model_itself(tokenizer_path):
    base = coop(tokenizer_path).get_base_model()
    with pytest.raises(ValueError, match="classification call of the PEFT model"):
        base(pixel_values=images(), labels=labels())


# ---- adapter files -----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer_path, tmp_path):
    coop(tokenizer_path).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def wider_clip():
    text = TEXT | {"vocab_size": VOCABULARY_SIZE, "hidden_size": 64, "eos_token_id": VOCABULARY_SIZE - 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).eval()


def break_other_model(path):
    return wider_clip()


def break_truncated(path):
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    return tiny_clip()


def break_renamed(path):
    weights = load_file(path / "adapter_model.safetensors")
    save_file({key.replace("tokens", "vectors"): v for key, v in weights.items()}, path / "adapter_model.safetensors")
    return tiny_clip()


def break_missing_tensor(path):
    save_file({"other": torch.zeros(1)}, path / "adapter_model.safetensors")
    return tiny_clip()


def break_nan(path):
    weights = load_file(path / "adapter_model.safetensors")
    save_file({key: v * float("nan") for key, v in weights.items()}, path / "adapter_model.safetensors")
    return tiny_clip()


def break_no_weights(path):
    (path / "adapter_model.safetensors").unlink()
    return tiny_clip()


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def break_pickle(path):
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(pickle.dumps({"x": RunsCode()}))
    return tiny_clip()


BROKEN = {
    break_other_model: "has shape .*4, 32.* instead of .*4, 64",
    break_truncated: "Cannot read the adapter weights.*Save or download it again",
    break_renamed: "missing .*tokens; unexpected .*vectors",
    break_missing_tensor: "missing .*tokens; unexpected other",
    break_nan: "NaN or infinite values",
    break_no_weights: "weights of the adapter, adapter_model.safetensors or .*Received: README.md, adapter_config.json. ",
    break_pickle: "Cannot read the adapter weights.*plain tensors",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_broken_adapters_change_nothing(damage, saved, tokenizer_path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good"
    shutil.copytree(saved, good)
    base = damage(saved)
    before = str(base), {k: v.clone() for k, v in base.state_dict().items()}
    for is_trainable in (False, True):
        with pytest.raises(ValueError, match=BROKEN[damage]):
            PeftModel.from_pretrained(base, str(saved), is_trainable=is_trainable)
        assert str(base) == before[0] and type(base) is CLIPModel
        assert all(torch.equal(before[1][key], value) for key, value in base.state_dict().items())

    model = coop(tokenizer_path, base)
    expected = model(pixel_values=images()).logits
    for name in ("new", "default"):
        with pytest.raises(ValueError, match=BROKEN[damage]):
            model.load_adapter(str(saved), name)
        assert list(model.peft_config) == ["default"]
        assert torch.equal(model(pixel_values=images()).logits, expected)

    if damage is not break_other_model:  # whose adapter is a good one, for this model
        loaded = PeftModel.from_pretrained(tiny_clip(), str(good)).eval()
        expected = loaded(pixel_values=images()).logits
        with pytest.raises(ValueError, match=BROKEN[damage]):
            loaded.load_adapter(str(saved), "default")
        assert torch.equal(loaded(pixel_values=images()).logits, expected)
    assert not (tmp_path / "ran-code").exists()


@pytest.mark.parametrize(("method", "case"), class_by_class())
def test_names_that_were_edited_after_learning(method, case, tokenizer_path, tmp_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    model = get_peft_model(tiny_clip(), CONFIGS[method][case](**options)).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())

    def load(**changes):
        path.write_text(json.dumps(saved | changes))
        return PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).eval()

    edited = {"class_names": ["cow", *CLASS_NAMES[1:]]}  # as many tokens as before
    message = "not the names it learned them for. Received: 5 names .cow, sea lion.*Put back the names"
    for changes in (edited, {"class_names": CLASS_NAMES[::-1]}):
        with pytest.raises(ValueError, match=message.replace("cow, sea lion", ", ".join(changes["class_names"][:2]))):
            load(**changes)
        path.write_text(json.dumps(saved))
        other = get_peft_model(tiny_clip(), CONFIGS[method][case](**options | changes)).eval()
        before = other(pixel_values=images()).logits
        fits = [p.shape for p in other.parameters()] == [p.shape for p in model.parameters()]
        with pytest.raises(ValueError, match="not the names it learned them for" if fits else "has shape"):
            other.load_adapter(str(tmp_path), "default")
        assert torch.equal(other(pixel_values=images()).logits, before)
    expected = model(pixel_values=images()).logits
    readable = [name.replace(" ", "_") for name in CLASS_NAMES]  # underscores are read as spaces
    for loaded in (load(), load(class_names=readable)):
        assert torch.equal(loaded(pixel_values=images()).logits, expected)
    load(**edited, class_names_digest=None)  # of a version that did not record it
    path.unlink()
    model.load_adapter(str(tmp_path), "default")  # weights alone, into an adapter that is there
    assert torch.equal(model(pixel_values=images()).logits, expected)


def test_a_failed_save_leaves_the_old_files(saved, tokenizer_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = coop(tokenizer_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("peft.peft_model.safe_save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_saving_to_a_file(tokenizer_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Expected a directory"):
        coop(tokenizer_path).save_pretrained(tmp_path / "file")


def test_adapters_of_a_later_version_still_load(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        PeftModel.from_pretrained(tiny_clip(), str(saved))


# ---- checkpoints to convert --------------------------------------------------------------------------------------


def test_conversion_refuses_a_pickle_that_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 32)}, "x": RunsCode()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="plain tensors.*a pickle can run code"):
        convert_checkpoint(tmp_path / "bad.pth", "coop", tmp_path / "out")
    assert not (tmp_path / "ran-code").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "method", "options", "message"),
    [
        ({"ctx": torch.zeros(4, 32)}, "prompt-tuning", {}, "Expected method to be one of.*'prompt-tuning'"),
        ({"ctx": torch.zeros(4, 32)}, "maple", {}, "Expected 'prompt_learner.ctx'.*with ctx"),
        ({"prompt_learner.ctx": torch.zeros(4, 32)}, "coop", {}, "Expected 'ctx'.*prompt_learner.ctx"),
        ({"ctx": torch.zeros(5, 4, 32)}, "coop", {}, "one context per class"),
        ({"ctx": torch.zeros(4, 48)}, "coop", {}, "has shape .*48.* instead of .*32"),
        ({"ctx": torch.zeros(4, 32)}, "coop", {"num_virtual_tokens": 5}, "say num_virtual_tokens=4"),
        (
            {
                "image_encoder.VPT": torch.zeros(2, 24),
                "image_encoder.transformer.resblocks.2.VPT_shallow": torch.zeros(2, 24),
            },
            "vpt-clip",
            {},
            "without gaps",
        ),
        (
            {"image_encoder.VPT": torch.zeros(2, 24), "prompt_learner.ctx": torch.zeros(2, 32)},
            "vpt-clip",
            {},
            "'ivlp'",
        ),
    ],
)
def test_conversion_names_what_does_not_fit(state, method, options, message, tmp_path):
    base = tiny_clip()
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(state, method, tmp_path / "out", base_model=base, **options)
    assert not (tmp_path / "out").exists()
    assert str(base) == str(tiny_clip())


def test_conversion_reads_half_precision_and_writes_without_a_base(tmp_path, tokenizer_path):
    state = {"state_dict": {"module.ctx": torch.randn(4, 32).half(), "token_prefix": torch.zeros(3, 1, 32)}}
    convert_checkpoint(
        state, "coop", tmp_path, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, template="a {}."
    )
    model = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert model(pixel_values=images()).logits.shape == (4, 5)
    tokens = load_file(tmp_path / "adapter_model.safetensors")
    assert [t.dtype for t in tokens.values()] == [torch.float32]


def test_conversion_of_a_head(tmp_path):
    prompts = {"enc.transformer.prompt_embeddings": torch.randn(1, 3, 24)}
    with pytest.raises(ValueError, match="no head. Pass base_model"):
        convert_checkpoint({"model": prompts}, "vpt", tmp_path / "out")
    base = tiny_vit()
    convert_checkpoint({"model": prompts}, "vpt", tmp_path / "kept", base_model=base)
    assert torch.equal(
        load_file(tmp_path / "kept/adapter_model.safetensors")["base_model.model.classifier.weight"],
        base.classifier.weight,
    )
    head = {"head.last_layer.weight": torch.randn(5, 24), "head.last_layer.bias": torch.randn(5)}
    convert_checkpoint({"model": prompts | head}, "vpt", tmp_path / "free")
    model = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "free"))
    assert torch.equal(
        model.get_base_model().classifier.modules_to_save.default.weight, head["head.last_layer.weight"]
    )


def test_conversion_from_a_folder(tmp_path, tokenizer_path):
    tiny_clip().save_pretrained(tmp_path / "base")
    convert_checkpoint(
        {"ctx": torch.randn(4, 32)}, "coop", tmp_path / "out", base_model=tmp_path / "base", class_names=CLASS_NAMES
    )
    saved = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "base")
    assert saved["auto_mapping"]["base_model_class"] == "CLIPModel"


@pytest.mark.parametrize("options", ({"class_specific": True}, {"tune": "class_name"}, None))
def test_names_that_are_read_alike_are_the_same_classes(options, tokenizer_path):
    names = {"class_names": ["sea_lion", "cat"], "tokenizer_name_or_path": tokenizer_path}
    config = ClassHeadConfig(**names) if options is None else ContextOptConfig(**names, **options)
    model = get_peft_model(tiny_clip(), config).eval()
    expected = model(pixel_values=images()).logits
    model.set_class_names(["sea lion", "cat"])
    assert torch.equal(model(pixel_values=images()).logits, expected)


def test_words_that_nothing_starts_from_warn():
    with pytest.warns(UserWarning, match="'a photo of a' is ignored with prompt_init='random'"):
        ContextOptConfig(prompt_init_text="a photo of a")


@pytest.mark.parametrize("content", ([torch.ones(2)], torch.ones(2), {0: torch.ones(2)}))
def test_a_checkpoint_that_names_no_tensors(content, tmp_path):
    torch.save(content, tmp_path / "model.pth.tar-50")
    with pytest.raises(
        AdapterMismatchError, match="Expected a checkpoint that names its tensors.*Save model.state_dict"
    ):
        convert_checkpoint(tmp_path / "model.pth.tar-50", "coop", tmp_path / "out")
    assert not (tmp_path / "out").exists()

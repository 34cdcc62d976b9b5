"""What is said of an adapter: from its files alone, and on its base model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from peft_vprompt import ContextOptConfig
from peft_vprompt.core.attention import ReadAll, kept_weights
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.experiments.attention_maps import attention_maps
from peft_vprompt.experiments.inspection import describe_adapter, inspect_with_model, nearest_words, similar_classes
from peft_vprompt.experiments.models import build_model
from tests.support.command_line import vprompt
from tests.support.models import CLASS_NAMES, images, tiny_clip, tiny_tokenizer


KEPT = Path(__file__).parents[1] / "parity" / "adapters"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, clip_path, vit_path):
    """Adapters of some methods in folders, and their base models."""
    folder = tmp_path_factory.mktemp("adapters")
    for method, base in (("maple", clip_path), ("vpt", clip_path), ("cocoop", clip_path), ("linear", vit_path)):
        build_model(base, method, CLASS_NAMES).model.save_pretrained(folder / method)
    return folder


def test_files_alone_say_what_an_adapter_is():
    """Of all methods, and no base model is there."""
    for folder in sorted(KEPT.iterdir()):
        found = describe_adapter(folder)
        assert found["title"] and found["method"] and found["peft_type"], folder.name
        assert found["bytes"] == (folder / "adapter_model.safetensors").stat().st_size
        assert found["parameters"] > 0 and json.dumps(found)


def test_norms_by_depth():
    found = describe_adapter(KEPT / "visual_prompt-deep")
    (norms,) = found["norms"]
    (tensor,) = found["tensors"]
    assert len(norms["norms"]) == tensor["shape"][0] == 3
    assert min(norms["norms"]) <= tensor["norm"] / 6**0.5 <= max(norms["norms"]) * 1.2
    lora, *_ = describe_adapter(KEPT / "clip_lora-both")["norms"]
    assert lora["layers"] == sorted(lora["layers"]) and len(lora["norms"]) == len(lora["layers"])
    (classes,) = describe_adapter(KEPT / "context_opt-class-specific")["norms"]
    assert len(classes["norms"]) == 1


def test_a_context_of_words_is_nearest_to_these(tokenizer_path):
    config = ContextOptConfig(
        prompt_init="text",
        prompt_init_text="a photo of a",
        class_names=CLASS_NAMES,
        tokenizer_name_or_path=tokenizer_path,
    )
    model = get_peft_model(tiny_clip(), config)
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a photo of a", add_special_tokens=False).input_ids
    near = nearest_words(model)
    assert [each["words"][0]["word"] for each in near] == [
        tokenizer.decode([each]).strip() for each in ids[: len(near)]
    ]
    assert all(each["words"][0]["distance"] < 1e-4 < each["words"][1]["distance"] for each in near)


def test_classes_that_are_alike_come_first(clip_path):
    with pytest.warns(UserWarning, match="class_names repeats"):
        model = build_model(clip_path, "coop", ["cat", "dog", "cat", "fox"]).model
    first, *others = similar_classes(model)
    assert first["classes"] == ["cat", "cat"] and first["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(others) == 5 and [each["cosine"] for each in others] == sorted(
        (e["cosine"] for e in others), reverse=True
    )
    pairs = build_model(clip_path, "rpo", CLASS_NAMES).model.eval()
    features = pairs.encode_classes()
    found = similar_classes(pairs, limit=1)[0]
    one, other = (CLASS_NAMES.index(name) for name in found["classes"])
    assert found["cosine"] == pytest.approx(float((features[one] * features[other]).detach().sum(-1).mean()), abs=1e-5)


def test_kept_weights_are_those_that_are_used():
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    with kept_weights() as weights:
        output = ReadAll(key, value)(query, key, value, 0.5, 0.0)
    torch.testing.assert_close(weights[0] @ value, output)
    ReadAll(key, value)(query, key, value, 0.5, 0.0)
    assert len(weights) == 1


@pytest.mark.parametrize("method", ["vpt", "vpt-shallow", "maple", "rpo", "mmrl", "promptsrc"])
def test_attention_over_patches(method, clip_path):
    model = build_model(clip_path, method, CLASS_NAMES).model
    before = model.get_base_model().config._attn_implementation
    found = attention_maps(model, images()[:1])
    assert found.image.shape == (32, 32, 3) and found.maps.shape[1:] == (4, 4)
    assert found.maps.min() > 0 and found.maps.reshape(len(found.maps), -1).sum(1).max() < 1
    assert model.get_base_model().config._attn_implementation == before


@pytest.mark.parametrize("method", ["rpo", "vpt", "maple"])
def test_rows_and_columns_are_those_of_the_patches(method, clip_path):
    """Attention changes most at the one patch that changes."""
    model = build_model(clip_path, method, CLASS_NAMES).model
    plain, marked = torch.zeros(2, 1, 3, 32, 32)
    marked[:, :, 8:16, 16:24] = 3.0
    changed = abs(attention_maps(model, marked).maps - attention_maps(model, plain).maps).mean(0)
    assert np.unravel_index(changed.argmax(), changed.shape) == (1, 2)


@pytest.mark.parametrize("method", ["coop", "cocoop", "classifier-r"])
def test_no_visual_prompts_no_picture(method, clip_path):
    with pytest.raises(UnsupportedModelError, match="puts no tokens into the image encoder"):
        attention_maps(build_model(clip_path, method, CLASS_NAMES).model, images()[:1])


def test_the_command(adapters, tmp_path):
    shown = vprompt("inspect", adapters / "maple")
    assert (
        "MaPLe" in shown and "Nearest words" in shown and "Classes most alike" in shown and "Norms by depth" in shown
    )
    shown = vprompt("inspect", adapters / "maple", "--header")
    assert "MaPLe" in shown and "Nearest words" not in shown
    Image.new("RGB", (50, 40), "green").save(tmp_path / "image.png")
    picture = ("--image", tmp_path / "image.png", "--output", tmp_path / "attention.png")
    vprompt("inspect", adapters / "vpt", *picture)
    assert Image.open(tmp_path / "attention.png").size[0] > 600
    found = json.loads(vprompt("inspect", adapters / "linear", "--json"))
    assert isinstance(found["words"], str) and len(found["similar"]) == 10
    assert "depend on" in json.loads(vprompt("inspect", adapters / "cocoop", "--json"))["similar"]
    given = ("--image", tmp_path / "image.png", "--json")
    assert len(json.loads(vprompt("inspect", adapters / "cocoop", *given))["similar"]) == 10


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--image", "image.png"), "--image with --output"),
        (("--image", "image.png", "--output", "a.png", "--header"), "without --header"),
        (("--image", "no.png", "--output", "a.png"), "no.png"),
        (("--model", "no/such/model"), "no/such/model"),
    ],
)
def test_what_the_command_refuses(more, match, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert match in vprompt("inspect", adapters / "maple", *more, code=2)


def test_class_features_of_an_image(adapters, tmp_path):
    Image.new("RGB", (50, 40), "green").save(tmp_path / "image.png")
    found = inspect_with_model(adapters / "cocoop", image=tmp_path / "image.png")
    assert len(found["similar"]) == 10


def test_a_base_model_that_is_not_there_is_said(tmp_path, tokenizer_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    get_peft_model(tiny_clip(), config).save_pretrained(tmp_path)
    shown = vprompt("inspect", tmp_path)
    assert "CoOp" in shown and "The base model was not loaded" in shown and "--header" in shown

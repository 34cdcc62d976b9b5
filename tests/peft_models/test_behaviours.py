"""PEFT's behaviours on every row of the method table: each works, or is refused by name and changes nothing."""

import copy
import pickle

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from transformers.integrations.peft import MIN_PEFT_VERSION

from tests.support.models import CLASS_NAMES, NUM_LABELS, disturb, images, labels, tiny_tokenizer
from tests.support.peft_behaviours import (
    BEHAVIOURS,
    COPIES,
    EMPTY,
    LORA,
    PROMPTED,
    ROWS,
    base_of,
    config_of,
    made,
    refusal,
)
from tests.support.rows import every_row


pytestmark = pytest.mark.core

TEXTS = torch.tensor([[136, 3, 74, 12, 20, 9, 137], [136, 5, 75, 30, 31, 8, 137]])


def answer(model) -> torch.Tensor:
    """What a model says of the random images."""
    with torch.no_grad():
        output = model(pixel_values=images())
    return output.logits if "logits" in output else output.pooler_output


def add(model, row, tokenizer, name="other", seed=2) -> None:
    """Add another adapter of the same row, moved away from its start; the active one stays."""
    base = base_of(row)
    model.add_adapter(name, config_of(row, base, tokenizer))
    model.set_adapter(name)
    if row == "lora-on-class-names":
        model.set_class_names(CLASS_NAMES)
    disturb(model, seed)
    model.set_adapter("default")


def disabled(model) -> torch.Tensor:
    with model.disable_adapter():
        return answer(model)


@pytest.fixture(params=every_row(ROWS))
def row(request):
    return request.param


@pytest.fixture
def model(row, tokenizer_path):
    return made(row, tokenizer_path)


class TestBehaviours:
    """One test for each column of the table in docs/peft.md."""

    def test_every_column_is_tried(self):
        assert {f"test_{name}" for name in BEHAVIOURS} <= set(dir(type(self)))

    def test_save_and_load(self, row, model, tmp_path):
        expected = answer(model)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(base_of(row), str(tmp_path))
        if row == "lora-on-class-names":
            assert loaded.class_names == CLASS_NAMES
            loaded.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        assert type(loaded) is type(model) and not any(p.requires_grad for p in loaded.parameters())
        torch.testing.assert_close(answer(loaded), expected, rtol=0, atol=0)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(answer(twin), expected, rtol=0, atol=0)

    def test_several(self, row, model, tokenizer_path, tmp_path):
        first = answer(model)
        add(model, row, tokenizer_path)
        torch.testing.assert_close(answer(model), first, rtol=0, atol=0)
        model.set_adapter("other")
        second = answer(model)
        assert not torch.allclose(first, second)
        trained = {name.split(".other")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all(".other" in name for name, p in model.named_parameters() if p.requires_grad)
        model.save_pretrained(tmp_path, selected_adapters=["other"])
        again = PeftModel.from_pretrained(base_of(row), str(tmp_path / "other"), adapter_name="third")
        if row == "lora-on-class-names":
            again.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        torch.testing.assert_close(answer(again), second, rtol=0, atol=0)
        assert again.active_adapters == ["third"]

    def test_switch_off(self, row, model):
        plain, expected = disabled(model), answer(model)
        assert not torch.allclose(plain, expected)
        status = model.get_model_status()
        assert status.enabled is True and status.active_adapters == ["default"]
        model.base_model.disable_adapter_layers()
        torch.testing.assert_close(answer(model), plain, rtol=0, atol=0)
        model.base_model.enable_adapter_layers()
        torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)
        if ROWS[row] != "CLIPModel":
            torch.testing.assert_close(plain, answer(base_of(row)), rtol=0, atol=0)

    def test_delete(self, row, model, tokenizer_path):
        expected, plain = answer(model), disabled(model)
        add(model, row, tokenizer_path)
        model.delete_adapter("other")
        assert list(model.peft_config) == ["default"]
        assert not any(".other" in name for name, _ in model.named_parameters())
        torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="other"):
            model.delete_adapter("other")
        model.delete_adapter("default")
        assert model.peft_config == {} and model.active_adapters == []
        if ROWS[row] == "CLIPModel":
            with pytest.raises(ValueError, match="no active adapter.*add_adapter"):
                model(pixel_values=images())
        else:
            torch.testing.assert_close(answer(model.base_model), plain, rtol=0, atol=0)
        if row == "lora":
            return  # PEFT cannot add one with a head then
        model.add_adapter("new", config_of(row, base_of(row), tokenizer_path))
        model.set_adapter("new")
        if row == "lora-on-class-names":
            model.set_class_names(CLASS_NAMES)
        assert answer(model).shape == expected.shape

    def test_wrap_again(self, row, model, tmp_path):
        """A notebook's cell that loads an adapter runs twice."""
        expected = answer(model)
        model.save_pretrained(tmp_path)
        base = base_of(row)
        for _ in range(2):
            loaded = PeftModel.from_pretrained(base, str(tmp_path))
        if row == "lora-on-class-names":
            loaded.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        torch.testing.assert_close(answer(loaded), expected, rtol=0, atol=0)
        assert list(loaded.peft_config) == ["default"]
        if row not in LORA:  # PEFT's own keeps a trained head, and the base model frozen
            unloaded = loaded.unload()
            assert unloaded is base and all(p.requires_grad for p in base.parameters())
            assert base.state_dict().keys() == base_of(row).state_dict().keys()

    def test_merge(self, row, model):
        expected, plain = answer(model), disabled(model)
        if row in COPIES:
            with pytest.raises(ValueError, match=r"cannot be merged.*merge_and_unload\(\)"):
                model.merge_adapter()
            torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)
            own = own_call(model.get_base_model(), row)
            merged = model.merge_and_unload(safe_merge=True)
            assert str(merged) == str(base_of(row))
            torch.testing.assert_close(own_call(merged, row), own)
            return
        if refusal(row, "merge"):
            for merge in (model.merge_adapter, model.merge_and_unload):
                with pytest.raises(ValueError, match=r"cannot be merged.*unload\(\)"):
                    merge()
            torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)
            return
        close = {"rtol": 1e-4, "atol": 1e-4}
        model.merge_adapter()
        torch.testing.assert_close(answer(model), expected, **close)
        torch.testing.assert_close(disabled(model), plain, **close)
        torch.testing.assert_close(answer(model), expected, **close)
        model.merge_adapter()
        model.unmerge_adapter()
        torch.testing.assert_close(answer(model), expected, **close)
        with torch.no_grad():
            broken = next(
                p for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in name
            )
            kept = broken.clone()
            broken.fill_(torch.nan)
        with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
            model.merge_adapter(safe_merge=True)
        with torch.no_grad():
            broken.copy_(kept)
        if ROWS[row] != "CLIPModel":
            torch.testing.assert_close(answer(model.merge_and_unload(safe_merge=True)), expected, **close)

    def test_mixed_batch(self, row, model, tokenizer_path):
        add(model, row, tokenizer_path)
        # The prompts of a bare ViT stay in its output, so its rows with and without them are not as many.
        names = ["other", "default" if row == "vpt-on-encoder" else "__base__", "default", "other"]
        expected = {"default": answer(model), "__base__": disabled(model)}
        model.set_adapter("other")
        expected["other"] = answer(model)
        model.set_adapter("default")
        with torch.no_grad():
            output = model(pixel_values=images(), adapter_names=names)
        mixed = output.logits if "logits" in output else output.pooler_output
        torch.testing.assert_close(mixed, torch.stack([expected[name][i] for i, name in enumerate(names)]))
        torch.testing.assert_close(answer(model), expected["default"], rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"adapter.*names|adapter_names|Adapter"):
            model(pixel_values=images(), adapter_names=names[:3])
        if ROWS[row] == "CLIPModel":
            with pytest.raises(ValueError, match="texts too, of which each is compared with every image"):
                model(input_ids=TEXTS[[0, 1, 0, 1]], pixel_values=images(), adapter_names=names)
        if row in PROMPTED:
            with pytest.raises(ValueError, match="PEFT model's call alone"):
                model.get_base_model()(pixel_values=images(), input_ids=TEXTS, adapter_names=names)
        with pytest.raises(ValueError, match="training"):
            model.train()(pixel_values=images(), adapter_names=names)

    def test_weighted(self, row, model, tokenizer_path):
        add(model, row, tokenizer_path)
        before = answer(model)
        if refusal(row, "weighted"):
            with pytest.raises(ValueError, match="modules_to_save"):
                model.add_weighted_adapter(["default", "other"], [0.25, 0.75], "sum", combination_type="linear")
            return
        model.add_weighted_adapter(["default", "other"], [0.25, 0.75], "sum", combination_type="linear")
        torch.testing.assert_close(answer(model), before, rtol=0, atol=0)
        model.set_adapter("sum")
        if row == "lora-on-class-names":
            model.set_class_names(CLASS_NAMES)
        assert answer(model).shape == before.shape and not torch.allclose(answer(model), before)
        if row in LORA:
            return
        states = {name: model.adapter_state(name) for name in ("default", "other", "sum")}
        for key, value in states["sum"].items():
            if value.is_floating_point():
                expected = 0.25 * states["default"][key] + 0.75 * states["other"][key]
                torch.testing.assert_close(value, expected)
        for names in (["default", "other"], []):
            with pytest.raises(ValueError, match="weight|Received: none"):
                model.add_weighted_adapter(names, [1.0], "more")
        assert "more" not in model.peft_config

    def test_two_at_once(self, row, model, tokenizer_path):
        add(model, row, tokenizer_path)
        if refusal(row, "two_at_once") is None:
            return  # PEFT's
        expected = answer(model)
        with pytest.raises(ValueError, match=r"[Oo]ne active|[Oo]nly one adapter|multiple"):
            model.base_model.set_adapter(["default", "other"])
            answer(model)
        model.set_adapter("default")
        torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)

    def test_hot_swap(self, row, model, tokenizer_path, tmp_path):
        other = made(row, tokenizer_path, seed=3)
        other.save_pretrained(tmp_path)
        expected = answer(other)
        if refusal(row, "hot_swap"):
            with pytest.raises(ValueError, match="Hotswapping only supports"):
                hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
        model.load_adapter(str(tmp_path), "default")
        torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)

    def test_transformers_api(self, row, model, tokenizer_path, tmp_path):
        if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
            pytest.skip(f"transformers {transformers.__version__} asks for peft {MIN_PEFT_VERSION} here")
        copies = any(isinstance(module, ModulesToSaveWrapper) for module in model.modules())
        if copies and Version(transformers.__version__) < Version("5.18"):
            pytest.skip(f"transformers {transformers.__version__} finds no trained copies of modules, and says so")
        model.save_pretrained(tmp_path)
        base = base_of(row)
        plain = own_call(base, row)
        base.load_adapter(str(tmp_path), adapter_name="first")
        if refusal(row, "texts") is None:  # views into the file, whose alignment changes the last bits of sums
            torch.testing.assert_close(own_call(base, row), own_call(model.get_base_model(), row))
            assert not torch.allclose(own_call(base, row), plain)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        state = base.get_adapter_state_dict("first")
        assert {f"base_model.model.{key}" for key in state} == set(saved)
        assert all(torch.equal(state[key.removeprefix("base_model.model.")], value) for key, value in saved.items())
        base.add_adapter(config_of(row, base, tokenizer_path), adapter_name="second")
        assert base.active_adapters() == ["second"]
        base.set_adapter("first")
        base.disable_adapters()
        torch.testing.assert_close(own_call(base, row), plain, rtol=0, atol=0)
        base.enable_adapters()
        base.delete_adapter("second")
        base.delete_adapter("first")
        torch.testing.assert_close(own_call(base, row), plain, rtol=0, atol=0)
        base.load_adapter(str(tmp_path))
        if refusal(row, "texts") is None and row != "lora":  # whose head PEFT leaves off then
            torch.testing.assert_close(own_call(base, row), own_call(model.get_base_model(), row))

    def test_texts(self, row, model):
        if row in EMPTY["texts"]:
            return
        base = model.get_base_model()
        calls = (
            lambda: base.get_text_features(input_ids=TEXTS).pooler_output,
            lambda: base(input_ids=TEXTS, pixel_values=images()).logits_per_image,
        )
        for call in calls:
            if refusal(row, "texts"):
                with pytest.raises(ValueError, match="input_ids|encode_images"):
                    call()
                with model.disable_adapter(), torch.no_grad():
                    call()
        if refusal(row, "texts") is None:
            with torch.no_grad():
                prompted = calls[1]()
                with model.disable_adapter():
                    assert not torch.allclose(calls[1](), prompted)

    def test_image_features(self, row, model):
        if row in EMPTY["image_features"]:
            return
        base = model.get_base_model()
        calls = (
            lambda: base.get_image_features(pixel_values=images()).pooler_output,
            lambda: base.vision_model(pixel_values=images()).pooler_output,
            lambda: base.vision_model(images())["pooler_output"],
        )
        prompts = model.class_name_classifier.adapted.changes_images
        for call in calls:
            if refusal(row, "image_features"):
                with pytest.raises(ValueError, match="encode_images"):
                    call()
            with torch.no_grad(), model.disable_adapter():
                plain = call()
            if refusal(row, "image_features") is None:
                with torch.no_grad():
                    assert torch.allclose(call(), plain) != prompts


@torch.no_grad()
def own_call(base, row) -> torch.Tensor:
    """What a base model itself says, with or without adapters."""
    if ROWS[row] != "CLIPModel":
        return answer(base.eval())
    if refusal(row, "texts") is not None and getattr(base, "peft_config", None):
        base.disable_adapters()
        plain = base.eval()(input_ids=TEXTS, pixel_values=images()).logits_per_image
        base.enable_adapters()
        return plain
    return base.eval()(input_ids=TEXTS, pixel_values=images()).logits_per_image


def test_training_touches_the_adapter_alone(row, tokenizer_path):
    model = made(row, tokenizer_path).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    if ROWS[row] == "ViTModel":
        model(pixel_values=images()).pooler_output.square().sum().backward()
    else:
        model(pixel_values=images(), labels=labels() % NUM_LABELS).loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= {name for name, p in model.named_parameters() if p.requires_grad}

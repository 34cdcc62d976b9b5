"""The patches of transformers' models: what the Trainer sees, what users keep, and that nothing is left behind."""

import copy
import inspect
import pickle

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import CLIPForImageClassification, CLIPModel, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from peft_vprompt import NormTuningConfig, VisualPromptConfig
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.tuners.base.hf_patches import (
    TakesLabels,
    ask_for_feature,
    declare_mean_loss,
    restore_class,
    take_labels,
    with_labels,
)
from tests.support.backbones import tiny
from tests.support.models import CLASS_NAMES, disturb, images, logits, tiny_clip, tiny_tokenizer, tiny_vit


class MyCLIP(CLIPModel):
    """A user's subclass: its `forward` ends without **kwargs, and takes labels for itself."""

    def forward(self, input_ids=None, pixel_values=None, labels=None):
        output = super().forward(input_ids=input_ids, pixel_values=pixel_values)
        return output if labels is None else ("mine", output)

    def greet(self):
        return "hello"


def clip(cls=CLIPModel):
    model = tiny_clip()
    model.__class__ = cls
    return model


TEXT = torch.tensor([[94, 5, 95]])


@pytest.mark.parametrize("cls", (CLIPModel, MyCLIP))
def test_the_signature_names_the_models_inputs_and_ours(cls):
    model = clip(cls)
    own = list(inspect.signature(model.forward).parameters)
    take_labels(model)
    named = list(inspect.signature(model.forward).parameters)
    assert set(named) == {*own, "labels", "image_features"}
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    assert kinds == sorted(kinds)  # as Python wants them: **kwargs stay last
    assert model.accepts_loss_kwargs is False


def test_it_calls_the_model_and_refuses_what_belongs_to_the_peft_model():
    model = clip()
    with torch.no_grad():
        before = model(input_ids=TEXT, pixel_values=images()).logits_per_image
        take_labels(model)
        given = {"labels": None, "image_features": None}
        assert torch.equal(model(input_ids=TEXT, pixel_values=images(), **given).logits_per_image, before)
    for name in given:
        with pytest.raises(ValueError, match="belong to the classification call of the PEFT model"):
            model(input_ids=TEXT, pixel_values=images(), **{name: torch.zeros(4)})


def test_a_users_subclass_keeps_its_own_methods_and_inputs():
    model = clip(MyCLIP)
    take_labels(model)
    assert model.greet() == "hello" and isinstance(model, MyCLIP)
    assert model(TEXT, images(), labels=torch.zeros(4))[0] == "mine"
    with pytest.raises(ValueError, match="belong to the classification call"):
        model(TEXT, images(), image_features=torch.zeros(4, 16))


def test_the_class_is_one_with_a_borrowed_name(tmp_path):
    model = clip()
    take_labels(model)
    labelled = type(model)
    take_labels(model)
    assert type(model) is labelled is with_labels(CLIPModel) and labelled is not CLIPModel
    assert (labelled.__name__, labelled.__module__) == (CLIPModel.__name__, CLIPModel.__module__)
    model.save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["CLIPModel"] and type(loaded) is CLIPModel
    model.set_attn_implementation("eager")
    assert model.vision_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("cls", (CLIPModel, MyCLIP))
def test_copies_and_pickles_have_the_same_class(cls):
    model = clip(cls)
    take_labels(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model) and isinstance(twin, TakesLabels)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        restore_class(twin)
        assert type(twin) is cls
    restore_class(model)
    assert type(model) is cls and "labels" not in inspect.signature(CLIPModel.forward).parameters


def test_a_subclass_of_a_classifier_with_a_mean_loss_says_so_too():
    class Mine(CLIPForImageClassification):
        pass

    model = Mine(tiny_clip(num_labels=len(CLASS_NAMES)).config)
    declare_mean_loss(model)
    assert model.accepts_loss_kwargs is False
    restore_class(model)
    assert "accepts_loss_kwargs" not in vars(model)
    other = tiny_vit()
    declare_mean_loss(other)
    assert "accepts_loss_kwargs" not in vars(other)


def test_a_hook_is_put_once_and_taken_away_from_copies_too():
    model, seen = tiny_vit(), []
    theirs = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True)
    ask_for_feature(model)
    ask_for_feature(model)
    assert len(model._forward_pre_hooks) == 2
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(strip(model)))]
    for twin in twins:
        restore_class(twin)
        assert not any("add_for_head" in str(hook) for hook in twin._forward_pre_hooks.values())
        assert len(twin._forward_pre_hooks_with_kwargs) == len(twin._forward_pre_hooks)
    restore_class(model)
    assert list(model._forward_pre_hooks) == [theirs.id] and not hasattr(model, "for_head_hook")
    assert isinstance(model, ViTForImageClassification)
    restore_class(model)  # a second time there is nothing to undo


class MeanOfAllRows(ViTForImageClassification):
    """A classifier with a call of its own, which hands no keywords on."""

    def forward(self, pixel_values, labels=None):
        rows = self.vit(pixel_values).last_hidden_state
        return ImageClassifierOutput(logits=self.classifier(rows.mean(dim=1)))


class HandsOn(MeanOfAllRows):
    def forward(self, pixel_values, labels=None, **kwargs):
        rows = self.vit(pixel_values, **kwargs).last_hidden_state
        return ImageClassifierOutput(logits=self.classifier(rows.mean(dim=1)))


@pytest.mark.parametrize("kind", [MeanOfAllRows, HandsOn])
def test_a_call_of_the_users_own_sees_all_rows(kind):
    base = kind(tiny_vit().config).eval()
    base.load_state_dict(tiny_vit().state_dict())
    config = VisualPromptConfig(num_virtual_tokens=2)
    model, stock = get_peft_model(base, config).eval(), get_peft_model(tiny_vit(), config).eval()
    stock.load_state_dict(model.state_dict())
    rows = stock.get_base_model().vit(images()).last_hidden_state
    torch.testing.assert_close(logits(model), stock.get_base_model().classifier(rows.mean(dim=1)))


def test_what_an_adapter_pools_reaches_a_call_of_the_users_own_or_is_refused():
    config = VisualPromptConfig(num_virtual_tokens=2, pooling="img_pool")
    model, stock = get_peft_model(HandsOn(tiny_vit().config).eval(), config), get_peft_model(tiny_vit(), config)
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(model.eval()), logits(stock.eval()))
    base = MeanOfAllRows(tiny_vit().config)
    before = str(base)
    with pytest.raises(UnsupportedModelError, match=r"MeanOfAllRows.forward without \*\*kwargs"):
        get_peft_model(base, config)
    assert str(base) == before


def test_transformers_finds_copies_inside_a_model_whose_old_checkpoints_it_renames(tmp_path):
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    config = NormTuningConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=str(tmp_path))
    model = disturb(get_peft_model(tiny("AltCLIPModel"), config))
    model.save_pretrained(tmp_path)
    base = tiny("AltCLIPModel")
    report = base.load_adapter(str(tmp_path))
    assert not report.missing_keys and not report.unexpected_keys
    loaded = base.get_adapter_state_dict("default")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(loaded) == len(saved) and all(torch.equal(v, saved[f"base_model.model.{k}"]) for k, v in loaded.items())


def strip(model):
    """A copy without the hook that cannot be pickled."""
    twin = copy.deepcopy(model)
    for key in [key for key, hook in twin._forward_pre_hooks.items() if "lambda" in repr(hook)]:
        del twin._forward_pre_hooks[key], twin._forward_pre_hooks_with_kwargs[key]
    return twin

"""Tip-Adapter's cache: how it is filled, saved and refused. Its numbers are compared in tests/parity."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F

from peft_vprompt import ClassHeadConfig, TipAdapterConfig
from peft_vprompt.errors import AdapterMismatchError, UnsupportedModelError
from peft_vprompt.readouts import CacheReadout
from tests.support.models import CLASS_NAMES, images, labels, logits, tiny_clip


@pytest.fixture
def tip(tokenizer_path):
    def build(**options):
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} | options
        return get_peft_model(tiny_clip(), TipAdapterConfig(**options)).eval()

    return build


def support(count=12, seed=7):
    return [{"pixel_values": images(count, seed), "labels": torch.arange(count) % len(CLASS_NAMES)}]


def readout_of(model):
    return model.class_name_classifier.adapted.readout


def test_the_readout_alone():
    readout = CacheReadout(6, 3, 4, trained=False, dtype=torch.float32, device=torch.device("cpu"))
    keys, image = F.normalize(torch.randn(6, 4), dim=-1), F.normalize(torch.randn(2, 4), dim=-1)
    classes = torch.tensor([2, 2, 0, 1, 0, 2])
    readout.fill(keys, classes)
    expected = torch.exp(-1.5 * (1 - image @ keys.t())) @ F.one_hot(classes, 3).float()
    torch.testing.assert_close(readout.cached(image, 1.5), expected)


def test_an_empty_cache_is_no_zero_shot(tip, tmp_path):
    model = tip()
    with pytest.raises(ValueError, match=r"Received none .num_support_images=None.. Call model.set_support"):
        model(pixel_values=images())
    with pytest.raises(ValueError, match=r"Received none .num_support_images=None.. Call model.set_support"):
        model.search_cache(support())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).eval()
    with pytest.raises(ValueError, match=r"Call model.set_support"):
        loaded(pixel_values=images())
    with model.disable_adapter():
        logits(model)


@pytest.mark.parametrize("train_keys", [False, True])
def test_the_cache_is_saved(train_keys, tip, tmp_path):
    model = tip(train_keys=train_keys)
    model.set_support(support())
    assert [p.shape for p in model.parameters() if p.requires_grad] == ([(12, 16)] if train_keys else [])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.active_peft_config.num_support_images == 12
    loaded.set_support(support(20))
    assert len(readout_of(loaded).keys) == 20
    with pytest.raises(AdapterMismatchError, match=r"keys has shape \(12, 16\) instead of \(20, 16\)"):
        loaded.load_adapter(str(tmp_path), "default")


def test_an_optimizer_that_is_there_trains_the_new_keys(tip):
    model = tip(train_keys=True)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model.set_support(support())
    before = readout_of(model).keys.detach().clone()
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    optimizer.step()
    assert not torch.equal(readout_of(model).keys, before)


def test_labels_are_of_the_classes_in_use(tip):
    own, other = tip(), tip()
    other.set_class_names(CLASS_NAMES[::-1])
    turned = [batch | {"labels": 4 - batch["labels"]} for batch in support()]
    own.set_support(support())
    other.set_support(turned)
    assert torch.equal(readout_of(other).labels, readout_of(own).labels)
    assert other.search_cache(turned, step=(6, 4)) == own.search_cache(support(), step=(6, 4))
    torch.testing.assert_close(logits(other), logits(own).flip(1))


def test_features_are_as_good_as_images(tip):
    model, other = tip(), tip()
    batch = support()[0]
    with torch.no_grad():
        features = model.class_name_classifier.images.project(batch["pixel_values"])
    model.train()
    model.set_support(support())
    assert model.training and all(module.training for module in model.modules())
    for given in (features, torch.stack([features, features])):
        other.set_support(given, batch["labels"].tolist())
        torch.testing.assert_close(logits(other), logits(model.eval()))
    rows = [{"image_features": F.normalize(features, dim=-1), "labels": batch["labels"]}]
    other.set_support(rows, views=3)
    torch.testing.assert_close(logits(other), logits(model))


class Shuffled:
    """Batches that come in another order in each pass."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        batch = support()[0]
        self.passes += 1
        yield {"pixel_values": batch["pixel_values"], "labels": batch["labels"].roll(self.passes)}


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (support, {"labels": [0]}, "labels in the batches"),
        (Shuffled, {"views": 2}, "shuffle=False"),
        (list, {}, "Received none"),
        (lambda: [{"pixel_values": images()}], {}, "batches with labels. Received: pixel_values"),
        (
            lambda: [{"pixel_values": images(), "labels": torch.tensor([0, 1, 2, 5])}],
            {},
            "Received labels from 0 to 5",
        ),
        (lambda: [{"pixel_values": images(), "labels": torch.tensor([0, 1, 2, -100])}], {}, "labels below 0"),
        (lambda: torch.ones(4, 16), {}, "labels=None"),
        (lambda: torch.ones(4, 16), {"labels": [0, 1, 2, 3], "views": 2}, "no number of views"),
        (lambda: torch.ones(4, 15), {"labels": [0, 1, 2, 3]}, r"features of 16 numbers. Received: shape \[1, 4, 15\]"),
        (lambda: torch.full((4, 16), torch.nan), {"labels": [0, 1, 2, 3]}, "finite image_features"),
    ],
)
def test_what_is_no_support_set_changes_nothing(images, options, message, tip):
    model = tip()
    model.set_support(support())
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        model.set_support(images(), **options)
    assert torch.equal(logits(model), before) and model.active_peft_config.num_support_images == 12


def test_who_has_no_use_for_a_support_set(tip, tokenizer_path):
    head = get_peft_model(tiny_clip(), ClassHeadConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    for call in (head.set_support, head.search_cache):
        with pytest.raises(ValueError, match="Received (one|an adapter) of ClassHeadConfig"):
            call(support())
    model = tip(modules_to_save=["visual_projection"])
    with pytest.raises(UnsupportedModelError, match="image features that do not change"):
        model.set_support(support())
    model = tip()
    with model.disable_adapter(), pytest.raises(ValueError, match="Received disabled adapters"):
        model.set_support(support())


def test_labels_of_a_damaged_cache(tip, tmp_path):
    model = tip()
    model.set_support(support())
    readout_of(model).labels[3] = 5
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match="labels from 0 to 4 in the cache.*Received labels from 0 to 5"):
        PeftModel.from_pretrained(tiny_clip(), str(tmp_path))


def test_caches_of_other_images_are_not_added_up(tip, tokenizer_path):
    model = tip()
    model.set_support(support())
    model.add_adapter("other", TipAdapterConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    model.set_adapter("other")
    batch = support()[0]
    model.set_support([batch | {"labels": batch["labels"].flip(0)}])
    with pytest.raises(ValueError, match="the same labels in the same order.*'other', which differs"):
        model.add_weighted_adapter(["default", "other"], adapter_name="sum")


def test_the_search_is_the_plain_loop(tip):
    model = tip(logit_scale=None, alpha=1.0)
    model.set_support(support())
    validation = [{"pixel_values": images(30, 3), "labels": torch.arange(30) % len(CLASS_NAMES)}]
    best = (0.0, 0.0, 0.0)
    config = model.active_peft_config
    for i in range(4):
        for j in range(5):
            config.beta, config.alpha = i * (3 - 0.1) / 4 + 0.1, j * (8 - 0.1) / 5 + 0.1
            with torch.no_grad():
                right = model(pixel_values=validation[0]["pixel_values"]).logits.argmax(-1) == validation[0]["labels"]
            accuracy = 100 * right.float().mean().item()
            if accuracy > best[0]:
                best = (accuracy, config.alpha, config.beta)
    found = model.search_cache(validation, scale=[3, 8], step=[4, 5])
    assert (found.accuracy, found.alpha, found.beta) == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": None}, "each cached image is of one of the classes"),
        ({"search_scale": [7.0]}, r"search_scale to be a pair.*Received: search_scale=\[7.0\]"),
        ({"alpha": -1.0}, "alpha"),
        ({"num_support_images": 0}, "num_support_images"),
    ],
)
def test_configs_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TipAdapterConfig(**{"class_names": CLASS_NAMES} | options)

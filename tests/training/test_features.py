"""Cached image features stand for the images: same logits, same gradients, one file per encoder, pixels and images."""

import multiprocessing
import os

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import CLIPImageProcessorPil, Trainer, TrainingArguments

from peft_vprompt import CoCoOpConfig, ContextOptConfig, MaPLeConfig
from peft_vprompt.data import EvalTransform, TrainTransform
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.training.cached_features import (
    RandomViews,
    cache_features,
    default_cache_dir,
    encode_frozen,
    feature_rows,
    model_fingerprint,
)
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.backbones import DUAL_MODELS, frame, inputs, tiny
from tests.support.labelled_images import pictures
from tests.support.models import CLASS_NAMES, CONFIGS, IMAGE_SIZE, images, labels, tiny_clip, tiny_tokenizer


SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE)
EVAL, TRAIN = EvalTransform(PROCESSOR), TrainTransform(PROCESSOR)

#: Configurations whose image features are those of the frozen model, and those whose are not.
CASES = [(method, variant) for method in PROMPT_METHODS for variant in CONFIGS[method]]


@pytest.fixture
def coop(tokenizer_path):
    return get_peft_model(tiny_clip(), coop_config(tokenizer_path))


def coop_config(tokenizer_path):
    return ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, num_virtual_tokens=4)


def gradients(model, **inputs):
    model.zero_grad()
    output = model(labels=labels(), **inputs)
    output.loss.backward()
    return output.logits, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_features_give_the_logits_and_gradients_of_pixels(method, variant, tokenizer_path):
    config = CONFIGS[method][variant](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config).train()
    if model.class_name_classifier.adapted.changes_images:
        with pytest.raises(UnsupportedModelError, match="learns visual prompts"):
            model(image_features=torch.eye(4, 16))
        with model.disable_adapter(), torch.no_grad():
            features = model.encode_images(images())
            torch.testing.assert_close(model(image_features=features).logits, model(pixel_values=images()).logits)
        return
    with torch.no_grad():
        features = model.encode_images(images())
    logits, grads = gradients(model, pixel_values=images())
    again, grads_again = gradients(model, image_features=features)
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    torch.testing.assert_close(grads_again, grads, rtol=0, atol=0)
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if "hidden" not in name)


@pytest.mark.parametrize("name", DUAL_MODELS)
@pytest.mark.parametrize("config", [ContextOptConfig, CoCoOpConfig])
def test_every_dual_encoder_classifies_features(config, name, tmp_path):
    tiny_tokenizer(frame(name)).save_pretrained(tmp_path)
    extra = {"num_contexts": 2} if config is ContextOptConfig else {}
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tmp_path), "num_virtual_tokens": 4}
    model, pixels = get_peft_model(tiny(name), config(**options, **extra)).eval(), inputs(name)  # no dropout
    with torch.no_grad():
        features = model.encode_images(**pixels)
    logits, grads = gradients(model, **pixels)
    again, grads_again = gradients(model, image_features=features)
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    torch.testing.assert_close(grads_again, grads, rtol=0, atol=0)
    assert len(model_fingerprint(model)) == 64


def test_cached_features_are_those_of_the_pixels(coop, tmp_path):
    rows = feature_rows(cache_features(coop, pictures(), EVAL, cache_dir=tmp_path, batch_size=4))
    pixels = pictures().with_transform(EVAL)[:]
    with torch.no_grad():
        expected = coop.encode_images(pixels["pixel_values"])
    torch.testing.assert_close(rows[:]["image_features"], expected, rtol=0, atol=1e-6)
    assert rows[:]["labels"].tolist() == pixels["labels"]
    (file,) = tmp_path.iterdir()
    assert rows.cache_files[0]["filename"] == str(file)  # memory-mapped, not a copy


def count_passes(model, monkeypatch):
    """The number of images that the encoder sees from now on, in a list."""
    seen, encode = [], type(model).encode_images
    monkeypatch.setattr(
        type(model), "encode_images", lambda self, x, **kw: seen.append(len(x)) or encode(self, x, **kw)
    )
    return seen


def test_second_time_nothing_is_computed(coop, tmp_path, monkeypatch, tokenizer_path):
    first = cache_features(coop, pictures(), EVAL, cache_dir=tmp_path)
    seen = count_passes(coop, monkeypatch)
    other = get_peft_model(tiny_clip(), CoCoOpConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    relabelled = (
        pictures().remove_columns("label").add_column("label", np.zeros(6, int), feature=ClassLabel(names=CLASS_NAMES))
    )
    again = cache_features(other, relabelled, EVAL, cache_dir=tmp_path)
    assert not seen
    assert again["image_features"][:] == first["image_features"][:]
    assert again["label"][:] == [0] * 6 != first["label"][:]


@pytest.mark.parametrize(
    "change", ["weights", "config", "lora", "processor", "crop", "images", "order", "views", "seed"]
)
def test_anything_that_matters_makes_another_file(change, tmp_path, tokenizer_path):
    clip, data, transform, options = tiny_clip(), pictures(), TRAIN, {"cache_dir": tmp_path}

    def run():
        cache_features(get_peft_model(clip, coop_config(tokenizer_path)), data, transform, **options)

    run()
    clip = tiny_clip()
    if change == "weights":
        clip.vision_model.encoder.layers[1].mlp.fc1.bias.data[3] += 1
    elif change == "config":
        clip.config.vision_config.layer_norm_eps = 1e-3
    elif change == "lora":
        clip = get_peft_model(clip, LoraConfig(target_modules=["q_proj"])).base_model.model
    elif change == "processor":
        transform = TrainTransform(CLIPImageProcessorPil(**{"size": {"shortest_edge": 40}, "crop_size": SIZE}, do_normalize=False))  # fmt: skip
    elif change == "crop":
        transform = TrainTransform(PROCESSOR, "random_crop")
    elif change == "images":
        data = pictures(seed=1)
    elif change == "order":
        data = data.select([1, 0, 2, 3, 4, 5])
    else:
        options |= {change: 2}
    run()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_scaled_lora_of_the_base_makes_another_file(tmp_path, tokenizer_path):
    base = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), tiny_clip())
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(base, coop_config(tokenizer_path))
    features = [cache_features(model, pictures(), TRAIN, cache_dir=tmp_path)["image_features"][:]]
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        layer.set_scale("default", 3.0)
    features.append(cache_features(model, pictures(), TRAIN, cache_dir=tmp_path)["image_features"][:])
    assert features[0] != features[1] and len(list(tmp_path.iterdir())) == 2


def cut(content):
    return content[: len(content) // 2]


def zeros_at_the_end(content):
    return content[:3000] + bytes(len(content) - 3000)


def flipped(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize(
    "damage", [cut, zeros_at_the_end, flipped, lambda content: b"", lambda content: content + b"x"]
)
def test_a_damaged_file_is_told_moved_aside_and_made_anew(damage, coop, tmp_path):
    good = cache_features(coop, pictures(40), EVAL, cache_dir=tmp_path)["image_features"][:]
    (file,) = tmp_path.iterdir()
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=f"{file.name}.*damaged.*computed anew"):
        again = cache_features(coop, pictures(40), EVAL, cache_dir=tmp_path)["image_features"][:]
    assert again == good
    assert file.with_suffix(".damaged").read_bytes() == damaged
    assert cache_features(coop, pictures(40), EVAL, cache_dir=tmp_path)["image_features"][:] == good  # without a word


def test_files_of_images_are_known_by_their_content(coop, tmp_path):
    """As a copy that keeps size and times leaves them."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{index}.png" for index in range(6)]
    for path, row in zip(paths, pictures().cast_column("image", datasets.Image(decode=False)), strict=True):
        path.write_bytes(row["image"]["bytes"])
    rows = Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", datasets.Image())
    first = cache_features(coop, rows, EVAL, cache_dir=tmp_path / "cache")["image_features"][:]
    times = paths[0].stat()
    content = paths[1].read_bytes()
    assert len(content) == times.st_size  # noise is as long as other noise
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    again = cache_features(coop, rows, EVAL, cache_dir=tmp_path / "cache")["image_features"][:]
    assert again[0] == again[1] == first[1] != first[0]


def test_an_interrupted_run_leaves_nothing_behind(coop, tmp_path, monkeypatch):
    encode = type(coop).encode_images
    calls = []

    def interrupted(self, pixel_values):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, pixel_values)

    monkeypatch.setattr(type(coop), "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_features(coop, pictures(), EVAL, cache_dir=tmp_path, batch_size=2)
    assert not list(tmp_path.iterdir())
    assert len(cache_features(coop, pictures(), EVAL, cache_dir=tmp_path)) == 6


def _cache_in_child(folder, tokenizer_path, names):
    model = get_peft_model(tiny_clip(), coop_config(tokenizer_path))
    cache_features(model, pictures(), EVAL, cache_dir=folder)
    names.put(sorted(os.listdir(folder)))


def test_another_process_finds_the_file(coop, tmp_path, tokenizer_path):
    cache_features(coop, pictures(), EVAL, cache_dir=tmp_path)
    context = multiprocessing.get_context("fork")
    names = context.Queue()
    child = context.Process(target=_cache_in_child, args=(tmp_path, tokenizer_path, names))
    child.start()
    assert names.get(timeout=60) == sorted(os.listdir(tmp_path))
    child.join()


def test_the_callers_random_numbers_go_on(coop, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cache_features(coop, pictures(), TRAIN, cache_dir=tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("transform", [EVAL, TRAIN])
def test_workers_change_no_feature(transform, coop, tmp_path):
    alone, shared = (
        cache_features(coop, pictures(), transform, cache_dir=tmp_path / str(workers), batch_size=2, workers=workers)
        for workers in (0, 2)
    )
    assert alone["image_features"][:] == shared["image_features"][:]


def test_every_module_gets_its_own_mode_back(coop):
    model, *parts = coop.train(), coop.get_base_model().vision_model.eval()
    with pytest.raises(ValueError, match="pixel_values"):
        encode_frozen(model, {"pixel_values": torch.zeros(0, 3, 32, 32)})
    assert model.training and not any(part.training for part in parts)


def test_views_are_drawn_anew(coop, tmp_path):
    rows = feature_rows(cache_features(coop, pictures(), TRAIN, views=3, cache_dir=tmp_path), views=3)
    assert isinstance(rows, RandomViews) and len(rows) == 6
    every = rows.rows[:]["image_features"].reshape(3, 6, -1)
    assert not torch.allclose(every[0], every[1])
    found = []
    for epoch in range(20):
        rows.set_epoch(epoch)
        feature = rows[4]["image_features"]
        assert torch.equal(rows.__getitems__([1, 4])[1]["image_features"], feature)  # the same throughout an epoch
        found.append(next(v for v in range(3) if torch.equal(every[v, 4], feature)))
    assert set(found) == {0, 1, 2}
    assert [row["labels"].item() for row in rows.__getitems__([0, 4, 2])] == [0, 4, 2]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("config", [ContextOptConfig, CoCoOpConfig])
def test_the_stock_trainer_trains_on_features(config, views, tmp_path, tokenizer_path):
    model = get_peft_model(tiny_clip(), config(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    rows = feature_rows(cache_features(model, pictures(10), TRAIN, views=views, cache_dir=tmp_path), views)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=12, per_device_train_batch_size=5, learning_rate=0.05,
        report_to="none", logging_strategy="epoch", eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.state.global_step == 24


def test_errors(coop, tmp_path, tokenizer_path):
    with pytest.raises(ValueError, match="views to be an integer >= 1. Received: views=0"):
        cache_features(coop, pictures(), EVAL, views=0, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="Expected a column 'image' of images"):
        cache_features(coop, Dataset.from_dict({"image": [1]}), EVAL, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="lengths from 4 to 4"):
        coop(image_features=torch.ones(2, 16))
    with pytest.raises(ValueError, match="Expected finite image_features"):
        coop(image_features=torch.full((2, 16), torch.nan))
    with pytest.raises(ValueError, match="labels from 9 to 9"):
        coop(image_features=torch.eye(2, 16), labels=torch.tensor([9, 9]))
    with pytest.raises(ValueError, match="image_features alone"):
        coop(image_features=torch.eye(2, 16), pixel_values=images(2))
    with pytest.raises(ValueError, match="Expected 4 rows per image. Received 6 rows"):
        RandomViews(pictures(), 4)
    maple = get_peft_model(tiny_clip(), MaPLeConfig(prompt_depth=2, tokenizer_name_or_path=tokenizer_path))
    with pytest.raises(UnsupportedModelError, match="MAPLE.*do not cache features"):
        cache_features(maple, pictures(), EVAL, cache_dir=tmp_path)
    config = ContextOptConfig(tokenizer_name_or_path=tokenizer_path, modules_to_save=["visual_projection"])
    projected = get_peft_model(tiny_clip(), config)
    with pytest.raises(UnsupportedModelError, match="be it its projection"):
        cache_features(projected, pictures(), EVAL, cache_dir=tmp_path)
    with projected.disable_adapter():
        projected.class_name_classifier.images.require_fixed()
    coop.base_model.vision_encoder.base_layer.requires_grad_(True)
    with pytest.raises(UnsupportedModelError, match="image encoder that is trained"):
        coop(image_features=torch.eye(2, 16))


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    assert default_cache_dir() == tmp_path / "vprompt-features"

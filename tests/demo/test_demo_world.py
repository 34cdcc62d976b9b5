"""The embedded task and model: what is drawn, that it is always the same, and that the model knows it as recorded."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from examples.studies.pretrain_demo import TOKENIZER_SEED, Options, Stream
from examples.studies.tiny_clip import BUILDERS, build_resnet, train_tokenizer
from peft_vprompt.demo import CLASS_NAMES, TEMPLATE, demo_model_path, demo_task
from peft_vprompt.demo.drawing import FILLS, IMAGE_SIZE, OUTLINES, Style, draw
from peft_vprompt.demo.task import PER_CLASS, STYLE
from peft_vprompt.demo.world import LIGHTS, STYLES, describe, render, sample_scene


FOLDER = Path(demo_model_path())


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return CLIPModel.from_pretrained(FOLDER).eval()


def picture_bytes(dataset) -> list[bytes]:
    return [image.tobytes() for image in dataset["image"]]


def scene_bytes(seed: int) -> tuple[bytes, str]:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    return render(scene, rng).tobytes(), describe(scene, rng)


def test_same_seed_same_scene():
    assert [scene_bytes(seed) for seed in range(20)] == [scene_bytes(seed) for seed in range(20)]
    assert len({scene_bytes(seed)[0] for seed in range(20)}) == 20


def test_task_is_the_same_in_a_new_process():
    code = "from peft_vprompt.demo import demo_task; import hashlib; d = demo_task('validation');"
    code += "print(hashlib.sha256(b''.join(i.tobytes() for i in d['image'])).hexdigest())"
    here = hashlib.sha256(b"".join(picture_bytes(demo_task("validation")))).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


@pytest.mark.parametrize("split", PER_CLASS)
def test_split_is_balanced_and_labelled(split):
    dataset = demo_task(split)
    assert dataset.features["label"].names == list(CLASS_NAMES)
    assert Counter(dataset["label"]) == dict.fromkeys(range(len(CLASS_NAMES)), PER_CLASS[split])
    assert {(image.size, image.mode) for image in dataset["image"]} == {((IMAGE_SIZE, IMAGE_SIZE), "RGB")}


def test_enough_classes_with_distinct_names():
    assert 20 <= len(set(CLASS_NAMES)) == len(CLASS_NAMES) <= 32
    assert PER_CLASS["train"] >= 16


def test_splits_share_no_picture():
    pictures = [picture for split in PER_CLASS for picture in picture_bytes(demo_task(split))]
    assert len(set(pictures)) == len(pictures)


def test_task_style_is_not_a_training_style():
    assert STYLE not in STYLES.values()
    assert all(style.hue == 0 for style in STYLES.values())
    assert STYLE.hue != 0
    assert all(light != (1.0, 1.0, 1.0) for light in LIGHTS.values())


def test_a_transform_stays_with_the_caller():
    demo_task("validation").set_transform(lambda batch: {"label": [-1] * len(batch["label"])})
    assert demo_task("validation")[0]["label"] == 0


def test_unknown_split():
    with pytest.raises(ValueError, match="'train', 'validation', 'test'.*split='dev'"):
        demo_task("dev")


def test_unknown_ground():
    scene = {"shape": "circle", "fill": "solid", "colour": (9, 9, 9), "background": (200, 200, 200), "radius": 15.0}
    with pytest.raises(ValueError, match="'speckled'. Received: 'sand'"):
        draw(**scene, ground="sand", style=Style(), rng=np.random.default_rng(0))


@pytest.mark.parametrize("fill", FILLS)
def test_every_shape_and_fill_looks_different(fill):
    options = {"colour": (20, 20, 20), "background": (240, 240, 240), "ground": "plain", "radius": 18.0}
    seen = {draw(shape, fill, **options, style=Style(), rng=np.random.default_rng(0)).tobytes() for shape in OUTLINES}
    assert len(seen) == len(OUTLINES)


def test_tokenizer_follows_clip(tokenizer):
    ids = tokenizer("A photo of a Striped CRIMSON disc.").input_ids
    assert ids == tokenizer("a photo of a striped crimson disc.").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens(ids)[1:3] == ["a</w>", "photo</w>"]
    assert tokenizer.unk_token_id not in tokenizer("Zebra café 東京 🙂").input_ids[1:-1]


def test_the_script_learns_the_same_tokenizer(tokenizer, record):
    stream = Stream(10_000, TOKENIZER_SEED)
    captions = [describe(*stream.scene(index)) for index in range(len(stream))]
    assert train_tokenizer(captions, Options(**record["options"]).vocabulary).get_vocab() == tokenizer.get_vocab()


def test_the_script_builds_the_same_model(tokenizer, record, model):
    torch.manual_seed(0)
    built = BUILDERS["vit"](Options(**record["options"]), tokenizer)
    shapes = [{name: tensor.shape for name, tensor in clip.state_dict().items()} for clip in (model, built)]
    assert shapes[0] == shapes[1]


def test_model_agrees_with_tokenizer_and_processor(model, tokenizer):
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.bos_token_id, text.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert text.pad_token_id == tokenizer.pad_token_id
    assert text.vocab_size == len(tokenizer)
    assert text.max_position_embeddings == tokenizer.model_max_length
    processor = CLIPImageProcessorPil.from_pretrained(FOLDER)
    pixels = processor(demo_task("test")[0]["image"], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, vision.image_size, vision.image_size) == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    captions = [TEMPLATE.format(name) for name in CLASS_NAMES]
    assert max(map(len, tokenizer(captions).input_ids)) <= text.max_position_embeddings - 16  # room for a context


def test_the_folder_is_small_and_complete(record, model):
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
        "README.md",
    } <= sizes.keys()
    assert sum(sizes.values()) < 6.5e6
    assert record["parameters"] == model.num_parameters()


@torch.no_grad()
def test_zero_shot_is_as_recorded(record, model, tokenizer):
    test = demo_task("test")
    processor = CLIPImageProcessorPil.from_pretrained(FOLDER)
    images = model.get_image_features(**processor(list(test["image"]), return_tensors="pt")).pooler_output
    captions = [TEMPLATE.format(name) for name in CLASS_NAMES]
    texts = model.get_text_features(**tokenizer(captions, padding=True, return_tensors="pt")).pooler_output
    scores = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    labels = torch.tensor(test["label"])
    half = (len(CLASS_NAMES) + 1) // 2
    base = scores[labels < half, :half].argmax(1) == labels[labels < half]
    novel = scores[labels >= half, half:].argmax(1) + half == labels[labels >= half]
    for name, hits in {"base": base, "novel": novel}.items():
        accuracy = 100 * hits.float().mean().item()
        assert accuracy == pytest.approx(record["task_accuracy"][name], abs=2.0)
        assert 35 <= accuracy <= 75


def test_the_resnet_for_the_same_world(tokenizer):
    torch.manual_seed(0)
    clip = build_resnet(Options(tower="resnet"), tokenizer).eval()
    text, image = clip.config.text_config, clip.config.vision_config
    assert clip.num_parameters() * 4 < 8 * 2**20
    assert (text.hidden_size, text.vocab_size, image.image_size // image.stride) == (128, len(tokenizer), 3)
    call = tokenizer(["a red circle."], return_tensors="pt")
    output = clip(**call, pixel_values=torch.zeros(2, 3, 48, 48), return_loss=False)
    assert output.logits_per_image.shape == (2, 1) and output.image_embeds.shape == (2, Options().projection)

"""Pseudo-labels: the authors' choice of images, stable, without a look at true labels."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file

from peft_vprompt.data import EvalTransform
from peft_vprompt.experiments.models import build_model
from peft_vprompt.experiments.pseudo_labels import (
    SELECTORS,
    PseudoLabels,
    quota,
    random_k,
    threshold,
    top_k,
)
from peft_vprompt.experiments.zero_shot_scores import combine_logits, zero_shot
from peft_vprompt.training.cached_features import cache_features
from tests.support.labelled_images import SecretRows, pictures
from tests.support.models import CLASS_NAMES, NEW_NAMES


NAMES = [f"class {i}" for i in range(6)]
TABLE = np.random.default_rng(0).dirichlet(np.ones(6), 60).astype(np.float32)


@pytest.fixture
def clip(clip_path):
    return build_model(clip_path, "zero-shot", CLASS_NAMES)


def golden_table(name, tensors):
    kind, which = name.split(".")
    if kind == "probs":
        return tensors[name]
    return torch.from_numpy(tensors[name]).softmax(-1).numpy()


def test_golden_choice(shared):
    tensors = load_file(shared / "golden/ptnl/pseudo_label.safetensors")
    cases = json.loads((shared / "golden/ptnl/pseudo_label.json").read_text())["cases"]
    selectors = {
        "top_k_per_class": lambda table, K, **_: top_k(table, NAMES, K if K > 0 else None),
        "by_conf_per_class": lambda table, conf_threshold: threshold(table, NAMES, conf_threshold),
    }
    checked = [case for case in cases if case["name"] in selectors]
    assert len(checked) == 13
    for case in checked:
        chosen = selectors[case["name"]](golden_table(case["table"], tensors), **case["args"])
        assert list(zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True)) == [
            tuple(s) for s in case["selected"]
        ]
        if case["confidence"]:
            np.testing.assert_allclose(chosen.confidences, case["confidence"], rtol=0, atol=1e-6)


def test_golden_average_over_models(shared):
    tensors = load_file(shared / "golden/ptnl/pseudo_label.safetensors")
    logits = [torch.from_numpy(tensors[f"logits.{i}"]) for i in range(3)]
    np.testing.assert_allclose(combine_logits(logits, "probabilities"), tensors["probs.mean"], rtol=0, atol=1e-6)
    expected = golden_table("logits.mean", tensors)
    np.testing.assert_allclose(combine_logits(logits, "logits"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("k", [1, 4, None])
def test_no_image_twice_and_class_by_class(selector, k):
    chosen = SELECTORS[selector](TABLE, NAMES, k, 1)
    assert len(set(chosen.indices)) == len(chosen) == len(chosen.labels)
    assert (np.diff(chosen.labels) >= 0).all()
    assert np.array_equal(chosen.confidences, TABLE[chosen.indices, chosen.labels])
    assert chosen.confidences.dtype == chosen.probabilities.dtype == np.float32
    for label in range(6):
        assert (np.diff(chosen.confidences[chosen.labels == label]) <= 0).all()
    if selector != "quota":
        assert np.array_equal(chosen.labels, TABLE.argmax(1)[chosen.indices])
    if k is None:
        assert len(chosen) == len(TABLE)


def test_random_k_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = random_k(TABLE, NAMES, 4), random_k(TABLE, NAMES, 4), random_k(TABLE, NAMES, 4, seed=2)
    assert np.array_equal(first.indices, again.indices) and not np.array_equal(first.indices, other.indices)
    assert torch.equal(torch.get_rng_state(), state)
    counts = np.bincount(TABLE.argmax(1), minlength=6)
    assert np.array_equal(np.bincount(first.labels, minlength=6), np.minimum(counts, 4))


def test_quota_fills_every_class():
    skewed = TABLE.copy()
    skewed[:, 0] += 1  # zero-shot predicts one class alone
    assert np.bincount(top_k(skewed, NAMES, 5).labels, minlength=6).tolist() == [5, 0, 0, 0, 0, 0]
    assert np.bincount(quota(skewed, NAMES, 5).labels, minlength=6).tolist() == [5] * 6
    assert np.bincount(quota(skewed, NAMES, [1, 2, 3, 0, 4, 50]).labels, minlength=6).tolist() == [1, 2, 3, 0, 4, 50]


def test_ties_go_to_the_lower_class_and_the_earlier_image():
    table = np.full((8, 3), 1 / 3, dtype=np.float32)
    assert top_k(table, NAMES[:3], 3).indices.tolist() == [0, 1, 2]
    assert top_k(table, NAMES[:3], 3).labels.tolist() == [0, 0, 0]
    assert quota(table, NAMES[:3], 1).indices.tolist() == [0, 1, 2]


def test_zero_shot_is_the_model_without_its_adapter(clip):
    pixels = pictures().with_transform(EvalTransform(clip.image_processor))[:]["pixel_values"]
    table = zero_shot(clip, pictures(), NEW_NAMES, batch_size=4)
    assert table.dtype == np.float32 and table.shape == (6, len(NEW_NAMES))
    assert clip.model.class_names == NEW_NAMES
    with clip.model.disable_adapter(), torch.no_grad():
        expected = clip.model(pixel_values=pixels).logits.softmax(-1)
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6)


def test_zero_shot_from_features(clip, tmp_path):
    with clip.model.disable_adapter():
        features = cache_features(clip.model, pictures(), EvalTransform(clip.image_processor), cache_dir=tmp_path)
    np.testing.assert_allclose(
        zero_shot(clip, features, CLASS_NAMES), zero_shot(clip, pictures(), CLASS_NAMES), atol=1e-6
    )


def test_several_clips_and_templates(clip_path, clip):
    other = build_model(clip_path, "zero-shot", CLASS_NAMES, template=["art of a {}.", "a {} in the wild."])
    tables = [zero_shot(each, pictures(), CLASS_NAMES) for each in (clip, other)]
    assert not np.allclose(*tables)
    mean = zero_shot([clip, other], pictures(), CLASS_NAMES)
    np.testing.assert_allclose(mean, np.mean(tables, axis=0), atol=1e-6)
    for combine in ("logits", "features"):
        table = zero_shot([clip, clip], pictures(), CLASS_NAMES, combine=combine)
        np.testing.assert_allclose(table, tables[0], atol=1e-6)


class Secret(dict):
    """A row whose label must not be read."""

    def __getitem__(self, key):
        if key != "image":
            raise PermissionError(f"read {key}")
        return super().__getitem__(key)

    def items(self):
        raise PermissionError("read everything")

    values = items


def test_true_labels_are_never_read(clip):
    source = pictures()
    expected = zero_shot(clip, source, CLASS_NAMES)
    secret = SecretRows(source.data, fingerprint="x")
    with pytest.raises(PermissionError):
        secret["label"][:]
    with pytest.raises(PermissionError):
        secret[0]
    np.testing.assert_array_equal(zero_shot(clip, secret, CLASS_NAMES), expected)
    np.testing.assert_array_equal(zero_shot(clip, [Secret(row) for row in source], CLASS_NAMES), expected)
    labelled = top_k(expected, CLASS_NAMES, 2).label(secret)
    assert labelled.column_names == ["image", "label"]
    assert labelled["label"][:] == top_k(expected, CLASS_NAMES, 2).labels.tolist()


def test_save_and_load(tmp_path):
    chosen = random_k(TABLE, NAMES, 3, seed=5)
    chosen.save(tmp_path / "pseudo.safetensors")
    again = PseudoLabels.load(tmp_path / "pseudo.safetensors")
    for name in ("indices", "labels", "confidences", "probabilities"):
        assert np.array_equal(getattr(again, name), getattr(chosen, name))
    assert again.class_names == tuple(NAMES) and again.source == {"selector": "random-k", "k": 3, "seed": 5}


def shuffled(images):
    return images.select([1, 0, *range(2, len(images))])


@pytest.mark.parametrize(
    ("others", "message"),
    [(shuffled, "these images in another order: 2 of 6 differ, the first at position 0"),
     (lambda images: pictures(seed=1), "other images: 6 of 6 differ")],
)  # fmt: skip
@pytest.mark.parametrize("selector", SELECTORS)
def test_labels_are_for_their_images_alone(selector, others, message, clip, tmp_path):
    images = pictures()
    chosen = SELECTORS[selector](zero_shot(clip, images, CLASS_NAMES), CLASS_NAMES, 2, 1)
    chosen.save(tmp_path / "labels.safetensors")
    for labels in (chosen, PseudoLabels.load(tmp_path / "labels.safetensors")):
        assert labels.label(images)["label"][:] == chosen.labels.tolist()
        with pytest.raises(ValueError, match=f"made for {message}.*anew"):
            labels.label(others(images))


def test_labels_made_of_cached_features_are_for_their_images(clip, tmp_path):
    transform = EvalTransform(clip.image_processor)
    with clip.model.disable_adapter():
        features = cache_features(clip.model, pictures(), transform, cache_dir=tmp_path)
    chosen = top_k(zero_shot(clip, features, CLASS_NAMES), CLASS_NAMES, 2)
    assert chosen.label(pictures())["label"][:] == chosen.label(features)["label"][:] == chosen.labels.tolist()
    with pytest.raises(ValueError, match="made for other images"):
        chosen.label(pictures(seed=1))


def test_parts_of_a_table_know_no_images(clip):
    table = zero_shot(clip, pictures(), CLASS_NAMES)
    assert table.images is not None
    assert top_k(table[::-1], CLASS_NAMES).images is None and top_k(table * 2, CLASS_NAMES).images is None


def test_a_damaged_file_of_labels_is_refused(tmp_path):
    path = tmp_path / "labels.safetensors"
    top_k(TABLE, NAMES).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
    with pytest.raises(ValueError, match="damaged"):
        PseudoLabels.load(path)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: top_k(TABLE, NAMES, 0), "at least 1 image per class.*k=0"),
        (lambda: top_k(TABLE, NAMES[:2]), r"\[images, 2\].*\[60, 6\]"),
        (lambda: threshold(TABLE, NAMES, 1.2), "minimum=1.2"),
        (lambda: quota(TABLE, NAMES, [1, 2]), r"for all 6 classes, or one each. Received: \[1, 2\]"),
        (lambda: combine_logits([torch.zeros(1, 2)], "median"), "combine='median'"),
        (lambda: threshold(TABLE, NAMES, 0.999).label(Dataset.from_dict({"image": [0] * 60})), "No image was chosen"),
        (lambda: top_k(TABLE, NAMES).label(Dataset.from_dict({"image": [0]})), "made for 60 images. Received: 1"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_no_images(clip):
    with pytest.raises(ValueError, match="Received: 0 images, 1 CLIPs"):
        zero_shot(clip, [], CLASS_NAMES)


def test_a_file_of_something_else(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no pseudo-labels"):
        PseudoLabels.load(tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="Cannot read .*x.json' as pseudo-labels.*vprompt pseudo-label"):
        PseudoLabels.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        PseudoLabels.load(tmp_path / "none.safetensors")

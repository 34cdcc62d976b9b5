"""FGVC and VTAB-1k: published split files on small folders written on the fly."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from peft_vprompt.data import (
    TRANSFER_TASKS,
    DataOptions,
    EvalTransform,
    TrainTransform,
    find_task,
    find_tasks,
    group_means,
    image_size,
    load_images,
    load_split,
    load_task,
    load_unlabelled,
)
from tests.support.labelled_images import write_fgvc, write_vtab


#: Numbers of classes as the papers state them.
CLASSES = {
    "fgvc": {"cub": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196},
    "vtab-1k": {
        "cifar": 100,
        "caltech101": 102,
        "dtd": 47,
        "oxford_flowers102": 102,
        "oxford_iiit_pet": 37,
        "svhn": 10,
        "sun397": 397,
        "patch_camelyon": 2,
        "eurosat": 10,
        "resisc45": 45,
        "diabetic_retinopathy": 5,
        "clevr_count": 8,
        "clevr_dist": 6,
        "dmlab": 6,
        "kitti": 4,
        "dsprites_loc": 16,
        "dsprites_ori": 16,
        "smallnorb_azi": 18,
        "smallnorb_ele": 9,
    },
}
fewer_classes = pytest.mark.filterwarnings("ignore:.*classes; the published files name")


def pixels_tell_the_label(rows, value_of):
    return all(np.asarray(row["image"])[0, 0, 0] == value_of[row["label"]] for row in rows)


def test_numbers_of_classes():
    found = {}
    for task in TRANSFER_TASKS.values():
        found.setdefault(task.benchmark, {})[task.name] = task.num_classes
    assert found == CLASSES


@fewer_classes
@pytest.mark.parametrize(("name", "images"), [("cub", "images"), ("dogs", "Images"), ("cars", "")])
def test_fgvc(name, images, tmp_path):
    splits = load_task(f"fgvc/{name}", write_fgvc(tmp_path, images))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "validation": 2, "test": 4}
    assert splits["test"].features["label"].names == ["3", "7"]
    assert all(pixels_tell_the_label(rows, (3, 7)) for rows in splits.values())


def test_vtab_keeps_classes_without_an_image_and_finds_the_task_in_the_benchmarks_folder(tmp_path):
    write_vtab(tmp_path / "eurosat")
    splits = load_task("vtab-1k/eurosat", tmp_path)
    assert splits["train"].features["label"].num_classes == 10
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "validation": 2, "test": 4}
    assert all(pixels_tell_the_label(rows, range(10)) for rows in splits.values())


def test_the_splits_as_images_to_train_and_test_on(tmp_path):
    write_vtab(tmp_path)
    options = DataOptions(str(tmp_path), benchmark="vtab-1k/patch_camelyon", class_names=("no", "yes"))
    assert {name: len(rows) for name, rows in load_images(options).items()} == {"train": 6, "validation": 2, "test": 4}
    both = DataOptions(str(tmp_path), benchmark="vtab-1k/patch_camelyon", train_split="trainval")
    assert len(load_split(both, "trainval")) == len(load_images(both)["train"])
    assert {name: len(rows) for name, rows in load_images(both).items()} == {"train": 8, "test": 4}
    assert load_split(options, "validation").features["label"].names == ["no", "yes"]
    unlabelled = load_unlabelled(options)
    assert {name: rows.column_names for name, rows in unlabelled.items()} == {
        "train": ["image"],
        "test": ["image", "label"],
    }
    assert len(load_unlabelled(both)["train"]) == 8
    assert len(load_split(options, "train")) == 6
    with pytest.raises(ValueError, match="No split 'dev'"):
        load_split(options, "dev")


@pytest.mark.parametrize(
    ("name", "short_side", "crop"), [("fgvc/cub", 256, "random_crop"), ("vtab-1k/svhn", None, "none")]
)
def test_published_preprocessing(name, short_side, crop):
    task = find_task(name)
    processor = task.image_processor(224)
    assert image_size(processor) == (224, 224) and task.crop == crop
    assert processor.size.get("shortest_edge") == short_side
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    resized = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    if short_side is None:
        resized = image.resize((224, 224), Image.Resampling.BILINEAR)
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    expected = ((torch.from_numpy(np.array(resized)) / 255 - mean) / std).permute(2, 0, 1)
    batch = EvalTransform(processor)({"image": [image], "label": [0]})
    torch.testing.assert_close(batch["pixel_values"][0], expected, rtol=0, atol=1e-5)


def test_vtab_training_images_are_not_augmented_and_fgvcs_are():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    batch = {"image": [image], "label": [0]}
    seen = {}
    for name in ("vtab-1k/svhn", "fgvc/cub"):
        task = find_task(name)
        processor = task.image_processor(64)
        transform = TrainTransform(processor, task.crop)
        draws = [transform(batch)["pixel_values"] for _ in range(4)]
        plain = EvalTransform(processor)(batch)["pixel_values"]
        seen[name] = [bool(torch.equal(draw, plain)) for draw in draws]
    assert seen["vtab-1k/svhn"] == [True] * 4 and not all(seen["fgvc/cub"])


def test_training_crops_are_resized_as_the_processor_resizes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), np.uint8))
    drawn = []
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, resample=resample
        )
        torch.manual_seed(0)
        drawn.append(TrainTransform(processor, "random_crop")({"image": [image], "label": [0]})["pixel_values"])
    assert not torch.equal(drawn[0], drawn[1])


def test_group_means():
    accuracies = {task.full_name: 50.0 for task in find_tasks("vtab-1k")}
    accuracies |= {"vtab-1k/patch_camelyon": 90.0, "vtab-1k/dmlab": 10.0}
    assert group_means(accuracies) == {
        "vtab-1k/natural": 50.0,
        "vtab-1k/specialised": 60.0,
        "vtab-1k/structured": 45.0,
        "vtab-1k/mean": pytest.approx(155 / 3),
    }
    fgvc = {f"fgvc/{name}": float(i) for i, name in enumerate(CLASSES["fgvc"])}
    assert group_means(fgvc) == {"fgvc/fgvc": 2.0}
    assert group_means({"fgvc/cub": 1.0}) == {}
    with pytest.raises(ValueError, match="Received: 'fgvc/cats'"):
        group_means({"fgvc/cats": 1.0})


def test_names_of_tasks():
    assert len(find_tasks("fgvc")) == 5 and len(find_tasks("vtab-1k")) == 19
    with pytest.raises(ValueError, match="Received: 'imagenet'"):
        find_tasks("imagenet")
    with pytest.raises(ValueError, match="Received: the whole benchmark 'fgvc'"):
        find_task("fgvc")


@fewer_classes
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: (d / "val200.txt").unlink(), FileNotFoundError, "No file .*val200.txt"),
        (lambda d: next(d.glob("images*/*.png")).unlink(), FileNotFoundError, "No image .*png"),
        (
            lambda d: (d / "test.txt").write_text("image.png"),
            ValueError,
            "image path and a label in test.txt.*image.png",
        ),
        (lambda d: (d / "test.txt").write_text("a.png one"), ValueError, "Received: 'a.png one'"),
        (lambda d: write_vtab(d, classes=3), ValueError, "Patch Camelyon has 2 classes. Received: 3"),
    ],
)
def test_broken_vtab_folders(change, error, match, tmp_path):
    change(write_vtab(tmp_path))
    with pytest.raises(error, match=match):
        load_task("vtab-1k/patch_camelyon", tmp_path)


@fewer_classes
def test_broken_fgvc_folders(tmp_path):
    write_fgvc(tmp_path)
    with pytest.raises(ValueError, match="Expected 2 class names. Received: 1"):
        load_task("fgvc/cub", tmp_path, ["one"])
    (tmp_path / "train.json").write_text('["a.png"]')
    with pytest.raises(ValueError, match="image path: class id"):
        load_task("fgvc/cub", tmp_path)


def test_fewer_classes_than_published_warn(tmp_path):
    with pytest.warns(UserWarning, match="CUB-200-2011 has 200 classes; the published files name 2"):
        load_task("fgvc/cub", write_fgvc(tmp_path))

"""Several labels for an image: lists, separators and a column for each class give the same data; splits and shots."""

import json
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List, Value, load_from_disk
from PIL import Image

from peft_vprompt.data import (
    DataOptions,
    class_counts,
    few_shot,
    load_images,
    load_split,
    load_unlabelled,
    select_classes,
    stratified_split,
    with_class_names,
)
from peft_vprompt.data.multi_hot import MultiHot, label_matrix, share_of_labels, with_label_matrix


NAMES = ["boat", "cat", "sea lion"]
LISTS = [["cat"], ["sea lion", "boat"], [], ["boat", "cat", "sea lion"], ["sea lion"], ["boat"], ["cat"], ["boat"]] * 3
HOT = np.array([[name in labels for name in NAMES] for labels in LISTS], dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same images and labels in tables of every form."""
    root = tmp_path_factory.mktemp("several")
    names = [f"{i}.png" for i in range(len(LISTS))]
    for i, name in enumerate(names):
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(root / name)
    pairs = list(zip(names, LISTS, strict=True))
    (root / "lists.jsonl").write_text("\n".join(json.dumps({"image": x, "label": y}) for x, y in pairs))
    (root / "semicolons.csv").write_text("image,label\n" + "\n".join(f"{x},{'; '.join(y)}" for x, y in pairs))
    (root / "bars.csv").write_text("image,label\n" + "\n".join(f"{x},{'|'.join(y)}" for x, y in pairs))
    (root / "numbers.csv").write_text(
        "image,label\n" + "\n".join(f"{x},{';'.join(str(NAMES.index(n)) for n in y)}" for x, y in pairs)
    )
    rows = "\n".join(f"{x},{','.join(str(int(n in y)) for n in NAMES)},{len(y)}" for x, y in pairs)
    (root / "columns.csv").write_text("image,boat,cat,sea_lion,count\n" + rows)
    paths = [str(root / name) for name in names]
    numbers = [[NAMES.index(name) for name in labels] for labels in LISTS]
    feature = {"image": Value("string"), "label": List(ClassLabel(names=NAMES))}
    table = Dataset.from_dict({"image": paths, "label": numbers}).cast_column("label", feature["label"])
    table.save_to_disk(str(root / "saved"))
    table.cast_column("label", List(Value("int64"))).to_parquet(str(root / "numbers.parquet"))
    return root


FORMS = {
    "lists.jsonl": {},
    "semicolons.csv": {},
    "bars.csv": {"label_separator": "|"},
    "numbers.csv": {"class_names": tuple(NAMES)},
    "columns.csv": {"label_columns": ("boat", "cat", "sea_*")},
    "saved": {},
    "numbers.parquet": {"class_names": tuple(NAMES)},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same(name, folder):
    options = DataOptions(str(folder / name), multi_label=True, test_fraction=0, **FORMS[name])
    rows = load_images(options)["train"]
    assert rows.features["label"].names == NAMES
    assert np.array_equal(label_matrix(rows), HOT)
    assert rows[3]["image"].size == (4, 4) and rows[3]["label"] == [1, 1, 1]


def test_columns_of_metadata(folder, tmp_path):
    for path in folder.glob("*.png"):
        shutil.copy(path, tmp_path)
    (tmp_path / "metadata.csv").write_text((folder / "columns.csv").read_text().replace("image,", "file_name,", 1))
    options = DataOptions(str(tmp_path), multi_label=True, test_fraction=0, **FORMS["columns.csv"])
    assert np.array_equal(label_matrix(load_images(options)["train"]), HOT)


def test_empty_cells_of_columns_are_not_known(folder):
    (folder / "gaps.csv").write_text("image,cat,dog\n0.png,1,\n1.png,0,true\n2.png,1.0,False\n3.png,0.0,1")
    rows = load_images(
        DataOptions(str(folder / "gaps.csv"), multi_label=True, label_columns=("cat", "dog"), test_fraction=0)
    )["train"]
    assert label_matrix(rows).tolist() == [[1, -100], [0, 1], [1, 0], [0, 1]]


def test_columns_of_classes_are_in_the_order_of_the_training_split(folder, tmp_path):
    for split, columns in {"train": "boat,cat", "test": "cat,boat"}.items():
        (tmp_path / f"{split}.csv").write_text(f"image,{columns}\n{folder}/0.png,1,0\n{folder}/1.png,0,1")
    options = DataOptions(tmp_path, multi_label=True, label_columns=("boat", "cat"))
    for test in (load_images(options)["test"], load_split(options)):
        assert test.features["label"].names == ["boat", "cat"] and label_matrix(test).tolist() == [[0, 1], [1, 0]]


def test_filters_and_small_classes(folder):
    columns = {"multi_label": True, "label_columns": ("boat", "cat", "sea_lion"), "where": ("cat!=1",)}
    rows = load_images(DataOptions(str(folder / "columns.csv"), **columns, min_images=1, test_fraction=0))["train"]
    assert rows.features["label"].names == ["boat", "sea lion"]
    assert len(rows) == 15 and class_counts(rows).tolist() == [9, 6]  # an image of no class stays: it is of none


def test_what_does_not_say_what_it_means_is_refused(folder):
    def read(name, **options):
        return load_images(DataOptions(str(folder / name), **options))

    with pytest.raises(ValueError, match=r"multi_label=True \(--multi-label\)"):
        read("lists.jsonl")
    with pytest.raises(ValueError, match="Expected multi_label=True"):
        read("bars.csv", label_separator="|")
    with pytest.raises(ValueError, match="Expected a label_separator"):
        read("bars.csv", multi_label=True, label_separator="")
    with pytest.warns(UserWarning, match=r"some have '\|'.*label_separator='\|'"):
        read("bars.csv", multi_label=True, test_fraction=0)
    with pytest.raises(ValueError, match="1, 0 or an empty cell.*column 'count'.*'2'|2"):
        read("columns.csv", multi_label=True, label_columns=("*",))
    with pytest.raises(ValueError, match="No column fits label_columns='dog'. The data has: boat"):
        read("columns.csv", multi_label=True, label_columns=("dog",))
    with pytest.raises(ValueError, match="holds numbers: give the class names"):
        read("numbers.csv", multi_label=True)
    with pytest.raises(ValueError, match="one class for each image"):
        DataOptions("x", multi_label=True, benchmark="vtab-1k/caltech101")
    with pytest.raises(ValueError, match="--multi-label or --unlabelled"):
        load_unlabelled(DataOptions(str(folder / "bars.csv"), multi_label=True))
    (folder / "hot.jsonl").write_text('{"image": "0.png", "label": [0, 1, 1]}\n{"image": "1.png", "label": [1, 0, 0]}')
    with pytest.raises(ValueError, match=r"each class of an image once.*Received: \[0, 1, 1\].*--label-columns"):
        read("hot.jsonl", multi_label=True, class_names=("a", "b", "c"))
    (folder / "hot.jsonl").write_text('{"image": "0.png", "label": [0, 1]}\n{"image": "1.png", "label": [1, 0]}')
    with pytest.raises(ValueError, match=r"Received: \[0, 1\] and \[1, 0\].*--label-columns"):
        read("hot.jsonl", multi_label=True, class_names=("a", "b"))


def test_splits_are_near_to_the_same_share_and_leave_no_class_without_images(folder):
    splits = load_images(DataOptions(str(folder / "semicolons.csv"), multi_label=True))
    train, test = class_counts(splits["train"]), class_counts(splits["test"])
    assert (train + test).tolist() == HOT.sum(0).tolist()
    assert (train > 0).all() and (np.abs(test / (train + test) - 0.3) < 0.15).all()
    again = load_split(DataOptions(str(folder / "semicolons.csv"), multi_label=True), "test")
    assert np.array_equal(label_matrix(again), label_matrix(splits["test"]))
    rare = with_label_matrix(splits["train"].select(range(4)), np.eye(4, 3), NAMES)
    kept, _ = stratified_split(rare, 0.9, 0)
    assert (class_counts(kept) > 0).all()


@pytest.fixture
def rows(folder):
    return load_images(DataOptions(str(folder / "lists.jsonl"), multi_label=True, test_fraction=0))["train"]


def test_shots_are_drawn_for_every_class(rows):
    few, more = few_shot(rows, 2, seed=1), few_shot(rows, 3, seed=1)
    assert (class_counts(few) >= 2).all() and len(few) <= 6
    colours = [{image.getpixel((0, 0)) for image in some["image"]} for some in (few, more)]
    assert colours[0] < colours[1] and len(colours[0]) == len(few)  # no image twice
    with pytest.warns(UserWarning, match="fewer than 100 training images"):
        assert len(few_shot(rows, 100, seed=1)) == HOT.any(1).sum()


def test_some_classes_are_chosen(rows):
    some = select_classes(rows, ["sea lion", "cat"])
    assert some.features["label"].names == ["sea lion", "cat"]
    assert label_matrix(some).tolist() == HOT[HOT[:, [2, 1]].any(1)][:, [2, 1]].tolist()
    assert len(select_classes(rows, NAMES[::-1])) == len(rows)
    among = with_class_names(rows, ["dog", "sea lion", "cat", "boat"])
    assert label_matrix(among)[1].tolist() == [-100, 1, 0, 1]
    assert share_of_labels(among, ["dog", "cat"]) == pytest.approx(100 * HOT[:, 1].mean())


def test_the_column_is_saved_and_read_back(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "rows"))
    loaded = load_from_disk(str(tmp_path / "rows"))
    assert loaded.features["label"] == MultiHot(names=NAMES) and np.array_equal(label_matrix(loaded), HOT)

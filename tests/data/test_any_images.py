"""Images of which nothing else is known: from every kind of source, under their names."""

import os
import struct
import zipfile

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from peft_vprompt.data import DataOptions
from peft_vprompt.data.any_images import load_any, load_shards
from tests.support.labelled_images import picture, write_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_folder(root, {"test": 1, "test/deep": 1, "train": 1, ".": 1})
    (root / "list.csv").write_text("a,b\n1,2\n")
    return root


def names(path, split=None, **options):
    found = load_any(DataOptions(path, **options), split)
    assert all(isinstance(found.read(index), Image.Image) for index in range(len(found)))
    return found.names


def test_folders_are_no_classes(photos, recwarn):
    assert names(photos) == ["0.png", "test/0.png", "test/deep/0.png", "train/0.png"]
    assert names(photos / "test" / "0.png") == ["0.png"]
    assert names(f"{photos}/t*/*.png") == ["test/0.png", "train/0.png"]
    assert not recwarn


def test_splits_of_a_folder(tmp_path):
    write_folder(tmp_path, {"test": 1, "train": 2})
    assert names(tmp_path, "test") == ["test/0.png"] and len(names(tmp_path)) == 3
    with pytest.raises(ValueError, match="No split 'dev'"):
        names(tmp_path, "dev")


def test_labels_of_splits_are_found_by_their_names(tmp_path):
    splits = {"train": ["x", "y"], "test": ["y", "z"]}
    data = DatasetDict()
    for split, classes in splits.items():
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
        data[split] = Dataset.from_dict({"image": [picture("ant", 0)] * 2, "label": [0, 1]}, features)
    data.save_to_disk(tmp_path)
    shards = load_shards(DataOptions(tmp_path))
    found = [shards.label.names[each.label] for shard in range(2) for each in shards.read(shard)]
    assert found == [*splits["train"], *splits["test"]]


def test_tables_and_archives(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (photos / "table.csv").write_text("path,split\ntest/0.png,test\ntrain/0.png,train\n")
    assert names(photos / "table.csv") == ["test/0.png", "train/0.png"]
    assert names(photos / "table.csv", where=("split=test",)) == ["test/0.png"]
    assert names(photos / "table.csv", "train", split_column="split") == ["train/0.png"]
    (photos / "table.csv").unlink()
    content = (photos / "0.png").read_bytes()
    Dataset.from_dict({"image": [content] * 2, "label": ["x", None]}).to_parquet(tmp_path / "bytes.parquet")
    assert names(tmp_path / "bytes.parquet") == ["row 0", "row 1"]
    Dataset.from_dict({"image": [content] * 2, "file_name": ["x.png", None]}).to_parquet(tmp_path / "named.parquet")
    assert names(tmp_path / "named.parquet") == ["x.png", "row 1"]
    table = {"image": [content] * 3, "kind": ["a", "b", "b"], "split": ["train", "test", "train"]}
    Dataset.from_dict(table).to_parquet(tmp_path / "kinds.parquet")
    assert names(tmp_path / "kinds.parquet", where=("kind=b",)) == ["row 1", "row 2"]
    assert names(tmp_path / "kinds.parquet", split_column="split") == ["test row 0", "train row 0", "train row 1"]
    load_dataset("imagefolder", data_dir=str(photos / "test" / "deep"), split="train").save_to_disk(tmp_path / "disk")
    assert [name.rpartition("/")[2] for name in names(tmp_path / "disk")] == ["0.png"]
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        file.write(photos / "0.png", "x/y/0.png")
    assert names(tmp_path / "some.zip")[0].endswith("y/0.png")


def test_what_cannot_be_read_is_told_one_by_one(tmp_path):
    picture("a", 0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    found = load_any(DataOptions(tmp_path))
    assert [found.read(index) for index in (1, 2)] == ["empty", "broken link"]
    Dataset.from_dict({"image": [(tmp_path / "a.png").read_bytes(), None]}).to_parquet(tmp_path / "t.parquet")
    found = load_any(DataOptions(tmp_path / "t.parquet"))
    assert isinstance(found.read(0), Image.Image) and found.read(1) == "missing"


@pytest.mark.parametrize("error", [struct.error("x"), EOFError(), TypeError("x"), OSError("x")])
def test_whatever_a_damaged_file_raises(error, tmp_path, monkeypatch):
    picture("a", 0).save(tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr("peft_vprompt.data.images.convert_to_rgb", fail)
    monkeypatch.setattr("peft_vprompt.data.image_checks.convert_to_rgb", fail)
    assert load_any(DataOptions(tmp_path)).read(0) == "damaged"


def test_addresses_are_followed_only_when_asked(tmp_path):
    (tmp_path / "t.csv").write_text("image\nhttps://example.org/a.png\n")
    with pytest.raises(ValueError, match="follow_urls"):
        load_any(DataOptions(tmp_path / "t.csv"))
    assert load_any(DataOptions(tmp_path / "t.csv", follow_urls=True)).names == ["https://example.org/a.png"]


def test_names_that_are_no_text_are_told(tmp_path):
    picture("a", 0).save(tmp_path / "a.png")
    try:
        (tmp_path / os.fsdecode(b"b\xff.png")).write_bytes((tmp_path / "a.png").read_bytes())
    except OSError:
        pytest.skip("the file system takes names in UTF-8 alone")
    with pytest.warns(UserWarning, match=r"no UTF-8 are left out: .*udcff.*Rename"):
        assert load_any(DataOptions(tmp_path)).names == ["a.png"]


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="No images in"):
        load_any(DataOptions(tmp_path))
    with pytest.raises(FileNotFoundError, match="none"):
        load_any(DataOptions(tmp_path / "none.png"))

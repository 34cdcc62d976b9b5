"""Folders whose README.md declares configurations of data files, as those of the Hub do."""

import fsspec
import pytest
from datasets import Dataset

from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.data.streams import can_stream, open_stream
from tests.support.labelled_images import write_folder
from tests.support.streamed_images import encoded


CONFIGS = """configs:
- config_name: small
  data_files: small/*.parquet
- config_name: full
  default: {default}
  data_files:
  - split: train
    path: full/part-1.parquet
  - split: test
    path: full/part-2.parquet"""


def write(folder, head):
    """Six images in two files, and two of another configuration."""
    for name, kinds in (("small/train", "ab"), ("full/part-1", "abab"), ("full/part-2", "ab")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images = [encoded(f"{name}{kind}", index) for index, kind in enumerate(kinds)]
        Dataset.from_dict({"image": images, "label": list(kinds)}).to_parquet(folder / f"{name}.parquet")
    (folder / "README.md").write_text(f"---\nlicense: mit\n{head}\n---\n# Photos\n")
    return folder


def counts(path, **options):
    return {split: len(rows) for split, rows in load_images(DataOptions(path, **options)).items()}


def test_the_default_is_read(tmp_path):
    options = DataOptions(write(tmp_path, CONFIGS.format(default="true")))
    with pytest.warns(UserWarning, match=r"'full'.*--data\): small \(small/\*.parquet\), full"):
        assert counts(tmp_path) == {"train": 4, "test": 2}
    with pytest.warns(UserWarning, match="'full'"):
        assert can_stream(options) and sorted(open_stream(options).splits) == ["test", "train"]
    assert counts(tmp_path / "small", test_fraction=0) == {"train": 2}


def test_no_default_is_refused_with_a_remedy_that_works(tmp_path):
    write(tmp_path, CONFIGS.format(default="false"))
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/declared/{p.relative_to(tmp_path)}": p.read_bytes() for p in tmp_path.rglob("*.*")})
    for place in (tmp_path, "memory://declared"):
        with pytest.raises(ValueError, match=r"README.md declares.*--data\): small \(small/\*.parquet\), full"):
            open_stream(DataOptions(place))
    with pytest.raises(ValueError, match="README.md declares"):
        load_images(DataOptions(tmp_path))
    assert counts(tmp_path / "small/*.parquet", test_fraction=0) == {"train": 2}
    assert open_stream(DataOptions("memory://declared/small/*.parquet")).splits == ["train"]
    memory.rm("/declared", recursive=True)


@pytest.mark.parametrize("head", ["pretty_name: x", "configs: 1", "configs: [", "dataset_info:\n- config_name: small"])
def test_a_readme_that_declares_no_files_changes_nothing(head, tmp_path, recwarn):
    assert counts(write(tmp_path, head), test_fraction=0) == {"train": 8}
    assert not recwarn


def test_images_are_of_the_splits_that_are_declared(tmp_path):
    write_folder(tmp_path, {f"{split}/{kind}": 2 for split in ("train", "test") for kind in "ab"})
    head = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train/**}\n"
    (tmp_path / "README.md").write_text(f"{head}  - {{split: test, path: test/**}}\n---\n")
    assert counts(tmp_path) == {"train": 4, "test": 4}
    (tmp_path / "README.md").write_text(f"{head}---\n")
    with pytest.raises(ValueError, match=r"test/a/0.png in 'test', which is not declared. Move"):
        load_images(DataOptions(tmp_path))
    (tmp_path / "README.md").write_text(head.replace("train/**", "no/**") + "---\n")
    with pytest.raises(ValueError, match="Cannot read what .*README.md declares"):
        load_images(DataOptions(tmp_path))

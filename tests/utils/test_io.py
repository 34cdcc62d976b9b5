"""Files that appear whole or not at all."""

import math
import os

import pytest

from peft_vprompt.errors import CannotWriteError
from peft_vprompt.utils.io import atomic_files, atomic_path, read_json, write_json


def everything_in(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_take_the_places_of_the_old_ones_and_leave_the_others(tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "replaced").write_text("old")
    with atomic_files(tmp_path) as staging:
        (staging / "replaced").write_text("new")
        (staging / "sub").mkdir()
        (staging / "sub" / "added").write_text("new")
        assert everything_in(tmp_path)["replaced"] == "old"
    assert everything_in(tmp_path) == {"kept": "old", "replaced": "new", "sub/added": "new"}


def test_a_failed_block_changes_no_file_and_leaves_none(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyError), atomic_files(tmp_path) as staging:
        (staging / "file").write_text("half")
        raise KeyError
    with pytest.raises(KeyError), atomic_path(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and everything_in(tmp_path) == {"file": "old"}


def test_a_device_or_a_folder_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "a device or a pipe"), ("folder", "a folder")):
        with pytest.raises(CannotWriteError, match=f"{name}': it is {what}. Name a file"):
            write_json({}, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_json_is_read_as_it_was_written_with_null_for_what_json_lacks(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json({"é": [1.5, math.inf, {"x": math.nan}], "tuple": (1,)}, path)
    assert read_json(path) == {"é": [1.5, None, {"x": None}], "tuple": [1]}


def test_a_missing_file_is_none_only_where_it_may_be(tmp_path):
    assert read_json(tmp_path / "none.json", missing_ok=True) is None
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"1" * 5000, b"\xff\xfe", b"[1]]"], ids=repr)
def test_what_is_no_json_is_named(content, tmp_path):
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(ValueError, match="Expected (JSON|text in UTF-8) in '.*broken.json'. Received: "):
        read_json(tmp_path / "broken.json", missing_ok=True)


@pytest.mark.parametrize("said", ["[enforce fail at inline_container.cc:664]", "basic_ios::clear: iostream error"])
def test_what_torch_says_on_a_full_disk_is_one_error(said, tmp_path):
    with pytest.raises(CannotWriteError, match="no space is left on the device"), atomic_path(tmp_path / "file"):
        raise RuntimeError(said)

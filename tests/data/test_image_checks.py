"""Images that cannot be read are found before anything is trained, named, and left out where that is asked for."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from peft_vprompt.data import DataOptions, load_images, load_split, load_unlabelled
from peft_vprompt.data.image_checks import examine
from tests.support.labelled_images import write_folder


KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def encoded(kind, **options):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=kind, **options)
    return buffer.getvalue()


def problem(content, thorough=False):
    return examine("x", None, memoryview(content), thorough).problem


@pytest.mark.parametrize("thorough", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_whole_files(kind, thorough):
    assert problem(encoded(kind), thorough) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", (0.5, 0.95))
def test_files_that_are_cut_off(kind, kept):
    content = encoded(kind)
    assert problem(content[: int(len(content) * kept)]) in ("cut off", "damaged")


def test_more_behind_the_end_of_a_photo_is_no_damage():
    assert problem(encoded("JPEG") + b"appended by a camera" * 10) is None


def test_damage_in_the_midst_is_found_by_decoding():
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 255
    assert problem(bytes(content)) is None
    assert problem(bytes(content), thorough=True) == "damaged"


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "empty"), (b"<html>", "not an image"), (b"\x89PNG", "not an image")]
)
def test_no_images(content, expected):
    assert problem(content) == expected


def test_an_image_that_claims_to_be_huge_is_named():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    claim = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    assert problem(claim + encoded("PNG")[33:]) == "too large to be decoded safely"


def test_values_that_are_not_finite_are_found_by_decoding():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, format="TIFF")
    assert problem(buffer.getvalue()) == "damaged"


@pytest.fixture
def spoilt(tmp_path):
    """A folder of 14 images, four of which cannot be read."""
    path = write_folder(tmp_path, {"a": 6, "b": 6}, size=(40, 40))
    (tmp_path / "a" / "0.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:1500])
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "b" / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "b" / "link.png").symlink_to("/nowhere/at/all.png")
    return path


@pytest.mark.parametrize("load", (load_images, load_unlabelled, lambda options: load_split(options, None)))
def test_they_are_counted_by_kind_and_named(spoilt, load):
    with pytest.raises(ValueError, match="4 of 14 images of the split 'train' cannot be read") as caught:
        load(DataOptions(spoilt))
    shown = str(caught.value)
    for found in (
        "1 cut off",
        "1 empty",
        "1 not an image",
        "1 broken link",
        "a/0.png",
        "a/1.png",
        "page.jpg",
        "link.png",
    ):
        assert found in shown
    assert "--skip-bad-images" in shown


@pytest.mark.parametrize("load", (load_images, load_unlabelled))
def test_going_on_without_them(spoilt, load):
    with pytest.warns(UserWarning, match="4 of 14 images.*left out.*0.png.*page.jpg"):
        data = load(DataOptions(spoilt, skip_bad_images=True))
    assert sum(len(rows) for rows in data.values()) == 10
    assert all(row["image"].size == (40, 40) for rows in data.values() for row in rows)


def test_classes_are_counted_without_them(tmp_path):
    path = write_folder(tmp_path, {"a": 3, "b": 3, "c": 2})
    (tmp_path / "c" / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"):
        data = load_images(DataOptions(path, skip_bad_images=True, min_images=2))
    assert data["train"].features["label"].names == ["a", "b"]


def test_images_in_tables(tmp_path):
    content = [encoded("JPEG") for _ in range(8)]
    content[5] = content[5][:400]
    content[6] = None
    table = {"image": content, "label": ["a", "b"] * 4}
    Dataset.from_dict(table).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="1 of 8 rows .* have no image, the first is number 6"):
        load_images(DataOptions(str(tmp_path / "t.parquet")))
    with pytest.warns(UserWarning, match=r"1 cut off \(row 5\); 1 missing \(row 6\)"):
        data = load_images(DataOptions(str(tmp_path / "t.parquet"), skip_bad_images=True))
    assert sum(len(rows) for rows in data.values()) == 6


def test_rows_that_are_not_used_are_not_looked_at(spoilt):
    for name in ("b/page.jpg", "b/link.png"):
        os.unlink(os.path.join(spoilt, name))
    write_folder(Path(spoilt), {"c": 3})
    data = load_images(DataOptions(spoilt, where=("label!=a",)))
    assert data["train"].features["label"].names == ["b", "c"]


def test_what_fails_later_is_named(tmp_path):
    path = write_folder(tmp_path, {"a": 3, "b": 3})
    rows = load_images(DataOptions(path))
    (tmp_path / "a" / "1.png").write_bytes(b"changed meanwhile")
    with pytest.raises(ValueError, match=r"Cannot read the image '.*a/1.png'.*--skip-bad-images"):
        [split["image"][:] for split in rows.values()]


def test_animations_are_told_once(tmp_path):
    path = write_folder(tmp_path, {"a": 2, "b": 2})
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name, kind in (("a/x.gif", "GIF"), ("b/x.png", "PNG"), ("b/x.webp", "WEBP")):
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(tmp_path / name, format=kind, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="3 animated images.*first frame") as told:
        data = load_images(DataOptions(path, test_fraction=0))["train"]
        colours = [image.getpixel((0, 0)) for image in data["image"]]
    assert len(told) == 1
    assert sum(colour[0] > 250 and max(colour[1:]) < 5 for colour in colours) == 3

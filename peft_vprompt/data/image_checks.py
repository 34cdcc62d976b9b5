"""A look at every image before a training starts: which cannot be read, and why.

Of a file the header is read and its end looked at, which is fast; what looks cut off is decoded to be sure.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image, UnidentifiedImageError

from ..utils.validation import shorten
from ..utils.warning import warn_caller
from .images import UNREADABLE, convert_to_rgb, is_animation


_THREADS = 16
#: Images that a thread looks at in one go.
_SHARE = 64
#: Images named in a message for each kind of problem; skipped ones are listed up to the second number.
_NAMED = 5
_LISTED = 100

_ADDRESS = "an address"


class Finding(NamedTuple):
    """What was found out about an image.

    Attributes:
        name: its path, or its row.
        problem: why it cannot be read, None where it can.
        animated: whether it has several frames.
    """

    name: str
    problem: str | None = None
    animated: bool = False


def unreadable(images: Dataset, split: str, skip: bool = False, follow_urls: bool = False) -> np.ndarray:
    """Return which images cannot be read, bool [images]; without `skip` there are none.

    Args:
        images: rows with encoded images or paths in the column `image`.
        split: name of the split, for messages.
        skip: go on without such images, and list them; all images are then decoded, so that none is missed.
        follow_urls: whether addresses in the place of paths will be followed.

    Raises:
        ValueError: there are such images and `skip` is off, or addresses that are not to be followed.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [
            finding
            for batch in _encoded(images)
            for some in pool.map(lambda values: [examine(*value, thorough=skip) for value in values], batch)
            for finding in some
        ]
    addresses = [finding.name for finding in found if finding.problem == _ADDRESS]
    if addresses and not follow_urls:
        raise ValueError(
            f"{len(addresses)} of {len(found)} images of the split {split!r} are addresses, the first is {addresses[0]}. "
            "They are followed only where you ask for it by follow_urls=True (--follow-urls). Better download them once."
        )
    if animated := [finding.name for finding in found if finding.animated]:
        warn_caller(f"{len(animated)} animated images are read as their first frame: {shorten(animated, _NAMED)}.")
    bad = [finding for finding in found if finding.problem not in (None, _ADDRESS)]
    if bad and not skip:
        raise ValueError(
            f"{len(bad)} of {len(found)} images of the split {split!r} cannot be read: {_by_kind(bad, _NAMED)}. Mend or "
            "remove them, or go on without them by skip_bad_images=True (--skip-bad-images)."
        )
    if bad:
        warn_caller(
            f"{len(bad)} of {len(found)} images of the split {split!r} cannot be read and are left out: "
            f"{_by_kind(bad, _LISTED)}."
        )
    return np.asarray([finding.problem not in (None, _ADDRESS) for finding in found], dtype=bool)


def _by_kind(bad: list[Finding], limit: int) -> str:
    kinds: dict[str, list[str]] = {}
    for finding in bad:
        kinds.setdefault(str(finding.problem), []).append(finding.name)
    return "; ".join(f"{len(names)} {kind} ({shorten(names, limit)})" for kind, names in kinds.items())


def _encoded(images: Dataset) -> Iterator[list[list[tuple[str, str | None, memoryview | None]]]]:
    """Give batches of images, in shares of a thread: a name, the path and the content, which is not copied."""
    row = 0
    for table in images.select_columns("image").with_format("arrow").iter(_SHARE * _THREADS):
        batch = []
        for value in table["image"]:
            path = value["path"].as_py() if value.is_valid else None
            content = value["bytes"].as_buffer() if value.is_valid and value["bytes"].is_valid else None
            name = path if path and content is None else f"row {row}" + (f", {path!r}" if path else "")
            batch.append((name, path, None if content is None else memoryview(content)))
            row += 1
        yield [batch[first : first + _SHARE] for first in range(0, len(batch), _SHARE)]


def examine(name: str, path: str | None, content: memoryview | None, thorough: bool = False) -> Finding:
    """Look at one image.

    Args:
        name: what to call it.
        path: its file, where there is no content.
        content: its encoded bytes.
        thorough: decode it, too.
    """
    if content is None and path is None:
        return Finding(name, "missing")
    if content is None and path is not None and "://" in path:
        return Finding(name, _ADDRESS)
    try:
        if content is not None:
            return _look(name, io.BytesIO(content), len(content), thorough)
        with open(str(path), "rb") as file:
            return _look(name, file, os.fstat(file.fileno()).st_size, thorough)
    except FileNotFoundError:
        return Finding(name, "broken link" if os.path.islink(str(path)) else "not there")
    except PermissionError:
        return Finding(name, "not allowed to be read")
    except UnidentifiedImageError:
        return Finding(name, "not an image")
    except Image.DecompressionBombError:
        return Finding(name, "too large to be decoded safely")
    except UNREADABLE as error:
        return Finding(name, "cut off" if "truncated" in str(error).lower() else "damaged")


def _look(name: str, file: BinaryIO, size: int, thorough: bool) -> Finding:
    if not size:
        return Finding(name, "empty")
    with Image.open(file) as image:
        animated = is_animation(image)
        if thorough or not _is_whole(file, image.format, size):
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # JPEG alone: decodes faster
            convert_to_rgb(image)
    return Finding(name, animated=animated)


def _is_whole(file: BinaryIO, kind: str | None, size: int) -> bool:
    """Tell whether a file ends as its kind does; of kinds that have no mark, nothing is known."""
    place = file.tell()
    file.seek(max(0, size - 64))
    end = file.read()
    file.seek(0)
    start = file.read(12)
    file.seek(place)
    if kind in ("JPEG", "MPO"):
        return end.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "PNG":
        return b"IEND" in end
    if kind == "GIF":
        return end.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= size
    return kind == "BMP" and int.from_bytes(start[2:6], "little") <= size

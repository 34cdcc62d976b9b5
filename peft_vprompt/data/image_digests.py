"""What images are, by their encoded bytes: by it caches, labels and runs know the images that they are for."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, Image

from ..utils.digests import Digest
from .feature_folders import DIGESTS, holds_features


#: Bytes of the digest of one image.
SIZE = 16


def image_digests(images: Dataset) -> np.ndarray:
    """Return a digest of the encoded bytes of every image, uint8 [n, 16], whether they are in a table or in files.

    Nothing but the images is read. Files are read by several threads. Of features it is what stands beside them.

    Raises:
        ValueError: there is no column `image` of encoded images.
        FileNotFoundError: a file is not there any more.
    """
    if holds_features(images):
        found = images.select_columns(DIGESTS).with_format("arrow")[:][DIGESTS]
        return np.frombuffer(b"".join(found.to_pylist()), dtype=np.uint8).reshape(-1, SIZE)
    feature = images.features.get("image")
    if not isinstance(feature, Image):
        raise ValueError(
            f"Expected a column 'image' of images. Received: {images.features}. Read the data with load_images."
        )
    column = images.select_columns("image").cast_column("image", replace(feature, decode=False)).with_format(None)
    found = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for batch in column.iter(batch_size=256):
            found.extend(pool.map(image_digest, batch["image"]))
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, SIZE)


def image_fingerprint(images: Dataset, digests: np.ndarray | None = None) -> str:
    """Return a digest of the images in their order, and of how they are read.

    Args:
        images: data set with a column `image`.
        digests: what `image_digests` gives, where it is known already.

    Raises:
        ValueError, FileNotFoundError: as `image_digests`.
    """
    digests = image_digests(images) if digests is None else digests
    read = str(images.features[DIGESTS].id if holds_features(images) else replace(images.features["image"], id=None))
    return Digest().add(read.encode()).add(np.ascontiguousarray(digests).tobytes()).hex()


def image_digest(image: dict | None) -> bytes:
    """Return the digest of one image; of one behind a URL, which nobody has read, of the URL."""
    content = (image or {}).get("bytes")
    path = (image or {}).get("path")
    if content is None and path is not None:
        content = path.encode() if "://" in path else Path(path).read_bytes()
    return hashlib.sha256(content or b"").digest()[:SIZE]

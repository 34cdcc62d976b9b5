"""Image files as a person sees them: deep grey scaled, transparency on a ground, rotated as the camera says, in RGB.

Pillow's own conversion to RGB cuts 16-bit values off at 255 and drops the alpha channel without a word.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, field

import datasets
import numpy as np
from datasets.features.features import register_feature
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ..utils.warning import warn_caller


#: Modes of Pillow with an alpha channel.
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
#: What Pillow raises of a file that it cannot read.
UNREADABLE = (
    *(UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError),
    *(SyntaxError, ValueError, TypeError, struct.error, zlib.error),
)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Return an image in 8-bit RGB that looks like `image`.

    16-bit grey is scaled to 8 bits. Wider integers and floats are taken as 0 to 1, as 8 bits or as 16 bits, whichever is
    the least that holds their values, and from their least to their greatest value where none does. Transparent parts
    show `background`; the rotation of EXIF is applied. Of an animation the first frame is taken, with a warning.

    Args:
        image: an image of any mode.
        background: colour behind transparent parts, as a name or `#rrggbb`.

    Raises:
        ValueError: values that are not finite, or a colour that is not known.
    """
    if is_animation(image):
        warn_caller("Animated images are read as their first frame.")
    return convert_to_rgb(image, background)


def is_animation(image: Image.Image) -> bool:
    """Tell whether an image has several frames to be seen; a camera's picture with another beside it (MPO) has one."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def convert_to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Do what `to_rgb` does without a word on animations.

    Raises:
        ValueError: as `to_rgb`.
    """
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = Image.fromarray(_to_eight_bits(image)).convert("RGB")
        clear = image.info.get("transparency")  # the one value that is transparent
        if clear is not None:
            grey.paste(ImageColor.getrgb(background), mask=Image.fromarray(np.asarray(image) == clear))
        return grey
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> np.ndarray:
    """Return the values of a one-channel image of more than 8 bits as uint8 [height, width]."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("Expected finite pixel values. Received NaN or infinity.")
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _value_range(values, image.mode == "F")
    return np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _value_range(values: np.ndarray, floats: bool) -> tuple[float, float]:
    """Return the values that are to be black and white."""
    low = float(values.min())
    high = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)
    fitting = [top for top in ranges if high <= top]
    return (0.0, fitting[0]) if low >= 0 and fitting else (low, high)


@dataclass
class RGBImage(datasets.Image):
    """A column of encoded images that are read by `to_rgb`.

    Attributes:
        background: colour behind transparent parts.
    """

    background: str = "white"
    _type: str = field(default="RGBImage", init=False, repr=False)

    @property
    def least_edge(self) -> int | None:
        """The edge in pixels that JPEGs may be decoded down to; None to read them whole."""
        return None

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> Image.Image:
        """Read one image.

        Raises:
            ValueError: the file cannot be read as an image; names it.
        """
        if not isinstance(value, dict):
            return to_rgb(value, self.background) if isinstance(value, Image.Image) else value
        try:
            if value["bytes"] is not None:
                return _read(io.BytesIO(value["bytes"]), self.background, self.least_edge)
            if value["path"] is not None and "://" not in value["path"]:
                return _read_file(value["path"], self.background, self.least_edge)
            return convert_to_rgb(super().decode_example(value, token_per_repo_id), self.background)
        except UNREADABLE as error:
            raise ValueError(
                f"Cannot read the image {_name_of(value)}: {str(error).rstrip('.')}. Mend or remove it, or read the data with "
                "skip_bad_images=True (--skip-bad-images), which decodes every image before and leaves such out."
            ) from error


@dataclass
class DraftImage(RGBImage):
    """A column of encoded images of which JPEGs are decoded at a half, a quarter or an eighth of their size.

    The decoder leaves out what would be thrown away when the image is made small: an image of a camera is read in a fraction
    of the time, and its pixels differ a little from those of the whole image made small.

    Attributes:
        edge: the least that is left of both edges, in pixels; smaller images are read whole.
    """

    edge: int = 448
    _type: str = field(default="DraftImage", init=False, repr=False)

    @property
    def least_edge(self) -> int | None:
        """The least that is left of both edges, in pixels."""
        return self.edge


def as_drafts(images: datasets.Dataset, edge: int) -> datasets.Dataset:
    """Return images whose JPEGs are read as `DraftImage` does; `edge` is the least that is left of both edges."""
    background = getattr(images.features["image"], "background", "white")
    return images.cast_column("image", DraftImage(background=background, edge=edge))


def read_rgb(path: str | os.PathLike, background: str = "white") -> Image.Image:
    """Read an image file in RGB, as `to_rgb` converts it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image; names it.
    """
    try:
        return _read_file(path, background)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No image file {os.fspath(path)!r}.") from error
    except UNREADABLE as error:
        raise ValueError(
            f"Cannot read the image {os.fspath(path)!r}: {str(error).rstrip('.')}. Mend it, or leave it out."
        ) from error


def _read_file(path: str | os.PathLike, background: str, edge: int | None = None) -> Image.Image:
    # An open file, not its name: of a name Pillow maps plain TIFFs into memory and scrambles rotated ones.
    with open(path, "rb") as file:
        return _read(file, background, edge)


def _read(file, background: str, edge: int | None = None) -> Image.Image:
    with Image.open(file) as image:
        if edge is not None:
            image.draft(None, (edge, edge))  # of formats that cannot, nothing happens
        return convert_to_rgb(image, background)


def _name_of(value: dict) -> str:
    return repr(value["path"]) if value["path"] else f"of {len(value['bytes'] or b'')} bytes in a table"


def image_paths(rows: datasets.Dataset) -> list[str | None]:
    """Return the path that is named of every image of the column `image`; None where none is."""
    return [path for _, path in _stored(rows)]


def image_files(rows: datasets.Dataset) -> list[str | None]:
    """Return the file of every image of the column `image`; None of one whose bytes are in the table."""
    return [None if is_inside else path for is_inside, path in _stored(rows)]


def _stored(rows: datasets.Dataset) -> list[tuple[bool, str | None]]:
    """Return of every image whether its bytes are in the table, and its path. Nothing is read of the bytes."""
    stored = []
    for chunk in rows.data.column("image").chunks:
        stored += zip(chunk.field("bytes").is_valid().to_pylist(), chunk.field("path").to_pylist(), strict=True)
    return stored if rows._indices is None else [stored[row] for row in rows._indices.column(0).to_pylist()]


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "experimental", at every import
    register_feature(RGBImage, "RGBImage")
    register_feature(DraftImage, "DraftImage")

"""Small labelled data sets: in memory, and as the folders of published benchmarks."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage

from tests.support.models import CLASS_NAMES


def pictures(count=6, seed=0):
    """Encoded noise with labels."""
    rng, encoded = np.random.default_rng(seed), []
    for _ in range(count):
        buffer = io.BytesIO()
        PILImage.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    table = {"image": encoded, "label": [i % len(CLASS_NAMES) for i in range(count)]}
    return Dataset.from_dict(table).cast_column("image", Image()).cast_column("label", ClassLabel(names=CLASS_NAMES))


class SecretRows(Dataset):
    """A data set whose labels must not be read, however they are asked for."""

    def _getitem(self, key, **kwargs):
        if "label" in self.column_names:
            raise PermissionError("read label")
        return super()._getitem(key, **kwargs)

    def with_format(self, *args, **kwargs):
        if "label" in self.column_names:
            raise PermissionError("read label")
        return super().with_format(*args, **kwargs)


def save_image(path, value, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def write_fgvc(folder, images="images"):
    """Two classes, 7 and 3, with ids that are neither contiguous nor in order; the pixels' value is the id."""
    for stem, count in (("train", 3), ("val", 1), ("test", 2)):
        split = {}
        for label in (7, 3):
            for index in range(count):
                name = f"{label:03d}.Bird/{stem}_{index}.png"
                save_image(folder / images / name, label)
                split[name] = label
        (folder / f"{stem}.json").write_text(json.dumps(split))
    return folder


def write_vtab(folder, classes=2):
    """Lists of images with a space in the folder's name; the pixels' value is the label."""
    for stem, count in (("train800", 3), ("val200", 1), ("test", 2)):
        lines = []
        for label in range(classes):
            for index in range(count):
                name = f"images of it/{stem}_{label}_{index}.png"
                save_image(folder / name, label)
                lines.append(f"{name} {label}")
        (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_folder(root, classes, size=(8, 8)):
    """An image folder: number of images by class folder, which may be a path; no two images are alike."""
    for name, count in classes.items():
        for index in range(count):
            place = root / name / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture(name, index, size).save(place)
    return str(root)


def picture(name, index, size=(8, 8)):
    """The image of a number in a class folder of `write_folder`."""
    rng = np.random.default_rng(zlib.crc32(f"{name}{index}".encode()))
    return PILImage.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))


def paths_and_names(rows):
    """Folder and name of the class of every image, as a set of pairs."""
    names = rows.features["label"].names
    rows = rows.cast_column("image", Image(decode=False))
    return {(Path(row["image"]["path"]).parent.name, names[row["label"]]) for row in rows}

"""The same labelled images as a folder, as tar files of the WebDataset form and as parquet files."""

import io
import tarfile
from pathlib import Path

from datasets import Dataset

from tests.support.labelled_images import picture


def encoded(name, index, size=(8, 8)) -> bytes:
    """A picture of a class as PNG."""
    buffer = io.BytesIO()
    picture(name, index, size).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file of these members, under the very names that they are given."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def write_tars(folder: Path, images: list[tuple[str, int]], files: int) -> Path:
    """Tar files with an image and the name of its class (`txt`) in each sample."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(images) // files)
    for number in range(files):
        members = {}
        for place, (name, index) in enumerate(images[number * share : (number + 1) * share]):
            members |= {f"{place:04}.png": encoded(name, index), f"{place:04}.txt": name.encode()}
        write_tar(folder / f"images-{number:03}.tar", members)
    return folder


def write_parquets(folder: Path, images: list[tuple[str, int]], files: int) -> Path:
    """Parquet files with the columns `image` and `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(images) // files)
    for number in range(files):
        some = images[number * share : (number + 1) * share]
        table = {"image": [encoded(*each) for each in some], "label": [name for name, _ in some]}
        Dataset.from_dict(table).to_parquet(folder / f"images-{number:03}.parquet")
    return folder

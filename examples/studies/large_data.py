"""Image features of more images than fit in memory or on the disk: images a second, and memory over time.

python -m examples.studies.large_data FOLDER --images 1000000

The images are in tar files of the WebDataset form that no disk holds: a file system of fsspec, `simulated://`, draws the
JPEGs of a tar when it is opened, each with bytes of its own. The model is tiny, with random weights, so that the way of the
data is what is measured. The features are then gone through as a training does, mapped into memory.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.spec import AbstractFileSystem
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, default_data_collator

from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.data.streams import open_stream
from peft_vprompt.experiments.models import build_model
from peft_vprompt.training.cached_features import feature_rows
from peft_vprompt.training.feature_folders import FeatureMaker, feature_maker, write_features
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import read_json, write_json

from .tiny_clip import train_tokenizer


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "scaling.json"
#: What this study's entry of the results is called.
KEY = "large_data"

CLASSES = ("circles", "squares", "stripes")
#: Edge of the JPEGs, and how many are drawn; images beyond these are the same pixels in other bytes.
EDGE, DRAWN = 48, 256
#: Images in a tar file.
TAR = 10_000
#: How often memory is looked at while the features are made, and again while they are read.
SAMPLES = 20


class SimulatedTars(AbstractFileSystem):
    """A file system of `TAR` images in each file, `simulated://<images>/<number>.tar`, which are drawn when it is opened."""

    protocol = "simulated"
    cachable = True

    def __init__(self, **options: Any):
        super().__init__(**options)
        generator = np.random.default_rng(0)
        self._pictures = [_jpeg(generator.integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)) for _ in range(DRAWN)]

    def ls(self, path: str, detail: bool = True, **options: Any) -> list:
        """List the tar files of so many images."""
        images = int(self._strip_protocol(path).strip("/").partition("/")[0])
        names = [f"{images}/{number:05}.tar" for number in range(-(-images // TAR))]
        return [self.info(name) for name in names] if detail else names

    def info(self, path: str, **options: Any) -> dict:
        """Say what a path is."""
        path = self._strip_protocol(path).strip("/")
        kind = "file" if path.endswith(".tar") else "directory"
        return {"name": path, "size": None, "type": kind, "ETag": f"simulated {path}"}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BytesIO:
        images, _, name = self._strip_protocol(path).strip("/").partition("/")
        first = int(name.removesuffix(".tar")) * TAR
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for number in range(first, min(first + TAR, int(images))):
                for ending, content in (("jpg", self._picture(number)), ("cls", str(number % len(CLASSES)).encode())):
                    entry = tarfile.TarInfo(f"{number:08}.{ending}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
        buffer.seek(0)
        return buffer

    def _picture(self, number: int) -> bytes:
        """Return a JPEG with its number in a comment, so that no two are alike."""
        content, comment = self._pictures[number % DRAWN], f"{number}".encode()
        return content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=50)
    return buffer.getvalue()


def save_model(folder: Path) -> Path:
    """Write a tiny CLIP with random weights, of images of 32 x 32 pixels."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(list(CLASSES), 600)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "eos_token_id": tokenizer.eos_token_id}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=small | text, vision_config=vision, projection_dim=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def memory() -> dict[str, float]:
    """Return the resident memory of this process in MB, and what of it is its own: not pages of files that it maps."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    entries = {"rss_mb": "VmRSS", "own_mb": "RssAnon"}
    return {name: round(int(lines[entry].split()[0]) * 1024 / 1e6, 1) for name, entry in entries.items()}


class Watch:
    """Memory and time by the number of images done.

    Args:
        total: how many there will be.
    """

    def __init__(self, total: int):
        self.step = max(1, total // SAMPLES)
        self.done = 0
        self.samples: list[dict] = []
        self.start = time.perf_counter()

    def add(self, images: int) -> None:
        """Count images."""
        if (self.done + images) // self.step > self.done // self.step:
            seconds = time.perf_counter() - self.start
            self.samples.append({"images": self.done + images, "seconds": round(seconds, 2)} | memory())
            print(self.samples[-1], flush=True)
        self.done += images

    def result(self) -> dict:
        """Return images a second, and memory after the first tenth, at the most and at the end."""
        seconds = time.perf_counter() - self.start
        later = self.samples[len(self.samples) // 10 :]
        found = {"images_per_second": round(self.done / seconds, 1), "seconds": round(seconds, 1)}
        for name in ("rss_mb", "own_mb"):
            values = [sample[name] for sample in later]
            found[name] = [values[0], max(values), values[-1]]
        return found | {"samples": self.samples}


def watched(maker: FeatureMaker, watch: Watch) -> FeatureMaker:
    """Return what makes the same features under a watch."""

    def encode(inputs: dict) -> torch.Tensor:
        features = maker.encode(inputs)
        watch.add(len(features))
        return features

    return FeatureMaker(maker.content, maker.preprocess, encode)


def measure(folder: Path, images: int) -> dict:
    """Make the features of so many images, and go through them once."""
    fsspec.register_implementation("simulated", SimulatedTars, clobber=True)
    bundle = build_model(str(save_model(folder / "model")), "zero-shot", CLASSES)
    making = Watch(images)
    maker = watched(feature_maker(bundle.model, bundle.image_processor), making)
    place = folder / f"features-{images}"
    stream = open_stream(DataOptions(f"simulated://{images}"))
    summary = write_features(maker, stream, place, batch_size=256, shard_size=8192)
    if making.done != images or summary.images != images:
        raise ValueError(f"Expected a new folder: {images} images in one go. Received: {making.done} made in {place}.")
    reading = Watch(images)
    _go_through(place, reading.add)
    size = sum(path.stat().st_size for path in place.iterdir())
    return {
        "images": images,
        "tars": len(stream.splits),
        "image_bytes": len(SimulatedTars()._picture(0)),
        "feature_mb": round(size / 1e6, 1),
        "features": making.result(),
        "reading": reading.result(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "environment": environment(),
    }


def _go_through(place: Path, count: Callable[[int], None]) -> None:
    """Read all features in a random order and in batches, as a training does."""
    rows = feature_rows(load_images(DataOptions(place, class_names=CLASSES, test_fraction=0))["train"])
    generator = torch.Generator().manual_seed(0)
    loader: Any = DataLoader(rows, 256, shuffle=True, collate_fn=default_data_collator, generator=generator)
    for batch in loader:
        count(len(batch["labels"]))


def main() -> None:
    """Measure, and write the entry of this study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the model and the features")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of results, of which one entry is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.folder, options.images)
    results = read_json(options.output, missing_ok=True) or {}
    write_json(results | {KEY: found}, options.output)
    print(f"{found['features']['images_per_second']} images a second. Next: python docs/render/scaling.py")


if __name__ == "__main__":
    main()

"""The downstream task of the demo: 32 classes with compositional names, drawn in a style that pretraining never showed.

The first sixteen classes are meant as base classes and the others as novel ones. The names partly use the synonyms that
pretraining's captions have only now and then ("crimson", "teardrop").
"""

import functools
from itertools import product
from typing import Literal, get_args

import datasets
import numpy as np
from PIL import Image

from .drawing import IMAGE_SIZE, Style, draw
from .world import BACKGROUNDS, COLOURS, SYNONYMS


Split = Literal["train", "validation", "test"]

#: Images per class in each split.
PER_CLASS: dict[Split, int] = {"train": 32, "validation": 8, "test": 20}

#: The caption for zero-shot use; `{}` is the class name.
TEMPLATE = "a photo of a {}."

#: Look of the task: shifted hue, washed-out colours, thick outlines, blur and noise on a lined ground.
STYLE = Style(hue=-24, saturation=0.6, outline=2.0, blur=0.9, noise=0.1)
BACKGROUND, GROUND = "mint", "lined"

#: Radius of the shapes as a share of the picture: smaller than most of pretraining's.
RADIUS = (0.2, 0.28)
SEED = 5


def _combinations(fills: tuple[str, ...], colours: tuple[str, ...], shapes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Sixteen of the eighteen (fill, colour, shape) combinations."""
    return [parts for index, parts in enumerate(product(fills, colours, shapes)) if index not in (2, 15)]


# The first half are the base classes, the second half the novel ones: other colours and shapes.
_PARTS = (
    *_combinations(("striped", "checkered", "dotted"), ("red", "orange", "purple"), ("circle", "drop")),
    *_combinations(("striped", "checkered", "ringed"), ("pink", "brown", "blue"), ("pentagon", "diamond")),
)

#: Class names in label order. Some words are synonyms of those in pretraining's captions.
CLASS_NAMES: tuple[str, ...] = tuple(" ".join(SYNONYMS.get(part, part) for part in parts) for parts in _PARTS)


def _picture(split: Split, label: int, index: int) -> Image.Image:
    """Picture `index` of a class; always the same."""
    fill, colour, shape = _PARTS[label]
    rng = np.random.default_rng((SEED, get_args(Split).index(split), label, index))
    return draw(
        shape,
        fill,
        colour=COLOURS[colour],
        background=BACKGROUNDS[BACKGROUND],
        ground=GROUND,
        radius=IMAGE_SIZE * rng.uniform(*RADIUS),
        style=STYLE,
        rng=rng,
    )


@functools.cache
def _split(split: Split) -> datasets.Dataset:
    """Return all images of a split, drawn once per process."""
    rows = [(label, index) for label in range(len(_PARTS)) for index in range(PER_CLASS[split])]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASS_NAMES))})
    images = [_picture(split, label, index) for label, index in rows]
    return datasets.Dataset.from_dict({"image": images, "label": [label for label, _ in rows]}, features=features)


def demo_task(split: Split) -> datasets.Dataset:
    """Return a split of the embedded task, ordered by class. The pictures are the same in every call and process.

    Args:
        split: `"train"` (32 images per class), `"validation"` (8) or `"test"` (20).

    Returns:
        A data set of its own with the columns `image` (PIL, RGB, 48x48) and `label` (`ClassLabel` of the 32 names).

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in PER_CLASS:
        raise ValueError(f"Expected split to be one of {list(PER_CLASS)}. Received: split={split!r}.")
    rows = _split(split)
    return rows.select(range(len(rows)))  # a copy: the caller may set a transform on it

"""Downstream tasks of the demo: 32 classes with compositional names each, drawn as pretraining never showed them.

The first sixteen classes are meant as base classes and the others as novel ones. The names partly use the synonyms that
pretraining's captions have only now and then ("crimson", "teardrop"). `shapes` is the task that the demo trains on; `toys`
and `signs` have other classes, and `dusk`, `mosaic` and `sketch` are the classes of `shapes` as seen in other ways.
"""

import functools
from dataclasses import dataclass, replace
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

#: Radius of the shapes as a share of the picture: smaller than most of pretraining's.
RADIUS = (0.2, 0.28)


def _combinations(fills: tuple[str, ...], colours: tuple[str, ...], shapes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Sixteen of the eighteen (fill, colour, shape) combinations."""
    return [parts for index, parts in enumerate(product(fills, colours, shapes)) if index not in (2, 15)]


@dataclass(frozen=True)
class DemoTask:
    """What the pictures of a task show, and how.

    Attributes:
        title: in tables.
        parts: fill, colour and shape of every class, in label order.
        style: rendering style.
        background: its colour.
        ground: its texture.
        seed: of the pictures.
        shift_of: name of the task whose classes are seen in another way here; None where the classes are its own.
    """

    title: str
    parts: tuple[tuple[str, ...], ...]
    style: Style
    background: str
    ground: str
    seed: int
    shift_of: str | None = None

    @property
    def class_names(self) -> list[str]:
        """Class names in label order. Some words are synonyms of those in pretraining's captions."""
        return [" ".join(SYNONYMS.get(part, part) for part in parts) for parts in self.parts]

    def picture(self, split: Split, label: int, index: int) -> Image.Image:
        """Draw picture `index` of a class; always the same."""
        fill, colour, shape = self.parts[label]
        rng = np.random.default_rng((self.seed, get_args(Split).index(split), label, index))
        return draw(
            shape,
            fill,
            colour=COLOURS[colour],
            background=BACKGROUNDS[self.background],
            ground=self.ground,
            radius=IMAGE_SIZE * rng.uniform(*RADIUS),
            style=self.style,
            rng=rng,
        )


# In each, the first half are the base classes, the second half the novel ones: other colours and shapes.
_SHAPES = DemoTask(
    "Shapes",
    (
        *_combinations(("striped", "checkered", "dotted"), ("red", "orange", "purple"), ("circle", "drop")),
        *_combinations(("striped", "checkered", "ringed"), ("pink", "brown", "blue"), ("pentagon", "diamond")),
    ),
    STYLE,
    "mint",
    "lined",
    seed=5,
)
_TOYS = DemoTask(
    "Toys",
    (
        *_combinations(("solid", "dotted", "ringed"), ("red", "blue", "green"), ("heart", "cross")),
        *_combinations(("solid", "striped", "dotted"), ("yellow", "purple", "cyan"), ("star", "square")),
    ),
    Style(hue=18, saturation=0.65, wash=0.2, grain=0.55, blur=0.8, noise=0.08),
    "cream",
    "speckled",
    seed=6,
)
_SIGNS = DemoTask(
    "Signs",
    (
        *_combinations(("solid", "hollow", "striped"), ("yellow", "white", "orange"), ("triangle", "arrow")),
        *_combinations(("solid", "hollow", "checkered"), ("pink", "green", "cyan"), ("crescent", "bolt")),
    ),
    Style(brightness=0.7, light=(1.15, 0.9, 0.7), shading=0.5, blur=1.1, noise=0.08),
    "navy",
    "grid",
    seed=7,
)


def _shift(title: str, seed: int, **look) -> DemoTask:
    """Return the classes of `shapes` in another look."""
    return replace(_SHAPES, title=title, seed=seed, shift_of="shapes", **look)


#: Every task by its name; the first is the one that is meant where none is named.
DEMO_TASKS: dict[str, DemoTask] = {
    "shapes": _SHAPES,
    "toys": _TOYS,
    "signs": _SIGNS,
    "dusk": _shift("Shapes at dusk", 8, style=replace(STYLE, brightness=0.55, shading=0.4), background="gray"),
    "mosaic": _shift("Shapes in mosaic", 9, style=Style(pixel=3, saturation=0.6, noise=0.08, hue=-24), ground="plain"),
    "sketch": _shift(
        "Sketched shapes",
        10,
        style=Style(outline=2.2, saturation=0.3, wash=0.4, blur=0.9, noise=0.08),
        background="white",
    ),
}

#: Class names of the first task, in label order.
CLASS_NAMES: tuple[str, ...] = tuple(_SHAPES.class_names)


@functools.cache
def _split(split: Split, name: str) -> datasets.Dataset:
    """Return all images of a split, drawn once per process."""
    task = DEMO_TASKS[name]
    rows = [(label, index) for label in range(len(task.parts)) for index in range(PER_CLASS[split])]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=task.class_names)})
    images = [task.picture(split, label, index) for label, index in rows]
    return datasets.Dataset.from_dict({"image": images, "label": [label for label, _ in rows]}, features=features)


def demo_task(split: Split, name: str = "shapes") -> datasets.Dataset:
    """Return a split of an embedded task, ordered by class. The pictures are the same in every call and process.

    Args:
        split: `"train"` (32 images per class), `"validation"` (8) or `"test"` (20).
        name: a name in `DEMO_TASKS`.

    Returns:
        A data set of its own with the columns `image` (PIL, RGB, 48x48) and `label` (`ClassLabel` of the 32 names).

    Raises:
        ValueError: If the split or the task is unknown.
    """
    if split not in PER_CLASS:
        raise ValueError(f"Expected split to be one of {list(PER_CLASS)}. Received: split={split!r}.")
    if name not in DEMO_TASKS:
        raise ValueError(f"Expected an embedded task: {', '.join(DEMO_TASKS)}. Received: {name!r}.")
    rows = _split(split, name)
    return rows.select(range(len(rows)))  # a copy: the caller may set a transform on it

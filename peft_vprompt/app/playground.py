"""`Playground`: what the page can do, without a page. Whatever a visitor gives, the answer is something to read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from ..data.images import read_rgb
from ..demo import demo_task
from ..demo.task import CLASS_NAMES
from ..experiments.attention_maps import AttentionMaps
from ..export.classifier import ImageLike, Prediction
from ..export.predictions import PredictOptions
from ..export.tables import PROBLEM, columns_of, write_table
from ..utils.validation import shorten
from .contestants import Contestant, find_contestants


#: Most class names that the page takes. Above it, one image at a time is the wrong tool.
MAX_NAMES = 2000
#: Test images of the embedded task to begin with, by their rows, and their edge in pixels.
_EXAMPLES = (3, 66, 148, 265, 427, 553)
_EXAMPLE_EDGE = 336
#: Column of the table beside those of `vprompt predict`.
MODEL = "model"


@dataclass(frozen=True)
class Answer:
    """What one adapter, or the base model as it is, says of an image.

    Attributes:
        name: its name in the page.
        about: the method and the base model.
        is_zero_shot: whether it is a base model as it is.
        predictions: the most probable labels, best first; none where there is a problem.
        problem: why there is no answer; None where there is one.
        attention: where its image encoder looks; None where nothing can be shown or it was not asked for.
        no_attention: why there is none, though it was asked for.
    """

    name: str
    about: str
    is_zero_shot: bool = False
    predictions: tuple[Prediction, ...] = ()
    problem: str | None = None
    attention: AttentionMaps | None = None
    no_attention: str | None = None


class Playground:
    """Compares what adapters say of one image, beside their base models as they are.

    Args:
        adapters: folders or Hub ids (`id@revision`).
        model: base model of all of them; default: the one that each names. Without adapters, the one to try; None for the
            embedded one.
        device: such as "cpu" or "cuda:1"; "auto" for a graphics card if there is one.
        precision: what frozen weights are held in, see `utils.precision.find_precision`.

    Raises:
        OSError: there is no such adapter.
        ValueError: the same adapter twice, or no such device or precision.

    Example:

    ```python
    playground = Playground(["runs/coop", "runs/maple"])
    answers = playground.compare("photo.jpg", ["cat", "dog"], playground.names)
    print(playground.table("photo.jpg", answers))
    ```
    """

    def __init__(
        self,
        adapters: Sequence[str] = (),
        model: str | None = None,
        device: str | torch.device | None = "auto",
        precision: str = "auto",
    ):
        found = find_contestants(adapters, model, device, precision)
        self.contestants: dict[str, Contestant] = {each.name: each for each in found}

    @property
    def names(self) -> list[str]:
        """Names of all that can be compared, base models first."""
        return list(self.contestants)

    @property
    def class_names(self) -> list[str]:
        """Classes to begin with: those of the first adapter that knows some."""
        known = next((each.class_names for each in self.contestants.values() if each.class_names), None)
        return list(known or (CLASS_NAMES if self._is_embedded else ("cat", "dog", "bird")))

    @property
    def _is_embedded(self) -> bool:
        return any(each.base is None for each in self.contestants.values())

    def examples(self) -> list[Image.Image]:
        """Return images to begin with: some of the embedded task, enlarged to be looked at; none for another model."""
        if not self._is_embedded:
            return []
        images = demo_task("test").select(_EXAMPLES)["image"]
        return [image.resize((_EXAMPLE_EDGE, _EXAMPLE_EDGE), Image.Resampling.BICUBIC) for image in images]

    def compare(
        self,
        image: str | os.PathLike | Image.Image,
        class_names: Sequence[str],
        chosen: Sequence[str],
        top_k: int = 5,
        attention: bool = False,
    ) -> list[Answer]:
        """Return what each of the chosen says of an image; what one cannot do is told in its answer.

        Args:
            image: Pillow's, or its file.
            class_names: classes to tell apart.
            chosen: some of `names`; others are passed over.
            top_k: labels of each.
            attention: look where the image encoders look.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the image cannot be read.
        """
        if not isinstance(image, Image.Image):
            read_rgb(image)  # refused here; each reads it on the background of its training
        found = [self.contestants[name] for name in self.names if name in chosen]
        return [_ask(each, image, class_names, top_k, attention) for each in found]

    def table(self, image: str | os.PathLike, answers: Sequence[Answer]) -> str:
        """Return predictions as CSV: the columns of `vprompt predict`, and which model said it."""
        given = [each for each in answers if each.predictions]
        top_k = max((len(each.predictions) for each in given), default=1)
        classes = [prediction.label for each in given for prediction in each.predictions]
        options = PredictOptions(top_k)
        predictions = [each.predictions for each in given]
        problems = [None] * len(given)
        names = [Path(image).name] * len(given)
        rows = columns_of(names, range(len(given)), predictions, None, problems, classes, options)
        rows = rows.drop_columns(PROBLEM).add_column(1, MODEL, pa.array([each.name for each in given], pa.string()))
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "predictions.csv")
            write_table(output, [rows])
            return output.read_text(encoding="utf-8")


def _ask(contestant: Contestant, image: ImageLike, class_names: Sequence[str], top_k: int, attention: bool) -> Answer:
    begun = {"name": contestant.name, "about": contestant.about, "is_zero_shot": contestant.is_zero_shot}
    try:
        outcome = contestant.ask(image, class_names, top_k, attention)
    except (ValueError, TypeError, OSError) as error:
        return Answer(**begun, problem=" ".join(str(error).split()) or type(error).__name__)
    return Answer(
        **begun,
        predictions=tuple(outcome.predictions),
        attention=outcome.attention,
        no_attention=outcome.no_attention,
    )


def read_names(text: str) -> tuple[list[str], list[str]]:
    """Return the class names that a visitor wrote, one on a line or separated by commas, and remarks on them.

    Raises:
        ValueError: there is none, or more than the page takes.
    """
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    written = [" ".join(part.split()) for part in parts]
    names = list(dict.fromkeys(name for name in written if name))
    remarks = []
    if not names:
        raise ValueError("Write at least two class names, one on each line.")
    if len(names) > MAX_NAMES:
        raise ValueError(
            f"The page takes up to {MAX_NAMES:,} class names. Received: {len(names):,}. For more, use "
            "vprompt predict --class-names."
        )
    if twice := sorted({name for name in names if written.count(name) > 1}):
        remarks.append(f"Counted once: {shorten(twice, 5)}.")
    if len(names) == 1:
        remarks.append("With one class, it is always the answer: add another.")
    return names, remarks

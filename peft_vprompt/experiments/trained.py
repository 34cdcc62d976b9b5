"""A trained adapter as its training left it: the base model, image size, preprocessing and classes that its run names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig

from ..errors import ClassNamesError
from ..losses.label_checks import MULTI_LABEL
from ..peft_models.labels import is_named
from ..training.eval_classes import own_classes
from ..utils.hub import split_revision
from ..utils.validation import shorten
from .adapter_classes import known_classes
from .models import ModelBundle, adapter_config, as_published, has_head, load_adapter
from .results import results_of


@dataclass(frozen=True)
class SavedAdapter:
    """What lies in the folder of an adapter, before its model is loaded.

    Attributes:
        adapter: folder or Hub id, `id@revision` for one revision.
        config: its config.
        run: what `vprompt train` wrote beside it; None where it did not.
        subfolder: of an adapter that is not in the first place.
    """

    adapter: str
    config: PeftConfig
    run: dict | None
    subfolder: str | None = None

    @classmethod
    def find(cls, adapter: str | Path, subfolder: str | None = None) -> SavedAdapter:
        """Read config and results.

        Raises:
            OSError: there is no such adapter.
            ValueError: the results are damaged.
        """
        config = adapter_config(adapter, subfolder)  # before anything is said about what lies beside it
        place, _ = split_revision(str(adapter))
        return cls(str(adapter), config, results_of(place, config, subfolder), subfolder)

    @property
    def is_embedded(self) -> bool:
        """Whether it was trained on the embedded model, wherever that is installed now."""
        return self.run is not None and self.run["settings"]["model"] is None

    @property
    def is_classifier(self) -> bool:
        """Whether its base model has a head in the place of texts."""
        return has_head(self.config)

    @property
    def image_size(self) -> int | None:
        """Edge of the images that it was trained on; None for the base model's own."""
        return self.run["settings"].get("image_size") if self.run else None

    @property
    def benchmark(self) -> str | None:
        """The published task whose preprocessing it was trained with, if any."""
        return self._data.get("benchmark")

    @property
    def background(self) -> str:
        """Colour behind transparent parts of the images that it was trained on."""
        return self._data.get("background") or "white"

    @property
    def _data(self) -> dict:
        """What the run says of its images; nothing where there is none."""
        return (self.run or {}).get("data") or {}

    @property
    def moves(self) -> bool:
        """Whether it tells other classes apart as well as its own: nothing was learned for each of these alone."""
        return not self.is_classifier and not getattr(self.config, "belongs_to_classes", False)

    @property
    def known_classes(self) -> list[str] | None:
        """Its classes in label order, base before novel; None where nothing says them."""
        return known_classes(self.config, self.run)

    def load(
        self,
        model: str | None = None,
        class_names: Sequence[str] | None = None,
        *,
        image_size: int | None = None,
        **place,
    ) -> ModelBundle:
        """Load the adapter on its base model.

        Args:
            model: the base model; default: the one the adapter names.
            class_names: classes of a head, where nothing beside the adapter says them.
            image_size: edge of the images in pixels; default: that of the training.
            **place: further options of `load_adapter`.

        Raises:
            OSError, AdapterMismatchError: as `load_adapter`.
            ClassNamesError: a head for another number of classes.
        """
        trained = next(iter(self.run["classes"].values())) if self.run else self._head_classes(class_names)
        size = image_size or self.image_size
        place |= {"embedded": self.is_embedded, "image_size": size, "subfolder": self.subfolder}
        bundle = load_adapter(self.adapter, model, trained, **place)
        if self._data.get("multi_label"):  # what PEFT saves of its own LoRA does not say it
            bundle.model.get_base_model().config.problem_type = MULTI_LABEL
        return bundle

    def _head_classes(self, given: Sequence[str] | None) -> Sequence[str] | None:
        """Return the classes of a head: as the config names them, or as they are given for one that names none."""
        config: Any = self.config
        labels: Any = getattr(config, "id2label", None)
        if is_named(labels):
            return list(labels.values())
        count = getattr(config, "num_labels", None)
        if given and count and len(given) != count:
            raise ClassNamesError(
                f"The adapter {self.adapter!r} has a head for {count} classes, and cannot tell others apart. Received: "
                f"{len(given)} names, {shorten(given, 4)}. Name its own classes, or leave them out."
            )
        return given

    def load_as_trained(self, model: str | None = None, **options) -> ModelBundle:
        """Load the adapter with the preprocessing of its training; options are those of `load`."""
        return as_published(self.load(model, **options), self.benchmark)

    def classes_of(self, model) -> list[str] | None:
        """Return the classes that a loaded model is asked for by default: all that it can tell apart together."""
        return own_classes(model) or self.known_classes or getattr(model, "class_names", None)

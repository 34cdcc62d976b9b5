"""`ClassesInUse`: which classes each adapter tells apart at present, and how their names are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...core.tokenization import check_lengths, warn_alike
from ...errors import ClassNamesError
from ...utils.name_keys import rows_of
from .adapted_model import AdaptedModel
from .class_list import ClassList
from .class_name_checks import check_class_names
from .feature_cache import FeatureCache


@dataclass
class ClassMemory:
    """What a classifier keeps between calls; replicas of a data-parallel model share it.

    Attributes:
        class_lists: the classes in use by adapter; None for an adapter without any.
        compared: other classes that images were compared with last, by adapter.
        features: class features of the adapters.
        frozen: class features of the frozen model.
    """

    class_lists: dict[str, ClassList | None] = field(default_factory=dict)
    compared: dict[str, ClassList] = field(default_factory=dict)
    features: FeatureCache = field(default_factory=FeatureCache)
    frozen: FeatureCache = field(default_factory=FeatureCache)


class ClassesInUse:
    """The class list of each adapter of a model: taken from its config, set by the user, read by its tokenizer.

    Args:
        adapted: the model with its adapters.
        memory: where the class lists are kept, and what changes with them.
    """

    def __init__(self, adapted: AdaptedModel, memory: ClassMemory):
        self.adapted = adapted
        self.memory = memory

    def take(self, adapter_name: str) -> ClassList | None:
        """Take up the class names of an adapter; None where it has none yet."""
        names = self.adapted.config_of(adapter_name).class_names
        classes = ClassList(list(names)) if names else None
        self.memory.class_lists[adapter_name] = classes
        return classes

    def forget(self, adapter_name: str) -> None:
        """Forget an adapter's classes."""
        self.memory.class_lists.pop(adapter_name, None)
        self.memory.compared.pop(adapter_name, None)

    def set(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Let the active adapter tell other classes apart, whose names the tokenizer reads (None: the adapter's own).

        Raises:
            ClassNamesError: malformed names, or others than the prompts were learned for.
            PromptTooLongError: a name does not fit into the text tower.
        """
        names = check_class_names(names)
        self.adapted.dual  # noqa: B018 - raises where classes have no meaning
        classes = self._new(names)
        with self.adapted.tokenizers.handed_over(tokenizer):
            self._tokenize(classes)
        self.memory.class_lists[self.adapted.adapter_name] = classes
        self.adapted.config.class_names = self.adapted.config.class_names or names
        self.memory.features.clear()
        self.memory.compared.clear()

    def _new(self, names: Sequence[str]) -> ClassList:
        """Return a list of other classes for the active adapter, which finds what it learned for each by its name.

        Raises:
            ClassNamesError: it cannot tell them apart, or they have no description where there are some.
        """
        config = self.adapted.config
        self.adapted.method.check_new_classes(config, names)
        config.descriptions_of(names)
        rows: Any = rows_of(names, config.own_classes) if config.belongs_to_classes else None
        in_order = rows is None or rows == list(range(len(config.own_classes)))
        return ClassList(list(names), rows=None if in_order else rows)

    @contextmanager
    def replaced_by(self, names: Sequence[str]) -> Iterator[None]:
        """Put other classes in the place of the active adapter's until the block ends; the last ones are kept."""
        adapter = self.adapted.adapter_name
        before = self.memory.class_lists.get(adapter)
        if before is None or before.names != list(names):
            compared = self.memory.compared.get(adapter)
            if compared is None or compared.names != list(names):
                compared = self.memory.compared[adapter] = self._new(check_class_names(names))
            self.memory.class_lists[adapter] = compared
        try:
            yield
        finally:
            self.memory.class_lists[adapter] = before

    @property
    def names(self) -> list[str] | None:
        """Names of the active adapter's classes."""
        classes = self.memory.class_lists.get(self.adapted.adapter_name)
        return list(classes.names) if classes else None

    @property
    def known(self) -> ClassList:
        """The active adapter's classes, tokenised or not.

        Raises:
            ClassNamesError: there are none yet.
        """
        classes = self.memory.class_lists.get(self.adapted.adapter_name)
        if classes is None:
            raise ClassNamesError(
                f"Adapter {self.adapted.adapter_name!r} has no class names. Pass class_names=[...] to its config or "
                "call set_class_names([...]). For the base model's own call, pass input_ids too."
            )
        return classes

    @property
    def tokenised(self) -> ClassList:
        """The active adapter's classes, tokenised.

        Raises:
            ClassNamesError: there are none yet.
        """
        classes = self.known
        self._prepare(classes)
        return classes

    @torch.compiler.assume_constant_result  # a compiler finds the classes tokenised
    def _prepare(self, classes: ClassList) -> bool:
        """Tokenise the classes, if that has not been done yet with what there is to read them."""
        if classes.sequences is None or classes.read_by != self._readers:
            self._tokenize(classes)
        return True

    @property
    def _readers(self) -> tuple:
        """What class names are read by."""
        config = self.adapted.config
        texts = [getattr(config, name, None) for name in ("prompt_template", "prompt_init_text")]
        return self.adapted.tokenizers.given, config.tokenizer_name_or_path, config.templates, texts

    def _tokenize(self, classes: ClassList) -> None:
        config = self.adapted.config
        tokenizer = self.adapted.tokenizers.find(config.tokenizer_name_or_path)
        templates = self.adapted.method.class_sequences(config, classes.names, tokenizer)
        text: Any = self.adapted.text
        for sequences in templates:
            check_lengths(sequences, classes.names, text.view.max_positions)
        if not config.belongs_to_classes:
            warn_alike(templates[0], classes.names)
        classes.take(templates, text.layout(tokenizer, templates[0][0]), self._readers)

    @torch.compiler.disable
    def save_names(self) -> None:
        """Save the active adapter with the class names in use from now on.

        Called for the names that an adapter is trained with: by every call in training mode that gradients flow
        through. Evaluation on other classes leaves the saved names alone.
        """
        if not self.adapted.config.belongs_to_classes:  # else what it learned is of the names it has
            self.adapted.config.class_names = self.names

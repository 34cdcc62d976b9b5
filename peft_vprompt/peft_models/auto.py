"""`AutoPeftModelForImageClassification`: base model and adapter from the adapter's folder alone."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError
from peft import PeftConfig, PeftModel
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, _BaseAutoPeftModel
from torch import nn

from ..errors import AdapterMismatchError
from ..models.open_clip import is_open_clip, load_open_clip
from ..tuners.base.bounded import saved_numbers, saved_shapes
from ..tuners.base.patterns import check_patterns
from ..tuners.base.peft_patches import OWN_PACKAGE
from ..utils.fields import shown
from .adapter_model import AdapterModel


logger = logging.getLogger(__name__)

#: The weight [classes, width] of a classification head that is saved with an adapter.
HEAD_WEIGHT = "base_model.model.classifier.weight"


class AutoPeftModelForImageClassification(_BaseAutoPeftModel):
    """Loads the base model whose class and name the adapter's config records, then the adapter.

    Example:

    ```python
    model = AutoPeftModelForImageClassification.from_pretrained("me/adapter")
    ```
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: Sequence[str] | None = None,
        **kwargs,
    ):
        """Load base model and adapter, as `PeftModel.from_pretrained` without a base model; `kwargs` go to both.

        `revision` and `subfolder` are the adapter's; the base model's revision is in the adapter's config. Where the adapter
        has a classification head, the base model gets one for as many classes, with their names.

        A tokenizer that lies beside the adapter changes nothing: PEFT's own method would resize the token embedding to
        it, and `CLIPModel` has none to give.

        Raises:
            ValueError: there is no adapter, or none that can be read without a token; its config does not say which
                class its base model has or where it is, or names a library that is not allowed to be imported.
        """
        saved = read_config(pretrained_model_name_or_path, revision=revision, **kwargs)
        recorded = saved.auto_mapping if isinstance(saved.auto_mapping, dict) else {}
        if not all(isinstance(recorded.get(name), str) for name in ("base_model_class", "parent_library")):
            raise ValueError(
                f"The config of {pretrained_model_name_or_path!r} does not name its base model's class. Load the base "
                "model yourself and use PeftModel.from_pretrained(model, adapter)."
            )
        library = recorded["parent_library"]
        if library.partition(".")[0] not in {"transformers", OWN_PACKAGE, *(import_allowlist or ())}:
            raise ValueError(
                f"The adapter's config asks to import {library!r}, which is not allowed. If it is safe, pass "
                f"import_allowlist=[{library.partition('.')[0]!r}]."
            )
        name = saved.base_model_name_or_path
        if name is None:
            raise ValueError(
                f"The config of {pretrained_model_name_or_path!r} does not say where its base model is: it was built in "
                "memory, or lay in a folder of the machine that published the adapter. Load the base model yourself and "
                "use PeftModel.from_pretrained(model, adapter)."
            )
        target = _class_of_base(recorded["base_model_class"], library)
        if target is None or not name:
            raise ValueError(
                f"Expected the config of {pretrained_model_name_or_path!r} to name the class and the place of a base model. "
                f"Received: {shown(recorded['base_model_class'])} of {library!r}, {shown(name)}. Load the base model yourself "
                "and use PeftModel.from_pretrained(model, adapter)."
            )
        logger.info("The adapter %r names the base model %r.", pretrained_model_name_or_path, name)
        asked = kwargs
        recorded_head = saved_head(saved, pretrained_model_name_or_path, {"revision": revision, **kwargs})
        head, kwargs = split_head(recorded_head, kwargs)
        of_base = {key: value for key, value in kwargs.items() if key != "subfolder"}
        # Whatever an adapter names, no code of its author is run.
        safe = {"trust_remote_code": False} if library.partition(".")[0] in ("transformers", OWN_PACKAGE) else {}
        try:
            base = target.from_pretrained(name, revision=saved.revision, **head, **safe | of_base)
        except (OSError, ValueError):
            if not is_open_clip(name, revision=saved.revision):
                raise
            base = load_open_clip(name, revision=saved.revision)
        # pyrefly: ignore[no-matching-overload]  # a task type of None finds none
        peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(saved.task_type, PeftModel)
        options = {"adapter_name": adapter_name, "is_trainable": is_trainable, "config": config, "revision": revision}
        model = peft_class.from_pretrained(base, pretrained_model_name_or_path, **options, **kwargs)
        if asked.get("id2label") and isinstance(model, AdapterModel):
            model.name_labels(adapter_name, asked["id2label"])
        return model


def check_head(saved: PeftConfig, adapter: str | os.PathLike, options: dict, num_classes: int = 0) -> None:
    """Refuse a saved adapter that asks for a head of more classes than its file of weights has numbers.

    Args:
        saved: its config.
        adapter: its folder or Hub id.
        options: how it is found, see `saved_numbers`.
        num_classes: how many classes what lies beside it asks for.

    Raises:
        AdapterMismatchError: names both.
    """
    asked = max(getattr(saved, "num_labels", None) or 0, len(getattr(saved, "id2label", None) or ()), num_classes)
    held = saved_numbers(adapter, options) if asked else None
    if held is not None and asked > held:
        raise AdapterMismatchError(
            f"The config of the adapter in {str(adapter)!r} asks for a head of more classes than the {held:,} numbers of its "
            f"file of weights. Received: {asked:,} classes. Save or download it again, whole."
        )


def saved_head(saved: PeftConfig, adapter: str | os.PathLike, options: dict) -> dict:
    """Return what is known of the head that a saved adapter was trained with: `num_labels` and, where given, its names.

    A config of PEFT's own has no fields for them: the tensors of the head tell how many classes there are, and names are in
    its `auto_mapping` where we saved it.

    Args:
        saved: its config.
        adapter: its folder or Hub id.
        options: how it is found, see `saved_shapes`.

    Raises:
        AdapterMismatchError: see `check_head`.
    """
    config: Any = saved
    fields = ("num_labels", "id2label", "label2id")
    head = {name: getattr(config, name, None) for name in fields}
    count = head["num_labels"]
    if count is None:
        shapes = saved_shapes(adapter, options) or {}
        weight = shapes.get(HEAD_WEIGHT, ())
        count = weight[0] if len(weight) == 2 else 0
        head = {"num_labels": count, **named(config.auto_mapping, count)} if count else {}
    check_head(saved, adapter, options, count)
    return {name: value for name, value in head.items() if value is not None}


def named(recorded: dict, count: int) -> dict:
    """Return `id2label` and `label2id` for `count` classes as they are in a config's `auto_mapping`; nothing if they are not."""
    labels = recorded.get("id2label")
    if not isinstance(labels, dict) or len(labels) != count or any(str(index) not in labels for index in range(count)):
        return {}
    id2label = {index: str(labels[str(index)]) for index in range(count)}  # JSON has texts for numbers
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}


def split_head(recorded: dict, kwargs: dict) -> tuple[dict, dict]:
    """Return what makes the base model's head fit the adapter, and the other keyword arguments.

    What the caller says of the classes goes before what is `recorded` of them.
    """
    names = ("num_labels", "id2label", "label2id", "ignore_mismatched_sizes")
    given = {name: kwargs[name] for name in names if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in names}
    if not given.keys() & {"num_labels", "id2label"}:
        given = recorded | given
    if given:
        given.setdefault("ignore_mismatched_sizes", True)
    return given, others


def read_config(adapter: str, **options) -> PeftConfig:
    """Return the config of an adapter, in a folder or on the Hub.

    Raises:
        ValueError: there is none that can be read; says if that may be for want of a token.
        AdapterMismatchError: it has a pattern of modules that could take for ever.
    """
    try:
        config = PeftConfig.from_pretrained(adapter, **options)
    except ValueError as error:
        if not isinstance(error.__cause__, RepositoryNotFoundError):  # a gated one is a case of it
            raise
        raise ValueError(
            f"Cannot read the adapter {adapter!r}: the Hub has no such repository, or it is private or gated and the token "
            f"is missing or not allowed to read it. Received: token={'one' if options.get('token') else 'none'}. Check the "
            "name, and pass token=... or log in with `hf auth login`."
        ) from error
    check_patterns(vars(config), adapter)
    return config


def _class_of_base(name: str, library: str) -> Any:
    """Return a class of models, None where the library has none of that name."""
    try:
        found = getattr(importlib.import_module(library), name, None)
    except ImportError:
        return None
    is_model = isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "from_pretrained")
    return found if is_model else None

"""`PeftModelForImageClassification`: the PEFT model that users hold.

Adds the classification call over class names, adapters of several methods on one model, and loading and saving that
never leave anything half-written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import PeftConfig, PeftModel
from peft.utils import (
    CONFIG_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from . import registry
from .config import digest_names
from .errors import AdapterMismatchError
from .model_card import render_model_card
from .tokenization import resolve_local_path
from .tuners.checks import as_labels, drop_idle


class PeftModelForImageClassification(PeftModel):
    """A base model with prompt adapters. Made by `get_peft_model` and `PeftModel.from_pretrained`."""

    # ---- calls ------------------------------------------------------------------------------------------------

    def forward(
        self,
        *args,
        pixel_values: Tensor | None = None,
        labels: Tensor | Sequence[int] | None = None,
        image_features: Tensor | None = None,
        **kwargs,
    ):
        """Classify images, or make the base model's own call.

        On a dual encoder `model(pixel_values=..., labels=...)` gives an `ImageClassifierOutput` over the class names,
        and so does `model(image_features=..., labels=...)` where no visual prompt is learned; with
        `return_dict=False` (or so in the base model's config) a tuple of the same. `num_items_in_batch` changes
        nothing: the loss is the mean over the batch. A call with `input_ids` is `CLIPModel`'s own, prompted. Other
        base models get their own call. Labels may be a list.
        """
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "Expected one adapter for all images of a batch. Received: "
                f"adapter_names={kwargs['adapter_names']!r}. Use set_adapter, or classify_with_adapters for several."
            )
        tuner, given = self.base_model, image_features if pixel_values is None else pixel_values
        labels = as_labels(labels, getattr(given, "device", None))
        own_call = args or kwargs.get("input_ids") is not None or tuner.text_tower is None
        if image_features is not None:
            if args or pixel_values is not None or kwargs.get("input_ids") is not None:
                raise ValueError("Expected image_features alone, or pixel_values and input_ids. Received both.")
            return self._as_asked(tuner.classify_features, image_features, labels, **kwargs)
        if not own_call and pixel_values is not None:
            return self._as_asked(tuner.classify, pixel_values, labels, **kwargs)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        if labels is not None:
            kwargs["labels"] = labels
        tuner.link_towers()
        return super().forward(*args, **kwargs)

    def _as_asked(self, classify: Callable, inputs: Tensor, labels: Tensor | None, return_dict=None, **kwargs):
        """The classification call, as an output class or a tuple."""
        self.base_model.link_towers()
        for name in ("num_items_in_batch", *self.special_peft_forward_args):
            kwargs.pop(name, None)
        output = classify(inputs, labels, **drop_idle(kwargs))
        if return_dict is None:
            return_dict = getattr(self.get_base_model().config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    def set_class_names(self, names: list[str], tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """See `PromptTuner.set_class_names`."""
        self.base_model.set_class_names(names, tokenizer)

    @property
    def class_names(self) -> list[str] | None:
        """The classes in use by the active adapter."""
        return self.base_model.class_names

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """See `PromptTuner.encode_classes`."""
        return self.base_model.encode_classes(pixel_values)

    def encode_images(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """See `PromptTuner.encode_images`."""
        return self.base_model.encode_images(pixel_values, **kwargs)

    def classify_with_adapters(self, pixel_values: Tensor, adapter_names: list[str], **kwargs):
        """See `ClassNameClassifier.classify_with_adapters`."""
        return self.base_model.classify_with_adapters(pixel_values, adapter_names, **kwargs)

    # ---- adapters ---------------------------------------------------------------------------------------------

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args, **kwargs) -> None:
        """Add an adapter of any of our methods; PEFT's own rule (one method per model) holds for all others."""
        with self._as_type_of(peft_config):
            super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    @contextmanager
    def _as_type_of(self, peft_config: PeftConfig):
        own = self.peft_type
        if registry.is_ours(peft_config.peft_type):
            self.peft_type = peft_config.peft_type
        try:
            yield
        finally:
            self.peft_type = own

    def set_adapter(self, adapter_name: str, **kwargs) -> None:
        """Make an adapter the active one; prompts, class names and head switch together."""
        super().set_adapter(adapter_name, **kwargs)
        self.peft_type = self.peft_config[adapter_name].peft_type

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        if self.peft_config:
            self.active_adapter = self.base_model.active_adapters[0]

    # ---- loading ----------------------------------------------------------------------------------------------

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args, **kwargs):
        """Load an adapter's weights, all of them or none.

        Raises:
            AdapterMismatchError: the file cannot be read, is not a plain tensor file, or its tensors are not exactly
                the ones this model needs. The model is left as it was.
        """
        is_new = adapter_name not in self.peft_config
        config = kwargs.get("config") or (None if is_new else self.peft_config[adapter_name])
        before = None if is_new else self._adapter_state(adapter_name)
        try:
            result = self._load_checked(model_id, adapter_name, *args, **kwargs)
        except BaseException:
            if is_new and adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            elif before is not None and len(self.peft_config) == 1 and config.inference_mode:
                self.base_model.unload()  # from_pretrained made this model only to load into it
            elif before is not None:
                set_peft_model_state_dict(self, before, adapter_name)
            raise
        # Assigned weights (low_cpu_mem_usage) are views into the file, whose alignment changes the last bits of sums.
        for key, parameter in self.named_parameters():
            if f"prompt_learner.{adapter_name}." in key:
                parameter.data = parameter.data.clone()
        self.base_model.text_cache.clear()
        return result

    def _load_checked(self, model_id, adapter_name, *args, **kwargs):
        hub_options, _ = self._split_kwargs(kwargs)
        self._require_weights(Path(model_id, hub_options.get("subfolder") or ""))
        try:
            weights = load_peft_weights(str(model_id), device="cpu", **hub_options)
        except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
            raise AdapterMismatchError(
                f"Cannot read the adapter weights in {str(model_id)!r}: {str(error).splitlines()[0]}. Expected an "
                "intact adapter_model.safetensors (or a .bin of plain tensors; nothing else is unpickled). "
                "Save or download it again."
            ) from error
        if adapter_name in self.peft_config:
            self._check_weights(weights, adapter_name, model_id)
            self._check_classes(adapter_name, model_id, hub_options)
        try:
            result = super().load_adapter(model_id, adapter_name, *args, **kwargs)
        except RuntimeError:  # of torch, when a shape differs: ours says which adapter and which model
            if adapter_name in self.peft_config:
                self._check_weights(weights, adapter_name, model_id)
            raise
        self._check_weights(weights, adapter_name, model_id)
        self._check_classes(adapter_name, model_id, hub_options)
        return result

    @staticmethod
    def _require_weights(folder: Path) -> None:
        """Refuse a folder without a file of weights, which PEFT would look for on the Hub."""
        expected = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
        if folder.is_dir() and not any((folder / name).is_file() for name in expected):
            found = ", ".join(sorted(path.name for path in folder.iterdir()))
            raise AdapterMismatchError(
                f"Expected the weights of the adapter, {' or '.join(expected)}, in {str(folder)!r}. Received: {found}. "
                "Save or download it again, whole."
            )

    def _adapter_state(self, adapter_name: str) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        return {key: value.detach().clone() for key, value in state.items()}

    def _check_weights(self, weights: dict[str, Tensor], adapter_name: str, model_id) -> None:
        """Compare names and shapes of an adapter's file with what this model needs."""
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        expected = {key: tuple(value.shape) for key, value in state.items()}
        problems = [f"missing {key}" for key in expected.keys() - weights.keys()]
        problems += [f"unexpected {key}" for key in weights.keys() - expected.keys()]
        problems += [
            f"{key} has shape {tuple(weights[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in weights and tuple(weights[key].shape) != shape
        ]
        if problems:
            trained_on = self.peft_config[adapter_name].base_model_name_or_path
            raise AdapterMismatchError(
                f"The adapter in {str(model_id)!r} does not fit this {type(self.get_base_model()).__name__}: "
                f"{'; '.join(sorted(problems)[:4])}{' ...' if len(problems) > 4 else ''}. It was trained on "
                f"{trained_on or 'a model built in memory'}; load it on that model, or save it again."
            )
        bad = [key for key, value in weights.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise AdapterMismatchError(f"The adapter in {str(model_id)!r} has NaN or infinite values in {bad[:4]}.")

    def _check_classes(self, adapter_name: str, model_id, hub_options: dict) -> None:
        """Where something was learned for each class: are the adapter's classes those of the file?

        An adapter that was saved before this was recorded passes.
        """
        config = self.peft_config[adapter_name]
        if not config.belongs_to_classes:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the adapter was made
            saved = PeftConfig.from_pretrained(str(model_id), **hub_options)
        if saved.class_names_digest not in (None, digest_names(config.class_names)):
            names = ", ".join(config.class_names[:5]) + (", ..." if len(config.class_names) > 5 else "")
            raise AdapterMismatchError(
                f"The adapter in {str(model_id)!r} learned something for each of its classes, and these are not the "
                f"names it learned them for. Received: {len(config.class_names)} names ({names}). Put back the names, "
                f"in their order, that {CONFIG_NAME} was saved with, or train an adapter for these."
            )

    # ---- saving -----------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save adapters as PEFT does, through a temporary folder: no reader ever sees half of a file.

        Classes are saved by the names the adapter was configured or trained with.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"Expected a directory to save to. Received a file: {str(target)!r}.")
        if not kwargs.get("is_main_process", True):
            super().save_pretrained(str(target), *args, **kwargs)
            return
        for name in kwargs.get("selected_adapters") or self.peft_config:
            self._complete_config(self.peft_config.get(name))
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
            if (target / "README.md").is_file():
                shutil.copy2(target / "README.md", staging)
            super().save_pretrained(staging, *args, **kwargs)
            for path in sorted(p for p in Path(staging).rglob("*") if p.is_file()):
                destination = target / path.relative_to(staging)
                destination.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, destination)

    def _complete_config(self, config: PeftConfig | None) -> None:
        """Record what is needed to rebuild the base model and the tokenizer elsewhere."""
        if config is None:
            return
        base = self.get_base_model()
        base = getattr(base, "base_layer", base)  # a bare encoder is wrapped whole
        config.auto_mapping = {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__
            if base.__class__.__module__ != "peft_vprompt.base_model"
            else type(base).unlabelled_class.__module__,
        }
        config.record_classes()
        config.tokenizer_name_or_path = resolve_local_path(config.tokenizer_name_or_path)
        config.base_model_name_or_path = resolve_local_path(config.base_model_name_or_path)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a model card with a snippet that runs as it stands; an existing card is only updated."""
        path = Path(output_dir) / "README.md"
        if not path.is_file():
            path.write_text(render_model_card(self), encoding="utf-8")
        super().create_or_update_model_card(output_dir)


registry.register_model_class(PeftModelForImageClassification)

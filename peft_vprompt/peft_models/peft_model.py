"""`PeftModelForImageClassification`: the PEFT model that users hold.

Adds the classification call over class names and adapters of several methods on one model; saving and loading are in
`saved_model`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager

from peft import PeftConfig
from peft.utils import CONFIG_NAME
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.tokenization import resolve_local_path
from ..errors import AdapterMismatchError
from ..tuners.base import registry
from ..tuners.base.config import TASK_TYPE, digest_names
from ..tuners.base.input_checks import as_labels, drop_idle
from .safe_saving import SavedPeftModel


class PeftModelForImageClassification(SavedPeftModel):
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
        if tuner.text_tower is not None and pixel_values is None and len(args) < 2:
            raise ValueError(
                "Expected images by name: model(pixel_values=...), or model(input_ids=..., pixel_values=...) for the "
                f"base model's own call. Received: {len(args)} inputs by position and {', '.join(kwargs) or 'none'} by "
                "name."
            )
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
            return_dict = getattr(self.base_model.dual_encoder.module.config, "return_dict", True)
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

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one; prompts, class names and head switch together."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.peft_type = self.peft_config[adapter_name].peft_type

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        self.active_adapter = self.base_model.active_adapters[0]
        self.peft_type = self.peft_config[self.active_adapter].peft_type

    # ---- loading and saving -----------------------------------------------------------------------------------

    def load_adapter(self, *args, **kwargs):
        """See `SavedPeftModel.load_adapter`."""
        result = super().load_adapter(*args, **kwargs)
        self.base_model.feature_cache.clear()
        return result

    def _check_fit(self, adapter_name: str, weights: dict[str, Tensor], model_id, hub_options: dict) -> None:
        super()._check_fit(adapter_name, weights, model_id, hub_options)
        self._check_classes(adapter_name, model_id, hub_options)

    def _check_classes(self, adapter_name: str, model_id, hub_options: dict) -> None:
        """Where something was learned for each class: are the adapter's classes those of the file?

        An adapter that was saved before this was recorded passes.
        """
        config = self.peft_config[adapter_name]
        if not config.belongs_to_classes:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the adapter was made
            try:
                saved = PeftConfig.from_pretrained(str(model_id), **hub_options)
            except ValueError:  # weights alone, for an adapter that is there already
                return
        if saved.class_names_digest not in (None, digest_names(config.class_names)):
            names = ", ".join(config.class_names[:5]) + (", ..." if len(config.class_names) > 5 else "")
            raise AdapterMismatchError(
                f"The adapter in {str(model_id)!r} learned something for each of its classes, and these are not the "
                f"names it learned them for. Received: {len(config.class_names)} names ({names}). Put back the names, "
                f"in their order, that {CONFIG_NAME} was saved with, or train an adapter for these."
            )

    def _complete_config(self, config: PeftConfig | None) -> None:
        super()._complete_config(config)
        if config is not None:
            config.record_classes()
            config.tokenizer_name_or_path = resolve_local_path(config.tokenizer_name_or_path)


registry.register_model_class(TASK_TYPE, PeftModelForImageClassification)

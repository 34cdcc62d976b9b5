"""`PeftModelForImageClassification`: the PEFT model that users hold.

Adds the classification call over class names (`ClassNameClassifier`) and adapters of several methods on one model; saving
and loading are in `safe_saving`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..core.batch_norm import hold_statistics
from ..core.tokenization import resolve_local_path
from ..losses.multi_label import BinaryCrossEntropy
from ..tuners.base import registry
from ..tuners.base.classifier import ClassificationOutput, ClassNameClassifier
from ..tuners.base.config import TASK_TYPE, PromptConfig
from ..tuners.base.input_checks import as_labels, drop_idle
from ..tuners.base.module_state import fixed_weights
from ..tuners.base.tuner import PromptTuner
from .adapter_files import check_classes
from .mixed_batches import call_with_adapters
from .support import check_cache
from .without_gradients import LearnsWithoutGradients


class PeftModelForImageClassification(LearnsWithoutGradients):
    """A base model with prompt adapters. Made by `get_peft_model` and `PeftModel.from_pretrained`.

    Under PEFT's own tuners, too, with `task_type="IMAGE_CLS"` in their config: a LoRA of both towers, say, is then trained
    on class names.

    Attributes:
        main_input_name: what is counted as the inputs; of a dual encoder's own call it would be the texts.
    """

    main_input_name = "pixel_values"

    def __init__(self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.class_name_classifier = ClassNameClassifier(self)
        self.class_name_classifier.adapted.take_labels()
        for other in self.peft_config:
            self.class_name_classifier.in_use.take(other)
        try:
            self.class_name_classifier.add_adapter(adapter_name)
        except Exception:
            self._take_back(adapter_name)
            for parameter in trained:
                parameter.requires_grad = True
            raise
        self._show_labels()
        hold_statistics(self.base_model)

    def train(self, mode: bool = True) -> PeftModelForImageClassification:
        """Switch between training and evaluation; norms that are frozen keep their running statistics."""
        super().train(mode)
        if "class_name_classifier" in vars(self):  # not while it is made
            hold_statistics(self.base_model)
        return self

    def _replicate_for_data_parallel(self) -> PeftModelForImageClassification:
        replica = super()._replicate_for_data_parallel()
        replica.class_name_classifier = ClassNameClassifier(replica, self.class_name_classifier.memory)
        return replica

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
        `return_dict=False` (or so in the base model's config) a tuple of the same. There `num_items_in_batch`
        changes nothing: the loss is the mean over the batch. A call with `input_ids` is `CLIPModel`'s own, prompted. Other
        base models get their own call. Labels may be a list; with `problem_type="multi_label_classification"` in the
        config they are 1 or 0 for each class [b, c], under a head too. `output_aux_loss` asks for the method's further terms of
        the loss, which come in training anyway.

        `adapter_names` has an adapter for each image ("__base__" for none), see `mixed_batches`.

        Raises:
            ValueError: inputs that do not go together.
        """
        is_dual = self.class_name_classifier.adapted.backbone.dual is not None
        if (adapter_names := kwargs.pop("adapter_names", None)) is not None:
            if is_dual and (kwargs.get("input_ids") is not None or len(args) > (pixel_values is None)):
                raise ValueError(
                    "Expected images alone with adapter_names. Received texts too, of which each is compared with every "
                    "image, whatever its adapter. Call set_adapter for each adapter in turn."
                )
            inputs = {"pixel_values": pixel_values, "labels": labels, "image_features": image_features, **kwargs}
            with self._changing():
                return call_with_adapters(self, self.forward, adapter_names, args, inputs)
        if getattr(self, "_is_replica", False) and isinstance(self.base_model, PromptTuner):
            self.base_model.vision_encoder.link(self.base_model.text_encoder)
        given = image_features if pixel_values is None else pixel_values
        labels = as_labels(labels, getattr(given, "device", None))
        own_call = args or kwargs.get("input_ids") is not None or not is_dual
        if image_features is not None and (own_call and is_dual or pixel_values is not None):
            raise ValueError("Expected image_features alone, or pixel_values and input_ids. Received both.")
        if given is not None and (not own_call or image_features is not None):
            for name in ("num_items_in_batch", *self.special_peft_forward_args):
                kwargs.pop(name, None)
            as_asked = kwargs.pop("return_dict", None)
            with self.class_name_classifier.adapted.lock.call():
                output = self.class_name_classifier.classify(
                    labels, pixel_values=pixel_values, image_features=image_features, **drop_idle(kwargs)
                )
            if as_asked is None:
                as_asked = getattr(self.class_name_classifier.adapted.dual.module.config, "return_dict", True)
            # The terms of the loss by name are a dict, which no consumer of tuples expects.
            return output if as_asked else replace(output, aux_losses=None).to_tuple()
        if is_dual and pixel_values is None and len(args) < 2:
            raise ValueError(
                "Expected images by name: model(pixel_values=...), or model(input_ids=..., pixel_values=...) for the "
                f"base model's own call. Received: {len(args)} inputs by position and {', '.join(kwargs) or 'none'} by "
                "name."
            )
        kwargs.pop("output_aux_loss", None)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        several = labels is not None and self._is_multi_label
        if labels is not None and not several:
            kwargs["labels"] = labels
        with self.class_name_classifier.adapted.lock.call():
            output = super().forward(*args, **kwargs)
        if not several:
            return output
        logits = output[0] if isinstance(output, tuple) else output.logits
        loss = BinaryCrossEntropy()(logits, labels, kwargs.get("num_items_in_batch"))
        return (loss, *output) if isinstance(output, tuple) else replace(output, loss=loss)

    def set_class_names(
        self,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | Sequence[str] | None = None,
    ) -> None:
        """Tell other classes apart with the active adapter's prompts.

        The adapter is saved with the names that it was configured or trained with, not with those of a later
        evaluation; one without any takes these. What it learned for each class, where it did, is found by the class's name:
        of its classes some may be named, in any order.

        Args:
            names: one name for each class, in label order; underscores are read as spaces.
            tokenizer: what reads the names; default: the one that the config or the base model names.
            template: text around the names, or several, under one of PEFT's own tuners (a LoRA, say), whose config has
                none; it is saved with the names.

        Raises:
            ValueError: a template for an adapter whose config has one, or a malformed one.
            ClassNamesError: malformed names, or prompts that were learned for each class and do not move to others; names
                without a description where classes have some.
            PromptTooLongError: a name does not fit into the text tower.
            TokenizerNotFoundError: no tokenizer is known.
            UnsupportedModelError: the base model has no text tower.

        Example:

        ```python
        model.set_class_names(["fox", "sea lion"])
        model(pixel_values=images).logits  # [batch, 2]
        ```
        """
        with self._changing():
            adapted = self.class_name_classifier.adapted
            before = None if template is None else adapted.config.template
            if template is not None:
                adapted.set_template(template)
            try:
                self.class_name_classifier.in_use.set(names, tokenizer)
            except Exception:
                if before is not None:
                    adapted.config.template = before
                raise
            self._show_labels()

    def start_class_head(self) -> None:
        """Begin the second stage of an adapter that learns in two (2SFS): one vector for each class, and nothing else.

        The vectors start as the class features that the active adapter has now; what the encoders learned is frozen. Make a
        new optimizer afterwards. Classes without a vector are told by their texts, as before.

        Raises:
            OutputNotFiniteError: the first stage diverged.
            ValueError: the active adapter does not learn in two stages, is in the second one, or is disabled.

        Example:

        ```python
        Trainer(model, ...).train()
        model.start_class_head()
        Trainer(model, ...).train()
        ```
        """
        with self._changing():
            self.class_name_classifier.start_class_head()

    def describe_classes(self, descriptions: Mapping[str, Sequence[str]] | str | os.PathLike) -> None:
        """Add sentences that describe classes to those of the active adapter's config, in the place of those of the same.

        They are saved with the adapter. See the field `class_descriptions` for what they are used for.

        Args:
            descriptions: sentences by class, `{class: [sentence, ...]}`, or a JSON file of them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: something else, or the adapter is one of PEFT's own, whose text side is the template's.
            UnsupportedModelError: the base model has no text tower.

        Example:

        ```python
        model.describe_classes({"fox": ["A fox is red.", "A fox has a bushy tail."], "wolf": ["A wolf is grey."]})
        model.set_class_names(["fox", "wolf"])
        ```
        """
        with self._changing():
            self.class_name_classifier.adapted.describe_classes(descriptions)

    @property
    def class_names(self) -> list[str] | None:
        """The classes in use by the active adapter."""
        return self.class_name_classifier.class_names

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """Return L2-normalised text features of the active adapter's classes.

        They are kept while nothing they depend on changes, unless a gradient has to flow through them; what is returned
        is a copy.

        Args:
            pixel_values: images, for methods whose class features depend on them (CoCoOp).

        Returns:
            [classes, dim], for several contexts the mean of their features, whose cosines are the mean of the contexts'
            cosines; [classes, pairs, dim] for read-only prompts; [batch, classes, dim] where they depend on the images.

        Raises:
            ValueError: the features depend on images, and there are none.
        """
        return self.class_name_classifier.encode_classes(pixel_values)

    def encode_images(self, pixel_values: Tensor, **options) -> Tensor:
        """Return L2-normalised image features [batch, dim]; [batch, pairs, dim] for read-only prompts.

        Without a text tower: of the pooled output, or of the class token where there is none.

        Raises:
            ValueError: images of another shape than the encoder takes, or none.
            TypeError: keyword arguments that it does not take.
        """
        return self.class_name_classifier.images.encode(pixel_values, **options)

    def classify_with_adapters(
        self, pixel_values: Tensor, adapter_names: Sequence[str], **options
    ) -> dict[str, ClassificationOutput]:
        """Classify the same images by several read-only adapters at about the cost of one: logits of each, by name.

        The frozen image encoder runs once; all read-only prompts then read its keys and values together. Each adapter
        compares with its own classes, whose features are kept. Calls by other threads wait meanwhile.

        Raises:
            ValueError: no adapter, one that this model does not have or whose prompts other tokens read; or all are
                disabled.
        """
        return self.class_name_classifier.classify_with_adapters(pixel_values, adapter_names, **options)

    def fixed_weights(self) -> AbstractContextManager:
        """Classify in the block without reading the text side's weights in every call.

        Class features are kept while nothing that they depend on changes, and each call looks: it reads all weights of
        the text encoder, as many a tool writes past autograd's version counters (`parameter.data`, numpy). That is some
        hundredths of a call with one image, and nothing beside a call with many. In the block only what the counters
        count is seen.

        Example:

        ```python
        with torch.no_grad(), model.fixed_weights():
            for image in stream:
                model(pixel_values=image)
        ```
        """
        return fixed_weights()

    def method_callbacks(self) -> list[TrainerCallback]:
        """Return what a Trainer has to do for the active adapter's method beside its steps."""
        adapted = self.class_name_classifier.adapted
        return adapted.method.callbacks(adapted.config)

    # ---- adapters ---------------------------------------------------------------------------------------------

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args, **kwargs) -> None:
        """Add an adapter of any of our methods; PEFT's own rule (one method per model) holds for all others.

        Raises:
            ValueError: the config does not fit the model, or its first values cannot be made; nothing is added.
        """
        with self._changing():
            with self._as_type_of(peft_config):
                super().add_adapter(adapter_name, peft_config, *args, **kwargs)
            try:
                self.class_name_classifier.add_adapter(adapter_name)
            except Exception:
                self.delete_adapter(adapter_name)
                raise

    def add_weighted_adapter(self, adapters, weights=None, adapter_name="weighted", *args, **kwargs) -> None:
        """See `AdapterModel.add_weighted_adapter`; the new adapter has the first one's classes."""
        super().add_weighted_adapter(adapters, weights, adapter_name, *args, **kwargs)
        classes = self.class_name_classifier.in_use
        if adapter_name not in classes.memory.class_lists:  # PEFT's own tuners pass `add_adapter` by
            self.class_name_classifier.adapted.take_fields(adapter_name, adapters[0])
            classes.take(adapter_name)

    def add_like(self, adapter_name: str, other: str, state: dict[str, Tensor]) -> None:
        """See `AdapterModel.add_like`."""
        self.class_name_classifier.adapted.take_fields(adapter_name, other)
        super().add_like(adapter_name, other, state)

    @contextmanager
    def _as_type_of(self, peft_config: PeftConfig) -> Iterator[None]:
        own = self.peft_type
        if registry.shares_model(own) and registry.shares_model(peft_config.peft_type):
            self.peft_type = peft_config.peft_type
        try:
            yield
        finally:
            self.peft_type = own

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one; prompts, class names and head switch together."""
        with self._changing():
            super().set_adapter(adapter_name, inference_mode=inference_mode)
            self.peft_type = self.peft_config[adapter_name].peft_type

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the base model answer without adapters until the block ends, in all threads; see `AdapterModel`."""
        disabled = super().disable_adapter()
        with self._changing():
            disabled.__enter__()
        try:
            yield
        finally:
            with self._changing():
                disabled.__exit__(None, None, None)

    def enable_adapter_layers(self) -> None:
        """Switch the adapters on."""
        with self._changing():
            self.base_model.enable_adapter_layers()

    def disable_adapter_layers(self) -> None:
        """Switch the adapters off."""
        with self._changing():
            self.base_model.disable_adapter_layers()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. Without any the base model makes its own call, and there are no classes."""
        with self._changing():
            super().delete_adapter(adapter_name)
            self.class_name_classifier.delete_adapter(adapter_name)

    def _given_back(self, model: nn.Module) -> nn.Module:
        self.class_name_classifier.adapted.release()
        return super()._given_back(model)

    def _shown_labels(self) -> Sequence[str] | Mapping[int, str] | None:
        if self.class_name_classifier.adapted.backbone.dual is None:
            return super()._shown_labels()
        return self.class_names if self.active_adapters else None

    # ---- loading and saving -----------------------------------------------------------------------------------

    def load_adapter(self, *args, **kwargs):
        """See `SavedPeftModel.load_adapter`."""
        if kwargs.get("token") is not None:  # also for one of PEFT's own, whose config does not remember it
            self.class_name_classifier.adapted.tokenizers.token = kwargs["token"]
        with self._changing():
            result = super().load_adapter(*args, **kwargs)
        self.class_name_classifier.memory.features.clear()
        return result

    def _check_fit(self, adapter_name: str, weights: dict[str, Tensor], model_id, hub_options: dict) -> None:
        super()._check_fit(adapter_name, weights, model_id, hub_options)
        check_classes(self.peft_config[adapter_name], model_id, hub_options)
        check_cache(self.class_name_classifier, adapter_name, model_id)

    def _complete_config(self, config: PeftConfig | None) -> None:
        super()._complete_config(config)
        if isinstance(config, PromptConfig):
            config.record_classes()
            config.tokenizer_name_or_path = resolve_local_path(config.tokenizer_name_or_path)
        for name, other in self.peft_config.items():
            if other is config and self.class_name_classifier.adapted.backbone.dual is not None:
                self.class_name_classifier.adapted.record_classes(name)


registry.register_model_class(TASK_TYPE, PeftModelForImageClassification)

"""`ClassNameClassifier`: images against class names, by the active adapter's prompts.

The half of a tuner that users meet: class lists, image features, logits and loss (`class_features` has the text side).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ImageClassifierOutput

from ...backbones.supported import DUAL_ENCODERS
from ...errors import UnsupportedModelError
from .class_features import ClassEncoder, ClassList
from .config import check_class_names
from .input_checks import check_inputs, check_options, check_unit_length


if TYPE_CHECKING:
    from ...backbones.dual_encoder import DualEncoderView


class ClassNameClassifier(ClassEncoder):
    """Mixin of `PromptTuner`, which provides the model, its towers, its adapters and their methods."""

    # ---- classes ----------------------------------------------------------------------------------------------

    @property
    def dual_encoder(self) -> DualEncoderView:
        """The view of the module that joins both towers.

        Raises:
            UnsupportedModelError: the base model has no text tower.
        """
        for module in self.model.modules():
            if type(module).__name__ in DUAL_ENCODERS:
                return DUAL_ENCODERS[type(module).__name__](module)
        raise UnsupportedModelError(
            f"Class names are compared with images by models with a text tower ({', '.join(DUAL_ENCODERS)}); "
            f"{self.vision_tower.base_layer.__class__.__name__} has none."
        )

    def set_class_names(self, names: list[str], tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Tell other classes apart with the active adapter's prompts.

        The adapter keeps the names it was configured or trained with for saving; one without any takes these.

        Raises:
            ClassNamesError: malformed names, or prompts that were learned for each class and do not move to others.
            PromptTooLongError: a name does not fit into the text tower.
            TokenizerNotFoundError: no tokenizer is known.
        """
        names = check_class_names(names)
        self.dual_encoder  # noqa: B018 - raises where classes have no meaning
        self.method.check_new_classes(self.active_config, names)
        if tokenizer is not None:
            self.tokenizer = tokenizer
        classes = ClassList(names)
        self._tokenise(classes)
        self.class_lists[self.active_adapters[0]] = classes
        self.active_config.class_names = self.active_config.class_names or names
        self.feature_cache.clear()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in use by the active adapter."""
        classes = self.class_lists.get(self.active_adapters[0])
        return list(classes.names) if classes else None

    # ---- features and logits ----------------------------------------------------------------------------------

    def encode_images(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """L2-normalised image features [batch, dim]; [batch, pairs, dim] for read-only prompts.

        Without a text tower: of the pooled output, or of the class token where there is none.

        Raises:
            ValueError: images of another shape than the encoder takes, or none.
            TypeError: keyword arguments that it does not take.
        """
        self._check_images(pixel_values, kwargs)
        return self._encode_images(pixel_values, **kwargs)

    def _check_images(self, pixel_values: Tensor, options: dict) -> None:
        tower = self.vision_tower.tower
        check_options(options, ("interpolate_pos_encoding", *tower.embed_options))
        tower.check_images(pixel_values, options.get("interpolate_pos_encoding"))

    def _encode_images(self, pixel_values: Tensor, **kwargs) -> Tensor:
        vision, has_text = self.vision_tower, self.text_tower is not None
        if has_text and vision.active_read_only is not None:
            return self.dual_encoder.image_features(vision.read(pixel_values, **kwargs))
        if has_text:
            return self.dual_encoder.image_features(vision.pooled(pixel_values, **kwargs))
        output = vision(pixel_values, **kwargs)
        pooled = getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state[:, 0] if pooled is None else pooled
        return F.normalize(pooled, dim=-1)

    def classify(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        """Cross-entropy loss (if `labels` are given) and logits [batch, classes] over the class names.

        Labels are integers [batch] (-100: not counted) or probabilities [batch, classes].

        Raises:
            ValueError: images of another shape than the encoder takes, or none; labels of another shape; images with
                NaN, labels out of range (checked where the tensors are on the CPU).
            TypeError: keyword arguments that the image encoder does not take.
        """
        self._check_images(pixel_values, kwargs)
        check_inputs(pixel_values, labels, len(self._classes().names))
        return self._compare(self._encode_images(pixel_values, **kwargs), labels)

    def classify_features(self, image_features: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """The same from L2-normalised image features [batch, dim], such as `data.cache_features` keeps.

        Raises:
            UnsupportedModelError: the image features depend on what is trained.
            ValueError: features that are not finite or not of unit length, labels out of range (checked on the CPU).
        """
        self.require_fixed_images()
        check_inputs(image_features, labels, len(self._classes().names), "image_features")
        check_unit_length(image_features)
        return self._compare(image_features.to(self.dual_encoder.module.logit_scale.dtype), labels)

    def classify_with_adapters(
        self, pixel_values: Tensor, adapter_names: Sequence[str], **kwargs
    ) -> dict[str, ImageClassifierOutput]:
        """Classify the same images by several read-only adapters at about the cost of one: logits of each, by name.

        The frozen image encoder runs once; all readers then read its record together. Each adapter compares with its
        own classes, whose features are kept. While it runs, no other thread may call this model.

        Raises:
            ValueError: no adapter, one that this model does not have or whose prompts other tokens read; or all are
                disabled.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        self._check_readers(names)
        self._check_images(pixel_values, kwargs)
        check_inputs(pixel_values)
        results = {}
        with self.switching() as answer_for:
            for name, read in zip(names, self.vision_tower.read_together(pixel_values, names, **kwargs), strict=True):
                answer_for(name)
                results[name] = self._compare(self.dual_encoder.image_features(read), None)
        return results

    def _check_readers(self, names: Sequence[str]) -> None:
        if self.vision_tower.disable_adapters:
            raise ValueError("The adapters are disabled. Enable them, or call model(pixel_values=...) for zero-shot.")
        if self.text_tower is None:
            raise ValueError(
                f"Expected a base model that compares images with class names. Received: {type(self.model).__name__}, "
                "whose adapters have heads of their own. Use set_adapter, one by one."
            )
        readers = [name for name in self.peft_config if getattr(self.vision_tower.holder(name), "read_only", False)]
        refused = [name for name in names if name not in readers]
        if refused or not names:
            raise ValueError(
                f"Expected names of read-only adapters (RPO, MRPO), which share one pass: {readers}. "
                f"Received: adapter_names={refused}. Use set_adapter for others, one by one."
            )

    def require_fixed_images(self) -> None:
        """Make sure that nothing that is trained changes the image features.

        Raises:
            UnsupportedModelError: the active adapter has visual prompts, or the image encoder or its projection is
                trained.
        """
        text_side = {id(m) for part in (self.text_tower, self.dual_encoder.text_projection) for m in part.modules()}
        copies = (
            m for m in self.model.modules() if isinstance(m, AuxiliaryTrainingWrapper) and id(m) not in text_side
        )
        own_copy = any(copy.active_adapters and not copy.disable_adapters for copy in copies)
        vision = self.vision_tower
        trained = any(p.requires_grad for p in vision.base_layer.parameters())
        if vision.active_prompts is not None or trained or own_copy:
            raise UnsupportedModelError(
                "Expected image features that do not change in training. Received an adapter "
                f"({self.active_config.peft_type.value}) that learns visual prompts, or an image encoder that is "
                "trained, be it its projection alone. Pass pixel_values, and do not cache features."
            )

    def _compare(self, image_features: Tensor, labels: Tensor | None) -> ImageClassifierOutput:
        logits = self.dual_encoder.logits(image_features, self._text_features(image_features))
        if self.training and logits.requires_grad and self.class_names != self.active_config.class_names:
            self._remember_classes(logits)
        at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if labels is not None and labels.is_floating_point():
            labels = labels.to(at_least_float32.dtype)
        loss = None if labels is None else F.cross_entropy(at_least_float32, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.compiler.disable
    def _remember_classes(self, logits: Tensor) -> None:
        """The names an adapter is trained with are the ones it is saved with: from the first backward pass on."""
        config, names = self.active_config, self.class_names
        logits.register_hook(lambda gradient: setattr(config, "class_names", names))

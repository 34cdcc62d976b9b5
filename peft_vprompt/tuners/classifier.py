"""`ClassNameClassifier`: images against class names, by the active adapter's prompts.

The half of a tuner that users meet: class lists, text and image features, logits and loss.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ImageClassifierOutput

from ..class_prompts import PackedPrompts, pack
from ..config import PromptConfig, check_class_names
from ..errors import ClassNamesError, UnsupportedModelError
from ..prompts import ClassFeatures
from ..text_cache import autocast_dtype, fingerprint
from ..tokenization import check_lengths, encode_text, find_tokenizer, readable
from ..towers import DUAL_ENCODERS


if TYPE_CHECKING:
    from ..towers.clip import CLIPDualEncoder


#: Most token rows (images x packed rows) that conditional contexts are encoded in at once; more are recomputed in the
#: backward pass chunk by chunk. At ViT-B/16's text width a row keeps about a third of a megabyte for that pass.
MAX_TOKEN_ROWS = 8192


@dataclass
class ClassList:
    """The classes one adapter tells apart at present, and their packed prompts (one per template)."""

    names: list[str]
    packed: list[PackedPrompts] | None = None


class ClassNameClassifier:
    """Mixin of `PromptTuner`, which provides the model, its towers, its adapters and their methods."""

    # ---- classes ----------------------------------------------------------------------------------------------

    @property
    def dual_encoder(self) -> CLIPDualEncoder:
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

        The adapter keeps the names it was configured or trained with for saving.

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
        self._pack(classes)
        self.class_lists[self.active_adapters[0]] = classes
        self.text_cache.clear()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in use by the active adapter."""
        classes = self.class_lists.get(self.active_adapters[0])
        return list(classes.names) if classes else None

    def _classes(self) -> ClassList:
        """The active adapter's classes, tokenised.

        Raises:
            ClassNamesError: there are none yet.
        """
        classes = self.class_lists.get(self.active_adapters[0])
        if classes is None:
            raise ClassNamesError(
                f"Adapter {self.active_adapters[0]!r} has no class names. Pass class_names=[...] to its config or "
                "call set_class_names([...]). For the base model's own call, pass input_ids too."
            )
        if classes.packed is None:
            self._pack(classes)
        return classes

    def tokenizer_for(self, config: PromptConfig) -> PreTrainedTokenizerBase:
        """The tokenizer that was handed over, or else the one an adapter's config or the base model names.

        Raises:
            TokenizerNotFoundError: there is none.
        """
        if self.tokenizer is not None:
            return self.tokenizer
        name = config.tokenizer_name_or_path
        if name not in self.found_tokenizers:
            self.found_tokenizers[name] = find_tokenizer(name, getattr(self.model.config, "_name_or_path", None))
        return self.found_tokenizers[name]

    def _pack(self, classes: ClassList) -> None:
        limit = self.text_tower.tower.max_positions
        config = self.active_config
        templates = self.method.class_sequences(config, classes.names, self.tokenizer_for(config))
        for sequences in templates:
            check_lengths(sequences, classes.names, limit)
        classes.packed = [pack(sequences) for sequences in templates]

    # ---- features and logits ----------------------------------------------------------------------------------

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """L2-normalised text features of the active adapter's classes.

        [classes, dim], for several contexts the mean of their features, whose cosines are the mean of the contexts'
        cosines; [classes, pairs, dim] for read-only prompts; [batch, classes, dim] where they depend on the
        images `pixel_values`. They are kept while nothing they depend on changes, unless a gradient has to flow
        through them.

        Raises:
            ValueError: the features depend on images, and there are none.
        """
        self.dual_encoder  # noqa: B018 - raises where classes have no meaning
        if not self._conditional:
            return self._text_features()
        if pixel_values is None:
            raise ValueError("This adapter's class features depend on the image. Pass encode_classes(pixel_values).")
        return self._text_features(self.encode_images(pixel_values))

    @property
    def _conditional(self) -> bool:
        return self.method.conditional and not self.text_tower.disable_adapters

    def _text_features(self, image_features: Tensor | None = None) -> Tensor:
        dual = self.dual_encoder.module
        device, projection = dual.logit_scale.device, dual.text_projection
        classes, text = self._classes(), self.text_tower
        if isinstance(text.active_holder, ClassFeatures):
            return text.active_holder().to(projection.weight.dtype)
        if self._conditional:
            return self._conditional_features(classes, image_features, device)
        learning = torch.is_grad_enabled() and any(
            p.requires_grad for module in (text, projection) for p in module.parameters()
        )
        dropping_out = text.training and any(m.p for m in text.modules() if isinstance(m, nn.Dropout))
        if learning or dropping_out:
            self.text_cache.clear()
            return self._encode_classes(classes, device)
        return self._kept_features(classes, device)

    @torch.compiler.disable
    def _kept_features(self, classes: ClassList, device: torch.device) -> Tensor:
        """Features from the cache. A compiler leaves this alone: it could not see that a weight has changed."""
        text, projection = self.text_tower, self.dual_encoder.module.text_projection
        key = (id(classes), text.disable_adapters, autocast_dtype(device), fingerprint(text), fingerprint(projection))
        return self.text_cache.get(key, lambda: self._encode_classes(classes, device))

    def _encode_classes(self, classes: ClassList, device: torch.device) -> Tensor:
        if self.text_tower.disable_adapters:
            return self.zero_shot_features(classes, self.active_config)
        classes.packed = [packed.to(device) for packed in classes.packed]
        features = [self.dual_encoder.text_features(self.text_tower.encode_packed(p)) for p in classes.packed]
        return self.method.combine(features)

    def _conditional_features(self, classes: ClassList, image_features: Tensor, device: torch.device) -> Tensor:
        """Class features of each image, [b, c, dim]: all images in one batch, or in bounded chunks if that is large."""
        classes.packed = [packed.to(device) for packed in classes.packed]
        (packed,) = classes.packed

        def encode_chunk(chunk: Tensor) -> Tensor:
            return self.dual_encoder.text_features(self.text_tower.encode_packed(packed, chunk))

        size = max(1, MAX_TOKEN_ROWS // packed.token_ids.shape[0])
        if image_features.shape[0] <= size:
            return encode_chunk(image_features)
        run = functools.partial(checkpoint, encode_chunk, use_reentrant=False)
        chunks = image_features.split(size)
        return torch.cat([run(chunk) if torch.is_grad_enabled() else encode_chunk(chunk) for chunk in chunks])

    def zero_shot_features(self, classes: ClassList, config: PromptConfig) -> Tensor:
        """Text features [c, dim] by the base model's own call, with the template around each name."""
        tokenizer, features = self.tokenizer_for(config), []
        device = self.dual_encoder.module.logit_scale.device
        for template in config.templates:
            texts = [template.format(readable(name)) for name in classes.names]
            check_lengths(
                [encode_text(tokenizer, t) for t in texts], classes.names, self.text_tower.tower.max_positions
            )
            batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
            output = self.text_tower.base_layer(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            features.append(self.dual_encoder.text_features(output.pooler_output))
        return average(features)

    def encode_images(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """L2-normalised image features [batch, dim]; [batch, pairs, dim] for read-only prompts.

        Without a text tower: of the pooled output, or of the class token where there is none.
        """
        vision, has_text = self.vision_tower, self.text_tower is not None
        if has_text and vision.active_holder is not None and vision.active_holder.reads_only:
            return self.dual_encoder.image_features(vision.read(pixel_values, **kwargs))
        if has_text:
            return self.dual_encoder.image_features(vision.pooled(pixel_values, **kwargs))
        output = vision(pixel_values, **kwargs)
        pooled = getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state[:, 0] if pooled is None else pooled
        return F.normalize(pooled, dim=-1)

    def classify(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        """Cross-entropy loss (if `labels` are given) and logits [batch, classes] over the class names.

        Raises:
            ValueError: images with NaN, labels out of range (checked where the tensors are on the CPU).
        """
        check_inputs(pixel_values, labels, len(self._classes().names))
        return self._compare(self.encode_images(pixel_values, **kwargs), labels)

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

    def require_fixed_images(self) -> None:
        """Make sure that nothing that is trained changes the image features.

        Raises:
            UnsupportedModelError: the active adapter has visual prompts, or the image encoder is trained.
        """
        self.dual_encoder  # noqa: B018 - raises without a text tower
        vision = self.vision_tower
        if vision.active_holder is not None or any(p.requires_grad for p in vision.base_layer.parameters()):
            raise UnsupportedModelError(
                "Expected image features that do not change in training. Received an adapter "
                f"({self.active_config.peft_type.value}) that learns visual prompts, or an image encoder that is "
                "trained. Pass pixel_values, and do not cache features."
            )

    def _compare(self, image_features: Tensor, labels: Tensor | None) -> ImageClassifierOutput:
        self._remember_classes()
        logits = self.dual_encoder.logits(image_features, self._text_features(image_features))
        at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None if labels is None else F.cross_entropy(at_least_float32, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _remember_classes(self) -> None:
        """The names an adapter is trained with are the ones it is saved with."""
        if self.training and torch.is_grad_enabled() and self.class_names is not None:
            self.active_config.class_names = self.class_names


def average(features: list[Tensor]) -> Tensor:
    """Mean of L2-normalised features [c, d] over templates, normalised again."""
    return features[0] if len(features) == 1 else F.normalize(torch.stack(features).mean(0), dim=-1)


def check_inputs(inputs: Tensor, labels: Tensor | None, num_classes: int, name: str = "pixel_values") -> None:
    """Refuse NaN inputs and impossible labels while that costs no synchronisation with a device."""
    if torch.compiler.is_compiling():
        return
    if inputs.device.type == "cpu" and not bool(torch.isfinite(inputs).all()):
        raise ValueError(f"Expected finite {name}. Received NaN or infinity; check the image preprocessing.")
    if labels is not None and labels.device.type == "cpu" and labels.numel():
        valid = labels[labels != -100]
        low, high = (int(valid.min()), int(valid.max())) if valid.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"Expected labels from 0 to {num_classes - 1}, one per class name. Received labels from {low} to {high}."
            )


def check_unit_length(features: Tensor) -> None:
    """Refuse features that were not L2-normalised, as `check_inputs` refuses NaN."""
    if torch.compiler.is_compiling() or features.device.type != "cpu":
        return
    lengths = features.float().norm(dim=-1)
    if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-2):
        raise ValueError(
            "Expected L2-normalised image_features, as encode_images gives. "
            f"Received lengths from {float(lengths.min()):.3g} to {float(lengths.max()):.3g}."
        )

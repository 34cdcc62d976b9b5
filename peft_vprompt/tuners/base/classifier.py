"""`ClassNameClassifier`: images against class names, above any tuner.

The half of a PEFT model that users meet: class lists, features of images and classes, logits and loss. It asks the method
of the active adapter where methods differ, and works above PEFT's own tuners too (a LoRA of both towers, say), whose class
prompts are the template's.

Shapes: b = images, c = classes, e = size of the joint space, k = read-only prompts.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ImageClassifierOutput

from ...backbones.base import BidirectionalTextView
from ...backbones.supported import DUAL_ENCODERS, Backbone, class_name, find_backbone
from ...core.checkpointing import checkpointed_chunks
from ...core.class_sharding import gather_classes, share
from ...core.tokenization import check_lengths, encode_text, fill, warn_alike
from ...errors import ClassNamesError, UnsupportedModelError
from ...losses.regularizers import Features, weighted_terms
from ...readouts import CosineReadout
from . import class_list
from .class_list import ClassList
from .config import PromptConfig, check_class_names
from .feature_cache import FeatureCache, autocast_dtype, checksum, fingerprint, may_keep
from .frozen import LazyFrozenFeatures
from .input_checks import check_inputs, check_options, check_unit_length
from .method import PromptMethod, average_features
from .prompted_encoder import READOUT, PromptedEncoder
from .prompted_text_encoder import PromptedTextEncoder
from .prompted_vision_encoder import PromptedVisionEncoder
from .tokenizers import Tokenizers


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    from ...backbones.dual_encoder import DualEncoderView


@dataclass
class ClassificationOutput(ImageClassifierOutput):
    """What the classification call gives.

    Attributes:
        loss: mean cross-entropy plus `aux_loss`, where labels were given.
        logits: [b, c].
        aux_loss: weighted sum of the method's further terms; in training, where it has some.
        aux_losses: the same terms one by one, by name.
    """

    aux_loss: Tensor | None = None
    aux_losses: dict[str, Tensor] | None = None


@dataclass
class ClassMemory:
    """What a classifier keeps between calls; replicas of a data-parallel model share it.

    Attributes:
        class_lists: the classes in use by adapter; None for an adapter without any.
        features: class features of the adapters.
        frozen: class features of the frozen model.
        plain_configs: what stands for the fields of `PromptConfig` at an adapter of PEFT's own.
    """

    class_lists: dict[str, ClassList | None] = field(default_factory=dict)
    features: FeatureCache = field(default_factory=FeatureCache)
    frozen: FeatureCache = field(default_factory=FeatureCache)
    plain_configs: dict[str, PromptConfig] = field(default_factory=dict)


class ClassNameClassifier:
    """Classifies images by class names with the active adapter of a PEFT model.

    Args:
        model: the PEFT model.
        memory: what to keep between calls; default: nothing yet.
    """

    def __init__(self, model: PeftModel, memory: ClassMemory | None = None):
        self.model = model
        self.memory = memory or ClassMemory()
        self._plain_encoders: tuple[PromptedVisionEncoder, PromptedTextEncoder | None] | None = None
        self._plain_tokenizers: Tokenizers | None = None

    # ---- the model --------------------------------------------------------------------------------------------

    @property
    def tuner(self) -> BaseTuner:
        """The tuner, ours or PEFT's."""
        return self.model.base_model

    @property
    def adapter_name(self) -> str:
        """Name of the active adapter."""
        return self.tuner.active_adapters[0]

    @property
    def config(self) -> PromptConfig:
        """Config of the active adapter."""
        return self._config_of(self.adapter_name)

    def _config_of(self, adapter_name: str) -> PromptConfig:
        config: PeftConfig = self.model.peft_config[adapter_name]
        if isinstance(config, PromptConfig):
            return config
        return self.memory.plain_configs.setdefault(adapter_name, PromptConfig())

    @property
    def method(self) -> PromptMethod:
        """Method of the active adapter; the plain one of PEFT's own tuners reads the template."""
        tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[self.model.peft_config[self.adapter_name].peft_type]
        return getattr(tuner_class, "method", None) or PromptMethod()

    @functools.cached_property
    def backbone(self) -> Backbone:
        """Where the base model keeps its towers."""
        return getattr(self.tuner, "backbone", None) or find_backbone(self.tuner.model)

    @property
    def dual(self) -> DualEncoderView:
        """The view of the module that joins both towers.

        Raises:
            UnsupportedModelError: the base model has no text tower.
        """
        if self.backbone.dual is None:
            raise UnsupportedModelError(
                f"Class names are compared with images by models with a text tower ({', '.join(DUAL_ENCODERS)}); "
                f"{class_name(self.vision.base_layer)} has none."
            )
        module = self.tuner.model.get_submodule(self.backbone.dual)
        return DUAL_ENCODERS[class_name(module)](module)

    @property
    def vision(self) -> PromptedVisionEncoder:
        """The image tower; with another tuner than ours a layer around it that is no part of the model."""
        return self._encoders()[0]

    @property
    def text(self) -> PromptedTextEncoder | None:
        """The text tower, likewise; None without one."""
        return self._encoders()[1]

    def _encoders(self) -> tuple[PromptedVisionEncoder, PromptedTextEncoder | None]:
        model, backbone = self.tuner.model, self.backbone
        vision = model.get_submodule(backbone.vision)
        text = None if backbone.text is None else model.get_submodule(backbone.text)
        if isinstance(vision, PromptedVisionEncoder):
            return vision, text
        if self._plain_encoders is None:
            text = None if text is None else PromptedTextEncoder(text)
            self._plain_encoders = PromptedVisionEncoder(vision, text), text
            for encoder in filter(None, self._plain_encoders):
                encoder.patch_layers(True)
        return self._plain_encoders

    def release(self) -> None:
        """Give the layers of a model under another tuner than ours back as they were."""
        for encoder in filter(None, self._plain_encoders or ()):
            encoder.restore()
        self._plain_encoders = None

    @property
    def readout(self) -> nn.Module:
        """What makes logits of features: the active adapter's, or cosines where it is disabled."""
        readout = None if self.text.disable_adapters else self.text.module_of(self.adapter_name, READOUT)
        return CosineReadout() if readout is None else readout

    def scaled(self, similarities: Tensor) -> Tensor:
        """Return the logits [b, c] of cosines [b, c], by the model's own scale and bias."""
        return self.dual.scaled(similarities)

    # ---- classes ----------------------------------------------------------------------------------------------

    def add_adapter(self, adapter_name: str) -> None:
        """Take up a new adapter: its class names, and first values that take the model to compute."""
        config = self._config_of(adapter_name)
        names = config.class_names
        self.memory.class_lists[adapter_name] = ClassList(list(names)) if names else None
        if self.text is None or config.inference_mode:
            return
        readout = self.text.module_of(adapter_name, READOUT)
        if readout is not None and not any(parameter.is_meta for parameter in readout.parameters()):
            method = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].method
            with torch.no_grad():
                method.initialize(config, readout, lambda: self.frozen_text(adapter_name))

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter's classes."""
        self.memory.class_lists.pop(adapter_name, None)
        self.memory.plain_configs.pop(adapter_name, None)

    def set_class_names(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """See `PeftModelForImageClassification.set_class_names`."""
        names = check_class_names(names)
        self.dual  # noqa: B018 - raises where classes have no meaning
        self.method.check_new_classes(self.config, names)
        if tokenizer is not None:
            self.tokenizers.given = tokenizer
        classes = ClassList(names)
        self._tokenize(classes)
        self.memory.class_lists[self.adapter_name] = classes
        self.config.class_names = self.config.class_names or names
        self.memory.features.clear()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in use by the active adapter."""
        classes = self.memory.class_lists.get(self.adapter_name)
        return list(classes.names) if classes else None

    @property
    def tokenizers(self) -> Tokenizers:
        """Where tokenizers are found."""
        tokenizers = getattr(self.tuner, "tokenizers", None)
        if tokenizers is None:
            name = getattr(self.tuner.model.config, "_name_or_path", None)
            self._plain_tokenizers = tokenizers = self._plain_tokenizers or Tokenizers(name)
        return tokenizers

    @property
    def classes(self) -> ClassList:
        """The active adapter's classes, tokenised.

        Raises:
            ClassNamesError: there are none yet.
        """
        classes = self.memory.class_lists.get(self.adapter_name)
        if classes is None:
            raise ClassNamesError(
                f"Adapter {self.adapter_name!r} has no class names. Pass class_names=[...] to its config or "
                "call set_class_names([...]). For the base model's own call, pass input_ids too."
            )
        if classes.sequences is None:
            self._tokenize(classes)
        return classes

    def _tokenize(self, classes: ClassList) -> None:
        config = self.config
        tokenizer = self.tokenizers.find(config.tokenizer_name_or_path)
        templates = self.method.class_sequences(config, classes.names, tokenizer)
        for sequences in templates:
            check_lengths(sequences, classes.names, self.text.view.max_positions)
        if not config.belongs_to_classes:
            warn_alike(templates[0], classes.names)
        classes.sequences = templates
        classes.layout = self.text.layout(tokenizer, templates[0][0])

    # ---- the call ---------------------------------------------------------------------------------------------

    def classify(
        self,
        labels: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        output_aux_loss: bool | None = None,
        **options,
    ) -> ClassificationOutput:
        """Return logits [b, c] over the class names, and the loss where there are labels.

        Args:
            labels: integers [b] (-100: not counted) or probabilities [b, c].
            pixel_values: images, as the image encoder takes them.
            image_features: L2-normalised image features [b, e] in their place, where no visual prompt is learned.
            output_aux_loss: compute the method's further terms; default: in training.
            options: further arguments of the image encoder.

        Raises:
            ValueError: images of another shape than the encoder takes, or none; labels of another shape; images with
                NaN, labels out of range (checked where the tensors are on the CPU).
            UnsupportedModelError: image features, where they depend on what is trained.
            TypeError: arguments that the image encoder does not take.
        """
        classes = self.classes
        if image_features is None:
            self._check_images(pixel_values, options)
            check_inputs(pixel_values, labels, len(classes.names))
            inputs = {"pixel_values": pixel_values, **options}
            image = self._image_features(pixel_values, options)
            if self.vision.active_prompts is None and torch.is_grad_enabled() and not image.requires_grad:
                inputs = {"image_features": image}  # nothing that is learned stands before them
        else:
            self.require_fixed_images()
            check_inputs(image_features, labels, len(classes.names), "image_features")
            check_unit_length(image_features)
            inputs = {"image_features": image_features.to(self.dual.dtype)}
            image = inputs["image_features"]
        text = self._class_features(classes, image)
        features = Features(image, text, self.scaled(self.readout(image, text)), LazyFrozenFeatures(self, inputs))
        return self._output(features, labels, output_aux_loss)

    def _output(self, features: Features, labels: Tensor | None, output_aux_loss: bool | None) -> ClassificationOutput:
        """Return logits and loss; remember the classes that are learned on."""
        logits = features.logits
        training = self.model.training
        if training and logits.requires_grad and self.class_names != self.config.class_names:
            self.keep_class_names()
        terms = {}
        if (training if output_aux_loss is None else output_aux_loss) and not self.disabled:
            terms = weighted_terms(self.method.regularizers(self.config), features)
        aux_loss = sum(terms.values()) if terms else None
        loss = None
        if labels is not None:
            at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = labels.to(at_least_float32.dtype) if labels.is_floating_point() else labels
            loss = F.cross_entropy(at_least_float32, labels)
            loss = loss if aux_loss is None else loss + aux_loss
        return ClassificationOutput(loss=loss, logits=logits, aux_loss=aux_loss, aux_losses=terms or None)

    @torch.compiler.disable
    def keep_class_names(self) -> None:
        """Save the active adapter with the class names in use from now on.

        Called for the names that an adapter is trained with: by every call in training mode that gradients flow
        through. Evaluation on other classes leaves the saved names alone.
        """
        self.config.class_names = self.class_names

    @property
    def disabled(self) -> bool:
        """Whether the adapters are switched off."""
        if self.vision is self.tuner.model.get_submodule(self.backbone.vision):
            return self.vision.disable_adapters
        return any(layer.disable_adapters for layer in self._adapter_layers())

    # ---- images -----------------------------------------------------------------------------------------------

    def encode_images(self, pixel_values: Tensor, **options) -> Tensor:
        """See `PeftModelForImageClassification.encode_images`."""
        self._check_images(pixel_values, options)
        return self._image_features(pixel_values, options)

    def _check_images(self, pixel_values: Tensor, options: dict) -> None:
        view = self.vision.view
        check_options(options, ("interpolate_pos_encoding", *view.embed_options))
        view.check_images(pixel_values, options.get("interpolate_pos_encoding"))

    def _image_features(self, pixel_values: Tensor, options: dict) -> Tensor:
        """Return L2-normalised features [b, e] or [b, k, e] of images that were checked."""
        vision = self.vision
        if self.backbone.dual is None:
            output = vision(pixel_values, **options)
            pooled = getattr(output, "pooler_output", None)
            return F.normalize(output.last_hidden_state[:, 0] if pooled is None else pooled, dim=-1)
        if vision.active_read_only is not None:
            (read,) = vision.encode_read_only(pixel_values, vision.active_adapters, **options)
            return self.dual.project_image(read)
        return self.dual.project_image(vision.pooled(pixel_values, **options))

    def frozen_images(self, pixel_values: Tensor, **options) -> Tensor:
        """Return what the frozen model makes of the images, L2-normalised [b, e], without gradients."""
        with torch.no_grad(), self._without_adapters():
            return self.dual.project_image(self.vision.pooled(pixel_values, **options))

    def require_fixed_images(self) -> None:
        """Make sure that nothing that is trained changes the image features.

        Raises:
            UnsupportedModelError: the active adapter has visual prompts, or the image encoder or its projection is
                trained.
        """
        text_side = {id(m) for part in (self.text, self.dual.text_projection) for m in part.modules()}
        copies = (
            m for m in self.tuner.model.modules() if isinstance(m, AuxiliaryTrainingWrapper) and id(m) not in text_side
        )
        own_copy = any(copy.active_adapters and not copy.disable_adapters for copy in copies)
        vision = self.vision
        trained = any(p.requires_grad for p in vision.base_layer.parameters())
        if vision.active_prompts is not None or trained or own_copy:
            raise UnsupportedModelError(
                "Expected image features that do not change in training. Received an adapter "
                f"({self.model.peft_config[self.adapter_name].peft_type.value}) that learns visual prompts, or an image "
                "encoder that is trained, be it its projection alone. Pass pixel_values, and do not cache features."
            )

    def classify_with_adapters(
        self, pixel_values: Tensor, adapter_names: Sequence[str], **options
    ) -> dict[str, ClassificationOutput]:
        """See `PeftModelForImageClassification.classify_with_adapters`."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        self._check_read_only(names)
        self._check_images(pixel_values, options)
        check_inputs(pixel_values)
        results = {}
        with self.tuner.answering_for() as answer_for:
            encoded = self.vision.encode_read_only(pixel_values, names, **options)
            for name, read in zip(names, encoded, strict=True):
                answer_for(name)
                image = self.dual.project_image(read)
                text = self._class_features(self.classes, image)
                results[name] = ClassificationOutput(logits=self.scaled(self.readout(image, text)))
        return results

    def _check_read_only(self, names: Sequence[str]) -> None:
        if self.vision.disable_adapters:
            raise ValueError("The adapters are disabled. Enable them, or call model(pixel_values=...) for zero-shot.")
        if self.text is None:
            raise ValueError(
                "Expected a base model that compares images with class names. Received: "
                f"{class_name(self.tuner.model)}, whose adapters have heads of their own. Use set_adapter, one by one."
            )
        prompts = {name: self.vision.prompts_of(name) for name in self.model.peft_config}
        able = [name for name, module in prompts.items() if module is not None and module.read_only]
        refused = [name for name in names if name not in able]
        if refused or not names:
            raise ValueError(
                f"Expected names of read-only adapters (RPO, MRPO), which share one pass: {able}. "
                f"Received: adapter_names={refused}. Use set_adapter for others, one by one."
            )

    # ---- texts ------------------------------------------------------------------------------------------------

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """See `PeftModelForImageClassification.encode_classes`."""
        self.dual  # noqa: B018 - raises where classes have no meaning
        if not self._conditional:
            return self._class_features(self.classes, None).clone()
        if pixel_values is None:
            raise ValueError("This adapter's class features depend on the image. Pass encode_classes(pixel_values).")
        return self._class_features(self.classes, self.encode_images(pixel_values))

    @property
    def _conditional(self) -> bool:
        return self.method.conditional and not self.text.disable_adapters

    def _class_features(self, classes: ClassList, image_features: Tensor | None) -> Tensor:
        """Return the features [c, e], [c, k, e] or [b, c, e] of the active adapter's classes.

        They are kept while nothing that they depend on changes, unless a gradient has to flow through them.
        """
        text = self.text
        dual = self.dual
        device = dual.module.logit_scale.device
        own = getattr(self.readout, "class_features", None)
        if own is not None:
            return own.to(dual.dtype)
        if self._conditional:
            return self._encode_conditional(classes, image_features, device)
        parts = [part for part in (text.base_layer, text.active_prompts, dual.text_projection) if part is not None]
        learning = torch.is_grad_enabled() and any(p.requires_grad for part in parts for p in part.parameters())
        if not learning and may_keep(text):
            return self._kept_features(classes, device)
        self.memory.features.clear()
        mine = share(len(classes.names)) if learning and self.config.shard_classes else None
        if mine is None:
            return self._encode(classes, device)
        return gather_classes(self._encode(classes, device, *mine), len(classes.names))

    @torch.compiler.disable
    def _kept_features(self, classes: ClassList, device: torch.device) -> Tensor:
        """Return features from the cache. A compiler leaves this alone: it could not see that a weight has changed."""
        text = self.text
        weights = (fingerprint(text), fingerprint(self.dual.text_projection), checksum(text.active_prompts))
        key = (text.disable_adapters, autocast_dtype(device), *weights)
        return self.memory.features.get(classes, key, lambda: self._encode(classes, device))

    def _encode(self, classes: ClassList, device: torch.device, first: int = 0, last: int | None = None) -> Tensor:
        """Return the features of the classes first ... last - 1."""
        text = self.text
        if text.disable_adapters:
            return self._zero_shot(classes.names, self.config.templates)
        read_only = 0 if text.active_read_only is None else text.active_read_only().shape[1]
        templates = classes.pack(first, last or len(classes.names), read_only, device)
        chunks = [chunk for template in templates for chunk in template]
        keep_kv_cache = sum(chunk.num_rows for chunk in chunks) <= class_list.MAX_KV_CACHE_ROWS
        if len(chunks) == 1:
            encoded = [text.encode_class_prompts(chunks[0], keep_kv_cache=keep_kv_cache)]
        else:
            encode = functools.partial(text.encode_class_prompts, keep_kv_cache=keep_kv_cache)
            sizes = [chunk.num_rows + read_only * chunk.num_classes for chunk in chunks]
            encoded = checkpointed_chunks(encode, chunks, sizes, class_list.MAX_TOKEN_ROWS)
        features = iter(self.dual.project_text(torch.cat(encoded)).split([len(names) for names in encoded]))
        return self.method.combine([torch.cat([next(features) for _ in template]) for template in templates])

    def _encode_conditional(self, classes: ClassList, image_features: Tensor, device: torch.device) -> Tensor:
        """Return the class features of each image, [b, c, e]: in one batch, or in chunks of bounded size."""
        (chunks,) = classes.pack(0, len(classes.names), 0, device)

        def encode(piece: tuple) -> Tensor:
            return self.dual.project_text(self.text.encode_class_prompts(*piece))

        together = max(1, class_list.MAX_TOKEN_ROWS // sum(chunk.num_rows for chunk in chunks))
        images = image_features.tensor_split(max(1, math.ceil(len(image_features) / together)))
        pieces = [(chunk, some) for some in images for chunk in chunks]
        sizes = [chunk.num_rows * len(some) for chunk, some in pieces]
        features = iter(checkpointed_chunks(encode, pieces, sizes, class_list.MAX_TOKEN_ROWS))
        return torch.cat([torch.cat([next(features) for _ in chunks], dim=1) for _ in images])

    # ---- the frozen model -------------------------------------------------------------------------------------

    @torch.compiler.disable
    def frozen_text(self, adapter_name: str | None = None) -> Tensor:
        """Return the frozen model's features [c, e] of an adapter's classes, without gradients.

        They are kept per class list. The text around the names is the config's `frozen_template`, where it has one, else
        its `template`.

        Args:
            adapter_name: default: the active adapter.
        """
        name = self.adapter_name if adapter_name is None else adapter_name
        config = self._config_of(name)
        template = getattr(config, "frozen_template", None) or config.template
        templates = [template] if isinstance(template, str) else list(template)
        classes = self.memory.class_lists[name]
        if classes is None:
            raise ClassNamesError(f"Adapter {name!r} has no class names. Call set_class_names([...]) first.")

        def compute() -> Tensor:
            with self._without_adapters():
                return self._zero_shot(classes.names, templates, config)

        device = self.dual.module.logit_scale.device
        weights = (fingerprint(self.text.base_layer), fingerprint(self.dual.text_projection))
        if not may_keep(self.text):
            with torch.no_grad():
                return compute()
        return self.memory.frozen.get(classes, (*templates, autocast_dtype(device), *weights), compute)

    def _zero_shot(self, names: Sequence[str], templates: Sequence[str], config: PromptConfig | None = None) -> Tensor:
        """Return text features [c, e] by the base model's own call, with the templates around each name."""
        tokenizer = self.tokenizers.find((config or self.config).tokenizer_name_or_path)
        features = []
        for template in templates:
            texts = [fill(template, name) for name in names]
            check_lengths([encode_text(tokenizer, t) for t in texts], names, self.text.view.max_positions)
            batches = [
                texts[start : start + class_list.ZERO_SHOT_BATCH]
                for start in range(0, len(texts), class_list.ZERO_SHOT_BATCH)
            ]
            encode = functools.partial(self._encode_texts, tokenizer)
            chunks = checkpointed_chunks(encode, batches, list(map(len, batches)), class_list.ZERO_SHOT_BATCH)
            features.append(torch.cat(chunks))
        return average_features(features)

    def _encode_texts(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
        """Return the features [c, e] of plain texts."""
        text = self.text
        dual = self.dual
        device = dual.module.logit_scale.device
        if isinstance(text.view, BidirectionalTextView):
            sequences = [encode_text(tokenizer, t) for t in texts]
            (padded,) = text.layout(tokenizer, sequences[0])(sequences, sys.maxsize)
            padded = padded.to(device)
            return dual.project_text(text.view.plain_features(padded.token_ids, padded.mask))
        batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        output = text.base_layer(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return dual.project_text(output.pooler_output)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """Let the model answer without its adapters until the block ends; what is trained stays as it is.

        A LoRA that the base model of our tuner carries is part of the base model and stays on.
        """
        layers = self._adapter_layers()
        before = [layer._disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer, disabled in zip(layers, before, strict=True):
                layer._disable_adapters = disabled

    def _adapter_layers(self) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
        ours = isinstance(self.tuner.model.get_submodule(self.backbone.vision), PromptedEncoder)
        kinds = (PromptedEncoder if ours else BaseTunerLayer, AuxiliaryTrainingWrapper)
        return [module for module in self.tuner.model.modules() if isinstance(module, kinds)]

"""`ClassEncoder`: text features of the active adapter's classes, in bounded memory, kept while nothing changes."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...backbones.supported import BidirectionalTextView
from ...core.checkpointing import checkpointed_chunks
from ...core.class_sharding import gather_classes, share
from ...core.packed_prompts import PackedPrompts, pack_bounded
from ...core.padded_prompts import PaddedPrompts
from ...core.tokenization import TokenSequence, check_lengths, encode_text, fill, find_tokenizer, warn_alike
from ...errors import ClassNamesError
from ...prompts.tokens import ClassFeatures
from .config import PromptConfig
from .feature_cache import autocast_dtype, checksum, fingerprint, may_keep
from .prompted_encoder import PromptedEncoder


#: Most token rows that are encoded at once and kept for the backward pass; where there are more, most are computed again
#: in it. At ViT-B/16's text width a row keeps about three tenths of a megabyte.
MAX_TOKEN_ROWS = 8192

#: Most plain token rows whose keys and values are kept for read-only prompts over a whole training: 1.6 GB in float32
#: at ViT-B/16's text width. More are computed anew in every step.
MAX_KV_CACHE_ROWS = 4 * MAX_TOKEN_ROWS

#: Class names per call of the base model in zero-shot classification.
ZERO_SHOT_BATCH = 1024


@dataclass(eq=False)
class ClassList:
    """The classes one adapter tells apart at present.

    Attributes:
        names: in label order.
        sequences: their token sequences, one list per template; None until they are needed.
        layout: how they are laid out for the text encoder, see `PromptedTextEncoder.layout`.
        packed: what came of that, per template, of the classes first ... last, on the device they were asked for last.
    """

    names: list[str]
    sequences: list[list[TokenSequence]] | None = None
    layout: Callable = pack_bounded
    packed: dict[tuple[int, int], list[list[PackedPrompts | PaddedPrompts]]] = field(default_factory=dict)

    def pack(
        self, first: int, last: int, read_only: int, device: torch.device
    ) -> list[list[PackedPrompts | PaddedPrompts]]:
        """The classes first ... last - 1 in parts of bounded size, made once; `read_only` per class come on top."""
        with torch.inference_mode(False):  # tensors made under it could not be used in a later backward pass
            packed = self.packed.get((first, last)) or [
                self.layout(sequences[first:last], MAX_TOKEN_ROWS, read_only) for sequences in self.sequences
            ]
            # Replicas of a data-parallel model share this list: each answers with what it has moved to its own device.
            packed = self.packed[first, last] = [[part.to(device) for part in parts] for parts in packed]
        return packed


class ClassEncoder:
    """Mixin of `PromptTuner`, which provides the model, its towers, its adapters and their methods."""

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
        if classes.sequences is None:
            self._tokenise(classes)
        return classes

    def _tokenise(self, classes: ClassList) -> None:
        config, text = self.active_config, self.text_tower
        tokenizer = self.tokenizer_for(config)
        templates = self.method.class_sequences(config, classes.names, tokenizer)
        for sequences in templates:
            check_lengths(sequences, classes.names, text.tower.max_positions)
        if not config.belongs_to_classes:
            warn_alike(templates[0], classes.names)
        classes.sequences, classes.layout = templates, text.layout(tokenizer, templates[0][0])

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """L2-normalised text features of the active adapter's classes.

        [classes, dim], for several contexts the mean of their features, whose cosines are the mean of the contexts'
        cosines; [classes, pairs, dim] for read-only prompts; [batch, classes, dim] where they depend on the
        images `pixel_values`. They are kept while nothing they depend on changes, unless a gradient has to flow
        through them; what is returned is a copy.

        Raises:
            ValueError: the features depend on images, and there are none.
        """
        self.dual_encoder  # noqa: B018 - raises where classes have no meaning
        if not self._conditional:
            return self._text_features().clone()
        if pixel_values is None:
            raise ValueError("This adapter's class features depend on the image. Pass encode_classes(pixel_values).")
        return self._text_features(self.encode_images(pixel_values))

    @property
    def _conditional(self) -> bool:
        return self.method.conditional and not self.text_tower.disable_adapters

    def _text_features(self, image_features: Tensor | None = None) -> Tensor:
        dual = self.dual_encoder
        device, projection = dual.module.logit_scale.device, dual.text_projection
        classes, text = self._classes(), self.text_tower
        if isinstance(text.active_prompts, ClassFeatures):
            return text.active_prompts().to(dual.dtype)
        if self._conditional:
            return self._conditional_features(classes, image_features, device)
        parts = [part for part in (text.base_layer, text.active_prompts, projection) if part is not None]
        learning = torch.is_grad_enabled() and any(p.requires_grad for part in parts for p in part.parameters())
        if not learning and may_keep(text):
            return self._kept_features(classes, device)
        self.feature_cache.clear()
        mine = share(len(classes.names)) if learning and self.active_config.shard_classes else None
        if mine is None:
            return self._encode_classes(classes, device)
        return gather_classes(self._encode_classes(classes, device, *mine), len(classes.names))

    @torch.compiler.disable
    def _kept_features(self, classes: ClassList, device: torch.device) -> Tensor:
        """Features from the cache. A compiler leaves this alone: it could not see that a weight has changed."""
        text, projection = self.text_tower, self.dual_encoder.text_projection
        weights = (fingerprint(text), fingerprint(projection), checksum(text.active_prompts))
        key = (text.disable_adapters, autocast_dtype(device), *weights)
        return self.feature_cache.get(classes, key, lambda: self._encode_classes(classes, device))

    def _encode_classes(
        self, classes: ClassList, device: torch.device, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Features of the classes first ... last - 1."""
        text = self.text_tower
        if text.disable_adapters:
            return self.zero_shot_features(classes, self.active_config)
        read_only = 0 if text.active_read_only is None else text.active_read_only().shape[1]
        templates = classes.pack(first, last or len(classes.names), read_only, device)
        keep_kv_cache = sum(part.num_rows for parts in templates for part in parts) <= MAX_KV_CACHE_ROWS

        def encode(part: PackedPrompts | PaddedPrompts) -> Tensor:
            return self.dual_encoder.text_features(text.encode_packed(part, keep_kv_cache=keep_kv_cache))

        parts = [part for template in templates for part in template]
        sizes = [part.num_rows + read_only * part.num_classes for part in parts]
        features = iter(checkpointed_chunks(encode, parts, sizes, MAX_TOKEN_ROWS))
        return self.method.combine([torch.cat(list(islice(features, len(template)))) for template in templates])

    def _conditional_features(self, classes: ClassList, image_features: Tensor, device: torch.device) -> Tensor:
        """Class features of each image, [b, c, dim]: all images and classes in one batch, or in bounded pieces."""
        (parts,) = classes.pack(0, len(classes.names), 0, device)

        def encode(piece: tuple[PackedPrompts | PaddedPrompts, Tensor]) -> Tensor:
            return self.dual_encoder.text_features(self.text_tower.encode_packed(*piece))

        together = max(1, MAX_TOKEN_ROWS // sum(part.num_rows for part in parts))
        images = image_features.tensor_split(max(1, math.ceil(len(image_features) / together)))
        pieces = [(part, some) for some in images for part in parts]
        sizes = [part.num_rows * len(some) for part, some in pieces]
        features = iter(checkpointed_chunks(encode, pieces, sizes, MAX_TOKEN_ROWS))
        return torch.cat([torch.cat(list(islice(features, len(parts))), dim=1) for _ in images])

    def zero_shot_features(self, classes: ClassList, config: PromptConfig) -> Tensor:
        """Text features [c, dim] by the base model's own call, with the template around each name."""
        tokenizer, features = self.tokenizer_for(config), []
        for template in config.templates:
            texts = [fill(template, name) for name in classes.names]
            check_lengths(
                [encode_text(tokenizer, t) for t in texts], classes.names, self.text_tower.tower.max_positions
            )
            starts = range(0, len(texts), ZERO_SHOT_BATCH)
            batches = [texts[start : start + ZERO_SHOT_BATCH] for start in starts]
            plain_features = functools.partial(self._plain_features, tokenizer)
            features.append(
                torch.cat(checkpointed_chunks(plain_features, batches, list(map(len, batches)), ZERO_SHOT_BATCH))
            )
        return average(features)

    def _plain_features(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
        """Features [c, dim] of the frozen text encoder."""
        text, dual = self.text_tower, self.dual_encoder
        device = dual.module.logit_scale.device
        if isinstance(text.tower, BidirectionalTextView):
            sequences = [encode_text(tokenizer, t) for t in texts]
            (padded,) = text.layout(tokenizer, sequences[0])(sequences, sys.maxsize)
            padded = padded.to(device)
            return dual.text_features(text.tower.plain_features(padded.token_ids, padded.mask))
        batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        output = text.base_layer(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return dual.text_features(output.pooler_output)

    @contextmanager
    def switching(self):
        """Gives a function that lets the model answer for another adapter until the block ends.

        What is trained stays as it is. The switch is seen by all threads, so call from one.
        """
        layers = [m for m in self.model.modules() if isinstance(m, (PromptedEncoder, AuxiliaryTrainingWrapper))]
        before = self.active_adapter, [layer._active_adapter for layer in layers]

        def answer_for(adapter_name: str) -> None:
            self.active_adapter = [adapter_name]
            for layer in layers:
                has_copy = isinstance(layer, PromptedEncoder) or adapter_name in layer.modules_to_save
                layer._active_adapter = [adapter_name] if has_copy else []

        try:
            yield answer_for
        finally:
            self.active_adapter = before[0]
            for layer, active in zip(layers, before[1], strict=True):
                layer._active_adapter = active


def average(features: list[Tensor]) -> Tensor:
    """Mean of L2-normalised features [c, d] over templates, normalised again."""
    return features[0] if len(features) == 1 else F.normalize(torch.stack(features).mean(0), dim=-1)

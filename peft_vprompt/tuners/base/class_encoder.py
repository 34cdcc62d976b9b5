"""`ClassEncoder`: features of class names, with the active adapter and of the frozen model, in bounded memory.

They are kept while nothing that they depend on changes.

Shapes: b = images, c = classes, e = size of the joint space, k = read-only prompts.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...backbones.text import CausalTextView, PaddedTextView
from ...core import attention
from ...core.checkpointing import checkpointed_chunks
from ...core.class_sharding import gather_classes, share
from ...core.packed_prompts import PackedPrompts
from ...core.padded_prompts import PaddedPrompts, pad
from ...core.plain_modules import all_plain, lets_gradients_in
from ...core.tokenization import TokenSequence, check_lengths, encode_texts, fill
from ...readouts import ClassRowsReadout
from . import class_list
from .adapted_model import AdaptedModel
from .class_list import ClassList
from .config import PromptConfig
from .feature_cache import FeatureCache
from .method import average_features
from .module_state import ModuleState, autocast_dtype, state_of
from .prompted_text_encoder import PromptedTextEncoder
from .traced import is_exporting, kept, number_of, outside_of_export


class ClassEncoder:
    """Encodes class lists for the active adapter of a model.

    Args:
        model: the model and its adapters.
        features: where features with prompts are kept.
        frozen: where those of the frozen model are kept.
    """

    def __init__(self, model: AdaptedModel, features: FeatureCache, frozen: FeatureCache):
        self.model = model
        self.features = features
        self.frozen = frozen

    @property
    def text(self) -> PromptedTextEncoder:
        """The text tower; classes have no meaning on models without one."""
        return self.model.text  # `AdaptedModel.dual` refuses other models

    @property
    def conditional(self) -> bool:
        """Whether class features depend on the image."""
        return self.model.method.conditional and not self.text.disable_adapters

    def encode(self, classes: ClassList, image_features: Tensor | None) -> Tensor:
        """Return the features [c, e], [c, k, e] or [b, c, e] of the active adapter's classes.

        They are kept while nothing that they depend on changes, unless a gradient has to flow through them.
        """
        dual = self.model.dual
        readout = self.model.readout
        if not self.text.disable_adapters:
            own = self.model.method.own_class_features(readout)
            if own is not None:
                return classes.pick(own).to(dual.dtype)
        if isinstance(readout, ClassRowsReadout):
            text = None if readout.knows(classes.names) else self._by_text(classes, image_features)
            return readout.features_of(classes.names, text).to(dual.dtype)
        return self._by_text(classes, image_features)

    def _by_text(self, classes: ClassList, image_features: Tensor | None) -> Tensor:
        """Return the same by the text encoder."""
        text = self.text
        dual = self.model.dual
        device = dual.device
        if self.conditional:
            # pyrefly: ignore[bad-argument-type]  # such methods are called with images
            return self._encode_per_image(classes, "image_features", image_features)
        if is_exporting() and not self.model.model.training:
            constant = self._constant_features(classes)
            return self._encode(classes, device) if constant is None else constant
        parts = [part for part in (text.base_layer, text.active_prompts, dual.text_projection) if part is not None]
        learning = torch.is_grad_enabled() and any(p.requires_grad for part in parts for p in part.parameters())
        if not learning and torch.compiler.is_compiling():
            return self._features_in_graph(classes, "kept_features")
        if not learning:
            return self.kept_features(classes)
        self.features.clear()
        mine = share(len(classes.names)) if self.model.config.shard_classes else None
        if mine is None:
            return self._encode(classes, device)
        return gather_classes(self._encode(classes, device, *mine), len(classes.names))

    def kept_features(self, classes: ClassList, adapter_name: str = "") -> Tensor:
        """Return the features of the active adapter's classes, without gradients, from the cache while they hold."""
        text = self.text
        dual = self.model.dual
        parts = [text.base_layer, text.active_prompts, dual.text_projection]
        config = self.model.config
        described = self._described(config, classes.names)
        state = self._state(parts, [*config.templates, str(config.frozen_template), described], classes.sequences)
        return self.features.get(classes, state, lambda: self._encode(classes, dual.device))

    def _features_in_graph(self, classes: ClassList, method: str, adapter_name: str = "") -> Tensor:
        """Return what a method of this object gives for the classes, as a node of the graph that is compiled."""
        dual = self.model.dual
        read_only = None if method == "frozen_features" else self.text.active_read_only
        pairs = [] if read_only is None else [read_only().shape[1]]
        shape = [len(classes.names), *pairs, dual.feature_dim]
        who = (number_of(self), method, number_of(classes), adapter_name)
        return kept(dual.scale_parameter.detach(), *who, shape, dual.dtype, autocast_dtype(dual.device))

    @torch.compiler.assume_constant_result
    def _constant_features(self, classes: ClassList) -> Tensor | None:
        """Return the features of the active adapter's classes as an exported model has them.

        None where the model's own tensors cannot be found behind those of the exporter: the text encoder is exported too.
        """
        with outside_of_export(self.model.model) as possible:
            return self._encode(classes, self.model.dual.device).detach().clone() if possible else None

    def _state(self, parts: list[nn.Module], read: Sequence[Hashable], *objects: object) -> ModuleState | None:
        """Return what the features of classes depend on: the modules `parts`, what is read, and what is said here."""
        dual = self.model.dual
        facts = (self.text.disable_adapters, autocast_dtype(dual.device), dual.device, dual.dtype, *read)
        return state_of(parts, facts, (self.model.tokenizers.given, *objects))

    def _encode(self, classes: ClassList, device: torch.device, first: int = 0, last: int | None = None) -> Tensor:
        """Return the features of the classes first ... last - 1."""
        text = self.text
        config = self.model.config
        if text.disable_adapters or (config.class_descriptions is not None and not self.model.changes_texts):
            return self._zero_shot(classes.names[first:last], config.templates, config)
        read_only = 0 if text.active_read_only is None else text.active_read_only().shape[1]
        templates = classes.pack(first, last or len(classes.names), read_only, device)
        chunks = [chunk for template in templates for chunk in template]
        options: dict = {}
        if self.model.method.needs_class_features:
            options["class_features"] = self.encode_frozen(classes, self.model.adapter_name)
        keep_kv_cache = sum(chunk.num_rows for chunk in chunks) <= class_list.MAX_KV_CACHE_ROWS
        if len(chunks) == 1:
            encoded = [text.class_prompt_encoder(chunks[0], keep_kv_cache=keep_kv_cache, **options)]
        else:
            encode = functools.partial(text.class_prompt_encoder, keep_kv_cache=keep_kv_cache, **options)
            sizes = [chunk.num_rows + read_only * chunk.num_classes for chunk in chunks]
            encoded = checkpointed_chunks(encode, chunks, sizes, class_list.MAX_TOKEN_ROWS)
        features = iter(self.model.dual.project_text(torch.cat(encoded)).split([len(names) for names in encoded]))
        return self.model.method.combine([torch.cat([next(features) for _ in template]) for template in templates])

    def encode_with_contexts(self, classes: ClassList, contexts: Tensor) -> Tensor:
        """Return the class features [b, c, e] with a context [b, m, d] for each image in the place of the adapter's own."""
        return self._encode_per_image(classes, "contexts", contexts)

    def images_at_once(self, classes: ClassList) -> int:
        """Return for how many images the class prompts are encoded in one pass of bounded size; 0 if not even for one."""
        chunks = self._chunks(classes)
        return class_list.MAX_TOKEN_ROWS // sum(chunk.num_rows for template in chunks for chunk in template)

    def _chunks(self, classes: ClassList) -> list[list[PackedPrompts | PaddedPrompts]]:
        return classes.pack(0, len(classes.names), 0, self.model.dual.device)

    def _encode_per_image(self, classes: ClassList, name: str, values: Tensor) -> Tensor:
        """Return the class features of each image, [b, c, e]: in one batch, or in chunks of bounded size.

        `values` [b, ...] are what the class prompts of each image depend on, the argument `name` of the text encoder.
        """
        templates = self._chunks(classes)
        chunks = [chunk for template in templates for chunk in template]
        project = self.model.dual.project_text

        def encode(piece: tuple) -> Tensor:
            chunk, some = piece
            return project(self.text.class_prompt_encoder(chunk, **{name: some}))

        def join(features: Iterator[Tensor]) -> Tensor:
            return self.model.method.combine(
                [torch.cat([next(features) for _ in template], dim=1) for template in templates]
            )

        if torch.compiler.is_compiling():  # the number of images is a symbol, or not to be built into the graph
            return join(iter([encode((chunk, values)) for chunk in chunks]))
        images = values.tensor_split(max(1, math.ceil(len(values) / max(1, self.images_at_once(classes)))))
        pieces = [(chunk, some) for some in images for chunk in chunks]
        sizes = [chunk.num_rows * len(some) for chunk, some in pieces]
        features = iter(checkpointed_chunks(encode, pieces, sizes, class_list.MAX_TOKEN_ROWS))
        return torch.cat([join(features) for _ in images])

    # ---- the frozen model -------------------------------------------------------------------------------------

    def encode_frozen(self, classes: ClassList, adapter_name: str) -> Tensor:
        """Return the frozen model's features [c, e] of an adapter's classes, without gradients, kept per class list.

        What is read are the config's `class_descriptions`, where it has some; else its `frozen_template` around the names,
        where it has one, or its `template`.
        """
        if torch.compiler.is_compiling():
            return self._features_in_graph(classes, "frozen_features", adapter_name)
        return self.frozen_features(classes, adapter_name)

    def frozen_features(self, classes: ClassList, adapter_name: str) -> Tensor:
        """Return the same, outside of compiled code."""
        config = self.model.config_of(adapter_name)
        templates = self._frozen_templates(adapter_name)
        # Descriptions give the same features wherever they are read: each sentence's is normalised, as CuPL's code does.
        normalize = (
            self.model.method_of(adapter_name).normalizes_frozen_templates or config.class_descriptions is not None
        )
        text = self.text

        def compute() -> Tensor:
            with torch.no_grad(), self.model.without_adapters():
                return self._zero_shot(classes.names, templates, config, normalize)

        parts = [text.base_layer, self.model.dual.text_projection]
        state = self._state(parts, [*templates, self._described(config, classes.names)], normalize)
        return self.frozen.get(classes, state, compute)

    def _described(self, config: PromptConfig, names: Sequence[str]) -> Hashable:
        """Return what tells whether the descriptions of the classes still are what they were; None without any."""
        described = config.descriptions_of(names)
        return None if described is None else hash(tuple(map(tuple, described)))

    def projected_frozen(self, classes: ClassList, adapter_name: str, verbatim: bool) -> Tensor:
        """Return the mean over the same texts of features [c, e] that are not L2-normalised, nor kept.

        Args:
            verbatim: put the names into the templates as they are written, with their underscores.
        """
        config = self.model.config_of(adapter_name)
        tokenizer = self.model.tokenizers.find(config.tokenizer_name_or_path)
        names = classes.names
        with torch.no_grad(), self.model.without_adapters():
            described = config.descriptions_of(names)
            if described is not None:
                return self._mean_of_sentences(tokenizer, described, names, normalize=False)
            filled = [[fill(t, name, verbatim) for name in names] for t in self._frozen_templates(adapter_name)]
            return torch.stack([self._plain(tokenizer, texts, names, False) for texts in filled]).mean(0)

    def _frozen_templates(self, adapter_name: str) -> list[str]:
        config = self.model.config_of(adapter_name)
        template = config.frozen_template or config.template
        return [template] if isinstance(template, str) else list(template)

    def _zero_shot(
        self, names: Sequence[str], templates: Sequence[str], config: PromptConfig, normalize: bool = True
    ) -> Tensor:
        """Return text features [c, e] without prompts, of the descriptions or with templates around the names.

        The features of each text are L2-normalised before they are averaged, or not; the mean always is.
        """
        tokenizer = self.model.tokenizers.find(config.tokenizer_name_or_path)
        described = config.descriptions_of(names)
        if described is not None:
            return F.normalize(self._mean_of_sentences(tokenizer, described, names, normalize), dim=-1)
        texts = [[fill(template, name) for name in names] for template in templates]
        return average_features([self._plain(tokenizer, some, names, normalize) for some in texts], normalize)

    def _mean_of_sentences(
        self,
        tokenizer: PreTrainedTokenizerBase,
        described: Sequence[Sequence[str]],
        names: Sequence[str],
        normalize: bool,
    ) -> Tensor:
        """Return the mean [c, e] over each class's sentences of their features, L2-normalised or not."""
        owners = [name for name, sentences in zip(names, described, strict=True) for _ in sentences]
        features = self._plain(tokenizer, [text for texts in described for text in texts], owners, normalize)
        return torch.stack([each.mean(0) for each in features.split(list(map(len, described)))])

    def _plain(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], names: Sequence[str], normalize: bool
    ) -> Tensor:
        """Return the features [n, e] of plain texts, each of the class of a name, in batches of bounded size."""
        text = self.text
        sequences = encode_texts(tokenizer, texts)
        check_lengths(sequences, names, text.view.max_positions)
        layout = text.layout(tokenizer, sequences[0])
        if self._shares_beginnings:
            encoded = self._encode_packed(layout(sequences, class_list.MAX_TOKEN_ROWS))
        else:
            size = class_list.ZERO_SHOT_BATCH
            batches = [sequences[start : start + size] for start in range(0, len(sequences), size)]
            encode = functools.partial(self._encode_texts, tokenizer, layout)
            encoded = checkpointed_chunks(encode, batches, list(map(len, batches)), size)
        return torch.cat([self.model.dual.project_text(some, normalize) for some in encoded])

    @property
    def _shares_beginnings(self) -> bool:
        """Whether texts are packed as class prompts are: names in a template have half as many tokens then, or fewer.

        Towers that learn, towers with hooks or parts of a user's own, and graphs have the tower's own call.
        """
        tower = self.text.base_layer
        is_learning = torch.is_grad_enabled() and self.text.is_trained
        by_itself = is_learning or torch.compiler.is_compiling() or is_exporting()
        packs = isinstance(self.text.view, CausalTextView) and not by_itself
        return packs and attention.is_stock(tower.config) and all_plain(tower, allowed=lets_gradients_in)

    def _encode_packed(self, texts: Sequence[PackedPrompts]) -> list[Tensor]:
        """Return the pooled outputs [n, d] of packed plain texts, with adapters off too; calls by other threads wait."""
        text = self.text
        with self.model.lock.change(), torch.no_grad():
            was_ready = text.reads_patterns
            try:
                text.patch_layers(True)
                return [text.class_prompt_encoder(packed.to(self.model.dual.device)) for packed in texts]
            finally:
                if not was_ready:
                    text.patch_layers(False)

    def _encode_texts(
        self, tokenizer: PreTrainedTokenizerBase, layout: Callable, texts: list[TokenSequence]
    ) -> Tensor:
        """Return the pooled outputs [n, d] of tokenised plain texts, by the tower's own call."""
        text = self.text
        device = self.model.dual.device
        if isinstance(text.view, PaddedTextView):
            (padded,) = layout(texts, sys.maxsize)
            padded = padded.to(device)
            return text.view.plain_features(padded.token_ids, padded.mask)
        # Padded here: a tokenizer that pads in one thread does so, for a moment, in all others too.
        padded = pad(texts, 1, tokenizer.pad_token_id, None).to(device)
        return text.base_layer(input_ids=padded.token_ids, attention_mask=padded.mask.long()).pooler_output

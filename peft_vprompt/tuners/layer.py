"""Tuner layers: what stands in a base model in the place of its towers.

A `PromptedTower` holds the prompts of every adapter on one tower and answers the tower's own call, so whoever calls
the base model (a pipeline, a contrastive loss) sees the prompts. Without an active prompt it is the tower itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .. import attention
from ..attention import Causal, ReadAll, ReadTails
from ..class_prompts import PackedPrompts, pack_bounded
from ..encode import Readout, Rows, attention_weights, encode, insert, read, record, remove, replace
from ..errors import PromptTooLongError
from ..padded_prompts import PaddedPrompts, pad_bounded
from ..prompts import LinearCoupling, PromptHolder
from ..readout import pool
from ..text_cache import TextCache, autocast_dtype, fingerprint
from ..tokenization import TokenSequence, num_start_tokens
from ..towers import CausalTextTower, TextTower, Tower, VisionTower, view
from .wrapper import Wrapper


class PromptedTower(Wrapper):
    """A tower with prompts.

    Holders live in one `nn.ModuleDict` per method, named `<method prefix>learner`: adapters of several methods may
    share a tower, and PEFT finds each method's weights by its prefix.
    """

    @property
    def tower(self) -> Tower:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    def add_prompts(self, prefix: str, adapter_name: str, holder: PromptHolder) -> None:
        """Hold the prompts of one more adapter."""
        name = f"{prefix}learner"
        if name not in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())
            self.adapter_layer_names = (*self.adapter_layer_names, name)
        getattr(self, name)[adapter_name] = holder
        self.install_attention(not self.disable_adapters)

    def install_attention(self, wanted: bool) -> None:
        """Let the layers understand attention patterns where a prompt needs them."""
        wanted = wanted and self.needs_patterns
        for layer in self.tower.layers:
            (attention.install if wanted else attention.uninstall)(self.tower.attention(layer))

    @property
    def needs_patterns(self) -> bool:
        """Whether any adapter here has prompts that not every token reads, or not every row is read out."""
        return any(holder.reads_only for name in self.adapter_layer_names for holder in getattr(self, name).values())

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; off also gives the user's own attention implementation back."""
        super().enable_adapters(enabled)
        self.install_attention(enabled)

    def holder(self, adapter_name: str) -> PromptHolder | None:
        """The holder of an adapter; None if the adapter has no prompts on this tower."""
        for name in self.adapter_layer_names:
            if adapter_name in (holders := getattr(self, name)):
                return holders[adapter_name]
        return None

    @property
    def active_holder(self) -> PromptHolder | None:
        """The holder in use; None while disabled or where the active adapter has no prompts here."""
        if self.disable_adapters or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Expected one active prompt adapter at a time. Received: {self.active_adapters}.")
        return self.holder(self.active_adapters[0])

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. Which adapter is active afterwards is decided by the tuner, for all layers alike."""
        for name in self.adapter_layer_names:
            getattr(self, name).pop(adapter_name) if adapter_name in getattr(self, name) else None
        self._active_adapter = [name for name in self.active_adapters if name != adapter_name]

    def restore(self) -> nn.Module:
        """The wrapped tower as it was."""
        self.install_attention(False)
        return self.base_layer


class PromptedVisionTower(PromptedTower):
    """An image encoder with prompts."""

    #: The text tower whose prompts are mapped to visual ones. A tuple keeps it out of this module's own children.
    text_partner: tuple[PromptedTextTower, ...] = ()

    def install_attention(self, wanted: bool) -> None:
        """Also let the layers take more rows than the model itself has."""
        super().install_attention(wanted)
        (self.tower.attach if wanted else self.tower.detach)()

    @property
    def tower(self) -> VisionTower:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    def prompts(self, batch_size: int) -> Tensor | None:
        """Visual prompts in use, [j, n, d] or [j, b, n, d]; None without."""
        return None if self.active_holder is None else self.adapter_prompts(self.active_adapters[0], batch_size)

    def adapter_prompts(self, adapter_name: str, batch_size: int) -> Tensor:
        """Visual prompts of an adapter that has some, [j, n, d] or [j, b, n, d]."""
        holder = self.holder(adapter_name)
        coupled = isinstance(holder, LinearCoupling)
        return holder(self.text_partner[0].holder(adapter_name)() if coupled else self.tower, batch_size)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        for_head: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The tower's own call.

        `last_hidden_state` has the rows the model itself would give it, so that its pooling and whoever reads its
        patches never meet a prompt; only ViT's keeps the prompts. `hidden_states` have them always.

        Where an adapter reads out otherwise than the tower, `pooler_output` is its feature. `for_head` (see
        `base_model.ask_for_feature`) then also puts the feature into all rows of a short `last_hidden_state`: a
        classification head reads it there, whether it takes the class token or the mean of the patches.

        RPO's readers change nothing here: what they have read is asked for with `read`.

        Raises:
            ValueError: an `attention_mask`, or images of another size than the position embeddings are made for.
        """
        holder = self.active_holder
        if pixel_values is None or holder is None or holder.reads_only:
            flags = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": return_dict}
            flags |= {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
            flags |= {"attention_mask": attention_mask}
            return self._plain(pixel_values, for_head, flags, **kwargs)
        if attention_mask is not None:
            raise ValueError(
                "Expected no attention_mask: every image token and prompt is visible to every other. "
                f"Received: attention_mask of shape {list(attention_mask.shape)}."
            )
        tower, states = self.tower, [] if output_hidden_states else None
        if output_attentions and not tower.gives_attentions:
            raise ValueError(
                f"Attention weights of a prompted {type(self.base_layer).__name__} are not available: prompts stand in "
                "every window. Received: output_attentions=True. Leave it out, or disable the adapter."
            )
        with attention_weights(tower, bool(output_attentions)) as weights:
            hidden, rows = self._encode(
                pixel_values, states, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        output = tower.finish(hidden if tower.keeps_prompts else remove(hidden, rows), **self._options(kwargs))
        output.hidden_states = None if states is None else tuple(states)
        output.attentions = tuple(weights) if output_attentions else None
        if holder.pooling != "original":
            feature = pool(tower.final_norm(hidden), holder.pooling, tower.num_prefix_tokens, rows)
            self._put_feature(output, feature, for_head)
        return output if return_dict is not False else output.to_tuple()

    def _encode(self, pixel_values: Tensor, states=None, readout=None, **embed_options) -> tuple[Tensor, slice]:
        """Image tokens and prompts after the last layer [b, s, d], and which rows are prompts; see `encode.encode`."""
        tower, holder, prompts = self.tower, self.active_holder, None
        hidden = self._embed(pixel_values, **embed_options)
        layer_options = tower.layer_options(pixel_values, **self._options(embed_options))
        if holder is None or holder.reads_only:
            return tower.encode(hidden, None, None, 0, states, readout, **layer_options), slice(0, 0)
        prompts, place = self.prompts(hidden.shape[0]), holder.place(tower, hidden.shape[1])
        rows = place.rows(0 if prompts is None else prompts[0].shape[-2])
        return tower.encode(hidden, prompts, place, holder.first_layer, states, readout, **layer_options), rows

    def _options(self, kwargs: dict) -> dict:
        """Those of a call's keyword arguments that the tower understands."""
        return {name: kwargs[name] for name in self.tower.embed_options if kwargs.get(name) is not None}

    def _embed(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **kwargs) -> Tensor:
        """Image tokens, after checks."""
        tower, holder = self.tower, self.active_holder
        tower.check_image_size(pixel_values, interpolate_pos_encoding)
        options = self._options(kwargs) | {"interpolate_pos_encoding": interpolate_pos_encoding}
        return tower.embed(pixel_values, **options) if holder is None else holder.embed(tower, pixel_values, **options)

    def _put_feature(self, output: BaseModelOutputWithPooling, feature: Tensor, for_head: bool) -> None:
        """Put a feature [b, d] of our own where callers of the tower read one."""
        output.pooler_output = self.tower.pooled_output(feature)
        if for_head:
            rows = self.tower.num_head_rows or output.last_hidden_state.shape[1]
            output.last_hidden_state = feature.unsqueeze(1).expand(-1, rows, -1)

    def pooled(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """The pooled output of `forward` [b, d]; of the last layer only what is read out is computed."""
        tower, holder = self.tower, self.active_holder
        own_way = holder is not None and holder.pooling != "original"
        whole = self.disable_adapters or own_way or tower.readout_rows is None
        if whole or kwargs.get("attention_mask") is not None:
            return self(pixel_values, **kwargs).pooler_output
        readout = Readout(tower.readout_rows, ReadAll)
        return tower.pool(self._encode(pixel_values, readout=readout, **kwargs)[0])

    def read(self, pixel_values: Tensor, **embed_options) -> Tensor:
        """What the active adapter's read-only prompts have read, after the final norm: [b, n, d]."""
        return self.read_together(pixel_values, self.active_adapters, **embed_options)[0]

    def read_together(self, pixel_values: Tensor, adapter_names: Sequence[str], **embed_options) -> list[Tensor]:
        """What the read-only prompts of each adapter have read, after the final norm: [b, n, d].

        The plain tokens run once for all adapters, without gradients and exactly as in the frozen tower, and leave a
        record of their keys and values. The prompts then run alone over the record: as they read no prompt either,
        those of all adapters that start at the same layers run together.
        """
        tower = self.tower
        with torch.no_grad():
            hidden = tower.prepare(self._embed(pixel_values, **embed_options))
            patterns = [ReadAll(key, value) for key, value in record(tower, hidden)]
        groups: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name in adapter_names:
            prompts = self.adapter_prompts(name, hidden.shape[0]).to(hidden.dtype)
            groups.setdefault((self.holder(name).first_layer, prompts.shape[0]), {})[name] = prompts
        results = {}
        for (first, _), members in groups.items():
            readers = torch.cat(list(members.values()), dim=-2)
            if first == 0:
                readers = torch.cat([tower.prepare(readers[:1]), readers[1:]])
            features = tower.final_norm(read(tower, readers, first, patterns, hidden.shape[0]))
            counts = [prompts.shape[-2] for prompts in members.values()]
            results |= zip(members, features.split(counts, dim=1), strict=True)
        return [results[name] for name in adapter_names]

    def _plain(self, pixel_values: Tensor | None, for_head: bool, flags: dict, **kwargs):
        """The wrapped tower's own output; where the active adapter's readers are to be read out, with their mean."""
        holder = self.active_holder
        flags = {name: value for name, value in flags.items() if value is not None}
        if pixel_values is None or holder is None or holder.pooling == "original":
            return self.base_layer(pixel_values, **flags, **kwargs)
        as_tuple = flags.pop("return_dict", True) is False
        more_than_feature = flags.get("output_hidden_states") or flags.get("output_attentions")
        output = BaseModelOutputWithPooling()
        if more_than_feature or not for_head:
            output = self.base_layer(pixel_values, **flags, **kwargs)
        options = {"interpolate_pos_encoding": flags.get("interpolate_pos_encoding")}
        self._put_feature(output, self.read(pixel_values, **options, **kwargs).mean(dim=1), for_head)
        return output.to_tuple() if as_tuple else output


class PromptedTextTower(PromptedTower):
    """A text encoder with prompts."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.record_cache = TextCache()

    @property
    def tower(self) -> TextTower:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    @property
    def needs_patterns(self) -> bool:
        """The packed class prompts need a pattern whatever the adapter is; padded ones need none."""
        return isinstance(self.tower, CausalTextTower)

    def prompts(self, image_features: Tensor | None = None) -> Tensor | None:
        """Text prompts in use, [j, n, d], or [j, b, n, d] where they depend on the image; None without."""
        holder = self.active_holder
        return None if holder is None else holder(image_features)

    def layout(self, tokenizer: PreTrainedTokenizerBase, sequence: TokenSequence) -> Callable:
        """How class prompts are laid out for this encoder, see `pack_bounded`; `sequence` is one of them."""
        tower = self.tower
        if isinstance(tower, CausalTextTower):
            return pack_bounded
        return functools.partial(
            pad_bounded,
            start=num_start_tokens(tokenizer, sequence),
            pad_token_id=tokenizer.pad_token_id,
            length=tower.max_positions if tower.fills_up else None,
        )

    def encode_packed(
        self, packed: PackedPrompts | PaddedPrompts, image_features: Tensor | None = None, keep_record: bool = True
    ) -> Tensor:
        """Features of all classes in one pass, after the final norm and not projected.

        [c, d]; [b, c, d] where the context depends on the image; [c, n, d] for n read-only prompts, which read a
        record of the plain tokens that is kept for the next call if `keep_record`.
        """
        if isinstance(packed, PaddedPrompts):
            return self._encode_padded(packed, image_features)
        tower, holder = self.tower, self.active_holder
        if holder is not None and holder.reads_only:
            return self._read_packed(
                packed, holder, self._kept_record(packed) if keep_record else self._record(packed)
            )
        prompts = self.prompts(image_features)
        learned = None if prompts is None else prompts[0]
        hidden = packed.embed(tower.token_embedding, tower.position_embedding, learned)
        readout = Readout(packed.end_rows, functools.partial(ReadTails, packed.pattern))
        hidden = encode(tower, hidden, prompts, Rows(1), readout=readout, pattern=packed.pattern)
        features = tower.final_norm(hidden)
        return features if image_features is not None else features[0]

    def _encode_padded(self, padded: PaddedPrompts, image_features: Tensor | None) -> Tensor:
        """Each class prompt as a text of its own."""
        tower, prompts = self.tower, self.prompts(image_features)
        hidden = tower.embed(padded.embed(tower.token_embedding, None if prompts is None else prompts[0]))
        mask = tower.layer_mask(padded.mask, hidden)
        features = tower.read_out(encode(tower, hidden, prompts, Rows(padded.start), mask=mask))
        return features if image_features is None else features.unflatten(0, (-1, padded.num_classes))

    def _read_packed(self, packed: PackedPrompts, holder: PromptHolder, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Let the readers of every class read its record: [c, n, d]."""
        tower, prompts = self.tower, holder()
        patterns = [ReadTails(packed.pattern, key, value) for key, value in kept]
        readers = prompts.to(tower.reference_weight.dtype).repeat(1, packed.num_classes, 1)
        readers = read(tower, readers, holder.first_layer, patterns, batch_size=1)
        return tower.final_norm(readers[0].unflatten(0, (packed.num_classes, -1)))

    @torch.no_grad()
    def _record(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the plain tokens in each layer."""
        hidden = packed.embed(self.tower.token_embedding, self.tower.position_embedding, None)
        return record(self.tower, hidden, pattern=packed.pattern)

    @torch.compiler.disable
    def _kept_record(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """The same, kept while the classes and the frozen tower stay."""
        key = (autocast_dtype(packed.token_ids.device), fingerprint(self.base_layer))
        return self.record_cache.get(packed, key, lambda: self._record(packed))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The tower's own call with prompts after the start token.

        Contexts are inserted, so the text may be that much shorter; MaPLe's replace the first words. Padding on the
        right is honoured and costs nothing. Attention weights are not available from a prompted text tower.

        Raises:
            ValueError: the adapter's prompts need to know where the class name is; padding on the left; no end token.
            PromptTooLongError: the text does not fit beside the prompts.
        """
        holder = self.active_holder
        if holder is None or input_ids is None:
            flags = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
            flags |= {"attention_mask": attention_mask, "position_ids": position_ids, "return_dict": return_dict}
            return self.base_layer(input_ids, **{k: v for k, v in flags.items() if v is not None}, **kwargs)
        ends = self._check_input_ids(input_ids, holder)
        longest = int(ends.max()) + 1  # what follows the last end token is padding, which nothing reads
        prompts = holder()
        hidden, positions, mask = self._embed(input_ids, position_ids, attention_mask, prompts[0], longest, holder)
        added = hidden.shape[1] - longest
        states = [] if output_hidden_states else None
        hidden = hidden + self.tower.position_embedding(positions)
        hidden = encode(self.tower, hidden, prompts, Rows(1), states=states, pattern=mask)
        hidden = self.tower.final_norm(hidden)
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), ends + added]
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=None if states is None else tuple(states),
        )
        return output if return_dict is not False else output.to_tuple()

    def _embed(self, input_ids, position_ids, attention_mask, first_prompts, longest, holder):
        """Token vectors with the first layer's prompts in place, their positions, and the attention pattern."""
        input_ids = input_ids[:, :longest]
        batch, num_prompts = input_ids.shape[0], first_prompts.shape[0]
        inserted = num_prompts if holder.text_placement == "insert" else 0
        length = longest + inserted
        if length > self.tower.max_positions:
            raise PromptTooLongError(
                f"Texts of {longest} tokens and {inserted} inserted context tokens make {length}; the text tower has "
                f"{self.tower.max_positions} positions. Truncate input_ids to {self.tower.max_positions - inserted}."
            )
        hidden = (insert if inserted else replace)(self.tower.token_embedding(input_ids), first_prompts, 1)
        positions = torch.arange(length, device=input_ids.device).expand(batch, -1)
        if position_ids is not None:
            given = position_ids[..., :longest].expand(batch, -1)
            room = given[:, :1] + torch.arange(1, inserted + 1, device=given.device)
            positions = torch.cat([given[:, :1], room, given[:, 1:] + inserted], dim=1)
        mask = None
        if attention_mask is not None and not bool(attention_mask[:, :longest].all()):
            kept = attention_mask[:, :longest].bool()
            mask = torch.cat([kept[:, :1], kept.new_ones(batch, inserted), kept[:, 1:]], dim=1)
        return hidden, positions, Causal(mask)

    def _check_input_ids(self, input_ids: Tensor, holder: PromptHolder) -> Tensor:
        """Position of each text's end token, [b]."""
        if not isinstance(self.tower, CausalTextTower):
            raise ValueError(
                f"{type(self.base_layer).__name__} reads texts in both directions and padded, so prompts have no fixed "
                "place in input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )
        if holder.text_placement is None:
            raise ValueError(
                "This adapter has to know where the class name is, or reads out elsewhere, so it cannot take "
                "input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )
        if bool((input_ids[:, 0] != input_ids[0, 0]).any()):
            raise ValueError(
                "Expected texts that begin with the start token. Received padding on the left; pad right."
            )
        is_end = input_ids == self.tower.end_token_id
        if not bool(is_end.any(dim=1).all()):
            row = int((~is_end.any(dim=1)).nonzero()[0])
            raise PromptTooLongError(
                f"Text {row} has no end token (id {self.tower.end_token_id}): it was cut off. Use fewer tokens per "
                "text, with truncation=True in the tokenizer."
            )
        ends = is_end.int().argmax(dim=1)
        first_prompted = 1 + holder().shape[1] if holder.text_placement == "replace" else 1
        if bool((ends < first_prompted).any()):
            raise ValueError(
                f"Expected texts with at least {first_prompted - 1} words after the start token, which the prompts "
                "replace. Begin each text with the prompt's words, e.g. 'a photo of a cat.'."
            )
        return ends

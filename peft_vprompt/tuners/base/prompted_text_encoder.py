"""`PromptedTextEncoder`: a text encoder with prompts, over packed class prompts or texts of the caller's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...backbones.supported import CausalTextView, TextView, view
from ...core.attention import Causal, ReadSuffixes
from ...core.insertion import InsertRows, insert, replace
from ...core.layer_loop import OutputRows, encode, fill_kv_cache, run_read_only
from ...core.packed_prompts import PackedPrompts, pack_bounded
from ...core.padded_prompts import PaddedPrompts, pad_bounded
from ...core.tokenization import TokenSequence, num_start_tokens
from ...errors import PromptTooLongError
from ...prompts.base import PromptModule
from .feature_cache import FeatureCache, autocast_dtype, fingerprint, may_keep
from .prompted_encoder import PromptedEncoder


class PromptedTextEncoder(PromptedEncoder):
    """A text encoder with prompts."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.kv_caches = FeatureCache()

    @property
    def tower(self) -> TextView:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    @property
    def needs_patterns(self) -> bool:
        """The packed class prompts need a pattern whatever the adapter is; padded ones need none."""
        return isinstance(self.tower, CausalTextView)

    def prompts(self, image_features: Tensor | None = None) -> Tensor | None:
        """Text prompts in use, [j, n, d], or [j, b, n, d] where they depend on the image; None without."""
        holder = self.active_prompts
        return None if holder is None else holder(image_features)

    def layout(self, tokenizer: PreTrainedTokenizerBase, sequence: TokenSequence) -> Callable:
        """How class prompts are laid out for this encoder, see `pack_bounded`; `sequence` is one of them."""
        tower = self.tower
        if isinstance(tower, CausalTextView):
            return pack_bounded
        return functools.partial(
            pad_bounded,
            start=num_start_tokens(tokenizer, sequence),
            pad_token_id=tokenizer.pad_token_id,
            length=tower.max_positions if tower.fills_up else None,
        )

    def encode_packed(
        self, packed: PackedPrompts | PaddedPrompts, image_features: Tensor | None = None, keep_kv_cache: bool = True
    ) -> Tensor:
        """Features of all classes in one pass, after the final norm and not projected.

        [c, d]; [b, c, d] where the context depends on the image; [c, n, d] for n read-only prompts, which read a
        record of the plain tokens that is kept for the next call if `keep_kv_cache`.
        """
        if isinstance(packed, PaddedPrompts):
            return self._encode_padded(packed, image_features)
        tower, read_only = self.tower, self.active_read_only
        if read_only is not None:
            learning = torch.is_grad_enabled() and self.is_trained
            may_be_kept = keep_kv_cache and may_keep(self) and not learning
            with torch.set_grad_enabled(learning):
                kept = self._kept_kv_cache(packed) if may_be_kept else self._fill_kv_cache(packed)
            return self._read_packed(packed, read_only, kept)
        prompts = self.prompts(image_features)
        learned = None if prompts is None else prompts[0]
        hidden = packed.embed(tower.token_embedding, tower.position_embedding, learned)
        output_rows = OutputRows(packed.end_rows, functools.partial(ReadSuffixes, packed.pattern))
        hidden = encode(tower, hidden, prompts, InsertRows(1), output_rows=output_rows, pattern=packed.pattern)
        features = tower.final_norm(hidden)
        return features if image_features is not None else features[0]

    def _encode_padded(self, padded: PaddedPrompts, image_features: Tensor | None) -> Tensor:
        """Each class prompt as a text of its own."""
        tower, prompts = self.tower, self.prompts(image_features)
        hidden = tower.embed(padded.embed(tower.token_embedding, None if prompts is None else prompts[0]))
        mask = tower.layer_mask(padded.mask, hidden)
        features = tower.pool(encode(tower, hidden, prompts, InsertRows(padded.start), mask=mask))
        return features if image_features is None else features.unflatten(0, (-1, padded.num_classes))

    def _read_packed(self, packed: PackedPrompts, holder: PromptModule, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Let the read_only of every class read its record: [c, n, d]."""
        tower, prompts = self.tower, holder()
        patterns = [ReadSuffixes(packed.pattern, key, value) for key, value in kept]
        read_only = prompts.to(tower.reference_weight.dtype).repeat(1, packed.num_classes, 1)
        read_only = run_read_only(tower, read_only, holder.first_layer, patterns, batch_size=1)
        return tower.final_norm(read_only[0].unflatten(0, (packed.num_classes, -1)))

    def _fill_kv_cache(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the plain tokens in each layer."""
        hidden = packed.embed(self.tower.token_embedding, self.tower.position_embedding, None)
        return fill_kv_cache(self.tower, hidden, pattern=packed.pattern)

    @torch.compiler.disable
    def _kept_kv_cache(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """The same, kept while the classes and the frozen tower stay."""
        key = (autocast_dtype(packed.token_ids.device), fingerprint(self.base_layer))
        return self.kv_caches.get(packed, key, lambda: self._fill_kv_cache(packed))

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
        holder = self.active_prompts
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
        hidden = encode(self.tower, hidden, prompts, InsertRows(1), states=states, pattern=mask)
        hidden = self.tower.final_norm(hidden)
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), ends + added]
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=None if states is None else tuple(states),
        )
        return output if return_dict is not False else output.to_tuple()

    def _embed(self, input_ids, position_ids, attention_mask, first_prompts, longest, holder):
        """Token vectors with the first layer's prompts in rule, their positions, and the attention pattern."""
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

    def _check_input_ids(self, input_ids: Tensor, holder: PromptModule) -> Tensor:
        """Position of each text's end token, [b]."""
        if not isinstance(self.tower, CausalTextView):
            raise ValueError(
                f"{type(self.base_layer).__name__} reads texts in both directions and padded, so prompts have no fixed "
                "place in input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )
        if holder.text_placement is None:
            raise ValueError(
                "This adapter has to know where the class name is, or reads out elsewhere, so it cannot take "
                "input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )
        is_end = input_ids == self.tower.end_token_id
        if bool((input_ids[:, 0] != input_ids[0, 0]).any()) or bool(is_end[:, 0].any()):
            raise ValueError(
                "Expected texts that begin with the start token. Received padding on the left; pad right."
            )
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

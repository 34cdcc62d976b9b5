"""`PromptedTextEncoder`: a text encoder with prompts, over packed class prompts or texts of the caller's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...backbones.supported import view as view_of
from ...backbones.text import CausalTextView, PaddedTextView
from ...core.attention import Causal, GrowingPrefix, ReadSuffixes
from ...core.insertion import InsertRows, insert, replace
from ...core.layer_loop import OutputRows, encode, fill_kv_cache, run_read_only
from ...core.packed_prompts import PackedPrompts, pack_bounded
from ...core.padded_prompts import PaddedPrompts, pad_bounded
from ...core.plain_modules import in_place_of, is_plain
from ...core.tokenization import TokenSequence, num_start_tokens, require_end
from ...errors import PromptTooLongError
from ...prompts.base import PromptModule
from .feature_cache import FeatureCache
from .module_state import autocast_dtype, state_of
from .prompted_encoder import READOUT, PromptedEncoder
from .traced import kept, number_of


class PromptedTextEncoder(PromptedEncoder):
    """A text encoder with prompts."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.kv_caches = FeatureCache()

    @property
    def view(self) -> CausalTextView | PaddedTextView:
        """The view of the wrapped tower."""
        return view_of(self.base_layer)  # pyrefly: ignore[bad-return]  # tables of text encoders have no other

    @property
    def needs_patterns(self) -> bool:
        """Packed class prompts need a pattern whatever the adapter is; padded ones need none."""
        return isinstance(self.view, CausalTextView)

    @property
    def reads_elsewhere(self) -> bool:
        """Whether the active adapter holds something for each of its classes, beside texts or in their place."""
        if self.disable_adapters or not self.active_adapters:
            return False
        return getattr(self.module_of(self.active_adapters[0], READOUT), "belongs_to_classes", False)

    def layout(self, tokenizer: PreTrainedTokenizerBase, sequence: TokenSequence) -> Callable:
        """Return how class prompts are laid out for this encoder, see `pack_bounded`; `sequence` is one of them.

        Raises:
            ValueError: the encoder reads texts at an end token, and the tokenizer puts none there.
        """
        view = self.view
        if isinstance(view, CausalTextView) or view.ends_texts:
            require_end(tokenizer, sequence)
        if isinstance(view, CausalTextView):
            return pack_bounded
        return functools.partial(
            pad_bounded,
            start=num_start_tokens(tokenizer, sequence),
            pad_token_id=tokenizer.pad_token_id,
            length=view.max_positions if view.fills_up else None,
        )

    @property
    def class_prompt_encoder(self) -> Callable[..., Tensor]:
        """`encode_class_prompts`, with all that a call of the tower does beside (hooks, sharded weights)."""
        if is_plain(self.base_layer):
            return self.encode_class_prompts
        return functools.partial(in_place_of, self.base_layer, self.encode_class_prompts)

    def encode_class_prompts(
        self,
        packed: PackedPrompts | PaddedPrompts,
        image_features: Tensor | None = None,
        keep_kv_cache: bool = True,
        class_features: Tensor | None = None,
        contexts: Tensor | None = None,
    ) -> Tensor:
        """Return the features of all classes from one pass, after the final norm and not projected.

        Args:
            packed: the class prompts.
            image_features: [b, e], where the context depends on the image.
            keep_kv_cache: keep what read-only prompts read for the next call.
            class_features: the frozen model's features [c, e] of all classes, where the prompts depend on them.
            contexts: vectors [b, m, d] for each image in the place of the prompts' own, all of the first layer.

        Returns:
            [c, d]; [b, c, d] where each image has a context of its own; [c, n, d] for n read-only prompts.
        """
        view: Any = self.view
        prompts = self.active_prompts
        if prompts is not None and prompts.read_only:
            # pyrefly: ignore[bad-argument-type]  # only causal encoders have such prompts
            return self._encode_read_only(packed, prompts, keep_kv_cache)
        vectors = first = None
        rule = InsertRows(packed.start)
        per_image = image_features is not None or contexts is not None
        if prompts is not None:
            given = contexts is not None
            vectors = [contexts] if given else prompts(image_features=image_features, class_features=class_features)
            first = vectors[0]
            rule = prompts.text_rule(packed)
        if isinstance(packed, PaddedPrompts):
            hidden = packed.embed(view, first)
            mask = packed.mask.repeat(hidden.shape[0] // packed.num_classes, 1)
            hidden = encode(view, hidden, vectors, rule, mask=view.layer_mask(mask, hidden))
            features = view.pool(hidden, mask)
            return features.unflatten(0, (-1, packed.num_classes)) if per_image else features
        hidden = in_place_of(view.module.embeddings, packed.embed, view, first)
        first_layer = 0 if prompts is None else prompts.first_layer
        pattern, last_pattern, end_rows = packed.pattern, packed.pattern, packed.end_rows
        # The prompts are not in the texts, but come in on the way.
        if (first_layer or rule.in_layer) and first is not None:
            pattern = GrowingPrefix.by(packed.pattern, len(first))
            last_pattern, end_rows = pattern.after, end_rows + len(first)
        ends = OutputRows(end_rows, functools.partial(ReadSuffixes, last_pattern))
        hidden = encode(view, hidden, vectors, rule, first_layer, output_rows=ends, pattern=pattern)
        features = view.final_norm(hidden)
        return features if per_image else features[0]

    def _encode_read_only(self, packed: PackedPrompts, prompts: PromptModule, keep_kv_cache: bool) -> Tensor:
        """Let the read-only prompts of every class read the KV cache of its plain tokens: [c, n, d]."""
        view: Any = self.view
        learning = torch.is_grad_enabled() and self.is_trained
        with torch.set_grad_enabled(learning):
            if learning or not keep_kv_cache:
                kv_cache = self._fill_kv_cache(packed)
            elif torch.compiler.is_compiling():
                kv_cache = self._kv_cache_in_graph(packed)
            else:
                kv_cache = self._kept_kv_cache(packed)
        patterns = [ReadSuffixes(packed.pattern, key, value) for key, value in kv_cache]
        queries = prompts().to(view.reference_weight.dtype).repeat(1, packed.num_classes, 1)
        hidden = run_read_only(view, queries, prompts.first_layer, patterns, batch_size=1)
        return view.final_norm(hidden[0].unflatten(0, (packed.num_classes, -1)))

    def _fill_kv_cache(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the plain tokens in each layer."""
        view: Any = self.view
        hidden = in_place_of(view.module.embeddings, packed.embed, view, None)
        return fill_kv_cache(view, hidden, pattern=packed.pattern)

    def _kept_kv_cache(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """Return the same, kept while the classes and the frozen tower stay."""
        state = state_of([self.base_layer], [autocast_dtype(packed.token_ids.device)])
        return self.kv_caches.get(packed, state, lambda: self._fill_kv_cache(packed))

    def stacked_kv_cache(self, packed: PackedPrompts, name: str = "") -> Tensor:
        """Return the same as one tensor [layers * 2, 1, h, rows, head size]."""
        return torch.stack([tensor for pair in self._kept_kv_cache(packed) for tensor in pair])

    def _kv_cache_in_graph(self, packed: PackedPrompts) -> list[tuple[Tensor, Tensor]]:
        """Return the same as a node of the graph that is compiled."""
        view: Any = self.view
        heads = self.config.num_attention_heads
        shape = [2 * view.num_layers, 1, heads, packed.num_rows, view.width // heads]
        weight = view.reference_weight
        autocast = autocast_dtype(weight.device)
        who = (number_of(self), "stacked_kv_cache", number_of(packed), "")
        stacked = kept(weight.detach(), *who, shape, autocast or weight.dtype, autocast)
        return list(zip(stacked[0::2], stacked[1::2], strict=True))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Make the tower's own call with prompts after the start token.

        Contexts are inserted, so the text may be that much shorter; MaPLe's replace the first words. Padding on the
        right is honoured and costs nothing. Attention weights are not available from a prompted text tower.

        Raises:
            ValueError: the adapter's prompts need to know where the class name is; padding on the left; no end token;
                `adapter_names`.
            PromptTooLongError: the text does not fit beside the prompts.
        """
        self.refuse_names(kwargs)
        prompts = self.active_prompts
        if input_ids is not None and self.reads_elsewhere:
            raise ValueError(
                "This adapter holds something for each of its classes, which says nothing of other texts, so it takes no "
                "input_ids. Call model(pixel_values=...), or disable the adapter."
            )
        if prompts is None or input_ids is None:
            flags = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
            flags |= {"attention_mask": attention_mask, "position_ids": position_ids, "return_dict": return_dict}
            output = self.base_layer(input_ids, **{k: v for k, v in flags.items() if v is not None}, **kwargs)
            return self._as_precise(output)
        self._check_placement(prompts)
        run = functools.partial(self._run, prompts=prompts)
        states = self.asked_for("output_hidden_states", output_hidden_states)
        output = in_place_of(self.base_layer, run, input_ids, attention_mask, position_ids, states)
        return output if return_dict is not False else output.to_tuple()

    def _as_precise(self, output: Any) -> Any:
        """Return an output of trained copies in float32 as the tower gives it, for a projection in half precision."""
        # The original's parameters come first.
        dtype = next(p.dtype for p in self.base_layer.parameters() if p.is_floating_point())
        if isinstance(output, tuple):
            return tuple(narrowed(value, dtype) for value in output)
        for name in ("last_hidden_state", "pooler_output"):
            if isinstance(output, dict) and name in output:
                output[name] = narrowed(output[name], dtype)
        return output

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        output_hidden_states: bool | None,
        prompts: PromptModule,
    ) -> BaseModelOutputWithPooling:
        """Run the tower with its prompts."""
        vectors = prompts()
        ends = self._check_input_ids(input_ids, prompts, vectors.shape[1])
        longest = int(ends.max()) + 1  # what follows the last end token is padding, which nothing reads
        inserts = prompts.text_placement == "insert"
        view: Any = self.view
        texts = (input_ids, position_ids, attention_mask, vectors[0], longest, inserts)
        hidden, mask = in_place_of(view.module.embeddings, self._embed, *texts)
        added = hidden.shape[1] - longest
        states = [] if output_hidden_states else None
        hidden = encode(view, hidden, vectors, InsertRows(1), states=states, pattern=mask)
        hidden = view.final_norm(hidden)
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), ends + added]
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=None if states is None else tuple(states),
        )

    def _embed(self, input_ids, position_ids, attention_mask, first_prompts, longest, inserts):
        """Return the input of the first layer, with its prompts, and the attention pattern."""
        input_ids = input_ids[:, :longest]
        batch = input_ids.shape[0]
        inserted = first_prompts.shape[0] if inserts else 0
        length = longest + inserted
        if length > self.view.max_positions:
            raise PromptTooLongError(
                f"Texts of {longest} tokens and {inserted} inserted context tokens make {length}; the text tower has "
                f"{self.view.max_positions} positions. Truncate input_ids to {self.view.max_positions - inserted}."
            )
        hidden = (insert if inserted else replace)(self.view.token_embedding(input_ids), first_prompts, 1)
        positions = torch.arange(length, device=input_ids.device).expand(batch, -1)
        if position_ids is not None:
            given = position_ids[..., :longest].expand(batch, -1)
            room = given[:, :1] + torch.arange(1, inserted + 1, device=given.device)
            positions = torch.cat([given[:, :1], room, given[:, 1:] + inserted], dim=1)
        mask = None
        if attention_mask is not None and not bool(attention_mask[:, :longest].all()):
            kept = attention_mask[:, :longest].bool()
            mask = torch.cat([kept[:, :1], kept.new_ones(batch, inserted), kept[:, 1:]], dim=1)
        view: Any = self.view  # causal, or the call was refused
        return hidden + view.position_embedding(positions), Causal(mask)

    def _check_placement(self, prompts: PromptModule) -> None:
        """Refuse prompts that have no place in texts of the caller's."""
        if not isinstance(self.view, CausalTextView):
            raise ValueError(
                f"{type(self.base_layer).__name__} takes texts with prompts padded, a class in each row, so prompts have no "
                "fixed place in input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )
        if prompts.text_placement is None:
            raise ValueError(
                "This adapter has to know where the class name is, or reads out elsewhere, so it cannot take "
                "input_ids. Call set_class_names(names) and model(pixel_values=...) instead."
            )

    def _check_input_ids(self, input_ids: Tensor, prompts: PromptModule, num_prompts: int) -> Tensor:
        """Return the position of each text's end token, [b]."""
        view: Any = self.view  # causal, see `_check_placement`
        is_end = input_ids == view.end_token_id
        if bool((input_ids[:, 0] != input_ids[0, 0]).any()) or bool(is_end[:, 0].any()):
            raise ValueError(
                "Expected texts that begin with the start token. Received padding on the left; pad right."
            )
        if not bool(is_end.any(dim=1).all()):
            row = int((~is_end.any(dim=1)).nonzero()[0])
            raise PromptTooLongError(
                f"Text {row} has no end token (id {view.end_token_id}): it was cut off. Use fewer tokens per "
                "text, with truncation=True in the tokenizer."
            )
        ends = is_end.int().argmax(dim=1)
        first_prompted = 1 + num_prompts if prompts.text_placement == "replace" else 1
        if bool((ends < first_prompted).any()):
            raise ValueError(
                f"Expected texts with at least {first_prompted - 1} words after the start token, which the prompts "
                "replace. Begin each text with the prompt's words, e.g. 'a photo of a cat.'."
            )
        return ends


def narrowed(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor in `dtype` where its own is wider, and anything else as it is."""
    is_wider = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > dtype.itemsize
    return value.to(dtype) if is_wider else value

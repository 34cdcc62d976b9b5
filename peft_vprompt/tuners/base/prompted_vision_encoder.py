"""`PromptedVisionEncoder`: an image encoder that prompts join, and what is read out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...backbones.supported import VisionView, view
from ...core.attention import ReadAll
from ...core.insertion import remove
from ...core.layer_loop import OutputRows, attention_weights, fill_kv_cache, run_read_only
from ...core.pooling import pool
from ...prompts.base import PromptModule
from ...prompts.coupling import LinearCoupling
from .prompted_encoder import PromptedEncoder


if TYPE_CHECKING:
    from .prompted_text_encoder import PromptedTextEncoder


class PromptedVisionEncoder(PromptedEncoder):
    """An image encoder with prompts."""

    #: The text tower whose prompts are mapped to visual ones. A tuple keeps it out of this module's own children.
    text_partner: tuple[PromptedTextEncoder, ...] = ()

    def patch_layers(self, wanted: bool) -> None:
        """Also let the layers take more rows than the model itself has."""
        super().patch_layers(wanted)
        (self.tower.attach if wanted else self.tower.detach)()

    @property
    def tower(self) -> VisionView:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    def prompts(self, batch_size: int) -> Tensor | None:
        """Visual prompts in use, [j, n, d] or [j, b, n, d]; None without."""
        return None if self.active_prompts is None else self.adapter_prompts(self.active_adapters[0], batch_size)

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
        classification head reads it there, whether it takes the class token or the mean of the patches. And where a
        head is known to read some rows only, these alone are computed in the last layer.

        RPO's read_only change nothing here: what they have read is asked for with `read`.

        Raises:
            ValueError: an `attention_mask`, or images of another size than the position embeddings are made for.
        """
        holder = self.active_prompts
        if pixel_values is None or holder is None or holder.read_only:
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
        only_head = for_head and holder.pooling == "original" and states is None and not output_attentions
        output_rows = OutputRows(tower.head_rows, ReadAll) if only_head and tower.head_rows else None
        with attention_weights(tower, bool(output_attentions)) as weights:
            hidden, rows = self._encode(
                pixel_values, states, output_rows, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        whole = output_rows is not None or tower.keeps_prompts
        output = tower.finish(hidden if whole else remove(hidden, rows), **self._options(kwargs))
        output.hidden_states = None if states is None else tuple(states)
        output.attentions = tuple(weights) if output_attentions else None
        if holder.pooling != "original":
            feature = pool(tower.final_norm(hidden), holder.pooling, tower.num_prefix_tokens, rows)
            self._put_feature(output, feature, for_head)
        return output if return_dict is not False else output.to_tuple()

    def _encode(self, pixel_values: Tensor, states=None, output_rows=None, **embed_options) -> tuple[Tensor, slice]:
        """Image tokens and prompts after the last layer [b, s, d], and which rows are prompts; see `encode.encode`."""
        tower, holder, prompts = self.tower, self.active_prompts, None
        hidden = self._embed(pixel_values, holder, **embed_options)
        layer_options = tower.layer_options(pixel_values, **self._options(embed_options))
        if holder is None or holder.read_only:
            return tower.encode(hidden, None, None, 0, states, output_rows, **layer_options), slice(0, 0)
        prompts, rule = self.prompts(hidden.shape[0]), holder.insertion_rule(tower, hidden.shape[1])
        rows = rule.prompt_rows(0 if prompts is None else prompts[0].shape[-2])
        return tower.encode(hidden, prompts, rule, holder.first_layer, states, output_rows, **layer_options), rows

    def _options(self, kwargs: dict) -> dict:
        """Those of a call's keyword arguments that the tower understands."""
        return {name: kwargs[name] for name in self.tower.embed_options if kwargs.get(name) is not None}

    def _embed(
        self,
        pixel_values: Tensor,
        holder: PromptModule | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> Tensor:
        """Image tokens, with what `holder` puts into the images, after checks."""
        self.tower.check_images(pixel_values, interpolate_pos_encoding)
        options = self._options(kwargs) | {"interpolate_pos_encoding": interpolate_pos_encoding}
        if holder is None:
            return self.tower.embed(pixel_values, **options)
        return holder.embed(self.tower, pixel_values, **options)

    def _put_feature(self, output: BaseModelOutputWithPooling, feature: Tensor, for_head: bool) -> None:
        """Put a feature [b, d] of our own where callers of the tower read one."""
        output.pooler_output = self.tower.pooled_output(feature)
        if for_head:
            rows = self.tower.num_head_rows or output.last_hidden_state.shape[1]
            output.last_hidden_state = feature.unsqueeze(1).expand(-1, rows, -1)

    def pooled(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """The pooled output of `forward` [b, d]; of the last layer only what is read out is computed."""
        tower, holder = self.tower, self.active_prompts
        own_way = holder is not None and holder.pooling != "original"
        whole = self.disable_adapters or own_way or tower.pooled_rows is None
        if whole:
            return self(pixel_values, **kwargs).pooler_output
        output_rows = OutputRows(tower.pooled_rows, ReadAll)
        return tower.pool(self._encode(pixel_values, output_rows=output_rows, **kwargs)[0])

    def read(self, pixel_values: Tensor, **embed_options) -> Tensor:
        """What the active adapter's read-only prompts have read, after the final norm: [b, n, d]."""
        return self.read_together(pixel_values, self.active_adapters, **embed_options)[0]

    def read_together(self, pixel_values: Tensor, adapter_names: Sequence[str], **embed_options) -> list[Tensor]:
        """What the read-only prompts of each adapter have read, after the final norm: [b, n, d].

        The plain tokens run once for all adapters, exactly as in the tower itself, and leave a record of their keys and
        values; without gradients, unless the images or the tower want some. The prompts then run alone over the record:
        as they read no prompt either, those of all adapters that start at the same layers run together.
        """
        tower = self.tower
        with torch.set_grad_enabled(torch.is_grad_enabled() and (pixel_values.requires_grad or self.is_trained)):
            hidden = tower.prepare(self._embed(pixel_values, **embed_options))
            patterns = [ReadAll(key, value) for key, value in fill_kv_cache(tower, hidden)]
        groups: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name in adapter_names:
            prompts = self.adapter_prompts(name, hidden.shape[0]).to(hidden.dtype)
            groups.setdefault((self.holder(name).first_layer, prompts.shape[0]), {})[name] = prompts
        results = {}
        for (first, _), members in groups.items():
            read_only = torch.cat(list(members.values()), dim=-2)
            if first == 0:
                read_only = torch.cat([tower.prepare(read_only[:1]), read_only[1:]])
            features = tower.final_norm(run_read_only(tower, read_only, first, patterns, hidden.shape[0]))
            counts = [prompts.shape[-2] for prompts in members.values()]
            results |= zip(members, features.split(counts, dim=1), strict=True)
        return [results[name] for name in adapter_names]

    def _plain(self, pixel_values: Tensor | None, for_head: bool, flags: dict, **kwargs):
        """The wrapped tower's own output; where the active adapter's read_only are to be read out, with their mean."""
        holder = self.active_prompts
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

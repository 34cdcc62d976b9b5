"""`PromptedVisionEncoder`: an image encoder that prompts join, and what is read out of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...backbones.supported import view as view_of
from ...backbones.vision import VisionView
from ...core.attention import ReadAll
from ...core.batch_norm import hold_statistics
from ...core.insertion import InsertionRule, remove
from ...core.layer_loop import OutputRows, attention_weights, fill_kv_cache, run_read_only
from ...core.plain_modules import in_place_of, is_plain
from ...core.pooling import pool
from ...prompts.base import PromptModule
from .prompted_encoder import PromptedEncoder


if TYPE_CHECKING:
    from .prompted_text_encoder import PromptedTextEncoder


class Start(NamedTuple):
    """What the layer loop starts from.

    Attributes:
        arguments: image tokens [b, s, d], prompts, insertion rule and first prompted layer, for `VisionView.encode`.
        rows: which rows will be prompts and nothing else.
        layer_options: keyword arguments of the layers.
    """

    arguments: tuple[Tensor, Tensor | Sequence[Tensor] | None, InsertionRule | None, int]
    rows: slice
    layer_options: dict


class UnpooledOutput(BaseModelOutputWithPooling):
    """The output of a tower whose read-only prompts are read out in the place of its pooled row."""

    @property
    def pooler_output(self) -> Tensor:
        """Refuse: it would be that of the model without prompts.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "This adapter reads out elsewhere: each of its prompts gives an image a feature, which is compared with that "
            "of its pair. Call set_class_names(names) and model(pixel_values=...), or encode_images(pixel_values), of "
            "the PEFT model; or disable the adapter for the features of the frozen model."
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        """Refuse the pooled output by its name, too."""
        return self.pooler_output if key == "pooler_output" else super().__getitem__(key)

    def to_tuple(self) -> tuple:
        """Refuse, as a tuple has the pooled output.

        Raises:
            ValueError: always.
        """
        return (self.pooler_output,)


class PromptedVisionEncoder(PromptedEncoder):
    """An image encoder with prompts.

    Attributes:
        has_stock_head: whether the head reads the rows that transformers' own classifier does.
    """

    has_stock_head = True

    def __init__(self, base_layer: nn.Module, text_encoder: PromptedTextEncoder | None = None):
        super().__init__(base_layer)
        self.link(text_encoder)

    def link(self, text_encoder: PromptedTextEncoder | None) -> None:
        """Remember the text tower whose prompts are mapped to visual ones.

        Said anew to replicas of a data-parallel model, whose parts are copied one by one. A tuple keeps the text tower
        out of this module's own children.
        """
        self._text_encoder = (text_encoder,)

    def train(self, mode: bool = True) -> PromptedVisionEncoder:
        """Switch between training and evaluation; norms of a frozen encoder keep their running statistics."""
        super().train(mode)
        hold_statistics(self.base_layer)
        return self

    def patch_layers(self, wanted: bool) -> None:
        """Also let the layers take more rows than the model itself has."""
        super().patch_layers(wanted)
        if wanted:
            self.view.attach()
        else:
            self.view.detach()

    @property
    def view(self) -> VisionView:
        """The view of the wrapped tower."""
        return view_of(self.base_layer)  # pyrefly: ignore[bad-return]  # tables of image encoders have no other

    def prompt_vectors(self, adapter_name: str, batch_size: int) -> Tensor | Sequence[Tensor] | None:
        """Return the visual prompts of an adapter that has some, [j, n, d] or [j, b, n, d]."""
        (text_encoder,) = self._text_encoder
        text = None if text_encoder is None else text_encoder.prompts_of(adapter_name)
        text_prompts = None if text is None else text.for_images()
        prompts: Any = self.prompts_of(adapter_name)
        return prompts(text_prompts=text_prompts, view=self.view, batch_size=batch_size)

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
    ) -> BaseModelOutputWithPooling | tuple:
        """Make the tower's own call.

        `last_hidden_state` has the rows the model itself would give it, so that its pooling and whoever reads its
        patches never sees a prompt; only ViT's keeps the prompts. `hidden_states` have them always.

        Where an adapter reads out otherwise than the tower, `pooler_output` is its feature. `for_head` (see
        `hf_patches.ask_for_feature`) then also puts the feature into all rows of a short `last_hidden_state`: a
        classification head reads it there, whether it takes the class token or the mean of the patches. And where
        transformers' own head reads some rows only, these alone are computed in the last layer.

        RPO's read-only prompts change no row, so the output is the tower's own but for the pooled one, which is refused:
        what they have read is asked for with `encode_read_only`.

        Raises:
            ValueError: an `attention_mask`, images of another size than the position embeddings are made for, or
                `adapter_names`.
        """
        self.refuse_names(kwargs)
        prompts = self.active_prompts
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        flags = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": return_dict}
        if pixel_values is None or prompts is None or prompts.read_only:
            return self._run_plain(
                pixel_values, for_head, asked | flags | {"attention_mask": attention_mask}, **kwargs
            )
        flags |= {name: self.asked_for(name, given) for name, given in asked.items()}
        if attention_mask is not None:
            raise ValueError(
                "Expected no attention_mask: every image token and prompt is visible to every other. "
                f"Received: attention_mask of shape {list(attention_mask.shape)}."
            )
        if flags["output_attentions"] and not self.view.gives_attentions:
            raise ValueError(
                f"Attention weights of a prompted {type(self.base_layer).__name__} are not available: prompts stand in "
                "every window. Received: output_attentions=True. Leave it out, or disable the adapter."
            )
        self.view.check_images(pixel_values, interpolate_pos_encoding)
        if is_plain(self.base_layer):
            return self._run(pixel_values, prompts, for_head, flags, **kwargs)
        run = functools.partial(self._run, prompts=prompts, for_head=for_head, flags=flags)
        return in_place_of(self.base_layer, run, pixel_values, **kwargs)

    def _run(self, pixel_values: Tensor, prompts: PromptModule, for_head: bool, flags: dict, **kwargs) -> Any:
        """Run the tower with its prompts on images that were checked."""
        view = self.view
        states = [] if flags.get("output_hidden_states") else None
        asked_whole = prompts.pooling != "original" or states is not None or flags.get("output_attentions")
        some_rows = None if asked_whole or not (for_head and self.has_stock_head) else view.head_rows
        output_rows = OutputRows(some_rows, ReadAll) if some_rows else None
        interpolate = flags.get("interpolate_pos_encoding")
        with attention_weights(view, bool(flags.get("output_attentions"))) as weights:
            start = self._start(pixel_values, prompts, interpolate_pos_encoding=interpolate, **kwargs)
            hidden = view.encode(*start.arguments, states, output_rows, **start.layer_options)
        whole = output_rows is not None or view.keeps_prompts
        output = view.finish(hidden if whole else remove(hidden, start.rows), **self._options(kwargs))
        output.hidden_states = None if states is None else tuple(states)
        output.attentions = tuple(weights) if flags.get("output_attentions") else None
        if prompts.pooling != "original":
            feature = pool(view.final_norm(hidden), prompts.pooling, view.num_prefix_tokens, start.rows)
            self._put_feature(output, feature, for_head)
        return output if flags.get("return_dict") is not False else output.to_tuple()

    def _start(self, pixel_values: Tensor, prompts: PromptModule | None, **embed_options) -> Start:
        """Embed images that were checked, and say how their prompts are inserted."""
        view = self.view
        hidden = self._embed(pixel_values, prompts, **embed_options)
        layer_options = view.layer_options(pixel_values, **self._options(embed_options))
        if prompts is None or prompts.read_only:
            return Start((hidden, None, None, 0), slice(0, 0), layer_options)
        vectors = self.prompt_vectors(self.active_adapters[0], hidden.shape[0])
        rule = prompts.insertion_rule(view, hidden.shape[1])
        rows = rule.prompt_rows(0 if vectors is None else vectors[0].shape[-2])
        return Start((hidden, vectors, rule, prompts.first_layer), rows, layer_options)

    def _options(self, kwargs: dict) -> dict:
        """Return those of a call's keyword arguments that the tower understands."""
        return {name: kwargs[name] for name in self.view.embed_options if kwargs.get(name) is not None}

    def _embed(
        self,
        pixel_values: Tensor,
        prompts: PromptModule | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> Tensor:
        """Return the image tokens, with what `prompts` put into the images."""
        options = self._options(kwargs) | {"interpolate_pos_encoding": interpolate_pos_encoding}
        if prompts is None:
            return self.view.embed(pixel_values, **options)
        return prompts.embed(self.view, pixel_values, **options)

    def _put_feature(self, output: BaseModelOutputWithPooling, feature: Tensor, for_head: bool) -> None:
        """Put a feature [b, d] of our own where callers of the tower read one."""
        output.pooler_output = self.view.pooled_output(feature)
        if for_head:
            # pyrefly: ignore[missing-attribute]  # towers give it
            rows = self.view.num_head_rows or output.last_hidden_state.shape[1]
            output.last_hidden_state = feature.unsqueeze(1).expand(-1, rows, -1)

    def pooled(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Return the pooled output of `forward` [b, d] for images that were checked; [b, n, d] that read-only prompts read.

        Of the last layer only the rows that are pooled are computed.
        """
        view = self.view
        prompts = self.active_prompts
        if prompts is not None and prompts.read_only:
            return self.encode_read_only(pixel_values, self.active_adapters, **kwargs)[0]
        as_called = not (
            is_plain(self) and is_plain(self.base_layer)
        )  # what listens to the tower hears its own output
        if prompts is not None and prompts.pooling != "original" and not as_called:
            return self._run(pixel_values, prompts, False, kwargs).pooler_output
        if as_called or self.disable_adapters or view.pooled_rows is None:
            return self(pixel_values, **kwargs).pooler_output  # pyrefly: ignore[not-callable]  # nn.Module is
        start = self._start(pixel_values, prompts, **kwargs)
        hidden = view.encode(*start.arguments, None, OutputRows(view.pooled_rows, ReadAll), **start.layer_options)
        return view.pool(hidden)

    @property
    def has_second_feature(self) -> bool:
        """Whether the active prompts are an image feature beside the tower's own."""
        prompts = self.active_prompts
        return prompts is not None and prompts.has_feature

    def pooled_and_prompts(
        self, pixel_values: Tensor, states: list[Tensor] | None = None, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled output [b, d] and what has become of the prompts, after the final norm, [b, n, d].

        The images were checked. Of the last layer only these rows are computed, where the tower pools its first row.

        Args:
            pixel_values: the images.
            states: a list that gets the rows of the first layer's input and of each layer's output.
            kwargs: as for `pooled`.
        """
        if not is_plain(self.base_layer):
            run = functools.partial(self._pooled_and_prompts, states=states)
            return in_place_of(self.base_layer, run, pixel_values, **kwargs)
        return self._pooled_and_prompts(pixel_values, states, **kwargs)

    def _pooled_and_prompts(
        self, pixel_values: Tensor, states: list[Tensor] | None, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Do so as what the tower computes."""
        view = self.view
        start = self._start(pixel_values, self.active_prompts, **kwargs)
        few = view.pooled_rows == slice(0, 1)
        output_rows = OutputRows(slice(0, start.rows.stop), ReadAll) if few else None
        hidden = view.encode(*start.arguments, states, output_rows, **start.layer_options)
        if states is not None and output_rows is not None:
            states.append(hidden)
        return view.pool(hidden[:, view.pooled_rows] if few else hidden), view.final_norm(hidden[:, start.rows])

    def encode_read_only(self, pixel_values: Tensor, adapter_names: Sequence[str], **embed_options) -> list[Tensor]:
        """Return what the read-only prompts of each adapter have read, after the final norm: [b, n, d].

        The images were checked. The plain tokens run once for all adapters, exactly as in the tower itself, and leave
        their keys and values; without gradients, unless the images or the tower want some. The prompts then run alone
        over this KV cache: as they read no prompt either, those of all adapters that start at the same layers run
        together.
        """
        if not is_plain(self.base_layer):
            run = functools.partial(self._encode_read_only, adapter_names=adapter_names)
            return in_place_of(self.base_layer, run, pixel_values, **embed_options)
        return self._encode_read_only(pixel_values, adapter_names, **embed_options)

    def _encode_read_only(self, pixel_values: Tensor, adapter_names: Sequence[str], **embed_options) -> list[Tensor]:
        """Do so as what the tower computes."""
        view = self.view
        with torch.set_grad_enabled(torch.is_grad_enabled() and (pixel_values.requires_grad or self.is_trained)):
            hidden = view.prepare(self._embed(pixel_values, **embed_options))
            patterns = [ReadAll(key, value) for key, value in fill_kv_cache(view, hidden)]
        groups: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name in adapter_names:
            prompts: Any = self.prompts_of(name)  # read-only ones, one tensor for all layers
            vectors: Any = self.prompt_vectors(name, hidden.shape[0])
            vectors = vectors.to(hidden.dtype)
            groups.setdefault((prompts.first_layer, vectors.shape[0]), {})[name] = vectors
        results = {}
        for (first, _), members in groups.items():
            queries = torch.cat(list(members.values()), dim=-2)
            if first == 0:
                queries = torch.cat([view.prepare(queries[:1]), queries[1:]])
            features = view.final_norm(run_read_only(view, queries, first, patterns, hidden.shape[0]))
            counts = [vectors.shape[-2] for vectors in members.values()]
            results |= zip(members, features.split(counts, dim=1), strict=True)
        return [results[name] for name in adapter_names]

    def _run_plain(self, pixel_values: Tensor | None, for_head: bool, flags: dict, **kwargs):
        """Return the wrapped tower's own output; where read-only prompts are to be read out, with their mean."""
        prompts = self.active_prompts
        flags = {name: value for name, value in flags.items() if value is not None}
        if pixel_values is None or prompts is None:
            return self.base_layer(pixel_values, **flags, **kwargs)
        if prompts.pooling == "original":
            whole = self.base_layer(pixel_values, **flags | {"return_dict": True}, **kwargs)
            output = type(whole)(**{name: value for name, value in whole.items() if name != "pooler_output"})
            output.__class__ = UnpooledOutput
            return output if flags.get("return_dict", True) else output.to_tuple()
        as_tuple = flags.pop("return_dict", True) is False
        more_than_feature = flags.get("output_hidden_states") or flags.get("output_attentions")
        output = BaseModelOutputWithPooling()
        if more_than_feature or not for_head:
            output = self.base_layer(pixel_values, **flags, **kwargs)
        interpolate = flags.get("interpolate_pos_encoding")
        self.view.check_images(pixel_values, interpolate)
        (read,) = self.encode_read_only(
            pixel_values, self.active_adapters, interpolate_pos_encoding=interpolate, **kwargs
        )
        self._put_feature(output, read.mean(dim=1), for_head)
        return output.to_tuple() if as_tuple else output

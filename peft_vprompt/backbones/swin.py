"""Swin and Swin v2: attention in windows, stages of growing width.

Prompts stand in front of the image's tokens and enter every window of their image, without relative position and
visible to all of it. What the windows made of a prompt is averaged over the image's windows; between stages a prompt is
merged like four equal patches. Source: KMnP/vpt `src/models/vit_prompt/swin_transformer.py`, whose windows read the
prompts of other images of the batch; here no image sees another.

Shapes: b = batch, n = prompts, h, w = grid of tokens, s = n + h * w rows, d = width, r = n + rows of one window,
k = windows of one image, a = heads.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from ..core.checkpointing import recompute
from ..core.insertion import InsertionRule, insert_prompts
from ..core.layer_loop import OutputRows
from ..core.offloading import tensor_of
from ..core.plain_modules import in_place_of, modeling_file
from .layer_parts import split_heads
from .vision import VisionView, resize_positions


class SwinView(VisionView):
    """`SwinModel`. A layer is a block; `embed` gives a grid of tokens [b, h, w, d]."""

    num_prefix_tokens = 0
    prompts_first = True
    embed_options = ("bool_masked_pos",)
    keeps_prompts = True
    gives_attentions = False
    no_read_only = "it mixes what the prompts of all windows have read into one prompt"

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.module.encoder.layers for block in stage.blocks]

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Blocks and width of each stage."""
        return [(depth, self.width * 2**index) for index, depth in enumerate(self.module.config.depths)]

    @property
    def width(self) -> int:
        """Size of a token in the first stage."""
        return self.module.config.embed_dim

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.patch_embedding.weight

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the block's `SwinAttention`."""
        return layer.attention

    @property
    def output_class(self) -> type[ModelOutput]:
        """The model's own; its file is loaded already, and not before there is such a model."""
        from transformers.models.swin.modeling_swin import SwinModelOutput

        return SwinModelOutput

    @property
    def fixed_size(self) -> bool:
        """Absolute positions, if there are any, belong to one image size."""
        return self.module.embeddings.position_embeddings is not None

    # ---- embedding --------------------------------------------------------------------------------------------

    def embed(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Make patches [b, h, w, d], normalised; positions are relative and belong to the windows."""
        tokens, grid = self.module.embeddings(
            pixel_values.to(self.reference_weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=bool(interpolate_pos_encoding),
        )
        return tokens.unflatten(1, grid)

    @property
    def patch_embedding(self) -> nn.Module:
        """`projection`."""
        return self.module.embeddings.patch_embeddings.projection

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make patches [b, h, w, d], normalised, of embedded ones [b, d, h, w]."""
        embeddings = self.module.embeddings
        tokens = embeddings.norm(grid.permute(0, 2, 3, 1))
        if embeddings.position_embeddings is not None:
            size = tuple(grid.shape[-2:])
            positions = resize_positions(tensor_of(embeddings, "position_embeddings"), size, self.grid_size, prefix=0)
            tokens = tokens + positions.unflatten(1, size)
        return embeddings.dropout(tokens)

    # ---- layers -----------------------------------------------------------------------------------------------

    def encode(
        self,
        hidden: Tensor,
        prompts: Tensor | Sequence[Tensor] | None,
        rule: InsertionRule | None,
        first_layer: int = 0,
        states: list[Tensor] | None = None,
        output_rows: OutputRows | None = None,
        **layer_options,
    ) -> Tensor:
        """Run tokens [b, h, w, d] and prompts through all stages: prompts and tokens [b, s, d] of the last one.

        As `layer_loop.encode`, but prompts have the width of their stage, `states` collects the input of the first and the
        output of each stage, and all rows of the last layer are needed (`output_rows` is not looked at).
        """
        height, width = hidden.shape[1:3]
        grid = (height, width)
        hidden = hidden.flatten(1, 2)
        step = -first_layer
        if states is not None:
            states.append(hidden)
        for stage in self.module.encoder.layers:
            run = functools.partial(self.run_stage, stage, prompts=prompts, rule=rule, step=step, grid=grid)
            hidden = in_place_of(stage, run, hidden)
            step += len(stage.blocks)
            if stage.downsample is not None:
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            if states is not None:
                states.append(hidden)
        return hidden

    def run_stage(
        self,
        stage: nn.Module,
        hidden: Tensor,
        prompts: Tensor | Sequence[Tensor] | None,
        rule: InsertionRule | None,
        step: int,
        grid: tuple[int, int],
    ) -> Tensor:
        """Run one stage, `SwinStage`: its first block is the one that prompts are inserted into at `step`."""
        for number, block in enumerate(stage.blocks, step):
            hidden = insert_prompts(hidden, prompts, rule, number)
            run = functools.partial(self.run_block, block, grid=grid)
            hidden = recompute(stage, functools.partial(in_place_of, block, run), hidden)
        return hidden if stage.downsample is None else merge(stage.downsample, hidden, grid)

    def run_block(self, block: nn.Module, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run one block on prompts and tokens [b, s, d]: `SwinLayer`, its submodules in its order."""
        block.set_shift_and_window_size(grid)
        attended = self.attend_windows(block, block.layernorm_before(hidden), grid)
        hidden = hidden + block.drop_path(block.dropout(attended))
        return hidden + block.dropout(block.mlp(block.layernorm_after(hidden)))

    def attend_windows(self, block: nn.Module, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend in the (shifted) windows, prompts in each of them: [b, s, d] to [b, s, d]."""
        modeling = modeling_file(block)
        batch = hidden.shape[0]
        count = hidden.shape[1] - grid[0] * grid[1]
        size = block.window_size
        shift = block.shift_size
        prompts = hidden[:, :count]
        image = hidden[:, count:].unflatten(1, grid)
        image, _ = block.maybe_pad(image, *grid)
        padded = tuple(image.shape[1:3])
        mask = self.shift_mask(block, padded, hidden)
        image = torch.roll(image, (-shift, -shift), (1, 2)) if shift else image
        windows = modeling.window_partition(image, size).flatten(1, 2)  # an image's windows lie side by side
        num_windows = windows.shape[0] // batch
        rows = torch.cat([prompts.repeat_interleave(num_windows, dim=0), windows], dim=1)
        rows = self.attend(block.attention, rows, mask)
        prompts = rows[:, :count].unflatten(0, (batch, num_windows)).mean(dim=1)
        image = modeling.window_reverse(rows[:, count:].unflatten(1, (size, size)).contiguous(), size, *padded)
        image = torch.roll(image, (shift, shift), (1, 2)) if shift else image
        return torch.cat([prompts, image[:, : grid[0], : grid[1]].flatten(1, 2)], dim=1)

    def attend(self, attention: nn.Module, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Run `SwinAttention` on prompts and windows [b * k, r, d].

        `mask` [k, tokens, tokens] keeps shifted parts apart.
        """
        query, key, value = (
            split_heads(project(rows), attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        dropout = attention.attention_dropout if attention.training else 0.0
        bias = attention.relative_position_bias()[0]
        return attention.o_proj(attend_biased(query * query.shape[-1] ** -0.5, key, value, bias, mask, dropout))

    def shift_mask(self, block: nn.Module, size: tuple[int, int], hidden: Tensor) -> Tensor | None:
        """Return which tokens of a shifted window were together before, [k, tokens, tokens]; None without a shift."""
        return block.get_attn_mask(*size, dtype=hidden.dtype, device=hidden.device)

    # ---- readout ----------------------------------------------------------------------------------------------

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `layernorm` on [..., d]."""
        return self.module.layernorm(hidden)

    def finish(self, hidden: Tensor, **kwargs) -> ModelOutput:
        """Normalise [b, s, d], and take the mean over prompts and tokens where the model pools.

        Stages that carry prompts are no grids: there are no `reshaped_hidden_states`.
        """
        hidden = self.final_norm(hidden)
        pooler = self.module.pooler
        pooled = None if pooler is None else pooler(hidden.transpose(1, 2)).flatten(1)
        return self.output_class(last_hidden_state=hidden, pooler_output=pooled)


class Swinv2View(SwinView):
    """`Swinv2Model`: cosine attention, continuous position bias, norms after attention and feed-forward layer."""

    @property
    def output_class(self) -> type[ModelOutput]:
        """The model's own."""
        from transformers.models.swinv2.modeling_swinv2 import Swinv2ModelOutput

        return Swinv2ModelOutput

    def run_block(self, block: nn.Module, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run one block on prompts and tokens [b, s, d]: `Swinv2Layer`, its submodules in its order."""
        attended = block.layernorm_before(self.attend_windows(block, hidden, grid))
        hidden = hidden + block.drop_path(attended)
        return hidden + block.drop_path(block.layernorm_after(block.output(block.intermediate(hidden))))

    def attend(self, attention: nn.Module, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Run `Swinv2Attention` on prompts and windows [b * k, r, d].

        Scores are cosines, each head's with a temperature of its own; the bias, from 0 to 16, comes of the distance by
        a small network.
        """
        inner = attention.self
        query, key, value = (
            split_heads(project(rows), inner.attention_head_size) for project in (inner.query, inner.key, inner.value)
        )
        temperature = inner.logit_scale.clamp(max=math.log(100.0)).exp()
        query = F.normalize(query, dim=-1) * temperature
        key = F.normalize(key, dim=-1)
        table = inner.continuous_position_bias_mlp(inner.relative_coords_table).flatten(0, -2)
        bias = 16 * torch.sigmoid(look_up(table, inner.relative_position_index))
        dropout = inner.dropout.p if attention.training else 0.0
        return attention.output(attend_biased(query, key, value, bias, mask, dropout), rows)

    def shift_mask(self, block: nn.Module, size: tuple[int, int], hidden: Tensor) -> Tensor | None:
        """Return which tokens of a shifted window were together before, [k, tokens, tokens]; None without a shift."""
        # transformers before 5.18 make it on the CPU.
        takes_device = "device" in inspect.signature(block.get_attn_mask).parameters
        mask = block.get_attn_mask(*size, dtype=hidden.dtype, **({"device": hidden.device} if takes_device else {}))
        return None if mask is None else mask.to(hidden.device)


def attend_biased(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attend among prompts and windows, [b * k, a, r, head size]: [b * k, r, d].

    The products of `query` and `key` are the scores; `bias` [a, tokens, tokens] and `mask` [k, tokens, tokens] are added
    to those of tokens.
    """
    bias = window_bias(bias, mask, value).to(value.dtype)
    output = F.scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, bias, dropout, scale=1.0
    )
    return output.transpose(1, 2).flatten(2)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Look up the bias [a, tokens, tokens] of each pair's distance, `index` [tokens, tokens], in `table` [distances, a]."""
    return table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)


def window_bias(bias: Tensor, mask: Tensor | None, value: Tensor) -> Tensor:
    """Make what is added to the scores of prompts and windows, [1 or b * k, a, r, r].

    `value` are the values of all rows, [b * k, a, r, head size]. The relative position `bias` [a, tokens, tokens] and the `mask` [k, tokens, tokens] have rows and columns of zero for
    the prompts.
    """
    bias = bias.unsqueeze(0)
    if mask is not None:
        bias = (bias + mask.unsqueeze(1)).repeat(value.shape[0] // mask.shape[0], 1, 1, 1)
    count = value.shape[2] - bias.shape[-1]
    return F.pad(bias, (count, 0, count, 0))


def merge(downsample: nn.Module, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Merge patches between two stages: four tokens of [b, s, d] become one, and so do four copies of each prompt."""
    count = hidden.shape[1] - grid[0] * grid[1]
    image = downsample(hidden[:, count:], grid)
    if count == 0:
        return image
    squares = hidden[:, :count].repeat_interleave(2, dim=1).repeat(1, 2, 1)  # each prompt fills a square of 2 x 2
    return torch.cat([downsample(squares, (2, 2 * count)), image], dim=1)

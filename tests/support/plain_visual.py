"""Visual prompts the plain way, written from the papers for comparison: whole images, loops over windows, one matrix.

Only weights are taken from the models: no layer, no patch embedding and no attention of transformers is called here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


def patches(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Patch embedding by cutting and one matrix product: [b, h, w, d]."""
    size = weight.shape[-1]
    cut = pixels.unfold(2, size, size).unfold(3, size, size)  # [b, c, h, w, size, size]
    tokens = torch.einsum("bchwxy,dcxy->bhwd", cut, weight)
    return tokens if bias is None else tokens + bias


def resize(grid: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with aligned corners, [h, w, d] to [height, width, d], by two small matrices."""

    def weights(new: int, old: int) -> Tensor:
        matrix = torch.zeros(new, old)
        for row in range(new):
            place = row * (old - 1) / max(new - 1, 1)
            low = min(int(math.floor(place + 1e-9)), old - 1)
            matrix[row, low] += 1 - (place - low)
            if low + 1 < old:
                matrix[row, low + 1] += place - low
        return matrix

    return torch.einsum("yh,xw,hwd->yxd", weights(height, grid.shape[0]), weights(width, grid.shape[1]), grid)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    """Softmax attention of [r, d] rows, head by head; `bias` [heads, r, r]."""
    outputs = []
    for head in range(heads):
        part = slice(head * query.shape[1] // heads, (head + 1) * query.shape[1] // heads)
        scores = query[:, part] @ key[:, part].t() * scale
        outputs.append((scores if bias is None else scores + bias[head]).softmax(-1) @ value[:, part])
    return torch.cat(outputs, dim=1)


def vit_layer(layer: nn.Module, rows: Tensor, visible: Tensor | None = None) -> Tensor:
    """One ViT layer on one image's rows [s, d]; `visible` [s, s] says which row may read which."""
    inner, normed = layer.attention, layer.layernorm_before(rows)
    query, key, value = inner.q_proj(normed), inner.k_proj(normed), inner.v_proj(normed)
    bias = None if visible is None else torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    heads = inner.num_attention_heads
    bias = None if bias is None else bias.expand(heads, -1, -1)
    rows = rows + inner.o_proj(attention(query, key, value, heads, inner.head_dim**-0.5, bias))
    return rows + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.layernorm_after(rows))))


def vit_tokens(vit: nn.Module, pixel_values: Tensor, location: str, learned: dict[str, Tensor], count: int) -> Tensor:
    """Class token and patches with positions [b, s, d], with the pixels of the locations that are pixels."""
    embeddings = vit.embeddings
    convolution, positions = embeddings.patch_embeddings.projection, embeddings.position_embeddings[0]
    weight, bias = convolution.weight, convolution.bias
    old = [edge // weight.shape[-1] for edge in embeddings.patch_embeddings.image_size]
    if location == "pad":
        mean, std = IMAGENET
        sides, ends = ((learned[name][0] - mean) / std for name in ("left_right", "top_bottom"))
        height, width = pixel_values.shape[2:]
        canvas = torch.zeros(len(pixel_values), 3, height + 2 * count, width + 2 * count)
        canvas[:, :, count:-count, count:-count] = pixel_values
        canvas = canvas.clone()
        canvas[:, :, count:-count, :count], canvas[:, :, count:-count, -count:] = sides.split(count, dim=2)
        canvas[:, :, :count], canvas[:, :, -count:] = ends.split(count, dim=1)
        pixel_values = canvas
    if location == "below":
        weight, bias = learned["patch_weight"], learned["patch_bias"]
        grid = patches(pixel_values, weight[:, :3], bias) + patches(learned["pixels"], weight[:, 3:], None)
    else:
        grid = patches(pixel_values, weight, bias)
    places = resize(positions[1:].unflatten(0, old), *grid.shape[1:3])
    class_token = (embeddings.cls_token[0] + positions[:1]).expand(len(grid), -1, -1)
    return torch.cat([class_token, (grid + places).flatten(1, 2)], dim=1)


def vit_prompts(vit: nn.Module, config, learned: dict[str, Tensor]) -> list[Tensor]:
    """The prompts [n, d] of each prompted layer."""
    if config.location.startswith("prepend-pixel"):
        convolution, pixels = vit.embeddings.patch_embeddings.projection, learned["pixels"]
        if config.location.endswith("imgnettransform"):
            pixels = (pixels - IMAGENET[0]) / IMAGENET[1]
        return [patches(pixels, convolution.weight, convolution.bias)[0, 0]]
    tokens = learned.get("tokens", torch.zeros(0, 0, 0))
    if config.projection_dim:
        tokens = tokens @ learned["projection_weight"].t() + learned["projection_bias"]
    return list(tokens) * (len(vit.layers) - config.first_layer if config.deep_shared else 1)


def plain_vit(model: nn.Module, pixel_values: Tensor, config, learned: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Final tokens [b, s, d] and the feature [b, d] that the head reads, on a ViT without adapters."""
    vit, encoded, features = model.vit, [], []
    prompts, count = vit_prompts(vit, config, learned), config.num_virtual_tokens
    for rows in vit_tokens(vit, pixel_values, config.location, learned, count):
        present = 0
        for index, layer in enumerate(vit.layers):
            if 0 <= (step := index - config.first_layer) < len(prompts):
                if config.location in ("add", "add-1"):
                    rows = rows + prompts[step]
                else:
                    rows = torch.cat([rows[:1], prompts[step], rows[1 + present :]])
                    present = len(prompts[step])
            rows = vit_layer(layer, rows)
        rows = vit.layernorm(rows)
        read = {
            "original": rows[:1],
            "imgprompt_pool": rows[1:],
            "img_pool": rows[1 + present :],
            "prompt_pool": rows[1 : 1 + present],
        }[config.pooling]
        encoded.append(rows)
        features.append(read.mean(0))
    return torch.stack(encoded), torch.stack(features)


def plain_read_only(model: nn.Module, pixel_values: Tensor, config, prompts: list[Tensor]) -> Tensor:
    """The mean [b, d] over read-only prompts: plain tokens and prompts in one masked sequence."""
    vit, features = model.vit, []
    for rows in vit_tokens(vit, pixel_values, "prepend", {}, 0):
        length, count = len(rows), len(prompts[0])
        visible = torch.zeros(length + count, length + count, dtype=torch.bool)
        visible[:, :length] = True
        for index, layer in enumerate(vit.layers):
            step = index - config.first_layer
            if step < 0:
                rows = vit_layer(layer, rows)
                continue
            if step == 0:
                rows = torch.cat([rows, prompts[0]])
            elif step < len(prompts):
                rows = torch.cat([rows[:length], rows[length:] + prompts[step]])
            rows = vit_layer(layer, rows, visible)
        features.append(vit.layernorm(rows[length:]).mean(0))
    return torch.stack(features)


# ---- Swin -----------------------------------------------------------------------------------------------------------


def window_rows(height: int, width: int, size: int, shift: int) -> list[tuple[list[int], Tensor]]:
    """For each window the tokens it holds (-1 where the image is padded) and which of them may read which.

    A shifted window that hangs over the edge goes on at the other side; what comes from there is another region.
    """
    high, wide = (math.ceil(edge / size) * size for edge in (height, width))
    windows = []
    for top in range(0, high, size):
        for left in range(0, wide, size):
            tokens, regions = [], []
            for y in range(top + shift, top + shift + size):
                for x in range(left + shift, left + shift + size):
                    token_y, token_x = y % high, x % wide
                    inside = token_y < height and token_x < width
                    tokens.append(token_y * width + token_x if inside else -1)
                    regions.append((y >= high, x >= wide))
            same = torch.tensor([[a == b for b in regions] for a in regions])
            windows.append((tokens, same))
    return windows


def window_bias(block: nn.Module, size: int) -> Tensor:
    """Relative position bias [heads, tokens, tokens] of a window, from the table by each pair's distance."""
    inner = getattr(block.attention, "self", block.attention)
    if not hasattr(inner, "continuous_position_bias_mlp"):
        # Older transformers releases keep the table beside the projections.
        table, reach = getattr(inner, "relative_position_bias", inner).relative_position_bias_table, size
    else:
        reach = inner.window_size[0]
        steps = torch.arange(-(reach - 1), reach).float() / max(reach - 1, 1) * 8
        steps = steps.sign() * torch.log2(steps.abs() + 1) / 3
        pairs = torch.stack([steps.repeat_interleave(len(steps)), steps.repeat(len(steps))], dim=1)
        table = 16 * torch.sigmoid(inner.continuous_position_bias_mlp(pairs))
    cells = [(y, x) for y in range(size) for x in range(size)]
    index = [[(a[0] - b[0] + reach - 1) * (2 * reach - 1) + a[1] - b[1] + reach - 1 for b in cells] for a in cells]
    return table[torch.tensor(index)].permute(2, 0, 1)


def window_attention(block: nn.Module, rows: Tensor, bias: Tensor) -> Tensor:
    """Attention of one window's prompts and tokens [r, d]; `bias` [heads, r, r]."""
    attn, inner = block.attention, getattr(block.attention, "self", block.attention)
    heads, names = inner.num_attention_heads, ("query", "key", "value")
    if inner is attn:
        names = ("q_proj", "k_proj", "v_proj")
    query, key, value = (getattr(inner, name)(rows) for name in names)
    scale = (rows.shape[1] // heads) ** -0.5
    if hasattr(inner, "logit_scale"):
        query, key = (F.normalize(vectors.unflatten(1, (heads, -1)), dim=-1) for vectors in (query, key))
        query, key = (query * inner.logit_scale.clamp(max=math.log(100)).exp()[:, 0]).flatten(1), key.flatten(1)
        scale = 1.0
    output = attention(query, key, value, heads, scale, bias)
    return attn.o_proj(output) if inner is attn else attn.output.dense(output)


def swin_block(block: nn.Module, prompts: Tensor, image: Tensor, grid: tuple[int, int], mixed: bool):
    """One block: prompts [b, n, d] and tokens [b, h * w, d]. `mixed`: the windows read the prompts of other images."""
    # Swin v2 puts its norms after attention and feed-forward layer.
    second = hasattr(getattr(block.attention, "self", None), "logit_scale")
    size, shift = block.window_size, block.shift_size
    if min(grid) <= size:
        size, shift = min(grid), 0
    batch, count, width = prompts.shape
    normed = torch.cat([prompts, image], dim=1)
    normed = normed if second else block.layernorm_before(normed)
    windows = window_rows(*grid, size, shift)
    bias = F.pad(window_bias(block, size), (count, 0, count, 0))
    attended = torch.zeros(batch, count + image.shape[1], width)
    for number in range(batch * len(windows)):
        owner, (tokens, same) = number // len(windows), windows[number % len(windows)]
        taker = number % batch if mixed else owner
        padded = torch.cat([normed[owner, count:], torch.zeros(1, width)])  # row -1 is padding
        rows = torch.cat([normed[taker, :count], padded[tokens]])
        mask = F.pad(torch.zeros(same.shape).masked_fill(~same, -100.0), (count, 0, count, 0))
        output = window_attention(block, rows, bias + mask)
        attended[taker, :count] = attended[taker, :count] + output[:count] / len(windows)
        for row, token in zip(output[count:], tokens, strict=True):
            if token >= 0:
                attended[owner, count + token] = row
    rows = torch.cat([prompts, image], dim=1)
    rows = rows + (block.layernorm_before(attended) if second else attended)
    hidden = rows if second else block.layernorm_after(rows)
    if hasattr(block, "mlp"):
        hidden = block.mlp.fc2(F.gelu(block.mlp.fc1(hidden)))
    else:
        hidden = block.output.dense(F.gelu(block.intermediate.dense(hidden)))
    rows = rows + (block.layernorm_after(hidden) if second else hidden)
    return rows[:, :count], rows[:, count:]


def swin_merge(merging: nn.Module, prompts: Tensor, image: Tensor, grid: tuple[int, int]):
    """Patch merging of tokens, and of prompts four times beside themselves."""
    image = image.unflatten(1, grid)
    image = F.pad(image, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    squares = torch.cat([image[:, y::2, x::2] for x in range(2) for y in range(2)], dim=-1)
    rows = torch.cat([torch.cat([prompts] * 4, dim=-1), squares.flatten(1, 2)], dim=1)
    first = merging.norm.normalized_shape[0] == rows.shape[-1]  # Swin v2 norms what has been reduced
    rows = merging.reduction(merging.norm(rows)) if first else merging.norm(merging.reduction(rows))
    return rows[:, : prompts.shape[1]], rows[:, prompts.shape[1] :]


def plain_swin(
    swin: nn.Module, pixel_values: Tensor, prompts: list[Tensor], first_layer: int = 0, mixed: bool = False
) -> Tensor:
    """Final prompts and tokens [b, n + tokens, d], normed, on a Swin without adapters."""
    embeddings = swin.embeddings
    convolution = embeddings.patch_embeddings.projection
    image = embeddings.norm(patches(pixel_values, convolution.weight, convolution.bias))
    grid, image = tuple(image.shape[1:3]), image.flatten(1, 2)
    current, index = image[:, :0], 0
    for stage in swin.encoder.layers:
        for block in stage.blocks:
            if 0 <= (step := index - first_layer) < len(prompts):
                current = prompts[step].expand(len(image), -1, -1)
            current, image = swin_block(block, current, image, grid, mixed)
            index += 1
        if stage.downsample is not None:
            current, image = swin_merge(stage.downsample, current, image, grid)
            grid = tuple(math.ceil(edge / 2) for edge in grid)
    return swin.layernorm(torch.cat([current, image], dim=1))

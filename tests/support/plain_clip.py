"""CLIP by the names of openai/CLIP's files in plain functions of torch, and random files of any size.

Shapes: b = images or texts, s = tokens, d = width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


State = dict[str, Tensor]


def transformer(state: State, prefix: str, hidden: Tensor, heads: int, causal: bool) -> Tensor:
    """The blocks of a tower on [b, s, d]."""
    depth = 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in state if n.startswith(prefix))
    mask = torch.full((hidden.shape[1],) * 2, float("-inf")).triu(1) if causal else None
    for index in range(depth):
        of = lambda name, at=f"{prefix}{index}.": state[at + name]  # noqa: E731
        normed = norm(hidden, of("ln_1.weight"), of("ln_1.bias")).transpose(0, 1)
        read, _ = F.multi_head_attention_forward(
            normed, normed, normed, hidden.shape[-1], heads, of("attn.in_proj_weight"), of("attn.in_proj_bias"),
            None, None, False, 0.0, of("attn.out_proj.weight"), of("attn.out_proj.bias"),
            training=False, need_weights=False, attn_mask=mask,
        )  # fmt: skip
        hidden = hidden + read.transpose(0, 1)
        inside = F.linear(norm(hidden, of("ln_2.weight"), of("ln_2.bias")), of("mlp.c_fc.weight"), of("mlp.c_fc.bias"))
        inside = inside * torch.sigmoid(1.702 * inside)
        hidden = hidden + F.linear(inside, of("mlp.c_proj.weight"), of("mlp.c_proj.bias"))
    return hidden


def norm(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(hidden, weight.shape, weight, bias)


def texts(state: State, ids: Tensor, heads: int) -> Tensor:
    """Features of texts whose end token has the largest id."""
    hidden = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    hidden = transformer(state, "transformer.resblocks.", hidden, heads, causal=True)
    hidden = norm(hidden, state["ln_final.weight"], state["ln_final.bias"])
    return hidden[torch.arange(len(ids)), ids.argmax(1)] @ state["text_projection"]


def vit(state: State, pixels: Tensor, heads: int) -> Tensor:
    """Features of images by a ViT."""
    weight = state["visual.conv1.weight"]
    patches = F.conv2d(pixels, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    hidden = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    hidden = norm(hidden, state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    hidden = transformer(state, "visual.transformer.resblocks.", hidden, heads, causal=False)
    return norm(hidden[:, 0], state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"]


def resnet(state: State, pixels: Tensor, heads: int) -> Tensor:
    """Features of images by a ResNet with an attention pool."""

    def convolve(name: str, number: int, hidden: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}conv{number}.weight"]
        return statistics(f"{name}bn{number}", F.conv2d(hidden, weight, stride=stride, padding=weight.shape[-1] // 2))

    def statistics(name: str, hidden: Tensor) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(hidden, mean, var, weight, bias)

    hidden = pixels
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        hidden = convolve("visual.", number, hidden, stride).relu()
    hidden = F.avg_pool2d(hidden, 2)
    for stage in (1, 2, 3, 4):
        for block in range(len({n.split(".")[2] for n in state if n.startswith(f"visual.layer{stage}.")})):
            name, shortcut = f"visual.layer{stage}.{block}.", hidden
            stride = 2 if stage > 1 and block == 0 else 1
            inside = convolve(name, 2, convolve(name, 1, hidden).relu()).relu()
            inside = convolve(name, 3, F.avg_pool2d(inside, stride))
            if block == 0:
                weight = state[f"{name}downsample.0.weight"]
                shortcut = statistics(f"{name}downsample.1", F.conv2d(F.avg_pool2d(hidden, stride), weight))
            hidden = (inside + shortcut).relu()
    tokens = hidden.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + state["visual.attnpool.positional_embedding"][:, None]
    part = lambda letter, kind: state[f"visual.attnpool.{letter}_proj.{kind}"]  # noqa: E731
    read, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, tokens.shape[-1], heads, None, torch.cat([part(x, "bias") for x in "qkv"]),
        None, None, False, 0.0, part("c", "weight"), part("c", "bias"), training=False, need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=part("q", "weight"), k_proj_weight=part("k", "weight"), v_proj_weight=part("v", "weight"),
    )  # fmt: skip
    return read[0]


# ---- random files ------------------------------------------------------------------------------------------------


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Tensors of some shapes: variances are positive, matrices keep the size of what they map."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            value = value.exp()
        elif len(shape) > 1 and "embedding" not in name:
            value = value / torch.tensor(shape[1:]).prod().sqrt()
        elif name.endswith(".weight") and len(shape) == 1:
            value = 1 + 0.1 * value
        state[name] = value
    return state


def block_shapes(prefix: str, width: int, inside: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(layers):
        at = f"{prefix}{index}."
        shapes |= {f"{at}attn.in_proj_weight": (3 * width, width), f"{at}attn.in_proj_bias": (3 * width,)}
        linear = {"attn.out_proj": (width, width), "mlp.c_fc": (inside, width), "mlp.c_proj": (width, inside)}
        for name, shape in linear.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
    return shapes


def text_shapes(width: int, inside: int, layers: int, vocabulary: int, context: int, dim: int) -> dict:
    shapes = {"token_embedding.weight": (vocabulary, width), "positional_embedding": (context, width)}
    shapes |= {"ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, dim)}
    return {"logit_scale": (), **shapes, **block_shapes("transformer.resblocks.", width, inside, layers)}


def vit_shapes(width: int, inside: int, layers: int, patch: int, grid: int, dim: int) -> dict:
    shapes = {"class_embedding": (width,), "conv1.weight": (width, 3, patch, patch), "proj": (width, dim)}
    shapes |= {"positional_embedding": (grid**2 + 1, width)}
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    own = {f"visual.{name}": shape for name, shape in shapes.items()}
    return own | block_shapes("visual.transformer.resblocks.", width, inside, layers)


def resnet_shapes(width: int, layers: tuple[int, ...], grid: int, dim: int) -> dict:
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, bn: str, out: int, into: int, kernel: int) -> None:
        shapes[f"visual.{name}.weight"] = (out, into, kernel, kernel)
        shapes.update({f"visual.{bn}.{k}": (out,) for k in ("weight", "bias", "running_mean", "running_var")})

    convolution("conv1", "bn1", width // 2, 3, 3)
    convolution("conv2", "bn2", width // 2, width // 2, 3)
    convolution("conv3", "bn3", width, width // 2, 3)
    channels = width
    for stage, blocks in enumerate(layers):
        inside = width * 2**stage
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            convolution(f"{at}.conv1", f"{at}.bn1", inside, channels, 1)
            convolution(f"{at}.conv2", f"{at}.bn2", inside, inside, 3)
            convolution(f"{at}.conv3", f"{at}.bn3", 4 * inside, inside, 1)
            if block == 0:
                convolution(f"{at}.downsample.0", f"{at}.downsample.1", 4 * inside, channels, 1)
            channels = 4 * inside
    shapes["visual.attnpool.positional_embedding"] = (grid**2 + 1, channels)
    for letter, out in (("q", channels), ("k", channels), ("v", channels), ("c", dim)):
        shapes |= {
            f"visual.attnpool.{letter}_proj.weight": (out, channels),
            f"visual.attnpool.{letter}_proj.bias": (out,),
        }
    return shapes

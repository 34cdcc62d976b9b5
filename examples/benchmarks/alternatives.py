"""CoOp by what people would pick in our place, on the same weights: transformers' own CLIP, and open_clip's forward.

Both take padded prompts with the learned context in the place of words. Kept free of everything in `peft_vprompt` but the
names of open_clip's tensors.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from peft_vprompt.models.open_clip.layout import BLOCK, TEXT, TRANSPOSED, VISION

from .inputs import twin
from .plain import PlainCoOp, learn


class TransformersCoOp:
    """`CLIPModel` called as it is; a hook on its token embedding puts the context in the place of words.

    Args:
        plain: the authors' way, whose tokens and context are taken.
    """

    def __init__(self, plain: PlainCoOp):
        self.plain = plain
        self.clip = twin(plain.clip)
        self.clip.text_model.embeddings.token_embedding.register_forward_hook(self.put_context)

    def put_context(self, module, args: tuple, vectors: Tensor) -> Tensor:
        """Put the context after the start token of every class, [c, l, d]."""
        context = self.plain.get("text.tokens").expand(len(vectors), -1, -1)
        return torch.cat([vectors[:, :1], context, vectors[:, 1 + context.shape[1] :]], dim=1)

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a training step; return the logits [b, c]."""
        return learn(self.clip(input_ids=self.plain.ids, pixel_values=pixel_values).logits_per_image, labels)


class OpenCLIPCoOp:
    """open_clip's `CLIP` with the same weights; the text side is what its `encode_text` does after the token embedding.

    Args:
        plain: the authors' way, whose tokens and context are taken.
    """

    def __init__(self, plain: PlainCoOp):
        self.plain = plain
        self.clip = open_clip_of(plain.clip)

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a training step; return the logits [b, c]."""
        images = self.clip.encode_image(pixel_values, normalize=True)
        return learn(self.clip.logit_scale.exp() * images @ self.text_features().t(), labels)

    def text_features(self) -> Tensor:
        """[c, e], L2-normalised."""
        plain, clip = self.plain, self.clip
        context = plain.get("text.tokens").expand(len(plain.names), -1, -1)
        words = [plain.word_vectors[:, :1], context, plain.word_vectors[:, 1 + context.shape[1] :]]
        hidden = torch.cat(words, dim=1) + clip.positional_embedding
        hidden = clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask))
        return F.normalize(hidden[plain.rows, plain.ends] @ clip.text_projection, dim=-1)


def open_clip_of(clip: CLIPModel) -> Any:
    """Return open_clip's model with the weights of transformers' one, frozen."""
    from open_clip.model import CLIP

    text, vision = clip.config.text_config, clip.config.vision_config
    model = CLIP(
        embed_dim=clip.config.projection_dim,
        vision_cfg={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
        quick_gelu=True,
    )
    own = clip.state_dict()
    state = {}
    for theirs, ours in (TEXT | VISION).items():
        state[theirs] = own[ours].t() if theirs in TRANSPOSED else own[ours]
    for root, tower, layers in (
        ("transformer", "text_model", text.num_hidden_layers),
        ("visual.transformer", "vision_model", vision.num_hidden_layers),
    ):
        for index in range(layers):
            block, layer = f"{root}.resblocks.{index}", f"{tower}.encoder.layers.{index}"
            for kind in ("weight", "bias"):
                state |= {f"{block}.{part}.{kind}": own[f"{layer}.{name}.{kind}"] for part, name in BLOCK.items()}
                joined = [own[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(joined)
    model.load_state_dict(state)
    return model.to(clip.device, clip.dtype).eval().requires_grad_(False)


ALTERNATIVES = {"transformers": TransformersCoOp, "open_clip": OpenCLIPCoOp}


def missing_alternatives() -> dict[str, str]:
    """Return why some of the alternatives cannot be measured here, by their names."""
    return {} if find_spec("open_clip") else {"open_clip": "open_clip_torch is not installed"}

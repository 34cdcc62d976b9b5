"""The plain way: every class padded to 77 tokens, contexts repeated, one sequence per class, Hugging Face layers.

What the authors' code computes, written from the papers for comparison; slow on purpose.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_vprompt.core.tokenization import TokenSequence


def plain_text_features(
    model: nn.Module, sequences: list[TokenSequence], prompts: Tensor | None, start: int = 1
) -> Tensor:
    """L2-normalised features [c, dim] of token sequences on an unwrapped CLIPModel.

    `prompts` [j, n, d]: those of layer 0 stand where the sequences say, later ones replace rows `start ...`.
    """
    text = model.text_model
    length = text.config.max_position_embeddings
    rows = []
    for sequence in sequences:
        vectors = [
            prompts[0, -entry - 1] if entry < 0 else text.embeddings.token_embedding.weight[entry]
            for entry in sequence
        ]
        pad = text.embeddings.token_embedding.weight[0]
        rows.append(torch.stack(vectors + [pad] * (length - len(sequence))))
    hidden = torch.stack(rows) + text.embeddings.position_embedding.weight[None]
    mask = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)[None, None]
    for index, layer in enumerate(text.encoder.layers):
        if prompts is not None and 0 < index < prompts.shape[0]:
            new = prompts[index].expand(len(sequences), -1, -1)
            hidden = torch.cat([hidden[:, :start], new, hidden[:, start + new.shape[1] :]], dim=1)
        hidden = layer(hidden, mask)
    hidden = text.final_layer_norm(hidden)
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return F.normalize(model.text_projection(hidden[torch.arange(len(sequences)), ends]), dim=-1)


def masked_read_only(layers: nn.ModuleList, hidden: Tensor, prompts: list[Tensor], causal: bool, update: str, prepare):
    """Read-only prompts and plain tokens in one masked sequence, as the papers write it: [b, n, d] of the last layer.

    `hidden` [b, s, d] are plain tokens (all of them real). `prompts[i]` [n, d] come in front of layer i; later ones
    replace what the layers made of them, or are added to it. A prompt reads every plain token and no prompt.
    """
    batch, length, width = hidden.shape
    count = prompts[0].shape[0]
    visible = torch.zeros(length + count, length + count, dtype=torch.bool)
    visible[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril() if causal else True
    visible[length:, :length] = True
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(hidden.dtype).min)[None, None]
    hidden = prepare(torch.cat([hidden, prompts[0].expand(batch, -1, -1)], dim=1))
    for index, layer in enumerate(layers):
        if 0 < index < len(prompts):
            new = prompts[index].expand(batch, -1, -1)
            new = new if update == "replace" else hidden[:, length:] + new
            hidden = torch.cat([hidden[:, :length], new], dim=1)
        hidden = layer(hidden, mask)
    return hidden[:, length:]


def plain_read_only_logits(model: nn.Module, pixel_values: Tensor, sequences, text: list, vision: list, update: str):
    """RPO and MRPO on an unwrapped CLIPModel: masked sequences, one class at a time; logits [b, c]."""
    embeddings, classes = model.text_model.embeddings, []
    for sequence in sequences:
        ids = torch.tensor([sequence])
        hidden = embeddings(ids)
        read = masked_read_only(model.text_model.encoder.layers, hidden, text, True, update, lambda x: x)
        classes.append(model.text_projection(model.text_model.final_layer_norm(read[0])))
    tower = model.vision_model
    hidden = tower.embeddings(pixel_values)
    read = masked_read_only(tower.encoder.layers, hidden, vision, False, update, tower.pre_layrnorm)
    images = F.normalize(model.visual_projection(tower.post_layernorm(read)), dim=-1)
    features = F.normalize(torch.stack(classes), dim=-1)
    cosines = [model.logit_scale.exp() * images[:, k] @ features[:, k].t() for k in range(images.shape[1])]
    return torch.stack(cosines).mean(0)

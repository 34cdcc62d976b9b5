"""What CLIPs of our own share: texts in the joint space, and the comparison of images with them.

Shapes: b = images or texts, l = length of a text, e = size of the joint space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class CLIPOutput(ModelOutput):
    """What these models give, as `CLIPModel` does.

    Attributes:
        loss: the contrastive loss; with `return_loss` alone.
        logits_per_image: [images, texts].
        logits_per_text: [texts, images].
        text_embeds, image_embeds: L2-normalised features [b, e].
        text_model_output, vision_model_output: what the towers gave; `pooler_output` is the feature in the joint space.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


def encode_texts(
    text_model: CLIPTextModel, projection: nn.Linear, input_ids: Tensor, **kwargs
) -> BaseModelOutputWithPooling:
    """Encode texts [b, l]: `pooler_output` [b, e] is in the joint space, not L2-normalised."""
    output = text_model(input_ids=input_ids, **kwargs | {"return_dict": True})
    output.pooler_output = projection(output.pooler_output)
    return output


def compare(images: BaseModelOutputWithPooling, texts: BaseModelOutputWithPooling, scale: Tensor) -> CLIPOutput:
    """Compare the features of images with those of texts, by scaled cosines."""
    image_embeds = F.normalize(cast(Tensor, images.pooler_output), dim=-1)
    text_embeds = F.normalize(cast(Tensor, texts.pooler_output), dim=-1)
    logits_per_text = scale * text_embeds @ image_embeds.t().to(text_embeds.device)
    return CLIPOutput(
        logits_per_image=logits_per_text.t(),
        logits_per_text=logits_per_text,
        text_embeds=text_embeds,
        image_embeds=image_embeds,
        text_model_output=texts,
        vision_model_output=images,
    )

"""Tiny CLIPs with a ResNet or a ViT, and their tensors as openai/CLIP and open_clip name them."""

import torch
from transformers import CLIPConfig, CLIPModel

from peft_vprompt.models import ResNetCLIPConfig, ResNetCLIPModel
from tests.support.backbones import RESNET_CLIP, shake
from tests.support.models import TEXT, VISION, VOCABULARY_SIZE


def build(kind):
    text = TEXT | {"vocab_size": VOCABULARY_SIZE, "projection_dim": 16, "pad_token_id": 0}
    text |= {"bos_token_id": VOCABULARY_SIZE - 2, "eos_token_id": VOCABULARY_SIZE - 1}
    torch.manual_seed(0)
    if kind == "resnet":
        return shake(ResNetCLIPModel(ResNetCLIPConfig(text, RESNET_CLIP | {"projection_dim": 16})).eval())
    return shake(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).eval())


def published(model) -> dict[str, torch.Tensor]:
    """The tensors by openai/CLIP's names."""
    own, state = model.state_dict(), {}
    single = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    parts = {
        "out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "fc1": "mlp.c_fc",
        "fc2": "mlp.c_proj",
    }
    ends = {"final_layer_norm": "ln_final", "pre_layrnorm": "visual.ln_pre", "post_layernorm": "visual.ln_post"}
    for name, value in own.items():
        *path, part, kind = name.split(".") if "." in name else ("", name, "")
        root = "transformer" if path[:1] == ["text_model"] else "visual.transformer"
        block = f"{root}.resblocks.{path[3]}" if "layers" in path else ""
        if name.endswith("position_ids"):
            continue
        if name in single:
            state[single[name]] = value
        elif name in ("text_projection.weight", "visual_projection.weight"):
            state["text_projection" if name.startswith("text") else "visual.proj"] = value.t().contiguous()
        elif part in ("k_proj", "v_proj") and block:
            continue
        elif part == "q_proj" and block:
            rest = (own[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))
            state[f"{block}.attn.in_proj_{kind}"] = torch.cat([value, *rest])
        elif block:
            state[f"{block}.{parts[part]}.{kind}"] = value
        elif part in ends:
            state[f"{ends[part]}.{kind}"] = value
        else:
            state[name.replace("vision_model.", "visual.", 1)] = value
    return state

"""CLIPs in the files of openai/CLIP and open_clip, as models of transformers: a ViT's is a `CLIPModel`, a ResNet's ours.

What is computed is said by the names of the tensors and, beside open_clip's files, by `open_clip_config.json`; whatever of
it neither model has is refused by name. Nothing in a file is run.

Layouts: openai/CLIP `RN50.pt`, `ViT-B-32.pt` (scripted archives or state dicts), open_clip's `CLIP` and its `CustomTextCLIP`
(the text tower's names begin with "text.").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import cached_file

from ..errors import UnsupportedModelError
from ..utils.checkpoint_state import CheckpointState
from .resnet_clip import ResNetCLIPConfig, ResNetCLIPModel


#: What lies in a folder of open_clip, in the order in which it is looked for.
CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

#: Entries of a state dict that are no weights of the model.
IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")

#: What open_clip's configuration may say of a tower, and the values under which nothing but sizes follows from it.
PLAIN_VISION = {
    "head_width": None,
    "image_size": None,
    "layers": None,
    "mlp_ratio": None,
    "patch_size": None,
    "width": None,
}
PLAIN_TEXT = {
    "context_length": None,
    "heads": None,
    "layers": None,
    "mlp_ratio": None,
    "vocab_size": None,
    "width": None,
}
DEFAULT_VISION = {"ls_init_value": None, "patch_dropout": 0.0, "pool_type": "tok", "no_ln_pre": False}
DEFAULT_VISION |= {"attentional_pool": False, "pos_embed_type": "learnable", "final_ln_after_pool": False}
DEFAULT_VISION |= {"timm_model_name": None, "output_tokens": False, "act_kwargs": None, "norm_kwargs": None}
DEFAULT_TEXT = {"hf_model_name": None, "ls_init_value": None, "embed_cls": False, "no_causal_mask": False}
DEFAULT_TEXT |= {"final_ln_after_pool": False, "pool_type": "argmax", "proj_bias": False, "output_tokens": False}
DEFAULT_TEXT |= {"pad_id": 0, "proj_type": "linear", "act_kwargs": None, "norm_kwargs": None}
#: What says how texts are split, and that alone.
TOKENIZING = ("hf_tokenizer_name", "tokenizer_kwargs", "bos_id", "eos_id")

#: Parts of a transformer's block: their names in these files, and in transformers.
BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
#: Other parts, likewise; the text tower's projection and a ViT's are transposed.
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = ("text_projection", "visual.proj")

REMEDY = (
    "Install open_clip_torch (the extra [open_clip]) and use peft_vprompt.models.bridge.load_bridged, or a model of "
    "transformers' own"
)


def is_open_clip(name_or_path: str | os.PathLike, **hub: Any) -> bool:
    """Tell whether a folder, or a repository on the Hub, has files of open_clip and no model of transformers.

    Args:
        name_or_path: the folder or the Hub id; a single file of weights (`RN50.pt`) counts, too.
        hub: options of `transformers.utils.cached_file`, such as `revision`.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path.suffix in (".pt", ".pth", ".bin", ".safetensors")
    return _find(name_or_path, "config.json", hub) is None and _find(name_or_path, CONFIG_FILE, hub) is not None


def load_open_clip(name_or_path: str | os.PathLike, **hub: Any) -> PreTrainedModel:
    """Load a CLIP from open_clip's folder or repository, or from a single file of openai/CLIP or open_clip.

    Args:
        name_or_path: the folder, the Hub id or the file. Without `open_clip_config.json` a file is taken for one of
            openai/CLIP: heads of 64 numbers, and its approximate GELU.
        hub: options of `transformers.utils.cached_file`, such as `revision`.

    Returns:
        A `CLIPModel` or a `ResNetCLIPModel` in evaluation mode and float32.

    Raises:
        UnsupportedModelError: a part that these models do not have; names it.
        AdapterMismatchError: the file cannot be read.
        FileNotFoundError: there is no such file or folder, or there are no weights in it.
    """
    path = Path(name_or_path)
    config: dict[str, Any] = {}
    if path.is_file():
        weights: Any = path
        beside = path.parent / CONFIG_FILE
        if path.name in WEIGHT_FILES and beside.is_file():
            config = json.loads(beside.read_text())
    else:
        said = _find(name_or_path, CONFIG_FILE, hub)
        if said is None:
            raise FileNotFoundError(
                f"Expected a file of weights, or a folder or Hub id with {CONFIG_FILE}. Received: "
                f"{os.fspath(name_or_path)!r}, which is none. Check the spelling, and the connection for a Hub id."
            )
        config = json.loads(Path(said).read_text())
        found = (_find(name_or_path, name, hub) for name in WEIGHT_FILES)
        weights = next((file for file in found if file is not None), None)
        if weights is None:
            raise FileNotFoundError(
                f"Expected {' or '.join(WEIGHT_FILES)} beside {CONFIG_FILE} in {os.fspath(name_or_path)!r}. Download the "
                "weights, too."
            )
    model = from_state_dict(CheckpointState(weights), **_options(config))
    model.config._name_or_path = model.name_or_path = os.fspath(name_or_path)
    return model


def open_clip_image_processor(name_or_path: str | os.PathLike, image_size: int, **hub: Any) -> CLIPImageProcessorPil:
    """Return what makes a model's inputs of images, as its `open_clip_config.json` says; without one CLIP's own.

    Args:
        name_or_path: as for `load_open_clip`.
        image_size: edge of the model's images in pixels.
        hub: options of `transformers.utils.cached_file`.

    Raises:
        UnsupportedModelError: another way to resize.
    """
    folder = Path(name_or_path).parent if Path(name_or_path).is_file() else name_or_path
    file = _find(folder, CONFIG_FILE, hub)
    said = {} if file is None else json.loads(Path(file).read_text()).get("preprocess_cfg", {})
    mode = said.get("resize_mode", "shortest")
    kinds = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
    kind = kinds.get(said.get("interpolation", "bicubic"))
    if mode not in ("shortest", "squash") or kind is None:
        raise UnsupportedModelError(
            f"Expected images that are resized to the shorter edge or squashed, bicubic or bilinear. {CONFIG_FILE} says "
            f"resize_mode={mode!r}, interpolation={said.get('interpolation')!r}. Make a preprocessor_config.json."
        )
    square = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=kind,
        image_mean=list(said.get("mean", OPENAI_CLIP_MEAN)),
        image_std=list(said.get("std", OPENAI_CLIP_STD)),
    )


def from_state_dict(
    state: Mapping[str, Tensor],
    quick_gelu: bool = True,
    text_head_size: int = 64,
    vision_head_size: int = 64,
    image_size: int | None = None,
) -> PreTrainedModel:
    """Make a model of tensors by their names in openai/CLIP or open_clip, in any of the three layouts.

    Args:
        state: the tensors.
        quick_gelu: the approximate GELU of openai/CLIP; else the exact one.
        text_head_size: numbers of each head of the text tower, which tensors do not tell.
        vision_head_size: likewise of the image tower or the attention pool.
        image_size: edge of the images, where a ViT's number of positions does not tell.

    Raises:
        UnsupportedModelError: tensors of parts that CLIP does not have, or some that it needs are missing.
    """
    custom = "text.token_embedding.weight" in state
    names = {name.removeprefix("text.") if custom else name: name for name in state if name not in IGNORED}
    tensors = _Named(state, names)
    resnet = "visual.attnpool.c_proj.weight" in names
    activation = "quick_gelu" if quick_gelu else "gelu"
    with torch.device("meta"):
        if resnet:
            model: Any = ResNetCLIPModel(_resnet_config(tensors, activation, text_head_size, vision_head_size))
        else:
            model = CLIPModel(_vit_config(tensors, activation, text_head_size, vision_head_size, image_size))
    weights = _resnet(tensors) if resnet else {}
    weights |= _transformer(tensors, "transformer", "text_model") | _single(tensors, TEXT)
    if not resnet:
        weights |= _transformer(tensors, "visual.transformer", "vision_model") | _single(tensors, VISION)
    if left := [name for name in names if name not in tensors.read and not name.endswith("num_batches_tracked")]:
        raise UnsupportedModelError(
            f"Expected the parts of a CLIP with a ViT or a ResNet. Received others: {_listed(left)}. {REMEDY}."
        )
    needed = {name: value.shape for name, value in model.named_parameters()}
    needed |= {name: value.shape for name, value in model.named_buffers() if "running_" in name}
    wrong = [name for name in needed if name not in weights or weights[name].shape != needed[name]]
    if wrong:
        raise UnsupportedModelError(
            f"Expected the tensors of a {type(model).__name__}. Received none, or of another shape: {_listed(wrong)}. {REMEDY}."
        )
    # pyrefly: ignore[bad-argument-type]  # the buffers that are not saved are made here
    model = type(model)(model.config)
    model.load_state_dict(weights, strict=False)
    return model.eval()


class _Named:
    """Tensors by their names in open_clip's `CLIP`, and the names that were read."""

    def __init__(self, state: Mapping[str, Tensor], names: dict[str, str]):
        self.state = state
        self.names = names
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UnsupportedModelError(
                f"Expected the tensors of a CLIP of openai/CLIP or open_clip. Received none called {name!r}. {REMEDY}."
            )
        self.read.add(name)
        return self.state[self.names[name]].detach().float()

    def count(self, pattern: str) -> int:
        """Return one more than the largest number at the group of `pattern` among the names, 0 without any."""
        found = (re.match(pattern, name) for name in self.names)
        return max((int(match[1]) + 1 for match in found if match), default=0)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _text_config(tensors: _Named, activation: str, head_size: int) -> dict:
    vocabulary, width = tensors["token_embedding.weight"].shape
    depth = tensors.count(r"transformer\.resblocks\.(\d+)\.")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": depth,
        "num_attention_heads": max(1, width // head_size),
        "max_position_embeddings": len(tensors["positional_embedding"]),
        "hidden_act": activation,
        "projection_dim": tensors["text_projection"].shape[1],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # both towers of software pool at the largest id
        "pad_token_id": 0,
    }


def _resnet_config(tensors: _Named, activation: str, text_head_size: int, vision_head_size: int) -> ResNetCLIPConfig:
    depths = [tensors.count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    positions = len(tensors["visual.attnpool.positional_embedding"])
    vision = {
        "depths": depths,
        "embedding_size": tensors["visual.conv3.weight"].shape[0],
        "num_channels": tensors["visual.conv1.weight"].shape[1],
        "image_size": 32 * round((positions - 1) ** 0.5),
        "projection_dim": tensors["visual.attnpool.c_proj.weight"].shape[0],
        "attention_head_size": vision_head_size,
    }
    return ResNetCLIPConfig(_text_config(tensors, activation, text_head_size), vision)


def _vit_config(
    tensors: _Named, activation: str, text_head_size: int, vision_head_size: int, image_size: int | None
) -> CLIPConfig:
    width, channels, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vision = {
        "hidden_size": width,
        "intermediate_size": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": tensors.count(r"visual\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, width // vision_head_size),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": image_size or grid * patch,
        "hidden_act": activation,
        "projection_dim": tensors["visual.proj"].shape[1],
    }
    text = _text_config(tensors, activation, text_head_size)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])


def _single(tensors: _Named, table: dict[str, str]) -> dict[str, Tensor]:
    found = {ours: tensors[theirs].t() if theirs in TRANSPOSED else tensors[theirs] for theirs, ours in table.items()}
    return {ours: value.contiguous() for ours, value in found.items()}


def _transformer(tensors: _Named, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return the layers of a tower; queries, keys and values are one matrix in the files."""
    weights: dict[str, Tensor] = {}
    for index in range(tensors.count(rf"{re.escape(theirs)}\.resblocks\.(\d+)\.")):
        source = f"{theirs}.resblocks.{index}"
        target = f"{ours}.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            parts = tensors[f"{source}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                weights[f"{target}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
            for their, our in BLOCK.items():
                weights[f"{target}.{our}.{kind}"] = tensors[f"{source}.{their}.{kind}"]
    return weights


def _resnet(tensors: _Named) -> dict[str, Tensor]:
    names = [name for name in tensors.names if name.startswith("visual.") and not name.endswith("num_batches_tracked")]
    return {name.replace("visual.", "vision_model.", 1): tensors[name] for name in names}


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `from_state_dict` that open_clip's configuration says; nothing without one.

    Raises:
        UnsupportedModelError: it says something that neither model has.
    """
    if not config:
        return {}
    model = config.get("model_cfg", config)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    towers = (("vision_cfg", vision, PLAIN_VISION, DEFAULT_VISION), ("text_cfg", text, PLAIN_TEXT, DEFAULT_TEXT))
    for tower, said, sizes, defaults in towers:
        known = {*sizes, *TOKENIZING}
        for name, value in said.items():
            if name not in known and not (name in defaults and (value is None or value == defaults[name])):
                raise UnsupportedModelError(
                    f"Expected a CLIP of ViT's or ResNet's build. {CONFIG_FILE} says {tower}.{name}={value!r}. {REMEDY}."
                )
    resnet = isinstance(vision.get("layers"), list)
    heads, width = text.get("heads", 8), text.get("width", 512)
    size = vision.get("image_size")
    return {
        "quick_gelu": bool(model.get("quick_gelu", False)),
        "text_head_size": width // heads,
        "vision_head_size": vision.get("head_width", 64),
        "image_size": size if isinstance(size, int) and not resnet else None,
    }


def _find(name_or_path: str | os.PathLike, file: str, hub: Mapping[str, Any]) -> str | None:
    """Return the path of a file in a folder or, once it is there, from the Hub; None where there is none."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / file
        return str(path) if path.is_file() else None
    try:
        return cached_file(
            os.fspath(name_or_path),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **hub,
        )
    except OSError:
        return None

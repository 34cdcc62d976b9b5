"""Files of open_clip: where they are, what their configuration says, and how it makes inputs of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import cached_file

from ...errors import UnsupportedModelError
from ...utils.fields import check_values, shown
from ...utils.io import read_json


#: A number for each channel.
Triple = tuple[float, float, float]

#: What lies in a folder of open_clip, in the order in which it is looked for.
CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

#: What open_clip's configuration may say of a tower, and the values under which nothing but sizes follows from it.
PLAIN_VISION = ("head_width", "image_size", "layers", "mlp_ratio", "patch_size", "width")
PLAIN_TEXT = ("context_length", "heads", "layers", "mlp_ratio", "vocab_size", "width")
DEFAULT_VISION = {"ls_init_value": None, "patch_dropout": 0.0, "pool_type": "tok", "no_ln_pre": False}
DEFAULT_VISION |= {"attentional_pool": False, "pos_embed_type": "learnable", "final_ln_after_pool": False}
DEFAULT_VISION |= {"timm_model_name": None, "output_tokens": False, "act_kwargs": None, "norm_kwargs": None}
DEFAULT_TEXT = {"hf_model_name": None, "ls_init_value": None, "embed_cls": False, "no_causal_mask": False}
DEFAULT_TEXT |= {"final_ln_after_pool": False, "pool_type": "argmax", "proj_bias": False, "output_tokens": False}
DEFAULT_TEXT |= {"pad_id": 0, "proj_type": "linear", "act_kwargs": None, "norm_kwargs": None}
#: What says how texts are split, and that alone.
TOKENIZING = ("hf_tokenizer_name", "tokenizer_kwargs", "bos_id", "eos_id")


@dataclass
class Said:
    """What `open_clip_config.json` says of a model, as far as it is read here; `check_said` holds it to these types."""

    embed_dim: int = field(default=512, metadata={"min": 1})
    quick_gelu: bool | None = False
    vision_cfg: dict = field(default_factory=dict)
    text_cfg: dict = field(default_factory=dict)


@dataclass
class SaidOfVision:
    """Likewise of the image encoder."""

    head_width: int = field(default=64, metadata={"min": 1})
    image_size: int | list[int] | None = field(default=None, metadata={"min": 1})
    layers: int | list[int] | None = field(default=None, metadata={"min": 1, "max": 1000})
    width: int | None = field(default=None, metadata={"min": 1, "max": 100_000})
    timm_model_name: str | None = None


@dataclass
class SaidOfText:
    """Likewise of the text encoder."""

    width: int = field(default=512, metadata={"min": 1})
    heads: int = field(default=8, metadata={"min": 1})


@dataclass
class SaidOfImages:
    """Likewise of the preprocessing."""

    mean: Triple | float | None = None
    std: Triple | float | None = field(default=None, metadata={"above": 0})
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


#: What to do about a model that cannot be made one of transformers.
REMEDY = (
    "Where its texts are read by CLIP's text encoder or a BERT, pip install 'open_clip_torch>=2.30', with which it runs as "
    "it is; or take a model of transformers' own"
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
    return find(name_or_path, "config.json", hub) is None and find(name_or_path, CONFIG_FILE, hub) is not None


def read_config(name_or_path: str | os.PathLike, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `open_clip_config.json` says of the model; nothing for a single file without one beside it.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file holds no JSON object; names it.
    """
    path = Path(name_or_path)
    if path.is_file():
        beside = path.parent / CONFIG_FILE
        said = str(beside) if beside.is_file() else None
        if said is None:
            return {}
    else:
        said = find(name_or_path, CONFIG_FILE, hub)
    if said is None:
        raise FileNotFoundError(
            f"Expected a file of weights, or a folder or Hub id with {CONFIG_FILE}. Received: {os.fspath(name_or_path)!r}, "
            "which is none. Check the spelling, and the connection for a Hub id."
        )
    return _read_object(said)


def _read_object(path: str | os.PathLike) -> dict[str, Any]:
    said = read_json(os.fspath(path))
    if not isinstance(said, dict):
        raise ValueError(f"Expected a JSON object in {os.fspath(path)!r}. Received: a {type(said).__name__}.")
    return said


def find_weights(name_or_path: str | os.PathLike, hub: Mapping[str, Any]) -> str | os.PathLike:
    """Return the path of the weights.

    Raises:
        FileNotFoundError: there are none.
    """
    if Path(name_or_path).is_file():
        return name_or_path
    for name in WEIGHT_FILES:
        if (file := find(name_or_path, name, hub)) is not None:
            return file
    raise FileNotFoundError(
        f"Expected {' or '.join(WEIGHT_FILES)} beside {CONFIG_FILE} in {os.fspath(name_or_path)!r}. Download the weights, too."
    )


def check_said(kind: type, said: Any) -> None:
    """Refuse entries of `open_clip_config.json` of other types than those of the dataclass `kind`.

    Raises:
        UnsupportedModelError: names the entry.
    """
    try:
        if not isinstance(said, dict):
            raise ValueError(f"Expected a JSON object. Received: {shown(said)}.")
        check_values(kind, said)
    except ValueError as error:
        raise UnsupportedModelError(f"Cannot read {CONFIG_FILE}. {error} Download it again.") from error


def check_config(said: Mapping[str, Any], towers: tuple[str, ...] = ("vision_cfg", "text_cfg")) -> None:
    """Refuse what neither `CLIPModel` nor `ResNetCLIPModel` has.

    Raises:
        UnsupportedModelError: names the tower and what is said of it; or the entries are of other types.
    """
    check_said(Said, said)
    check_said(SaidOfVision, said.get("vision_cfg", {}))
    check_said(SaidOfText, said.get("text_cfg", {}))
    allowed = {"vision_cfg": (PLAIN_VISION, DEFAULT_VISION), "text_cfg": (PLAIN_TEXT, DEFAULT_TEXT)}
    for tower in towers:
        sizes, defaults = allowed[tower]
        for name, value in said.get(tower, {}).items():
            usual = name in defaults and (value is None or value == defaults[name])
            if name not in (*sizes, *TOKENIZING) and not usual:
                raise UnsupportedModelError(
                    f"Expected a CLIP of ViT's or ResNet's build. {CONFIG_FILE} says {tower}.{name}={value!r}. {REMEDY}."
                )


def open_clip_image_processor(name_or_path: str | os.PathLike, image_size: int, **hub: Any) -> CLIPImageProcessorPil:
    """Return what makes a model's inputs of images, as its `open_clip_config.json` says; without one CLIP's own.

    Args:
        name_or_path: as for `load_open_clip`.
        image_size: edge of the model's images in pixels.
        hub: options of `transformers.utils.cached_file`.

    Raises:
        UnsupportedModelError: another way to resize.
        ValueError: the file holds no JSON object; names it.
    """
    folder = Path(name_or_path).parent if Path(name_or_path).is_file() else name_or_path
    file = find(folder, CONFIG_FILE, hub)
    said: dict[str, Any] = {} if file is None else _read_object(file).get("preprocess_cfg", {})
    check_said(SaidOfImages, said)
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
        image_mean=said.get("mean", OPENAI_CLIP_MEAN),
        image_std=said.get("std", OPENAI_CLIP_STD),
    )


def find(name_or_path: str | os.PathLike, file: str, hub: Mapping[str, Any]) -> str | None:
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

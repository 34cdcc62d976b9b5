"""`convert_checkpoint`: read an authors' checkpoint, check it against a base model, write an adapter."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from ..backbones.supported import Backbone, find_backbone, view
from ..errors import AdapterMismatchError, ClassNamesError, ContextLengthWarning
from ..models import ResNetCLIPModel, is_open_clip, load_open_clip
from ..peft_models.adapter_files import adapter_files
from ..training.distillation import teacher_features
from ..tuners.base.checkpoint_layout import Layout
from ..tuners.base.config import PromptConfig
from ..tuners.base.prompted_encoder import LEARNER, READOUT
from ..tuners.base.registry import METHODS, find_method
from ..utils.checkpoint_state import CheckpointState
from ..utils.hub import split_revision
from ..utils.validation import require_choice


#: What reads each method's checkpoints, by the name `convert_checkpoint` takes.
LAYOUTS = {name: read for spec in METHODS.values() for name, read in spec.checkpoints.items()}

#: Where the towers are when no base model is at hand to ask.
DEFAULT_BACKBONES = {
    "clip": Backbone(vision="vision_model", text="text_model", dual=""),
    "vit": Backbone(vision="vit", head="classifier"),
    "swin": Backbone(vision="swin", head="classifier"),
}


def convert_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, Tensor],
    method: str,
    output_dir: str | os.PathLike,
    base_model: nn.Module | str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    teacher: PeftModel | None = None,
    **config,
) -> PeftConfig:
    """Turn a checkpoint of the authors' code into an adapter directory that `PeftModel.from_pretrained` loads.

    Depth, length, class-specific contexts and the projection size are read off the tensors.

    Args:
        checkpoint: path of a `model.pth.tar-N` (or of VPT's `.pth`), or the state dict itself. Nothing in a file is run:
            of objects beside the tensors (optimizer, scheduler, configuration) nothing is built, see `utils.pickled`.
            Half-precision tensors become float32.
        method: "coop", "cocoop", "kgcoop", "prograd", "tcp", "promptsrc", "mmrl",
            "mmrlpp", "alignednorm", "promptkd", "clap", "maple", "ivlp", "vpt-clip", "rpo" (these on CLIP) or "vpt" (ViT, Swin).
        output_dir: folder to write the adapter to. Another one that is there is kept in `previous/`, with a warning.
        base_model: the model the adapter belongs to, as an object, a folder or a hub id. With it every shape is
            checked; without it, at loading time.
        class_names: names of the classes, in label order. Needed for class-specific contexts.
        teacher: the model that a PromptKD student was distilled from, whose class features the adapter then holds. The
            authors' own is a checkpoint of "promptsrc". Its classes are `class_names` afterwards.
        config: what tensors cannot tell, by its config name: `class_token_position`, `prompt_init`,
            `prompt_init_text`, `template`, `tokenizer_name_or_path`, VPT's `location` and `pooling`, ...

    Returns:
        The adapter's config.

    Raises:
        ValueError: an unknown method; a student without a teacher, or a teacher for another method.
        AdapterMismatchError: the file cannot be read, the tensors are not the method's or are no plain tensors of finite
            numbers, or they do not fit the base model; nothing is written then.
        FileNotFoundError: there is no such file.
    """
    require_choice("method", method, list(LAYOUTS))
    layout = LAYOUTS[method](CheckpointState(checkpoint))
    if layout.needs_teacher != (teacher is not None):
        raise ValueError(
            "Expected a teacher for method 'promptkd', whose checkpoints have no class features, and for no other. Received: "
            f"method={method!r}{'' if teacher is None else ' with a teacher'}. "
            + ("Pass teacher=, the model that it was distilled from." if teacher is None else "Leave it out.")
        )
    if layout.values.get("class_specific") and class_names is None:
        raise ClassNamesError("This checkpoint has one context per class. Pass class_names, in label order.")
    if isinstance(base_model, (str, os.PathLike)):
        base_model = load_base_model(str(base_model))
    peft_config = _build_config(layout, class_names, config)
    backbone = DEFAULT_BACKBONES[layout.architecture] if base_model is None else find_backbone(base_model)
    if layout.complete is not None:
        tower: Any = None if base_model is None else view(base_model.get_submodule(backbone.vision))
        layout.tensors |= layout.complete(peft_config, tower)
    if teacher is not None:
        layout.tensors["readout", "class_features"] = _features_of(teacher, peft_config)
    weights = _name_tensors(layout, peft_config, backbone)
    if base_model is None:
        if backbone.head and ("head", "weight") not in layout.tensors:
            raise AdapterMismatchError("This checkpoint has no head. Pass base_model, whose head then stays.")
        _write(peft_config, weights, Path(output_dir))
    else:
        _write_checked(peft_config, weights, base_model, Path(output_dir), checkpoint)
    return peft_config


def load_base_model(name_or_path: str) -> nn.Module:
    """Load a base model in the class its config names; `id@revision` for one revision.

    Raises:
        ValueError: the config names no class of transformers.
    """
    path, revision = split_revision(name_or_path)
    pinned: dict[str, Any] = {"trust_remote_code": False} | ({} if revision is None else {"revision": revision})
    try:
        config: Any = AutoConfig.from_pretrained(path, **pinned)
    except (OSError, ValueError):
        if not is_open_clip(path, revision=revision):
            raise
        return load_open_clip(path, revision=revision)
    names = config.architectures
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "none"
    architecture: Any = ResNetCLIPModel if name == ResNetCLIPModel.__name__ else getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        raise ValueError(
            f"Expected the config of {path!r} to name a class of models of transformers. Received: {names}. Load the "
            "model yourself and pass it as base_model."
        )
    return architecture.from_pretrained(path, **pinned)


def _build_config(layout: Layout, class_names: Sequence[str] | None, given: dict) -> PromptConfig:
    conflicts = {k: v for k, v in given.items() if layout.values.get(k, v) != v}
    if conflicts:
        key, value = next(iter(conflicts.items()))
        raise AdapterMismatchError(
            f"The checkpoint's tensors say {key}={layout.values[key]!r}. Received: {key}={value!r}. Leave it out."
        )
    for key, allowed in layout.choices.items():
        if given.get(key, allowed[0]) not in allowed:
            raise AdapterMismatchError(
                f"The checkpoint's tensors are those of {key} in {list(allowed)}. Received: {key}={given[key]!r}."
            )
    values = (
        layout.fallbacks
        | layout.values
        | given
        | {"class_names": class_names and list(class_names), "inference_mode": True}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ContextLengthWarning)
            return layout.config_class(**values)
    except ContextLengthWarning as warning:
        raise AdapterMismatchError(f"{warning} Pass the words the checkpoint was trained with.") from None


def _features_of(teacher: PeftModel, config: Any) -> Tensor:
    """Return a teacher's features of the classes of a student."""
    features = teacher_features(teacher, config.own_classes).float().cpu()
    if features.shape[1] != config.teacher_dim:
        raise AdapterMismatchError(
            f"Expected a teacher with features of size {config.teacher_dim}, as the student's projector has. Received: "
            f"{features.shape[1]}. Pass the model that it was distilled from."
        )
    return features


def _name_tensors(layout: Layout, config: PeftConfig, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors by their names in an adapter file."""
    tuner_class: Any = find_method(config.peft_type).tuner_class
    prefix = tuner_class.prefix
    places = {"text": backbone.text, "vision": backbone.vision, "head": backbone.head, "readout": backbone.text}
    kinds = {"text": [f"{prefix}{LEARNER}"], "vision": [f"{prefix}{LEARNER}"], "readout": [f"{prefix}{READOUT}"]}
    named = {}
    for (place, name), tensor in layout.tensors.items():
        if places[place] is None:
            raise AdapterMismatchError(f"The checkpoint has {place} tensors, and the base model has no {place}.")
        path = ["base_model.model", places[place], *kinds.get(place, []), name]
        named[".".join(part for part in path if part)] = tensor.contiguous()
    return named


def _write_checked(config: PeftConfig, weights: dict, base_model: nn.Module, output: Path, source) -> None:
    """Load the weights into the base model, save from there, and leave the base model as it was."""
    model = get_peft_model(base_model, config)
    try:
        needed = model.adapter_state("default")
        for key in needed.keys() - weights.keys():
            if ".classifier." in key:  # no head in the checkpoint: the base model's stays
                weights[key] = needed[key]
        model.check_weights(weights, "default", source if isinstance(source, (str, os.PathLike)) else "checkpoint")
        set_peft_model_state_dict(model, weights, "default")
        with adapter_files(output, keep_other=True) as staging:
            model.save_pretrained(str(staging))
    finally:
        model.unload()


def _write(config: PromptConfig, weights: dict, output: Path) -> None:
    """Write config and weights together."""
    config.record_classes()
    with adapter_files(output, keep_other=True) as staging:
        config.save_pretrained(str(staging))
        save_file(weights, staging / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})

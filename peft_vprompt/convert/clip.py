"""`convert_clip`: a CLIP of openai/CLIP or open_clip becomes a folder that transformers loads."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..core.tokenization import find_tokenizer
from ..errors import TokenizerNotFoundError
from ..models.open_clip import load_open_clip, open_clip_image_processor
from ..peft_models.adapter_files import keep_changed
from ..utils.hub import split_revision
from ..utils.io import atomic_files


#: Files that a model of transformers is made of.
MODEL = (CONFIG_NAME, SAFE_WEIGHTS_NAME)


def convert_clip(
    checkpoint: str | os.PathLike, output_dir: str | os.PathLike, tokenizer_name_or_path: str | None = None
) -> PreTrainedModel:
    """Save a CLIP of openai/CLIP or open_clip as a model of transformers, with its image processor and its tokenizer.

    A ViT's becomes a `CLIPModel`, a ResNet's a `ResNetCLIPModel`.

    Args:
        checkpoint: a file (`RN50.pt`, `open_clip_model.safetensors`), or a folder or Hub id (id@revision) of open_clip.
            Nothing in it is run, see `utils.pickled`. Half precision becomes float32.
        output_dir: folder to write to. Another model that is there is kept in `previous/`, with a warning.
        tokenizer_name_or_path: folder or Hub id (id@revision) of the tokenizer. Default: the one beside the checkpoint; without one
            none is written.

    Returns:
        The model, in evaluation mode.

    Raises:
        UnsupportedModelError: it has parts that these models do not have; names them.
        AdapterMismatchError: the file cannot be read.
        FileNotFoundError: there is no such file.
        TokenizerNotFoundError: there is no tokenizer of that name.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    path, revision = split_revision(os.fspath(checkpoint))
    model = load_open_clip(path, convert_only=True, revision=revision)
    beside = str(Path(path).parent) if os.path.isfile(path) else path
    names = (tokenizer_name_or_path, None if tokenizer_name_or_path else beside)
    try:
        tokenizer = find_tokenizer(*names, base_model_revision=revision)
    except TokenizerNotFoundError:
        if tokenizer_name_or_path is not None:
            raise
        tokenizer = None
    processor = open_clip_image_processor(path, model.config.vision_config.image_size, revision=revision)
    output = Path(output_dir)
    with atomic_files(output) as staging:
        for part in (model, processor, *([] if tokenizer is None else [tokenizer])):
            part.save_pretrained(staging)
        keep_changed(MODEL, output, staging)
    return model

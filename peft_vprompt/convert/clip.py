"""`convert_clip`: a CLIP of openai/CLIP or open_clip becomes a folder that transformers loads."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import PreTrainedModel

from ..core.tokenization import find_tokenizer
from ..errors import TokenizerNotFoundError
from ..models.open_clip import load_open_clip, open_clip_image_processor
from ..utils.hub import split_revision


def convert_clip(
    checkpoint: str | os.PathLike, output_dir: str | os.PathLike, tokenizer_name_or_path: str | None = None
) -> PreTrainedModel:
    """Save a CLIP of openai/CLIP or open_clip as a model of transformers, with its image processor and its tokenizer.

    A ViT's becomes a `CLIPModel`, a ResNet's a `ResNetCLIPModel`.

    Args:
        checkpoint: a file (`RN50.pt`, `open_clip_model.safetensors`), or a folder or Hub id (id@revision) of open_clip.
            Nothing in it is run, see `utils.pickled`. Half precision becomes float32.
        output_dir: folder to write to.
        tokenizer_name_or_path: folder or Hub id of the tokenizer. Default: the one beside the checkpoint; without one
            none is written.

    Returns:
        The model, in evaluation mode.

    Raises:
        UnsupportedModelError: it has parts that these models do not have; names them.
        AdapterMismatchError: the file cannot be read.
        FileNotFoundError: there is no such file.
        TokenizerNotFoundError: there is no tokenizer of that name.
    """
    path, revision = split_revision(os.fspath(checkpoint))
    model = load_open_clip(path, convert_only=True, revision=revision)
    place = str(Path(path).parent) if os.path.isfile(path) else path
    try:
        tokenizer = find_tokenizer(tokenizer_name_or_path, None if tokenizer_name_or_path else place)
    except TokenizerNotFoundError:
        if tokenizer_name_or_path is not None:
            raise
        tokenizer = None
    model.save_pretrained(output_dir)
    processor = open_clip_image_processor(path, model.config.vision_config.image_size, revision=revision)
    processor.save_pretrained(output_dir)
    if tokenizer is not None:
        tokenizer.save_pretrained(output_dir)
    return model

"""`vprompt convert-clip`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .app import command, console, say_next
from .options import option


@command
def convert_clip(
    checkpoint: Annotated[
        str,
        typer.Argument(help="File of openai/CLIP or open_clip, such as RN50.pt; or open_clip's folder or Hub id."),
    ],
    output: Annotated[Path, option("Folder for the model.")],
    tokenizer: Annotated[
        str | None, option("Folder or Hub id of the tokenizer; default: the one beside the checkpoint.")
    ] = None,
):
    """Turn a CLIP of openai/CLIP or open_clip, with a ResNet or a ViT, into a model that `--model` takes.

    **Examples**

    - `vprompt convert-clip RN50.pt --tokenizer openai/clip-vit-base-patch32 --output rn50`
    - `vprompt convert-clip path/to/open_clip_folder --output clip`
    """
    from peft_vprompt.convert import convert_clip

    model = convert_clip(checkpoint, output, tokenizer)
    console.print(f"Saved a {type(model).__name__} in {escape(str(output))}.", soft_wrap=True)
    if not (output / "tokenizer_config.json").is_file():
        console.print("There is no tokenizer beside it: class names are read with --set tokenizer_name_or_path=...")
    say_next("train", "--model", output, "--data", "path/to/images", "--method", "coop")

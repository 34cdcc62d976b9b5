"""`vprompt convert`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .app import command, console, given, say_next
from .choices import CONVERTIBLE
from .options import ClassNames, option, read_names


@command
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors' code, such as model.pth.tar-5.")],
    output: Annotated[Path, option("Folder for the adapter.")],
    method: Annotated[str, option(f"One of: {', '.join(CONVERTIBLE)}.")],
    model: Annotated[
        str | None, option("Folder or Hub id (id@revision) of the base model; checks every shape.")
    ] = None,
    class_names: ClassNames = None,
    config: Annotated[
        list[str] | None,
        option("What tensors cannot tell, as NAME=VALUE of the method's config. May be repeated.", "--set"),
    ] = None,
):
    """Turn a checkpoint of the authors' code into an adapter.

    **Examples**

    - `vprompt convert output/model.pth.tar-5 --method maple --model openai/clip-vit-base-patch16
      --class-names names.txt --output maple-adapter`
    - `vprompt convert output/model.pth.tar-200 --method coop --set class_token_position=front --output coop-adapter`
    """
    from peft_vprompt.convert import convert_checkpoint
    from peft_vprompt.utils.validation import parse_fields

    names = read_names(class_names)
    converted = convert_checkpoint(
        checkpoint, method, output, base_model=model, class_names=names, **parse_fields(config, "--set")
    )
    console.print(f"Saved a {type(converted).__name__} adapter in {escape(str(output))}.", soft_wrap=True)
    base = given("model") or ([] if converted.base_model_name_or_path else ["--model", "openai/clip-vit-base-patch16"])
    say_next("evaluate", "--adapter", output, *base, "--data", "path/to/images")

"""`vprompt convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from .app import command, console, given, say_named_by, say_next
from .choices import CONVERTIBLE
from .options import ClassNames, option, read_names


if TYPE_CHECKING:
    from peft import PeftModel


@command
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors' code, such as model.pth.tar-5.")],
    output: Annotated[Path, option("Folder for the adapter.")],
    method: Annotated[str, option(f"One of: {', '.join(CONVERTIBLE)}.")],
    model: Annotated[
        str | None, option("Folder or Hub id (id@revision) of the base model; checks every shape.")
    ] = None,
    class_names: ClassNames = None,
    teacher: Annotated[
        str | None,
        option("With promptkd: adapter, or base model as it is, that the student learned from (folder or Hub id)."),
    ] = None,
    teacher_model: Annotated[
        str | None, option("Base model of the teacher's adapter; default: the one it names.")
    ] = None,
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
    - `vprompt convert student/model-best.pth.tar --method promptkd --teacher teacher-adapter --class-names names.txt
      --model openai/clip-vit-base-patch16 --output student-adapter`
    """
    from peft_vprompt.convert import convert_checkpoint
    from peft_vprompt.utils.validation import parse_fields

    names = read_names(class_names)
    taught = _load_teacher(teacher, teacher_model, names)
    options = parse_fields(config, "--set")
    converted = convert_checkpoint(checkpoint, method, output, model, names, taught, **options)
    console.print(f"Saved a {type(converted).__name__} adapter in {escape(str(output))}.", soft_wrap=True)
    base = given("model") or ([] if converted.base_model_name_or_path else ["--model", "openai/clip-vit-base-patch16"])
    say_next("evaluate", "--adapter", output, *base, "--data", "path/to/images")


def _load_teacher(teacher: str | None, model: str | None, names: list[str] | None) -> "PeftModel | None":
    """Load the teacher of a student."""
    from peft_vprompt.experiments.teacher import load_teacher

    if teacher is None:
        if model is not None:
            raise ValueError(f"A base model of the teacher needs a teacher. Received: --teacher-model {model} alone.")
        return None
    if names is None:
        raise ValueError(
            "Expected --class-names with --teacher, which gives one feature for each class. Received: none."
        )
    say_named_by(teacher, model)
    return load_teacher(teacher, model, names, None).model

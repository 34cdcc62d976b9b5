"""`vprompt inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .app import command, console, say_named_by
from .options import Machine, option, takes_machine


@command
@takes_machine
def inspect(
    machine: Machine,
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id (id@revision) of an adapter.")],
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    subfolder: Annotated[str | None, option("Folder of an adapter of another name, in the repository.")] = None,
    header: Annotated[
        bool, option("Read the adapter's own files alone; the base model is not loaded.", "--header")
    ] = False,
    image: Annotated[
        Path | None,
        option("Image to show the attention of visual prompts over, or on which the classes of CoCoOp depend."),
    ] = None,
    output: Annotated[Path | None, option("PNG file for that picture.")] = None,
    as_json: Annotated[bool, option("Print JSON, for other programs.", "--json")] = False,
):
    """Show what is in an adapter: the method, its size, the words nearest to its context, the classes it will confuse.

    **Examples**

    - `vprompt inspect runs/a`
    - `vprompt inspect me/flowers --header`
    - `vprompt inspect runs/a --image photo.jpg --output attention.png`
    - `vprompt inspect runs/a --json`
    """
    from peft_vprompt.experiments.inspection import describe_adapter, inspect_with_model

    if header and image is not None:
        raise ValueError("Expected --image without --header, which loads no model. Received both.")
    found = describe_adapter(adapter, subfolder)
    has_attention = found["method"] != "cocoop"  # whose classes depend on the image, and which has no visual prompts
    if (image is None) != (output is None) and (has_attention or image is None):
        raise ValueError("Expected --image with --output, the picture's file. Received one of them.")
    if not header:
        if not as_json:
            say_named_by(adapter, model)
        found |= inspect_with_model(
            adapter,
            model,
            subfolder=subfolder,
            image=image,
            picture=output,
            must=model is not None,
            **machine._asdict(),
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _show(found)
    if output is not None:
        console.print(f"The attention of the visual prompts is in {escape(str(output))}.", soft_wrap=True)


def _show(found: dict) -> None:
    """Print what was found as tables."""
    table = _table(found["title"])
    classes = found["classes"]
    rows = {
        "Learns": found["learns"],
        "Paper": found["paper"],
        "Base model": found["base_model"] or "not named",
        "Class of it": found["base_class"],
        "Parameters": f"{found['parameters']:,} ({', '.join(found['dtypes'])})",
        "File": f"{found['bytes']:,} bytes",
        "Classes": f"{len(classes)}: {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        if classes
        else "none",
        "Options": ", ".join(f"{name}={value}" for name, value in found["options"].items()) or "the defaults",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(str(value)))
    console.print(table)
    if found["norms"]:
        table = _table("Norms by depth, the first layer first")
        for each in found["norms"]:
            table.add_row(escape(each["what"]), " ".join(f"{norm:.3g}" for norm in each["norms"]))
        console.print(table)
    if "base_model_error" in found:
        console.print(
            f"The base model was not loaded: {escape(found['base_model_error'])} Give --model, or --header.",
            soft_wrap=True,
        )
        return
    if "words" in found:
        _list(
            "Nearest words of the context", found["words"],
            lambda each: (
                str(each["token"]), ", ".join(f"{near['word']} ({near['distance']:.3f})" for near in each["words"])
            ),
        )  # fmt: skip
    if "similar" in found:
        _list(
            "Classes most alike, which are confused first", found["similar"],
            lambda each: (f"{each['cosine']:.3f}", " / ".join(each["classes"])),
        )  # fmt: skip


def _list(title: str, found: list | str, columns) -> None:
    """Print a table, or why there is none."""
    if isinstance(found, str):
        console.print(f"{title}: {escape(found)}", soft_wrap=True, highlight=False)
        return
    table = _table(title)
    for each in found:
        table.add_row(*map(escape, columns(each)))
    console.print(table)


def _table(title: str) -> Table:
    return Table("", "", title=escape(title), show_header=False, title_justify="left")

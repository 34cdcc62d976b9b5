"""`vprompt push`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .app import command, console, say_named_by, say_next
from .options import Language, License, Private, option


@command
def push(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    repository: Annotated[str, typer.Argument(help="Where to, on the Hub: owner/name. Made where there is none.")],
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    private: Private = False,
    language: Language = None,
    license: License = None,
):
    """Publish a trained adapter on the Hub, with its card.

    The adapter's weights, its config and the card go up, and no path of this machine in them. The card tells what was
    measured, from `results.json` beside the adapter; one that you have edited keeps its text.

    **Examples**

    - `vprompt push runs/a me/flowers`
    - `vprompt push runs/a me/flowers --private --language en --license mit`
    """
    from peft_vprompt.experiments.sharing import check_hub, publish

    check_hub(repository)
    say_named_by(str(adapter), model)
    place = publish(adapter, repository, model, private=private or None, language=language, license=license)
    say_published(place)
    say_next("inspect", repository)


def say_published(place: str) -> None:
    """Say where an adapter was published."""
    console.print(f"Published: {escape(place)}", soft_wrap=True, highlight=False)

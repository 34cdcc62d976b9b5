"""The application: what `vprompt` itself takes, and how errors and warnings are shown."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Annotated

import datasets
import transformers
import typer
from datasets.exceptions import DatasetsError
from rich.console import Console
from rich.markup import escape

from ..errors import TrainingDivergedError
from ..version import __version__


MEMORY_HINT = (
    "On a CPU, page faults can take a large part of a training step. glibc keeps freed memory, and spares them, when "
    "started with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=536870912` in the environment."
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Prompt learning for vision and vision-language transformers: few parameters learn, the model stays frozen.\n\n"
    "Start with `vprompt demo`, which needs no data and no network.\n\n" + MEMORY_HINT,
)
console = Console()
_state = {"traceback": False}


def command(function: Callable) -> Callable:
    """Make a function a command; what the user can mend is one line and exit status 2 (1 where training diverged)."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError, OSError, ImportError, DatasetsError) as error:
            if _state["traceback"]:
                raise
            _say("[bold red]Error:[/]", str(error) or type(error).__name__)
            raise typer.Exit(1 if isinstance(error, TrainingDivergedError) else 2) from error

    return app.command()(wrapped)


def one_process(function: Callable) -> Callable:
    """Refuse a command under a launcher of several processes, of which each would do and write everything."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        processes = int(os.environ.get("WORLD_SIZE", "1") or 1)
        if processes > 1:
            raise ValueError(
                f"`vprompt {function.__name__.replace('_', '-')}` runs in one process. Received: {processes}, each of which "
                "would repeat all work in the same folder. Start it without torchrun or accelerate launch; of several "
                "processes one training can make use, see examples/train_with_accelerate.py."
            )
        return function(*args, **kwargs)

    return wrapped


def _say(label: str, message: str) -> None:
    """Print one line to the standard error."""
    Console(stderr=True).print(label, escape(" ".join(message.split())), soft_wrap=True, highlight=False)


def say_saved(place) -> None:
    """Say where the results are."""
    console.print(f"Saved in {escape(str(place))}.", soft_wrap=True)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    _say("[yellow]Warning:[/]", str(message))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vprompt {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
):
    """Options that stand before the command, and how messages are shown while it runs."""
    _state["traceback"] = traceback
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other libraries: nothing a user can act on
    warnings.showwarning = _show_warning
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

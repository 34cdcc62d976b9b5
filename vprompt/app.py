"""The application: what `vprompt` itself takes, and how errors and warnings are shown."""

import functools
import inspect
import os
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from typer.core import TyperCommand


MEMORY_HINT = (
    "On a CPU, page faults can take a large part of a training step. glibc keeps freed memory, and spares them, when "
    "started with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=536870912` in the environment."
)

#: Characters that move a terminal's cursor or change its state -> how they are shown.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class _Console(Console):
    """A console on which what strangers wrote into their files is text and nothing else."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to show."""
        return super().render_str(text.translate(_CONTROLS), **options)


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Prompt learning for vision and vision-language transformers: few parameters learn, the model stays frozen.\n\n"
    "Start with `vprompt demo`, which needs no data and no network.\n\n" + MEMORY_HINT,
)
console = _Console()
#: Names of the commands' options that are paths.
_paths: set[str] = set()
#: Whether errors are shown with their place, and the context of the command that runs.
_state: dict[str, Any] = {"traceback": False, "context": None}


class _Command(TyperCommand):
    """A command that takes no empty path: a variable of the shell that nobody set does not mean the current folder."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        paths = {flag for parameter in self.params if parameter.name in _paths for flag in parameter.opts}
        for flag, value in pairwise([*args, "the end"]):
            if flag in paths and value == "" or flag.endswith("=") and flag[:-1] in paths:
                raise typer.BadParameter("Expected a path. Received none: ''.", ctx, param_hint=flag.rstrip("="))
        return super().parse_args(ctx, args)


def command(function: Callable | None = None, *, name: str | None = None, several_processes: bool = False) -> Callable:
    """Make a function a command; what the user can mend is one line and exit status 2 (1 where training diverged).

    Args:
        function: does the work; imports what it needs when it is called.
        name: of the command; default: the function's.
        several_processes: whether the command has a use for the processes of a launcher; others refuse them.
    """
    if function is None:
        return functools.partial(command, name=name, several_processes=several_processes)

    _paths.update(argument for argument, hint in function.__annotations__.items() if _is_path(hint))

    @functools.wraps(function)
    def wrapped(context: typer.Context, **kwargs):
        _state["context"] = context
        try:
            if not several_processes:
                _require_one_process(name or function.__name__.replace("_", "-"))
            with _processes(kwargs.get("device")):
                _quiet_libraries()
                return function(**kwargs)
        except Exception as error:
            if _state["traceback"] or not _can_be_mended(error):
                raise
            _say(f"[bold red]Error{_where()}:[/]", str(error) or type(error).__name__)
            code = 1 if _is_a(error, "peft_vprompt.errors", "TrainingDivergedError") else 2
            if several_processes and _launched()[1] > 1:
                sys.stderr.flush()
                os._exit(code)  # threads of the others' connections may wait for ever
            raise typer.Exit(code) from error

    shown = inspect.signature(function).parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    # pyrefly: ignore[missing-attribute]  # functions take any attribute; Typer reads these two
    wrapped.__signature__ = inspect.Signature([context, *(p.replace(kind=p.KEYWORD_ONLY) for p in shown)])
    wrapped.__annotations__ = {"context": typer.Context, **function.__annotations__}
    return app.command(name, cls=_Command)(wrapped)


def _is_path(hint: Any) -> bool:
    """Tell whether an option's type, `Annotated[Path | None, ...]`, is that of a path."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return Path in (get_args(kind) or (kind,))


def _can_be_mended(error: Exception) -> bool:
    """Tell whether an error is about what the user gave, and its message says what to change."""
    expected = (ValueError, TypeError, OSError, ImportError)
    return isinstance(error, expected) or _is_a(error, "datasets.exceptions", "DatasetsError")


def _is_a(error: Exception, module: str, name: str) -> bool:
    """Tell whether an error is of a class that is not imported here: a module that is not loaded has raised nothing."""
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name))


def _require_one_process(name: str) -> None:
    """Refuse a command under a launcher of several processes, of which each would do and write everything."""
    _, processes = _launched()
    if processes > 1:
        raise ValueError(
            f"`vprompt {name}` runs in one process. Received: {processes}, each of which "
            "would repeat all work in the same folder. Start it without torchrun or accelerate launch. Of several "
            "processes train, evaluate, predict, pseudo-label and features make use."
        )


def _launched() -> tuple[int, int]:
    """Return the number of this process of a launcher, from 0, and how many there are; as `utils.processes` does, which imports torch."""
    return int(os.environ.get("RANK", "0") or 0), int(os.environ.get("WORLD_SIZE", "1") or 1)


def _where() -> str:
    """Say which process of a launcher this is, where it is not the first, which speaks for all."""
    return f" in process {_launched()[0]}" if _launched()[0] else ""


@contextmanager
def _processes(device: str | None) -> Iterator[None]:
    """Share the work of the block with the other processes of a launcher, of which the first one alone prints."""
    number, count = _launched()
    if count == 1:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each process would say what only one need
    from peft_vprompt.utils.process_watch import watched

    console.quiet = number > 0
    try:
        with watched(device, functools.partial(_say, f"[bold red]Stopped{_where()}:[/]")):
            yield
    finally:
        console.quiet = False


def _quiet_libraries() -> None:
    """Keep progress bars and advice of other libraries out of a command's output."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as an error it raises, too
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _say(label: str, message: str) -> None:
    """Print one line to the standard error."""
    _Console(stderr=True).print(label, escape(" ".join(message.split())), soft_wrap=True, highlight=False)


def say_named(config, on_other_model: bool = False) -> None:
    """Say which base model and which tokenizer an adapter names, before anything of them is loaded.

    Args:
        config: the adapter's.
        on_other_model: the base model is known otherwise; a tokenizer that is not on this machine would be loaded all the
            same.
    """
    revision = f", revision {config.revision}" if config.revision and not on_other_model else ""
    tokenizer = getattr(config, "tokenizer_name_or_path", None)
    names = {
        "base model": None if on_other_model else config.base_model_name_or_path,
        "tokenizer": None if on_other_model and Path(tokenizer or ".").is_dir() else tokenizer,
    }
    if named := [f"the {what} {name}" for what, name in names.items() if name]:
        console.print(f"The adapter names {escape(' and '.join(named) + revision)}.", soft_wrap=True, highlight=False)


def say_named_by(adapter: str, model: str | None = None) -> None:
    """Say what an adapter names, as `say_named`; nothing of a base model, or where there is none, as its loading says.

    Args:
        adapter: folder or Hub id.
        model: base model that stands for the one that it names.
    """
    from peft_vprompt.experiments.trained import SavedAdapter

    try:
        saved = SavedAdapter.find(adapter)
    except OSError:
        return
    say_named(saved.config, model is not None or saved.is_embedded)


def say_saved(place) -> None:
    """Say where the results are."""
    console.print(f"Saved in {escape(str(place))}.", soft_wrap=True)


def show_grid(output: Path, storage: str | None) -> None:
    """Show the state of the grids in a command's output."""
    from peft_vprompt.experiments.cells import grid_state, state_table

    if cells := grid_state(output, storage):
        console.print(state_table(cells))
    else:
        console.print(
            f"No grid in {escape(str(output))}: start the command without --status. Of one in a database, give --storage, too.",
            soft_wrap=True,
        )


def say_next(*arguments: object) -> None:
    """Say which of these commands comes next, as it is typed; without arguments the user has what there is."""
    say_next_line("vprompt", *arguments)


def say_next_line(*arguments: object) -> None:
    """Say which line comes next, as it is typed."""
    line = shlex.join(map(str, arguments))
    console.print(f"Next: {escape(line)}", soft_wrap=True, highlight=False)


def given(*names: str) -> list[str]:
    """Return options of the command that runs, as they were typed, to repeat them in another command.

    Args:
        names: names of the command's arguments. Those that were not given, or that the command does not have, are left
            out.
    """
    context: Any = _state["context"]
    typed = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name)
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            typed += _typed(parameter, value)
    return typed


def _typed(parameter, value) -> list[str]:
    if isinstance(value, bool):
        return [parameter.opts[0] if value else parameter.secondary_opts[0]]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for each in values for text in (parameter.opts[0], str(each))]


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if not _launched()[0]:  # of several processes the first one speaks for all
        _say("[yellow]Warning:[/]", str(message))


def version() -> str:
    """Read the package's version from its file, since importing the package takes seconds.

    Raises:
        ImportError: the package is not installed.
    """
    package = find_spec("peft_vprompt")
    if package is None or package.origin is None:
        raise ImportError("The package peft_vprompt is not installed.")
    return runpy.run_path(str(Path(package.origin).with_name("version.py")))["__version__"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vprompt {version()}")
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

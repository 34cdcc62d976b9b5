"""`vprompt report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table as RichTable

from .app import command, console, say_saved
from .options import option


if TYPE_CHECKING:
    from peft_vprompt.experiments.bench.document import Table


@command
def report(
    folder: Annotated[Path, typer.Argument(help="Output of `vprompt bench`.")],
    against: Annotated[
        str | None,
        option("Method that the others are compared with, beside zero-shot, as it was asked for. Default: the first."),
    ] = None,
):
    """Write what the cells of a bench say: report.md, report.html and summary.json in its folder.

    Tables with chance, zero-shot and, in the papers' settings, published numbers beside every accuracy; few-shot curves,
    base against novel accuracy, time against accuracy; and intervals of the differences between methods. The page needs no
    other file. A bench that is not done yet is reported as far as it is.

    **Examples**

    - `vprompt report runs/bench`
    - `vprompt report runs/bench --against maple`
    """
    from peft_vprompt.experiments.bench.report import write_report

    show_summary(write_report(folder, against))
    say_saved(folder)
    console.print(f"Open {escape(str(folder / 'report.html'))} in a browser.", soft_wrap=True)


def show_summary(summary: dict) -> None:
    """Print the table of every protocol: that of the average where there are several tasks."""
    from peft_vprompt.experiments.bench.tables import accuracy_tables

    for part in summary["protocols"]:
        for table in accuracy_tables(part, whole=False):
            console.print(_on_screen(table, part["title"]))
        for note in part["notes"]:
            console.print(escape(note), soft_wrap=True)


def _on_screen(table: "Table", title: str) -> RichTable:
    """Return a table as it is shown on a screen."""
    shown = RichTable(title=f"{escape(title)}: {escape(table.title)}")
    for index, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="right" if index and column not in table.texts else "left")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown

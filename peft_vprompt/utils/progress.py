"""Progress bars on the screen."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .processes import launched_number


Item = TypeVar("Item", covariant=True)


class Batches(Sized, Iterable[Item], Protocol[Item]):
    """Something to go through whose length is known."""


def make_bar(label: str, unit: str, transient: bool = False) -> Progress:
    """Return a bar of `label`, how many `unit` are done, the time left, and a note that a task has as field `note`."""
    return Progress(
        TextColumn(f"{label:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        transient=transient,
    )


def with_progress(batches: Batches[Item], label: str | None) -> Iterator[Item]:
    """Yield the batches under a bar that goes when they are done.

    Without a label, where no screen is, and in other processes of a launcher than the first there is no bar.
    """
    if label is None:
        yield from batches
        return
    bar = make_bar(label, "batches", transient=True)
    bar.disable = not bar.console.is_terminal or launched_number() > 0
    with bar:
        task = bar.add_task("", total=len(batches), note="")
        for batch in batches:
            yield batch
            bar.advance(task)


@contextmanager
def counting(label: str | None, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar in a block that calls what it gets with every number done.

    Args:
        label: what the bar is of; None for no bar.
        unit: what is counted, in the plural.
        total: how many there are; None where nobody knows.
    """
    bar = make_bar(label or "", unit, transient=True)
    bar.disable = label is None or not bar.console.is_terminal
    with bar:
        task = bar.add_task("", total=total, note="")
        yield lambda done: bar.advance(task, done)

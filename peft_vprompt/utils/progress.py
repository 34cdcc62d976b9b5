"""Progress bars on the screen."""

from collections.abc import Iterable, Iterator, Sized
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

"""Cells of a grid, shared out among any number of workers on any number of machines that see the same folder.

A worker is a process that calls `run_cells` with the same cells and folder, so whoever starts the same command again is
one more. Which cells are done is in the grid's book (`cell_book`); who works on a cell holds its lock, which a dead worker
does not keep (`utils.locks`). A result is what the work itself writes and finds again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Generic, TypeVar

from rich.markup import escape
from rich.table import Table

from ..errors import CannotWriteError, FailedCellsError, FolderInUseError
from ..utils.arguments import typed
from ..utils.digests import digest_json
from ..utils.locks import Claim, Writer, holder_of
from ..utils.processes import launched, launched_number
from ..utils.progress import make_bar
from ..utils.validation import first_line, shorten
from ..utils.warning import warn_caller
from .cell_book import WORKERS, Book, Cell, CellState, has_book, read_books


T = TypeVar("T")

#: Seconds between looks at what other workers do: at first, and at most.
PAUSES = (0.1, 2.0)

#: Why a cell failed of which the book does not say it.
_UNKNOWN = "of an unknown error"

#: Seconds between two pictures of the grid on a screen.
REFRESH = 2.0


@typed
def run_cells(
    cells: Mapping[str, T],
    work: Callable[[str, T], dict],
    folder: str | Path,
    *,
    book: str,
    storage: str | None = None,
    title: str = "Cells",
) -> dict[str, dict]:
    """Do what other workers do not, wait for theirs, and return the reports of all cells.

    A cell of a worker that died is taken up: at once where the worker was on this host, else when its lock was not touched
    for half a minute. A cell that fails does not end the others.

    Args:
        cells: what to do, by names that are those of all workers.
        work: does a cell and returns its report. It writes the report, and where the same was done before it reads
            it; so it is also called to read what other workers did. No two workers call it for one cell at a time. It
            shows no progress of its own.
        folder: of the grid, for its book and its locks; all workers see it.
        book: name of the grid, by its content: other cells or another work have another one.
        storage: URL of a database that keeps the book; None for a journal file in the folder.
        title: of the grid, for people.

    Returns:
        The reports, in the order of `cells`.

    Raises:
        FailedCellsError: cells failed, here or with another worker; names them. Those are tried again at the next start.
        ValueError: the process is one of several of a launcher, or the URL is of no database.
        CannotWriteError: the disk is full, the folder is not to be written, or the database does not answer.
    """
    _require_one_process()
    return _Worker(cells, work, Path(folder), Book(Path(folder), book, title, storage)).run()


class _Worker(Generic[T]):
    """One of the processes that do a grid. For its arguments see `run_cells`."""

    def __init__(self, cells: Mapping[str, T], work: Callable[[str, T], dict], folder: Path, book: Book):
        self._cells = cells
        self._work = work
        self._book = book
        self._claims = {name: Claim(_lock(folder, book.name, name)) for name in cells}
        self._workers = folder / WORKERS
        self._reports: dict[str, dict] = {}
        self._failed: dict[str, str] = {}
        self._cause: Exception | None = None
        self._running: str | None = None

    def run(self) -> dict[str, dict]:
        """Go through the cells until each has a report or failed.

        Raises:
            FailedCellsError: some failed; the others have their reports.
            CannotWriteError: the book cannot be written.
        """
        self._book.enqueue(self._cells)
        pause = PAUSES[0]
        with self._shown():
            while missing := self._cells.keys() - self._reports.keys() - self._failed.keys():
                if self._step([name for name in self._cells if name in missing]):
                    pause = PAUSES[0]
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, PAUSES[1])
        with suppress(OSError):  # others have locks there
            self._workers.rmdir()
        if self._failed:
            raise FailedCellsError(_failures(self._failed, len(self._cells)), self._failed) from self._cause
        return {name: self._reports[name] for name in self._cells}

    def _step(self, missing: list[str]) -> bool:
        """Do one cell that nobody has, or else read all that others did; note what failed; tell whether there was one."""
        known = self._read()
        for name in missing:
            if known[name].state is CellState.FAILED:
                self._failed[name] = known[name].error or _UNKNOWN
        todo = [name for name in missing if known[name].state in (CellState.WAITING, CellState.RUNNING)]
        if any(self._try(name) for name in todo):  # one at a time: the book is read anew before the next
            return True
        done = [name for name in missing if known[name].state is CellState.DONE]
        read = [self._try(name, is_done=True) for name in done]
        return any(read)

    def _read(self) -> dict[str, Cell]:
        """Return what the book says of each cell; one that it lost waits."""
        try:
            known = self._book.read()
        except CannotWriteError:
            raise
        except (ValueError, OSError):  # damaged, or on its way aside: with its lock it is mended
            self._book.enqueue(self._cells)
            known = self._book.read()
        return {name: known.get(name, Cell(self._book.title, name)) for name in self._cells}

    def _try(self, name: str, is_done: bool = False) -> bool:
        """Do a cell, or read what another worker did, unless somebody has it; tell whether nobody had."""
        with self._claims[name].tried() as writer:
            if writer is None:
                return False
            found = None if is_done else self._book.begin(name)
            if found is not None and found.state is CellState.FAILED:
                self._failed[name] = found.error or _UNKNOWN
            else:
                self._do(name, writer)
            return True

    def _do(self, name: str, writer: Writer) -> None:
        """Call the work, and write down how it ended."""
        start = time.monotonic()
        self._running = name
        try:
            self._reports[name] = self._work(name, self._cells[name])
        except FolderInUseError:  # another worker took over while this process stood still, or somebody else is there
            self._put_back(name, writer)
            time.sleep(PAUSES[1])
        except (CannotWriteError, ImportError):  # of this machine, not of the cell
            self._put_back(name, writer)
            raise
        except Exception as error:
            if not writer.is_lost:
                self._fail(name, error)
        except BaseException:  # a stop by hand
            self._put_back(name, writer)
            raise
        else:
            self._book.finish(name, time.monotonic() - start)
        finally:
            self._running = None

    def _put_back(self, name: str, writer: Writer) -> None:
        if not writer.is_lost:
            with suppress(OSError):  # if not, it is that of a dead worker
                self._book.put_back(name)

    def _fail(self, name: str, error: Exception) -> None:
        said = f"{type(error).__name__}: {first_line(error)}"
        warn_caller(f"The cell {name} failed ({said}). The others go on.")
        self._failed[name] = said
        self._cause = self._cause or error
        self._book.fail(name, said)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show how far the grid is, this worker's cells and others', where there is a screen."""
        bar = make_bar(self._book.title, "cells")
        if not bar.console.is_terminal:
            yield
            return
        task = bar.add_task("", total=len(self._cells), note="")
        stopped = Event()

        def refresh() -> None:
            with suppress(ValueError, OSError):  # what matters is told by the worker itself
                states = Counter(cell.state for name, cell in self._book.read().items() if name in self._cells)
                bar.update(task, completed=states[CellState.DONE], note=self._note(states))

        def watch() -> None:
            while not stopped.wait(REFRESH):
                refresh()

        watcher = Thread(target=watch, daemon=True)
        with bar:
            refresh()
            watcher.start()
            try:
                yield
            finally:
                stopped.set()
                watcher.join()
                refresh()

    def _note(self, states: Mapping[CellState, int]) -> str:
        running = self._running
        parts = [f"here {running}"] if running else []
        if elsewhere := states[CellState.RUNNING] - bool(running):
            parts.append(f"{elsewhere} elsewhere")
        if states[CellState.FAILED]:
            parts.append(f"{states[CellState.FAILED]} failed")
        return ", ".join(parts)


def _lock(folder: Path, book: str, name: str) -> Path:
    """Return the file whose lock a worker on a cell holds."""
    return folder / WORKERS / digest_json([book, name])


def _failures(failed: Mapping[str, str], cells: int) -> str:
    names: dict[str, list[str]] = {}
    for name, error in failed.items():
        names.setdefault(error, []).append(name)
    said = "; ".join(f"{shorten(each)} ({error[:500]})" for error, each in list(names.items())[:5])
    return f"{len(failed)} of {cells} cells failed, the others are done: {said}. Started again, those are tried again."


def _require_one_process() -> None:
    """Refuse a launcher's processes, which would share the work on each cell and the locks, too."""
    processes = launched()
    if processes > 1 or launched_number():
        raise ValueError(
            f"Expected each worker of a grid to be a process of its own. Received: one of {processes} processes of a launcher. "
            "Start the command once for each worker, without torchrun or accelerate launch."
        )


# ---- state ----------------------------------------------------------------------------------------------------------


@typed
def grid_state(folder: str | Path, storage: str | None = None) -> list[Cell]:
    """Return the cells of the grids in a folder, and in the folders in it, and who has them. Nothing is written.

    A cell whose worker is known to be dead waits.

    Args:
        folder: the output of the command.
        storage: URL of the database that keeps the books, where the command was given one.

    Raises:
        ValueError: a journal is damaged, or the URL is of no database.
        CannotWriteError: the database does not answer.
    """
    folder = Path(folder)
    inside = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    found = []
    for place in filter(has_book, (folder, *inside)):
        for book, cells in read_books(place, storage).items():
            named = [replace(cell, grid=f"{place.name}: {cell.grid}") if place != folder else cell for cell in cells]
            found += [_as_it_is(cell, _lock(place, book, cell.name)) for cell in named]
    return found


def _as_it_is(cell: Cell, lock: Path) -> Cell:
    """Return a cell as its lock says it is: it runs where somebody who may live holds that."""
    if cell.state not in (CellState.WAITING, CellState.RUNNING):
        return cell
    holder = holder_of(lock)
    if holder is None or holder.is_gone:
        return replace(cell, state=CellState.WAITING, since=None)
    seen = f", seen {holder.seen:%H:%M:%S}" if holder.seen else ""
    return replace(cell, state=CellState.RUNNING, worker=f"{holder}{seen}")


def state_table(cells: list[Cell]) -> Table:
    """Return a rich table of cells, as of `grid_state`, with how many there are of each state below."""
    counts = Counter(cell.state for cell in cells)
    table = Table(caption=", ".join(f"{counts[state]} {state.value}" for state in CellState))
    for name in ("Grid", "Cell", "State", "Worker", "Since"):
        table.add_column(name)
    table.add_column("Seconds", justify="right")
    table.add_column("Error")
    for cell in cells:
        since = f"{cell.since:%Y-%m-%d %H:%M:%S}" if cell.since else ""
        seconds = "" if cell.seconds is None else f"{cell.seconds:.1f}"
        texts = map(
            escape, (cell.grid, cell.name, cell.state.value, cell.worker or "", since, seconds, cell.error or "")
        )
        table.add_row(*texts)
    return table

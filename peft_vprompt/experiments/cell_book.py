"""The book of a grid: an Optuna storage in which every cell is a trial that waits, runs, is done or failed.

The storage is a journal file in the grid's folder, or a database. One worker at a time writes to it, by a lock in the
folder. A book holds no results, so nothing but the account of who did what goes with it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..errors import CannotWriteError
from ..utils.io import atomic_path, disk_errors, read_text, sync
from ..utils.locks import only_writer
from ..utils.validation import first_line
from ..utils.warning import warn_caller


#: The journal in the folder of a grid.
JOURNAL = "journal.log"

#: Folder beside it, of what workers need: their locks, and the name by which a database knows the folder.
WORKERS = ".workers"
FOLDER_NAME = "folder-name"

#: What reading a damaged journal raises.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError)


class CellState(Enum):
    """What has become of a cell; the values are for people."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


#: State of a trial -> of the cell; of all others the cell waits.
_STATES = {
    TrialState.RUNNING: CellState.RUNNING,
    TrialState.COMPLETE: CellState.DONE,
    TrialState.FAIL: CellState.FAILED,
}


@dataclass(frozen=True)
class Cell:
    """What the book says of a cell.

    Attributes:
        grid: title of its grid.
        name: of the cell.
        state: what has become of it.
        worker: who has it or had it last, None where nobody had.
        since: when it came to this state, by the worker's clock; None of one that waits.
        seconds: which its work took, of one that is done.
        error: why it failed.
    """

    grid: str
    name: str
    state: CellState = CellState.WAITING
    worker: str | None = None
    since: datetime | None = None
    seconds: float | None = None
    error: str | None = None


class Book:
    """The book of one grid.

    Args:
        folder: of the grid.
        name: of the grid, by its content.
        title: of the grid, for people.
        storage: URL of a database; None for a journal file in the folder.

    Raises:
        ValueError: the URL is of no database.
    """

    def __init__(self, folder: Path, name: str, title: str, storage: str | None = None):
        self.folder = folder
        self.name = name
        self.title = title
        self._url = storage
        self._database: BaseStorage | None = None
        self._path = folder / JOURNAL
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what goes wrong is raised

    def enqueue(self, cells: Iterable[str]) -> None:
        """Let cells wait that the book does not have, and those that failed at an earlier start."""
        with self._written() as (storage, study):
            known = _last_trials(storage, study)
            for cell in cells:
                if cell not in known or known[cell].state is TrialState.FAIL:
                    _add(storage, study, cell)

    def read(self) -> dict[str, Cell]:
        """Return what the book says of each cell, without its lock.

        Raises:
            ValueError: the journal is damaged, or another process moves it aside.
            CannotWriteError: the database does not answer.
        """
        try:
            with _database_errors(self._url):
                storage = self._storage(_journal)
                return _cells(storage, storage.get_study_id_from_name(self._study_name()), self.title)
        except _DAMAGE as error:
            raise ValueError(f"Expected the whole book of the grid in {str(self.folder)!r}.") from error

    def begin(self, cell: str) -> Cell:
        """Write down that this process has a cell, unless it is done or failed; return what the book said before."""
        with self._written() as (storage, study):
            trial, number = _trial(storage, study, cell)
            found = _cell(trial, self.title)
            if not trial.state.is_finished():
                if found.state is CellState.RUNNING:  # its worker died
                    storage.set_trial_state_values(number, TrialState.WAITING)
                storage.set_trial_user_attr(number, "worker", f"process {os.getpid()} on {socket.gethostname()}")
                storage.set_trial_state_values(number, TrialState.RUNNING)
            return found

    def finish(self, cell: str, seconds: float) -> None:
        """Write down that a cell is done."""
        self._leave(cell, TrialState.COMPLETE, [seconds])

    def fail(self, cell: str, error: str) -> None:
        """Write down that a cell failed, and why."""
        self._leave(cell, TrialState.FAIL, error=error)

    def put_back(self, cell: str) -> None:
        """Let a cell wait for another worker."""
        self._leave(cell, TrialState.WAITING)

    def _leave(self, cell: str, state: TrialState, values: list[float] | None = None, **attributes: str) -> None:
        with self._written() as (storage, study):
            trial, number = _trial(storage, study, cell)
            if trial.state.is_finished():  # by another worker, which took the cell over from this one
                return
            for name, value in attributes.items():
                storage.set_trial_user_attr(number, name, value)
            storage.set_trial_state_values(number, state, values)

    @contextmanager
    def _written(self) -> Iterator[tuple[BaseStorage, int]]:
        """Yield the storage, which nobody else writes to meanwhile, and the number of the grid's study."""
        path = self._path
        with only_writer(path, wait=True, is_file=True), disk_errors(path), _database_errors(self._url):
            storage = self._storage(_mended)
            yield storage, self._study(storage)

    def _storage(self, open_journal: Callable[[Path], BaseStorage]) -> BaseStorage:
        if self._url is None:
            return open_journal(self._path)
        if self._database is None:
            self._database = open_database(self._url)
        return self._database

    def _study(self, storage: BaseStorage) -> int:
        name = self._study_name()
        try:
            return storage.get_study_id_from_name(name)
        except KeyError:
            study = storage.create_new_study([StudyDirection.MINIMIZE], name)
            storage.set_study_user_attr(study, "title", self.title)
            return study

    def _study_name(self) -> str:
        """Return the name of the study: a database may have the same grid of other folders, too."""
        return self.name if self._url is None else f"{self.name} {folder_name(self.folder)}"


def folder_name(folder: Path) -> str:
    """Return the name by which a database knows a folder, on whatever machine; it is made where there is none."""
    path = folder / WORKERS / FOLDER_NAME
    if not path.is_file():
        with atomic_path(path) as partial:
            partial.write_text(uuid4().hex, encoding="utf-8")
    return read_text(path).strip()


def has_book(folder: Path) -> bool:
    """Tell whether a folder is that of a grid."""
    return (folder / JOURNAL).is_file() or (folder / WORKERS / FOLDER_NAME).is_file()


def read_books(folder: Path, storage: str | None) -> dict[str, list[Cell]]:
    """Return the cells of every grid of a folder, by the grid's name, as the books say. Nothing is written.

    Args:
        folder: of the grids.
        storage: URL of the database, where they have one.

    Raises:
        ValueError: the journal is damaged, or the URL is of no database.
        CannotWriteError: the database does not answer.
    """
    path = folder / JOURNAL if storage is None else folder / WORKERS / FOLDER_NAME
    if not path.is_file():
        return {}
    suffix = "" if storage is None else f" {folder_name(folder)}"
    try:
        with _database_errors(storage):
            opened = _journal(path) if storage is None else open_database(storage)
            return {
                study.study_name.removesuffix(suffix): list(
                    _cells(
                        opened,
                        opened.get_study_id_from_name(study.study_name),
                        study.user_attrs.get("title", study.study_name),
                    ).values()
                )
                for study in opened.get_all_studies()
                if study.study_name.endswith(suffix)
            }
    except _DAMAGE as error:
        if storage is not None:
            raise
        raise ValueError(
            f"The journal {str(path)!r} is damaged. Start the command again without --status: results that are there stay."
        ) from error


# ---- Optuna ---------------------------------------------------------------------------------------------------------


def open_database(url: str) -> BaseStorage:
    """Return the storage at the URL of a database.

    Raises:
        ValueError: the URL is of no database that can be reached from here.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if "://" not in url:
            raise ValueError("it has no ://")
        return RDBStorage(url)
    except (ValueError, TypeError, ImportError, SQLAlchemyError) as error:
        raise ValueError(
            f"Expected storage to be the URL of a database, such as sqlite:///grid.db or postgresql://user@host/name. "
            f"Received: storage={_shown(url)!r}: {first_line(error)}."
        ) from error


def _shown(url: str) -> str:
    """Return a URL without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"[:200]


@contextmanager
def _database_errors(url: str | None) -> Iterator[None]:
    """Turn errors of a database into one that names it.

    Raises:
        CannotWriteError: the database does not answer.
    """
    if url is None:
        yield
        return
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise CannotWriteError(
            f"Cannot keep the book of the grid in the database {_shown(url)!r}: {first_line(error)}. Results that are done "
            "stay. Start again when the database answers."
        ) from error


class _Unlocked(JournalFileOpenLock):
    """No lock: `Book` has its own, which a dead owner does not keep."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _journal(path: Path) -> BaseStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Unlocked(str(path))))


def _mended(path: Path) -> BaseStorage:
    """Return the storage of a journal whose last entry may be cut off; one that is damaged otherwise is moved aside."""
    _drop_cut_entries(path)
    try:
        return _journal(path)
    except _DAMAGE:
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        sync(path.parent)
        warn_caller(
            f"The journal {str(path)!r} is damaged. It is now {aside.name!r}; what is done is read from its own results."
        )
        return _journal(path)


def _drop_cut_entries(path: Path) -> None:
    """Shorten a journal to its last entry that is whole: who wrote the rest is dead."""
    content = path.read_bytes() if path.is_file() else b""
    end = len(content)
    while end and not _is_entry(content[(start := content.rfind(b"\n", 0, end - 1) + 1) : end]):
        end = start
    if end < len(content):
        os.truncate(path, end)
        sync(path)


def _is_entry(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _add(storage: BaseStorage, study: int, cell: str) -> None:
    storage.create_new_trial(study, create_trial(state=TrialState.WAITING, user_attrs={"cell": cell}))


def _last_trials(storage: BaseStorage, study: int) -> dict[str, FrozenTrial]:
    """Return the last trial of each cell: one that failed has another for each start at which it was tried again."""
    trials = sorted(storage.get_all_trials(study, deepcopy=False), key=lambda trial: trial.number)
    return {trial.user_attrs["cell"]: trial for trial in trials if "cell" in trial.user_attrs}


def _trial(storage: BaseStorage, study: int, cell: str) -> tuple[FrozenTrial, int]:
    """Return the last trial of a cell and its number in the storage; in a book that was lost it is made."""
    if (trial := _last_trials(storage, study).get(cell)) is None:
        _add(storage, study, cell)
        trial = _last_trials(storage, study)[cell]
    return trial, storage.get_trial_id_from_study_id_trial_number(study, trial.number)


def _cells(storage: BaseStorage, study: int, title: str) -> dict[str, Cell]:
    return {name: _cell(trial, title) for name, trial in _last_trials(storage, study).items()}


def _cell(trial: FrozenTrial, title: str) -> Cell:
    state = _STATES.get(trial.state, CellState.WAITING)
    attributes = trial.user_attrs
    since = None if state is CellState.WAITING else trial.datetime_complete or trial.datetime_start
    seconds = trial.value if state is CellState.DONE else None
    return Cell(title, attributes["cell"], state, attributes.get("worker"), since, seconds, attributes.get("error"))

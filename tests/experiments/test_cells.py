"""Grids on several workers: each cell is done once, whoever dies, and the reports are those of one worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from peft_vprompt.errors import CannotWriteError, FailedCellsError, FolderInUseError
from peft_vprompt.experiments import cells as module
from peft_vprompt.experiments.cell_book import JOURNAL, WORKERS, Cell, CellState
from peft_vprompt.experiments.cells import grid_state, run_cells, state_table
from peft_vprompt.utils import locks
from peft_vprompt.utils.io import read_json, write_json
from tests.support.kills import every_kill
from tests.utils.test_locks import end, write_lock


CELLS = {f"cell {number}": number for number in range(6)}
SQUARES = {name: {"square": number**2} for name, number in CELLS.items()}
REPO = Path(__file__).parents[2]


def square(folder: Path, name: str, number: int, seconds: float = 0.0) -> dict:
    """The work of most tests here: a report is written once, and who made it is written to a log."""
    place = folder / "results" / f"{number}.json"
    if (found := read_json(place, missing_ok=True)) is not None:
        return found
    with open(folder / "log", "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()} {name}\n")
    time.sleep(seconds)
    write_json({"square": number**2}, place)
    return {"square": number**2}


def made(folder: Path) -> list[str]:
    """The cells that were made, by all workers, in their order."""
    log = folder / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line.partition(" ")[2] for line in lines]


def run(folder, work=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return run_cells(CELLS, work or partial(square, folder), folder, book="squares", **options)


def states(folder, storage=None) -> dict[str, CellState]:
    return {cell.name: cell.state for cell in grid_state(folder, storage)}


@pytest.fixture
def worker(tmp_path):
    """Starts other workers in forked processes, which run until they are through or ended."""
    children = []

    def start(work=None, **options):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(tmp_path, work, **options)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
        return child

    yield start
    for child in children:
        with suppress(ProcessLookupError, ChildProcessError):
            end(child)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_reports_are_in_the_order_of_the_cells(tmp_path):
    reports = run(tmp_path)
    assert list(reports.items()) == list(SQUARES.items())
    assert made(tmp_path) == list(CELLS)
    assert set(states(tmp_path).values()) == {CellState.DONE}
    assert run(tmp_path) == SQUARES and made(tmp_path) == list(CELLS)
    assert not (tmp_path / WORKERS).exists()


@pytest.mark.parametrize("storage", [None, "sqlite:///{folder}/grid.db"])
def test_two_workers_are_one(storage, worker, tmp_path):
    options = {} if storage is None else {"storage": storage.format(folder=tmp_path)}
    slow = partial(square, tmp_path, seconds=0.2)
    others = [worker(slow, **options) for _ in range(2 if storage is None else 1)]
    assert run(tmp_path, slow, **options) == SQUARES
    assert [os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) for other in others] == [0] * len(others)
    assert sorted(made(tmp_path)) == list(CELLS)
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 1 + len(others)
    assert set(states(tmp_path, options.get("storage")).values()) == {CellState.DONE}
    assert (tmp_path / JOURNAL).exists() == (storage is None)


def test_the_cell_of_a_killed_worker_is_done_by_another(worker, tmp_path):
    def work(name, number):
        if name == "cell 2":
            (tmp_path / "reached").touch()
            signal.pause()
        return square(tmp_path, name, number)

    child = worker(work)
    wait_for((tmp_path / "reached").exists)
    (running,) = [cell for cell in grid_state(tmp_path) if cell.state is CellState.RUNNING]
    assert running.name == "cell 2" and running.worker.startswith(f"process {child} on ")
    end(child)
    assert states(tmp_path)["cell 2"] is CellState.WAITING
    assert run(tmp_path) == SQUARES
    assert sorted(made(tmp_path)) == list(CELLS)


def test_killed_at_any_moment_and_resumed_is_uninterrupted(tmp_path):
    moments = 0
    for moment in every_kill(partial(run, tmp_path / "grid"), every=7):
        moments += 1
        assert moment < 2000
    assert moments >= 10
    assert run(tmp_path / "grid") == SQUARES
    counted = Counter(made(tmp_path / "grid"))
    assert counted.keys() == CELLS.keys()


def test_a_worker_that_waits_sees_the_other_die(worker, tmp_path):
    def work(name, number):
        if name == "cell 0":
            (tmp_path / "reached").touch()
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return square(tmp_path, name, number)

    child = worker(work)
    Thread(target=os.waitpid, args=(child, 0)).start()  # a process that nobody waited for is not gone
    wait_for((tmp_path / "reached").exists)
    assert run(tmp_path) == SQUARES
    assert made(tmp_path) == [*list(CELLS)[1:], "cell 0"]


def test_the_cell_of_a_silent_worker_on_another_host_is_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.6)
    lock = module._lock(tmp_path, "squares", "cell 3")
    lock.parent.mkdir()
    write_lock(lock.parent, 1, "another-host")
    os.rename(lock.parent / locks.LOCK, lock.with_name(f".{lock.name}.lock"))
    assert run(tmp_path) == SQUARES
    assert made(tmp_path)[-1] == "cell 3"


def test_the_cell_of_a_worker_on_another_host_that_lives_is_left_alone(worker, tmp_path, monkeypatch):
    lock = module._lock(tmp_path, "squares", "cell 3")
    lock.parent.mkdir()
    write_lock(lock.parent, 1, "another-host")
    os.rename(lock.parent / locks.LOCK, lock.with_name(f".{lock.name}.lock"))
    child = worker()
    wait_for(lambda: len(made(tmp_path)) == 5)
    time.sleep(0.5)
    assert "cell 3" not in made(tmp_path)
    (cell,) = [cell for cell in grid_state(tmp_path) if cell.name == "cell 3"]
    assert cell.state is CellState.RUNNING and cell.worker.startswith("process 1 on another-host, seen ")
    lock.with_name(f".{lock.name}.lock").unlink()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made(tmp_path)[-1] == "cell 3"


class TestFailures:
    def work(self, folder, name, number):
        if number in (1, 4):
            raise MemoryError("no room")
        return square(folder, name, number)

    def test_a_cell_that_fails_does_not_end_the_others(self, tmp_path):
        with (
            pytest.warns(UserWarning, match=r"The cell cell [14] failed \(MemoryError: no room\). The others go on."),
            pytest.raises(
                FailedCellsError, match=r"2 of 6 cells failed.*cell 1, cell 4 \(MemoryError: no room\)"
            ) as told,
        ):
            run(tmp_path, partial(self.work, tmp_path))
        assert told.value.failed.keys() == {"cell 1", "cell 4"} and isinstance(told.value.__cause__, MemoryError)
        assert len(made(tmp_path)) == 4
        failed = [cell for cell in grid_state(tmp_path) if cell.state is CellState.FAILED]
        assert [(cell.name, cell.error) for cell in failed] == [
            ("cell 1", "MemoryError: no room"),
            ("cell 4", "MemoryError: no room"),
        ]
        assert run(tmp_path) == SQUARES  # tried again at the next start
        assert made(tmp_path)[4:] == ["cell 1", "cell 4"]

    def test_another_worker_is_told(self, worker, tmp_path):
        def other(name, number):
            if number == 0:
                (tmp_path / "reached").touch()
                wait_for(lambda: len(made(tmp_path)) == 5)
                raise ValueError("not this one")
            return square(tmp_path, name, number)

        worker(other)
        wait_for((tmp_path / "reached").exists)
        with pytest.raises(FailedCellsError, match=r"1 of 6 cells failed.*cell 0 \(ValueError: not this one\)"):
            run(tmp_path)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), CannotWriteError("full"), ImportError("none")])
    def test_what_is_not_the_cells_fault_leaves_it_waiting(self, error, tmp_path):
        def stopped(name, number):
            if number == 2:
                raise error
            return square(tmp_path, name, number)

        with pytest.raises(type(error)):
            run(tmp_path, stopped)
        assert list(states(tmp_path).values()) == [CellState.DONE] * 2 + [CellState.WAITING] * 4
        assert run(tmp_path) == SQUARES and made(tmp_path) == list(CELLS)

    def test_a_cell_whose_folder_somebody_else_writes_to_waits(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
        refused = []

        def busy(name, number):
            if number == 2 and len(refused) < 3:
                refused.append(states(tmp_path)[name])
                raise FolderInUseError("somebody trains there")
            return square(tmp_path, name, number)

        assert run(tmp_path, busy) == SQUARES
        assert refused == [CellState.RUNNING] * 3


@pytest.mark.parametrize(("damage", "warns"), [("cut", False), ("zeros", False), ("middle", True), ("gone", False)])
def test_a_damaged_book_loses_no_result(damage, warns, tmp_path, recwarn):
    run(tmp_path)
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-7],
        "zeros": whole + bytes(30),
        "middle": whole[:40] + bytes(10) + whole[50:],
        "gone": b"",
    }
    path.write_bytes(damaged[damage])
    if damage == "middle":
        with pytest.raises(ValueError, match=r"journal.log' is damaged. Start the command again without --status"):
            grid_state(tmp_path)
    assert run(tmp_path) == SQUARES and made(tmp_path) == list(CELLS)
    assert set(states(tmp_path).values()) == {CellState.DONE}
    assert [
        str(w.message) for w in recwarn if "journal.log' is damaged. It is now 'journal.damaged'" in str(w.message)
    ] == ([str(recwarn[-1].message)] if warns else [])


def test_a_book_that_is_damaged_while_workers_run_is_mended(tmp_path):
    def work(name, number):
        if number == 3:
            path = tmp_path / JOURNAL
            path.write_bytes(b"\0" * 50 + b"\n" + path.read_bytes())
        return square(tmp_path, name, number)

    with pytest.warns(UserWarning, match="is damaged. It is now 'journal.damaged'"):
        assert run(tmp_path, work) == SQUARES
    assert made(tmp_path) == list(CELLS)


def test_results_that_were_deleted_are_made_again(tmp_path):
    run(tmp_path)
    (tmp_path / "results" / "3.json").unlink()
    assert run(tmp_path) == SQUARES
    assert made(tmp_path) == [*CELLS, "cell 3"]


def test_grids_of_other_content_and_other_folders_have_their_own_books(tmp_path):
    storage = f"sqlite:///{tmp_path}/grid.db"
    for folder in ("a", "b"):
        assert run(tmp_path / folder, storage=storage) == SQUARES
    two = {"cell 0": 0, "cell 9": 9}
    run_cells(two, partial(square, tmp_path / "a"), tmp_path / "a", book="two", storage=storage, title="Two")
    assert made(tmp_path / "a") == [*CELLS, "cell 9"] and made(tmp_path / "b") == list(CELLS)
    grids = Counter(cell.grid for cell in grid_state(tmp_path, storage))
    assert grids == {"a: Cells": 6, "a: Two": 2, "b: Cells": 6}
    assert grid_state(tmp_path / "b") == []  # without the database nothing is known


@pytest.mark.parametrize("storage", ["", "grid.db", "nothing://x", "postgresql://me:secret@host:port/db"])
def test_a_storage_that_is_no_database_is_refused(storage, tmp_path):
    with pytest.raises(ValueError, match="Expected storage to be the URL of a database.*Received: storage=") as told:
        run(tmp_path, storage=storage)
    assert "secret" not in str(told.value) and not (tmp_path / "log").exists()


def test_a_database_that_does_not_answer_is_one_error(tmp_path):
    storage = f"sqlite:///{tmp_path}/grid.db"

    def broken(name, number):
        (tmp_path / "grid.db").write_bytes(b"no database" * 100)
        return square(tmp_path, name, number)

    with pytest.raises(CannotWriteError, match="Cannot keep the book of the grid in the database"):
        run(tmp_path, broken, storage=storage)


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"RANK": "1"}])
def test_processes_of_a_launcher_are_refused(variables, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="each worker of a grid to be a process of its own"):
        run(tmp_path)


def test_the_table_says_who_has_what(tmp_path):
    cells = [Cell("Search", "[a]", CellState.RUNNING, "process 1 on here"), Cell("Search", "b")]
    table = state_table(cells)
    assert [list(column.cells) for column in table.columns][:4] == [
        ["Search", "Search"],
        [r"\[a]", "b"],
        ["running", "waiting"],
        ["process 1 on here", ""],
    ]
    assert table.caption == "1 waiting, 1 running, 0 done, 0 failed"
    assert grid_state(tmp_path) == grid_state(tmp_path / "none") == []


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from tests.experiments.test_cells import CELLS, square
from peft_vprompt.experiments.cells import run_cells

folder = Path(sys.argv[1])
run_cells(CELLS, partial(square, folder, seconds=0.2), folder, book="squares")
"""


@pytest.mark.nightly
def test_processes_that_share_nothing_but_the_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    others = [subprocess.Popen(command, env=environment, cwd=REPO) for _ in range(2)]
    assert [other.wait(120) for other in others] == [0, 0]
    assert sorted(made(tmp_path)) == list(CELLS)
    assert json.loads((tmp_path / "results" / "5.json").read_text()) == {"square": 25}


def test_a_screen_shows_the_cells_of_all_workers(worker, tmp_path, monkeypatch):
    screen = Console(force_terminal=True, width=150, file=StringIO())
    monkeypatch.setattr(module, "REFRESH", 0.02)
    monkeypatch.setattr("rich._console", screen)

    def slow(name, number):
        if number == 0:
            (tmp_path / "reached").touch()
            wait_for(lambda: len(made(tmp_path)) == 3)
        return square(tmp_path, name, number, seconds=0.2)

    worker(slow)
    wait_for((tmp_path / "reached").exists)
    assert run(tmp_path, partial(square, tmp_path, seconds=0.2), title="Squares") == SQUARES
    shown = screen.file.getvalue()
    assert "Squares" in shown and "6/6" in shown and "here cell 1, 1 elsewhere" in shown

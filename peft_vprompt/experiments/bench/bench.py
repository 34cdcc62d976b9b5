"""A bench from start to end: every cell of a grid, by one process or several, and the report."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...utils.arguments import typed
from ..cells import run_cells
from .cell import Cell, run_cell
from .grid import Grid
from .results import CELLS, require_base_model


@typed
def run_bench(grid: Grid, output: str | Path, *, storage: str | None = None, **options) -> dict[str, dict]:
    """Run the cells of a grid that are not done yet, beside all others that run the same grid in this folder.

    Args:
        grid: what to run.
        output: folder for the cells and the book of who does which.
        storage: address of a database for the book; None for a file in the folder.
        **options: how a cell goes: `cached`, and fields of `RunOptions`.

    Returns:
        The reports of all cells by name.

    Raises:
        FailedCellsError: cells failed; the others are done. One that diverges does not fail: made again it would again.
        ValueError: an unknown method, a grid of nothing, or a folder with cells of another base model.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    require_base_model(output, grid.base.model)
    work = partial(_work, folder=Path(output) / CELLS, options=options)
    return run_cells(grid.cells(), work, Path(output), book=grid.book, storage=storage, title=grid.protocol.title)


def _work(name: str, cell: Cell, folder: Path, options: dict) -> dict:
    return run_cell(cell, folder / name, **options)

"""Grids on several workers: how much faster two are than one, what kills cost, what the book costs. For docs/scaling.md.

    python -m examples.studies.workers   # docs/results/scaling.json, entry "grids"

A cell trains CoOp on the embedded model with another seed. Workers are processes that share nothing but a folder; `kill -9`
ends one of two at random moments, and another is started in its place.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import DatasetDict

from examples.studies.reliability import contents
from peft_vprompt.demo import demo_task
from peft_vprompt.experiments.cells import run_cells
from peft_vprompt.experiments.eval_sets import class_names_of
from peft_vprompt.experiments.identity import Contents, finished_run
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import read_json, write_json


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "scaling.json"

#: Runs of the grid that is trained, and cells without work of the one that shows what the book costs.
RUNS, EMPTY = 16, 500

#: Kills of the grid that is killed, and seconds between two of them, at least and at most.
KILLS, BETWEEN = 10, (4.0, 12.0)


def train(folder: Path) -> dict[str, dict]:
    """Be one worker of the grid in a folder."""
    data = DatasetDict(train=demo_task("train"), test=demo_task("test"))
    known = Contents(data)
    log = folder / "log"

    def work(name: str, seed: int) -> dict:
        settings = Settings("coop", shots=16, epochs=10, batch_size=32, seed=seed)
        place = folder / name
        report = finished_run(place, known.identity(settings, class_names_of(data)))
        if report is None:
            _note(log, f"begin {name}")
            report = run_experiment(settings, data, place, contents=known, quiet=True)
            _note(log, f"end {name}")
        return report

    return run_cells({f"seed-{seed}": seed for seed in range(1, RUNS + 1)}, work, folder, book="workers-1")


def _note(log: Path, line: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def work_together(folder: Path, workers: int, kills: int = 0) -> dict:
    """Let several workers do the grid in a folder, of which one after the other is killed and started anew.

    Returns:
        `seconds` until the last worker ended, `begun` and `ended` runs, and `twice`, those of them that ended twice.
    """

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "examples.studies.workers", str(folder)], cwd=ROOT)

    folder.mkdir(parents=True)
    began = time.monotonic()
    running = [start() for _ in range(workers)]
    moments = random.Random(0)
    for _ in range(kills):
        time.sleep(moments.uniform(*BETWEEN))
        killed = moments.randrange(workers)
        running[killed].kill()
        running[killed].wait()
        running[killed] = start()
    if sum(worker.wait() != 0 for worker in running):
        raise RuntimeError("A worker failed.")
    seconds = time.monotonic() - began
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    ended = Counter(line for line in lines if line.startswith("end "))
    begun = sum(line.startswith("begin ") for line in lines)
    twice = sum(times > 1 for times in ended.values())
    return {"seconds": round(seconds, 1), "kills": kills, "begun": begun, "ended": len(ended), "twice": twice}


def empty_cells(folder: Path, cells: int) -> float:
    """Return the milliseconds that a cell without work takes, among so many."""
    began = time.monotonic()
    run_cells({f"cell-{number}": number for number in range(cells)}, lambda name, number: {}, folder, book="empty")
    return round(1000 * (time.monotonic() - began) / cells, 2)


def main() -> None:
    """Measure, and write the entry "grids" of the results."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict]] = {
            "one": lambda: work_together(folder / "one", 1),
            "two": lambda: work_together(folder / "two", 2),
            "killed": lambda: work_together(folder / "killed", 2, KILLS),
        }
        found = {}
        for part, measure in parts.items():
            found[part] = measure()
            found[part]["equal"] = contents(folder / part) == contents(folder / "one")
            print(part, found[part], file=sys.stderr)
        found |= {"runs": RUNS, "empty_cells": EMPTY, "empty_cell_ms": empty_cells(folder / "empty", EMPTY)}
    results = read_json(RESULTS, missing_ok=True) or {}
    write_json(results | {"grids": found | {"environment": environment()}}, RESULTS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
    else:
        main()

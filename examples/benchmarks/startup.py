"""How long a start takes: `python -m examples.benchmarks.startup --help`.

The processor's time of `vprompt`'s help texts, and of importing this package against importing PEFT. Every run is a
process of its own; the cases take turns, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json
from vprompt import app

from .cases import Bar
from .results import ROOT, commit, verdict


RUN = "from vprompt import app; app(prog_name='vprompt')"
COMMANDS = [info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands]
#: Arguments of the interpreter by what they do.
CASES: dict[str, list[str]] = {
    "python alone": ["-c", "pass"],
    "vprompt --version": ["-c", RUN, "--version"],
    "vprompt --help": ["-c", RUN, "--help"],
    **{f"vprompt {name} --help": ["-c", RUN, name, "--help"] for name in COMMANDS},
    "vprompt methods": ["-c", RUN, "methods"],
    "import peft": ["-c", "import peft"],
    "import peft_vprompt": ["-c", "import peft_vprompt"],
}
HELPS = [name for name in CASES if name.endswith("--help")]
BARS = [
    Bar(name, "median_ms", 700, f"`{name}` in 0.7 s of the processor's time", at_least=False) for name in HELPS
] + [Bar("import peft_vprompt", "ratio", 1.15, "at most 1.15 of `import peft`", at_least=False)]


def processor_seconds(arguments: list[str]) -> float:
    """Run the interpreter; give the processor's time of user and system together.

    Raises:
        RuntimeError: the process failed.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *arguments], env=variables, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with status {process.returncode}.")
    return usage.ru_utime + usage.ru_stime


def measure(repeats: int) -> dict[str, dict]:
    """Time all cases in turn; one round before the first is not counted, as it fills the system's file cache."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for repeat in range(repeats + 1):
        for name, arguments in CASES.items():
            taken = processor_seconds(arguments)
            if repeat:
                seconds[name].append(taken)
    cells = {
        name: {"min_ms": 1e3 * min(taken), "median_ms": 1e3 * statistics.median(taken)}
        for name, taken in seconds.items()
    }
    pairs = zip(seconds["import peft_vprompt"], seconds["import peft"], strict=True)
    cells["import peft_vprompt"]["ratio"] = statistics.median(ours / peft for ours, peft in pairs)
    return cells


def main(
    output: Annotated[Path, typer.Option(help="Folder for startup.json.")] = ROOT / "docs/results/benchmarks",
    repeats: Annotated[int, typer.Option(help="Runs of every case.", min=1)] = 7,
):
    """Measure the start of the command line and of the package, and write the figures down."""
    cells = measure(repeats)
    for name, cell in cells.items():
        typer.echo(f"{name}: {cell['median_ms']:.0f} ms, at best {cell['min_ms']:.0f} ms")
    result = {
        "experiment": "startup",
        "title": "Start",
        "clock": "processor",
        "repeats": repeats,
        "bars": [verdict(bar, cells) for bar in BARS],
        "cells": cells,
        "commit": commit("peft_vprompt", "vprompt"),
        "environment": environment(),
    }
    write_json(result, output / "startup.json")


if __name__ == "__main__":
    typer.run(main)

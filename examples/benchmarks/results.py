"""One JSON file per experiment, written after every cell, so that a run can be broken off and taken up again."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json

from .cases import Bar, Case, Experiment
from .inputs import Inputs
from .measure import TOLERANCE


ROOT = Path(__file__).parents[2]


def commit(*folders: str) -> str:
    """The last commit that changed the folders (default: the package), and whether the working tree differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments, "--", *(folders or ("peft_vprompt",))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("log", "-1", "--format=%h") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Results:
    """The cells of one experiment on one device.

    Args:
        experiment: what is measured.
        inputs: how; device and precision are part of the file's name.
        folder: where the file is.
    """

    def __init__(self, experiment: Experiment, inputs: Inputs, folder: Path):
        self.experiment, self.inputs = experiment, inputs
        name = "cpu" if inputs.device == "cpu" else torch.cuda.get_device_name()
        device = re.sub(r"[^a-z0-9]+", "-", name.lower())
        self.path = folder / f"{experiment.name}_{device}_{inputs.dtype}.json"
        self.commit, self.environment = commit(), environment()
        self.machine = hashlib.sha256(json.dumps(self.environment).encode()).hexdigest()[:12]
        old = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.environments, self.cells = old.get("environments", {}), old.get("cells", {})

    def has(self, case: Case) -> bool:
        """Whether the cell was measured at this commit, on this machine, with these versions."""
        cell = self.cells.get(case.key, {})
        return (cell.get("commit"), cell.get("environment")) == (self.commit, self.machine)

    def add(self, case: Case, cell: dict) -> None:
        """Keep one cell and write the file."""
        how = {"clock": self.inputs.clock, "threads": self.inputs.threads}
        self.cells[case.key] = {
            "case": asdict(case),
            **cell,
            **how,
            "commit": self.commit,
            "environment": self.machine,
        }
        self.environments[self.machine] = self.environment
        self.save()

    def save(self) -> None:
        """Write the file: cells in the experiment's order, machines that are still referred to, verdicts on the bars."""
        cells = {case.key: self.cells[case.key] for case in self.experiment.cases if case.key in self.cells}
        used = {cell["environment"] for cell in cells.values()}
        inputs = {name: getattr(self.inputs, name) for name in ("shape", "device", "dtype")}
        data = {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "inputs": inputs | {"tokenizer": bool(self.inputs.tokenizer), "real_names": bool(self.inputs.names_file)},
            "tolerance": TOLERANCE,
            "bars": [verdict(bar, cells) for bar in self.experiment.bars] if self.is_reference else [],
            "environments": {key: value for key, value in self.environments.items() if key in used},
            "cells": cells,
        }
        write_json(data, self.path)

    @property
    def is_reference(self) -> bool:
        """The bars are set for float32 on a CPU."""
        return (self.inputs.device, self.inputs.dtype) == ("cpu", "float32")

    @property
    def disagreements(self) -> list[str]:
        """Cells in which ours and plain differ by more than the tolerance."""
        if self.inputs.dtype != "float32":
            return []
        return [
            key for key, cell in self.cells.items() if max((cell.get("agreement") or {"": 0}).values()) > TOLERANCE
        ]


def verdict(bar: Bar, cells: dict) -> dict:
    """A bar, the number measured for it (None if there is none yet), and whether it is reached."""
    value = cells.get(bar.case, {}).get(bar.metric)
    passed = None if value is None else (value >= bar.limit if bar.at_least else value <= bar.limit)
    return asdict(bar) | {"value": value, "passed": passed}

"""The page on the costs of a training is what its renderer makes of the committed measurements."""

import runpy
from pathlib import Path

from peft_vprompt.utils.io import read_json


ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs/render/cost.py"))
    expected = page["render"](read_json(page["RESULTS"], missing_ok=True))
    assert (ROOT / "docs/cost.md").read_text(encoding="utf-8") == expected, "run python docs/render/cost.py"


def test_a_table_says_what_was_measured_and_what_was_not():
    page = runpy.run_path(str(ROOT / "docs/render/cost.py"))
    machine = {"cpu": "A CPU", "cores": 2, "torch_threads": 2, "gpus": []}
    about = {"model": "ViT-B/16", "shots": 16, "device": "cpu"}
    about |= {"environment": {"machine": machine, "versions": {"torch": "2", "transformers": "5", "peft": "0"}}}
    cell = {"method": "coop", "title": "CoOp", "classes": 100, "precision": "float32", "cached": False}
    cell |= {"batch_size": 32, "steps": 10_000, "seconds_per_step": 1.26, "hours": 3.5, "peak_bytes": 1_540_000_000}
    skipped = {
        "method": "cocoop",
        "classes": 1000,
        "precision": "float32",
        "cached": False,
        "skipped": "want of memory",
    }
    shown = page["render"]({"about": about, "cells": {"a": cell, "b": skipped}})
    assert "| CoOp | 100 | images | float32 | 32 | 10,000 | 1.3 | 3.5 h | 1.5 |" in shown
    assert "| cocoop | 1,000 | images | float32 | – | – | – | want of memory | – |" in shown
    assert "bf16 was not measured" in shown and "A CPU, 2 cores" in shown

"""What papers report for CLIP ViT-B/16, to stand beside accuracies that were measured in the same setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from ...tuners.base.registry import METHODS
from ...utils.hub import split_revision
from ..authors import Choices, variation_of
from ..settings import RECIPE_CHANGES, as_json
from .cell import BENCH
from .protocols import PROTOCOLS
from .tasks import SOURCE


#: The last part of the base model's name that all numbers are of.
BASE_MODEL = "clip-vit-base-patch16"

#: Seeds over which the papers average, and their images per class.
SEEDS, SHOTS = 3, 16

#: Data sets over which they average base-to-novel accuracies.
TASKS = 11


class Published(NamedTuple):
    """What a paper says of a method in a protocol.

    Attributes:
        source: paper and table.
        values: accuracies in percent: of base-to-novel `base` and `novel` by task, of transfers by target; `mean` of all.
    """

    source: str
    values: Mapping[str, Any]


@cache
def _rows() -> list[dict]:
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)["rows"]


def published(report: Mapping) -> Published | None:
    """Return what is published for the setting of a cell; None where it is another one, or nothing is known of it.

    The setting is the same where base model, task, protocol, shots, method and its config are, and the recipe is the
    authors', with what they vary for the task and the protocol.

    Args:
        report: what `results.json` of the cell holds.
    """
    settings = report["settings"]
    if not _is_base_model(settings.get("model")) or not _is_task(report) or _is_changed(report):
        return None
    for row in _rows():
        same = (row["protocol"], row["method"], row.get("config", {}))
        if same == (report[BENCH]["protocol"], settings["method"], settings["config"]):
            return Published(row["source"], row["values"])
    return None


def _is_base_model(name: str | None) -> bool:
    return name is not None and split_revision(name)[0].rstrip("/").split("/")[-1] == BASE_MODEL


def _is_task(report: Mapping) -> bool:
    """Tell whether the images trained on are those of the papers: of the eleven data sets, of a transfer ImageNet."""
    benchmark = (report.get("data") or {}).get("benchmark") or ""
    if PROTOCOLS[report[BENCH]["protocol"]].transfers:
        return benchmark == SOURCE
    return benchmark.startswith(f"{SOURCE.partition('/')[0]}/")


def _is_changed(report: Mapping) -> bool:
    """Tell whether something else than the published setting was run."""
    settings = report["settings"]
    changes = (*RECIPE_CHANGES, "loss", "image_size")
    if any(settings.get(name) is not None for name in changes) or report.get("cached"):
        return True
    if METHODS[settings["method"]].trains and settings["shots"] != SHOTS:
        return True
    followed = report.get("published") or {}
    varied = Choices({}, variation_of(settings["method"], report["data"]["benchmark"], report[BENCH]["protocol"]))
    return any(followed.get(name) != value for name, value in as_json(varied.report).items())

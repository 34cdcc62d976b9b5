"""`results.json` of a run, as it may come from anybody: read with every type checked, and used only as what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import SafetensorError

from ..data.options import DataOptions
from ..data.readers import is_local
from ..peft_models.adapter_files import RESULTS, said_digest
from ..utils.fields import MAX_ITEMS, check_values, shown
from ..utils.io import read_json
from ..utils.validation import first_line
from ..utils.warning import warn_caller
from .settings import Settings


#: What a reader of results relies on: entry and type.
_ENTRIES: dict[str, Any] = {"settings": dict, "classes": dict, "data": dict | None}


def read_results(path: str | Path) -> dict | None:
    """Read what a run wrote beside its adapter; None where there is no such file.

    Raises:
        ValueError: the file is damaged, or was not written by a run; names the file and the entry.
    """
    try:
        report = read_json(path, missing_ok=True)
    except ValueError as error:
        raise _refusal(path, "a file that is no JSON") from error
    return report if report is None else check_results(report, path)


def results_of(adapter: str | Path, config: PeftConfig, subfolder: str | None = None) -> dict | None:
    """Read what the run that trained an adapter wrote beside it; None where another adapter has taken its place.

    Args:
        adapter: its folder; beside a Hub id there is nothing.
        config: its config.
        subfolder: of an adapter that is not in the first place.

    Raises:
        ValueError: as `read_results`.
    """
    report = read_results(Path(adapter, RESULTS))
    if report is None:
        return None
    trained = next(iter(report["classes"].values()))
    try:
        said = said_digest(adapter, {"subfolder": subfolder})
    except SafetensorError:  # damaged, which loading says
        said = None
    digests = (report.get("adapter_digest"), said)
    if getattr(config, "class_names", None) in (None, trained) and (None in digests or digests[0] == digests[1]):
        return report
    warn_caller(
        f"{str(Path(adapter, RESULTS))!r} is of another adapter than the one beside it, and is not used: the classes are those "
        "of the adapter's config. Move it away, or give what it would say (--model, --image-size, --data)."
    )
    return None


def check_results(report: Any, path: str | Path) -> dict:
    """Return what a results file holds, if it has the entries of a run with their types.

    Raises:
        ValueError: it has not; names the file and the entry.
    """
    if not isinstance(report, dict):
        raise _refusal(path, f"{shown(report)}")
    for name, kind in _ENTRIES.items():
        if name not in report or not isinstance(report[name], kind):
            raise _refusal(path, f"{name}={shown(report.get(name))}")
    if "model" not in report["settings"]:
        raise _refusal(path, "settings.model=None")
    used = {name: report["settings"].get(name) for name in ("model", "image_size")}
    _check(Settings, used, path, "settings")
    classes = report["classes"]
    lists = list(classes.values())
    if not lists or not all(isinstance(names, list) and len(names) <= MAX_ITEMS for names in lists):
        raise _refusal(path, f"classes={shown(classes)}")
    if not all(_is_name(name) for names in lists for name in names):
        raise _refusal(path, f"classes={shown(classes)}")
    if report["data"] is not None:
        check_data(report["data"], path)
    return report


def check_data(description: dict, path: str | Path) -> None:
    """Refuse what results say of their images where it is not what `vprompt train` says.

    Raises:
        ValueError: an entry that no option has, or of another type; names the file and the entry.
    """
    known = {field.name for field in fields(DataOptions)}
    if "path" not in description or (unknown := sorted(description.keys() - known)):
        raise _refusal(path, f"data with {shown(unknown[0]) if 'path' in description else 'no path'}")
    _check(DataOptions, description, path, "data")


def _check(kind: type, values: dict, path: str | Path, entry: str) -> None:
    try:
        check_values(kind, values)
    except ValueError as error:
        raise _refusal(path, f"{entry} of which {first_line(error)}") from error


def require_local_data(description: dict | None, path: str | Path) -> None:
    """Refuse images that a results file names and that are not on this machine: nothing is downloaded unasked.

    Args:
        description: the entry `data` of the file; None for the embedded task.
        path: the results file.

    Raises:
        ValueError: names the data set, and how to ask for it.
    """
    if description is None:
        return
    place = description["path"]
    if not is_local(place) or "://" in place:
        raise ValueError(
            f"{str(path)!r} names the images {shown(place)}, which are not on this machine, and nothing that a file names is "
            f"downloaded unasked. Give --data, such as --data {place[:200]} if you trust it."
        )
    if description.get("follow_urls"):
        raise ValueError(
            f"{str(path)!r} asks to read images from addresses on the net, and nothing that a file names is downloaded "
            "unasked. Give --data and --follow-urls if you trust it."
        )


def require_own(path: str | Path, what: str, is_own: Callable[[Path], bool], option: str = "--output") -> None:
    """Refuse to write over a file that holds something else than what is going to be written.

    Args:
        path: the file, which may be there or not.
        what: what is going to be written, for the message.
        is_own: tells whether a file holds such a thing; it may raise ValueError where it cannot be read.
        option: which names the file, or what it lies beside or in.

    Raises:
        ValueError: the file is there and holds something else.
    """
    if not os.path.isfile(path):
        return
    try:
        own = is_own(Path(path))
    except ValueError:
        own = False
    if not own:
        raise ValueError(
            f"Expected {option} to name a new place, or {what} to write over. Received: {str(path)!r}, which holds something "
            "else. Choose another name, or move that file away."
        )


def holds(*entries: str) -> Callable[[Path], bool]:
    """Return what tells whether a file is JSON with these entries, for `require_own`."""

    def tell(path: Path) -> bool:
        held = read_json(path)
        return isinstance(held, dict) and set(entries) <= held.keys()

    return tell


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _refusal(path: str | Path, received: str) -> ValueError:
    return ValueError(
        f"Expected the results of `vprompt train` in {str(path)!r}. Received: {received}. Move the file away and give --data."
    )

"""What the README.md of a folder in the form of the Hub says of its data files: `configs`, read as `datasets` reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from ..utils.validation import first_line, shorten
from ..utils.warning import warn_caller
from .folders import split_name


README = "README.md"
#: What stands between two lines of dashes at the beginning of such a file.
_HEAD = re.compile(r"\A\s*---[^\n]*\n(.*?)^---", re.DOTALL | re.MULTILINE)


def configurations(readme: str) -> dict[str, str]:
    """Return the configurations that the text of a README.md declares: by name, where the first of their files are."""
    head = _HEAD.match(readme)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return {}
    declared = content.get("configs") if isinstance(content, dict) else None
    known = [config for config in declared if isinstance(config, dict)] if isinstance(declared, list) else []
    return {
        str(config.get("config_name")): _first(config.get("data_files", config.get("data_dir"))) for config in known
    }


def listed(known: Mapping[str, str]) -> str:
    """Return configurations as a message names them."""
    return shorten([f"{name} ({first})" for name, first in known.items()])


def _first(files: Any) -> str:
    while isinstance(files, (list, dict)) and files:
        files = files[0] if isinstance(files, list) else files.get("path")
    return str(files or ".")


def declared_files(root: Path) -> dict[str, str] | None:
    """Return the split of each data file of the default configuration of a folder; None where its README.md has none.

    Raises:
        ValueError: several configurations and no default, files that are not there or are in several splits; names all.
    """
    try:
        known = configurations((root / README).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    if not known:
        return None
    try:
        config = load_dataset_builder(str(root)).config
        files = [(path, str(split)) for split, paths in config.data_files.items() for path in paths]
    except (ValueError, TypeError, KeyError, OSError, DatasetsError, yaml.YAMLError) as error:
        raise ValueError(
            f"Cannot read what {root / README} declares (configs): {first_line(error)}. Name the folder or, by a pattern in "
            f"quotes, the files of a configuration as the data (--data): {listed(known)}."
        ) from error
    if len(dict(files)) < len(files):
        raise ValueError(
            f"{root / README} declares a file for several splits. Name the folder or, by a pattern in quotes, the files to "
            f"read as the data (--data): {listed(known)}."
        )
    if len(known) > 1:
        warn_caller(
            f"Of the configurations that {root / README} declares, the default is read, {config.name!r}. For another, name its "
            f"folder or, by a pattern in quotes, its files as the data (--data): {listed(known)}."
        )
    place = os.path.realpath(root)
    return {os.path.join(root, os.path.relpath(path, place)): split for path, split in files}


def require_declared(root: Path, splits: Mapping[str, Dataset], image: str, declared: Mapping[str, str]) -> None:
    """Refuse images that a README.md does not declare, or declares for other splits than their folders say.

    Raises:
        ValueError: there are some; names the first.
    """
    for name, rows in splits.items():
        for path in rows[image if image in rows.column_names else "image"][:]:
            said = declared.get(os.path.normpath(path))
            if said is None or (split_name(said) or said) != name:
                raise ValueError(
                    f"Expected the splits that {root / README} declares (configs). Received: {path} in {name!r}, which is "
                    f"{'not declared' if said is None else f'declared in {said!r}'}. Move the images into folders that say "
                    "their split, name a folder of them as the data (--data), or take `configs` out of that file."
                )

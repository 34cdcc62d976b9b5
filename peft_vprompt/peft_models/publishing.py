"""What leaves the machine: names of the Hub in the place of local paths, in configs and cards."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from peft.utils import CONFIG_NAME

from ..utils.io import atomic_path


#: How the Hub's cache names the folder of a snapshot of a model.
IN_CACHE = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]")

#: Fields of an adapter's config that name a model or a tokenizer.
NAMES = ("base_model_name_or_path", "tokenizer_name_or_path")

#: How a tag of PEFT's names the base model.
BASE_TAG = "base_model:adapter:"


def hub_id(name_or_path: str | None) -> str | None:
    """Return the name by which others find a model or a tokenizer: an id of the Hub, or None for a local folder."""
    if not name_or_path:
        return None
    if match := IN_CACHE.search(name_or_path):
        return match[1].replace("--", "/", 1)
    local = os.path.isdir(name_or_path) or os.path.isabs(name_or_path) or name_or_path.startswith((".", "~"))
    return None if local or "\\" in name_or_path else name_or_path


def publish_configs(folder: str | os.PathLike) -> None:
    """Leave out the local paths from the configs of the adapters in a folder."""
    for path in Path(folder).rglob(CONFIG_NAME):  # an adapter called "me/mine" lies two folders deep
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            config |= {name: hub_id(config[name]) for name in NAMES if name in config}
            with atomic_path(path) as partial:
                partial.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def publish_card(card: Any) -> None:
    """Leave out the local path of the base model, which the Hub refuses, from the data of a `ModelCard`."""
    base = card.data.get("base_model")
    if isinstance(base, str) and hub_id(base) != base:
        if (name := hub_id(base)) is None:
            card.data.pop("base_model")
        else:
            card.data["base_model"] = name
    tags = []
    for tag in card.data.tags or ():
        name = tag.removeprefix(BASE_TAG)
        named = hub_id(name) if tag.startswith(BASE_TAG) else name
        if named is not None:
            tags.append(f"{BASE_TAG}{named}" if tag.startswith(BASE_TAG) else tag)
    card.data.tags = tags


def download_card(
    repo_id: str,
    folder: str,
    revision: str | None,
    token: str | bool | None,
    other: str | os.PathLike | None = None,
) -> None:
    """Put the card that a repository has into a folder; where it has none, the file `other`, if that is there."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token)
    except (EntryNotFoundError, RevisionNotFoundError):
        if other is None or not os.path.isfile(other):
            return
        path = os.fspath(other)
    Path(folder, "README.md").write_bytes(Path(path).read_bytes())

"""Names of models and adapters: a folder, a Hub id, or a Hub id at one revision, `id@revision`."""

from __future__ import annotations

import os


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the id and the revision (a branch, a tag or a commit) of `id@revision`; a folder or a plain id has none.

    Raises:
        ValueError: one side of the @ is empty.
    """
    if "@" not in name or os.path.exists(name):
        return name, None
    place, _, revision = name.rpartition("@")
    if not place or not revision:
        raise ValueError(f"Expected a folder, a Hub id, or id@revision. Received: {name!r}.")
    return place, revision

"""Files that appear whole or not at all: written under a temporary name, then renamed. JSON that every reader takes."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; renamed to `path` on success, removed on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; on success its files take their places in `folder`, on an error they go.

    Files and folders that the block did not write stay in `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        staging = Path(name)
        yield staging
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            destination = folder / path.relative_to(staging)
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, destination)


def write_json(data: dict, path: str | Path) -> None:
    """Write `data` as readable JSON. Infinity and not-a-number become null, which other JSON readers accept."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, missing_ok: bool = False):
    """Read what a JSON file holds; with `missing_ok`, return None where there is no such file.

    Raises:
        FileNotFoundError: there is no such file.
        json.JSONDecodeError: the file is not JSON.
    """
    path = Path(path)
    if missing_ok and not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Arrow files that end with a checksum of themselves: it stands behind the stream, where its readers stop before."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .io import set_aside


#: What the checksum at the end of a file begins with.
_MARK = b"vprompt-sha256:"
_SIZE = len(_MARK) + hashlib.sha256().digest_size


def add_checksum(path: Path) -> str:
    """Write the SHA-256 of a file to its end, and return it in hexadecimal."""
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_MARK + digest)
    return digest.hex()


def said_checksum(path: Path) -> str | None:
    """Return the checksum that a file ends with, without comparing; None where there is no such file, or no checksum.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _SIZE, 0))
            end = file.read()
    except FileNotFoundError:
        return None
    return end.removeprefix(_MARK).hex() if len(end) == _SIZE and end.startswith(_MARK) else None


def is_intact(path: Path) -> bool:
    """Tell whether a file ends with the checksum of what it holds.

    Raises:
        OSError: the file cannot be read.
    """
    said = said_checksum(path)
    return said is not None and _digest(path, path.stat().st_size - _SIZE).hex() == said


def keep_intact(path: Path, what: str) -> bool:
    """Tell whether there is a whole file; a damaged one is moved aside.

    Args:
        path: the file.
        what: what it holds, in the plural, for the warning.

    Raises:
        CannotWriteError: the folder is not to be written.
    """
    if not path.is_file():
        return False
    if is_intact(path):
        return True
    set_aside(path, what)
    return False


def _digest(path: Path, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest.digest()

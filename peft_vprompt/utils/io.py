"""Files that appear whole or not at all and outlast a power cut, folders that change in one step, JSON, full disks.

What is written goes under a hidden name, to the disk, and then to its place. An error of any writer that means that the
disk is full or the place is not to be written becomes one `CannotWriteError`.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

from ..errors import CannotWriteError
from .validation import first_line
from .warning import warn_caller


#: Folder of new files that are complete and on their way to their places.
PENDING = ".saving-complete"

#: How the folders begin in which new files are made.
_STAGING = ".saving-"

#: List, among the files on their way, of old ones that go when they have come.
_REMOVED = ".removed"

#: Why the system refuses to write, by the number of its error.
_REASONS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "files may not become that large there",
    errno.EROFS: "it is on a read-only file system",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "the device reports an error",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
}

#: What torch's writer says, which names no reason.
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|file write failed|iostream error")


@contextmanager
def disk_errors(place: str | Path, remedy: str = "choose another place") -> Iterator[None]:
    """Turn errors of any writer of `place`, a file or a folder, into one error that names it and the reason.

    Args:
        place: the file or folder.
        remedy: what to do where no room can be made.

    Raises:
        CannotWriteError: the disk is full, or `place` is not to be written.
    """
    try:
        yield
    except CannotWriteError:
        raise
    except Exception as error:
        found = _why_not_written(error, Path(place))
        if found is None:
            raise
        number, reason = found
        refused = CannotWriteError(
            f"Cannot write {str(place)!r}: {reason}. What was there before stays. Make room, or {remedy}, and start "
            "again."
        )
        refused.errno = number
        raise refused from error


def _why_not_written(error: BaseException, place: Path) -> tuple[int | None, str] | None:
    """Return number and reason of an error of a writer; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and (said := re.search(r"os error (\d+)|\[errno (\d+)\]", str(seen))):
            number = int(said[1] or said[2])  # safetensors and Arrow
        if number in _REASONS and _is_of(seen, number, place):
            return number, _REASONS[number]
        if isinstance(seen, RuntimeError) and _TORCH_WRITER.search(str(seen)):
            return errno.ENOSPC, _REASONS[errno.ENOSPC]
        seen = seen.__cause__ or seen.__context__
    return None


def _is_of(error: BaseException, number: int, place: Path) -> bool:
    """Tell whether an error is about `place`, not about a file that was read for it."""
    name = getattr(error, "filename", None)
    if name is None or number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    named = Path(os.path.abspath(os.fsdecode(name)))
    place = Path(os.path.abspath(place))
    return named.is_relative_to(place) or place.is_relative_to(named) or named.parent == place.parent


def sync(path: str | Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: the file cannot be opened, or not be written; of a folder nothing, where the system cannot do it.
    """
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if is_folder:  # not everywhere can a folder be opened
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder and error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; renamed to `path` on success, removed on an error.

    Raises:
        CannotWriteError: the disk is full, the folder is not to be written, or `path` is a folder or a device, which a file
            would replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise CannotWriteError(f"Cannot write {str(path)!r}: it is {what}. Name a file.")
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def set_aside(path: str | Path, what: str) -> None:
    """Move a damaged file of what is kept to `*.damaged`, and say so.

    Args:
        path: the file.
        what: what it holds, in the plural.

    Raises:
        CannotWriteError: the folder is not to be written.
    """
    path = Path(path)
    aside = path.with_suffix(".damaged")
    with disk_errors(path):
        os.replace(path, aside)
    warn_caller(
        f"The {what} in {str(path)!r} are damaged: their checksum is another. The file is now {aside.name!r}, and they are "
        "computed anew."
    )


@contextmanager
def atomic_files(folder: str | Path, instead_of: dict[str, str] | None = None) -> Iterator[Path]:
    """Yield a hidden folder to write to; on success its files take their places in `folder`, on an error they go.

    A kill leaves the old files or the new ones: from the moment that the new files are complete they take their places
    even when a kill comes between, on the next call here or of `finish_saving`. Files and folders that the block did not
    write stay. Others that save to the same folder wait meanwhile, where the file system has locks.

    Args:
        folder: the folder.
        instead_of: name of a file -> name of an old one that goes when the former comes.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            _finish(folder)
            for left in folder.glob(f"{_STAGING}*"):  # of a process that was killed, as no other is in here
                shutil.rmtree(left, ignore_errors=True)
            staging = Path(mkdtemp(dir=folder, prefix=_STAGING))
            try:
                yield staging
                _list_removed(staging, folder, instead_of or {})
                for path in staging.rglob("*"):
                    sync(path)
                os.rename(staging, folder / PENDING)
                sync(folder)
                _finish(folder)
            except CannotWriteError as error:  # of a writer that was given the hidden folder
                error.args = (str(error).replace(str(staging), str(folder)),)
                raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def finish_saving(folder: str | Path, began_with: str | None = None) -> None:
    """Let files take their places whose saving in `folder` was cut off when they were complete.

    Args:
        folder: where they were saved; a folder inside it will do, too.
        began_with: only if this file of `folder`, of those on their way, has its place already.

    Raises:
        CannotWriteError: the folder is not to be written.
        ValueError: the files on their way are for places outside of the folder.
    """
    folder = Path(folder)
    for top in (folder, folder.parent):
        pending = top / PENDING / folder.relative_to(top)
        if pending.is_dir() and not (began_with and (pending / began_with).exists()):
            with disk_errors(top), _alone_in(top):
                _finish(top)


def _list_removed(staging: Path, folder: Path, instead_of: dict[str, str]) -> None:
    written = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
    removed = [path.with_name(instead_of[path.name]) for path in written if path.name in instead_of]
    gone = [str(path) for path in removed if path not in written and (folder / path).is_file()]
    if gone:
        (staging / _REMOVED).write_text(json.dumps(gone), encoding="utf-8")


def _finish(folder: Path) -> None:
    """Move complete files to their places: what describes others (configs) first, cards last.

    Raises:
        ValueError: they would take their places, or make others go, outside of the folder, which may be a stranger's.
    """
    pending = folder / PENDING
    if not pending.is_dir() or pending.is_symlink():
        return
    paths = [path for path in pending.rglob("*") if path.is_file() and path.name != _REMOVED]
    removed = read_json(pending / _REMOVED, missing_ok=True) or []
    if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
        raise ValueError(f"Expected a list of names in {str(pending / _REMOVED)!r}. Remove {str(pending)!r}.")
    for name in [*removed, *(str(path.relative_to(pending)) for path in paths)]:
        if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"Expected files in {str(pending)!r} for {str(folder)!r} alone. Received: {name[:200]!r}, which is outside of "
                f"it. Nothing was changed. Remove {str(pending)!r} unless you know who made it."
            )
    for path in sorted(paths, key=lambda path: (path.suffix == ".md", path.parent, path.name)):
        destination = folder / path.relative_to(pending)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    for place in {folder, *(folder / path.relative_to(pending).parent for path in paths)}:
        sync(place)
    shutil.rmtree(pending)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes and threads out of a block for this folder, where the file system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a shared file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_json(data: dict, path: str | Path) -> None:
    """Write `data` as readable JSON. Infinity and not-a-number become null, which other JSON readers accept.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, missing_ok: bool = False) -> Any:
    """Read what a JSON file holds; with `missing_ok`, return None where there is no such file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; names it.
    """
    path = Path(path)
    if missing_ok and not path.is_file():
        return None
    text = read_text(path)
    try:
        return json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also integers of thousands of digits, and lists in lists without end
        raise ValueError(f"Expected JSON in {str(path)!r}. Received: {first_line(error)}.") from error


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such text; names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected text in UTF-8 in {str(path)!r}. Received: {error.reason} at byte {error.start}. Save it in UTF-8."
        ) from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""One writer for each folder: a lock that says who holds it and that a dead owner does not keep.

The lock is a file with process, host and start time of its owner, who touches it while it lives (`filelock`'s lease). On
the same host an owner is dead when there is no such process any more; on another host, when the file is not touched.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import SoftFileLease, Timeout

from ..errors import FolderInUseError
from .io import disk_errors


#: Seconds after which the lock of an owner on another host is taken over, if nobody touched it meanwhile.
LEASE = 30.0

#: Seconds for which an owner on another host is watched.
PATIENCE = LEASE + 5

#: Name of the lock in a folder.
LOCK = ".vprompt.lock"


class Writer:
    """The right to write to a place.

    Args:
        lease: the lock that gives it.
        place: the folder or the file.
    """

    def __init__(self, lease: SoftFileLease, place: Path):
        self._lease = lease
        self._place = place

    def check(self) -> None:
        """Refuse to go on after another process took over, as after a long standstill of this one.

        Raises:
            FolderInUseError: another process took over.
        """
        if self._lease.compromise is not None:
            raise FolderInUseError(
                f"The lock of {str(self._place)!r} was lost ({self._lease.compromise.reason}): this process stood still "
                "too long, and another may write there now. Nothing more was written. Start again."
            )


@contextmanager
def only_writer(place: str | Path, wait: bool = False, is_file: bool = False, each: bool = False) -> Iterator[Writer]:
    """Be the only one that writes to a folder, or to a file and what lies beside it under its name.

    Of several processes of one training (`torchrun`) the first one holds the lock for all.

    Args:
        place: the folder, which is made, or the file.
        wait: wait until another writer is done; else refuse.
        is_file: whether `place` is a file.
        each: let each process of one training hold a lock of its own, for places that they share out among them.

    Raises:
        FolderInUseError: another process writes there; says which.
        CannotWriteError: the place is not to be written.
    """
    place = Path(place)
    path = _lock_of(place, is_file)
    lease = SoftFileLease(path, lease_duration=LEASE, timeout=0, is_singleton=False)
    if int(os.environ.get("RANK", "0") or 0) and not each:
        yield Writer(lease, place)
        return
    made = [folder for folder in path.parents if not folder.exists()]
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lease, place, wait)
    try:
        yield Writer(lease, place)
    finally:
        lease.release()
        with suppress(OSError):  # what was not refused left something
            for folder in made:
                folder.rmdir()


def is_locked(place: str | Path, is_file: bool = True) -> bool:
    """Tell whether somebody holds the lock of a place, or died with it."""
    return _lock_of(Path(place), is_file).exists()


def _lock_of(place: Path, is_file: bool) -> Path:
    return place.with_name(f".{place.name}.lock") if is_file else place / LOCK


def _acquire(lease: SoftFileLease, place: Path, wait: bool) -> None:
    try:
        lease.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
        return
    except FileNotFoundError:  # the writer before left nothing, not even the folder
        Path(lease.lock_file).parent.mkdir(parents=True, exist_ok=True)
        return _acquire(lease, place, wait)
    except Timeout:
        owner, since = _owner(lease)
    if owner is not None and not _lives_here(owner):
        try:  # of another host, who may be gone
            lease.acquire(timeout=PATIENCE, poll_interval=0.1)
            return
        except Timeout:
            owner, since = _owner(lease)
    who = f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else "another process"
    raise FolderInUseError(
        f"Another run writes to {str(place)!r}: {who}{since}. Wait until it is done (--wait does), stop it, or choose "
        "another --output."
    )


def _owner(lease: SoftFileLease):
    """Return the record of the lock's owner and since when it holds the lock, as far as they can be read."""
    try:
        made = os.stat(lease.lock_file)
    except OSError:
        return lease.owner, ""
    touched = datetime.fromtimestamp(made.st_mtime).astimezone()
    return lease.owner, f", last seen {touched:%Y-%m-%d %H:%M:%S %z}"


def _lives_here(owner) -> bool:
    """Tell whether the owner is a process of this host that lives."""
    if owner.hostname.partition("?")[0] != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

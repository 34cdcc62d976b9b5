"""One writer for each folder: a lock that says who holds it and that a dead owner does not keep.

The lock is a file with process, host and start time of its owner, who touches it while it lives (`filelock`'s lease). On
the same host an owner is dead when there is no such process any more; on another host, when the file is not touched.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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

    @property
    def is_lost(self) -> bool:
        """Whether another process took over, as after a long standstill of this one."""
        return self._lease.compromise is not None

    def check(self) -> None:
        """Refuse to go on after another process took over.

        Raises:
            FolderInUseError: another process took over.
        """
        if self._lease.compromise is not None:
            raise FolderInUseError(
                f"The lock of {str(self._place)!r} was lost ({self._lease.compromise.reason}): this process stood still "
                "too long, and another may write there now. Nothing more was written. Start again."
            )


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        pid: its process.
        host: its host.
        seen: when it last touched the lock, by the clock of the file system; None where that cannot be read.
    """

    pid: int
    host: str
    seen: datetime | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def lives_here(self) -> bool:
        """Whether it is a process of this host that lives."""
        if not self._is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this host, and is no more; nothing is known so quickly of another host's."""
        return self._is_here and not self.lives_here

    @property
    def _is_here(self) -> bool:
        return self.host == socket.gethostname()


class Claim:
    """The lock of a file that is asked for without waiting, again and again, as by a worker that looks for work.

    One and the same object has to ask: an owner on another host is dead when these tries saw it silent for `LEASE`
    seconds.

    Args:
        place: the file; its folder is made.
    """

    def __init__(self, place: str | Path):
        self._place = Path(place)
        self._lease = _lease(self._place, is_file=True)

    @contextmanager
    def tried(self) -> Iterator[Writer | None]:
        """Hold the lock in the block if it is free; yield None where another process holds it.

        Raises:
            CannotWriteError: the place is not to be written.
        """
        with disk_errors(self._place.parent):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lease.acquire(timeout=0)
            except (Timeout, FileNotFoundError):  # the latter: the folder went with the writer before
                held = False
            else:
                held = True
        if not held:
            yield None
            return
        try:
            yield Writer(self._lease, self._place)
        finally:
            self._lease.release()


def holder_of(place: str | Path) -> Holder | None:
    """Return who holds the lock of a file, dead or alive; None where nobody does. The lock stays as it is."""
    return _holder(_lease(Path(place), is_file=True))


@contextmanager
def only_writer(place: str | Path, wait: bool = False, is_file: bool = False) -> Iterator[Writer]:
    """Be the only one that writes to a folder, or to a file and what lies beside it under its name.

    Of several processes of one training (`torchrun`) the first one holds the lock for all.

    Args:
        place: the folder, which is made, or the file.
        wait: wait until another writer is done; else refuse.
        is_file: whether `place` is a file.

    Raises:
        FolderInUseError: another process writes there; says which.
        CannotWriteError: the place is not to be written.
    """
    place = Path(place)
    lease = _lease(place, is_file)
    if int(os.environ.get("RANK", "0") or 0):
        yield Writer(lease, place)
        return
    path = Path(lease.lock_file)
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


def _lease(place: Path, is_file: bool) -> SoftFileLease:
    path = place.with_name(f".{place.name}.lock") if is_file else place / LOCK
    return SoftFileLease(path, lease_duration=LEASE, timeout=0, is_singleton=False)


def _acquire(lease: SoftFileLease, place: Path, wait: bool) -> None:
    try:
        lease.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
        return
    except FileNotFoundError:  # the writer before left nothing, not even the folder
        Path(lease.lock_file).parent.mkdir(parents=True, exist_ok=True)
        return _acquire(lease, place, wait)
    except Timeout:
        holder = _holder(lease)
    if holder is not None and not holder.lives_here:
        try:  # of another host, who may be gone
            lease.acquire(timeout=PATIENCE, poll_interval=0.1)
            return
        except Timeout:
            holder = _holder(lease)
    seen = f", last seen {holder.seen:%Y-%m-%d %H:%M:%S %z}" if holder and holder.seen else ""
    raise FolderInUseError(
        f"Another run writes to {str(place)!r}: {holder or 'another process'}{seen}. Wait until it is done (--wait does), "
        "stop it, or choose another --output."
    )


def _holder(lease: SoftFileLease) -> Holder | None:
    """Return the owner of a lock, as far as it can be read."""
    owner = lease.owner
    if owner is None:
        return None
    try:
        seen = datetime.fromtimestamp(os.stat(lease.lock_file).st_mtime).astimezone()
    except OSError:
        seen = None
    return Holder(owner.pid, owner.hostname.partition("?")[0], seen)

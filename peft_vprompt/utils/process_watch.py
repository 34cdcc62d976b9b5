"""The end of one process of a launcher is the end of all, within a minute and with one message.

`torchrun` and `accelerate launch` notice a process that dies. They do not notice one that stands still (`SIGSTOP`, a dead
disk), and nobody notices when they are killed themselves. So each process has a thread that counts in the launcher's store
while it lives, looks whether the next process counts, too, and whether the launcher is there. The first to see that
something is wrong says so; all end.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

from torch import distributed

from ..errors import ProcessLostError
from .processes import Processes, all_processes, is_first_here


#: Seconds between two signs of life, and after how many without one a process counts as stopped.
BEAT, SILENCE = 3.0, 30.0

#: Seconds between two looks at the launcher and at what the others say.
LOOK = 0.5

#: What NCCL and gloo say in a process whose partner has gone.
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket", re.IGNORECASE)

#: Last sentence of the message of an end that nobody wanted; `set_restart_hint` changes it.
_restart_hint = ["Start again in the same way."]


def set_restart_hint(hint: str) -> None:
    """Set what the message of an end that nobody wanted closes with: what the next start goes on from, as a sentence."""
    _restart_hint[0] = hint


class Watch(threading.Thread):
    """Watch the other processes and the launcher, and end this process with them.

    Args:
        processes: all of them.
        store: where they leave signs of life; a connection of its own, which does not wait behind another's.
        end: what ends this process when something is wrong, given the message, or None where another one says it.

    Attributes:
        is_ending: whether this process ends all.
    """

    def __init__(self, processes: Processes, store: distributed.Store, end: Callable[[str | None], object]):
        super().__init__(daemon=True, name="process watch")
        self.processes = processes
        self.store = store
        self.end = end
        self._parent = os.getppid()
        self._next = (processes.number + 1) % processes.count
        self._left = threading.Event()
        self.is_ending = False
        store.set(f"place/{processes.number}", f"{socket.gethostname()} {os.getpid()}")

    def run(self) -> None:
        """Look, until this process leaves."""
        beat_at = heard_at = time.monotonic()
        heard = -1
        while not self._left.wait(LOOK):
            if os.getppid() != self._parent:
                return self._end("The launcher has gone.")
            try:
                if self.store.check(["ended"]):
                    return self._end(None)
                if time.monotonic() < beat_at:
                    continue
                beat_at = time.monotonic() + BEAT
                self.store.add(f"beats/{self.processes.number}", 1)
                count = self.store.add(f"beats/{self._next}", 0)
                if count != heard or self.store.check([f"left/{self._next}"]):
                    heard, heard_at = count, time.monotonic()
            except (RuntimeError, OSError):
                return self._end("The launcher, or the first process, has gone.")
            if time.monotonic() - heard_at > SILENCE:
                return self._end(*self._silent())

    def leave(self) -> None:
        """Stop watching, and let the others know that this process is done."""
        self._left.set()
        self.join()
        with suppress(RuntimeError, OSError):
            self.store.set(f"left/{self.processes.number}", "")

    def claim(self) -> bool:
        """End all processes; tell whether this one is the first to do so, and says why."""
        self.is_ending = True
        try:
            mine = str(self.processes.number)
            return self.store.compare_set("ended", "", mine).decode() == mine
        except (RuntimeError, OSError):  # without the launcher's store: one process of each machine says it
            return is_first_here()

    def _end(self, reason: str | None, pid: int | None = None) -> None:
        """End this process, unless it leaves or ends all itself, and before it process `pid` of this machine."""
        if self._left.is_set() or self.is_ending:
            return
        says = reason is not None and self.claim()
        if pid is not None:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.end(f"{reason} {_restart_hint[0]}" if says else None)

    def _silent(self) -> tuple[str, int | None]:
        """Say which process stands still; with its number, where it is of this machine: it does not hear its launcher."""
        host, pid = self.store.get(f"place/{self._next}").decode().split()
        said = f"Process {self._next} of {self.processes.count} ({pid} on {host}) has stood still for {SILENCE:.0f} seconds."
        return f"{said} All were ended.", int(pid) if host == socket.gethostname() else None


@contextmanager
def watched(device: str | None, say: Callable[[str], object]) -> Iterator[Processes]:
    """Join the processes of a launcher for a block, and end with them if one of them ends.

    It is for a command under a launcher of several processes, whose store it connects to, and for the main thread, where it
    handles SIGTERM. One process raises and says why; the others end by `os._exit`, which runs no `finally` and no
    `atexit`: what is written has to be whole at any time.

    Args:
        device: where to compute, as for `all_processes`.
        say: prints the message of an end that nobody wanted.

    Raises:
        ProcessLostError: another process has gone.
    """
    processes = all_processes(device)

    def end(message: str | None) -> NoReturn:
        if message is not None:
            say(message)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the main thread may wait for a process that does not answer

    watch = Watch(processes, _connect(), end)
    before = _on_termination(watch, end)
    watch.start()
    try:
        yield processes
        processes.wait()  # the first one is done last: it writes
        watch.leave()
        signal.signal(signal.SIGTERM, before)
    except Exception as error:  # SIGTERM stays handled: the launcher sends it while this process still says why
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
        if lost or not processes.is_first:
            time.sleep(3 * LOOK)  # who has a reason says it, and of several the first one
        says = watch.claim()
        watch.leave()
        if not says:
            end(None)
        if lost:
            raise ProcessLostError(f"Another process of this command has ended. {_restart_hint[0]}") from error
        raise


def _connect() -> distributed.Store:
    """Return a connection to the store by which the processes found each other."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE)
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a launcher that starts all anew keeps its store
    return distributed.PrefixStore(f"vprompt/{attempt}", store)


def _on_termination(watch: Watch, end: Callable[[str | None], object]):
    """End with a message where the launcher ends this process, since another one has gone; return what was before."""
    owner = os.getpid()

    def handle(number, frame) -> None:
        if os.getpid() != owner:  # of a process that loads images
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if watch.is_ending:  # and says why
            return
        reason = "Another process of this command has ended, or the launcher was told to stop."
        end(f"{reason} {_restart_hint[0]}" if watch.claim() else None)

    return signal.signal(signal.SIGTERM, handle)

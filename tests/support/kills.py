"""Kills in a child process: nothing that would tidy up afterwards runs, as after `kill -9`."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import count


#: What moves, makes and removes files: a kill before each call is a kill at each moment that matters.
CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "open", "fsync")


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that is killed before its call number `call` of the system's files; False if it got through."""
    child = os.fork()
    if child == 0:
        calls = count()

        def counted(real):
            def wrapped(*args, **kwargs):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return wrapped

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def every_kill(work: Callable[[], object], every: int = 1) -> Iterator[int]:
    """Yield after a kill before each call in turn, or each `every`-th; the last time no call is left to be killed."""
    for call in count(0, every):
        killed = killed_at(call, work)
        yield call
        if not killed:
            return

"""`SwitchLock`: many calls of a model at a time, or one change of the adapter that answers.

Which adapter is active, and whether any is, stands in many layers. A call that came between two of them would be answered
by one adapter's images and another's texts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class SwitchLock:
    """Calls share it (`with lock.call():`), a change has it alone (`with lock.change():`).

    A thread may make calls inside of its own calls and changes, and changes inside of its calls if it undoes them there:
    the frozen model is asked so. A copy of a lock is a new one.
    """

    def __init__(self):
        self._turn = threading.Condition()
        self._calls: dict[int, int] = {}  # thread -> its calls, one inside the other
        self._parked: set[int] = set()  # threads that wait, in the middle of a call, to make a change
        self._waiting = 0
        self._owner: int | None = None
        self._depth = 0

    def __reduce__(self):
        return SwitchLock, ()

    def call(self) -> AbstractContextManager:
        """Keep changes by other threads out of the block; compiled code guards on the state itself."""
        return nullcontext() if torch.compiler.is_compiling() else self._call()

    def change(self) -> AbstractContextManager:
        """Keep calls by other threads out of the block."""
        return nullcontext() if torch.compiler.is_compiling() else self._change()

    @contextmanager
    def _call(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._turn:
            while me not in self._calls and self._owner != me and (self._owner is not None or self._waiting):
                self._turn.wait()
            self._calls[me] = self._calls.get(me, 0) + 1
        try:
            yield
        finally:
            with self._turn:
                self._calls[me] -= 1
                if not self._calls[me]:
                    del self._calls[me]
                    self._turn.notify_all()

    @contextmanager
    def _change(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._turn:
            self._waiting += 1
            if me in self._calls:
                self._parked.add(me)
                self._turn.notify_all()
            while not self._may_change(me):
                self._turn.wait()
            self._waiting -= 1
            self._parked.discard(me)
            self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._turn:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._turn.notify_all()

    def _may_change(self, me: int) -> bool:
        """Tell whether a thread has its turn: no other changes, and no other is in a call.

        Two that are both in a call would wait for each other for ever. Each undoes its change, so one goes first.
        """
        others = set(self._calls) - {me}
        if me in self._calls:
            others -= self._parked
        return self._owner in (None, me) and not others

"""`FeatureCache`: what class prompts give is computed once and dropped as soon as anything it depends on changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from .module_state import ModuleState


T = TypeVar("T")


class FeatureCache:
    """Keep, for each class list or packed sequence, what was computed from the last state it was asked for.

    An entry goes when its owner does. A copy of a cache starts empty.
    """

    def __init__(self):
        self._entries: WeakKeyDictionary = WeakKeyDictionary()

    def __reduce__(self):
        return FeatureCache, ()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def get(self, owner: object, state: ModuleState | None, compute: Callable[[], T]) -> T:
        """Return the value of `owner` in `state`, computed without gradients if it is not kept yet.

        Without a state, see `state_of`, it is computed as it stands: in a replica gradients flow, and nobody sees them come.
        """
        if state is None:
            self._entries.pop(owner, None)
            return compute()
        entry = self._entries.get(owner)
        if entry is None or not state.follows(entry[0]):
            state.freeze()
            # A tensor made under inference_mode could not be used in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                entry = (state, compute())
            self._entries[owner] = entry
        return entry[1]

"""The most memory that was held at a time, since a moment."""

from __future__ import annotations

from pathlib import Path

import torch


_PROCESS = Path("/proc/self")


class PeakMemory:
    """Counts from the moment that it is made."""

    def __init__(self):
        self._cards = range(torch.cuda.device_count())
        for card in self._cards:
            torch.cuda.reset_peak_memory_stats(card)
        self._counts = _start_anew()

    def so_far(self) -> dict[str, int | None]:
        """Return what was held at most since, in bytes.

        Returns:
            `process_bytes`, by the process, with all that it had before (None where the system does not tell: not
            Linux); `device_bytes`, by tensors on the graphics card that had most (None without one).
        """
        held = [torch.cuda.max_memory_allocated(card) for card in self._cards]
        return {
            "process_bytes": _high_water_mark() if self._counts else None,
            "device_bytes": max(held, default=None),
        }


def _start_anew() -> bool:
    """Forget what the process held at most so far; False where the system has no such thing."""
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water_mark() -> int | None:
    """Return the bytes that the process held at most, as the system counts them."""
    lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None

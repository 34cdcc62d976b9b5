"""Memory of this process and of its device, as the system counts it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


#: Bytes of the numbers that `resource` gives: kilobytes on Linux, bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Peak:
    """The most memory that was in use while a block ran, in bytes.

    Attributes:
        before: in use when the block began.
        bytes: the most in use since then; of the whole process where the system cannot start the count anew.
    """

    def __init__(self, before: int):
        self.before = before
        self.bytes = before


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the most memory that is in use while the block runs: of the process on a CPU, of torch on a graphics card.

    Memory that was freed before is given back to the system first, as far as the allocator does that.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(torch.cuda.memory_allocated(device))
        try:
            yield peak
        finally:
            torch.cuda.synchronize(device)
            peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    _start_anew()
    peak = Peak(resident_bytes())
    try:
        yield peak
    finally:
        peak.bytes = max(peak.before, most_resident_bytes())


class PeakMemory:
    """The most memory that was held at a time since the moment that this is made, by the process and on graphics cards."""

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
            "process_bytes": most_resident_bytes() if self._counts else None,
            "device_bytes": max(held, default=None),
        }


def resident_bytes() -> int:
    """Return the memory that this process has at present."""
    return kernel_field("/proc/self/status", "VmRSS") or most_resident_bytes()


def most_resident_bytes() -> int:
    """Return the most memory that this process has had since its start, or since the count was started anew."""
    if found := kernel_field("/proc/self/status", "VmHWM"):
        return found
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def kernel_field(path: str, name: str) -> int:
    """Return a field of a file of the Linux kernel that counts in kilobytes, in bytes; 0 where there is none."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _start_anew() -> bool:
    """Start the count of the most memory anew; tell whether the system does that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True

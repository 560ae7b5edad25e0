"""How much memory this process has, how much of it is its own, and giving back what is free."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process, in bytes; None where the system does not tell.

    Arguments:
        resident: in RAM now, mapped files included.
        anonymous: of these, what belongs to this process alone and cannot be dropped and read
            again: what a device has to have.
        peak: the most that was resident since the process began.
    """

    resident: int | None
    anonymous: int | None
    peak: int | None


def memory() -> Memory:
    """Memory of this process now."""
    peak = re.search(r"^VmHWM:\s+(\d+) kB", _proc("status"), re.MULTILINE)
    rollup = _proc("smaps_rollup")
    resident = re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
    anonymous = re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    return Memory(
        resident=1024 * int(resident[1]) if resident else None,
        anonymous=1024 * int(anonymous[1]) if anonymous else None,
        peak=1024 * int(peak[1]) if peak else _peak_elsewhere(),
    )


def give_back() -> None:
    """Hand memory that was freed to the system, where this process would keep it for later: glibc
    does, and what a graph held is then on top of what the next one takes. Nothing elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return
    trim(0)


def _proc(name: str) -> str:
    try:
        return Path("/proc/self", name).read_text(encoding="utf-8")
    except OSError:
        return ""


def _peak_elsewhere() -> int | None:
    """Where there is no /proc: macOS counts bytes, others kibibytes."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

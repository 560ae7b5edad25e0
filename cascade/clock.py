"""What time it is, by two clocks: one that people set, and one that only runs.

The seam through which tests, and devices with a better clock, replace both.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment.

    Arguments:
        wall_s: seconds since 1970 as the system believes; jumps when it is set.
        uptime_s: seconds since the machine was started, suspension included; never jumps.
        boot: names the start that ``uptime_s`` counts from; uptimes of different ones cannot be
            compared.
    """

    wall_s: float
    uptime_s: float
    boot: str


def passed_s(before: Reading, now: Reading) -> float:
    """Seconds between two readings, ≥ 0. While the machine runs, time passes by its uptime alone:
    setting the wall clock buys nothing. Across a restart there is the wall clock alone, of which
    backwards counts as no time."""
    if now.boot == before.boot:
        return max(0.0, now.uptime_s - before.uptime_s)
    return max(0.0, now.wall_s - before.wall_s)


def own_time(before: Reading, now: Reading) -> Reading:
    """A reading whose wall clock goes by durations: nobody can set it. ``before`` is one, too."""
    return Reading(before.wall_s + passed_s(before, now), now.uptime_s, now.boot)


class Clock(Protocol):
    """A source of readings."""

    def read(self) -> Reading:
        """Both clocks now."""
        ...


class SystemClock:
    """The machine's own clocks.

    Where the system names no boot (it does on Linux), each process counts as one: time between
    processes is then told by the wall clock alone.
    """

    def __init__(self) -> None:
        try:
            self._boot = _BOOT_ID.read_text().strip()
        except OSError:
            self._boot = uuid.uuid4().hex

    def read(self) -> Reading:
        """Both clocks now."""
        return Reading(time.time(), _uptime_s(), self._boot)


def _uptime_s() -> float:
    # CLOCK_MONOTONIC stands still while a Linux machine sleeps; money is earned in sleep too.
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)

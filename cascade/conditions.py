"""What state the device is in: its connection, its battery, and whether it has time to spare.

``ConditionsSource`` is the seam: an app knows its platform better than this package does. What a
source does not know it leaves unknown, and nothing unknown stops a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

Connectivity = Literal["offline", "metered", "unmetered", "unknown"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The device's state at one moment.

    Arguments:
        battery_share: what is left of the battery, in [0, 1]; ``None`` without one.
        charging: whether it is connected to power; ``None`` where that is not known.
        idle: whether nobody uses it; ``None`` where that is not known.
        temperature_c: of the part that gets too hot first, in degrees Celsius; likewise.
    """

    connectivity: Connectivity = "unknown"
    battery_share: float | None = None
    charging: bool | None = None
    idle: bool | None = None
    temperature_c: float | None = None


class ConditionsSource(Protocol):
    """Tells the device's state."""

    def read(self) -> Conditions:
        """The state now. Must be quick: it is asked before every escalation."""
        ...

    def note_call(self, reached: bool) -> None:
        """A call to the cluster has ended; ``reached`` says whether there was a connection."""
        ...


class FixedConditions:
    """The state that an app says; ``set`` it whenever it changes."""

    def __init__(self, conditions: Conditions | None = None) -> None:
        self._conditions = conditions or Conditions()

    def set(self, conditions: Conditions) -> None:
        """From now on this is the state."""
        self._conditions = conditions

    def read(self) -> Conditions:
        """The state."""
        return self._conditions

    def note_call(self, reached: bool) -> None:
        """Changes nothing: the app knows."""


class LinuxConditions:
    """The state as the kernel tells it.

    Battery and charger are those of ``/sys/class/power_supply``. The device counts as offline when
    the last call found no connection *and* every network interface but the loopback is down: a
    cluster on the same machine needs none, and an interface that is up says little. That verdict is
    forgotten after ``forget_s``, so that one call looks again. Whether a connection is metered is
    not known here.

    Arguments:
        root: ``/sys/class``, or a copy for tests.
        now: a clock that does not jump.
        temperature: whether to read the hottest thermal zone too, a file for each; who trains looks
            at it, who escalates does not.
    """

    forget_s: Final = 5.0

    def __init__(
        self,
        root: Path = Path("/sys/class"),
        *,
        now: Callable[[], float] = time.monotonic,
        temperature: bool = False,
    ) -> None:
        self._root = root
        self._temperature = temperature
        self._now = now
        self._lock = threading.Lock()
        self._unreached_s: float | None = None

    def read(self) -> Conditions:
        """The state now; a few small files are read."""
        share, charging = self._power()
        hottest_c = self._hottest_c() if self._temperature else None
        connectivity: Connectivity = "offline" if self._offline() else "unknown"
        return Conditions(connectivity, share, charging, temperature_c=hottest_c)

    def note_call(self, reached: bool) -> None:
        """Remember whether the last call found a connection."""
        with self._lock:
            self._unreached_s = None if reached else self._now()

    def _offline(self) -> bool:
        with self._lock:
            unreached_s = self._unreached_s
        if unreached_s is None or self._now() - unreached_s >= self.forget_s:
            return False
        states = [
            _text(interface / "operstate")
            for interface in _entries(self._root / "net")
            if interface.name != "lo"
        ]
        return bool(states) and not any(state in ("up", "unknown") for state in states)

    def _hottest_c(self) -> float | None:
        """Of all thermal zones, in which the kernel tells thousandths of a degree."""
        told = [_text(zone / "temp") for zone in _entries(self._root / "thermal")]
        return max((int(each) / 1000 for each in told if each.lstrip("-").isdigit()), default=None)

    def _power(self) -> tuple[float | None, bool | None]:
        shares: list[float] = []
        charging: bool | None = None
        for supply in _entries(self._root / "power_supply"):
            # A mouse's battery (scope Device) is not this machine's.
            if _text(supply / "scope") == "Device":
                continue
            match _text(supply / "type"):
                case "Battery":
                    capacity = _text(supply / "capacity")
                    if capacity.isdigit():
                        shares.append(min(int(capacity), 100) / 100)
                    if _text(supply / "status") in ("Charging", "Full"):
                        charging = True
                    elif charging is None:
                        charging = False
                case "Mains" | "USB":
                    if _text(supply / "online") == "1":
                        charging = True
        return (min(shares) if shares else None), charging


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""

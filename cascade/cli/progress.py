"""Progress on standard error: a line that moves on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_QUIET_S = 5.0


class ProgressLine:
    """One named piece of work of known or unknown length.

    Arguments:
        name: what is being done, e.g. ``"certify"``.
        total: how many units there are; 0 where that is not known.
        unit: what is counted; ``"B"`` prints megabytes.
    """

    def __init__(self, name: str, total: int = 0, unit: str = "") -> None:
        self._name, self._total, self._unit = name, total, unit
        self._moving = sys.stderr.isatty()
        self._started = time.perf_counter()
        self._said_at = self._started if not self._moving else 0.0
        self._width = 0

    @property
    def total(self) -> int:
        """How many units there are; 0 where that is not known."""
        return self._total

    def update(self, done: int, note: str = "") -> None:
        """Say how far it is; more often than useful is fine."""
        if not self._due():
            return
        self._said_at = time.perf_counter()
        self._say(f"{self._name}: {self._amount(done)}{f' · {note}' if note else ''}", end="")

    def note(self, text: str, *, again: bool = False) -> None:
        """Say what is being done where there is nothing to count.

        Arguments:
            again: it was said before how far it was; more often than useful is fine.
        """
        if again and not self._due():
            return
        self._said_at = time.perf_counter()
        self._say(f"{self._name}: {text}", end="" if self._moving else "\n")

    def resize(self, total: int) -> None:
        """Correct how many units there are."""
        self._total = total

    def done(self, note: str = "") -> float:
        """End the line with the time it took, in seconds, which is also returned."""
        seconds = time.perf_counter() - self._started
        self._say(f"{self._name}: {note or 'done'} · {seconds:.1f} s", end="\n")
        return seconds

    def abandon(self) -> None:
        """End a moving line without a verdict, before an error is printed."""
        if self._moving and self._width:
            print(file=sys.stderr, flush=True)

    def _due(self) -> bool:
        return time.perf_counter() - self._said_at >= (0.1 if self._moving else _QUIET_S)

    def _amount(self, done: int) -> str:
        if self._unit == "B":
            whole = f" of {self._total / 1e6:.0f}" if self._total else ""
            return f"{done / 1e6:.0f}{whole} MB"
        whole = f" of {self._total}" if self._total else ""
        return f"{done}{whole}{' ' + self._unit if self._unit else ''}"

    def _say(self, text: str, end: str) -> None:
        if self._moving:
            padded = text.ljust(self._width)
            self._width = len(text)
            print(f"\r{padded}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

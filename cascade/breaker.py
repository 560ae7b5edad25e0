"""A circuit breaker: after a few failures in a row a cluster is left alone for a while.

It counts outcomes; what a failure is, and what happens to the request, is ``cascade.egress``'s
business. In memory: a process that starts looks for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cascade.errors import InvalidInput


class CircuitBreaker:
    """Closed: calls pass. Open: none does. Half open: one goes to look, the others wait.

    Arguments:
        failures: failures in a row that open it, ≥ 1.
        open_s: seconds until one call may look again, > 0.
        now: a clock that does not jump.

    Raises:
        InvalidInput: an argument is out of its range.
    """

    def __init__(
        self,
        failures: int = 3,
        open_s: float = 10.0,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1:
            raise InvalidInput("failures", f"{failures} is below 1")
        if not open_s > 0:
            raise InvalidInput("open_s", f"{open_s} is not a positive number of seconds")
        self._most = failures
        self._open_s = open_s
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_s: float | None = None
        self._probe_s: float | None = None

    @property
    def blocks(self) -> bool:
        """Whether a call would be refused now."""
        with self._lock:
            return self._blocks()

    def enter(self) -> bool:
        """Ask to make a call, which ``leave`` ends. False: it must not be made."""
        with self._lock:
            if self._blocks():
                return False
            self._probe_s = None if self._opened_s is None else self._now()
            return True

    def leave(self, outcome: bool | None) -> None:
        """A call has ended: true where the cluster answered in some way, false where it failed,
        ``None`` where it was given up before one could tell."""
        with self._lock:
            self._probe_s = None
            if outcome is None:
                return
            if outcome:
                self._failures, self._opened_s = 0, None
                return
            self._failures += 1
            if self._failures >= self._most:
                self._opened_s = self._now()

    def _blocks(self) -> bool:
        if self._opened_s is None:
            return False
        # A call that went to look and never came back is not waited for for ever.
        latest_s = self._opened_s if self._probe_s is None else self._probe_s
        return self._now() - latest_s < self._open_s

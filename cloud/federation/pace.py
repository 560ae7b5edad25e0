"""When devices are told to come back: a window that grows with the fleet.

A coordinator that says "in a minute" to a hundred thousand devices has them all in a minute. The
window is made so wide that those who were sent away in the last minute come back at a bearable rate
(Bonawitz et al. 2019, "Towards federated learning at scale", pace steering).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cascade.federation.terms import RetryWindow

_LOOK_BACK_S: Final = 60.0
_MOST_S: Final = 604_800.0


class Pace:
    """Windows for one gateway.

    Arguments:
        window_s: the narrowest window.
        per_s: calls that are wanted at most.
        now: a clock that does not jump.
    """

    def __init__(
        self,
        window_s: tuple[float, float],
        per_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._earliest_s, self._latest_s = window_s
        self._per_s = per_s
        self._now = now
        self._since = now()
        self._calls = self._calls_before = 0

    def window(self, not_before_s: float = 0.0) -> RetryWindow:
        """For a device that is answered now.

        Arguments:
            not_before_s: seconds for which it will not be wanted anyway.
        """
        passed_s = self._now() - self._since
        if passed_s >= _LOOK_BACK_S:
            missed = passed_s >= 2 * _LOOK_BACK_S
            self._calls_before, self._calls = (0 if missed else self._calls), 0
            self._since = self._now()
        self._calls += 1
        spread_s = max(self._calls, self._calls_before) / self._per_s
        earliest_s = min(max(self._earliest_s, not_before_s), _MOST_S)
        width_s = max(self._latest_s - self._earliest_s, spread_s)
        return RetryWindow(earliest_s, min(earliest_s + width_s, _MOST_S))

"""What a gateway knows of the last minute, for people who look now; the long run is ``metrics``.

Plain values that travel from the gateways' replicas through the supervisor to ``cascade cluster
status``, where those of several gateways are put together.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.strict import Fields

WINDOW_S: Final = 60.0
# The quantiles of more calls would not be seen to differ.
_MOST_CALLS: Final = 2000


@dataclass(frozen=True, slots=True)
class Figures:
    """One tier as the gateways saw it.

    Arguments:
        replicas: that run now.
        waiting, answering: calls now, before and after a tier has begun with them.
        window_s: how far back the following goes, > 0.
        calls, failed: that ended; ``failed`` counts neither cancelled ones nor wrong requests.
        seconds: how long each whole answer took, in any order; the last 2,000 at most.
        completion_tokens: written, also in answers that were broken off.
        cost_today_usd: since midnight UTC, or since the gateway started where that was later.
    """

    replicas: int = 0
    waiting: int = 0
    answering: int = 0
    window_s: float = WINDOW_S
    calls: int = 0
    failed: int = 0
    seconds: tuple[float, ...] = ()
    completion_tokens: int = 0
    cost_today_usd: float = 0.0

    @property
    def requests_per_s(self) -> float:
        """Calls that ended, per second of the window."""
        return self.calls / self.window_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens written, per second of the window."""
        return self.completion_tokens / self.window_s

    def quantile_s(self, share: float) -> float | None:
        """The time within which ``share`` of the whole answers came: the nearest rank; ``None``
        without any."""
        if not self.seconds:
            return None
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)]

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back equal figures."""
        return {**asdict(self), "seconds": [round(value, 4) for value in self.seconds]}

    @classmethod
    def from_json(cls, value: object, where: str = "figures") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or out of range; it is named.
        """
        fields = Fields(value, where)
        most = 2**53
        read = cls(
            replicas=fields.integer("replicas", 0, most),
            waiting=fields.integer("waiting", 0, most),
            answering=fields.integer("answering", 0, most),
            window_s=fields.number("window_s", 0.0),
            calls=fields.integer("calls", 0, most),
            failed=fields.integer("failed", 0, most),
            seconds=tuple(fields.numbers("seconds", 0.0)),
            completion_tokens=fields.integer("completion_tokens", 0, most),
            cost_today_usd=fields.number("cost_today_usd", 0.0),
        )
        fields.end()
        if read.window_s == 0:
            raise InvalidInput(f"{where}.window_s", "is not above 0")
        return read


def together(parts: Sequence[Figures]) -> Figures:
    """The figures of one tier as several gateways saw it; at least one."""
    return Figures(
        replicas=max(part.replicas for part in parts),
        waiting=sum(part.waiting for part in parts),
        answering=sum(part.answering for part in parts),
        window_s=max(part.window_s for part in parts),
        calls=sum(part.calls for part in parts),
        failed=sum(part.failed for part in parts),
        seconds=tuple(value for part in parts for value in part.seconds),
        completion_tokens=sum(part.completion_tokens for part in parts),
        cost_today_usd=sum(part.cost_today_usd for part in parts),
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    at: float
    failed: bool
    seconds: float | None
    tokens: int


@dataclass(slots=True)
class Recent:
    """Gathers the figures of one tier. Use it from one thread.

    Arguments:
        clock: seconds that only rise.
        today: the day that money is counted for.
    """

    clock: Callable[[], float] = time.monotonic
    today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date()
    waiting: int = 0
    answering: int = 0
    _calls: deque[_Ended] = field(default_factory=lambda: deque(maxlen=_MOST_CALLS))
    _began: float = field(init=False)
    _day: datetime.date | None = None
    _cost_usd: float = 0.0

    def __post_init__(self) -> None:
        self._began = self.clock()

    def ended(
        self, *, failed: bool, seconds: float | None = None, tokens: int = 0, cost_usd: float = 0.0
    ) -> None:
        """A call is over; ``seconds`` is ``None`` where it brought no whole answer."""
        self._calls.append(_Ended(self.clock(), failed, seconds, tokens))
        self._new_day()
        self._cost_usd += cost_usd

    def figures(self, replicas: int) -> Figures:
        """As of now."""
        now = self.clock()
        self._new_day()
        calls = [call for call in self._calls if call.at >= now - WINDOW_S]
        since = now - self._began
        if len(self._calls) == _MOST_CALLS:  # the earlier ones were dropped
            since = now - self._calls[0].at
        return Figures(
            replicas=replicas,
            waiting=self.waiting,
            answering=self.answering,
            window_s=min(WINDOW_S, max(1.0, since)),
            calls=len(calls),
            failed=sum(call.failed for call in calls),
            seconds=tuple(call.seconds for call in calls if call.seconds is not None),
            completion_tokens=sum(call.tokens for call in calls),
            cost_today_usd=self._cost_usd,
        )

    def _new_day(self) -> None:
        if self._day != (day := self.today()):
            self._day, self._cost_usd = day, 0.0

"""How much a caller may still use: requests a minute, tokens and US dollars a day.

What is counted lies in one SQLite file, so it survives a restart, and all gateways of a machine
share it. Amounts are set aside before a tier is asked, by an upper bound, and settled by what was
used; of a gateway that dies in between, they stay spent. The arithmetic is ``cascade.budget``'s,
which counts anything: its dollars are requests and tokens here too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.budget import DAY_S, BudgetLedger, MoneyLimits, Reservation
from cascade.clock import Clock
from cascade.errors import CascadeError, RemoteError
from cloud.access_config import Quota, Quotas
from cloud.errors import QuotaExceeded

_log = logging.getLogger(__name__)

_MINUTES_PER_HOUR: Final = 60
_SECONDS_PER_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside for one call of a tier; ``None`` where there is no limit."""

    caller: str
    tokens: Reservation | None = None
    usd: Reservation | None = None


class QuotaBook:
    """The accounts of all callers. Its methods block for some milliseconds; call them in a thread.

    Arguments:
        quotas: who may use how much.
        file: where it is counted; made when it is first written.
        shares: files, each on a node of its own, that a quota is split over evenly: together they
            never let through more than it says.
        wall_s: the time in seconds since 1970, for how long a day still lasts.
    """

    def __init__(
        self,
        quotas: Quotas,
        file: Path,
        *,
        shares: int = 1,
        clock: Clock | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._quotas = quotas
        self._shares = shares
        self._file = file
        self._clock = clock
        self._wall_s = wall_s

    def admit(self, caller: str) -> None:
        """Count one request.

        Raises:
            QuotaExceeded: it is one too many.
            RemoteError: UNAVAILABLE, nobody can tell.
        """
        per_minute = self._quota(caller).requests_per_minute
        if per_minute is None:
            return
        # A minute's requests may come at once; then they flow in again evenly.
        burst = max(1.0, per_minute)
        limits = MoneyLimits(per_hour_usd=per_minute * _MINUTES_PER_HOUR, burst_usd=burst)
        ledger = self._ledger("requests", caller, limits)
        try:
            state, reservation = ledger.reserve(1.0)
            if reservation is not None:
                ledger.settle(reservation, 1.0)
                return
        except CascadeError as problem:
            raise _unknown(problem) from None
        lacking = 1.0 - (state.bucket_left_usd or 0.0)
        raise QuotaExceeded(
            "requests_per_minute",
            f"{caller} may ask {per_minute:g} times a minute{self._where}",
            lacking / per_minute * _SECONDS_PER_MINUTE,
        )

    def reserve(self, caller: str, *, tokens: int, usd: float) -> Hold:
        """Set aside what one call of a tier may take at the most.

        Raises:
            QuotaExceeded: there is not so much left.
            RemoteError: UNAVAILABLE, nobody can tell.
        """
        quota = self._quota(caller)
        held = None
        try:
            held = self._take("tokens", caller, quota.tokens_per_day, tokens)
            return Hold(caller, held, self._take("usd", caller, quota.usd_per_day, usd))
        except QuotaExceeded:
            self.settle(Hold(caller, held), tokens=0, usd=0.0)
            raise
        except CascadeError as problem:
            raise _unknown(problem) from None

    def settle(self, hold: Hold, *, tokens: int, usd: float) -> None:
        """Replace what was set aside by what was used. Where that cannot be written down, what was
        set aside stays spent, and the log says so."""
        quota = self._quota(hold.caller)
        for unit, limit, reservation, used in (
            ("tokens", quota.tokens_per_day, hold.tokens, float(tokens)),
            ("usd", quota.usd_per_day, hold.usd, usd),
        ):
            if reservation is None:
                continue
            try:
                ledger = self._ledger(unit, hold.caller, MoneyLimits(per_day_usd=limit))
                ledger.settle(reservation, used)
            except CascadeError as problem:
                _log.error("what %s used is not settled: %s", hold.caller, problem)

    def _quota(self, caller: str) -> Quota:
        quota = self._quotas.of(caller)
        return quota if self._shares == 1 else quota.divided(self._shares)

    @property
    def _where(self) -> str:
        return "" if self._shares == 1 else f" at each of {self._shares} nodes"

    def _take(
        self, unit: str, caller: str, limit: float | None, amount: float
    ) -> Reservation | None:
        if limit is None:
            return None
        # What costs nothing is not refused for want of money.
        if amount <= 0:
            return None
        ledger = self._ledger(unit, caller, MoneyLimits(per_day_usd=limit))
        _, reservation = ledger.reserve(amount)
        if reservation is not None:
            return reservation
        name, shown = {
            "tokens": ("tokens_per_day", f"{limit:,.0f} tokens"),
            "usd": ("usd_per_day", f"${limit:,.2f}"),
        }[unit]
        if amount > limit:
            problem = f"{caller} may use {shown} a day{self._where}"
            more = "and this request alone could take more; ask for fewer tokens"
            raise QuotaExceeded(name, f"{problem}, {more}", None)
        raise QuotaExceeded(
            name, f"{caller} may use {shown} a day{self._where}", DAY_S - self._wall_s() % DAY_S
        )

    def _ledger(self, unit: str, caller: str, limits: MoneyLimits) -> BudgetLedger:
        return BudgetLedger(self._file, limits, name=f"{unit} {caller}", clock=self._clock)


def _unknown(problem: CascadeError) -> RemoteError:
    # Shut rather than open: money is at stake.
    _log.error("quotas cannot be checked: %s", problem)
    return RemoteError("UNAVAILABLE", "what this caller may still use cannot be looked up now")

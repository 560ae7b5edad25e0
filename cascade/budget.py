"""Money: how much may be spent in a day and over time, kept across restarts and processes.

Money is reserved before a call and settled after it. The arithmetic is pure (``Account``); the
ledger keeps accounts in one SQLite file, which processes share and which survives a crash. A
reservation that nobody settles stays spent.

Clocks are trusted as far as they can be. While the machine runs, time passes by its uptime alone:
setting the wall clock forward or back buys nothing. Across a restart there is the wall clock alone:
backwards counts as no time at all, and however far it went forward, it fills the bucket once and
begins one day.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cascade.clock import Clock, Reading, SystemClock, passed_s
from cascade.errors import CascadeError, InvalidInput

DAY_S: Final = 86_400.0
_HOUR_S: Final = 3_600.0
# What one call may cost unless said otherwise: this share of the tightest limit.
_SHARE_OF_ONE_CALL: Final = 1 / 20
_WAIT_S: Final = 5.0
_DUST_USD: Final = 1e-12
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS account (
  name TEXT PRIMARY KEY, now_s REAL NOT NULL, uptime_s REAL NOT NULL, boot TEXT NOT NULL,
  day INTEGER NOT NULL, day_spent_usd REAL NOT NULL, bucket_spent_usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reservation (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, amount_usd REAL NOT NULL, day INTEGER NOT NULL,
  made_s REAL NOT NULL);
"""
# Settling later than this refunds nothing.
_EXPIRES_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class MoneyLimits:
    """How much may be spent, in US dollars. ``None`` sets no limit.

    Arguments:
        per_day_usd: in one day, from midnight to midnight UTC.
        per_hour_usd: what flows into the token bucket in an hour.
        burst_usd: what the bucket holds, and begins with; by default an hour's flow.
        per_request_usd: what one call may cost and what is set aside for it; by default a 20th of
            the tightest of the other limits. The cluster keeps it too.

    Raises:
        InvalidInput: an amount is negative or not finite, or a burst has no flow.
    """

    per_day_usd: float | None = None
    per_hour_usd: float | None = None
    burst_usd: float | None = None
    per_request_usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("per_day_usd", "per_hour_usd", "burst_usd", "per_request_usd"):
            amount = getattr(self, name)
            if amount is not None and not 0 <= amount < math.inf:
                raise InvalidInput(f"money.{name}", f"{amount} is not an amount of at least 0")
        if self.burst_usd is not None and self.per_hour_usd is None:
            raise InvalidInput("money.burst_usd", "needs per_hour_usd, which fills the bucket")

    @property
    def bucket_usd(self) -> float | None:
        """What the bucket holds when it is full."""
        return self.per_hour_usd if self.burst_usd is None else self.burst_usd

    def call_usd(self, max_cost_usd: float | None = None) -> float | None:
        """What one call may cost, given the request's own bound; ``None`` without any bound."""
        limits = [limit for limit in (self.per_day_usd, self.bucket_usd) if limit is not None]
        own = self.per_request_usd
        if own is None and limits:
            own = min(limits) * _SHARE_OF_ONE_CALL
        bounds = [bound for bound in (own, max_cost_usd) if bound is not None]
        return min(bounds) if bounds else None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What a decision looks at.

    Arguments:
        needed_usd: what has to be set aside for the call.
        day_left_usd, bucket_left_usd: what there is, below 0 where a call cost more than it was
            allowed to; ``None`` without that limit.
    """

    needed_usd: float
    day_left_usd: float | None
    bucket_left_usd: float | None

    @property
    def day_covers(self) -> bool:
        """Whether the day's money is enough."""
        return _covers(self.day_left_usd, self.needed_usd)

    @property
    def bucket_covers(self) -> bool:
        """Whether the bucket's is."""
        return _covers(self.bucket_left_usd, self.needed_usd)


@dataclass(frozen=True, slots=True)
class Account:
    """What was spent, as of one moment.

    Arguments:
        now_s: the account's own time in seconds since 1970: never runs backwards.
        uptime_s, boot: the reading that it was brought up to.
        day: the UTC day of ``now_s``, counted from 1970.
        day_spent_usd: in that day, reservations included.
        bucket_spent_usd: what the bucket lacks of being full.
    """

    now_s: float
    uptime_s: float
    boot: str
    day: int
    day_spent_usd: float = 0.0
    bucket_spent_usd: float = 0.0

    @classmethod
    def opened(cls, reading: Reading) -> Account:
        """An account from which nothing was spent yet."""
        day = int(reading.wall_s // DAY_S)
        return cls(reading.wall_s, reading.uptime_s, reading.boot, day)

    def at(self, reading: Reading, limits: MoneyLimits) -> Account:
        """The account at a later reading."""
        since_s = passed_s(Reading(self.now_s, self.uptime_s, self.boot), reading)
        now_s = self.now_s + since_s
        day = int(now_s // DAY_S)
        flow = (limits.per_hour_usd or 0.0) * since_s / _HOUR_S
        return Account(
            now_s,
            reading.uptime_s,
            reading.boot,
            day,
            self.day_spent_usd if day == self.day else 0.0,
            max(0.0, self.bucket_spent_usd - flow),
        )

    def state(self, needed_usd: float, limits: MoneyLimits) -> BudgetState:
        """What is left."""
        day, bucket = limits.per_day_usd, limits.bucket_usd
        return BudgetState(
            needed_usd,
            None if day is None else day - self.day_spent_usd,
            None if bucket is None else bucket - self.bucket_spent_usd,
        )

    def spend(self, amount_usd: float, *, same_day: bool = True) -> Account:
        """The account after an amount was taken, or given back where it is negative. A full bucket
        takes nothing back; a day takes back only what was taken from it."""
        day = self.day_spent_usd + amount_usd if same_day else self.day_spent_usd
        return replace(
            self,
            day_spent_usd=max(0.0, day),
            bucket_spent_usd=max(0.0, self.bucket_spent_usd + amount_usd),
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one call."""

    id: int
    amount_usd: float


class BudgetLedger:
    """The accounts of a device, in one SQLite file.

    Each method is one transaction, safe between threads and processes. A call takes about a
    millisecond on a local disk; the controller makes it in a worker thread.

    Arguments:
        path: the file; made when it is first written.
        name: which account; those who spend under one name share the limits.
        clock: where the time comes from.
    """

    def __init__(
        self, path: Path, limits: MoneyLimits, *, name: str = "device", clock: Clock | None = None
    ) -> None:
        self._path = path
        self.limits = limits
        self._name = name
        self._clock = clock or SystemClock()

    def peek(self, needed_usd: float) -> BudgetState:
        """What is left for a call; nothing is set aside.

        Raises:
            CascadeError: the file cannot be used.
        """
        with self._transaction() as file:
            return self._account(file).state(needed_usd, self.limits)

    def reserve(self, needed_usd: float) -> tuple[BudgetState, Reservation | None]:
        """Set money aside: what was left before, and the reservation where that was enough.

        Raises:
            CascadeError: the file cannot be used.
        """
        with self._transaction() as file:
            account = self._account(file)
            state = account.state(needed_usd, self.limits)
            if not (state.day_covers and state.bucket_covers):
                return state, None
            self._save(file, account.spend(needed_usd))
            made = file.execute(
                "INSERT INTO reservation (name, amount_usd, day, made_s) VALUES (?, ?, ?, ?)",
                (self._name, needed_usd, account.day, account.now_s),
            )
            return state, Reservation(int(made.lastrowid or 0), needed_usd)

    def settle(self, reservation: Reservation, cost_usd: float) -> None:
        """Replace a reservation by what the call really cost. Settled twice, or after it expired
        (an hour), it gives nothing back.

        Raises:
            InvalidInput: the cost is negative or not finite.
            CascadeError: the file cannot be used.
        """
        if not 0 <= cost_usd < math.inf:
            raise InvalidInput("cost_usd", f"{cost_usd} is not an amount of at least 0")
        with self._transaction() as file:
            account = self._account(file)
            file.execute("DELETE FROM reservation WHERE made_s < ?", (account.now_s - _EXPIRES_S,))
            found = file.execute(
                "SELECT amount_usd, day FROM reservation WHERE id = ? AND name = ?",
                (reservation.id, self._name),
            ).fetchone()
            if found is not None:
                file.execute("DELETE FROM reservation WHERE id = ?", (reservation.id,))
                amount, day = found
                account = account.spend(cost_usd - amount, same_day=day == account.day)
            self._save(file, account)

    def _account(self, file: sqlite3.Connection) -> Account:
        reading = self._clock.read()
        row = file.execute(
            "SELECT now_s, uptime_s, boot, day, day_spent_usd, bucket_spent_usd FROM account"
            " WHERE name = ?",
            (self._name,),
        ).fetchone()
        if row is None:
            return Account.opened(reading)
        return Account(*row).at(reading, self.limits)

    def _save(self, file: sqlite3.Connection, account: Account) -> None:
        file.execute(
            "INSERT OR REPLACE INTO account VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self._name,
                account.now_s,
                account.uptime_s,
                account.boot,
                account.day,
                account.day_spent_usd,
                account.bucket_spent_usd,
            ),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone in the file from its beginning."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # autocommit: transactions begin and end where this function says.
            with closing(
                sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            ) as file:
                file.executescript(_SCHEMA)
                file.execute("BEGIN IMMEDIATE")
                try:
                    yield file
                except BaseException:
                    file.execute("ROLLBACK")
                    raise
                file.execute("COMMIT")
        except (sqlite3.Error, OSError) as problem:
            raise CascadeError(
                f"the budget in {self._path} cannot be used ({problem}); mend or remove that file"
            ) from None


def _covers(left_usd: float | None, needed_usd: float) -> bool:
    # A budget of nothing covers nothing, not even a call that may cost nothing.
    return left_usd is None or (left_usd > 0 and left_usd >= needed_usd - _DUST_USD)

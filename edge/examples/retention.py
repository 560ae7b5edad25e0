"""How long examples stay, and which go first. Pure; the store applies it with every write,
and before examples are read.

Out go all that are too old. While there are then too many or too large ones, out go those that are
too large by themselves, then the least useful: those that a user called wrong, then answers of the
cluster, then confirmed ones, then corrections; and of one kind the oldest. Those that wait for a
user's word have room of their own, or else a full store would never hear of a local answer again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.strict import Fields

DAY_S: Final = 86_400.0
WAITING: Final = 0
"""The worth of what waits for a user's word."""

_MOST: Final = 2**53
_SPARE: Final = (
    50  # a full store makes room for so many parts of itself at once: it looks at all rows
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What retention looks at.

    Arguments:
        number: of the row.
        at_s: seconds since 1970.
        size: bytes.
        worth: 0 waits for a user's word; higher is more useful.
    """

    number: int
    at_s: float
    size: int
    worth: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows taken together: how many, their bytes, the oldest one's ``at_s``."""

    count: int = 0
    size: int = 0
    oldest_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of a store.

    Arguments:
        age_s: no example is older, > 0. A clock that is set ahead makes them older.
        count: of examples, ≥ 1.
        size: bytes of all texts together, ≥ 1; the file is larger by a quarter or so.
        waiting_age_s, waiting_count: the same for those that wait for a user's word, which may take
            a quarter of ``size`` on top.

    Raises:
        InvalidInput: a limit is out of range; it is named.
    """

    age_s: float = 90 * DAY_S
    count: int = 5_000
    size: int = 16_000_000
    waiting_age_s: float = 14 * DAY_S
    waiting_count: int = 500

    def __post_init__(self) -> None:
        for name in ("age_s", "waiting_age_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"retention.{name}", "is not a positive number of seconds")
        for name in ("count", "size", "waiting_count"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"retention.{name}", "is below 1")

    def to_text(self) -> str:
        """JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what ``to_text`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(text.encode(), "retention")
        read = cls(
            fields.number("age_s"),
            fields.integer("count", 1, _MOST),
            fields.integer("size", 1, _MOST),
            fields.number("waiting_age_s"),
            fields.integer("waiting_count", 1, _MOST),
        )
        fields.end()
        return read

    def keeps(self, waiting: Totals, others: Totals, now_s: float) -> bool:
        """Whether no row has to go, told by totals alone: quicker than looking at each."""
        return (
            waiting.count <= self.waiting_count
            and others.count <= self.count
            and waiting.size <= self.size // 4
            and others.size <= self.size
            and now_s - waiting.oldest_s <= self.waiting_age_s
            and now_s - others.oldest_s <= self.age_s
        )

    def outgoing(self, rows: Sequence[Kept], now_s: float) -> list[int]:
        """Numbers of the rows that have to go."""
        waiting = [row for row in rows if row.worth == WAITING]
        others = [row for row in rows if row.worth != WAITING]
        return [
            *_outgoing(waiting, now_s, self.waiting_age_s, self.waiting_count, self.size // 4),
            *_outgoing(others, now_s, self.age_s, self.count, self.size),
        ]


def _outgoing(rows: Sequence[Kept], now_s: float, age_s: float, count: int, size: int) -> list[int]:
    old = [row for row in rows if now_s - row.at_s > age_s]
    staying = sorted(
        (row for row in rows if now_s - row.at_s <= age_s),
        key=lambda row: (row.worth, row.at_s, row.number),
    )
    out = [row.number for row in old]
    number, total = len(staying), sum(row.size for row in staying)
    if number <= count and total <= size:
        return out
    count, size = count - count // _SPARE, size - size // _SPARE
    # One that fills the store alone must not push out all others before its turn comes.
    for row in sorted(staying, key=lambda row: row.size <= size):
        if number <= count and total <= size:
            break
        out.append(row.number)
        number, total = number - 1, total - row.size
    return out

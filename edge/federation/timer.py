"""A time span that is still the same one after a restart and after the wall clock was set.

The coordinator says "in so many seconds"; only the device's uptime measures them well. Across a
restart of the machine there is the wall clock alone, which is believed within the span itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from cascade.clock import Reading, passed_s
from cascade.strict import Fields


@dataclass(frozen=True, slots=True)
class Timer:
    """A span of ``span_s`` from ``began``."""

    span_s: float
    began: Reading

    def left_s(self, now: Reading) -> float:
        """What is left of it, in [0, ``span_s``]."""
        return max(self.span_s - passed_s(self.began, now), 0.0)

    def to_json(self) -> dict[str, object]:
        """The timer as it is stored."""
        return {"span_s": self.span_s, **asdict(self.began)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            InvalidInput: a field is missing or unusable.
        """
        fields = Fields(value, where)
        timer = cls(fields.number("span_s", 0.0), reading(fields))
        fields.end()
        return timer


def reading(fields: Fields) -> Reading:
    """Of the fields that ``asdict`` makes of one."""
    return Reading(fields.number("wall_s"), fields.number("uptime_s"), fields.text("boot"))

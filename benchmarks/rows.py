"""The rows that every benchmark writes: one number each, with what it should reach and how it came
about. Measuring is not done here."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Sense = Literal[">=", "<="]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number.

    Arguments:
        figure: what was measured, unique within a run.
        value: the number, or None where it could not be measured; ``how`` then says why.
        unit: of ``value``, ``reach`` and ``ci``.
        reach: the number to reach, or None where the row only stands beside another.
        sense: whether more or less is better.
        peer: what it was compared with, by name, version and build; None where with nothing.
        n: how many measurements ``value`` sums up.
        ci: bounds of a 95 % interval of the median, or None where ``n`` is too small for one.
        quick: from a short run; not for publishing.
        hardware: the machine and the runtime.
        how: how it was measured, in a sentence or two.
    """

    figure: str
    value: float | None
    unit: str
    reach: float | None
    sense: Sense
    peer: str | None
    n: int
    ci: tuple[float, float] | None
    quick: bool
    hardware: str
    how: str

    def __post_init__(self) -> None:
        numbers = [self.value, self.reach, *(self.ci or ())]
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.figure}: {numbers} has a number that is not finite")
        if self.sense not in get_args(Sense):
            raise ValueError(f"{self.figure}: sense {self.sense!r} is not one of {get_args(Sense)}")

    @property
    def reached(self) -> bool | None:
        """Whether ``value`` reaches ``reach``; None where one of them is missing."""
        if self.value is None or self.reach is None:
            return None
        return self.value >= self.reach if self.sense == ">=" else self.value <= self.reach


def to_json(rows: Iterable[Row]) -> bytes:
    """A JSON list, one row a line."""
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows)
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that a benchmark wrote.

    Raises:
        ValueError: it holds something else.
    """
    try:
        return [
            Row(**{**fields, "ci": tuple(fields["ci"]) if fields["ci"] else None})
            for fields in json.loads(path.read_bytes())
        ]
    except (TypeError, KeyError, ValueError) as problem:
        raise ValueError(f"{path} does not hold benchmark rows ({problem})") from None

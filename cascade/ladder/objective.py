"""What a ladder is wanted for: ``max accuracy s.t. cost<=0.001, p95<=2`` or
``min cost s.t. risk<=0.1``.

Everything after ``s.t.`` is certified; what is before it is made as good as that allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from cascade.certify import p_values
from cascade.errors import InvalidInput
from cascade.ladder.rows import LadderRows
from cascade.ladder.rungs import Taken
from cascade.rows import Floats

FIGURES: Final = ("accuracy", "risk", "excess", "cost", "p50", "p95", "leave")
"""``risk``: share of wrong answers. ``excess``: share that is wrong where the last tier is right.
``cost``: mean dollars a request. ``p50``, ``p95``: seconds. ``leave``: share of inputs that leave
the device, the measure of privacy."""

_LATER: Final = {"p50": 0.5, "p95": 0.05}
_GOAL = re.compile(r"(max|min)\s+(\w+)\s+s\.?t\.?\s+(.+)")
_LIMIT = re.compile(r"(\w+)\s*<=\s*([0-9.eE+-]+)")


@dataclass(frozen=True, slots=True)
class Limit:
    """figure ≤ limit."""

    figure: str
    limit: float

    @property
    def alpha(self) -> float:
        """The largest tolerated mean of ``losses``."""
        return _LATER.get(self.figure, self.limit)

    def losses(self, rows: LadderRows, taken: Taken) -> Floats:
        """A loss for each row, whose mean is to be at most ``alpha``.

        A quantile is bounded by the share beyond it: p95 ≤ t says that at most .05 come later.

        Raises:
            InvalidInput: the rows lack latencies or costs.
        """
        if self.figure in _LATER:
            return (_known(taken.latency_s(rows), "latency_s") > self.limit).astype(np.float64)
        if self.figure == "cost":
            return _known(taken.cost_usd(rows), "cost_usd")
        if self.figure == "leave":
            return taken.left(rows).astype(np.float64)
        wrong = ~taken.correct(rows)
        return (wrong & rows.correct[-1] if self.figure == "excess" else wrong).astype(np.float64)

    def p_value(self, total: float, rows: int, most_usd: float | None) -> float:
        """Of "the mean loss is above alpha", from the sum of ``rows`` losses: exact binomial for
        0/1 losses, Hoeffding-Bentkus for dollars."""
        if self.figure != "cost":
            return float(p_values.clopper_pearson(total, rows, self.alpha))
        if most_usd is None:
            raise InvalidInput(
                "most-usd", "is missing; a limit on the cost needs a bound on one request"
            )
        if most_usd <= self.limit:
            raise InvalidInput("most-usd", f"{most_usd:g} is not above the limit {self.limit:g}")
        return float(p_values.hoeffding_bentkus(total / most_usd, rows, self.limit / most_usd))


@dataclass(frozen=True, slots=True)
class Objective:
    """A goal and its limits.

    Arguments:
        text: as it was written.
        figure: to be made as small as possible; ``accuracy`` as large.
    """

    text: str
    figure: str
    limits: tuple[Limit, ...]


def read_objective(text: str) -> Objective:
    """Read an objective.

    Raises:
        InvalidInput: it is written otherwise; what is wrong is named.
    """
    match = _GOAL.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            "objective", f"{text!r} is not like 'min cost s.t. risk<=0.1' ('max accuracy s.t. …')"
        )
    direction, figure, rest = match.groups()
    if (direction == "max") != (figure == "accuracy") or figure not in FIGURES:
        names = ", ".join(name for name in FIGURES if name != "accuracy")
        raise InvalidInput("objective", f"begins with neither 'max accuracy' nor 'min' of {names}")
    limits = tuple(_limit(part) for part in rest.split(","))
    if len({limit.figure for limit in limits}) < len(limits):
        raise InvalidInput("objective", "limits a figure twice")
    return Objective(text.strip(), figure, limits)


def _limit(part: str) -> Limit:
    match = _LIMIT.fullmatch(part.strip())
    names = ", ".join(name for name in FIGURES if name != "accuracy")
    if match is None or match[1] not in FIGURES or match[1] == "accuracy":
        raise InvalidInput("objective", f"{part.strip()!r} is not FIGURE<=NUMBER, of {names}")
    try:
        limit = float(match[2])
    except ValueError:
        raise InvalidInput("objective", f"{match[2]!r} is no number") from None
    share = match[1] in ("risk", "excess", "leave")
    if not 0 < limit < (1 if share else np.inf):
        raise InvalidInput("objective", f"{part.strip()!r} is out of range")
    return Limit(match[1], limit)


def _known(values: Floats, name: str) -> Floats:
    if np.isnan(values).any():
        raise InvalidInput("objective", f"needs {name} of every tier, which the records lack")
    return values

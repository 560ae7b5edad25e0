"""An interval for the risk that holds at all times at once: a confidence sequence.

A Clopper-Pearson interval that is looked at after every audit is wrong sooner or later. This one
may be looked at whenever one likes.

The mathematics
---------------
x_1, x_2, … in {0, 1} with p_i = P(x_i = 1 | past), S_n their sum, and r_n = (p_1 + … + p_n)/n the
running risk. For every real l, E exp(l x_i - ln(1 - p_i + p_i e^l)) = 1, and ln(1 - p + p e^l) is
concave in p, so by Jensen

    exp(l S_n - n ln(1 - r_n + r_n e^l))  ≤  Π exp(l x_i - ln(1 - p_i + p_i e^l)),

a martingale that starts at 1. The same is true of an average over several l fixed beforehand. By
Ville's inequality that average at the true r_n is below 2/delta at all n at once with probability
1 - delta/2; the rates r for which it is form an interval, with l > 0 bounded from below, with l < 0
from above. So the state is two counts. Risks may change over time: it is the running risk that is
covered (mixtures of this kind: Howard, Ramdas, McAuliffe and Sekhon, arXiv 1810.08240, §3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from cascade.errors import InvalidInput
from cascade.monitor.detector import MOST_AUDITS
from cascade.rows import Floats
from cascade.strict import Fields

# From what suits a million labels to what suits a handful. A finer grid costs nothing in validity.
_SLOPES: Floats = np.geomspace(0.004, 4.0, 32)
_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class RiskSequence:
    """Labels so far, and the interval that they give.

    Arguments:
        labels: how many there were, ≥ 0.
        errors: how many of them said wrong, 0 … labels.

    Example:
        >>> low, high = RiskSequence(400, 40).interval(0.05)
        >>> low < 0.1 < high
        True
    """

    labels: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.errors <= self.labels:
            raise InvalidInput("errors", f"{self.errors} is not in 0 … {self.labels}")

    @property
    def rate(self) -> float | None:
        """Share of wrong ones; ``None`` before the first label."""
        return self.errors / self.labels if self.labels else None

    def after(self, wrong: bool) -> Self:
        """The sequence after one more label."""
        return type(self)(self.labels + 1, self.errors + wrong)

    def interval(self, delta: float = 0.05) -> tuple[float, float]:
        """Bounds of the running risk, in [0, 1], right at all times at once with probability
        ≥ 1 - ``delta``; [0, 1] before the first label."""
        return self.lower(delta / 2), self.upper(delta / 2)

    def lower(self, delta: float) -> float:
        """The lower bound alone, right at all times with probability ≥ 1 - ``delta``."""
        _check(delta)
        return _lower(self.errors, self.labels, delta)

    def upper(self, delta: float) -> float:
        """The upper bound alone, right at all times with probability ≥ 1 - ``delta``."""
        _check(delta)
        return 1.0 - _lower(self.labels - self.errors, self.labels, delta)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal sequence."""
        return {"labels": self.labels, "errors": self.errors}

    @classmethod
    def from_json(cls, value: object, *, where: str = "sequence") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        labels = fields.integer("labels", 0, MOST_AUDITS)
        errors = fields.integer("errors", 0, labels)
        fields.end()
        return cls(labels, errors)


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise InvalidInput("delta", f"{delta} is not between 0 and 1")


def _lower(successes: int, trials: int, delta: float) -> float:
    """The smallest rate at which the evidence for a higher one stays below 1/delta.

    The evidence falls with the rate. Of the two ends of the last halving this takes the lower one,
    which errs on the safe side.
    """
    if not successes:
        return 0.0
    gains = _SLOPES * successes
    low, high = 0.0, successes / trials
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        logs = gains - trials * np.log1p(middle * np.expm1(_SLOPES))
        top = float(logs.max())
        evidence = top + float(np.log(np.mean(np.exp(logs - top))))
        low, high = (middle, high) if evidence >= -np.log(delta) else (low, middle)
    return low

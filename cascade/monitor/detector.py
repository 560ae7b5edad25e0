"""Notices that a rate has risen above what was promised, soon, and with few false alarms for ever.

The mathematics
---------------
Audits give x_1, x_2, … in {0, 1} (1: wrong). The null hypothesis is that whatever happened before,
the next answer is wrong with probability at most alpha: P(x_n = 1 | past) ≤ alpha. Nothing else is
assumed; the rate may wander below alpha as it likes.

A bet on "the rate is q", q > alpha, multiplies its stake by e_n = q/alpha where x_n = 1 and by
(1 - q)/(1 - alpha) where x_n = 0. That is 1 + b (x_n - alpha) with b > 0, so its expectation given
the past is at most 1: an e-value (Waudby-Smith and Ramdas, arXiv 2010.09686, §4). One stake from
the first audit on would be eaten up by a long good time before a change. So the stake is spent
little by little: the share w_n enters at audit n, and all that has entered is bet again at each
audit (the weighted Shiryaev-Roberts e-detector of Shin, Ramdas and Rinaldo, arXiv 2203.03532, §2.4,
with starting shares that sum to 1):

    R_n = (R_(n-1) + w_n) e_n,        wealth M_n = R_n + (1 - w_1 - … - w_n),        M_0 = 1.

E[M_n | past] ≤ R_(n-1) + w_n + 1 - w_1 - … - w_n = M_(n-1): the wealth is a non-negative
supermartingale that starts at 1, and so is an average of several with different q. By Ville's
inequality P(there is any n with M_n ≥ 1/delta) ≤ delta: at delta = .01 not more than one in a
hundred monitors *ever* raises a false alarm, over 10,000 audits or any number.

The shares decide how soon a change is seen. A change at audit v is seen when the bets have won
about ln(1/delta) + ln(1/w_v); each audit wins KL(alpha + .1, alpha) nats on average (.070, .044 and
.028 for alpha = .05, .1 and .2). ``FIRST`` enters at once, for a certificate that does not hold
from its first day; the rest as k/((n - 1 + k)(n + k)), k = ``SPREAD``, which has exact sums. That
falls as 1/n² in the end, so ten times as many audits before a change cost up to 4.6 nats more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from cascade.errors import InvalidInput
from cascade.strict import Fields

FIRST = 0.05
SPREAD = 1200
RISES = (0.05, 0.10, 0.25)
"""What the bets bet on: the rate is this far above the null's."""
STAKES = (0.1, 0.8, 0.1)
"""How the stake is divided among them: most on the rise that is to be noticed soon."""

MOST_AUDITS = 10**12
RICH = 1e300
"""Far above any threshold; keeps the wealth finite however long somebody goes on."""


def entering(n: int) -> float:
    """The share of the stake that enters at audit ``n`` ≥ 1; they sum to 1."""
    share = (1 - FIRST) * SPREAD / ((n - 1 + SPREAD) * (n + SPREAD))
    return share + FIRST if n == 1 else share


def left(n: int) -> float:
    """The share that has not entered after ``n`` ≥ 0 audits."""
    return (1 - FIRST) * SPREAD / (n + SPREAD) if n else 1.0


def alternative(null: float, rise: float) -> float:
    """The rate that is bet on: ``null + rise``, but at most half-way from ``null`` to 1."""
    return min(null + rise, (1 + null) / 2)


@dataclass(frozen=True, slots=True)
class ChangeDetector:
    """The wealth of the bets so far; a value, so ``after`` gives a new one.

    Arguments:
        audits: how many there were.
        running: what each of ``RISES``' bets holds, ≥ 0.

    Example:
        >>> detector = ChangeDetector()
        >>> for _ in range(8):
        ...     detector = detector.after(True, null=0.1)
        >>> detector.wealth > 2
        True
    """

    audits: int = 0
    running: tuple[float, ...] = (0.0,) * len(RISES)

    @property
    def wealth(self) -> float:
        """The evidence that the rate is too high: ≥ 1/delta happens with probability ≤ delta while
        it is not."""
        return math.fsum(self.running) + left(self.audits)

    def after(self, wrong: bool, *, null: float) -> Self:
        """The detector after one more audit.

        Arguments:
            wrong: its label.
            null: the highest P(wrong) that is tolerated of this label, in (0, 1). It may differ
                from audit to audit, as long as it does not depend on the label.

        Raises:
            InvalidInput: ``null`` is out of range.
        """
        if not 0 < null < 1:
            raise InvalidInput("null", f"{null} is not between 0 and 1")
        n = self.audits + 1
        share = entering(n)
        running = []
        for held, stake, rise in zip(self.running, STAKES, RISES, strict=True):
            q = alternative(null, rise)
            factor = q / null if wrong else (1 - q) / (1 - null)
            running.append(min(RICH, (held + stake * share) * factor))
        return type(self)(n, tuple(running))

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal detector."""
        return {"audits": self.audits, "running": list(self.running)}

    @classmethod
    def from_json(cls, value: object, *, where: str = "detector") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        audits = fields.integer("audits", 0, MOST_AUDITS)
        running = fields.numbers("running", 0.0)
        fields.end()
        if len(running) != len(RISES):
            raise InvalidInput(f"{where}.running", f"must have {len(RISES)} numbers")
        return cls(audits, running)

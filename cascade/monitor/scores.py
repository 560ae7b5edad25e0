"""Notices, without labels, that requests no longer look like those of the certify part.

The mathematics
---------------
The reference knows the certify part's distribution function F only up to the luck of its n rows. By
the inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990),

    P(sup |F_n - F| > eps) ≤ 2 exp(-2 n eps²),

so F is within eps = sqrt(ln(2/``LUCK``)/(2 n)) of the reference except with probability ``LUCK``.
While requests have that F, "the score is at most t" has a probability of at most F_n(t) + eps, and
"it is above t" one of at most 1 - F_n(t) + eps. Each of these is a null hypothesis of
``cascade.monitor.detector``; here are two a decile, tested side by side, and the average of their
wealths is again a supermartingale. It reaches 1/delta with probability ≤ delta + ``LUCK``, ever,
however many requests there are: a test of exact equality would alarm for certain, since a reference
of n rows is never exact. The price is that shifts of less than eps go unnoticed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from cascade.errors import InvalidInput
from cascade.monitor.detector import MOST_AUDITS, RICH, RISES, STAKES, alternative, entering, left
from cascade.rows import Floats
from cascade.score_reference import ScoreReference
from cascade.strict import Fields

LUCK = 0.005
"""Probability that the reference misleads by more than ``margin``."""


def margin(rows: int) -> float:
    """How far a distribution function of ``rows`` scores may be from the true one, except with
    probability ``LUCK``."""
    return math.sqrt(math.log(2 / LUCK) / (2 * rows))


@dataclass(frozen=True, slots=True)
class ScoreAlarm:
    """The wealth of the bets against "scores are as they were"; a value, like ``ChangeDetector``.

    Arguments:
        seen: scores so far.
        running: what each bet holds; empty before the first score, else two sides a decile times
            ``RISES``, flat.
    """

    seen: int = 0
    running: tuple[float, ...] = ()

    @property
    def wealth(self) -> float:
        """The evidence that the scores have changed: ≥ 1/delta happens with probability
        ≤ delta + ``LUCK`` while they have not."""
        return math.fsum(self.running) + left(self.seen)

    def after(self, score: float, reference: ScoreReference) -> Self:
        """The alarm after one more score in [0, 1], of any request, kept or not.

        Raises:
            InvalidInput: the score is NaN, or the reference is not the one of before.
        """
        if math.isnan(score):
            raise InvalidInput("score", "is NaN")
        gains, losses = _bets(reference)
        held = np.array(self.running) if self.running else np.zeros(gains.size)
        if held.size != gains.size:
            raise InvalidInput("reference", "is not the one that this alarm began with")
        at_most = np.array(reference.scores) >= score
        happened = np.concatenate([at_most, ~at_most])[:, None]
        n = self.seen + 1
        stake = np.array(STAKES) * (entering(n) / len(gains))
        now = (held.reshape(gains.shape) + stake) * np.where(happened, gains, losses)
        now = np.minimum(now, RICH)
        return type(self)(n, tuple(now.ravel().tolist()))

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal alarm."""
        return {"seen": self.seen, "running": list(self.running)}

    @classmethod
    def from_json(cls, value: object, *, where: str = "scores") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        alarm = cls(fields.integer("seen", 0, MOST_AUDITS), fields.numbers("running", 0.0))
        fields.end()
        return alarm


@functools.lru_cache(maxsize=64)
def _bets(reference: ScoreReference) -> tuple[Floats, Floats]:
    """What each bet is multiplied by when its event happens and when it does not, shapes
    ``[2 · deciles, RISES]``: first the events "at most t", then "above t"."""
    shares, eps = np.array(reference.shares), margin(reference.rows)
    nulls = np.concatenate([shares, 1 - shares]) + eps
    gains = np.ones((nulls.size, len(RISES)))
    losses = gains.copy()
    for row, null in enumerate(nulls.tolist()):
        if null < 1:  # a probability cannot be above 1, so there is nothing to bet on
            rates = np.array([alternative(null, rise) for rise in RISES])
            gains[row], losses[row] = rates / null, (1 - rates) / (1 - null)
    return gains, losses

"""What the raw scores of the certify part looked like, small enough to travel inside a policy.

A certificate holds for inputs like those of the certify part. Whether today's are like them can be
asked without labels, of the scores alone: ``cascade.monitor.scores`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import InvalidInput
from cascade.rows import unit_floats
from cascade.strict import Fields

_DECILES = np.arange(1, 10) / 10
_MOST_ROWS = 10**9


@dataclass(frozen=True, slots=True)
class ScoreReference:
    """The empirical distribution function of the scores, at their deciles.

    Arguments:
        rows: how many scores there were, ≥ 1.
        scores: strictly rising, in [0, 1]; equal deciles are there once.
        shares: share of the rows whose score is at most that, exactly counted, in (0, 1].
    """

    rows: int
    scores: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.shares):
            raise InvalidInput("shares", "must have one number for each of scores, at least one")
        scores, shares = unit_floats("scores", self.scores), unit_floats("shares", self.shares)
        if (np.diff(scores) <= 0).any() or (np.diff(shares) < 0).any():
            raise InvalidInput("scores", "must rise strictly, and shares must not fall")

    @classmethod
    def of(cls, scores: ArrayLike) -> Self:
        """The reference of raw scores in [0, 1], shape ``[rows]``: of *all* certify rows, kept or
        not.

        Raises:
            InvalidInput: they are empty, NaN or out of range.
        """
        rising = np.sort(unit_floats("scores", scores))
        ranks = np.ceil(_DECILES * len(rising)).astype(np.int64) - 1
        at = np.unique(rising[ranks])
        shares = np.searchsorted(rising, at, side="right") / len(rising)
        return cls(len(rising), tuple(at.tolist()), tuple(shares.tolist()))

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal reference."""
        return {"rows": self.rows, "scores": list(self.scores), "shares": list(self.shares)}

    @classmethod
    def from_json(cls, value: object, *, where: str = "score_reference") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        reference = cls(
            rows=fields.integer("rows", 1, _MOST_ROWS),
            scores=fields.numbers("scores", 0.0, 1.0),
            shares=fields.numbers("shares", 0.0, 1.0),
        )
        fields.end()
        return reference

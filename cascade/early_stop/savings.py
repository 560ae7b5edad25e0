"""What stopping early saves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.early_stop.token_lists import Ints
from cascade.rows import Bools


@dataclass(frozen=True, slots=True)
class Savings:
    """What a rule saves on recorded answers.

    Arguments:
        escalated: rows that are escalated, stopped or not.
        stopped: rows that were stopped; ``wrongly`` of these would have been kept.
        wasted_tokens: local tokens of escalated rows without the rule.
        saved_tokens: how many of those the rule saves; tokens of wrongly stopped rows do not count.
    """

    escalated: int
    stopped: int
    wrongly: int
    wasted_tokens: int
    saved_tokens: int

    @property
    def saved(self) -> float:
        """Share of the wasted tokens that is saved, in [0, 1]; 0 where none is wasted."""
        return self.saved_tokens / self.wasted_tokens if self.wasted_tokens else 0.0


def savings(stops: Ints, tokens: Ints, kept: Bools) -> Savings:
    """What stopping saves.

    Arguments:
        stops: from ``EarlyStop.stops_at``, shape ``[rows]``.
        tokens: of the whole answers; ``kept``: whether these reach the policy's threshold.
    """
    stopped = stops > 0
    saved = np.where(stopped & ~kept, tokens - stops, 0)
    return Savings(
        escalated=int((~kept | stopped).sum()),
        stopped=int(stopped.sum()),
        wrongly=int((stopped & kept).sum()),
        wasted_tokens=int(tokens[~kept].sum()),
        saved_tokens=int(saved.sum()),
    )

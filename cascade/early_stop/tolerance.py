"""How low a cutoff may be so that few of the answers that are kept fall below it: an exact,
distribution-free tolerance limit (Wilks 1941), and what was proven by it.

Give every answer the lowest log odds that any checkpoint shows; a rule with cutoff c stops it
where that is at most c. Of m kept answers, drawn alike and seen by nothing that was fitted, let C
be the (k + 1)-th smallest of these numbers, and stop strictly below it. Let F(c) be the share of
all kept answers strictly below c, and q the largest c with F(c) ≤ ε. The promise F(C) ≤ ε is broken
only where C > q, so only where at most k of the m are at or below q. Each of them is with a
probability of at least ε, so that this happens with a probability of at most P(Bin(m, ε) ≤ k).
``most_stopped`` is the largest k for which that is at most δ. One order statistic is looked at, not
a grid of cutoffs: nothing is spent on searching.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.rows import Floats
from cascade.strict import Fields

_MOST_ROWS: Final = 10**9


@dataclass(frozen=True, slots=True)
class StopCertificate:
    """P(more than a share ``lost`` of the answers that are kept would be stopped) ≤ ``delta``, over
    draws of the stop part.

    Arguments:
        lost: in (0, 1).
        delta: in (0, 1).
        n: answers of the stop part.
        kept: those whose confidence reaches the rule's threshold, 1 … n.
        stopped: those of ``kept`` that the rule stops, below ``kept``.
        data_digest: sha256 over verdicts and lowest log odds of the stop part, in its order.
    """

    lost: float
    delta: float
    n: int
    kept: int
    stopped: int
    data_digest: str

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal certificate."""
        return {
            "lost": self.lost,
            "delta": self.delta,
            "n": self.n,
            "kept": self.kept,
            "stopped": self.stopped,
            "data_digest": self.data_digest,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "certificate") -> Self:
        """The certificate that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, unusable or contradicts another; it is named.
        """
        fields = Fields(data, where)
        levels = {name: fields.number(name, 0, 1) for name in ("lost", "delta")}
        for name, level in levels.items():
            if level in (0, 1):
                raise InvalidInput(fields.path(name), f"{level:g} is not between 0 and 1")
        n = fields.integer("n", 1, _MOST_ROWS)
        kept = fields.integer("kept", 1, n)
        stopped = fields.integer("stopped", 0, kept - 1)
        certificate = cls(
            levels["lost"], levels["delta"], n, kept, stopped, fields.sha256("data_digest")
        )
        fields.end()
        return certificate


def most_stopped(kept: int, *, lost: float, delta: float) -> int | None:
    """The largest k with P(Bin(kept, lost) ≤ k) ≤ delta; ``None`` where even k = 0 has more.

    Raises:
        InvalidInput: a number is out of range.
        CascadeError: scipy is not installed.
    """
    from cascade.binomial import binomial_tail, check_level

    check_level("lost", lost)
    check_level("delta", delta)
    if kept < 1:
        return None
    below = int((binomial_tail(np.arange(kept), kept, lost) <= delta).sum())
    return below - 1 if below else None


def tolerated_cutoff(lowest: Floats, *, lost: float, delta: float) -> float:
    """The highest cutoff that stops, with probability 1 − ``delta``, at most a share ``lost`` of
    the answers that are kept.

    Arguments:
        lowest: of kept answers, the lowest log odds of being kept that a checkpoint shows;
            infinite where the answer reaches none. Shape ``[kept]``.

    Returns:
        a finite number; it stops answers whose lowest log odds are at most this.

    Raises:
        InfeasibleTarget: there are too few; it names how many kept answers would be needed.
        InvalidInput: a number is out of range.
        CascadeError: scipy is not installed.
    """
    most = most_stopped(len(lowest), lost=lost, delta=delta)
    if most is None:
        needed = math.ceil(math.log(delta) / math.log1p(-lost))
        raise InfeasibleTarget(f"{needed} answers that are kept would be needed", needed)
    limit = float(np.partition(lowest, most)[most])
    return min(math.nextafter(limit, -math.inf), sys.float_info.max)

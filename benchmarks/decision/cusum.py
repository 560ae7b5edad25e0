"""What the monitor's delay is measured against: Page's CUSUM, told what no monitor can know.

A stream is demoted when the log-likelihood ratio of "the risk is q" against "it is alpha", summed
over the best recent stretch, reaches a threshold (Page 1954, Biometrika 41:100):
S_n = max(0, S_(n-1) + log-ratio of x_n). Of all detectors with so few false alarms it has the
smallest worst-case mean delay (Lorden 1971, Ann. Math. Stat. 42:1897, in the limit; Moustakides
1986, Ann. Stat. 14:1379, exactly), but only where alpha and q are both known and false alarms are
allowed at a constant rate. It proves nothing where they are not.

Lorden's own bound, ln(average run to a false alarm) / KL(q, alpha), is of no use at this size: it
leaves out a constant over KL, and exceeds what CUSUM needs. So the threshold and the delay are
simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.rows import Floats

NAME = "CUSUM told the risk after the change"


@dataclass(frozen=True, slots=True)
class Cusum:
    """CUSUM of many streams at once.

    Arguments:
        alpha: the risk before the change, and ``q`` that after it; 0 < alpha < q < 1.
        sums: S of each stream, ≥ 0, shape ``[streams]``.
    """

    alpha: float
    q: float
    sums: Floats

    @classmethod
    def new(cls, alpha: float, q: float, streams: int) -> Cusum:
        """Before the first audit."""
        return cls(alpha, q, np.zeros(streams))

    def after(self, wrong: NDArray[np.bool_]) -> Cusum:
        """One more label for each, shape ``[streams]``."""
        won = math.log(self.q / self.alpha)
        lost = math.log((1 - self.q) / (1 - self.alpha))
        return Cusum(self.alpha, self.q, np.maximum(self.sums + np.where(wrong, won, lost), 0.0))


def threshold(
    alpha: float, q: float, *, audits: int, false_alarm: float, streams: int, seed: int
) -> float:
    """The sum that a share ``false_alarm`` of streams of risk ``alpha`` reaches by then."""
    rng = np.random.default_rng(seed)
    cusum, highest = Cusum.new(alpha, q, streams), np.zeros(streams)
    for _ in range(audits):
        cusum = cusum.after(rng.random(streams) < alpha)
        np.maximum(highest, cusum.sums, out=highest)
    return float(np.quantile(highest, 1 - false_alarm, method="higher"))

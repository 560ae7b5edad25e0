"""Rules that pick a threshold, or accept and reject: how much they keep, and at what risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.decision.peers.parts import Part, Parts
from benchmarks.decision.peers.ranking import Scores
from cascade.binomial import clopper_pearson_interval
from cascade.certify import certify, naive_threshold, plan_grid, quantile_threshold
from cascade.errors import InfeasibleTarget
from cascade.rows import Bools

DELTA = 0.1


@dataclass(frozen=True, slots=True)
class Kept:
    """What a rule does on the test part.

    Arguments:
        n, accepted, wrong: rows, those that it keeps on the device, and the wrong ones of these.
    """

    n: int
    accepted: int
    wrong: int

    @classmethod
    def of(cls, accepted: Bools, part: Part) -> Kept:
        """Count."""
        wrong = accepted & ~part.rows.correct
        return cls(len(accepted), int(accepted.sum()), int(wrong.sum()))

    @property
    def coverage(self) -> float:
        """Share kept."""
        return self.accepted / self.n

    @property
    def coverage_interval(self) -> tuple[float, float]:
        """Exact 95 % interval of ``coverage``, rows taken as independent."""
        return clopper_pearson_interval(self.accepted, self.n)

    @property
    def risk(self) -> float | None:
        """Error rate of what is kept; ``None`` where nothing is."""
        return self.wrong / self.accepted if self.accepted else None

    @property
    def risk_interval(self) -> tuple[float, float] | None:
        """Exact 95 % interval of ``risk``, rows taken as independent."""
        return clopper_pearson_interval(self.wrong, self.accepted) if self.accepted else None

    def keeps(self, alpha: float) -> bool:
        """Whether the risk is at most alpha here; a rule that keeps nothing does no harm."""
        return self.wrong <= alpha * self.accepted


def certified(parts: Parts, scores: Scores, alpha: float) -> Bools:
    """Test rows above the certified threshold; none where none could be certified."""
    fresh = parts.certify.rows
    grid = plan_grid(
        scores.develop, parts.develop.rows.correct, rows=len(fresh), alpha=alpha, delta=DELTA
    )
    try:
        threshold = certify(
            scores.certify, fresh.correct, alpha=alpha, delta=DELTA, grid=grid
        ).threshold
    except InfeasibleTarget:
        return _none(scores)
    kept: Bools = scores.test >= threshold
    return kept


def naive(parts: Parts, scores: Scores, alpha: float) -> Bools:
    """Test rows above the lowest threshold whose risk on the certify part is at most alpha."""
    found = naive_threshold(scores.certify, parts.certify.rows.correct, alpha=alpha)
    if found is None:
        return _none(scores)
    kept: Bools = scores.test >= found.threshold
    return kept


def by_call_share(scores: Scores, share: float) -> Bools:
    """RouteLLM's rule: the threshold at the quantile of the calibration scores at which ``share``
    of them go to the strong model; the calibration scores are those of the certify part."""
    kept: Bools = scores.test >= quantile_threshold(scores.certify, escalate=share).threshold
    return kept


def _none(scores: Scores) -> Bools:
    return np.zeros(len(scores.test), np.bool_)

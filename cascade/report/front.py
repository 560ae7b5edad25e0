"""Accuracy against cost and latency at every threshold, and which choices are worth making."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade import metrics
from cascade.report.evaluated import Evaluated
from cascade.report.pricing import Pricing
from cascade.rows import Bools, Floats

STEPS = 100
"""Thresholds are shown at kept shares of 0, 1/STEPS … 1, or the next that one can reach."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A way to run: the cascade at a threshold, or one tier alone.

    Arguments:
        tier: the tier that answers everything; empty for the cascade.
        threshold: the lowest score kept; ``None`` for a tier alone, and where nothing is kept.
        kept: share that the device answers.
        cost_usd: mean of a request. ``p95_latency_s``: ``None`` where not every latency is known.
        efficient: no other is at least as good in everything and better in something.
    """

    tier: str
    threshold: float | None
    kept: float
    accuracy: float
    cost_usd: float
    p95_latency_s: float | None
    efficient: bool


def kept_counts(score: Floats, steps: int = STEPS) -> NDArray[np.int64]:
    """How many rows are kept at the thresholds shown: rising, from 0 to all.

    Rows of equal score are kept together, so not every number can be reached.

    Arguments:
        score: in falling order, shape ``[rows]``.
    """
    ends = np.concatenate([[0], np.flatnonzero(score[1:] < score[:-1]) + 1, [len(score)]])
    wanted = -(-np.arange(steps + 1) * len(score) // steps)
    return np.unique(ends[np.searchsorted(ends, wanted)])


def front(rows: Evaluated, costs: Pricing) -> tuple[FrontPoint, ...]:
    """The cascade from nothing kept to everything kept, then the tiers alone.

    Empty without a strong tier. A tier whose cost is not known is left out.
    """
    strong = rows.strong
    if strong is None:
        return ()
    order = np.argsort(-rows.score, kind="stable")
    score, right, stays = rows.score[order], rows.device.right[order], rows.stays[order]
    other = np.where(stays, right, strong.right[order])  # what comes of not keeping a row
    local_s = rows.device.latency_s[order]
    remote_s = np.where(stays, 0.0, strong.latency_s[order])
    n = len(score)
    saved = np.append(0.0, np.cumsum(np.where(stays, 0.0, costs.cost_usd(strong)[order]))) / n
    gained = np.append(0.0, np.cumsum(right - other)) / n
    points: list[tuple[str, float | None, float, float, float, float | None]] = []
    for kept in kept_counts(score):
        latency = local_s + np.where(np.arange(n) < kept, 0.0, remote_s)
        points.append(
            (
                "",
                float(score[kept - 1]) if kept else None,
                float(kept / n),
                float(other.mean() + gained[kept]),
                float(costs.device_usd.mean() + saved[-1] - saved[kept]),
                _p95(latency),
            )
        )
    for tier in rows.tiers:
        local = tier is rows.device
        cost = float((costs.device_usd if local else costs.cost_usd(tier)).mean())
        if not np.isnan(cost):
            name, share = tier.info.name, 1.0 if local else 0.0
            points.append((name, None, share, float(tier.right.mean()), cost, _p95(tier.latency_s)))
    good = efficient(
        np.array([[-accuracy, cost, p95 or 0.0] for *_, accuracy, cost, p95 in points])
    )
    return tuple(FrontPoint(*point, bool(best)) for point, best in zip(points, good, strict=True))


def efficient(losses: Floats) -> Bools:
    """Which rows no other row dominates, shape ``[points]``.

    Arguments:
        losses: lower is better, shape ``[points, losses]``.
    """
    no_worse = np.all(losses[None] <= losses[:, None] + 1e-12, axis=2)
    better = np.any(losses[None] < losses[:, None] - 1e-12, axis=2)
    dominated: Bools = np.any(no_worse & better, axis=1)
    return ~dominated


def _p95(latency: Floats) -> float | None:
    return None if np.isnan(latency).any() else metrics.percentile(latency, 95)

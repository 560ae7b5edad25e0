"""A ladder applied to records: what each request got, and took, with intervals by document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.ladder import LadderPolicy, LadderRows
from cascade.replay.bootstrap import Interval, intervals
from cascade.replay.figures import Weights, weighted_mean
from cascade.replay.times import quantiles
from cascade.rows import Floats

LADDER_UNITS: Final = {
    "accuracy": "share",
    "excess": "share",
    "cost": "$",
    "p50": "s",
    "p95": "s",
    "leave": "share",
}
"""The figures, by their names in ``cascade.ladder.objective``; ``answered.TIER`` is the share of
requests that a tier's answer ended."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """One number a request of each figure; ``of`` averages them."""

    means: dict[str, Floats]

    def of(self, weights: Weights) -> dict[str, Floats]:
        """See ``Weighted``."""
        heavy = weights.astype(np.float64)
        return {name: weighted_mean(heavy, values) for name, values in self.means.items()}


def replay_ladder(
    policy: LadderPolicy,
    rows: LadderRows,
    documents: NDArray[np.int64],
    *,
    replicates: int = 1000,
    seed: int = 1,
) -> dict[str, Interval]:
    """The figures of a ladder on records, with intervals.

    Arguments:
        documents: the number of each row's document, 0 … documents - 1, shape ``[rows]``.
        replicates: bootstrap resamples by document; 0 for none.
    """
    taken = policy.follow(rows)
    correct = taken.correct(rows)
    means = {
        "accuracy": correct.astype(np.float64),
        "excess": (~correct & rows.correct[-1]).astype(np.float64),
        "cost": taken.cost_usd(rows),
        "leave": taken.left(rows).astype(np.float64),
    }
    means |= {
        f"answered.{tier}": (taken.place == place).astype(np.float64)
        for place, tier in enumerate(rows.tiers)
    }

    def of_rows(places: NDArray[np.int64]) -> _Columns:
        return _Columns({name: each[places] for name, each in means.items()})

    found = intervals(of_rows, documents, replicates=replicates, seed=seed)
    for name, each in quantiles("", taken.latency_s(rows), documents).items():
        found[name.removesuffix("_s")] = each
    return found

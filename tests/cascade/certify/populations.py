"""Populations whose risk is known exactly, and draws from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class Population:
    """Confidence c uniform in [0, 1], P(right | c) = low + slope · c: the risk is known exactly."""

    low: float
    slope: float

    def draw(self, n: int, rng: np.random.Generator) -> Rows:
        confidence = rng.random(n)
        return confidence, rng.random(n) < self.low + self.slope * confidence

    def risk(self, threshold: float) -> float:
        return 1 - self.low - self.slope * (1 + threshold) / 2


def within_level(violations: int, draws: int, delta: float) -> bool:
    """Exact test of "rate ≤ delta", with a false alarm once in a thousand."""
    return bool(stats.binomtest(violations, draws, delta, alternative="greater").pvalue > 1e-3)

"""Thresholds without a guarantee do what they say, and are named so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.certify import UncertifiedThreshold, naive_threshold, quantile_threshold
from cascade.errors import InvalidInput


def test_naive_tuning_takes_the_widest_coverage_that_looks_good() -> None:
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5]
    naive = naive_threshold(confidence, [1, 1, 0, 1, 0], alpha=0.25)
    assert naive == UncertifiedThreshold(threshold=0.6, coverage=0.8, risk=0.25)
    assert naive_threshold(confidence, [0, 0, 0, 0, 0], alpha=0.25) is None


@given(st.integers(0, 10_000), st.floats(0.05, 0.5))
def test_no_lower_confidence_looks_good_to_naive_tuning(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 8, 40) / 8
    right = rng.random(40) < confidence
    good = [
        float(t) for t in np.unique(confidence) if np.mean(~right[confidence >= t]) <= alpha + 1e-12
    ]
    naive = naive_threshold(confidence, right, alpha=alpha)
    assert (naive.threshold if naive else None) == (min(good) if good else None)


def test_a_quantile_escalates_the_share_asked_for_and_knows_no_risk() -> None:
    picked = quantile_threshold(np.linspace(0, 1, 101), escalate=0.3)
    assert picked == UncertifiedThreshold(
        threshold=0.3, coverage=pytest.approx(0.7, abs=0.01), risk=None
    )
    with pytest.raises(InvalidInput, match="escalate"):
        quantile_threshold([0.5], escalate=1.0)

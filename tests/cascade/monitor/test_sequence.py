"""The interval covers the running risk at all times at once, even where the risk moves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cascade.binomial import clopper_pearson_interval
from cascade.errors import InvalidInput
from cascade.monitor import RiskSequence

counts = st.integers(0, 5_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))

MOMENTS = np.unique(np.geomspace(1, 3_000, 60).astype(int))


def share_missed(risks, *, delta, streams, seed):
    """Share of streams whose running risk is outside of the interval at any of the moments."""
    rng = np.random.default_rng(seed)
    errors = np.cumsum(rng.random((streams, len(risks))) < risks, axis=1)[:, MOMENTS - 1]
    running = (np.cumsum(risks) / np.arange(1, len(risks) + 1))[MOMENTS - 1]
    missed = np.zeros(streams, bool)
    known = {}
    for column, n in enumerate(MOMENTS.tolist()):
        for stream in range(streams):
            k = int(errors[stream, column])
            if (n, k) not in known:
                known[n, k] = RiskSequence(n, k).interval(delta)
            low, high = known[n, k]
            missed[stream] |= not low <= running[column] <= high
    return missed.mean()


@pytest.mark.parametrize(
    "risks",
    [np.full(3_000, 0.1), np.where(np.arange(3_000) % 600 < 300, 0.02, 0.3)],
    ids=["constant", "moving"],
)
def test_the_running_risk_is_covered_at_all_times_at_once(risks):
    missed = share_missed(risks, delta=0.2, streams=200, seed=3)
    assert stats.binomtest(round(missed * 200), 200, 0.2, alternative="greater").pvalue > 1e-3


def test_an_interval_for_one_moment_is_not_enough():
    """What the sequence is for: Clopper-Pearson at every moment misses far more often."""
    rng = np.random.default_rng(3)
    errors = np.cumsum(rng.random((200, 3_000)) < 0.1, axis=1)
    missed = np.zeros(200, bool)
    for n in MOMENTS.tolist():
        for k in np.unique(errors[:, n - 1]).tolist():
            low, high = clopper_pearson_interval(k, n, 0.8)
            missed |= (errors[:, n - 1] == k) & (not low <= 0.1 <= high)
    assert missed.mean() > 0.4


@given(counts, st.floats(0.001, 0.5))
def test_the_interval_holds_the_rate_and_widens_with_the_level(count, delta):
    sequence = RiskSequence(*count)
    low, high = sequence.interval(delta)
    assert 0 <= low <= high <= 1
    if sequence.rate is not None:
        assert low <= sequence.rate <= high
    wider = sequence.interval(delta / 2)
    assert wider[0] <= low
    assert high <= wider[1]


def test_it_is_not_much_wider_than_an_interval_for_one_moment():
    for n in (100, 1_000, 10_000):
        low, high = RiskSequence(n, n // 10).interval(0.05)
        exact_low, exact_high = clopper_pearson_interval(n // 10, n)
        assert (high - low) / (exact_high - exact_low) < 2


def test_the_bound_is_where_the_evidence_is_one_over_delta():
    """Against the definition, computed anew."""
    n, k, delta = 200, 30, 0.03
    slopes = np.geomspace(0.004, 4.0, 32)
    rate = RiskSequence(n, k).lower(delta)
    evidence = np.mean(np.exp(slopes * k) / (1 - rate + rate * np.exp(slopes)) ** n)
    assert evidence == pytest.approx(1 / delta, rel=1e-6)


def test_before_the_first_label_nothing_is_known():
    assert RiskSequence().interval() == (0.0, 1.0)
    assert RiskSequence().rate is None


@given(counts)
def test_json_gives_back_the_very_same_sequence(count):
    sequence = RiskSequence(*count)
    assert RiskSequence.from_json(json.loads(json.dumps(sequence.to_json()))) == sequence


def test_impossible_counts_and_levels_are_refused():
    with pytest.raises(InvalidInput, match="errors"):
        RiskSequence(3, 4)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(InvalidInput, match="delta"):
            RiskSequence(3, 1).lower(delta)

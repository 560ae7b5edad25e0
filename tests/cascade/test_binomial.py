"""Exact binomial statistics, against scipy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cascade.binomial import binomial_tail, clopper_pearson_interval, predicted_tail, upper_bound


@given(st.integers(1, 2000), st.data(), st.floats(0.01, 0.99))
def test_p_values_are_the_binomial_tail(n: int, data: st.DataObject, rate: float) -> None:
    k = data.draw(st.integers(0, n))
    assert float(binomial_tail(k, n, rate)) == pytest.approx(
        stats.binom.cdf(k, n, rate), rel=1e-7, abs=1e-12
    )


def test_nothing_tried_is_no_evidence() -> None:
    assert float(binomial_tail(0, 0, 0.25)) == 1


@given(st.integers(1, 500), st.data(), st.floats(0.01, 0.5))
def test_the_bound_is_where_the_tail_equals_delta(
    n: int, data: st.DataObject, delta: float
) -> None:
    k = data.draw(st.integers(0, n - 1))
    assert float(binomial_tail(k, n, upper_bound(k, n, delta))) == pytest.approx(delta, rel=1e-6)
    assert upper_bound(n, n, delta) == 1


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 400)])
def test_the_exact_interval_is_scipys(k: int, n: int) -> None:
    reference = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson_interval(k, n) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize("at_most", [-1, 0, 7, 40])
def test_the_prediction_is_the_beta_binomial(at_most: int) -> None:
    reference = stats.betabinom.cdf(at_most, 40, 5 + 1, 15 + 1)
    predicted = predicted_tail(at_most, 40, seen_successes=5, seen_trials=20)
    assert predicted == pytest.approx(reference, abs=1e-12)


def test_the_prediction_takes_any_beta_prior() -> None:
    reference = stats.betabinom.cdf(7, 40, 5 + 1.6, 15 + 14.4)
    predicted = predicted_tail(7, 40, seen_successes=5, seen_trials=20, prior=(1.6, 14.4))
    assert predicted == pytest.approx(reference, abs=1e-12)

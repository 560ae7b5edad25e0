"""No certificate keeps more than the bound on what can be kept, and a rule that breaks its promise
does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.decision.draws import DELTA, OURS, certified, naive
from benchmarks.decision.most_kept import most_kept, power
from benchmarks.decision.pools import Pool


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Nearly always right, like the benchmark's pool "easy", and smaller."""
    rng = np.random.default_rng(8)
    confidence = rng.random(4_000)
    return Pool("easy", confidence, rng.random(4_000) < 0.9 + 0.1 * confidence)


@pytest.mark.parametrize(("rate", "n"), [(0.02, 100), (0.04, 500), (0.0499, 300)])
def test_where_every_row_is_kept_the_best_test_counts_errors(rate: float, n: int) -> None:
    most = int(stats.binom.ppf(DELTA, n, 0.05))
    most -= stats.binom.cdf(most, n, 0.05) > DELTA
    left = (DELTA - stats.binom.cdf(most, n, 0.05)) / stats.binom.pmf(most + 1, n, 0.05)
    expected = stats.binom.cdf(most, n, rate) + left * stats.binom.pmf(most + 1, n, rate)
    assert power(1.0, rate, 0.05, n, DELTA) == pytest.approx(expected, abs=1e-7)


def test_no_test_of_the_level_has_more_power() -> None:
    """The one-sided binomial test given how many rows were kept, on drawn parts."""
    rng = np.random.default_rng(9)
    kept = rng.binomial(800, 0.7, 20_000)
    passed = stats.binom.cdf(rng.binomial(kept, 0.03), kept, 0.05) <= DELTA
    found = power(0.7, 0.03, 0.05, 800, DELTA)
    assert passed.mean() <= found + 3 * 0.0036
    assert found <= passed.mean() + 0.05


@pytest.mark.parametrize("n", [300, 1_000])
def test_certificates_stay_below_the_bound_and_the_naive_rule_does_not(pool: Pool, n: int) -> None:
    best, bound = pool.best_coverage(0.05), most_kept(pool, 0.05, n, DELTA)
    ours = certified(pool, 0.05, n, blocks=10)[OURS].coverage
    assert 0.25 * bound < np.minimum(ours / best, 1).mean() <= bound
    rule = naive(pool, (0.05,), n, parts=200)[0.05].coverage
    assert np.minimum(rule / best, 1).mean() > bound


def test_more_labels_allow_more(pool: Pool) -> None:
    bounds = [most_kept(pool, 0.05, n, DELTA) for n in (100, 400, 1_600)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < 1

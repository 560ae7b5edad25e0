"""The noise is what it says, and the account agrees with known figures and with a formula."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import optimize, stats

from cascade.errors import InvalidInput
from cloud.federation import NoisedRounds, PrivateMean, cost_of_next, epsilon, usual_delta


@pytest.mark.parametrize(
    ("devices", "cohort", "rounds", "expected"),
    [(1_000, 50, 100, 2.4), (10_000, 100, 200, 0.78), (100, 20, 50, 5.6)],
)
def test_the_figures_that_we_state(devices, cohort, rounds, expected):
    history = [NoisedRounds(rounds, 1.0, cohort / devices, "poisson")]
    found = epsilon(history, usual_delta(devices))
    assert float(f"{found:.2g}") == expected


def gaussian_epsilon(noise_multiplier, rounds, delta):
    """The exact one without sampling (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""
    mu = math.sqrt(rounds) / noise_multiplier

    def excess(eps):
        above = stats.norm.cdf(mu / 2 - eps / mu)
        return above - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu) - delta

    return optimize.brentq(excess, 0, 200)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 16), (10.0, 200), (0.1, 1)])
def test_without_sampling_it_is_the_gaussian_mechanism(noise, rounds):
    found = epsilon([NoisedRounds(rounds, noise)], 1e-5)
    assert found == pytest.approx(gaussian_epsilon(noise, rounds, 1e-5), rel=1e-9)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 10_000), (0.01, 1), (1e-4, 1)])
def test_however_little_noise_and_many_rounds_the_account_is_done_at_once(noise, rounds):
    began = time.process_time()
    found = epsilon([NoisedRounds(rounds, noise)], 1e-5)
    assert time.process_time() - began < 1.0
    mu = math.sqrt(rounds) / noise
    assert mu**2 / 2 < found < mu**2 / 2 + 5 * mu


def test_gaussians_compose_to_one():
    history = [NoisedRounds(16, 4.0), NoisedRounds(1, 1.0)]
    assert epsilon(history, 1e-5) == epsilon([NoisedRounds(2, 1.0)], 1e-5)
    sampled = NoisedRounds(1, 1.0, 0.05, "poisson")
    split = epsilon([sampled, *history], 1e-5)
    assert split == epsilon([sampled, NoisedRounds(2, 1.0)], 1e-5)
    assert epsilon(history, 1e-5) < split < epsilon([NoisedRounds(3, 1.0)], 1e-5)


def test_sampling_helps_and_is_not_assumed():
    sampled = epsilon([NoisedRounds(20, 1.0, 0.05, "poisson")], 1e-5)
    unsampled = epsilon([NoisedRounds(20, 1.0, 0.05)], 1e-5)
    assert sampled < unsampled / 5
    everyone = epsilon([NoisedRounds(20, 1.0, 1.0, "poisson")], 1e-5)
    assert everyone == unsampled


def test_rounds_of_several_kinds_compose():
    history = [NoisedRounds(10, 1.0, 0.05, "poisson"), NoisedRounds(5, 4.0)]
    cost = cost_of_next(history, NoisedRounds(1, 1.0, 0.05, "poisson"), 1e-5)
    assert cost.before == epsilon(history, 1e-5)
    assert cost.before < cost.after < cost.before + 1
    joined = [NoisedRounds(11, 1.0, 0.05, "poisson"), NoisedRounds(5, 4.0)]
    assert cost.after == pytest.approx(epsilon(joined, 1e-5), rel=1e-3)
    first = cost_of_next([], NoisedRounds(1, 1.0, 0.05, "poisson"), 1e-5)
    assert first.before == 0 < first.after


def test_the_noise_has_the_spread_that_the_account_assumes():
    rule = PrivateMean(2.0, 0.5, 10.0, np.random.default_rng(3))
    rows = np.zeros((4, 20_000))
    rows[:, 0] = [1.0, 5.0, 100.0, -1.0]  # the second and third are longer than the clip
    noised = rule.combine(rows, np.full(4, 0.25))
    spread = 0.5 * 2.0 / 10.0
    assert noised[1:].std() == pytest.approx(spread, rel=0.03)
    assert stats.kstest(noised[1:] / spread, "norm").pvalue > 1e-6
    assert noised[0] == pytest.approx((1 + 2 + 2 - 1) / 10, abs=5 * spread)


def test_one_device_moves_the_sum_by_the_clip_at_most_whatever_it_sends():
    def exact(rows):
        rule = PrivateMean(1.0, 1e-12, 5.0, np.random.default_rng(0))
        return rule.combine(rows, np.ones(len(rows)))

    rng = np.random.default_rng(4)
    others = rng.standard_normal((6, 8))
    for scale in (0.01, 1.0, 1e6):
        one_more = np.concatenate([others, scale * rng.standard_normal((1, 8))])
        assert np.linalg.norm(exact(one_more) - exact(others)) <= 1.0 / 5.0 + 1e-9


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoisedRounds(0, 1.0),
        lambda: NoisedRounds(1, 0.0),
        lambda: NoisedRounds(1, 1.0, 0.0, "poisson"),
        lambda: NoisedRounds(1, 1.0, 0.5, "fixed"),
        lambda: epsilon([], 0.0),
        lambda: epsilon([], 1.0),
        lambda: usual_delta(1),
        lambda: PrivateMean(0.0, 1.0, 1.0, np.random.default_rng()),
        lambda: PrivateMean(1.0, math.inf, 1.0, np.random.default_rng()),
        lambda: PrivateMean(1.0, 1.0, 0.0, np.random.default_rng()),
    ],
)
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(InvalidInput):
        make()

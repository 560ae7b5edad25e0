"""P-values reject a true null at most as often as they say, and no more than scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cascade.certify.p_values import betting, clopper_pearson, hoeffding_bentkus
from tests.cascade.certify.populations import within_level

DRAWS = 4000
LEVELS = (0.01, 0.05, 0.1, 0.3)


def at_the_border(shape: str, alpha: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Losses whose mean is alpha, ``[draws, 200]``: the null that is hardest to keep."""
    size = (DRAWS, 200)
    if shape == "0/1":
        return (rng.random(size) < alpha).astype(float)
    if shape == "beta":
        return rng.beta(4 * alpha, 4 * (1 - alpha), size)
    if shape == "constant and rare":  # nearly always a little below, rarely 1
        return np.where(rng.random(size) < 0.02, 1.0, (alpha - 0.02) / 0.98)
    return np.clip(rng.choice([alpha / 2, 3 * alpha / 2], size), 0, 1)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("shape", ["0/1", "beta", "constant and rare", "two values"])
def test_a_true_null_is_rejected_at_most_as_often_as_the_level(shape: str, alpha: float) -> None:
    losses = at_the_border(shape, alpha, np.random.default_rng(1))
    total = losses.sum(axis=1)
    methods = {
        "hoeffding_bentkus": hoeffding_bentkus(total, np.full(DRAWS, 200), alpha),
        "betting": np.array([betting(row, alpha) for row in losses[:1500]]),
    }
    if shape == "0/1":
        methods["clopper_pearson"] = clopper_pearson(total, np.full(DRAWS, 200), alpha)
    for method, p in methods.items():
        for level in LEVELS:
            assert within_level(int((p <= level).sum()), len(p), level), (method, level)


def test_a_p_value_that_forgets_the_variance_would_be_caught() -> None:
    """The check above has power: a z-test on rare large losses breaks its level."""
    losses = at_the_border("constant and rare", 0.05, np.random.default_rng(2))
    spread = losses.std(axis=1) / np.sqrt(200)
    z = stats.norm.cdf((losses.mean(axis=1) - 0.05) / np.maximum(spread, 1e-9))
    assert not within_level(int((z <= 0.01).sum()), DRAWS, 0.01)


@given(st.integers(1, 400), st.data(), st.floats(0.02, 0.9))
def test_exact_p_values_are_binomtests(n: int, data: st.DataObject, alpha: float) -> None:
    k = data.draw(st.integers(0, n))
    reference = stats.binomtest(k, n, alpha, alternative="less").pvalue
    assert float(clopper_pearson(k, n, alpha)) == pytest.approx(reference, rel=1e-7, abs=1e-12)


@given(st.integers(1, 400), st.data(), st.floats(0.02, 0.9))
def test_hoeffding_bentkus_is_its_formula_and_never_below_the_exact_one(
    n: int, data: st.DataObject, alpha: float
) -> None:
    k = data.draw(st.integers(0, n))
    mean = min(k / n, alpha)
    hoeffding = np.exp(-n * stats.entropy([mean, 1 - mean], [alpha, 1 - alpha]))
    bentkus = np.e * stats.binom.cdf(k, n, alpha)
    p = float(hoeffding_bentkus(k, n, alpha))
    assert p == pytest.approx(min(1, hoeffding, bentkus), rel=1e-6, abs=1e-12)
    assert p >= float(clopper_pearson(k, n, alpha)) * (1 - 1e-9)


losses_of_a_sample = st.lists(st.floats(0, 1), min_size=1, max_size=60).map(np.array)


@settings(max_examples=100)
@given(losses_of_a_sample, st.floats(0.02, 0.97), st.floats(0.02, 0.97))
def test_a_laxer_alpha_never_has_a_larger_p_value(
    losses: NDArray[np.float64], one: float, other: float
) -> None:
    strict, lax = sorted((one, other))
    n, total = len(losses), losses.sum()
    assert hoeffding_bentkus(total, n, lax) <= hoeffding_bentkus(total, n, strict) + 1e-12
    assert betting(losses, lax) <= betting(losses, strict) + 1e-12


@settings(max_examples=100)
@given(losses_of_a_sample, st.data(), st.floats(0.02, 0.97))
def test_a_smaller_loss_never_raises_the_p_value_of_the_sum(
    losses: NDArray[np.float64], data: st.DataObject, alpha: float
) -> None:
    row = data.draw(st.integers(0, len(losses) - 1))
    better = losses.copy()
    better[row] *= 0.5
    n = len(losses)
    assert hoeffding_bentkus(better.sum(), n, alpha) <= (
        hoeffding_bentkus(losses.sum(), n, alpha) + 1e-12
    )


def test_betting_beats_the_sum_where_losses_vary_little() -> None:
    losses = np.random.default_rng(3).normal(0.45, 0.02, 300)
    assert betting(losses, 0.5) < float(hoeffding_bentkus(losses.sum(), 300, 0.5)) / 10


def test_no_row_is_no_evidence() -> None:
    assert float(hoeffding_bentkus(0, 0, 0.25)) == 1
    assert float(clopper_pearson(0, 0, 0.25)) == 1
    assert betting(np.array([]), 0.25) == 1

"""The certificate keeps its promise where the risk is known, and refuses what it must."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cascade.binomial import binomial_tail, clopper_pearson_interval, predicted_tail, upper_bound
from cascade.certificate import Certificate
from cascade.certify import (
    UncertifiedThreshold,
    certify,
    naive_threshold,
    plan_grid,
    threshold_grid,
)
from cascade.errors import InfeasibleTarget, InvalidInput

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]

ALPHA, DELTA = 0.25, 0.1


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


def threshold_or_none(certify_rows: Rows, grid: NDArray[np.float64]) -> float | None:
    try:
        return certify(*certify_rows, alpha=ALPHA, delta=DELTA, grid=grid).threshold
    except InfeasibleTarget:
        return None


@pytest.mark.parametrize(
    "population",
    [
        Population(0.5, 0.4),  # crosses alpha in the middle
        Population(0.6, 0.2),  # crosses slowly: thresholds near alpha are many
        Population(0.74, 0.0),  # always just above alpha: any certificate is wrong
    ],
    ids=["crossing", "shallow", "never good"],
)
def test_certified_thresholds_exceed_alpha_at_most_as_often_as_delta(
    population: Population,
) -> None:
    resplits, violations, naive_violations = 1000, 0, 0
    rng = np.random.default_rng(7)
    grid = plan_grid(*population.draw(400, rng), rows=600, alpha=ALPHA, delta=DELTA)
    for _ in range(resplits):
        rows = population.draw(600, rng)
        threshold = threshold_or_none(rows, grid)
        violations += threshold is not None and population.risk(threshold) > ALPHA
        naive = naive_threshold(*rows, alpha=ALPHA)
        naive_violations += naive is not None and population.risk(naive.threshold) > ALPHA
    # Exact test of "rate ≤ delta" with a false alarm once in a thousand.
    assert stats.binomtest(violations, resplits, DELTA, alternative="greater").pvalue > 1e-3
    assert naive_violations > 3 * violations
    assert naive_violations > 0.3 * resplits


def test_the_promise_holds_over_draws_of_the_develop_part_too() -> None:
    population, resplits, violations = Population(0.5, 0.4), 300, 0
    rng = np.random.default_rng(8)
    for _ in range(resplits):
        grid = plan_grid(*population.draw(200, rng), rows=600, alpha=ALPHA, delta=DELTA)
        threshold = threshold_or_none(population.draw(600, rng), grid)
        violations += threshold is not None and population.risk(threshold) > ALPHA
    assert stats.binomtest(violations, resplits, DELTA, alternative="greater").pvalue > 1e-3


def test_stratified_rows_do_not_break_the_promise() -> None:
    """Four strata with fixed counts, error rates apart, and the mixture just above alpha."""
    rng, resplits, violations = np.random.default_rng(9), 2000, 0
    error_rates = np.repeat([0.05, 0.2, 0.3, 0.454], 150)  # mean .251
    for _ in range(resplits):
        wrong = rng.random(600) < error_rates
        violations += threshold_or_none((np.ones(600), ~wrong), np.array([0.0])) is not None
    assert stats.binomtest(violations, resplits, DELTA, alternative="greater").pvalue > 1e-3


def test_a_planned_start_is_feasible_more_often_than_the_top_of_the_grid() -> None:
    population, planned, naive_start = Population(0.55, 0.35), 0, 0
    rng = np.random.default_rng(10)
    for _ in range(200):
        develop, rows = population.draw(400, rng), population.draw(600, rng)
        plan = plan_grid(*develop, rows=600, alpha=ALPHA, delta=DELTA)
        planned += threshold_or_none(rows, plan) is not None
        naive_start += threshold_or_none(rows, threshold_grid(develop[0])) is not None
    assert planned > naive_start


def test_the_threshold_is_the_last_of_the_unbroken_run_of_passes() -> None:
    """40 rows at .9 with 2 wrong pass; 40 more at .6, all wrong, do not; .3 is not tried."""
    confidence = np.repeat([0.9, 0.6, 0.3], [40, 40, 4000])
    correct = np.repeat([1, 0, 0, 1], [38, 2, 40, 4000])
    certificate = certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.8, 0.5, 0.0])
    assert (certificate.threshold, certificate.n_accepted, certificate.errors) == (0.8, 40, 2)
    assert certificate.coverage == pytest.approx(40 / 4080)
    assert certificate.p_value == pytest.approx(stats.binom.cdf(2, 40, ALPHA), rel=1e-9)
    bound = stats.binomtest(2, 40, alternative="less").proportion_ci(1 - DELTA, "exact").high
    assert certificate.risk_upper == pytest.approx(bound)
    assert certificate.risk_upper <= ALPHA


def test_rows_that_tie_with_the_threshold_are_accepted_together() -> None:
    correct = np.array([1] * 45 + [0] * 5)
    certificate = certify(np.full(50, 0.7), correct, alpha=ALPHA, delta=DELTA, grid=[0.7])
    assert certificate.n_accepted == 50
    with pytest.raises(InfeasibleTarget):
        certify(np.full(50, 0.7), correct, alpha=ALPHA, delta=DELTA, grid=[np.nextafter(0.7, 1)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.6), st.floats(0.05, 0.6))
def test_a_laxer_target_never_accepts_less(seed: int, one: float, other: float) -> None:
    rows = Population(0.5, 0.45).draw(300, np.random.default_rng(seed))
    strict, lax = (accepted(rows, alpha=alpha, delta=DELTA) for alpha in sorted((one, other)))
    assert strict <= lax


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_less_certainty_never_accepts_less(seed: int, one: float, other: float) -> None:
    rows = Population(0.5, 0.45).draw(300, np.random.default_rng(seed))
    strict, lax = (accepted(rows, alpha=ALPHA, delta=delta) for delta in sorted((one, other)))
    assert strict <= lax


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, correct = Population(0.6, 0.4).draw(300, rng)
    shuffle = rng.permutation(300)
    options = {"alpha": 0.3, "delta": DELTA, "grid": threshold_grid(np.linspace(0, 1, 100))[6:]}
    try:
        first = certify(confidence, correct, **options)
    except InfeasibleTarget:
        return
    assert certify(confidence[shuffle], correct[shuffle], **options) == first


def test_other_rows_have_another_digest() -> None:
    confidence, correct = np.linspace(0.5, 1, 100), np.ones(100, bool)
    first = certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.5])
    correct[3] = False
    other = certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.5, 0.2])
    assert first.data_digest != other.data_digest
    assert first.grid_digest != other.grid_digest
    assert (first.grid_size, other.grid_size) == (1, 2)


def accepted(rows: Rows, *, alpha: float, delta: float) -> int:
    grid = threshold_grid(np.linspace(0, 1, 200))[6:]
    try:
        return certify(*rows, alpha=alpha, delta=delta, grid=grid).n_accepted
    except InfeasibleTarget:
        return 0


def test_too_few_labels_are_refused_with_the_number_that_would_do() -> None:
    confidence, correct = np.full(40, 0.9), np.array([1] * 32 + [0] * 8)
    with pytest.raises(InfeasibleTarget, match="keeps 40 of 40 rows, 8 of them wrong") as refusal:
        certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.5])
    needed = refusal.value.labels_needed
    assert needed is not None
    assert stats.binom.cdf(math.ceil(0.2 * needed), needed, ALPHA) <= DELTA
    assert needed > 40
    assert f"about {needed} fresh labels" in str(refusal.value)
    repeated = [0.9] * 5 * needed, [1, 1, 1, 1, 0] * needed
    assert certify(*repeated, alpha=ALPHA, delta=DELTA, grid=[0.5]).coverage == 1


def test_labels_needed_counts_the_rejected_rows_as_well() -> None:
    confidence = np.repeat([0.9, 0.1], [20, 180])
    correct = np.repeat([1, 0, 0], [16, 4, 180])
    with pytest.raises(InfeasibleTarget) as refusal:
        certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.5])
    alone = np.array([1] * 16 + [0] * 4)
    with pytest.raises(InfeasibleTarget) as dense:
        certify(np.full(20, 0.9), alone, alpha=ALPHA, delta=DELTA, grid=[0.5])
    assert refusal.value.labels_needed == 10 * (dense.value.labels_needed or 0)


def test_an_error_above_the_target_is_refused_for_any_number_of_labels() -> None:
    with pytest.raises(InfeasibleTarget, match="no number of labels would help") as refusal:
        certify([0.9] * 400, [1, 0] * 200, alpha=ALPHA, delta=DELTA, grid=[0.5])
    assert refusal.value.labels_needed is None


def test_a_grid_that_accepts_no_row_is_infeasible() -> None:
    with pytest.raises(InfeasibleTarget, match="keeps 0 of 10"):
        certify([0.5] * 10, [1] * 10, alpha=ALPHA, delta=DELTA, grid=[0.9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": [np.nan] * 4}, "confidence: contains NaN"),
        ({"confidence": [1.2] * 4}, "confidence: must lie between 0 and 1"),
        ({"confidence": []}, "confidence: is empty"),
        ({"correct": [1, 1, 0]}, "correct: has 3 rows but confidence has 4"),
        ({"correct": [1, 1, 0, np.nan]}, "correct: must hold only"),
        ({"alpha": 0.0}, "alpha: 0.0 is not between 0 and 1"),
        ({"delta": 1.0}, "delta: 1.0 is not between 0 and 1"),
        ({"grid": []}, "grid: is empty"),
        ({"grid": [0.5, 0.7]}, "grid: must fall strictly"),
        ({"grid": [0.5, 0.5]}, "grid: must fall strictly"),
        ({"grid": [np.nan]}, "grid: contains NaN"),
    ],
)
def test_unusable_input_is_refused_by_field(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "confidence": [0.6, 0.7, 0.8, 0.9],
        "correct": [1, 0, 1, 1],
        "alpha": ALPHA,
        "delta": DELTA,
        "grid": [0.5],
    }
    with pytest.raises(InvalidInput, match=message):
        certify(**(good | change))  # type: ignore[arg-type]


def test_the_grid_keeps_the_shares_asked_for_and_ends_by_accepting_everything() -> None:
    confidence = np.random.default_rng(1).random(1000)
    grid = threshold_grid(confidence, (0.05, 0.1, 0.5, 1.0))
    assert [float(np.mean(confidence >= t)) for t in grid] == [0.05, 0.1, 0.5, 1.0]
    assert grid[-1] == 0


def test_ties_merge_thresholds() -> None:
    assert threshold_grid([0.6] * 50 + [0.9] * 50).tolist() == [0.9, 0.6, 0.0]


def test_the_planned_grid_is_the_tail_of_the_whole_one_and_skips_what_cannot_pass() -> None:
    develop = Population(0.55, 0.35).draw(400, np.random.default_rng(2))
    whole = threshold_grid(develop[0])
    planned = plan_grid(*develop, rows=200, alpha=ALPHA, delta=DELTA)
    assert len(planned) < len(whole)
    assert planned.tolist() == whole[-len(planned) :].tolist()


@pytest.mark.parametrize("coverages", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.4), (0.5, 1.1)])
def test_coverages_must_be_rising_shares(coverages: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="coverages"):
        threshold_grid([0.5, 0.6], coverages)


def test_naive_tuning_takes_the_widest_coverage_that_looks_good() -> None:
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5]
    naive = naive_threshold(confidence, [1, 1, 0, 1, 0], alpha=0.25)
    assert naive == UncertifiedThreshold(threshold=0.6, coverage=0.8, risk=0.25)
    assert naive_threshold(confidence, [0, 0, 0, 0, 0], alpha=0.25) is None


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


def a_certificate() -> Certificate:
    return certify([0.9] * 100, [1] * 90 + [0] * 10, alpha=ALPHA, delta=DELTA, grid=[0.5])


def test_json_gives_back_an_equal_certificate() -> None:
    certificate = a_certificate()
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "certificate.surprise"),
        ({"alpha": None}, "certificate.alpha"),
        ({"n": 10.0}, "certificate.n"),
        ({"n_accepted": 101}, "certificate.n_accepted"),
        ({"errors": 101}, "certificate.errors"),
        ({"coverage": 0.5}, "certificate.coverage"),
        ({"p_value": 0.2}, "certificate.p_value"),
        ({"method": "hope"}, "certificate.method"),
        ({"data_digest": "xyz"}, "certificate.data_digest"),
    ],
)
def test_json_that_is_not_exactly_a_certificate_is_refused(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        Certificate.from_json(a_certificate().to_json() | change)


def test_a_missing_field_is_named() -> None:
    data = a_certificate().to_json()
    del data["delta"]
    with pytest.raises(InvalidInput, match=r"certificate\.delta: is missing"):
        Certificate.from_json(data)

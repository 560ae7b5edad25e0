"""The certificate keeps its promise where the risk is known, and refuses what it must."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cascade.certify import (
    Bonferroni,
    Family,
    FixedSequence,
    Holm,
    Target,
    certify,
    certify_targets,
    cost_usd,
    deadline_misses,
    escalation_share,
    excess_error,
    naive_threshold,
    net_error,
    plan_grid,
    selective_risk,
    threshold_grid,
)
from cascade.errors import InfeasibleTarget, InvalidInput
from tests.cascade.certify.populations import Population, Rows, within_level

ALPHA, DELTA = 0.25, 0.1


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
    assert within_level(violations, resplits, DELTA)
    assert naive_violations > 3 * violations
    assert naive_violations > 0.3 * resplits


def test_the_promise_holds_over_draws_of_the_develop_part_too() -> None:
    population, resplits, violations = Population(0.5, 0.4), 300, 0
    rng = np.random.default_rng(8)
    for _ in range(resplits):
        grid = plan_grid(*population.draw(200, rng), rows=600, alpha=ALPHA, delta=DELTA)
        threshold = threshold_or_none(population.draw(600, rng), grid)
        violations += threshold is not None and population.risk(threshold) > ALPHA
    assert within_level(violations, resplits, DELTA)


def test_stratified_rows_do_not_break_the_promise() -> None:
    """Four strata with fixed counts, error rates apart, and the mixture just above alpha."""
    rng, resplits, violations = np.random.default_rng(9), 2000, 0
    error_rates = np.repeat([0.05, 0.2, 0.3, 0.454], 150)  # mean .251
    for _ in range(resplits):
        wrong = rng.random(600) < error_rates
        violations += threshold_or_none((np.ones(600), ~wrong), np.array([0.0])) is not None
    assert within_level(violations, resplits, DELTA)


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
    assert (certificate.threshold, certificate.n_accepted) == (0.8, 40)
    (risk,) = certificate.promises
    assert (risk.kind, risk.rows, risk.observed) == ("selective_risk", 40, 0.05)
    assert certificate.coverage == pytest.approx(40 / 4080)
    assert certificate.p_value == pytest.approx(stats.binom.cdf(2, 40, ALPHA), rel=1e-9)
    bound = stats.binomtest(2, 40, alternative="less").proportion_ci(1 - DELTA, "exact").high
    assert risk.upper == pytest.approx(bound)
    assert risk.upper <= ALPHA


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


def test_a_sequence_that_began_badly_is_told_so() -> None:
    """The top 20 rows are worse than those below them, which would have passed."""
    confidence, correct = np.repeat([0.9, 0.5], [20, 980]), np.repeat([0, 1, 1], [8, 12, 980])
    with pytest.raises(InfeasibleTarget, match="plan the order of test anew") as refusal:
        certify(confidence, correct, alpha=ALPHA, delta=DELTA, grid=[0.8, 0.5])
    assert refusal.value.labels_needed is not None
    assert refusal.value.labels_needed <= 1000


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
        ({"correct": [1, 1, 0, 0.5]}, "correct: must hold only .* take method='hoeffding_bentkus'"),
        ({"correct": [1, 1, 0, 2]}, "correct: must hold only"),
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


def both_tiers(n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], ...]:
    """Confidence c uniform, the device right with P = c, the cluster with P = .9 independently."""
    confidence = rng.random(n)
    right = (rng.random(n) < confidence).astype(float)
    return confidence, right, (rng.random(n) < 0.9).astype(float)


def test_several_targets_meet_in_the_middle() -> None:
    """Risk (1 - t) / 2 ≤ .25 asks for t ≥ .5, and at most 80 % escalated for t ≤ .8."""
    confidence, right, _ = both_tiers(4000, np.random.default_rng(1))
    targets = [selective_risk(right, alpha=0.25), escalation_share(4000, alpha=0.8)]
    falling = np.linspace(0.75, 0, 31)
    certificate = certify_targets(confidence, targets, delta=DELTA, grid=falling)
    assert [promise.kind for promise in certificate.promises] == [t.kind for t in targets]
    assert 0.5 < certificate.threshold < 0.6
    assert certificate.p_value == max(promise.p_value for promise in certificate.promises)
    rising = certify_targets(confidence, targets, delta=DELTA, grid=np.linspace(0.6, 1, 17))
    assert 0.7 < rising.threshold < 0.8


def test_targets_that_exclude_each_other_are_refused_for_any_number_of_labels() -> None:
    confidence, right, _ = both_tiers(2000, np.random.default_rng(2))
    targets = [selective_risk(right, alpha=0.1), escalation_share(2000, alpha=0.5)]
    with pytest.raises(InfeasibleTarget, match="to meet all targets") as refusal:
        certify_targets(confidence, targets, delta=DELTA, grid=threshold_grid(confidence))
    assert refusal.value.labels_needed is None


@pytest.mark.parametrize("family", [FixedSequence((0, 5)), Holm(), Bonferroni()])
def test_targets_that_hold_together_fail_together_at_most_as_often_as_delta(family: Family) -> None:
    """Excess error .9 · (1 - t)² / 2 ≤ .1 needs t ≥ .529, at most 60 % escalated t ≤ .6."""
    draws, violations, found = 300, 0, 0
    rng = np.random.default_rng(3)
    grid = np.linspace(0.62, 0.5, 13)
    for _ in range(draws):
        confidence, right, cloud = both_tiers(3000, rng)
        targets = [
            excess_error(right, cloud, alpha=0.1),
            escalation_share(3000, alpha=0.6),
        ]
        try:
            certificate = certify_targets(
                confidence, targets, delta=DELTA, grid=grid, family=family
            )
        except InfeasibleTarget:
            continue
        found += 1
        t = certificate.threshold
        violations += 0.9 * (1 - t) ** 2 / 2 > 0.1 or t > 0.6
    assert found > draws / 4
    assert within_level(violations, draws, DELTA)


def test_money_is_spent_up_to_what_is_certified() -> None:
    """One cent a call on average, at most five: .5 cents a request allow half to be escalated."""
    rng = np.random.default_rng(4)
    confidence = rng.random(3000)
    cents = rng.beta(2, 8, 3000) * 0.05
    thresholds = {}
    for method in ("hoeffding_bentkus", "betting"):
        target = cost_usd(cents, alpha=0.005, most=0.05, method=method)
        certificate = certify_targets(confidence, [target], delta=DELTA, grid=np.linspace(0, 1, 41))
        (promise,) = certificate.promises
        assert (promise.low, promise.high, promise.alpha) == (0, 0.05, 0.005)
        assert promise.observed < promise.upper <= promise.alpha
        thresholds[method] = certificate.threshold
    assert 0.3 < thresholds["hoeffding_bentkus"] < thresholds["betting"] < 0.5


def test_a_net_error_of_zero_needs_a_device_that_is_as_good() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.random(2000)
    right = rng.random(2000) < 0.6 + 0.4 * confidence
    cloud = rng.random(2000) < 0.8
    target = net_error(right, cloud, alpha=0.0)
    certificate = certify_targets(confidence, [target], delta=DELTA, grid=np.linspace(0.7, 0, 29))
    # The mean of (.2 - .4 c) over all rows with c ≥ t is -.2 t (1 - t): 0 at t = 0, least at .5.
    assert 0 < certificate.threshold < 0.5
    assert certificate.promises[0].observed < 0


@pytest.mark.parametrize(
    "target",
    [
        excess_error([0] * 50 + [1] * 950, [1] * 1000, alpha=0.06),
        net_error([0] * 50 + [1] * 950, [1] * 1000, alpha=0.06, method="hoeffding_bentkus"),
        deadline_misses([1] * 50 + [0] * 950, [1] * 1000, alpha=0.06),
        cost_usd([1.0] * 1000, local=[0.05] * 1000, alpha=0.06, most=1.0),
        selective_risk([0.95] * 1000, alpha=0.06, method="hoeffding_bentkus"),
    ],
    ids=lambda target: target.kind,
)
def test_every_infeasible_target_says_how_many_labels_would_do(target: Target) -> None:
    with pytest.raises(InfeasibleTarget, match="fresh labels would be needed") as refusal:
        certify_targets(np.full(1000, 0.5), [target], delta=DELTA, grid=[0.5])
    needed = refusal.value.labels_needed
    assert needed is not None
    assert needed > 1000
    repeats = math.ceil(1.05 * needed / 1000)  # a rounded count may miss by a hair
    more = target.take(np.tile(np.arange(1000), repeats))
    rows = np.full(1000 * repeats, 0.5)
    assert certify_targets(rows, [more], delta=DELTA, grid=[0.5]).coverage == 1


def test_an_escalation_share_needs_rows_not_labels() -> None:
    confidence = np.repeat([0.2, 0.8], [28, 72])
    target = escalation_share(100, alpha=0.3)
    with pytest.raises(InfeasibleTarget) as refusal:
        certify_targets(confidence, [target], delta=DELTA, grid=[0.5])
    needed = refusal.value.labels_needed
    assert needed is not None
    assert 100 < needed < 1500


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter_to_any_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, right, cloud = both_tiers(300, rng)
    cost = rng.random(300)
    targets = [
        selective_risk(right, alpha=0.4),
        excess_error(right, cloud, alpha=0.4),
        escalation_share(300, alpha=0.8),
        cost_usd(cost, alpha=0.5, most=1.0),
        deadline_misses(right, cloud, alpha=0.99),
    ]
    order = rng.permutation(300)
    shuffled = [target.take(order) for target in targets]
    grid = np.linspace(0.6, 0.2, 9)
    first = certify_targets(confidence, targets, delta=DELTA, grid=grid)
    other = certify_targets(confidence[order], shuffled, delta=DELTA, grid=grid)
    assert (other.threshold, other.data_digest) == (first.threshold, first.data_digest)
    assert [p.p_value for p in other.promises] == pytest.approx(
        [p.p_value for p in first.promises], rel=1e-9
    )


def test_a_lenient_family_or_a_rising_grid_may_be_asked_for() -> None:
    confidence, right = Population(0.6, 0.4).draw(1000, np.random.default_rng(6))
    target = selective_risk(right, alpha=0.3)
    grid = np.linspace(0.9, 0, 19)
    reached = [
        certify_targets(confidence, [target], delta=DELTA, grid=grid, family=family)
        for family in (FixedSequence(), Holm(), Bonferroni())
    ]
    assert [certificate.family for certificate in reached] == [
        "fixed_sequence",
        "holm",
        "bonferroni",
    ]
    assert reached[0].threshold <= reached[1].threshold <= reached[2].threshold
    assert [certificate.starts for certificate in reached] == [(0,), (), ()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "targets: is empty"),
        ({"targets": [escalation_share(4, alpha=0.5)] * 2}, "targets: has two of one kind"),
        ({"targets": [escalation_share(3, alpha=0.5)]}, "escalation_share: has 3 rows"),
        ({"grid": [0.5, 0.7, 0.6]}, "grid: must fall strictly, or rise strictly"),
        ({"delta": 0.0}, "delta: 0.0 is not between"),
        ({"family": FixedSequence((3,))}, "starts: 3 is beyond a grid of 1"),
    ],
)
def test_unusable_targets_are_refused_by_field(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "confidence": [0.6, 0.7, 0.8, 0.9],
        "targets": [escalation_share(4, alpha=0.5)],
        "delta": DELTA,
        "grid": [0.5],
    }
    with pytest.raises(InvalidInput, match=message):
        certify_targets(**(good | change))  # type: ignore[arg-type]

"""Figures against hand values, scikit-learn, scipy and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn import metrics as reference

from cascade.errors import InvalidInput
from cascade.metrics import (
    aiq,
    aurc,
    auroc,
    brier,
    deferral_curve,
    ece,
    paired_difference,
    percentile,
    reliability,
    wilson_interval,
)

# Few distinct confidences, so that ties are common.
rows = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=30,
)


def columns(values: list[tuple[float, bool, bool]]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(column, dtype=np.float64) for column in zip(*values, strict=True))


# Intervals of a rate


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    interval = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_ends_exactly_at_the_ends() -> None:
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


@pytest.mark.parametrize(
    ("k", "n", "level", "field"),
    [
        (1, 0, 0.95, "trials"),
        (5, 4, 0.95, "successes"),
        (-1, 4, 0.95, "successes"),
        (1, 4, 1, "level"),
    ],
)
def test_impossible_counts_are_refused(k: int, n: int, level: float, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        wilson_interval(k, n, level)


# Paired difference


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    return (
        [1] * both + [1] * first + [0] * second + [0] * neither,
        [1] * both + [0] * first + [1] * second + [0] * neither,
    )


def brute_force_score(first: int, second: int, n: int, delta: float) -> float:
    """Tango's statistic with the nuisance parameter found by numerical maximisation."""

    def minus_log_likelihood(rate: float) -> float:  # rate = P(only the second is right)
        cells = [(first, rate + delta), (second, rate), (n - first - second, 1 - 2 * rate - delta)]
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    rate = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return (first - second - n * delta) / math.sqrt(n * (2 * rate + delta - delta**2))


@pytest.mark.parametrize(
    ("both", "first", "second", "neither"), [(36, 12, 2, 0), (90, 25, 10, 35), (5, 0, 4, 1)]
)
def test_the_paired_interval_inverts_the_score_test(
    both: int, first: int, second: int, neither: int
) -> None:
    n = both + first + second + neither
    result = paired_difference(*pairs(both, first, second, neither))
    assert result.difference == pytest.approx((first - second) / n)
    assert (result.only_first, result.only_second, result.n) == (first, second, n)
    lower, upper = result.interval
    assert brute_force_score(first, second, n, lower) == pytest.approx(1.959964, abs=1e-3)
    assert brute_force_score(first, second, n, upper) == pytest.approx(-1.959964, abs=1e-3)


def test_without_discordant_pairs_the_interval_is_tangos_closed_form() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    result = paired_difference(*pairs(40, 0, 0, 10))
    assert result.interval == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)


@pytest.mark.parametrize(("first", "second", "end"), [(8, 0, 1.0), (0, 8, -1.0)])
def test_a_total_difference_reaches_the_end(first: int, second: int, end: float) -> None:
    result = paired_difference(*pairs(0, first, second, 0))
    assert result.difference == end
    assert end in result.interval


@given(st.integers(0, 60), st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_the_paired_interval_is_antisymmetric_and_holds_the_difference(
    both: int, first: int, second: int, neither: int
) -> None:
    assume(both + first + second + neither > 0)
    one, two = pairs(both, first, second, neither)
    there, back = paired_difference(one, two), paired_difference(two, one)
    assert there.interval[0] <= there.difference <= there.interval[1]
    assert -1 <= there.interval[0] <= there.interval[1] <= 1
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-9)


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    rng, inside, repeats = np.random.default_rng(3), 0, 1000
    for _ in range(repeats):
        cell = rng.choice(4, size=120, p=[0.6, 0.15, 0.05, 0.2])
        lower, upper = paired_difference(cell <= 1, (cell == 0) | (cell == 2)).interval
        inside += lower <= 0.1 <= upper
    assert stats.binomtest(inside, repeats, 0.95).pvalue > 1e-3


def test_rows_of_different_length_cannot_be_paired() -> None:
    with pytest.raises(InvalidInput, match="second: has 2 rows but first has 3"):
        paired_difference([1, 0, 1], [1, 0])


# Deferral curve


def test_the_curve_by_hand() -> None:
    """Least confident first: a gain, a loss, a gain, nothing."""
    curve = deferral_curve([0.6, 0.7, 0.8, 0.9], [0, 1, 0, 1], [1, 0, 1, 1])
    assert curve.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.accuracy.tolist() == [0.5, 0.75, 0.5, 0.75, 0.75]
    assert curve.oracle.tolist() == [0.5, 0.75, 1, 1, 0.75]
    assert curve.random.tolist() == [0.5, 0.5625, 0.625, 0.6875, 0.75]
    assert curve.auc == pytest.approx((0.625 + 0.625 + 0.625 + 0.75) / 4)
    oracle = (0.625 + 0.875 + 1 + 0.875) / 4
    assert curve.normalised_auc == pytest.approx((0.65625 - 0.625) / (oracle - 0.625))


@given(rows)
def test_every_curve_begins_on_the_device_and_ends_in_the_cloud(
    values: list[tuple[float, bool, bool]],
) -> None:
    confidence, local, remote = columns(values)
    curve = deferral_curve(confidence, local, remote)
    for line in (curve.accuracy, curve.random, curve.oracle):
        assert (line[0], line[-1]) == pytest.approx((local.mean(), remote.mean()))
    assert (curve.oracle >= curve.accuracy - 1e-12).all()
    assert (curve.oracle >= curve.random - 1e-12).all()


@given(rows, st.randoms())
def test_the_order_of_rows_changes_no_figure(
    values: list[tuple[float, bool, bool]], random: object
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = columns(values), columns(shuffled)
    assert deferral_curve(*one).accuracy == pytest.approx(deferral_curve(*other).accuracy)
    assert aurc(*one[:2]) == pytest.approx(aurc(*other[:2]))


def test_with_equal_confidence_the_curve_is_the_random_line() -> None:
    curve = deferral_curve([0.7] * 4, [0, 1, 0, 1], [1, 0, 1, 1])
    assert curve.accuracy == pytest.approx(curve.random)
    assert curve.normalised_auc == pytest.approx(0)


def test_confidence_that_orders_like_the_oracle_scores_one() -> None:
    curve = deferral_curve([0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1], [1, 1, 1, 0])
    assert curve.normalised_auc == pytest.approx(1)


def test_where_both_models_agree_there_is_nothing_to_normalise() -> None:
    curve = deferral_curve([0.1, 0.9], [0, 1], [0, 1])
    assert curve.auc == 0.5
    assert curve.normalised_auc is None


# Ranking and calibration


@given(rows)
def test_auroc_is_scikit_learns_ties_included(values: list[tuple[float, bool, bool]]) -> None:
    confidence, correct, _ = columns(values)
    assume(0 < correct.sum() < len(correct))
    assert auroc(confidence, correct) == pytest.approx(
        reference.roc_auc_score(correct, confidence), abs=1e-12
    )


def test_auroc_needs_both_kinds() -> None:
    with pytest.raises(InvalidInput, match="right and wrong"):
        auroc([0.5, 0.6], [1, 1])


def test_aurc_by_hand() -> None:
    """Errors among the 1, 2, 3 most confident: 0, 1/2, 1/3."""
    assert aurc([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_aurc_with_ties_is_the_mean_over_their_orders() -> None:
    correct = [1, 0, 0, 1]
    orders = [
        np.mean(np.cumsum([1 - correct[i] for i in order]) / np.arange(1, 5))
        for order in itertools.permutations(range(4))
    ]
    assert aurc([0.5] * 4, correct) == pytest.approx(np.mean(orders))


@given(rows)
def test_brier_is_scikit_learns(values: list[tuple[float, bool, bool]]) -> None:
    confidence, correct, _ = columns(values)
    assert brier(confidence, correct) == pytest.approx(
        reference.mean_squared_error(correct, confidence)
    )


def test_bins_hold_their_lower_edge_and_the_last_one_holds_one() -> None:
    diagram = reliability([0.0, 0.1, 0.15, 1.0], [0, 1, 0, 1])
    assert [bar.count for bar in diagram] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (diagram[1].confidence, diagram[1].accuracy) == pytest.approx((0.125, 0.5))
    assert math.isnan(diagram[5].accuracy)
    assert (diagram[0].lower, diagram[-1].upper) == (0, 1)


def test_ece_by_hand() -> None:
    """Two bins: |.5 - .65| for two rows and |1 - .95| for one."""
    assert ece([0.61, 0.69, 0.95], [1, 0, 1]) == pytest.approx((2 * 0.15 + 0.05) / 3)


def test_confidence_that_is_the_rate_has_no_calibration_error() -> None:
    assert ece([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0)


@pytest.mark.parametrize("bins", [0, -1])
def test_bins_must_be_at_least_one(bins: int) -> None:
    with pytest.raises(InvalidInput, match="bins"):
        reliability([0.5], [1], bins)


@pytest.mark.parametrize("figure", [aurc, auroc, brier, ece])
@pytest.mark.parametrize(
    ("confidence", "correct", "field"),
    [
        ([], [], "confidence"),
        ([np.nan, 0.5], [0, 1], "confidence"),
        ([0.5], [0, 1], "correct"),
        ([0.5, 0.6], [0, 3], "correct"),
    ],
)
def test_unusable_rows_are_refused_by_field(
    figure: object, confidence: list[float], correct: list[int], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        figure(confidence, correct)  # type: ignore[operator]


# Percentiles


def test_percentiles_interpolate() -> None:
    assert percentile([10, 20, 30, 40], 50) == 25
    assert percentile([10], 95) == 10


@pytest.mark.parametrize(
    ("values", "percent"), [([], 50), ([math.nan], 50), ([[1]], 50), ([1], 101)]
)
def test_percentiles_of_nothing_are_refused(values: list[float], percent: float) -> None:
    with pytest.raises(InvalidInput):
        percentile(values, percent)


def test_gap_recovered_by_hand() -> None:
    # Escalated in this order: a gain, nothing, a loss, a gain: accuracy .5 .75 .75 .5 .75
    curve = deferral_curve([0.1, 0.2, 0.3, 0.4], [0, 1, 1, 0], [1, 1, 0, 1])
    assert curve.gap_recovered is not None
    assert curve.gap_recovered.tolist() == [0, 1, 1, 0, 1]
    assert curve.apgr == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    assert curve.call_share(0) == 0
    assert curve.call_share(0.5) == 0.25  # the first crossing, though the curve falls again
    assert curve.call_share(1.1) is None
    assert curve.share_to_match(0.75) == 0.25
    assert curve.share_to_match(0.8) is None
    assert curve.share_to_match(0.5) == 0


def test_random_order_recovers_half() -> None:
    rng = np.random.default_rng(5)
    weak, strong = rng.random(400) < 0.6, rng.random(400) < 0.9
    tied = deferral_curve(np.full(400, 0.5), weak, strong)  # one tie is random order
    assert tied.apgr == pytest.approx(0.5)
    assert tied.call_share(0.5) == pytest.approx(0.5, abs=1 / 400)
    shuffled = [deferral_curve(rng.random(400), weak, strong).apgr for _ in range(200)]
    assert np.mean([each for each in shuffled if each is not None]) == pytest.approx(0.5, abs=0.02)


def test_without_a_gap_there_is_nothing_to_recover() -> None:
    curve = deferral_curve([0.1, 0.2], [1, 0], [0, 1])
    assert (curve.gap_recovered, curve.apgr, curve.call_share(0.5)) == (None, None, None)


def test_aiq_by_hand() -> None:
    # The hull goes 0, 2, 4; the point at 1 lies below it, that at 6 below its top.
    cost, quality = [0.0, 1, 2, 4, 6], [0.5, 0.5, 0.8, 0.9, 0.7]
    under = 0.65 * 2 + 0.85 * 2 + 0.9 * 2
    assert aiq(cost, quality) == pytest.approx(under / 6)
    assert aiq(cost, quality, max_cost=10) == pytest.approx((under + 0.9 * 4) / 10)
    assert aiq([2.0], [0.5], max_cost=4) == pytest.approx(0.25)
    assert aiq([0.0, 0.0], [0.5, 0.7]) is None
    with pytest.raises(InvalidInput, match="max_cost: 1 is below a cost, 6"):
        aiq(cost, quality, max_cost=1)
    with pytest.raises(InvalidInput, match="cost"):
        aiq([-1.0], [0.5])

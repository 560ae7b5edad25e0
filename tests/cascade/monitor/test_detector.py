"""The detector's wealth is a fair game at risk alpha, loses below it, and soon wins above it."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.decision.cusum import Cusum, threshold
from benchmarks.decision.drift import Detectors, delays, false_alarms
from cascade.errors import InvalidInput
from cascade.monitor import ChangeDetector
from cascade.monitor.detector import RISES, SPREAD, STAKES, alternative, entering, left

labels = st.lists(st.booleans(), max_size=60)


def detector_of(answers, null=0.1):
    detector = ChangeDetector()
    for wrong in answers:
        detector = detector.after(wrong, null=null)
    return detector


@given(labels, st.floats(0.001, 0.9), st.data())
def test_the_expected_wealth_never_rises_while_the_risk_is_within_alpha(answers, alpha, data):
    detector = detector_of(answers, alpha)
    risk = data.draw(st.floats(0, alpha))
    after = {wrong: detector.after(wrong, null=alpha).wealth for wrong in (False, True)}
    expected = risk * after[True] + (1 - risk) * after[False]
    assert expected <= detector.wealth * (1 + 1e-12)
    fair = alpha * after[True] + (1 - alpha) * after[False]
    assert fair == pytest.approx(detector.wealth, rel=1e-12)


def test_a_bet_on_too_high_a_null_is_not_fair_so_the_check_above_can_fail():
    detector = detector_of([False] * 20, 0.1)
    after = {wrong: detector.after(wrong, null=0.1).wealth for wrong in (False, True)}
    assert 0.15 * after[True] + 0.85 * after[False] > detector.wealth * (1 + 1e-6)


def test_the_shares_of_the_stake_sum_to_one():
    shares = [entering(n) for n in range(1, 50_001)]
    sums = np.cumsum(shares)
    for n in (1, 2, SPREAD, 50_000):
        assert sums[n - 1] + left(n) == pytest.approx(1, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(shares))


@given(labels, labels)
def test_an_error_more_is_never_less_evidence(before, after):
    right = detector_of([*before, False, *after]).wealth
    assert detector_of([*before, True, *after]).wealth > right


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_false_alarms_stay_below_one_percent_over_ten_thousand_audits(alpha):
    streams = 2_000
    alarmed = false_alarms(alpha, 10_000, streams, seed=5)
    # Proven: at most 1 %. Three standard errors above it would be 1.7 %.
    assert alarmed <= streams * (0.01 + 3 * math.sqrt(0.01 * 0.99 / streams))


def test_a_detector_without_a_level_would_alarm_all_the_time():
    """The simulation above can fail: a threshold of 3 instead of 100 is crossed often."""
    detectors = Detectors.new(0.1, 500)
    rng = np.random.default_rng(5)
    alarmed = np.zeros(500, bool)
    for _ in range(3_000):
        detectors = detectors.after(rng.random(500) < 0.1)
        alarmed |= detectors.wealth >= 3
    assert alarmed.mean() > 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("good", [0, 500])
def test_a_rise_by_ten_points_is_noticed_in_time(alpha, good):
    found, _ = delays(alpha, good, streams=1_000, seed=6)
    # The goals are 250 and .65; n = 1,000 gives the median about ± 8, the share ± .03.
    assert np.median(found) <= 250 + 16
    assert (found <= 300).mean() >= 0.65 - 0.045


@given(labels)
def test_many_streams_at_once_are_the_detector(answers):
    many = Detectors.new(0.1, 1)
    for wrong in answers:
        many = many.after(np.array([wrong]))
    assert many.wealth[0] == pytest.approx(detector_of(answers).wealth, rel=1e-12)


@given(labels)
def test_cusum_is_the_best_likelihood_ratio_of_all_recent_stretches(answers):
    cusum = Cusum.new(0.1, 0.2, 1)
    for wrong in answers:
        cusum = cusum.after(np.array([wrong]))
    steps = [math.log(2) if wrong else math.log(0.8 / 0.9) for wrong in answers]
    best = max(sum(steps[start:]) for start in range(len(steps) + 1))
    assert cusum.sums[0] == pytest.approx(best, abs=1e-9)


def test_cusum_has_as_many_false_alarms_as_it_was_calibrated_for():
    options = {"audits": 500, "streams": 4_000}
    limit = threshold(0.2, 0.3, false_alarm=0.05, seed=1, **options)
    rng, cusum, alarmed = (
        np.random.default_rng(2),
        Cusum.new(0.2, 0.3, 4_000),
        np.zeros(4_000, bool),
    )
    for _ in range(500):
        cusum = cusum.after(rng.random(4_000) < 0.2)
        alarmed |= cusum.sums >= limit
    # Both simulations have a standard error of .0034.
    assert alarmed.mean() == pytest.approx(0.05, abs=4 * 0.0034 * math.sqrt(2))


@given(labels)
def test_json_gives_back_the_very_same_detector(answers):
    detector = detector_of(answers)
    assert ChangeDetector.from_json(json.loads(json.dumps(detector.to_json()))) == detector


def test_after_very_many_audits_the_numbers_are_still_right():
    """Against the same recursion in logarithms; then a burst of errors is noticed, and the numbers
    stay finite however long it lasts."""
    detector = ChangeDetector()
    logs = np.full(len(RISES), -np.inf)
    rates = np.array([alternative(0.1, rise) for rise in RISES])
    won, lost = np.log(rates / 0.1), np.log((1 - rates) / 0.9)
    rng = np.random.default_rng(4)
    for n, wrong in enumerate((rng.random(100_000) < 0.08).tolist(), start=1):
        detector = detector.after(wrong, null=0.1)
        logs = np.logaddexp(logs, np.log(STAKES) + math.log(entering(n))) + (won if wrong else lost)
    assert np.log(detector.running) == pytest.approx(logs, rel=1e-9)
    assert detector.wealth < 1
    for _ in range(60):
        detector = detector.after(True, null=0.1)
    assert detector.wealth > 100
    for _ in range(200):
        detector = detector.after(True, null=0.001)
    assert math.isfinite(detector.wealth)


@pytest.mark.parametrize("null", [0.0, 1.0, math.nan])
def test_a_null_out_of_range_is_refused(null):
    with pytest.raises(InvalidInput, match="null"):
        ChangeDetector().after(True, null=null)


@pytest.mark.parametrize(
    "value",
    [
        {"audits": 1},
        {"audits": -1, "running": [0, 0, 0]},
        {"audits": 1, "running": [0, 0]},
        {"audits": 1, "running": [0, 0, math.nan]},
        {"audits": 1, "running": [0, 0, 0], "more": 1},
    ],
)
def test_a_damaged_state_is_refused(value):
    with pytest.raises(InvalidInput, match="detector"):
        ChangeDetector.from_json(value)

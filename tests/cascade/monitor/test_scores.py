"""The alarm on scores stays silent on inputs like the reference's, and speaks where they shift."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.monitor import Limits, ScoreAlarm
from cascade.monitor.health import score_threshold
from cascade.monitor.scores import LUCK, margin
from cascade.score_reference import ScoreReference

THRESHOLD = score_threshold(Limits(0.1))
scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def alarmed(rng, reference_scores, draw, requests):
    """After how many requests the alarm is raised; ``None`` where it is not."""
    reference, alarm = ScoreReference.of(reference_scores), ScoreAlarm()
    for request in range(1, requests + 1):
        alarm = alarm.after(float(draw(rng)), reference)
        if alarm.wealth >= THRESHOLD:
            return request
    return None


def test_unchanged_scores_raise_no_alarm_whatever_the_luck_of_the_reference():
    rng = np.random.default_rng(1)
    for rows in (50, 300, 2_000):
        for _ in range(4):
            known = rng.beta(5, 2, rows)
            assert alarmed(rng, known, lambda rng: rng.beta(5, 2), 3_000) is None


def test_rounded_scores_with_many_ties_raise_no_alarm():
    rng = np.random.default_rng(2)

    def draw(rng, size=None):
        return np.round(rng.beta(5, 1, size), 1)

    assert alarmed(rng, draw(rng, 500), draw, 5_000) is None


@pytest.mark.parametrize("shifted", [(3, 2), (9, 2)], ids=["lower", "higher"])
def test_a_shift_in_either_direction_is_noticed(shifted):
    rng = np.random.default_rng(3)
    found = alarmed(rng, rng.beta(5, 2, 1_000), lambda rng: rng.beta(*shifted), 1_500)
    assert found is not None


@given(scores, st.lists(st.floats(0, 1), max_size=30), st.data())
def test_the_expected_wealth_never_rises_within_the_margin(known, past, data):
    """For every distribution function within the margin of the reference, at any time."""
    reference, alarm = ScoreReference.of(known), ScoreAlarm()
    for score in past:
        alarm = alarm.after(score, reference)
    # Probabilities of the cells between deciles. A running maximum of numbers within eps of numbers
    # that do not fall is within eps of these, too.
    eps = margin(reference.rows)
    shares = [
        data.draw(st.floats(max(0.0, share - eps), min(1.0, share + eps)))
        for share in reference.shares
    ]
    cells = np.diff([0.0, *np.maximum.accumulate(shares), 1.0])
    inside = [*reference.scores, math.inf]
    expected = sum(
        cell * alarm.after(min(at, 2.0), reference).wealth
        for cell, at in zip(cells, inside, strict=True)
    )
    assert expected <= alarm.wealth * (1 + 1e-9)


def test_the_margin_is_that_of_dvoretzky_kiefer_wolfowitz_and_massart():
    assert 2 * math.exp(-2 * 600 * margin(600) ** 2) == pytest.approx(LUCK)


def test_deciles_count_ties_exactly():
    reference = ScoreReference.of([0.5] * 8 + [0.25, 1.0])
    assert reference == ScoreReference(10, (0.25, 0.5), (0.1, 0.9))
    assert ScoreReference.of([0.3]).shares == (1.0,)


@given(scores)
def test_json_gives_back_the_very_same_reference_and_alarm(known):
    reference = ScoreReference.of(known)
    alarm = ScoreAlarm()
    for score in known:
        alarm = alarm.after(score, reference)
    text = json.dumps([reference.to_json(), alarm.to_json()])
    first, second = json.loads(text)
    assert ScoreReference.from_json(first) == reference
    assert ScoreAlarm.from_json(second) == alarm


def test_unusable_scores_and_references_are_refused():
    reference = ScoreReference.of([0.2, 0.4, 0.9])
    with pytest.raises(InvalidInput, match="score: is NaN"):
        ScoreAlarm().after(math.nan, reference)
    with pytest.raises(InvalidInput, match="is not the one"):
        ScoreAlarm().after(0.5, reference).after(0.5, ScoreReference.of([0.3]))
    with pytest.raises(InvalidInput, match="NaN"):
        ScoreReference.of([math.nan])
    with pytest.raises(InvalidInput, match="rise strictly"):
        ScoreReference(3, (0.5, 0.5), (0.1, 0.2))
    with pytest.raises(InvalidInput, match="one number for each"):
        ScoreReference(3, (0.5,), ())

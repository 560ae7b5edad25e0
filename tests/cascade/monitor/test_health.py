"""States change for the reasons that they should, and for no others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.monitor import Health, Label, Limits, State
from cascade.monitor.health import after_answer, after_audit, after_feedback
from cascade.score_reference import ScoreReference

LIMITS = Limits(0.1)
NEW = Health(opened=1.0, since=1.0)
REFERENCE = ScoreReference.of([i / 1000 for i in range(500, 1000)])


def audited(health, answers, limits=LIMITS, source="grader", probability=0.05):
    """The health after audits at times 2, 3, …, and the kinds of changes on the way."""
    kinds = []
    for at, wrong in enumerate(answers, start=2):
        label = Label(wrong, source, probability)
        health, change = after_audit(health, limits, label, float(at))
        kinds += [change.kind] if change else []
    return health, kinds


def scored(health, scores, *, accepted=False, limits=LIMITS):
    kinds = []
    for at, score in enumerate(scores, start=2):
        health, change = after_answer(
            health, limits, accepted=accepted, score=score, reference=REFERENCE, now=float(at)
        )
        kinds += [change.kind] if change else []
    return health, kinds


def test_errors_put_a_policy_on_watch_and_then_demote_it():
    health, kinds = audited(NEW, [True] * 40)
    assert kinds == ["watch", "demoted"]
    assert health.state is State.DEMOTED
    assert 2.0 < health.since < 40.0
    assert (health.audits.labels, health.audits.errors) == (40, 40)


def test_a_demoted_policy_stays_so_whatever_the_labels_that_still_come_in():
    health, _ = audited(NEW, [True] * 40)
    later, kinds = audited(health, [False] * 3_000)
    assert kinds == []
    assert later.state is State.DEMOTED
    assert later.since == health.since


def test_changed_scores_alone_never_demote():
    health, kinds = scored(NEW, [0.501] * 5_000)
    assert kinds == ["watch"]
    assert health.state is State.WATCH


def test_unchanged_scores_change_nothing():
    health, kinds = scored(NEW, [0.5 + (i * 197 % 500) / 1000 for i in range(3_000)])
    assert kinds == []
    assert health.scores.seen == 3_000


def test_good_audits_end_a_watch_and_the_same_shift_starts_no_other():
    health, _ = scored(NEW, [0.501] * 300)
    assert health.state is State.WATCH
    health, kinds = audited(health, [i % 50 == 0 for i in range(600)])
    assert kinds == ["cleared"]
    assert health.state is State.CERTIFIED
    health, kinds = scored(health, [0.501] * 300)
    assert kinds == []


def test_a_watch_for_scores_turns_into_a_demotion_by_errors():
    health, _ = scored(NEW, [0.501] * 300)
    health, kinds = audited(health, [True] * 40)
    assert kinds == ["demoted"]


def test_a_fallible_tier_is_allowed_to_disagree_as_often_as_it_is_wrong():
    disagreeing = [i % 5 == 0 for i in range(2_000)]  # .2 = .1 of the device's and .1 of the tier's
    assert audited(NEW, disagreeing, Limits(0.1), "tier")[0].state is State.DEMOTED
    health, kinds = audited(NEW, disagreeing, Limits(0.1, tier_error=0.1), "tier")
    assert kinds == []
    low, high = health.risk(Limits(0.1, tier_error=0.1))
    assert low < 0.1
    assert 0.3 < high < 0.34


def test_graders_are_held_to_alpha_itself():
    wrong = [i % 5 == 0 for i in range(2_000)]
    assert audited(NEW, wrong, Limits(0.1, tier_error=0.1))[0].state is State.DEMOTED


def test_audits_of_different_shares_are_weighted_for_the_answers_that_they_stand_for():
    health, _ = audited(NEW, [False] * 10, probability=0.1)
    health, _ = audited(health, [True] * 10, probability=0.5)
    assert health.weighted.answers == pytest.approx(120)
    assert health.weighted.rate == pytest.approx(20 / 120)
    assert health.audits.rate == 0.5


def test_complaints_demote_when_they_prove_too_many_errors():
    health, kinds = NEW, []
    health, _ = scored(health, [0.75] * 300, accepted=True)
    for _ in range(80):
        health, change = after_feedback(health, LIMITS, correct=False, now=9.0)
        kinds += [change.kind] if change else []
    assert kinds == ["demoted"]
    assert (health.accepted.labels, health.accepted.errors) == (300, 80)


def test_few_complaints_prove_nothing_and_praise_never_does():
    health, _ = scored(NEW, [0.5 + (i * 197 % 500) / 1000 for i in range(300)], accepted=True)
    for i in range(300):
        health, change = after_feedback(health, LIMITS, correct=i % 10 > 0, now=9.0)
        assert change is None
    assert health.state is State.CERTIFIED
    assert health.confirmed == 270
    assert health.detector == NEW.detector


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.01, 1)), max_size=40),
    st.lists(st.floats(0, 1), max_size=10),
    st.sampled_from(list(State)),
)
def test_json_gives_back_the_very_same_health(audits, scores, state):
    health = replace(NEW, state=state)
    for wrong, probability in audits:
        health, _ = after_audit(health, LIMITS, Label(wrong, "tier", probability), 2.0)
    health, _ = scored(health, scores, accepted=True)
    assert Health.from_json(json.loads(json.dumps(health.to_json()))) == health


def test_a_damaged_health_is_refused_by_name():
    fields = NEW.to_json()
    with pytest.raises(InvalidInput, match=r"health\.format_version: is not 1"):
        Health.from_json(fields | {"format_version": 2})
    with pytest.raises(InvalidInput, match=r"health\.state: 'fine' is not known"):
        Health.from_json(fields | {"state": "fine"})
    with pytest.raises(InvalidInput, match=r"health\.audits\.errors"):
        Health.from_json(fields | {"audits": {"labels": 1, "errors": 2}})
    with pytest.raises(InvalidInput, match=r"health\.extra"):
        Health.from_json(fields | {"extra": 1})


OUT_OF_RANGE = pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("tier_error", 0.95),
        ("false_alarm", 0.0),
        ("feedback_false_alarm", 0.5),
        ("score_false_alarm", 0.005),
        ("level", 1.0),
    ],
)


@OUT_OF_RANGE
def test_json_gives_back_the_very_same_limits(field, value):
    limits = Limits(0.07, tier_error=0.1, false_alarm=0.02)
    text = json.dumps(limits.to_json())
    assert Limits.from_json(json.loads(text)) == limits
    with pytest.raises(InvalidInput, match=field):
        Limits.from_json(json.loads(text) | {field: value})


@pytest.mark.parametrize("false_alarm", [0.1, 0.001])
def test_a_new_monitor_is_certified_at_every_level(false_alarm):
    health, kinds = audited(NEW, [False] * 5, Limits(0.1, false_alarm=false_alarm))
    assert (health.state, kinds) == (State.CERTIFIED, [])


@OUT_OF_RANGE
def test_limits_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InvalidInput, match=field):
        Limits(**{"alpha": 0.1, field: value})


def test_a_label_without_a_probability_is_refused():
    with pytest.raises(InvalidInput, match="probability"):
        Label(True, "tier", 0.0)

"""When a device may train: what has to hold, what was used, and when to look again."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.clock import Reading
from cascade.conditions import Conditions
from cascade.errors import InvalidInput
from edge.training.policy import DAY_S, Hold, TrainingLimits, Usage, may_train

GOOD = Conditions("unmetered", charging=True, idle=True, temperature_c=30.0)
NOON = 20_000 * DAY_S + DAY_S / 2
FRESH = Usage(NOON, 0.0, "boot")


def test_with_everything_in_order_it_may():
    permission = may_train(TrainingLimits(), FRESH, GOOD, participate=True)
    assert permission.allowed
    assert (permission.seconds, permission.steps, permission.joules) == (600, 1000, math.inf)
    assert permission.covers(seconds=600, steps=1000)
    assert not permission.covers(steps=1001)
    assert not permission.covers(seconds=601)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"idle": False}, Hold.NOT_IDLE),
        ({"idle": None}, Hold.NOT_IDLE),
        ({"charging": False}, Hold.NOT_CHARGING),
        ({"charging": None}, Hold.NOT_CHARGING),
        ({"connectivity": "metered"}, Hold.NOT_UNMETERED),
        ({"connectivity": "unknown"}, Hold.NOT_UNMETERED),
        ({"connectivity": "offline"}, Hold.NOT_UNMETERED),
        ({"temperature_c": 45.1}, Hold.TOO_HOT),
    ],
)
def test_a_condition_that_does_not_hold_is_named_and_may_change_at_once(change, reason):
    conditions = dataclasses.replace(GOOD, **change)
    permission = may_train(TrainingLimits(), FRESH, conditions, participate=True)
    assert permission.reasons == (reason,)
    assert permission.retry_s == 0
    assert not permission.covers(steps=1)


def test_what_nobody_asked_for_need_not_hold():
    free = TrainingLimits(idle=False, charging=False, unmetered=False, max_temperature_c=None)
    hot = Conditions("metered", 0.1, False, idle=False, temperature_c=90.0)
    assert may_train(free, FRESH, hot, participate=True).allowed
    unknown = dataclasses.replace(GOOD, temperature_c=None)
    assert may_train(TrainingLimits(), FRESH, unknown).allowed
    # No connection is needed by who sends nothing.
    offline = dataclasses.replace(GOOD, connectivity="offline")
    assert may_train(TrainingLimits(), FRESH, offline).allowed


@pytest.mark.parametrize(
    ("used", "reason"),
    [
        ({"seconds": 600.0}, Hold.TIME_SPENT),
        ({"steps": 1000}, Hold.STEPS_SPENT),
        ({"joules": 100.0}, Hold.ENERGY_SPENT),
    ],
)
def test_a_days_budget_lasts_until_midnight(used, reason):
    limits = TrainingLimits(joules_per_day=100.0)
    usage = FRESH.after(**used)
    permission = may_train(limits, usage, GOOD)
    assert permission.reasons == (reason,)
    assert permission.retry_s == DAY_S / 2
    later = usage.at(Reading(NOON + permission.retry_s, permission.retry_s, "boot"))
    assert may_train(limits, later, GOOD).allowed
    before = usage.at(Reading(NOON, permission.retry_s - 1, "boot"))
    assert not may_train(limits, before, GOOD).allowed


def test_rounds_keep_their_distance_and_their_number():
    limits = TrainingLimits(separation_s=100.0, per_week=2)
    usage = FRESH.participated()
    soon = may_train(limits, usage, GOOD, participate=True)
    assert (soon.reasons, soon.retry_s) == ((Hold.TOO_SOON,), 100.0)
    assert may_train(limits, usage, GOOD).allowed  # for itself it may
    usage = usage.at(Reading(0, 100.0, "boot")).participated()
    usage = usage.at(Reading(0, 300.0, "boot"))
    full = may_train(limits, usage, GOOD, participate=True)
    assert full.reasons == (Hold.WEEK_FULL,)
    usage = usage.at(Reading(0, 300.0 + full.retry_s, "boot"))
    assert may_train(limits, usage, GOOD, participate=True).allowed
    assert may_train(TrainingLimits(per_week=0), FRESH, GOOD, participate=True).retry_s > 0


def test_setting_the_clock_buys_nothing_while_the_machine_runs():
    usage = FRESH.after(seconds=600.0)
    for wall_s in (0.0, NOON + 10 * DAY_S):
        assert usage.at(Reading(wall_s, 10.0, "boot")).seconds == 600.0
    assert usage.at(Reading(0.0, 5.0, "another")).now_s == NOON  # never back
    assert usage.at(Reading(NOON + DAY_S, 5.0, "another")).seconds == 0.0


def test_all_that_stands_in_the_way_is_told_in_order():
    usage = FRESH.after(seconds=1e9, steps=10**9).participated()
    permission = may_train(TrainingLimits(), usage, Conditions(), participate=True)
    assert permission.reasons == (
        Hold.NOT_IDLE,
        Hold.NOT_CHARGING,
        Hold.NOT_UNMETERED,
        Hold.TIME_SPENT,
        Hold.STEPS_SPENT,
        Hold.TOO_SOON,
    )


@given(
    st.builds(
        TrainingLimits,
        seconds_per_day=st.floats(0, 1e4),
        steps_per_day=st.integers(0, 100),
        joules_per_day=st.none() | st.floats(0, 1e4),
        separation_s=st.floats(0, 1e6),
        per_week=st.integers(0, 5),
    ),
    st.floats(0, 1e4),
    st.integers(0, 100),
    st.lists(st.floats(1, 6 * DAY_S), max_size=5),
)
def test_who_waits_as_long_as_told_finds_the_budgets_filled_again(limits, seconds, steps, gaps):
    usage = FRESH.after(seconds=seconds, steps=steps, joules=seconds)
    uptime_s = 0.0
    for gap in gaps:
        usage = usage.participated()
        uptime_s += gap
        usage = usage.at(Reading(0.0, uptime_s, "boot"))
    permission = may_train(limits, usage, GOOD, participate=True)
    assert permission.seconds >= 0 <= permission.steps
    if permission.allowed:
        assert permission.retry_s == 0
        return
    never = 0 in (limits.seconds_per_day, limits.steps_per_day, limits.joules_per_day)
    if never or not limits.per_week:
        return
    later = usage.at(Reading(0.0, uptime_s + permission.retry_s + 1e-3, "boot"))
    assert may_train(limits, later, GOOD, participate=True).allowed


@pytest.mark.parametrize(
    "limits",
    [
        {"seconds_per_day": -1},
        {"steps_per_day": -1},
        {"joules_per_day": math.nan},
        {"watts": 0},
        {"separation_s": math.inf},
        {"per_week": -1},
        {"max_temperature_c": math.nan},
    ],
)
def test_impossible_limits_are_refused(limits):
    with pytest.raises(InvalidInput, match=f"training.{next(iter(limits))}"):
        TrainingLimits(**limits)

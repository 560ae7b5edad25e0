"""The books of training, and a session that stops when it has to."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.clock import Reading
from cascade.conditions import Conditions, FixedConditions
from cascade.errors import CascadeError
from edge.training.allowance import TrainingAllowance
from edge.training.policy import DAY_S, Hold, TrainingLimits

ROOT = Path(__file__).parents[3]
GOOD = Conditions("unmetered", charging=True, idle=True)


class FakeClock:
    def __init__(self) -> None:
        self.uptime_s = 0.0
        self.cpu_s = 0.0

    def read(self) -> Reading:
        return Reading(1000 * DAY_S + self.uptime_s, self.uptime_s, "boot")

    def work(self, seconds: float) -> None:
        self.uptime_s += seconds
        self.cpu_s += 2 * seconds


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def host():
    return FixedConditions(GOOD)


@pytest.fixture
def allow(tmp_path, clock, host):
    def allowance(**limits) -> TrainingAllowance:
        return TrainingAllowance(
            TrainingLimits(**limits),
            host,
            path=tmp_path / "training.sqlite3",
            clock=clock,
            cpu_s=lambda: clock.cpu_s,
        )

    return allowance


def train(session, clock, *, step_s: float, most: int = 10_000) -> int:
    steps = 0
    while not session.stop() and steps < most:
        clock.work(step_s)
        steps += 1
    return steps


def test_it_stops_with_the_days_steps_and_begins_again_the_next_day(allow, clock):
    allowance = allow(steps_per_day=25)
    with allowance.session() as session:
        assert train(session, clock, step_s=0.1) == 25
        assert session.reasons == (Hold.STEPS_SPENT,)
    assert allowance.usage().steps == 25
    with allowance.session() as session:
        assert not session.permission.allowed
        assert session.stop()
    clock.uptime_s += allowance.may_train().retry_s
    with allow(steps_per_day=25).session() as session:
        assert train(session, clock, step_s=0.1, most=3) == 3
    assert allowance.usage().steps == 4  # the fourth was allowed, and is counted


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"seconds_per_day": 3.0}, Hold.TIME_SPENT),
        ({"joules_per_day": 3.0 * 2 * 5.0, "watts": 5.0}, Hold.ENERGY_SPENT),
    ],
)
def test_it_stops_within_a_step_of_the_budget(allow, clock, limits, reason):
    allowance = allow(**limits)
    with allowance.session() as session:
        assert 30 <= train(session, clock, step_s=0.1) <= 31
        assert session.reasons == (reason,)
    assert allowance.usage().seconds == pytest.approx(3.0, abs=0.11)
    assert allowance.usage().joules == pytest.approx(2 * 3.0 * allowance.limits.watts, rel=0.05)


def test_a_condition_that_changes_pauses_it_and_the_rest_of_the_budget_is_for_later(
    allow, clock, host
):
    allowance = allow(seconds_per_day=10.0)
    with allowance.session() as session:
        train(session, clock, step_s=0.5, most=4)
        host.set(Conditions("unmetered", charging=False, idle=True))
        assert train(session, clock, step_s=0.5) <= 2  # looked at once a second
        assert session.reasons == (Hold.NOT_CHARGING,)
        assert session.stop()
    host.set(GOOD)
    assert 6.5 <= allowance.may_train().seconds <= 8.0
    with allowance.session() as session:
        assert train(session, clock, step_s=0.5) >= 13
        assert session.reasons == (Hold.TIME_SPENT,)


def test_what_a_failing_step_used_is_booked(allow, clock):
    allowance = allow()

    def fail() -> None:
        with allowance.session() as session:
            assert not session.stop()
            clock.work(0.7)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert allowance.usage().seconds == pytest.approx(0.7)


def test_a_round_that_was_joined_is_finished_and_the_next_one_waits(allow, clock, host):
    allowance = allow(separation_s=100.0, per_week=3)
    assert allowance.may_train(participate=True).allowed
    with allowance.session(participate=True) as session:
        allowance.participated()
        assert train(session, clock, step_s=0.5, most=10) == 10
        assert session.permission.allowed
        host.set(Conditions("metered", charging=True, idle=True))
        assert train(session, clock, step_s=0.5) <= 3
        assert session.reasons == (Hold.NOT_UNMETERED,)
    host.set(GOOD)
    assert allow(separation_s=100.0).may_train(participate=True).reasons == (Hold.TOO_SOON,)


def test_one_session_at_a_time(allow, clock):
    allowance = allow()
    with allowance.session() as first, allow().session() as second:
        assert first.permission.allowed
        assert second.reasons == (Hold.ALREADY_TRAINING,)
        assert second.stop()
    with allowance.session() as third:
        assert third.permission.allowed


_TRAINER = """
import sys, time
from pathlib import Path
from cascade.conditions import Conditions, FixedConditions
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits
host = FixedConditions(Conditions("unmetered", charging=True, idle=True))
allowance = TrainingAllowance(TrainingLimits(), host, path=Path(sys.argv[1]))
allowance.participated()
with allowance.session() as session:
    while not session.stop():
        time.sleep(0.05)
        print(allowance.usage().steps, flush=True)
"""


def test_a_killed_trainer_leaves_its_books_and_no_lock(tmp_path):
    path = tmp_path / "training.sqlite3"
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, path], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    while not int(process.stdout.readline()):
        pass
    allowance = TrainingAllowance(TrainingLimits(), FixedConditions(GOOD), path=path)
    with allowance.session() as second:
        assert second.reasons == (Hold.ALREADY_TRAINING,)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    usage = allowance.usage()
    assert usage.steps > 0
    assert usage.seconds > 0.5
    assert len(usage.participations) == 1
    with allowance.session() as third:
        assert third.permission.allowed


def test_without_books_nothing_is_trained(allow, tmp_path, clock):
    allowance = allow()
    with allowance.session() as session:
        assert train(session, clock, step_s=0.5, most=2) == 2
        (tmp_path / "training.sqlite3").write_bytes(b"no database at all" * 100)
        train(session, clock, step_s=0.5)
        assert session.reasons == (Hold.BOOKS_UNREADABLE,)
    assert allowance.may_train().reasons == (Hold.BOOKS_UNREADABLE,)
    for call in (allowance.usage, allowance.participated):
        with pytest.raises(CascadeError, match="mend or remove"):
            call()


@pytest.mark.parametrize("cell", ["now_s = 'x'", "participations = '7'", "steps = x'00'"])
def test_books_with_a_damaged_cell_are_unreadable(tmp_path, cell):
    path = tmp_path / "training.sqlite3"
    allowance = TrainingAllowance(TrainingLimits(), FixedConditions(GOOD), path=path)
    allowance.participated()
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE usage SET {cell}")
    assert allowance.may_train().reasons == (Hold.BOOKS_UNREADABLE,)


def test_the_usual_place_is_under_the_home(empty_home):
    TrainingAllowance(TrainingLimits(), FixedConditions(GOOD)).participated()
    assert (empty_home / "training.sqlite3").exists()

"""Money is never spent twice, whatever clocks, crashes and other processes do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.budget import DAY_S, Account, BudgetLedger, MoneyLimits
from cascade.clock import Reading, SystemClock
from cascade.errors import CascadeError, InvalidInput

NOON = 20_000 * DAY_S + DAY_S / 2
HOURLY = MoneyLimits(per_hour_usd=1.0, burst_usd=0.5, per_request_usd=0.1)
DAILY = MoneyLimits(per_day_usd=1.0, per_request_usd=0.25)


@dataclass
class FakeClock:
    """Clocks that a test moves."""

    wall_s: float = NOON
    uptime_s: float = 100.0
    boot: str = "one"

    def read(self) -> Reading:
        return Reading(self.wall_s, self.uptime_s, self.boot)

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.uptime_s += seconds


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "budget.sqlite3"


def spend(ledger: BudgetLedger, reserved: float, cost: float) -> bool:
    _, reservation = ledger.reserve(reserved)
    if reservation is None:
        return False
    ledger.settle(reservation, cost)
    return True


def test_a_day_ends_at_midnight_and_not_before(path, clock):
    ledger = BudgetLedger(path, DAILY, clock=clock)
    assert [spend(ledger, 0.25, 0.25) for _ in range(5)] == [True] * 4 + [False]
    clock.pass_s(DAY_S / 2 - 1)
    assert not spend(ledger, 0.25, 0.25)
    clock.pass_s(2)
    assert spend(ledger, 0.25, 0.25)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.75)


def test_a_bucket_fills_while_the_machine_sleeps_and_never_above_its_burst(path, clock):
    ledger = BudgetLedger(path, HOURLY, clock=clock)
    while spend(ledger, 0.1, 0.1):
        pass
    assert ledger.peek(0.1).bucket_left_usd == pytest.approx(0.0)
    clock.pass_s(360)
    assert ledger.peek(0.1).bucket_left_usd == pytest.approx(0.1)
    clock.pass_s(10 * 3600)
    assert ledger.peek(0.1).bucket_left_usd == pytest.approx(0.5)


def test_what_a_call_did_not_cost_comes_back_and_what_it_cost_more_is_owed(path, clock):
    ledger = BudgetLedger(path, DAILY, clock=clock)
    assert spend(ledger, 0.25, 0.01)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.99)
    assert spend(ledger, 0.25, 1.2)
    state, refused = ledger.reserve(0.25)
    assert refused is None
    assert state.day_left_usd == pytest.approx(-0.21)
    assert not state.day_covers


def test_a_bucket_that_is_full_again_takes_nothing_back(path, clock):
    assert Account.opened(clock.read()).spend(-1.0).bucket_spent_usd == 0.0
    ledger = BudgetLedger(path, HOURLY, clock=clock)
    _, reservation = ledger.reserve(0.1)
    clock.pass_s(1800)
    ledger.settle(reservation, 0.0)
    assert ledger.peek(0.1).bucket_left_usd == pytest.approx(0.5)


def test_a_reservation_is_settled_once_and_not_by_another_account(path, clock):
    ledger = BudgetLedger(path, DAILY, clock=clock)
    other = BudgetLedger(path, DAILY, name="other", clock=clock)
    _, reservation = ledger.reserve(0.25)
    other.settle(reservation, 0.0)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.75)
    ledger.settle(reservation, 0.05)
    ledger.settle(reservation, 0.0)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.95)
    assert other.peek(0.25).day_left_usd == pytest.approx(1.0)


def test_nothing_comes_back_too_late_nor_into_another_day(path, clock):
    ledger = BudgetLedger(path, MoneyLimits(1.0, 1.0, 1.0, 0.25), clock=clock)
    _, late = ledger.reserve(0.25)
    clock.pass_s(3601)
    ledger.settle(late, 0.0)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.75)
    clock.pass_s(DAY_S / 2 - 3700)
    _, over_midnight = ledger.reserve(0.25)
    clock.pass_s(200)
    assert spend(ledger, 0.25, 0.25)
    ledger.settle(over_midnight, 0.0)
    assert ledger.peek(0.25).day_left_usd == pytest.approx(0.75)


def test_a_process_that_dies_between_reserving_and_settling_has_spent(path):
    program = (
        "import os, pathlib, sys\n"
        "from cascade.budget import BudgetLedger, MoneyLimits\n"
        "ledger = BudgetLedger(pathlib.Path(sys.argv[1]), MoneyLimits(per_day_usd=1.0))\n"
        "assert ledger.reserve(0.25)[1]\n"
        "os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    left = BudgetLedger(path, MoneyLimits(per_day_usd=1.0)).peek(0.25).day_left_usd
    assert left == pytest.approx(0.75)


def test_those_who_share_an_account_do_not_spend_the_same_dollar(path, clock):
    limits = MoneyLimits(per_day_usd=1.0)
    ledgers = [BudgetLedger(path, limits, clock=clock) for _ in range(8)]
    start = threading.Barrier(8)

    def spend_all(ledger: BudgetLedger) -> int:
        start.wait()
        return sum(spend(ledger, 0.02, 0.02) for _ in range(12))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend_all, ledgers)) == 50
    assert ledgers[0].peek(0.0).day_left_usd == pytest.approx(0.0)


def test_a_wall_clock_set_back_or_forth_buys_nothing_while_the_machine_runs(path, clock):
    ledger = BudgetLedger(path, MoneyLimits(1.0, 1.0, 0.5, 0.25), clock=clock)
    assert spend(ledger, 0.25, 0.25)
    assert spend(ledger, 0.25, 0.25)
    for jump in (-2 * DAY_S, 5 * DAY_S, 365 * DAY_S, -900 * DAY_S):
        clock.wall_s += jump
        state = ledger.peek(0.25)
        assert (state.day_left_usd, state.bucket_left_usd) == (0.5, 0.0)


def test_a_restart_with_an_earlier_clock_gives_nothing_and_a_later_one_a_day_at_most(path, clock):
    ledger = BudgetLedger(path, DAILY, clock=clock)
    while spend(ledger, 0.25, 0.25):
        pass
    clock.boot, clock.uptime_s, clock.wall_s = "two", 5.0, NOON - 3 * DAY_S
    assert not spend(ledger, 0.25, 0.25)
    clock.boot, clock.uptime_s, clock.wall_s = "three", 5.0, NOON + 30 * DAY_S
    assert [spend(ledger, 0.25, 0.25) for _ in range(5)] == [True] * 4 + [False]


STEP = st.tuples(
    st.floats(0, 7200),  # true seconds
    st.floats(-4e5, 4e5),  # what somebody sets the wall clock by
    st.floats(0, 0.2),  # to reserve
    st.floats(0, 1),  # share of it that the call costs
    st.sampled_from(["settle", "crash"]),
)


@settings(max_examples=60)
@given(steps=st.lists(STEP, max_size=25))
def test_no_sequence_of_calls_and_clock_jumps_spends_more_than_flow_and_burst(
    steps, tmp_path_factory
):
    clock = FakeClock()
    path = tmp_path_factory.mktemp("budget") / "budget.sqlite3"
    limits = MoneyLimits(per_day_usd=2.0, per_hour_usd=0.3, burst_usd=0.4)
    ledger = BudgetLedger(path, limits, clock=clock)
    spent, true_s = 0.0, 0.0
    for seconds, jump, amount, share, end in steps:
        clock.pass_s(seconds)
        true_s += seconds
        clock.wall_s += jump
        _, reservation = ledger.reserve(amount)
        if reservation is None:
            continue
        if end == "settle":
            ledger.settle(reservation, amount * share)
            spent += amount * share
        else:
            spent += amount
        assert spent <= 0.4 + 0.3 * true_s / 3600 + 1e-9
        days = int((NOON + true_s) // DAY_S) - int(NOON // DAY_S) + 1
        assert spent <= 2.0 * days + 1e-9


@given(
    readings=st.lists(
        st.tuples(st.floats(-1e9, 4e9), st.floats(0, 1e9), st.sampled_from("ab")), max_size=20
    )
)
def test_an_accounts_own_time_never_runs_backwards(readings):
    limits = MoneyLimits(per_hour_usd=1.0)
    account = Account.opened(Reading(NOON, 0.0, "a"))
    for reading in readings:
        later = account.at(Reading(*reading), limits)
        assert later.now_s >= account.now_s
        assert later.day >= account.day
        assert 0 <= later.bucket_spent_usd <= account.bucket_spent_usd
        account = later


def test_what_one_call_may_cost():
    assert MoneyLimits().call_usd() is None
    assert MoneyLimits().call_usd(0.5) == 0.5
    assert MoneyLimits(per_day_usd=2.0, per_hour_usd=1.0).call_usd() == pytest.approx(0.05)
    assert MoneyLimits(per_day_usd=2.0).call_usd(0.01) == 0.01
    assert MoneyLimits(per_request_usd=0.3).call_usd(1.0) == 0.3


def test_a_budget_of_nothing_covers_nothing(path, clock):
    ledger = BudgetLedger(path, MoneyLimits(per_day_usd=0.0), clock=clock)
    assert ledger.reserve(0.0)[1] is None


@pytest.mark.parametrize("field", ["per_day_usd", "per_hour_usd", "per_request_usd"])
@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_an_amount_that_is_none_is_refused_by_name(field, amount):
    with pytest.raises(InvalidInput, match=field):
        MoneyLimits(**{field: amount})


def test_a_burst_needs_a_flow_and_a_cost_is_a_number(path, clock):
    with pytest.raises(InvalidInput, match="burst_usd"):
        MoneyLimits(burst_usd=1.0)
    ledger = BudgetLedger(path, DAILY, clock=clock)
    _, reservation = ledger.reserve(0.1)
    with pytest.raises(InvalidInput, match="cost_usd"):
        ledger.settle(reservation, float("nan"))


def test_a_file_that_is_no_ledger_is_one_clear_line(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, and long enough to be read as one" * 30)
    with pytest.raises(CascadeError, match=r"budget\.sqlite3 cannot be used"):
        BudgetLedger(path, DAILY).peek(0.1)


def test_a_ledger_that_stays_locked_is_one_clear_line(path, clock, monkeypatch):
    monkeypatch.setattr("cascade.budget._WAIT_S", 0.05)
    ledger = BudgetLedger(path, DAILY, clock=clock)
    ledger.peek(0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CascadeError, match="locked"):
        ledger.reserve(0.1)
    other.close()


def test_the_systems_clocks_run():
    clock = SystemClock()
    first, second = clock.read(), clock.read()
    assert second.uptime_s >= first.uptime_s > 0
    assert first.boot == second.boot == SystemClock().read().boot

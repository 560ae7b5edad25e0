"""The breaker opens, lets one call look, and closes or opens again."""

from __future__ import annotations

import pytest

from cascade.breaker import CircuitBreaker
from cascade.errors import InvalidInput


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def opened(now: Now) -> CircuitBreaker:
    breaker = CircuitBreaker(3, 10.0, now=now)
    for _ in range(3):
        assert breaker.enter()
        breaker.leave(False)
    return breaker


def test_only_failures_in_a_row_open_it():
    breaker = CircuitBreaker(3)
    for outcome in (False, False, True, False, None, False):
        assert breaker.enter()
        breaker.leave(outcome)
    assert not breaker.blocks


def test_it_opens_then_lets_one_call_look_and_closes_when_that_succeeds():
    now = Now()
    breaker = opened(now)
    assert breaker.blocks
    assert not breaker.enter()
    now.s = 10.0
    assert not breaker.blocks
    assert breaker.enter()
    assert not breaker.enter()
    breaker.leave(True)
    assert [breaker.enter() for _ in range(3)] == [True] * 3


def test_a_look_that_fails_opens_it_for_as_long_again():
    now = Now()
    breaker = opened(now)
    now.s = 10.0
    assert breaker.enter()
    breaker.leave(False)
    now.s = 19.9
    assert not breaker.enter()
    now.s = 20.0
    assert breaker.enter()


def test_a_look_that_was_given_up_or_lost_lets_another_one_go():
    now = Now()
    breaker = opened(now)
    now.s = 10.0
    assert breaker.enter()
    breaker.leave(None)
    assert breaker.enter()  # given up: the next may look at once
    now.s = 20.0
    assert breaker.enter()  # lost: after as long as it was open


@pytest.mark.parametrize("arguments", [(0, 1.0), (3, 0.0), (3, float("nan"))])
def test_unusable_settings_are_refused(arguments):
    with pytest.raises(InvalidInput):
        CircuitBreaker(*arguments)

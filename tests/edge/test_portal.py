"""The loop behind the plain SDK, and interrupts at each moment of a call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import pytest

from cascade.errors import InvalidInput
from edge.portal import Portal


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal.close()


class Endless:
    """An endless source that records how its clean-up went."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = threading.Event()

    async def numbers(self) -> AsyncGenerator[int, None]:
        self.opened += 1
        try:
            for number in range(10**9):
                await asyncio.sleep(0.001)
                yield number
        finally:
            await asyncio.sleep(0)
            self.closed.set()


def interrupt_hand_over(
    portal: Portal, monkeypatch: pytest.MonkeyPatch, *, scheduled: bool
) -> None:
    """Let the next hand-over be interrupted, before or after the work was scheduled."""
    real: Callable[..., Any] = portal._loop.call_soon_threadsafe

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        if scheduled:
            real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(portal._loop, "call_soon_threadsafe", interrupted)


def test_call_returns_the_result_and_raises_the_error(portal: Portal) -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def fail() -> None:
        raise LookupError("nothing there")

    assert portal.call(double(4)) == 8
    with pytest.raises(LookupError, match="nothing there"):
        portal.call(fail())


def test_iterate_gives_every_event_then_the_error(portal: Portal) -> None:
    async def three_then_fail() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number
        raise LookupError("no more")

    events = portal.iterate(three_then_fail())
    assert [next(events) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no more"):
        next(events)


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_interrupted_hand_over_leaves_nothing_running(
    portal: Portal, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    source = Endless()
    events = portal.iterate(source.numbers())
    interrupt_hand_over(portal, monkeypatch, scheduled=scheduled)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    # A generator that never started needs no clean-up; one that did has had it already.
    assert source.closed.is_set() == bool(source.opened)
    assert not asyncio.all_tasks(portal._loop)


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_interrupted_call_is_cancelled(
    portal: Portal, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    interrupt_hand_over(portal, monkeypatch, scheduled=scheduled)
    with pytest.raises(KeyboardInterrupt):
        portal.call(asyncio.sleep(3600))
    assert not asyncio.all_tasks(portal._loop)


def test_leaving_the_loop_early_closes_the_generator(portal: Portal) -> None:
    source = Endless()
    for number in portal.iterate(source.numbers()):
        if number == 3:
            break
    assert source.closed.wait(5)


def test_a_second_interrupt_during_the_clean_up_is_just_an_interrupt(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Endless()
    events = portal.iterate(source.numbers())
    next(events)
    interrupt_hand_over(portal, monkeypatch, scheduled=True)
    with pytest.raises(KeyboardInterrupt):
        events.close()  # type: ignore[attr-defined]
    assert source.closed.wait(5)


def test_close_ends_what_another_thread_waits_for() -> None:
    portal = Portal()
    source = Endless()
    first = threading.Event()

    def consume() -> None:
        with suppress(CancelledError):
            for _ in portal.iterate(source.numbers()):
                first.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert first.wait(5)
    portal.close()
    thread.join(5)
    assert not thread.is_alive()
    assert source.closed.is_set()
    assert portal.closed


def test_what_comes_after_the_end_is_refused_by_name() -> None:
    portal = Portal()
    portal.close()
    with pytest.raises(InvalidInput, match="device: is closed"):
        portal.call(asyncio.sleep(0))
    source = Endless()
    with pytest.raises(InvalidInput, match="device: is closed"):
        next(iter(portal.iterate(source.numbers())))
    assert not source.opened

"""Calls async code from plain code: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from cascade.errors import InvalidInput

T = TypeVar("T")

_CLEAN_UP_S = 5.0
_END: Final = object()


class Portal:
    """An event loop in a background thread; ``close`` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cascade-loop", daemon=True
        )
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end. An interrupt here cancels it and waits for its clean-up.

        Raises:
            InvalidInput: the loop was ended.
        """
        if self.closed:
            work.close()
            raise _closed()
        job = _Job(self._loop, work)
        try:
            job.hand_over()
            return job.outcome.result()
        finally:
            job.end()

    def iterate(self, events: AsyncGenerator[T, None]) -> Iterator[T]:
        """Iterate an async generator; leaving the loop early closes it.

        Raises:
            InvalidInput: the loop was ended; raised where the iteration begins.
        """
        if self.closed:
            raise _closed()
        # One task of the loop owns the generator, from its first step to its closing: an interrupt
        # of this thread cannot come between a step that runs and the closing.
        arrived: SimpleQueue[Any] = SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(events):
                    async for event in events:
                        arrived.put(event)
            finally:
                arrived.put(_END)

        job = _Job(self._loop, pump())
        try:
            job.hand_over()
            while (event := arrived.get()) is not _END:
                yield event
            job.outcome.result()
        finally:
            job.end()

    @property
    def closed(self) -> bool:
        """Whether the loop was ended."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Cancel what still runs, and end the loop and its thread."""
        if self.closed:
            return
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Job(Generic[T]):
    """A coroutine's way through the loop.

    It exists before the hand-over, so that an interrupt at any moment of the hand-over leaves
    something to end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: Future[T] = Future()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def hand_over(self) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def end(self) -> None:
        """Cancel it and wait for its clean-up, unless it has ended."""
        if self.outcome.done():
            return
        self._loop.call_soon_threadsafe(self._cancel)
        ended = threading.Event()
        self.outcome.add_done_callback(lambda _: ended.set())
        ended.wait(_CLEAN_UP_S)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.cancel()
        elif error := task.exception():
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # the interrupt came before the hand-over
            self._work.close()
            self.outcome.cancel()


def _closed() -> InvalidInput:
    return InvalidInput("device", "is closed; open another one")


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

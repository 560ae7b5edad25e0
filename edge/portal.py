"""Calls async code from plain code: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import TypeVar

T = TypeVar("T")

_CLEAN_UP_S = 5.0


class Portal:
    """An event loop in a background thread; ``close`` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cascade-loop", daemon=True
        )
        self._thread.start()

    def call(self, work: Awaitable[T]) -> T:
        """Run ``work`` to its end. An interrupt here cancels it and waits for its clean-up."""
        ended = threading.Event()

        async def run() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_CLEAN_UP_S)
            raise

    def iterate(self, events: AsyncGenerator[T, None]) -> Iterator[T]:
        """Iterate an async generator; leaving the loop early closes it."""
        try:
            while True:
                try:
                    yield self.call(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            self.call(events.aclose())

    @property
    def closed(self) -> bool:
        """Whether the loop was ended."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Stop the loop and its thread."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

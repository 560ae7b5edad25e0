"""A race of two calls: the second one is started where the first has written nothing for too long.

Who writes first is read to the end; the other one is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from cascade.errors import CascadeError
from cloud.attempt import Attempt
from cloud.engines import Done, EngineEvent, Piece

Batch = list[EngineEvent]


async def hedged(
    first: Attempt, second: Callable[[], Attempt | None], after_s: float
) -> AsyncGenerator[tuple[Attempt, Batch]]:
    """The events of the call that writes first, each with its call. An empty batch says that the
    second call begins. Closing the iterator stops both.

    Arguments:
        second: makes the other call once ``after_s`` seconds have passed without a token; ``None``
            where it may not be made.

    Raises:
        InvalidInput, RemoteError: the first call failed before a token and so did the second, or
            the one that is read failed; see ``Attempt.events``.
    """
    runners = [_Runner(first)]
    problem: CascadeError | None = None
    try:
        # Nothing is written here: the wait ends at a token, at a failure, or when time is up.
        await asyncio.wait({runners[0].opening}, timeout=after_s)
        if not runners[0].opening.done() and (other := second()) is not None:
            yield other, []
            runners.append(_Runner(other))
        while runners:
            openings = {runner.opening for runner in runners}
            await asyncio.wait(openings, return_when=asyncio.FIRST_COMPLETED)
            winner = next(runner for runner in runners if runner.opening.done())
            try:
                opening = winner.opening.result()
            except CascadeError as error:
                problem = problem or error
                runners.remove(winner)
                await winner.stop()
                continue
            for runner in runners:
                if runner is not winner:
                    await runner.stop()
            for batch in opening:
                yield winner.attempt, batch
            async for batch in winner.events:
                yield winner.attempt, batch
            return
    finally:
        for runner in runners:
            await runner.stop()
    if problem is not None:
        raise problem


class _Runner:
    """One of the calls, and the task that reads it up to its first token."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.events = attempt.events()
        self.opening = asyncio.create_task(self._open())

    async def _open(self) -> list[Batch]:
        batches: list[Batch] = []
        async for batch in self.events:
            batches.append(batch)
            if any(isinstance(event, Piece | Done) for event in batch):
                break
        return batches

    async def stop(self) -> None:
        """Cancel the call, and wait until the tier's stream is closed. May be called again."""
        self.opening.cancel()
        await asyncio.wait({self.opening})
        if not self.opening.cancelled():
            self.opening.exception()  # asked for here: nobody else may
        await self.events.aclose()

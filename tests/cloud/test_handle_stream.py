"""What the gateway does between a request and a deployment's handle, without Ray behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from cascade.request import Message
from cloud.config import Autoscaling, ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Started
from cloud.errors import Overloaded
from cloud.gateway import _streams

REQUEST = ChatRequest((Message("user", "hello"),), max_tokens=1)


class Handle:
    """A deployment that answers once ``go`` is set, and counts what it is asked."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0

    def options(self, **options: object) -> Handle:
        assert options["stream"]
        return self

    async def remote(self, request: ChatRequest) -> AsyncIterator[list[EngineEvent]]:
        self.asked += 1
        await self.go.wait()
        yield [Started(1), Done("stop", 1, 0, 0)]


async def test_what_neither_replicas_nor_queue_can_take_is_refused_before_the_handle() -> None:
    tier = TierConfig(
        name="tier1",
        model="a.gguf",
        parallel=2,
        max_queued_requests=3,
        autoscaling=Autoscaling(max_replicas=2),
    )
    handle = Handle()
    stream = _streams(ClusterConfig(tiers=(tier,)), {"tier1": cast(Any, handle)})["tier1"]

    async def ask() -> int:
        async with aclosing(stream(REQUEST)) as messages:
            return len([message async for message in messages])

    calls = [asyncio.create_task(ask()) for _ in range(2 * 2 + 3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="tier1 has no room") as refused:
        await ask()
    assert refused.value.retry_after_s == 1.0
    calls.pop().cancel()  # a place that is given up can be taken
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(ask()))
    handle.go.set()
    assert await asyncio.gather(*calls) == [1] * 7
    assert handle.asked == 8
    assert await ask() == 1

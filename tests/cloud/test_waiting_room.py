"""Who gets a place at a tier, who waits, and who is refused before anything is done for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from cascade.request import Message
from cloud.config import Autoscaling, ClusterConfig, GatewayConfig, TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Started
from cloud.errors import Overloaded
from cloud.waiting_room import WaitingRoom, WaitingRooms, ongoing_at_replica, places

REQUEST = ChatRequest((Message("user", "hello"),), max_tokens=1)


async def turn() -> None:
    """Let everybody go on who can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_are_taken_first_come_first_served_and_the_rest_is_refused() -> None:
    room = WaitingRoom("tier1", places=2, chairs=2)
    entered: list[int] = []

    async def come(number: int) -> None:
        await room.enter()
        entered.append(number)

    calls = [asyncio.create_task(come(number)) for number in range(4)]
    await turn()
    assert (entered, room.under_way, room.waiting) == ([0, 1], 2, 2)
    refusal = room.refusal()
    assert refusal is not None
    with pytest.raises(Overloaded, match="tier1 has no room in its queue") as refused:
        await room.enter()
    assert refused.value.retry_after_s == refusal.retry_after_s == 1.0
    room.leave(0.1)
    await turn()
    assert (entered, room.under_way, room.waiting) == ([0, 1, 2], 2, 1)
    assert room.refusal() is None
    for _ in range(3):
        room.leave(0.1)
        await turn()
    await asyncio.gather(*calls)
    assert (entered, room.under_way, room.waiting) == ([0, 1, 2, 3], 0, 0)


async def test_who_gives_up_waiting_gives_its_chair_back() -> None:
    room = WaitingRoom("tier1", places=1, chairs=1)
    await room.enter()
    waiting = asyncio.create_task(room.enter())
    await turn()
    waiting.cancel()
    await turn()
    assert (room.under_way, room.waiting) == (1, 0)
    next_one = asyncio.create_task(room.enter())
    await turn()
    room.leave(0.1)
    await next_one
    assert (room.under_way, room.waiting) == (1, 0)


async def test_a_place_given_to_one_that_is_cancelled_in_that_moment_is_not_lost() -> None:
    room = WaitingRoom("tier1", places=1, chairs=2)
    await room.enter()
    first, second = (asyncio.create_task(room.enter()) for _ in range(2))
    await turn()
    room.leave(0.1)  # it is the first one's now,
    first.cancel()  # which does not know it yet
    await second
    assert (room.under_way, room.waiting) == (1, 0)
    room.leave(0.1)
    assert room.under_way == 0


async def test_who_could_not_begin_within_its_deadline_is_refused_at_once() -> None:
    room = WaitingRoom("tier1", places=2, chairs=100)
    for _ in range(2):
        await room.enter()
    assert room.refusal(0.001) is None  # nobody knows yet how long calls take
    room.leave(4.0)
    await room.enter()
    waiting = [asyncio.create_task(room.enter()) for _ in range(9)]
    await turn()
    # Nine wait already: (9 + 1) · 4 s / 2 places.
    assert room.refusal(20.5) is None
    refusal = room.refusal(19.5)
    assert refusal is not None
    assert refusal.message == "tier1 would not begin within the deadline"
    assert refusal.retry_after_s == 20.0
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert room.waiting == 0
    room.leave(4.0)
    assert room.refusal(0.001) is None  # a free place is not waited for


class Tier:
    """Answers once ``go`` is set, and counts what it is asked."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        self.asked += 1
        await self.go.wait()
        yield [Started(1), Done("stop", 1, 0, 0)]


def tier(name: str, **fields: object) -> TierConfig:
    return TierConfig.model_validate({"name": name, "model": "a.gguf", **fields})


async def test_a_full_tier_is_not_asked_and_another_one_still_takes_calls() -> None:
    config = ClusterConfig(
        tiers=(
            tier("tier1", max_ongoing_requests=2, max_queued_requests=3),
            tier("tier2", max_ongoing_requests=1, max_queued_requests=0),
        )
    )
    rooms = WaitingRooms(config)
    lower, higher = Tier(), Tier()
    streams = rooms.streams({"tier1": lower, "tier2": higher})

    async def ask(name: str) -> int:
        async with aclosing(streams[name](REQUEST)) as messages:
            return len([message async for message in messages])

    calls = [asyncio.create_task(ask("tier1")) for _ in range(5)]
    await turn()
    assert lower.asked == 2
    with pytest.raises(Overloaded, match="tier1 has no room"):
        await ask("tier1")
    assert rooms.refusal(10.0) is None  # whoever may go to tier2 is welcome
    calls.append(asyncio.create_task(ask("tier2")))
    await turn()
    refusal = rooms.refusal(10.0)
    assert refusal is not None
    assert refusal.status == "RESOURCE_EXHAUSTED"
    lower.go.set()
    higher.go.set()
    assert await asyncio.gather(*calls) == [1] * 6
    assert (lower.asked, higher.asked) == (5, 1)
    assert rooms.refusal(10.0) is None


async def test_a_call_that_ends_early_gives_its_place_back() -> None:
    rooms = WaitingRooms(ClusterConfig(tiers=(tier("tier1", max_ongoing_requests=1),)))
    slow = Tier()
    stream = rooms.streams({"tier1": slow})["tier1"]

    async def ask() -> None:
        async with aclosing(stream(REQUEST)) as messages:
            await anext(messages)

    first, second = (asyncio.create_task(ask()) for _ in range(2))
    await turn()
    first.cancel()
    await turn()
    assert slow.asked == 2
    slow.go.set()
    await second


async def test_a_prompt_is_read_ahead_only_where_there_is_a_place_at_once() -> None:
    rooms = WaitingRooms(ClusterConfig(tiers=(tier("tier1", max_ongoing_requests=1),)))
    slow = Tier()
    stream = rooms.streams({"tier1": slow})["tier1"]

    async def ask(request: ChatRequest) -> int:
        async with aclosing(stream(request)) as messages:
            return len([message async for message in messages])

    ahead = replace(REQUEST, prefill=True)
    first = asyncio.create_task(ask(ahead))
    await turn()
    assert slow.asked == 1
    assert await ask(ahead) == 0
    waiting = asyncio.create_task(ask(REQUEST))
    await turn()
    assert slow.asked == 1
    slow.go.set()
    assert await asyncio.gather(first, waiting) == [1, 1]


def test_an_engine_with_a_queue_is_handed_a_little_more_than_it_computes() -> None:
    assert tier("tier1", parallel=1).handed_requests == 2
    assert tier("tier1", parallel=8).handed_requests == 10
    assert tier("tier1", parallel=8, max_ongoing_requests=8).handed_requests == 8
    provider = {"engine": "openai", "provider": {"api_key_env": "KEY"}}
    assert tier("tier1", parallel=8, **provider).handed_requests == 8


def test_what_a_tier_holds_is_what_its_replicas_take_from_all_gateways() -> None:
    scaled = tier(
        "tier1",
        parallel=1,
        autoscaling=Autoscaling(max_replicas=3, target_ongoing_requests=4.5),
    )
    # Serve starts replicas for what it holds: it must hold the target of each.
    assert places(scaled, gateways=1) == 15
    local = tier("tier1", parallel=4)
    assert (places(local, 2), ongoing_at_replica(local, 2)) == (5, 10)
    provider = {"engine": "openai", "provider": {"api_key_env": "KEY"}}
    bought = tier("tier1", parallel=5, **provider)
    assert (places(bought, 2), ongoing_at_replica(bought, 2)) == (3, 5)


async def test_gateways_share_out_the_queue() -> None:
    config = ClusterConfig(
        gateway=GatewayConfig(replicas=2),
        tiers=(tier("tier1", max_ongoing_requests=1, max_queued_requests=3),),
    )
    rooms = WaitingRooms(config)
    stream = rooms.streams({"tier1": Tier()})["tier1"]

    async def ask() -> None:
        async with aclosing(stream(REQUEST)) as messages:
            await anext(messages)

    calls = [asyncio.create_task(ask()) for _ in range(3)]
    await turn()
    with pytest.raises(Overloaded):
        await ask()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

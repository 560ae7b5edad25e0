"""A request's way through the cluster, with tiers that behave in every way a tier can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from cascade.errors import InvalidInput, RemoteError
from cascade.remote import Accepted, Chunk, EventsAtOnce, Finished, RemoteEvent
from cascade.request import Message
from cascade.sampling import Sampling
from cascade.wire import OpenRequest
from cloud.config import ClusterConfig, GatewayConfig, PriceList, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import EngineFailed, Overloaded, TierUnavailable
from cloud.routing import Router
from cloud.tier import Refused, TierMessage

CONFIG = ClusterConfig(
    gateway=GatewayConfig(max_concurrent_requests=1, max_prompt_chars=20),
    tiers=(
        TierConfig(
            name="tier1",
            model="folder/m.gguf",
            price=PriceList(input_usd_per_million_tokens=10, output_usd_per_million_tokens=100),
        ),
    ),
)
ANSWER: list[TierMessage] = [
    [Started(7)],
    [Piece("ye", 1), Piece("s", 1)],
    [Done("stop", 7, 3, 0)],
]


class Tier:
    """A tier that sends ``messages``, then waits for ``released`` if it is told to hang."""

    def __init__(self, messages: list[TierMessage], *, hangs: bool = False) -> None:
        self.messages = messages
        self.asked: list[ChatRequest] = []
        self.hangs = hangs
        self.closed = False

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.asked.append(request)
        try:
            for message in self.messages:
                yield message
            if self.hangs:
                await asyncio.sleep(60)
        finally:
            self.closed = True


def asking(prompt: str = "hello", **fields: object) -> OpenRequest:
    return OpenRequest("r", (Message("user", prompt),), **fields)  # type: ignore[arg-type]


async def run(tier: Tier, request: OpenRequest) -> list[RemoteEvent]:
    return [event async for together in answered(tier, request) for event in together]


def answered(tier: Tier, request: OpenRequest) -> AsyncGenerator[EventsAtOnce]:
    return Router(CONFIG, {"tier1": tier}).answer(request)


async def test_an_answer_is_streamed_and_charged() -> None:
    tier = Tier(ANSWER)
    *events, finish = await run(tier, asking())
    assert events == [Accepted("tier1", "m.gguf"), Chunk("ye", 1), Chunk("s", 1)]
    assert isinstance(finish, Finished)
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", 7, 3)
    assert finish.cost_usd == pytest.approx((7 * 10 + 3 * 100) / 1e6)
    assert (finish.tier, finish.model) == ("tier1", "m.gguf")
    assert finish.reasons == ("lowest_tier",)
    assert finish.server_s > 0


async def test_what_is_known_at_once_is_told_at_once() -> None:
    started, piece, done = Started(7), Piece("yes", 1), Done("stop", 7, 2, 0)
    accepted, chunk = Accepted("tier1", "m.gguf"), Chunk("yes", 1)
    for messages, expected in (
        ([[started, piece, done]], [(accepted, chunk, ...)]),
        ([[started, piece], [piece, done]], [(accepted, chunk), (chunk, ...)]),
        ([[started], [piece], [done]], [(accepted,), (chunk,), (...,)]),
    ):
        told = [together async for together in answered(Tier(messages), asking())]
        assert isinstance(told[-1][-1], Finished)
        assert [*told[:-1], (*told[-1][:-1], ...)] == expected


async def test_the_engine_gets_what_was_asked_for() -> None:
    tier = Tier(ANSWER)
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=4)
    await run(tier, asking(sampling=sampling, max_tokens=9, stop=("x",)))
    await run(tier, asking(regex="[0-9]+"))
    await run(tier, asking(json_schema="{}"))
    free, regex, json_schema = tier.asked
    assert free == ChatRequest((Message("user", "hello"),), 9, stop=("x",), sampling=sampling)
    assert regex.regex == "[0-9]+"
    assert json_schema.json_schema == "{}"


async def test_a_conversation_that_is_too_long_reaches_no_tier() -> None:
    tier = Tier(ANSWER)
    with pytest.raises(
        InvalidInput, match="prompt: has 21 characters; this cluster reads at most 20"
    ):
        await run(tier, asking("x" * 21))
    assert tier.asked == []


async def test_an_engines_refusal_keeps_its_field() -> None:
    with pytest.raises(InvalidInput, match="prompt: is too long") as refused:
        await run(Tier([Refused("prompt", "is too long")]), asking())
    assert refused.value.field == "prompt"


async def test_a_broken_engine_is_internal() -> None:
    with pytest.raises(RemoteError) as failed:
        await run(Tier([[Started(7)], Refused("", EngineFailed().message)]), asking())
    assert failed.value.status == "INTERNAL"


async def test_a_busy_provider_tells_when_to_come_back() -> None:
    busy = Refused("", "the provider is busy", "RESOURCE_EXHAUSTED", 7.0)
    with pytest.raises(RemoteError) as failed:
        await run(Tier([busy]), asking())
    assert (failed.value.status, failed.value.retry_after_s) == ("RESOURCE_EXHAUSTED", 7.0)


async def test_a_stream_that_ends_early_is_unavailable_only_before_its_first_event() -> None:
    with pytest.raises(TierUnavailable):
        await run(Tier([]), asking())
    with pytest.raises(EngineFailed):
        await run(Tier([[Started(7)]]), asking())


async def test_one_request_too_many_is_told_when_to_come_back() -> None:
    tier = Tier([[Started(7)]], hangs=True)
    router = Router(CONFIG, {"tier1": tier})
    first = router.answer(asking())
    await anext(first)
    with pytest.raises(Overloaded) as refused:
        await anext(router.answer(asking()))
    assert refused.value.retry_after_s is not None
    assert router.under_way == 1
    await first.aclose()
    assert router.under_way == 0


async def test_closing_an_answer_closes_the_tiers_stream() -> None:
    tier = Tier([[Started(7)]], hangs=True)
    events = Router(CONFIG, {"tier1": tier}).answer(asking())
    await anext(events)
    assert not tier.closed
    await events.aclose()
    assert tier.closed

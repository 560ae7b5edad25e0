"""While a draft is still being written its tier reads the prompt; nobody is the worse for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput
from cascade.remote import Chunk, RemoteEvent, Verified
from cascade.request import Message
from cascade.wire import OpenRequest
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import Overloaded
from cloud.routing import Router
from cloud.tier import TierMessage
from tests.cloud.access.gate import until

DRAFT = DraftProposal((1, 2), (1, 1), "ab", complete=True)


@dataclass
class Incoming:
    """A draft that is there once ``over`` is set."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    problem: InvalidInput | None = None
    waiting: int = 0

    async def whole(self) -> DraftProposal:
        self.waiting += 1
        try:
            await self.over.wait()
        finally:
            self.waiting -= 1
        if self.problem is not None:
            raise self.problem
        return DRAFT


@dataclass
class Tier:
    """Reads ahead until it is left, and answers at once.

    Arguments:
        problem: what becomes of reading ahead instead.
    """

    problem: Exception | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    open: int = 0
    left: int = 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.asked.append(request)
        self.open += 1
        try:
            yield [Started(3)]
            if request.prefill:
                if self.problem is not None:
                    raise self.problem
                await asyncio.sleep(60)
            if request.draft is not None:
                yield [Verified(2)]
            yield [Piece("yes", 1)]
            yield [Done("stop", 3, 1, 0)]
        except (asyncio.CancelledError, GeneratorExit):
            self.left += request.prefill
            raise
        finally:
            self.open -= 1


def router(tier: Tier, **fields: object) -> Router:
    told = {"name": "tier1", "engine": "transformers", "model": "m", **fields}
    return Router(ClusterConfig(tiers=(TierConfig.model_validate(told),)), {"tier1": tier})


def opened(incoming: Incoming | None) -> OpenRequest:
    drafting = None if incoming is None else 0.0
    return OpenRequest("r", (Message("user", "?"),), drafting=drafting, incoming=incoming)


async def answered(router: Router, incoming: Incoming | None) -> list[RemoteEvent]:
    return [event async for event in router.answer(opened(incoming))]


async def test_the_prompt_is_read_until_the_draft_is_there() -> None:
    tier, incoming = Tier(), Incoming()
    answer = asyncio.create_task(answered(router(tier), incoming))
    await until(lambda: len(tier.asked) == 1)
    (ahead,) = tier.asked
    assert (ahead.prefill, ahead.draft, ahead.messages) == (True, None, (Message("user", "?"),))
    assert not answer.done()
    incoming.over.set()
    events = await answer
    assert [event for event in events if isinstance(event, Chunk | Verified)] == [
        Verified(2),
        Chunk("yes", 1),
    ]
    assert [(each.prefill, each.draft) for each in tier.asked] == [(True, None), (False, DRAFT)]
    assert (tier.open, tier.left) == (0, 1)


async def test_a_draft_that_is_there_is_asked_about_at_once() -> None:
    tier, incoming = Tier(), Incoming()
    incoming.over.set()
    await answered(router(tier), incoming)
    await answered(router(tier), None)
    assert [(each.prefill, each.draft) for each in tier.asked] == [(False, DRAFT), (False, None)]


async def test_a_caller_that_leaves_meanwhile_frees_the_tier() -> None:
    tier, incoming = Tier(), Incoming()
    gateway = router(tier)
    answer = asyncio.create_task(answered(gateway, incoming))
    await until(lambda: tier.open == 1)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert (tier.open, tier.left, incoming.waiting, gateway.under_way) == (0, 1, 0, 0)
    assert len(tier.asked) == 1


async def test_a_draft_that_is_none_ends_it_too() -> None:
    tier, incoming = Tier(), Incoming(problem=InvalidInput("draft", "is none"))
    answer = asyncio.create_task(answered(router(tier), incoming))
    await until(lambda: tier.open == 1)
    incoming.over.set()
    with pytest.raises(InvalidInput, match="is none"):
        await answer
    assert (tier.open, len(tier.asked)) == (0, 1)


@pytest.mark.parametrize("problem", [Overloaded("no room", 1.0), InvalidInput("prompt", "is long")])
async def test_what_fails_ahead_is_told_by_the_call_that_follows(problem: Exception) -> None:
    tier, incoming = Tier(problem=problem), Incoming()
    answer = asyncio.create_task(answered(router(tier), incoming))
    await until(lambda: len(tier.asked) == 1 and tier.open == 0)
    incoming.over.set()
    assert Chunk("yes", 1) in await answer


@pytest.mark.parametrize(
    "fields",
    [
        {"autoscaling": {"max_replicas": 2}},  # the call could go to the other one
        {"engine": "llama_cpp"},
    ],
)
async def test_it_is_not_read_where_that_could_be_in_vain(fields: dict[str, object]) -> None:
    tier, incoming = Tier(), Incoming()
    gateway = router(tier, **fields)
    answer = asyncio.create_task(answered(gateway, incoming))
    await asyncio.sleep(0.2)
    incoming.over.set()
    await answer
    assert [each.prefill for each in tier.asked] == [False]

"""While a draft is still being written its tier reads the prompt; nobody is the worse for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput
from cascade.remote import Chunk, RemoteEvent, Verified
from cascade.request import Message
from cascade.wire import OpenRequest
from cloud.accounting import Accounting
from cloud.config import ClusterConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import Overloaded, QuotaExceeded
from cloud.front_door import GatewayFiles
from cloud.ladder import max_prompt_tokens
from cloud.quotas import QuotaBook
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


def configured(quota: int | None = None, **fields: object) -> ClusterConfig:
    told = {"name": "tier1", "engine": "transformers", "model": "m", **fields}
    gateway = {} if quota is None else {"quotas": {"default": {"tokens_per_day": quota}}}
    return ClusterConfig.model_validate({"tiers": [told], "gateway": gateway})


def router(tier: Tier, **fields: object) -> Router:
    return Router(configured(**fields), {"tier1": tier})


def opened(incoming: Incoming | None) -> OpenRequest:
    drafting = None if incoming is None else 0.0
    return OpenRequest("r", (Message("user", "?"),), drafting=drafting, incoming=incoming)


async def answered(router: Router, incoming: Incoming | None) -> list[RemoteEvent]:
    return [event async for told in router.answer(opened(incoming)) for event in told]


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


@pytest.mark.parametrize(("leaves", "used"), [(False, 4), (True, 3)])
async def test_a_prompt_that_is_read_ahead_is_paid_for_once(
    tmp_path: Path, leaves: bool, used: int
) -> None:
    """With the call that follows, or where none does by itself. What is set aside for both is no
    more than for that call alone."""
    most = prompt_tokens() + 1 + DRAFT.most_tokens  # max_tokens is 1
    config = configured(quota=most)
    key = tmp_path / "key"
    accounting = Accounting(config, GatewayFiles(key, key, key, quotas=tmp_path / "quotas"))
    tier, incoming = Tier(), Incoming()
    gateway = accounting.answerer(Router(config, accounting.streams({"tier1": tier})))

    async def asked() -> list[RemoteEvent]:
        request = replace(opened(incoming), max_tokens=1)
        return [event async for told in gateway.answer(request) for event in told]

    answer = asyncio.create_task(asked())
    await until(lambda: tier.open == 1)
    if leaves:
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
    else:
        incoming.over.set()
        assert Chunk("yes", 1) in await answer
    book = QuotaBook(config.gateway.quotas, tmp_path / "quotas")
    with pytest.raises(QuotaExceeded):
        book.reserve("", tokens=most - used + 1, usd=0.0)
    book.reserve("", tokens=most - used, usd=0.0)


async def test_a_prompt_is_paid_for_where_the_quota_has_no_room_for_the_call(
    tmp_path: Path,
) -> None:
    most = prompt_tokens() + DRAFT.most_tokens
    config = configured(quota=most)
    key = tmp_path / "key"
    accounting = Accounting(config, GatewayFiles(key, key, key, quotas=tmp_path / "quotas"))
    tier, incoming = Tier(), Incoming()
    gateway = accounting.answerer(Router(config, accounting.streams({"tier1": tier})))

    async def asked() -> None:
        async for _ in gateway.answer(replace(opened(incoming), max_tokens=1)):
            pass

    answer = asyncio.create_task(asked())
    await until(lambda: tier.open == 1)
    incoming.over.set()
    with pytest.raises(QuotaExceeded):
        await answer
    QuotaBook(config.gateway.quotas, tmp_path / "quotas").reserve("", tokens=most - 3, usd=0.0)
    with pytest.raises(QuotaExceeded):
        QuotaBook(config.gateway.quotas, tmp_path / "quotas").reserve("", tokens=1, usd=0.0)


def prompt_tokens() -> int:
    """The most that the prompt may have."""
    return max_prompt_tokens(configured().tiers[0], opened(None))

"""A tier that is slow to begin is hedged by another: who writes first answers, the other one is
cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import RemoteError
from cascade.ladder import Ladder, LadderPolicy
from cascade.records import TierInfo
from cascade.remote import Accepted, Chunk, Finished, RemoteEvent
from cascade.request import Constraints, Message
from cascade.wire import OpenRequest
from cloud.config import ClusterConfig, Hedge, PriceList, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import TierUnavailable
from cloud.routing import Router
from cloud.tier import TierMessage

SAMPLES = 6  # measurements after which a p95 is known


class Tier:
    """A tier that writes its name once it is let go, or fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.goes = asyncio.Event()
        self.goes.set()
        self.fails: Exception | None = None
        self.asked = self.closed = 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.asked += 1
        try:
            yield [Started(3)]
            await self.goes.wait()
            if self.fails is not None:
                raise self.fails
            yield [Piece(self.name, 1)]
            yield [Done("stop", 3, 2, 0, 0.5 if request.score else None)]
        finally:
            self.closed += 1


class Pair:
    """Two tiers, the first hedged; ``to`` says by whom."""

    def __init__(self, to: str = "tier2", ladders: tuple[LadderPolicy, ...] = ()) -> None:
        price = PriceList(input_usd_per_million_tokens=1e6)
        hedge = Hedge(to=to, least_s=0.0)
        self.config = ClusterConfig(
            tiers=(
                TierConfig(name="tier1", model="m", price=price, hedge=hedge),
                TierConfig(name="tier2", model="m", price=price),
            )
        )
        self.tier1, self.tier2 = Tier("tier1"), Tier("tier2")
        streams = {"tier1": self.tier1, "tier2": self.tier2}
        self.router = Router(self.config, streams, ladders)

    async def ask(self, **limits: object) -> list[RemoteEvent]:
        constraints = Constraints(**limits)  # type: ignore[arg-type]
        request = OpenRequest("r", (Message("user", "?"),), constraints=constraints, task_id="t")
        return [event async for together in self.router.answer(request) for event in together]

    async def warm(self) -> None:
        for _ in range(SAMPLES):
            await self.ask()
        self.tier1.asked = self.tier1.closed = 0
        self.tier2.asked = self.tier2.closed = 0


async def test_the_faster_answers_and_the_slow_one_is_cancelled() -> None:
    pair = Pair()
    await pair.warm()
    pair.tier1.goes.clear()
    *events, finish = await pair.ask()
    assert events == [Accepted("tier2", "m"), Chunk("tier2", 1)]
    assert isinstance(finish, Finished)
    assert finish.tier == "tier2"
    assert finish.reasons == ("lowest_tier", "tier1:slow", "tier2:hedge")
    assert (pair.tier1.asked, pair.tier1.closed) == (1, 1)
    # Both had read the prompt, and the one that answered wrote two tokens.
    assert (finish.prompt_tokens, finish.completion_tokens) == (6, 2)
    assert finish.cost_usd == pytest.approx(6.0)


async def test_a_first_tier_that_wakes_up_still_wins() -> None:
    pair = Pair()
    await pair.warm()
    pair.tier1.goes.clear()
    pair.tier2.goes.clear()
    asking = asyncio.create_task(pair.ask())
    while not pair.tier2.asked:
        await asyncio.sleep(0.001)
    pair.tier1.goes.set()
    *events, finish = await asking
    assert events == [Accepted("tier2", "m"), Accepted("tier1", "m"), Chunk("tier1", 1)]
    assert isinstance(finish, Finished)
    assert (finish.tier, finish.reasons) == ("tier1", ("lowest_tier", "tier1:slow"))
    assert pair.tier2.closed == 1


async def test_another_replica_of_the_same_tier() -> None:
    pair = Pair(to="tier1")
    await pair.warm()
    pair.tier1.goes.clear()
    asking = asyncio.create_task(pair.ask())
    while pair.tier1.asked < 2:
        await asyncio.sleep(0.001)
    pair.tier1.goes.set()
    *_, finish = await asking
    assert isinstance(finish, Finished)
    assert finish.tier == "tier1"
    assert (pair.tier1.closed, pair.tier2.asked) == (2, 0)


async def test_before_anything_is_measured_nobody_is_hedged() -> None:
    pair = Pair()
    pair.tier1.goes.clear()
    asking = asyncio.create_task(pair.ask())
    while not pair.tier1.asked:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    pair.tier1.goes.set()
    await asking
    assert pair.tier2.asked == 0


@pytest.mark.parametrize(
    "limits",
    [
        {"max_remote_calls": 1},
        {"allowed_tiers": frozenset({"tier1"})},
        # A dollar a token, of at most 41: not twice.
        {"max_cost_usd": 45.0},
    ],
)
async def test_limits_bind_the_hedge_too(limits: dict[str, object]) -> None:
    pair = Pair()
    await pair.warm()
    pair.tier1.goes.clear()
    asking = asyncio.create_task(pair.ask(**limits))
    while not pair.tier1.asked:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    pair.tier1.goes.set()
    *_, finish = await asking
    assert isinstance(finish, Finished)
    assert (finish.tier, pair.tier2.asked) == ("tier1", 0)


async def test_a_hedge_survives_the_first_tiers_failure_and_both_failing_is_told() -> None:
    pair = Pair()
    await pair.warm()
    pair.tier1.goes.clear()
    pair.tier2.goes.clear()
    pair.tier1.fails = TierUnavailable("tier1")
    asking = asyncio.create_task(pair.ask())
    while not pair.tier2.asked:
        await asyncio.sleep(0.001)
    pair.tier1.goes.set()
    await asyncio.sleep(0.02)
    pair.tier2.goes.set()
    *_, finish = await asking
    assert isinstance(finish, Finished)
    assert finish.tier == "tier2"

    pair.tier1.goes.clear()
    pair.tier2.goes.clear()
    pair.tier2.fails = TierUnavailable("tier2")
    asking = asyncio.create_task(pair.ask())
    while pair.tier2.asked < 2:
        await asyncio.sleep(0.001)
    pair.tier1.goes.set()
    pair.tier2.goes.set()
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        await asking
    assert pair.tier1.asked == pair.tier1.closed
    assert pair.tier2.asked == pair.tier2.closed


async def test_a_caller_that_leaves_ends_both_calls() -> None:
    pair = Pair()
    await pair.warm()
    pair.tier1.goes.clear()
    pair.tier2.goes.clear()
    asking = asyncio.create_task(pair.ask())
    while not pair.tier2.asked:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (pair.tier1.closed, pair.tier2.closed) == (1, 1)
    assert pair.router.under_way == 0


async def test_a_hedge_within_a_ladder_is_a_step_up() -> None:
    infos = tuple(TierInfo(name, "m", "cloud") for name in ("tier1", "tier2"))
    same = ConfidenceModel(Platt(1.0, 0.0))
    rungs = Ladder(("tier1", "tier2"), "climb", (0.4,))
    policy = LadderPolicy("t", infos, "", rungs, {"tier1": same}, None)
    pair = Pair(ladders=(policy,))
    await pair.warm()
    assert pair.tier2.asked == 0
    pair.tier1.goes.clear()
    *_, finish = await pair.ask()
    assert isinstance(finish, Finished)
    assert (finish.tier, finish.reasons) == ("tier2", ("tier1:slow", "tier2:last"))
    assert (pair.tier1.closed, pair.tier2.closed) == (1, 1)

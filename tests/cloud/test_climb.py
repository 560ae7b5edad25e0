"""Requests climb in the cluster: a real server on the loopback, tiers that follow scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping

import pytest

from cascade import testing
from cascade.confidence import ConfidenceModel, Platt
from cascade.draft import DraftProposal
from cascade.errors import RemoteError
from cascade.events import DEVICE
from cascade.files import sha256_bytes
from cascade.ladder import Ladder, LadderPolicy
from cascade.records import TierInfo
from cascade.remote import (
    Accepted,
    Chunk,
    DeviceReport,
    Finished,
    RemoteEvent,
    Transfer,
    Verified,
)
from cascade.request import Constraints, DataClass, Message, Request
from cascade.task import generic
from cascade.testing import Fault, Script
from cascade.wire import GrpcRemote, OpenRequest
from cloud.config import ClusterConfig, PriceList, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import ConfigError
from cloud.routing import Router
from cloud.tier import TierMessage

MOODS = ("good", "bad")
THREE = ("device", "tier1", "tier2")
BASE = "0b" * 32


def ladder(
    *tiers: str, way: str = "climb", at: tuple[float, ...] = (), skip: float = 0.0
) -> LadderPolicy:
    """A ladder whose confidences are the raw scores themselves."""
    infos = tuple(
        TierInfo(name, "m", "device" if name == DEVICE else "cloud", base_digest=BASE)
        for name in tiers
    )
    same = ConfidenceModel(Platt(1.0, 0.0))
    rungs = Ladder(tiers, way, at, skip)  # type: ignore[arg-type]
    wording = dataclasses.replace(generic(MOODS), task_id="mood")
    return LadderPolicy("mood", infos, "", rungs, dict.fromkeys(tiers, same), None, wording)


def priced(name: str, **fields: object) -> TierConfig:
    price = PriceList(input_usd_per_million_tokens=1e6)  # a dollar a token that is read
    return TierConfig(name=name, model="m", price=price, **fields)  # type: ignore[arg-type]


CONFIG = ClusterConfig(tiers=tuple(priced(name) for name in ("tier1", "tier2", "tier3")))


def asking(**limits: object) -> Request:
    constraints = Constraints(**{"max_remote_calls": 4, **limits})  # type: ignore[arg-type]
    return Request((Message("user", "a b c"),), MOODS, task_id="mood", constraints=constraints)


def told(policy: LadderPolicy, answer: str, raw_score: float) -> DeviceReport:
    """What a device says that follows ``policy``."""
    return DeviceReport(
        raw_score=raw_score,
        ladder_digest=sha256_bytes(policy.to_bytes()),
        answer_sha256=sha256_bytes(answer.encode()),
    )


async def climb(
    policy: LadderPolicy,
    scripts: Mapping[str, Script],
    request: Request | None = None,
    *,
    report: DeviceReport | None = None,
    config: ClusterConfig = CONFIG,
    deadline_s: float = 30.0,
) -> tuple[list[RemoteEvent], dict[str, int]]:
    """The events, and how often each tier was asked."""
    tiers = {tier.name: scripts.get(tier.name, Script("bad")) for tier in config.tiers}
    with testing.cluster(tiers, config=config, ladders=(policy,)) as cluster:
        remote = GrpcRemote(cluster.profile)
        try:
            events = remote.answer(
                request or asking(),
                report or DeviceReport(),
                deadline_s=deadline_s,
                transfer=Transfer(),
            )
            found = [event async for event in events]
        finally:
            await remote.close()
        return found, {name: len(cluster.asked(name)) for name in tiers}


def final(events: list[RemoteEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def text(events: list[RemoteEvent]) -> str:
    """What the caller holds in the end."""
    held = ""
    for event in events:
        if isinstance(event, Accepted):
            held = ""
        elif isinstance(event, Chunk):
            held += event.text
    return held


async def test_a_sure_tier_ends_the_climb() -> None:
    policy = ladder("tier1", "tier2", at=(0.8,))
    events, asked = await climb(policy, {"tier1": Script("good", score=0.9)})
    assert events[:-1] == [Accepted("tier1", "m"), Chunk("good", 1)]
    finish = final(events)
    assert (finish.tier, finish.reasons) == ("tier1", ("tier1:confident",))
    assert finish.confidence == pytest.approx(0.9)
    assert asked == {"tier1": 1, "tier2": 0, "tier3": 0}


async def test_an_unsure_tiers_text_is_never_sent() -> None:
    policy = ladder("tier1", "tier2", at=(0.8,))
    events, asked = await climb(policy, {"tier1": Script("good", score=0.7)})
    assert [event.text for event in events if isinstance(event, Chunk)] == ["bad"]
    finish = final(events)
    assert (finish.tier, finish.reasons) == ("tier2", ("tier1:unsure", "tier2:last"))
    # Three words were read twice, and two were written.
    assert (finish.prompt_tokens, finish.completion_tokens) == (6, 2)
    assert finish.cost_usd == pytest.approx(6.0)
    assert asked == {"tier1": 1, "tier2": 1, "tier3": 0}


async def test_a_tier_that_does_not_tell_is_not_sure() -> None:
    events, _ = await climb(ladder("tier1", "tier2", at=(0.8,)), {"tier1": Script("good")})
    assert final(events).reasons == ("tier1:no_score", "tier2:last")


async def test_the_least_sure_go_to_the_last_tier_at_once() -> None:
    policy = ladder(*THREE, at=(0.8, 0.8), skip=0.3)
    events, asked = await climb(policy, {}, report=told(policy, "good", 0.2))
    assert final(events).reasons == ("device:skip", "tier2:last")
    assert asked["tier1"] == 0
    events, asked = await climb(policy, {}, report=told(policy, "good", 0.5))
    assert final(events).reasons == ("tier1:no_score", "tier2:last")
    # Of another ladder's device nothing is taken over.
    other = dataclasses.replace(told(policy, "good", 0.2), ladder_digest="0" * 64)
    events, asked = await climb(policy, {}, report=other)
    assert asked["tier1"] == 1


async def test_a_device_that_asks_is_taken_to_be_unsure() -> None:
    policy = ladder(*THREE, at=(0.8, 0.8))
    sure = told(policy, "good", 0.9)
    events, asked = await climb(policy, {"tier1": Script("bad", score=0.9)}, report=sure)
    assert (final(events).tier, final(events).reasons) == ("tier1", ("tier1:confident",))
    assert asked == {"tier1": 1, "tier2": 0, "tier3": 0}


async def test_a_vote_that_agrees_takes_the_devices_answer() -> None:
    policy = ladder(*THREE, way="vote", at=(0.8,))
    events, asked = await climb(policy, {"tier1": Script("good")}, report=told(policy, "good", 0.6))
    finish = final(events)
    assert (finish.tier, finish.reasons) == (DEVICE, ("tier1:agree",))
    assert finish.confidence == pytest.approx(0.6)
    assert finish.cost_usd == pytest.approx(3.0)
    assert not any(isinstance(event, Chunk) for event in events)
    assert asked["tier2"] == 0


async def test_a_vote_that_is_split_goes_to_the_last_tier() -> None:
    policy = ladder(*THREE, way="vote", at=(0.8,))
    events, _ = await climb(policy, {"tier1": Script("good")}, report=told(policy, "bad", 0.6))
    finish = final(events)
    assert (finish.tier, finish.reasons) == ("tier2", ("tier1:disagree", "tier2:last"))
    assert text(events) == "bad"


async def test_a_vote_of_tiers_in_the_cluster() -> None:
    policy = ladder("tier1", "tier2", "tier3", way="vote", at=(0.8,))
    same = {"tier1": Script("good", score=0.5), "tier2": Script("good", score=0.5)}
    events, asked = await climb(policy, same)
    assert (final(events).tier, text(events)) == ("tier1", "good")
    assert final(events).reasons == ("tier1:unsure", "tier2:agree")
    assert asked["tier3"] == 0


@pytest.mark.parametrize(
    ("device", "tier", "taken"), [(0.6, 0.7, "tier1"), (0.7, 0.6, "device"), (0.6, None, "tier1")]
)
async def test_the_surer_of_two_is_taken(device: float, tier: float | None, taken: str) -> None:
    policy = ladder("device", "tier1", way="best", at=(0.8,))
    scripts = {"tier1": Script("good", score=tier)}
    events, _ = await climb(policy, scripts, report=told(policy, "bad", device))
    finish = final(events)
    assert (finish.tier, finish.reasons) == (taken, (f"{taken}:surer",))
    assert text(events) == ("" if taken == DEVICE else "good")


async def test_without_the_devices_answer_there_is_nothing_to_compare_with() -> None:
    policy = ladder("device", "tier1", way="best", at=(0.8,))
    events, _ = await climb(policy, {"tier1": Script("good", score=0.1)})
    assert (final(events).tier, text(events)) == ("tier1", "good")


UNSURE = {"tier1": Script("good", score=0.7)}


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_remote_calls": 1}, "tier2:max_remote_calls"),
        ({"allowed_tiers": frozenset({"tier1"})}, "tier2:not_allowed"),
        # A dollar for each of 45 tokens that the prompt may have; twice is too much.
        ({"max_cost_usd": 47.0}, "tier2:cost"),
    ],
)
async def test_limits_bind_at_every_rung(limits: dict[str, object], reason: str) -> None:
    events, asked = await climb(ladder("tier1", "tier2", at=(0.8,)), UNSURE, asking(**limits))
    finish = final(events)
    assert (finish.tier, text(events)) == ("tier1", "good")
    assert finish.reasons == ("tier1:unsure", reason, "tier1:best_there_is")
    assert asked["tier2"] == 0


async def test_a_tier_above_that_may_not_see_this_is_passed_over() -> None:
    tiers = (priced("tier1"), priced("tier2", data_classes=("public",)), priced("tier3"))
    config = ClusterConfig(tiers=tiers)
    policy = ladder("tier1", "tier2", "tier3", at=(0.8, 0.8))
    personal = asking(data_class=DataClass.PERSONAL)
    events, asked = await climb(policy, UNSURE, personal, config=config)
    assert final(events).reasons == ("tier1:unsure", "tier2:data_class", "tier3:last")
    assert asked["tier2"] == 0


async def test_money_that_was_spent_below_counts_above() -> None:
    free = TierConfig(name="tier1", model="m")
    config = ClusterConfig(tiers=(free, priced("tier2")))
    policy = ladder("tier1", "tier2", at=(0.8,))
    events, _ = await climb(policy, UNSURE, asking(max_cost_usd=47.0), config=config)
    assert final(events).tier == "tier2"


@pytest.mark.parametrize("status", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"])
async def test_where_a_higher_tier_fails_the_best_answer_there_is_stands(status: str) -> None:
    scripts = {**UNSURE, "tier2": Script("bad", fault=Fault(status))}
    events, _ = await climb(ladder("tier1", "tier2", at=(0.8,)), scripts)
    finish = final(events)
    assert (finish.tier, text(events)) == ("tier1", "good")
    word = f"tier2:{status.lower()}"
    assert finish.reasons == ("tier1:unsure", word, "tier1:best_there_is")
    assert finish.confidence == pytest.approx(0.7)


async def test_a_stream_that_breaks_half_way_is_superseded_and_charged() -> None:
    scripts = {**UNSURE, "tier2": Script("bad and worse", fault=Fault("UNAVAILABLE", after=2))}
    events, _ = await climb(ladder("tier1", "tier2", at=(0.8,)), scripts)
    finish = final(events)
    assert Chunk("bad", 1) in events
    assert (finish.tier, text(events)) == ("tier1", "good")
    assert (finish.prompt_tokens, finish.completion_tokens) == (6, 3)


async def test_a_lower_tier_that_fails_is_passed_over() -> None:
    scripts = {"tier1": Script(fault=Fault("UNAVAILABLE"))}
    events, asked = await climb(ladder("tier1", "tier2", at=(0.8,)), scripts)
    assert final(events).reasons == ("tier1:unavailable", "tier2:last")
    assert asked["tier1"] == 1


async def test_calls_of_device_and_gateway_are_counted_together() -> None:
    fails = Script(fault=Fault("UNAVAILABLE"))
    policy = ladder("tier1", "tier2", at=(0.8,))
    for most, calls in ((4, 2), (2, 2), (1, 1)):
        scripts = {"tier1": fails, "tier2": fails}
        tiers = {tier.name: scripts.get(tier.name, Script()) for tier in CONFIG.tiers}
        with testing.cluster(tiers, config=CONFIG, ladders=(policy,)) as cluster:
            remote = GrpcRemote(cluster.profile)
            events = remote.answer(
                asking(max_remote_calls=most), DeviceReport(), deadline_s=30, transfer=Transfer()
            )
            with pytest.raises(RemoteError, match="UNAVAILABLE"):
                _ = [event async for event in events]
            await remote.close()
            assert len(cluster.asked("tier1")) + len(cluster.asked("tier2")) == calls


async def test_a_slow_tier_leaves_its_share_of_the_deadline_to_the_next() -> None:
    scripts = {"tier1": Script("good", pause_s=60.0)}
    policy = ladder("tier1", "tier2", at=(0.8,))
    events, _ = await climb(policy, scripts, deadline_s=4.0)
    assert final(events).reasons == ("tier1:deadline_exceeded", "tier2:last")


async def test_an_answer_at_hand_comes_before_the_deadline() -> None:
    scripts = {**UNSURE, "tier2": Script("bad", pause_s=60.0)}
    events, _ = await climb(ladder("tier1", "tier2", at=(0.8,)), scripts, deadline_s=4.0)
    finish = final(events)
    assert (finish.tier, text(events)) == ("tier1", "good")
    assert finish.reasons == ("tier1:unsure", "tier2:deadline_exceeded", "tier1:best_there_is")


async def test_requests_of_other_tasks_options_or_tiers_go_as_they_did() -> None:
    policy = ladder("tier1", "tier2", at=(0.8,))
    for request in (
        dataclasses.replace(asking(), task_id="other"),
        dataclasses.replace(asking(), options=("good", "bad", "mixed")),
    ):
        events, _ = await climb(policy, {}, request)
        assert final(events).reasons == ("lowest_tier",)
        assert final(events).confidence is None
    events, _ = await climb(policy, {}, asking(allowed_tiers=frozenset({"tier3"})))
    assert final(events).reasons[-1] == "lowest_allowed_tier"


async def test_the_raw_score_is_told_where_it_is_asked_for() -> None:
    scripts = {"tier1": Script("good", score=0.7)}
    other = dataclasses.replace(asking(), task_id="")
    policy = ladder("tier1", "tier2", at=(0.8,))
    events, _ = await climb(policy, scripts, other)
    assert final(events).raw_score is None
    events, _ = await climb(policy, scripts, dataclasses.replace(other, score=True))
    assert final(events).raw_score == 0.7


@pytest.mark.parametrize(
    ("policies", "problem"),
    [
        ((ladder("tier1", "tier9", at=(0.8,)),), "asks tier9; tiers: tier1, tier2, tier3"),
        ((ladder("tier1"), ladder("tier2")), "two are for the task mood"),
        ((ladder("device"),), "asks no tier"),
        ((dataclasses.replace(ladder("tier1"), task_id=""),), "is for no task"),
    ],
)
def test_a_ladder_that_does_not_fit_is_refused(
    policies: tuple[LadderPolicy, ...], problem: str
) -> None:
    tiers = {tier.name: Script() for tier in CONFIG.tiers}
    with (
        pytest.raises(ConfigError, match=problem),
        testing.cluster(tiers, config=CONFIG, ladders=policies),
    ):
        raise AssertionError("it runs")


def test_a_ladder_of_another_model_is_refused() -> None:
    policy = ladder("tier1", "tier2", at=(0.8,))
    tiers = (TierConfig(name="tier1", model="m"), TierConfig(name="tier2", model="n"))
    scripts = {"tier1": Script(), "tier2": Script()}
    with (
        pytest.raises(ConfigError, match="was tuned with m as tier2, which is n here"),
        testing.cluster(scripts, config=ClusterConfig(tiers=tiers), ladders=(policy,)),
    ):
        raise AssertionError("it runs")


class Scoring:
    """A tier that scores drafts: keeps ``kept`` tokens, and is as sure as it is told."""

    def __init__(self, kept: int, score: float) -> None:
        self.kept = kept
        self.score = score
        self.drafts: list[DraftProposal | None] = []

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.drafts.append(request.draft)
        yield [Started(3)]
        if request.draft is not None:
            yield [Verified(self.kept)]
        yield [Piece(f"kept {self.kept}", 1)]
        yield [Done("stop", 3, 1, 0, self.score if request.score else None)]


class Arrived:
    """A draft that is there; counts who asked for it."""

    def __init__(self) -> None:
        self.asked = 0
        self.draft = DraftProposal((5, 6, 7), (1, 1, 1), "abc", complete=True)

    async def whole(self) -> DraftProposal:
        self.asked += 1
        return self.draft


async def drafted(
    engines: tuple[str, str], first: Scoring, second: Scoring
) -> tuple[list[RemoteEvent], Arrived]:
    """A free question to a ladder of two tiers, with a draft."""
    tiers = (priced("tier1", engine=engines[0]), priced("tier2", engine=engines[1]))
    policy = dataclasses.replace(ladder("tier1", "tier2", at=(0.8,)), wording=None)
    router = Router(ClusterConfig(tiers=tiers), {"tier1": first, "tier2": second}, (policy,))
    arrived = Arrived()
    request = OpenRequest(
        "r", (Message("user", "?"),), task_id="mood", drafting=0.0, incoming=arrived
    )
    constraints = Constraints(max_remote_calls=4)
    request = dataclasses.replace(request, constraints=constraints)
    return [event async for together in router.answer(request) for event in together], arrived


async def test_every_tier_of_a_climb_that_scores_drafts_gets_it() -> None:
    first, second = Scoring(1, 0.5), Scoring(2, 0.9)
    events, arrived = await drafted(("transformers", "transformers"), first, second)
    assert first.drafts == second.drafts == [arrived.draft]
    assert arrived.asked == 1
    # What the unsure tier kept is told no more than its text.
    assert [event for event in events if isinstance(event, Verified)] == [Verified(2)]
    assert text(events) == "kept 2"
    assert final(events).reasons == ("tier1:unsure", "tier2:last")


async def test_an_answer_that_was_held_back_comes_with_what_it_kept() -> None:
    first, second = Scoring(1, 0.9), Scoring(2, 0.9)
    events, _ = await drafted(("transformers", "llama_cpp"), first, second)
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["Accepted", "Verified", "Chunk", "Finished"]
    assert text(events) == "kept 1"
    assert second.drafts == []


async def test_a_tier_of_a_climb_that_scores_no_drafts_says_so() -> None:
    first, second = Scoring(1, 0.5), Scoring(2, 0.9)
    events, _ = await drafted(("transformers", "llama_cpp"), first, second)
    assert second.drafts == [None]
    assert not any(isinstance(event, Verified) for event in events)
    assert final(events).reasons == ("tier1:unsure", "tier2:last", "tier2:draft_ignored")


async def test_nobody_waits_for_a_draft_that_no_tier_would_read() -> None:
    first, second = Scoring(1, 0.5), Scoring(2, 0.9)
    _, arrived = await drafted(("llama_cpp", "llama_cpp"), first, second)
    assert arrived.asked == 0

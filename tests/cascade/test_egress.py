"""Requests on their way out of a device, with a cluster that behaves in a scripted way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import pytest

from cascade.breaker import CircuitBreaker
from cascade.budget import BudgetLedger, MoneyLimits
from cascade.checks import Checks, matches
from cascade.conditions import Conditions, FixedConditions
from cascade.controller import Controller
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.egress import Egress
from cascade.errors import InvalidInput, RemoteError
from cascade.events import Final
from cascade.latency import LatencyBook
from cascade.policy import Reason
from cascade.privacy import PiiSpan, Privacy
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Constraints, Message, Request
from tests.cascade.scripted import (
    FINISHED,
    ScriptedCluster,
    ScriptedModel,
    answer,
    gather,
    policy,
    question,
    shelf,
)


@pytest.fixture
def policies(tmp_path):
    return shelf(tmp_path, policy(0.8))


def ledger(tmp_path, **limits: float) -> BudgetLedger:
    return BudgetLedger(tmp_path / "budget.sqlite3", MoneyLimits(**limits))


def left(money: BudgetLedger) -> float:
    return money.peek(0.0).day_left_usd


def charging(cost_usd: float) -> ScriptedCluster:
    finished = replace(FINISHED, cost_usd=cost_usd)
    return ScriptedCluster((Accepted("tier1", "large"), Chunk("bad", 1), finished))


async def test_calls_are_paid_for_until_the_day_is_spent(tmp_path, policies):
    money = ledger(tmp_path, per_day_usd=1.0, per_request_usd=0.5)
    cluster = charging(0.4)
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(money=money))
    first, second, third = [await answer(controller, question()) for _ in range(3)]
    assert (first.source, second.source) == ("tier1", "tier1")
    assert (third.source, third.verified) == ("device", False)
    assert third.reasons == (Reason.UNSURE, Reason.BUDGET_DAY)
    assert [request.constraints.max_cost_usd for request in cluster.requests] == [0.5, 0.5]
    assert left(money) == pytest.approx(0.2)


async def test_a_request_keeps_its_own_bound_on_its_price(tmp_path, policies):
    money, cluster = ledger(tmp_path, per_day_usd=1.0), charging(0.01)
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(money=money))
    await answer(controller, question(constraints=Constraints(max_cost_usd=0.02)))
    assert cluster.requests[0].constraints.max_cost_usd == 0.02


@pytest.mark.parametrize(
    ("events", "status", "spent"),
    [
        ((), "UNAVAILABLE", 0.0),
        ((), "FAILED_PRECONDITION", 0.0),
        ((), "DEADLINE_EXCEEDED", 0.5),
        ((Accepted("tier1", "large"),), "UNAVAILABLE", 0.5),
    ],
)
async def test_what_a_failed_call_may_have_cost_stays_spent(
    tmp_path, policies, events, status, spent
):
    money = ledger(tmp_path, per_day_usd=1.0, per_request_usd=0.5)
    cluster = ScriptedCluster(events, RemoteError(status, "no luck"))
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(money=money))
    assert (await answer(controller, question())).remote_status == status
    assert left(money) == pytest.approx(1.0 - spent)


async def test_a_call_that_is_left_early_stays_paid_for(tmp_path):
    money = ledger(tmp_path, per_day_usd=1.0, per_request_usd=0.5)
    cluster = charging(0.1)
    events = Controller(None, cluster, egress=Egress(money=money)).run(question())
    await anext(events)
    await events.aclose()
    assert cluster.closed_early
    assert left(money) == pytest.approx(0.5)


async def test_a_confident_answer_costs_nothing_and_looks_at_nothing(tmp_path, policies):
    money = ledger(tmp_path, per_day_usd=1.0)
    controller = Controller(ScriptedModel(0.9), charging(0.1), policies, egress=Egress(money=money))
    assert (await answer(controller, question())).reasons == (Reason.CONFIDENT,)
    assert not (tmp_path / "budget.sqlite3").exists()


async def test_a_ledger_that_cannot_be_read_keeps_requests_here(tmp_path, policies):
    (tmp_path / "budget.sqlite3").write_bytes(b"no database at all, only words" * 50)
    egress = Egress(money=ledger(tmp_path, per_day_usd=1.0))
    cluster = charging(0.1)
    result = await answer(Controller(ScriptedModel(0.6), cluster, policies, egress=egress),
                          question())  # fmt: skip
    assert result.reasons == (Reason.UNSURE, Reason.BUDGET_UNREADABLE)
    assert cluster.requests == []


async def test_many_at_once_spend_no_more_than_there_is(tmp_path, policies):
    money = ledger(tmp_path, per_day_usd=1.0, per_request_usd=0.25)
    cluster = charging(0.25)
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(money=money))
    answers = await asyncio.gather(*(answer(controller, question()) for _ in range(10)))
    assert sum(each.source == "tier1" for each in answers) == 4
    assert left(money) == pytest.approx(0.0)


async def test_a_deadline_that_the_tier_will_miss_is_not_tried(policies):
    book = LatencyBook()
    for _ in range(6):
        book.record("c closed tier1", 3.0)
    cluster = ScriptedCluster()
    egress = Egress(latency=book, cluster="c")
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=egress)
    result = await answer(controller, question(constraints=Constraints(deadline_s=2.0)))
    assert (result.local, result.verified) == (True, False)
    assert result.reasons == (Reason.UNSURE, Reason.DEADLINE_TOO_SHORT)
    assert cluster.requests == []
    patient = await answer(controller, question(constraints=Constraints(deadline_s=9.0)))
    assert patient.source == "tier1"


async def test_calls_are_measured_by_tier_and_form(policies):
    book = LatencyBook()
    egress = Egress(latency=book, cluster="c")
    controller = Controller(ScriptedModel(0.6), ScriptedCluster(), policies, egress=egress)
    for _ in range(6):
        await answer(controller, question())
    assert 0 < book.p95("c closed ")["tier1"] < 1.0
    assert book.p95("c free ") == {}


@dataclass
class SlowCluster(ScriptedCluster):
    """Takes a request and misses its deadline."""

    async def answer(
        self, request: Request, report: DeviceReport, *, deadline_s: float, transfer: Transfer
    ) -> AsyncGenerator[RemoteEvent, None]:
        self.requests.append(request)
        yield Accepted("tier1", "large")
        await asyncio.sleep(0.02)
        raise RemoteError("DEADLINE_EXCEEDED", "too late")


async def test_a_missed_deadline_counts_as_at_least_so_long(policies):
    book = LatencyBook()
    controller = Controller(
        ScriptedModel(0.6), SlowCluster(), policies, egress=Egress(latency=book, cluster="c")
    )
    for _ in range(6):
        await answer(controller, question())
    assert book.p95("c closed ")["tier1"] >= 0.02


async def test_a_failing_cluster_is_left_alone_and_looked_at_again(policies):
    now = [0.0]
    cluster = ScriptedCluster((), RemoteError("UNAVAILABLE", "gone"))
    egress = Egress(breaker=CircuitBreaker(2, 10.0, now=lambda: now[0]))
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=egress)
    reasons = [(await answer(controller, question())).reasons[-1] for _ in range(3)]
    assert reasons == [Reason.REMOTE_FAILED, Reason.REMOTE_FAILED, Reason.CIRCUIT_OPEN]
    assert len(cluster.requests) == 2
    now[0] = 10.0
    cluster.events, cluster.problem = ScriptedCluster().events, None
    assert (await answer(controller, question())).source == "tier1"


async def test_a_refusal_is_no_failure_of_the_cluster(policies):
    cluster = ScriptedCluster((), RemoteError("INVALID_ARGUMENT", "no"))
    egress = Egress(breaker=CircuitBreaker(1))
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=egress)
    for _ in range(3):
        await answer(controller, question())
    assert len(cluster.requests) == 3


async def test_without_a_device_an_open_circuit_is_unavailable():
    breaker = CircuitBreaker(1)
    cluster = ScriptedCluster((), RemoteError("UNAVAILABLE", "gone"))
    controller = Controller(None, cluster, egress=Egress(breaker=breaker))
    with pytest.raises(RemoteError, match="gone"):
        await answer(controller, question())
    with pytest.raises(RemoteError, match=r"UNAVAILABLE: the cluster was not asked .*circuit_open"):
        await answer(controller, question())


@pytest.mark.parametrize(
    ("conditions", "limits", "reasons"),
    [
        (Conditions("offline"), {}, (Reason.OFFLINE,)),
        (Conditions("metered"), {"metered_ok": False}, (Reason.METERED,)),
        (Conditions("unmetered", 0.1, False), {"min_battery": 0.2}, (Reason.BATTERY_LOW,)),
        (
            Conditions("metered", 0.1, False),
            {"min_battery": 0.2, "metered_ok": False},
            (Reason.METERED, Reason.BATTERY_LOW),
        ),
        (Conditions("metered", 0.1, True), {"min_battery": 0.2}, ()),
    ],
)
async def test_the_devices_conditions_count(policies, conditions, limits, reasons):
    cluster = ScriptedCluster()
    egress = Egress(conditions=FixedConditions(conditions))
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=egress)
    result = await answer(controller, question(constraints=Constraints(**limits)))
    if reasons:
        assert result.reasons == (Reason.UNSURE, *reasons)
        assert cluster.requests == []
    else:
        assert result.source == "tier1"


async def test_a_commercial_device_says_so(policies):
    cluster = ScriptedCluster()
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(commercial=True))
    await answer(controller, question())
    assert cluster.requests[0].constraints.commercial


async def test_a_check_vetoes_a_confident_answer(policies):
    checks = Checks({"bad_only": matches("bad")}, tasks={"mood": ("bad_only",)})
    cluster = ScriptedCluster()
    result = await answer(
        Controller(ScriptedModel(0.95), cluster, policies, checks=checks), question()
    )
    assert result.source == "tier1"
    assert result.reasons == (Reason.CONFIDENT, "veto:bad_only", "lowest_tier")
    assert result.device_confidence == pytest.approx(0.95)
    offline = await answer(
        Controller(ScriptedModel(0.95), None, policies, checks=checks), question()
    )
    assert (offline.text, offline.verified) == ("good", False)
    assert offline.reasons == (Reason.CONFIDENT, "veto:bad_only", Reason.NO_CLUSTER)


async def test_a_check_that_does_not_exist_is_refused_before_anything_runs(policies):
    model = ScriptedModel(0.95)
    with pytest.raises(InvalidInput, match="no check is called 'nope'"):
        await answer(Controller(model, None, policies), question(checks=("nope",)))
    assert model.prompts == []


async def test_every_decision_is_told_with_all_that_it_was_made_from(tmp_path, policies):
    records: list[DecisionRecord] = []
    egress = Egress(
        money=ledger(tmp_path, per_day_usd=1.0, per_request_usd=0.6),
        conditions=FixedConditions(Conditions("unmetered", 0.9, False)),
        commercial=True,
    )
    model = ScriptedModel(0.6)
    controller = Controller(
        model, charging(0.5), policies, egress=egress, on_decision=records.append
    )
    for probability in (0.6, 0.6, 0.9):
        model.probability = probability
        await answer(controller, question())
    await answer(controller, question(prefer="cloud", constraints=Constraints(max_cost_usd=0.01)))
    escalated, broke, kept, cloud = records
    assert escalated.decision.escalate
    assert broke.decision.reasons == (Reason.UNSURE, Reason.BUDGET_DAY)
    assert broke.situation.budget.day_left_usd == pytest.approx(0.5)
    assert (kept.decision.accept, kept.situation) == (True, None)
    assert cloud.unanswered == (Reason.CLOUD_PREFERRED,)
    assert all(record.constraints.commercial for record in (escalated, broke, cloud))
    for record in records:
        assert replay_decision(DecisionRecord.from_bytes(record.to_bytes())) == record.decision
    assert replay_decision(kept, policy(0.8)).accept


@dataclass
class Words:
    """Finds given words."""

    kinds: dict[str, str] = field(default_factory=lambda: {"ann@b.c": "EMAIL", "4111": "CARD"})
    problem: Exception | None = None

    def find(self, text: str) -> list[PiiSpan]:
        if self.problem:
            raise self.problem
        return [
            PiiSpan(at, at + len(word), kind, 0.9)
            for word, kind in self.kinds.items()
            for at in range(len(text))
            if text.startswith(word, at)
        ]


@dataclass
class EchoCluster(ScriptedCluster):
    """Says what it was sent, three characters at a time."""

    async def answer(
        self, request: Request, report: DeviceReport, *, deadline_s: float, transfer: Transfer
    ) -> AsyncGenerator[RemoteEvent, None]:
        self.requests.append(request)
        yield Accepted("tier1", "large")
        said = f"You wrote: {request.messages[-1].content}!"
        for start in range(0, len(said), 3):
            yield Chunk(said[start : start + 3], 1)
        yield Finished("stop", 9, 9, 0.0, "tier1", "large", None, ("lowest_tier",), 0.1)


MAIL = Request((Message("user", "Is ann@b.c right? Not ann@b.c?"),))


async def test_personal_data_is_replaced_on_the_way_out_and_back_on_the_way_in():
    cluster = EchoCluster()
    controller = Controller(None, cluster, egress=Egress(privacy=Privacy(Words())))
    events = await gather(controller, MAIL)
    sent = cluster.requests[0].messages[-1].content
    assert "ann" not in sent
    assert sent.count("<EMAIL_") == 2
    assert isinstance(events[-1], Final)
    assert events[-1].answer.text == f"You wrote: {MAIL.text}!"
    assert "".join(event.text for event in events[:-1]) == events[-1].answer.text
    again = await gather(controller, replace(MAIL, request_id="r2"))
    assert cluster.requests[1].messages[-1].content == sent
    assert again[-1].answer.text == events[-1].answer.text


async def test_half_a_placeholder_of_a_tier_that_gave_up_does_not_reach_the_next_ones_text():
    cluster = ScriptedCluster(
        (
            *(Accepted("tier1", "large"), Chunk("Hi <EMAIL_", 2)),
            *(Accepted("tier2", "larger"), Chunk("No", 1)),
            replace(FINISHED, tier="tier2"),
        )
    )
    controller = Controller(None, cluster, egress=Egress(privacy=Privacy(Words())))
    events = await gather(controller, MAIL)
    assert events[-1].answer.text == "No"


async def test_a_conversation_keeps_its_placeholders():
    cluster = EchoCluster()
    controller = Controller(None, cluster, egress=Egress(privacy=Privacy(Words())))
    talk = (Message("user", "I am ann@b.c"), Message("assistant", "Hello ann@b.c"))
    await gather(controller, replace(MAIL, messages=(*talk, Message("user", "4111 or ann@b.c?"))))
    turns = [turn.content for turn in cluster.requests[0].messages]
    name = turns[0].removeprefix("I am ")
    assert turns[1] == f"Hello {name}"
    assert turns[2].endswith(f"or {name}?")
    assert turns[2].startswith("<CARD_")


async def test_a_kind_that_never_leaves_keeps_the_request_here(policies):
    cluster = ScriptedCluster()
    privacy = Privacy(Words(), never_leave=frozenset({"CARD"}))
    controller = Controller(ScriptedModel(0.6), cluster, policies, egress=Egress(privacy=privacy))
    card = question(messages=(Message("user", "4111 from ann@b.c"),))
    result = await answer(controller, card)
    assert (result.local, result.verified) == (True, False)
    assert result.reasons == (Reason.UNSURE, "pii:CARD")
    assert cluster.requests == []
    with pytest.raises(InvalidInput, match="pii:CARD"):
        await answer(controller, replace(card, prefer="cloud"))


async def test_a_detector_that_breaks_keeps_the_request_here(policies):
    cluster = ScriptedCluster()
    for problem in (RuntimeError("broken"), MemoryError()):
        privacy = Privacy(Words(problem=problem))
        controller = Controller(
            ScriptedModel(0.6), cluster, policies, egress=Egress(privacy=privacy)
        )
        result = await answer(controller, question())
        assert result.reasons == (Reason.UNSURE, "pii:detector_failed")
    assert cluster.requests == []


async def test_options_are_replaced_too_and_the_answer_is_one_of_the_callers():
    class Chooser(EchoCluster):
        async def answer(
            self, request: Request, report: DeviceReport, *, deadline_s: float, transfer: Transfer
        ) -> AsyncGenerator[RemoteEvent, None]:
            self.requests.append(request)
            yield Accepted("tier1", "large")
            yield Chunk(request.options[0], 1)
            yield FINISHED

    cluster = Chooser()
    controller = Controller(None, cluster, egress=Egress(privacy=Privacy(Words())))
    result = await answer(controller, question(options=("ann@b.c", "nobody"), task_id=""))
    assert result.text == "ann@b.c"
    assert cluster.requests[0].options[1] == "nobody"
    assert "ann" not in repr(cluster.requests[0])


async def test_personal_data_in_the_form_of_the_answer_stays_here():
    cluster = EchoCluster()
    controller = Controller(None, cluster, egress=Egress(privacy=Privacy(Words())))
    for form in ({"regex": "ann@b.c"}, {"json_schema": '{"const": "ann@b.c"}'}):
        with pytest.raises(InvalidInput, match="pii:EMAIL"):
            await gather(controller, replace(MAIL, **form))
    with pytest.raises(InvalidInput, match="pii:EMAIL"):
        await gather(controller, replace(MAIL, stop=("ann@b.c",)))
    assert cluster.requests == []


async def test_without_redaction_only_what_never_leaves_is_held_back():
    cluster = EchoCluster()
    privacy = Privacy(Words(), redact=False, never_leave=frozenset({"CARD"}))
    controller = Controller(None, cluster, egress=Egress(privacy=privacy))
    await gather(controller, MAIL)
    assert cluster.requests[0].messages == MAIL.messages
    with pytest.raises(InvalidInput, match="pii:CARD"):
        await gather(controller, replace(MAIL, messages=(Message("user", "4111"),)))

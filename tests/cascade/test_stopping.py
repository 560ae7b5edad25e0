"""Given a device that may stop writing, the controller escalates, and finishes where it must."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from cascade.breaker import CircuitBreaker
from cascade.budget import BudgetLedger, MoneyLimits
from cascade.checks import Checks, matches
from cascade.conditions import Conditions, FixedConditions
from cascade.confidence import ConfidenceModel, Platt
from cascade.controller import Controller
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.early_stop import Checkpoint, EarlyStop, StopCertificate, TokenLists
from cascade.egress import Egress
from cascade.errors import InvalidInput, RemoteError
from cascade.events import Answer, Event, Final, Superseded, Token
from cascade.gain import GainModel
from cascade.monitor import Monitor
from cascade.policy import Policy, PolicyStore, Reason
from cascade.records.outcome import kept
from cascade.remote import Accepted, Chunk
from cascade.request import Constraints, DataClass, Message, Request
from cascade.score_reference import ScoreReference
from cascade.task import free
from cascade.testing import TinyBundle
from edge import OnnxModel
from tests.cascade.scripted import (
    FINISHED,
    INFO,
    ScriptedCluster,
    ScriptedModel,
    Writer,
    answer,
    gather,
    policy,
    shelf,
)
from tests.cascade.scripted import question as closed_question

RULE = EarlyStop(
    0.5,
    None,
    (Checkpoint(3, (1.0, *[0.0] * 11), 0.0, 6.5),),
    cutoff=-1.0,
    certificate=StopCertificate(
        lost=0.05, delta=0.1, n=100, kept=60, stopped=1, data_digest="0" * 64
    ),
)


TALK = replace(policy(0.5), task=free("talk"), early_stop=RULE)
GONE = RemoteError("UNAVAILABLE", "gone")


@pytest.fixture
def policies(tmp_path) -> PolicyStore:
    return shelf(tmp_path, TALK)


def question(**constraints: object) -> Request:
    return Request(
        (Message("user", "what a day"),),
        task_id="talk",
        max_tokens=48,
        constraints=Constraints(**constraints),
    )


def final(events: list[Event]) -> Answer:
    assert isinstance(events[-1], Final)
    return events[-1].answer


def text(events: list[Event]) -> str:
    """What the application holds at the end."""
    held = ""
    for event in events:
        if isinstance(event, Superseded):
            held = ""
        if isinstance(event, Token):
            held += event.text
    return held


async def test_a_hopeless_answer_is_stopped_and_escalated(policies) -> None:
    device, cluster = Writer(), ScriptedCluster()
    answer = final(await gather(Controller(device, cluster, policies), question()))
    assert (answer.source, answer.text) == ("tier1", "bad")
    assert answer.reasons[0] == Reason.STOPPED_EARLY
    assert (answer.local_tokens, answer.local_tokens_saved) == (3, 6.5)
    # What was measured of a part is nobody's score or confidence.
    assert (answer.raw_score, answer.device_confidence) == (None, None)
    report = cluster.reports[0]
    assert (report.raw_score, report.confidence, len(report.signals)) == (None, None, 0)
    assert report.base_digest == INFO.base_digest


async def test_an_answer_that_may_be_kept_is_written_to_its_end(policies) -> None:
    device, cluster = Writer(logprob=-0.1), ScriptedCluster()
    answer = final(await gather(Controller(device, cluster, policies), question()))
    assert (answer.source, answer.tokens, answer.verified) == ("device", 10, True)
    assert answer.local_tokens_saved is None


async def test_without_anybody_else_the_device_writes_on(policies) -> None:
    for remote, constraints in (
        (None, {}),
        (ScriptedCluster(), {"data_class": DataClass.NEVER_LEAVE}),
    ):
        device = Writer()
        events = await gather(Controller(device, remote, policies), question(**constraints))
        answer = final(events)
        assert (answer.source, answer.tokens, device.decodes) == ("device", 10, 1)
        assert (answer.reasons[0], answer.verified) == (Reason.UNSURE, False)
        assert answer.confidence == pytest.approx(np.exp(-2.0))
        assert (text(events), answer.local_tokens_saved) == (answer.text, None)


async def test_who_else_could_answer_does_not_change_what_is_vouched_for(tmp_path) -> None:
    # Of the answers that the rule stops a few would be kept: none of them was certified.
    sure = replace(TALK, confidence=ConfidenceModel(Platt(1.0, 9.0)))
    store = shelf(tmp_path, sure)
    stopped = final(await gather(Controller(Writer(), ScriptedCluster(), store), question()))
    assert stopped.reasons[0] == Reason.STOPPED_EARLY
    alone = final(await gather(Controller(Writer(), None, store), question()))
    assert (alone.verified, alone.tokens) == (False, 10)
    assert alone.reasons == (Reason.STOPPED_EARLY, Reason.NO_CLUSTER)
    assert alone.confidence is not None
    assert alone.confidence > sure.threshold


async def test_an_answer_whose_cluster_fails_is_written_after_all(policies) -> None:
    device = Writer()
    events = await gather(
        Controller(device, ScriptedCluster((), GONE), policies), question(), show="final"
    )
    answer = final(events)
    assert (answer.source, answer.tokens, answer.verified) == ("device", 10, False)
    assert answer.reasons == (Reason.STOPPED_EARLY, Reason.REMOTE_FAILED)
    assert (answer.finish, answer.remote_status) == ("stop", "UNAVAILABLE")
    assert answer.raw_score == pytest.approx(np.exp(-2.0))
    assert (answer.confidence, answer.local_tokens_saved) == (None, None)
    assert text(events) == answer.text
    # It streams, for nothing can take its place any more.
    assert events[:2] == [Token("w0 ", "device", False), Token("w1 ", "device", False)]
    assert (device.decodes, answer.local_tokens) == (2, 13)


async def test_an_answer_that_may_not_leave_after_all_is_written_to_its_end(policies) -> None:
    cluster = ScriptedCluster()
    egress = Egress(conditions=FixedConditions(Conditions("offline")))
    device = Writer()
    answer = final(await gather(Controller(device, cluster, policies, egress=egress), question()))
    assert answer.reasons == (Reason.STOPPED_EARLY, Reason.OFFLINE)
    assert (answer.source, answer.tokens, answer.verified) == ("device", 10, False)
    assert (cluster.requests, device.decodes) == ([], 2)


async def test_shown_text_is_taken_back_before_it_is_written_anew(policies) -> None:
    events = await gather(
        Controller(Writer(), ScriptedCluster((), GONE), policies), question(), show="provisional"
    )
    assert events[:4] == [
        *(Token(f"w{word} ", "device", provisional=True) for word in range(3)),
        Superseded("device"),
    ]
    assert all(not event.provisional for event in events[4:-1])
    assert text(events) == final(events).text == "".join(f"w{word} " for word in range(10))


async def test_a_cluster_that_breaks_midway_is_superseded_by_the_whole_answer(policies) -> None:
    cluster = ScriptedCluster((Accepted("tier1", "large"), Chunk("ba", 1)), GONE)
    events = await gather(Controller(Writer(), cluster, policies), question(), show="provisional")
    assert events[3:6] == [Superseded("tier1"), Token("ba", "tier1", False), Superseded("device")]
    assert text(events) == final(events).text
    assert final(events).tokens == 10


@pytest.mark.parametrize("show", ["final", "provisional"])
async def test_without_time_for_the_rest_the_part_comes_back_as_cut_off(policies, show) -> None:
    device = Writer(slow_from=2)
    cluster = ScriptedCluster((), GONE)
    began = time.perf_counter()
    events = await gather(
        Controller(device, cluster, policies), question(deadline_s=0.5), show=show
    )
    answer = final(events)
    assert (answer.source, answer.text, answer.verified) == ("device", "w0 w1 w2 ", False)
    assert (answer.finish, answer.raw_score, answer.confidence) == ("length", None, None)
    assert text(events) == answer.text
    assert time.perf_counter() - began < 5  # not for ever: the second decode was ended


async def test_as_much_as_time_allows_comes_back(policies) -> None:
    device = Writer(slow_from=2, slow_word=6)
    controller = Controller(device, ScriptedCluster((), GONE), policies)
    events = await gather(controller, question(deadline_s=1.0))
    answer = final(events)
    assert (answer.text, answer.finish) == ("w0 w1 w2 w3 w4 w5 ", "length")
    assert text(events) == answer.text
    assert (answer.raw_score, answer.local_tokens) == (None, 9)


async def test_leaving_while_the_rest_is_written_ends_the_decode(policies) -> None:
    device = Writer(slow_from=2, slow_word=1)
    events = Controller(device, ScriptedCluster((), GONE), policies).run(question())
    assert await anext(events) == Token("w0 ", "device", False)
    await events.aclose()
    assert device.ended == 2


async def test_a_part_is_put_to_no_check(policies) -> None:
    judged: list[str] = []

    def look(text: str) -> bool:
        judged.append(text)
        return False

    checks = Checks({"look": look}, tasks={"talk": ("look",)})
    controller = Controller(Writer(), ScriptedCluster(), policies, checks=checks)
    answer = final(await gather(controller, question()))
    assert answer.reasons == (Reason.STOPPED_EARLY, "lowest_tier")
    assert judged == []


async def test_every_way_of_stopping_is_made_again_from_its_record(policies) -> None:
    records: list[DecisionRecord] = []
    offline = Egress(conditions=FixedConditions(Conditions("offline")))
    for device, remote, egress in (
        (Writer(), ScriptedCluster(), None),
        (Writer(), ScriptedCluster((), GONE), None),
        (Writer(), ScriptedCluster(), offline),
        (Writer(), None, None),
        (Writer(logprob=-0.1), ScriptedCluster(), None),
    ):
        controller = Controller(device, remote, policies, egress=egress, on_decision=records.append)
        await gather(controller, question())
    assert [record.stopped for record in records] == [True, True, True, True, False]
    assert [record.raw_score is None for record in records] == [True, True, True, False, False]
    for record in records:
        read = DecisionRecord.from_bytes(record.to_bytes())
        assert replay_decision(read) == replay_decision(read, TALK) == record.decision
    kept = replace(records[0], stopped=False)
    assert replay_decision(kept).reasons == (Reason.UNMEASURED,)


async def test_the_monitor_sees_scores_of_answers_that_the_rule_lets_be(tmp_path) -> None:
    watched = replace(TALK, scores=ScoreReference.of([0.85, 0.9, 0.95]))
    store = shelf(tmp_path, watched)
    monitor = Monitor.open(
        tmp_path / "monitor.sqlite", tier_error=0.0, share=1.0, seed=1, grader="exact"
    )
    cluster = ScriptedCluster((Accepted("tier1", "large"), Chunk("w", 1), FINISHED))
    for device, remote in (
        (Writer(), cluster),
        (Writer(), ScriptedCluster((), GONE)),
        (Writer(), None),
        (Writer(logprob=-0.1), cluster),
    ):
        await gather(Controller(device, remote, store, monitor), question())
        await monitor.settled()
    (kept_,) = monitor.kept()
    assert kept_.health.scores.seen == 1
    assert kept_.health.accepted.labels == 1
    # One call for the answer that was stopped, one for the audit of the one that was kept.
    assert len(cluster.requests) == 2


# P(next right) is .6 whatever the score, P(device right) the score itself.
GAIN = GainModel(
    ConfidenceModel(Platt(1.0, 0.0)), ConfidenceModel(Platt(0.0, float(np.log(0.6 / 0.4))))
)


@pytest.mark.parametrize(("probability", "escalated"), [(0.55, False), (0.501, True)])
async def test_what_gains_little_stays_here_and_takes_no_money(
    tmp_path, probability, escalated
) -> None:
    store = shelf(tmp_path, replace(policy(0.8), gain=GAIN, min_gain=0.08))
    money = BudgetLedger(tmp_path / "money.sqlite3", MoneyLimits(per_day_usd=1.0))
    records: list[DecisionRecord] = []
    breaker, cluster = CircuitBreaker(1), ScriptedCluster((), GONE)
    egress = Egress(money=money, breaker=breaker)
    controller = Controller(
        ScriptedModel(probability), cluster, store, egress=egress, on_decision=records.append
    )
    result = await answer(controller, closed_question())
    assert (result.source, result.verified) == ("device", False)
    assert result.expected_gain == pytest.approx(0.6 - probability)
    assert (len(cluster.requests), breaker.blocks) == (int(escalated), escalated)
    if not escalated:
        assert result.reasons == (Reason.UNSURE, Reason.LITTLE_GAIN)
        assert money.peek(0.0).day_left_usd == 1.0
    (record,) = records
    assert (record.min_gain, record.gain) == (0.08, result.expected_gain)
    read = DecisionRecord.from_bytes(record.to_bytes())
    own = store.find("mood", INFO)
    assert replay_decision(read) == replay_decision(read, own) == record.decision
    assert replay_decision(replace(read, min_gain=0.9)).escalate is False


async def test_a_vetoed_answer_escalates_whatever_there_is_to_gain(tmp_path) -> None:
    store = shelf(tmp_path, replace(policy(0.8), gain=GAIN, min_gain=0.9))
    checks = Checks({"bad_only": matches("bad")}, tasks={"mood": ("bad_only",)})
    controller = Controller(ScriptedModel(0.95), ScriptedCluster(), store, checks=checks)
    result = await answer(controller, closed_question())
    assert result.reasons == (Reason.CONFIDENT, "veto:bad_only", "lowest_tier")


def test_a_policy_does_not_stop_what_it_may_keep_for_want_of_gain() -> None:
    with pytest.raises(InvalidInput, match=r"early_stop: .* leave out min_gain"):
        replace(TALK, gain=GAIN, min_gain=0.1).to_bytes()
    assert Policy.from_bytes(replace(TALK, gain=GAIN).to_bytes()).gain == GAIN


def test_an_engine_stops_where_the_signals_of_its_whole_answer_say(tiny: TinyBundle) -> None:
    model = OnnxModel(tiny.bundle)
    stopped = 0
    for prompt in ("one", "two words", "and three more", "a fourth"):
        whole = model.generate(prompt, max_tokens=24)
        signals = kept(whole.signals)
        assert signals is not None
        lists = TokenLists(
            *(
                np.asarray(each, np.float64)
                for each in (signals.logprobs, signals.entropies, signals.margins)
            ),
            np.array([0, len(signals)]),
        )
        for cutoff in (-1e9, float(lists.running(6)[1][0, 0])):
            rule = EarlyStop(
                0.5, None, tuple(replace(RULE.checkpoints[0], tokens=n) for n in (2, 6)), cutoff
            )
            watch = rule.watch(24)
            answer = model.generate(prompt, max_tokens=24, on_token=watch)
            expected = int(rule.stops_at(lists, 24)[0])
            assert (answer.tokens, watch.fired) == (expected or 24, expected > 0)
            stopped += watch.fired
    assert stopped == 4

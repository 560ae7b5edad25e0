"""A controller with a monitor: answers are audited in the background, and demotion is obeyed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import pytest

from cascade.controller import Controller
from cascade.errors import CascadeError, InvalidInput, NotFound, RemoteError
from cascade.events import Final
from cascade.monitor import Monitor, MonitorStore, Settings, State
from cascade.monitor.evidence import reset
from cascade.policy import Policy, PolicyStore, Reason
from cascade.remote import Accepted, Chunk, RemoteEvent
from cascade.request import Constraints, DataClass, Message
from cascade.score_reference import ScoreReference
from cascade.signing import SigningKey, TrustStore
from tests.cascade.scripted import (
    FINISHED,
    ScriptedCluster,
    ScriptedModel,
    answer,
    policy,
    question,
)

AGREES = (Accepted("tier1", "large"), Chunk("go", 1), Chunk("od", 1), FINISHED)
DISAGREES = (Accepted("tier1", "large"), Chunk("bad", 1), FINISHED)
POLICY = policy(0.8)


@dataclass
class SlowCluster(ScriptedCluster):
    """Says nothing before it is let go."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0

    async def answer(self, request, report, *, deadline_s, transfer) -> AsyncGenerator[RemoteEvent]:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answers = super().answer(request, report, deadline_s=deadline_s, transfer=transfer)
        async with contextlib.aclosing(answers) as events:
            async for event in events:
                yield event


@dataclass
class Shelf:
    """Policies that can be replaced, and the file of the monitors."""

    policies: PolicyStore
    key: SigningKey
    store: MonitorStore

    def install(self, changed: Policy) -> None:
        self.policies.install(changed, self.key)

    def monitor(self, share: float = 1.0, **changes: object) -> Monitor:
        settings = Settings(**{"tier_error": 0.0, "share": share, "watch_share": share, **changes})
        return Monitor(self.store, settings)


@pytest.fixture
def shelf(tmp_path):
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    store = MonitorStore(tmp_path / "monitor.sqlite")
    shelf = Shelf(PolicyStore(tmp_path / "policies", trust), key, store)
    shelf.install(POLICY)
    yield shelf
    store.close()


def controller(shelf, monitor, cluster, probability=0.9):
    return Controller(ScriptedModel(probability), cluster, shelf.policies, monitor)


async def test_an_audit_asks_the_cluster_the_same_and_labels_the_answer(shelf):
    cluster, monitor = ScriptedCluster(AGREES), shelf.monitor()
    run = controller(shelf, monitor, cluster)
    result = await answer(run, question())
    assert (result.text, result.source, result.verified) == ("good", "device", True)
    assert result.bytes_up == 0
    await monitor.settled()
    (asked,) = cluster.requests
    assert asked.messages == (Message("user", "Good or bad? what a day"),)
    assert asked.constraints == question().constraints
    assert cluster.reports[0].confidence == pytest.approx(0.9)
    (kept,) = monitor.kept()
    assert (kept.health.audits.labels, kept.health.audits.errors) == (1, 0)
    assert [entry.kind for entry in monitor.log()] == ["opened", "audit"]
    audit = monitor.log()[1]
    assert audit.note == "tier"
    assert audit.evidence == {"request": result.request_id, "wrong": 0, "probability": 1.0}


async def test_the_user_has_the_answer_before_the_audit_begins(shelf):
    cluster, monitor = SlowCluster(AGREES), shelf.monitor()
    run = controller(shelf, monitor, cluster)
    events = run.run(question())
    async for event in events:
        if isinstance(event, Final):
            assert cluster.requests == []
            assert not monitor._audits
            break
    await events.aclose()
    assert (
        await asyncio.wait_for(answer(run, question()), 5)
    ).local  # nor does it hold up the next
    cluster.go.set()
    await monitor.settled()
    assert monitor.kept()[0].health.audits.labels == 2


async def test_closing_cancels_what_is_under_way_and_says_so(shelf):
    cluster, monitor = SlowCluster(AGREES), shelf.monitor()
    run = controller(shelf, monitor, cluster)
    for _ in range(7):
        await answer(run, question())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(run.close(), 5)
    assert cluster.cancelled == 4  # those that had been let through
    lost = [entry for entry in shelf.store.log() if entry.kind == "audit_lost"]
    assert {entry.note for entry in lost} == {"closed"}
    health = shelf.store.monitors()[0].health
    assert health.lost + health.audits.labels == 7
    assert health.audits.labels == 0


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(data_class=DataClass.NEVER_LEAVE),
        Constraints(allowed_tiers=frozenset()),
        Constraints(max_remote_calls=0),
    ],
)
async def test_what_may_not_leave_is_never_audited_by_the_cluster(shelf, constraints):
    cluster, monitor = ScriptedCluster(AGREES), shelf.monitor()
    run = controller(shelf, monitor, cluster)
    assert (await answer(run, question(constraints=constraints))).verified
    await monitor.settled()
    assert cluster.requests == []
    health = monitor.kept()[0].health
    assert (health.audits.labels, health.lost, health.accepted.labels) == (0, 0, 1)


async def test_only_accepted_answers_are_audited(shelf):
    cluster, monitor = ScriptedCluster(DISAGREES), shelf.monitor()
    await answer(controller(shelf, monitor, cluster, probability=0.6), question())
    await monitor.settled()
    assert len(cluster.requests) == 1  # the escalation itself
    assert monitor.kept()[0].health.audits.labels == 0


async def test_about_the_share_is_audited_and_a_seed_repeats_the_draw(shelf, tmp_path):
    drawn = []
    for name in ("one", "two"):
        cluster = ScriptedCluster(AGREES)
        monitor = Monitor(
            MonitorStore(tmp_path / name),
            Settings(tier_error=0.0, share=0.3, watch_share=0.3, seed=7),
        )
        run = controller(shelf, monitor, cluster)
        for number in range(60):
            await answer(run, replace(question(), request_id=f"r{number}"))
            await monitor.settled()
        drawn.append([request.request_id for request in cluster.requests])
        (kept,) = monitor.kept()
        assert kept.health.weighted.answers == pytest.approx(len(drawn[-1]) / 0.3)
        await monitor.close()
    assert drawn[0] == drawn[1]
    assert 8 <= len(drawn[0]) <= 30


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (RemoteError("UNAVAILABLE", "gone"), "UNAVAILABLE"),
        (InvalidInput("prompt", "has 'what a day' in it"), "InvalidInput"),
        (None, "INTERNAL"),
    ],
)
async def test_a_failing_cluster_loses_the_audit_and_nothing_else(shelf, problem, why):
    cluster = ScriptedCluster((), problem)
    monitor = shelf.monitor()
    assert (await answer(controller(shelf, monitor, cluster), question())).verified
    await monitor.settled()
    health = monitor.kept()[0].health
    assert (health.lost, health.audits.labels) == (1, 0)
    assert monitor.log()[-1].note == why


async def test_a_tier_that_answers_something_else_labels_nothing(shelf):
    cluster = ScriptedCluster((Accepted("tier1", "large"), Chunk("well …", 1), FINISHED))
    monitor = shelf.monitor()
    await answer(controller(shelf, monitor, cluster), question())
    await monitor.settled()
    assert (monitor.kept()[0].health.lost, monitor.log()[-1].kind) == (1, "audit_lost")


async def demote(shelf, monitor, cluster):
    run = controller(shelf, monitor, cluster)
    for _ in range(60):
        await answer(run, question())
        await monitor.settled()
    return run


async def test_a_policy_that_fails_its_audits_is_demoted_and_then_everything_escalates(shelf):
    cluster, monitor = ScriptedCluster(DISAGREES), shelf.monitor()
    run = await demote(shelf, monitor, cluster)
    result = await answer(run, question())
    assert (result.text, result.source) == ("bad", "tier1")
    assert result.reasons[0] == Reason.POLICY_DEMOTED
    assert result.device_confidence is None
    kinds = [entry.kind for entry in monitor.log() if entry.kind != "audit"]
    assert kinds == ["opened", "watch", "demoted"]
    demoted = next(entry for entry in monitor.log() if entry.kind == "demoted")
    assert demoted.evidence["wealth"] >= demoted.evidence["wealth_to_demote"] == 100
    assert demoted.evidence["errors"] == demoted.evidence["audits"] > 5
    assert demoted.evidence["risk_low"] > demoted.evidence["alpha"] == 0.25
    assert demoted.key.policy == monitor.kept()[0].key.policy


async def test_a_demoted_request_that_may_not_leave_comes_back_unverified(shelf):
    cluster, monitor = ScriptedCluster(DISAGREES), shelf.monitor()
    run = await demote(shelf, monitor, cluster)
    private = question(constraints=Constraints(data_class=DataClass.NEVER_LEAVE))
    result = await answer(run, private)
    assert (result.local, result.verified, result.confidence) == (True, False, None)
    assert result.reasons == (Reason.POLICY_DEMOTED, Reason.NEVER_LEAVE)


async def test_a_demotion_outlives_the_process_and_is_obeyed_without_audits(shelf, tmp_path):
    cluster, monitor = ScriptedCluster(DISAGREES), shelf.monitor()
    await (await demote(shelf, monitor, cluster)).close()
    obeying = Monitor.obeying(tmp_path / "monitor.sqlite")
    cluster = ScriptedCluster(AGREES)
    run = controller(shelf, obeying, cluster)
    result = await answer(run, question())
    assert result.reasons[0] == Reason.POLICY_DEMOTED
    await run.close()
    assert Monitor.obeying(tmp_path / "elsewhere.sqlite") is None


async def test_an_obeying_monitor_writes_nothing(shelf, tmp_path):
    first = shelf.monitor()
    await answer(controller(shelf, first, ScriptedCluster(AGREES)), question())
    await first.settled()
    before = first.log()
    await first.close()
    obeying = Monitor.obeying(tmp_path / "monitor.sqlite")
    run = controller(shelf, obeying, ScriptedCluster(AGREES))
    assert (await answer(run, question())).verified
    await run.close()
    assert shelf.store.log() == before


async def test_a_new_policy_is_recertified_and_the_old_one_stays_demoted(shelf):
    cluster, monitor = ScriptedCluster(DISAGREES), shelf.monitor()
    run = await demote(shelf, monitor, cluster)
    (old,) = monitor.kept()
    shelf.install(policy(0.85))
    cluster.events = AGREES
    result = await answer(run, question())
    assert (result.local, result.reasons) == (True, (Reason.CONFIDENT,))
    await monitor.settled()
    states = {kept.key.policy: kept.health.state for kept in monitor.kept()}
    assert states.pop(old.key.policy) is State.DEMOTED
    assert list(states.values()) == [State.CERTIFIED]
    entry = next(entry for entry in monitor.log() if entry.kind == "recertified")
    assert entry.evidence["replaces"] == old.key.policy
    shelf.install(POLICY)
    assert (await answer(run, question())).reasons[0] == Reason.POLICY_DEMOTED


async def test_changed_scores_raise_a_watch_that_audits_more_and_demotes_nobody(shelf):
    shelf.install(replace(POLICY, scores=ScoreReference.of([0.5 + i / 2000 for i in range(800)])))
    cluster = ScriptedCluster(AGREES)
    monitor = shelf.monitor(share=0.0, watch_share=1.0)
    run = controller(shelf, monitor, cluster, probability=0.95)
    for _ in range(200):
        assert (await answer(run, question())).verified
        await asyncio.sleep(0)
        await monitor.settled()
    (kept,) = monitor.kept()
    kinds = [entry.kind for entry in monitor.log()]
    assert kinds[:2] == ["opened", "watch"]
    assert "demoted" not in kinds
    # So many agreements in a row bound the risk below alpha = .25 and end the watch.
    assert kept.health.audits.labels == len(cluster.requests) > 10
    assert kinds[-1] == "cleared"
    assert kept.health.state is State.CERTIFIED


async def test_scores_of_another_mode_than_the_policys_are_not_compared(shelf):
    shelf.install(replace(POLICY, scores=ScoreReference.of([0.5, 0.6, 0.7])))
    monitor = shelf.monitor()
    run = controller(shelf, monitor, ScriptedCluster(AGREES))
    assert (await answer(run, question(mode="search"))).reasons[0] == Reason.UNCERTIFIED_MODE
    assert monitor.kept() == []
    await answer(run, question())
    assert monitor.kept()[0].health.scores.seen == 1


async def test_feedback_counts_once_for_answers_that_are_remembered(shelf):
    cluster, monitor = ScriptedCluster(AGREES), shelf.monitor(share=0.0, watch_share=0.5)
    run = controller(shelf, monitor, cluster)
    results = [await answer(run, question()) for _ in range(5)]
    monitor.feedback(results[0].request_id, correct=False)
    monitor.feedback(results[1].request_id, correct=True)
    health = monitor.kept()[0].health
    assert (health.accepted.labels, health.accepted.errors, health.confirmed) == (5, 1, 1)
    for unknown in (results[0].request_id, "never-asked"):
        with pytest.raises(NotFound, match="request"):
            monitor.feedback(unknown, correct=False)
    escalated = await answer(controller(shelf, monitor, cluster, probability=0.6), question())
    with pytest.raises(NotFound):
        monitor.feedback(escalated.request_id, correct=False)


async def test_enough_complaints_demote(shelf):
    monitor = shelf.monitor(share=0.0, watch_share=0.5)
    run = controller(shelf, monitor, ScriptedCluster(AGREES))
    for _ in range(60):
        result = await answer(run, question())
        if result.reasons[0] == Reason.POLICY_DEMOTED:
            break
        monitor.feedback(result.request_id, correct=False)
    assert result.reasons[0] == Reason.POLICY_DEMOTED
    assert monitor.log()[-1].note == "users report too many answers as wrong"


async def test_graders_label_what_was_drawn_for_them(shelf):
    monitor = shelf.monitor(ask_tier=False)
    cluster = ScriptedCluster(AGREES)
    private = question(constraints=Constraints(data_class=DataClass.NEVER_LEAVE))
    result = await answer(controller(shelf, monitor, cluster), private)
    assert monitor.to_grade() == [result.request_id]
    monitor.grade(result.request_id, correct=False)
    assert monitor.to_grade() == cluster.requests == []
    assert monitor.kept()[0].health.audits.errors == 1
    assert monitor.log()[-1].note == "grader"
    with pytest.raises(NotFound, match="does not wait"):
        monitor.grade(result.request_id, correct=False)


async def test_labels_of_before_a_reset_do_not_count_behind_it(shelf):
    cluster, monitor = SlowCluster(DISAGREES), shelf.monitor()
    run = controller(shelf, monitor, cluster)
    result = await answer(run, question())
    await asyncio.sleep(0.01)
    reset(shelf.store, monitor.kept()[0], "a test", now=5.0)
    cluster.go.set()
    await monitor.settled()
    monitor.feedback(result.request_id, correct=False)
    health = monitor.kept()[0].health
    assert (health.audits.labels, health.accepted.errors, health.generation) == (0, 0, 1)
    later = await answer(run, question())
    await monitor.settled()
    monitor.feedback(later.request_id, correct=False)
    health = monitor.kept()[0].health
    assert (health.audits.labels, health.accepted.errors) == (1, 1)


async def test_a_file_that_cannot_be_used_costs_no_answer(shelf, tmp_path, caplog):
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"this is not a database at all, and it is long enough to tell" * 40)
    monitor = Monitor(MonitorStore(broken), Settings(tier_error=0.0, share=1.0, watch_share=1.0))
    assert (await answer(controller(shelf, monitor, ScriptedCluster(AGREES)), question())).verified
    await monitor.settled()
    assert "cannot be used" in caplog.text
    with pytest.raises(CascadeError):
        monitor.kept()


async def test_a_policy_without_a_threshold_is_not_monitored(shelf):
    shelf.install(policy(None))
    monitor = shelf.monitor()
    result = await answer(controller(shelf, monitor, ScriptedCluster()), question())
    assert result.reasons[0] == Reason.TARGET_INFEASIBLE
    assert monitor.kept() == []


async def test_a_tier_too_poor_to_audit_by_is_refused(shelf):
    monitor = shelf.monitor(tier_error=0.8)
    with pytest.raises(InvalidInput, match="tier_error"):
        await answer(controller(shelf, monitor, ScriptedCluster()), question())


@pytest.mark.parametrize(
    "changes",
    [{"share": -0.1}, {"share": 0.5, "watch_share": 0.2}, {"tier_error": 1.0}],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(InvalidInput, match=list(changes)[-1]):
        Settings(**{"tier_error": 0.0, **changes})

"""Given a device and a cluster that behave in a scripted way, the controller keeps its promises."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cascade.controller import Controller
from cascade.errors import DeadlineExceeded, InvalidInput, RemoteError
from cascade.events import Final, Superseded, Token
from cascade.local import CancelToken, LocalAnswer, ModelInfo
from cascade.policy import Reason
from cascade.remote import Accepted, Chunk
from cascade.request import Constraints, DataClass, Message, Request
from cascade.sampling import Sampling
from cascade.signals import OptionScores, ScoreBounds
from cascade.task import OUT_OF_SCOPE
from cascade.tensor import Tensor, pack
from tests.cascade.scripted import (
    FINISHED,
    INFO,
    SIGNALS,
    TASK,
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


async def test_the_policy_fixes_how_the_options_are_scored(policies):
    model = ScriptedModel(0.9)
    result = await answer(Controller(model, None, policies), question())
    assert model.modes == ["exact"]
    assert result.bounds == ScoreBounds("exact", 0.9, 0.9, 0.0, 0, 0)


async def test_a_policy_fitted_to_searched_scores_judges_those(tmp_path):
    store = shelf(tmp_path, policy(0.8, "search_bound"))
    model = ScriptedModel(0.9)
    result = await answer(Controller(model, None, store), question())
    assert model.modes == ["search"]
    assert (result.verified, result.reasons) == (True, (Reason.CONFIDENT,))
    assert result.bounds.mode == "search"


async def test_a_score_of_the_other_mode_is_not_passed_off_as_a_confidence(policies):
    cluster = ScriptedCluster()
    model = ScriptedModel(0.9)
    result = await answer(Controller(model, cluster, policies), question(mode="search"))
    assert model.modes == ["search"]
    assert result.reasons[0] == Reason.UNCERTIFIED_MODE
    assert result.device_confidence is None
    assert cluster.reports[0].confidence is None
    offline = await answer(Controller(ScriptedModel(0.9), None, policies), question(mode="search"))
    assert (offline.confidence, offline.verified) == (None, False)


async def test_an_adapter_that_was_swapped_in_meanwhile_is_not_certified(policies):
    cluster = ScriptedCluster()
    model = ScriptedModel(0.9, adapter_digest="5" * 64)
    result = await answer(Controller(model, cluster, policies), question())
    assert result.reasons[0] == Reason.UNCERTIFIED_TASK
    assert (result.device_confidence, result.source) == (None, "tier1")
    assert cluster.reports[0].adapter_digest == "5" * 64


async def test_without_a_policy_the_model_chooses_how_to_score():
    model = ScriptedModel(0.9, own_mode="search")
    result = await answer(Controller(model, None), question())
    assert model.modes == [None]
    assert result.bounds.mode == "search"


async def test_an_unknown_mode_is_refused(policies):
    with pytest.raises(InvalidInput, match="mode: 'guess' is not known"):
        await answer(Controller(ScriptedModel(0.9), None, policies), question(mode="guess"))


async def test_a_confident_answer_stays_on_the_device(policies):
    cluster = ScriptedCluster()
    result = await answer(Controller(ScriptedModel(0.9), cluster, policies), question())
    assert (result.text, result.source, result.verified) == ("good", "device", True)
    assert result.confidence == pytest.approx(0.9)
    assert result.reasons == (Reason.CONFIDENT,)
    assert cluster.requests == []
    assert result.bytes_up == 0


async def test_an_answer_that_says_out_of_scope_escalates_however_sure_it_is(tmp_path):
    store = shelf(tmp_path, replace(policy(0.8), task=replace(TASK, outside="good")))
    cluster, told = ScriptedCluster(), []
    controller = Controller(ScriptedModel(0.99), cluster, store, on_decision=told.append)
    result = await answer(controller, question())
    assert result.source == "tier1"
    assert result.reasons[:2] == (Reason.CONFIDENT, OUT_OF_SCOPE)
    assert told[0].vetoes == (OUT_OF_SCOPE,)


async def test_what_the_device_kept_is_told_once_with_the_tasks_next_request(policies):
    cluster, model = ScriptedCluster(), ScriptedModel(0.9)
    controller = Controller(model, cluster, policies)
    for _ in range(3):
        assert (await answer(controller, question())).source == "device"
    await answer(controller, question(task_id=""))  # another task's business
    model.probability = 0.6
    cluster.events, cluster.problem = (), RemoteError("UNAVAILABLE", "gone")
    await answer(controller, question())  # it did not get through
    cluster.events, cluster.problem = ScriptedCluster().events, None
    await answer(controller, question())
    await answer(controller, question())
    assert [report.kept for report in cluster.reports] == [0, 3, 3, 0]


async def test_an_unsure_answer_escalates_in_the_words_for_larger_models(policies):
    cluster, model = ScriptedCluster(), ScriptedModel(0.6)
    result = await answer(Controller(model, cluster, policies), question())
    assert (result.text, result.source, result.model) == ("bad", "tier1", "large")
    assert result.reasons == (Reason.UNSURE, "lowest_tier")
    assert result.confidence is None
    assert result.device_confidence == pytest.approx(0.6)
    assert result.bytes_up == 100
    assert model.prompts == ["Review: what a day\nMood:"]
    assert cluster.requests[0].messages == (Message("user", "Good or bad? what a day"),)
    assert cluster.reports[0].confidence == pytest.approx(0.6)
    assert cluster.reports[0].base_digest == INFO.base_digest


async def test_without_a_policy_there_is_no_confidence_and_the_request_escalates():
    cluster = ScriptedCluster()
    result = await answer(Controller(ScriptedModel(0.99), cluster), question(task_id=""))
    assert result.source == "tier1"
    assert result.reasons[0] == Reason.UNCERTIFIED_TASK
    assert result.device_confidence is None
    assert result.raw_score == pytest.approx(0.99)


async def test_other_options_than_the_certified_ones_are_uncertified(policies):
    controller = Controller(ScriptedModel(0.99), None, policies)
    result = await answer(controller, question(options=("good", "ugly")))
    assert result.reasons == (Reason.UNCERTIFIED_TASK, Reason.NO_CLUSTER)
    assert not result.verified


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        (Constraints(data_class=DataClass.NEVER_LEAVE), Reason.NEVER_LEAVE),
        (Constraints(allowed_tiers=frozenset()), Reason.NO_TIER_ALLOWED),
        (Constraints(max_remote_calls=0), Reason.NO_TIER_ALLOWED),
    ],
)
async def test_a_request_that_may_not_leave_comes_back_unverified(policies, constraints, reason):
    cluster = ScriptedCluster()
    controller = Controller(ScriptedModel(0.6), cluster, policies)
    result = await answer(controller, question(constraints=constraints))
    assert result.local
    assert not result.verified
    assert result.reasons == (Reason.UNSURE, reason)
    assert cluster.requests == []


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED"])
async def test_a_failing_cluster_leaves_the_local_answer_unverified(policies, status):
    cluster = ScriptedCluster(events=(), problem=RemoteError(status, "no luck"))
    result = await answer(Controller(ScriptedModel(0.6), cluster, policies), question())
    assert (result.text, result.source, result.verified) == ("good", "device", False)
    assert result.reasons == (Reason.UNSURE, Reason.REMOTE_FAILED)
    assert (result.remote_status, result.remote_error) == (status, "no luck")


async def test_a_cluster_that_breaks_midway_is_superseded_by_the_local_answer(policies):
    cluster = ScriptedCluster(
        events=(Accepted("tier1", "large"), Chunk("ba", 1)),
        problem=RemoteError("UNAVAILABLE", "gone"),
    )
    events = await gather(Controller(ScriptedModel(0.6), cluster, policies), question())
    assert events[:-1] == [
        Token("ba", "tier1", provisional=False),
        Superseded("device"),
        Token("good", "device", provisional=False),
    ]


async def test_provisional_text_streams_at_once_and_is_superseded():
    cluster = ScriptedCluster()
    request = Request((Message("user", "why?"),))
    events = await gather(Controller(ScriptedModel(), cluster), request, show="provisional")
    assert events[:-1] == [
        Token("a b", "device", provisional=True),
        Token(" c", "device", provisional=True),
        Superseded("tier1"),
        Token("bad", "tier1", provisional=False),
    ]


async def test_provisional_text_is_not_repeated_when_it_is_kept():
    request = Request((Message("user", "why?"),))
    events = await gather(Controller(ScriptedModel(), None), request, show="provisional")
    assert [e.text for e in events if isinstance(e, Token)] == ["a b", " c"]


@pytest.mark.parametrize("cluster", [None, ScriptedCluster()])
async def test_local_text_streams_as_final_where_nothing_can_take_its_place(cluster):
    here = Constraints(data_class=DataClass.NEVER_LEAVE)
    request = Request((Message("user", "why?"),), constraints=here)
    events = await gather(Controller(ScriptedModel(), cluster), request)
    assert events[:-1] == [
        Token("a b", "device", provisional=False),
        Token(" c", "device", provisional=False),
    ]


async def test_a_deadline_spent_in_the_cloud_alone_is_a_deadline():
    cluster = ScriptedCluster(events=(), problem=RemoteError("DEADLINE_EXCEEDED", "too late"))
    request = Request((Message("user", "why?"),), prefer="cloud", constraints=Constraints(3.0))
    with pytest.raises(DeadlineExceeded, match="deadline of 3 s"):
        await answer(Controller(ScriptedModel(), cluster), request)


async def test_local_text_is_held_back_by_default():
    events = await gather(
        Controller(ScriptedModel(), ScriptedCluster()), Request((Message("user", "why?"),))
    )
    assert [e.source for e in events if isinstance(e, Token)] == ["tier1"]


async def test_a_second_accepted_supersedes_the_first_tier():
    cluster = ScriptedCluster(
        events=(
            Accepted("tier1", "m"),
            Chunk("x", 1),
            Accepted("tier2", "l"),
            Chunk("y", 1),
            replace(FINISHED, tier="tier2"),
        ),
    )
    events = await gather(Controller(None, cluster), question())
    assert Superseded("tier2") in events
    assert isinstance(events[-1], Final)
    assert events[-1].answer.text == "y"


async def test_the_remote_deadline_leaves_time_to_fall_back(policies):
    cluster = ScriptedCluster()
    controller = Controller(ScriptedModel(0.6, pause_s=0.2), cluster, policies)
    await answer(controller, question(constraints=Constraints(deadline_s=5.0)))
    assert 4.0 < cluster.deadlines[0] < 4.8


async def test_a_deadline_before_any_answer_stops_the_decode():
    model = ScriptedModel(pause_s=30)
    request = question(constraints=Constraints(deadline_s=0.1))
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        await answer(Controller(model, ScriptedCluster()), request)
    assert model.ended.is_set()


async def test_closing_the_events_stops_the_local_decode():
    model = ScriptedModel(pause_s=30)
    events = Controller(model, None).run(question())
    task = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await events.aclose()
    assert model.ended.is_set()


async def test_closing_the_events_cancels_the_remote_call():
    cluster = ScriptedCluster()
    events = Controller(None, cluster).run(question())
    assert isinstance(await anext(events), Token)
    await events.aclose()
    assert cluster.closed_early


async def test_a_prompt_too_long_for_the_device_goes_to_the_cluster():
    model = ScriptedModel(problem=InvalidInput("prompt", "has 9000 tokens"))
    result = await answer(Controller(model, ScriptedCluster()), question())
    assert result.source == "tier1"
    assert result.reasons[0] == Reason.LOCAL_FAILED


async def test_a_prompt_too_long_for_the_device_is_refused_offline():
    model = ScriptedModel(problem=InvalidInput("prompt", "has 9000 tokens"))
    with pytest.raises(InvalidInput, match="9000 tokens"):
        await answer(Controller(model, None), question())


async def test_a_cluster_without_a_device_reports_its_own_failure():
    cluster = ScriptedCluster(events=(), problem=RemoteError("UNAVAILABLE", "gone"))
    with pytest.raises(RemoteError, match="gone"):
        await answer(Controller(None, cluster), question())


@dataclass
class ScriptedClassifier:
    """A device that classifies everything as "good", with a given probability."""

    probability: float = 0.9
    problem: Exception | None = None

    @property
    def info(self) -> ModelInfo:
        return INFO

    @property
    def labels(self) -> tuple[str, ...]:
        return TASK.options

    def classify(
        self,
        tensors: Sequence[Tensor],
        *,
        options: tuple[str, ...] = (),
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        if self.problem:
            raise self.problem
        share = [self.probability if o == "good" else 1 - self.probability for o in options]
        scores = OptionScores(options, np.log(share), np.zeros(2), np.array(share))
        return LocalAnswer("good", SIGNALS, scores, 0, 1, 0.001, 0.002, "stop")


READINGS = Request(
    (), options=TASK.options, task_id="mood", tensors=pack({"x": np.zeros(3, np.float32)})
)


async def test_a_sure_classification_is_kept_and_an_unsure_one_escalates_as_it_is(policies):
    cluster = ScriptedCluster()
    kept = await answer(Controller(ScriptedClassifier(0.95), cluster, policies), READINGS)
    assert (kept.text, kept.source, kept.verified) == ("good", "device", True)
    assert kept.reasons == (Reason.CONFIDENT,)
    assert kept.confidence == pytest.approx(0.95)
    assert cluster.requests == []
    left = await answer(Controller(ScriptedClassifier(0.6), cluster, policies), READINGS)
    assert (left.text, left.source) == ("bad", "tier1")
    (asked,) = cluster.requests
    assert (asked.tensors, asked.messages, asked.options) == (READINGS.tensors, (), TASK.options)


async def test_tensors_that_may_not_leave_stay(policies):
    cluster = ScriptedCluster()
    controller = Controller(ScriptedClassifier(0.6), cluster, policies)
    private = replace(READINGS, constraints=Constraints(data_class=DataClass.NEVER_LEAVE))
    result = await answer(controller, private)
    assert result.reasons == (Reason.UNSURE, Reason.NEVER_LEAVE)
    assert cluster.requests == []


async def test_what_the_device_cannot_read_at_all_goes_to_the_cluster():
    for model, request in ((ScriptedModel(), READINGS), (ScriptedClassifier(), question())):
        cluster = ScriptedCluster()
        result = await answer(Controller(model, cluster), request)
        assert (result.source, result.reasons[0]) == ("tier1", Reason.LOCAL_FAILED)
        with pytest.raises(InvalidInput, match="alone"):
            await answer(Controller(model, None), request)


async def test_a_wrong_tensor_is_refused_and_not_sent():
    cluster = ScriptedCluster()
    model = ScriptedClassifier(problem=InvalidInput("tensors.x", "has the shape [3]"))
    with pytest.raises(InvalidInput, match=r"tensors\.x: has the shape"):
        await answer(Controller(model, cluster), READINGS)
    assert cluster.requests == []


async def test_an_infeasible_target_escalates_everything(tmp_path):
    store = shelf(tmp_path, policy(None))
    result = await answer(Controller(ScriptedModel(0.99), ScriptedCluster(), store), question())
    assert result.reasons[0] == Reason.TARGET_INFEASIBLE
    assert result.source == "tier1"


async def test_what_the_answer_must_look_like_reaches_both_and_a_refusal_leaves_the_local_one():
    model = ScriptedModel()
    cluster = ScriptedCluster(events=(), problem=RemoteError("INVALID_ARGUMENT", "regex: no"))
    form = {"regex": "a b c", "sampling": Sampling(0.7, seed=3)}
    result = await answer(Controller(model, cluster), question(options=(), task_id="", **form))
    assert model.forms == [(form["sampling"], None, form["regex"])]
    assert cluster.requests[0].regex == form["regex"]
    assert cluster.requests[0].sampling == form["sampling"]
    assert (result.text, result.verified, result.finish) == ("a b c", False, "stop")
    assert result.remote_status == "INVALID_ARGUMENT"


async def test_an_answer_that_was_cut_off_says_so():
    free = question(options=(), task_id="")
    assert (await answer(Controller(ScriptedModel(finish="length"), None), free)).finish == "length"
    cut = replace(FINISHED, reason="length")
    cluster = ScriptedCluster(events=(Accepted("tier1", "large"), Chunk("bad", 1), cut))
    assert (await answer(Controller(ScriptedModel(), cluster), free)).finish == "length"

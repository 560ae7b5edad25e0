"""The SDK's face: plain and async, offline, streaming, and tidy when it is left early."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from cascade import testing
from cascade.errors import InvalidInput, NotFound, UnknownPublisher
from cascade.policy import PolicyStore, Reason
from cascade.request import Constraints
from cascade.signing import TrustStore
from edge import AsyncDevice, Device, Final, Monitor, Token


@pytest.fixture(scope="module")
def device(bundle, trust):
    with Device.open(bundle.path, trust=trust) as device:
        yield device


def test_an_offline_answer_is_unverified_and_says_why(device):
    answer = device.choose("I love it.", ["positive", "negative"])
    assert answer.text in ("positive", "negative")
    assert answer.local
    assert not answer.verified
    assert answer.confidence is None
    assert 0.5 <= answer.raw_score <= 1
    assert answer.reasons == (Reason.UNCERTIFIED_TASK, Reason.NO_CLUSTER)


def test_asking_streams_and_ends_with_one_final(device):
    events = list(device.ask("Say hello.", max_tokens=8))
    *tokens, final = events
    assert isinstance(final, Final)
    assert len(tokens) > 1
    assert all(isinstance(event, Token) and not event.provisional for event in tokens)
    assert "".join(event.text for event in tokens) == final.answer.text
    assert final.answer.tokens_per_second > 0


def test_leaving_the_loop_stops_the_answer(device):
    started = time.perf_counter()
    for event in device.ask("Count to one thousand.", max_tokens=2000, show="provisional"):
        assert isinstance(event, Token)
        break
    assert device.choose("fine", ["positive", "negative"]).text
    assert time.perf_counter() - started < 30


def test_threads_may_share_a_device(device):
    answers = []
    threads = [
        threading.Thread(
            target=lambda text=text: answers.append(
                (text, device.choose(text, ["positive", "negative"]).text)
            )
        )
        for text in ["I love it.", "I hate it."] * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    assert len(set(answers)) == 2  # the same text has the same answer, whoever asks


async def test_the_async_device_gives_the_same_answer(bundle, trust, device):
    async with AsyncDevice.open(bundle.path, trust=trust) as other:
        answer = await other.choose("I love it.", ["positive", "negative"])
    assert answer.text == device.choose("I love it.", ["positive", "negative"]).text


def test_no_options_are_refused(device):
    with pytest.raises(InvalidInput, match="options"):
        device.choose("I love it.", [])


def test_an_empty_question_is_refused(device):
    with pytest.raises(InvalidInput, match="prompt: is empty"):
        list(device.ask("  "))


def test_asking_for_the_cluster_without_one_is_refused(device):
    with pytest.raises(InvalidInput, match="prefer: is cloud, but no cluster"):
        list(device.ask("Hello?", prefer="cloud"))


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
def test_an_impossible_deadline_is_refused(device, deadline_s):
    with pytest.raises(InvalidInput, match="deadline_s"):
        list(device.ask("Hello?", constraints=Constraints(deadline_s=deadline_s)))


def test_a_bundle_that_is_not_there_is_named(tmp_path, trust):
    with pytest.raises(NotFound, match="no-such-bundle"):
        Device.open(tmp_path / "no-such-bundle", trust=trust)


def test_a_bundle_of_a_stranger_is_refused(bundle, tmp_path):
    with pytest.raises(UnknownPublisher):
        Device.open(bundle.path, trust=TrustStore(tmp_path))


def test_closing_twice_is_fine(bundle, trust, tmp_path):
    device = Device.open(bundle.path, trust=trust, policies=PolicyStore(tmp_path, trust))
    device.close()
    device.close()


def test_feedback_reaches_the_monitor_and_is_refused_without_one(device, tiny, tmp_path):
    with pytest.raises(NotFound, match="has no monitor"):
        device.feedback("some-request", correct=True)
    policies = PolicyStore(tmp_path / "policies", tiny.trust)
    own = dataclasses.replace(tiny, policies=policies)
    own.install_policy("topics", ("good", "bad"), threshold=0.0)
    monitor = Monitor.open(tmp_path / "monitor.sqlite", tier_error=0.0)
    with Device.open(tiny.path, trust=tiny.trust, policies=policies, monitor=monitor) as watched:
        answer = watched.choose("What a day.", ["good", "bad"], task="topics")
        assert answer.verified
        watched.feedback(answer.request_id, correct=False)
        (kept,) = monitor.kept()
        with pytest.raises(NotFound, match="reported already"):
            watched.feedback(answer.request_id, correct=False)
    assert (kept.health.accepted.labels, kept.health.accepted.errors) == (1, 1)


def test_a_grader_of_the_app_judges_what_was_drawn_for_it(device, tiny, tmp_path):
    for call in (device.to_grade, device.audited, lambda: device.grade("some", correct=True)):
        with pytest.raises(NotFound, match="has no monitor"):
            call()
    policies = PolicyStore(tmp_path / "policies", tiny.trust)
    own = dataclasses.replace(tiny, policies=policies)
    own.install_policy("topics", ("good", "bad"), threshold=0.0)
    monitor = Monitor.open(tmp_path / "monitor.sqlite", tier_error=0.0, share=1, ask_tier=False)
    with Device.open(tiny.path, trust=tiny.trust, policies=policies, monitor=monitor) as watched:
        answer = watched.choose("What a day.", ["good", "bad"], task="topics")
        assert watched.to_grade() == [answer.request_id]
        watched.grade(answer.request_id, correct=False)
        assert watched.to_grade() == []
        with pytest.raises(NotFound, match="does not wait"):
            watched.grade(answer.request_id, correct=False)
        watched.audited()
        (kept,) = monitor.kept()
    assert (kept.health.audits.labels, kept.health.audits.errors) == (1, 1)


def test_an_audit_has_begun_when_the_answer_is_there_and_can_be_waited_for(tiny, tmp_path):
    policies = PolicyStore(tmp_path / "policies", tiny.trust)
    own = dataclasses.replace(tiny, policies=policies)
    own.install_policy("topics", ("good", "bad"), threshold=0.0)
    monitor = Monitor.open(tmp_path / "monitor.sqlite", tier_error=0.0, share=1)
    with (
        testing.cluster({"tier1": testing.Script("good")}) as cluster,
        Device.open(
            tiny.path, trust=tiny.trust, policies=policies, cloud=cluster.profile, monitor=monitor
        ) as watched,
    ):
        for _ in range(5):
            watched.choose("What a day.", ["good", "bad"], task="topics")
            watched.audited()
        (kept,) = monitor.kept()
    assert (kept.health.audits.labels, kept.health.lost) == (5, 0)

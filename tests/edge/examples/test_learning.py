"""What a device keeps of its answers, on a real model and a real cluster in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from cascade import testing
from cascade.errors import InvalidInput, NotFound
from cascade.policy import PolicyStore
from cascade.privacy import PiiSpan, Privacy
from cascade.request import Constraints, DataClass, Message
from cascade.testing import Fault, Script
from edge import AsyncDevice, Consent, Device, Final, Learning, Monitor
from edge.examples import AesGcm, DamagedStore, ExampleStore, Source
from tests.edge.examples.test_store import bytes_of, damage_pages

OPTIONS = ["good", "bad"]
LOCAL = Constraints(max_remote_calls=0)


@pytest.fixture(scope="module")
def cluster():
    with testing.cluster({"tier1": Script("bad")}) as cluster:
        yield cluster


@pytest.fixture
def path(tmp_path):
    return tmp_path / "examples.sqlite3"


@pytest.fixture
def learning(path):
    return Learning.open(path)


@pytest.fixture
def device(tiny, cluster, learning):
    with Device.open(
        tiny.path, trust=tiny.trust, policies=tiny.policies, cloud=cluster.profile, learn=learning
    ) as device:
        yield device


@pytest.fixture
def monitored(tiny, learning, tmp_path):
    """A device that keeps its answers to a task, with the monitor that hears of them."""
    policies = PolicyStore(tmp_path / "policies", tiny.trust)
    dataclasses.replace(tiny, policies=policies).install_policy(
        "topics", ("good", "bad"), threshold=0.0
    )
    monitor = Monitor.open(tmp_path / "monitor.sqlite", tier_error=0.0, share=1, ask_tier=False)
    with Device.open(
        tiny.path, trust=tiny.trust, policies=policies, monitor=monitor, learn=learning
    ) as device:
        yield device, monitor


def kept(learning):
    learning.settled()
    return learning.store.examples()


def test_without_opting_in_nothing_is_kept(tiny, cluster, empty_home):
    with Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile) as device:
        assert device.choose("What a day.", OPTIONS).source == "tier1"
        with pytest.raises(InvalidInput, match="to learn from; open"):
            device.feedback("some", correct=False, correction="good")
    assert not list(empty_home.rglob("examples*"))


def test_an_escalated_request_leaves_an_example(device, learning):
    answer = device.choose("What a day.", OPTIONS, task="topics")
    assert answer.source == "tier1"
    (example,) = kept(learning)
    assert example.request_id == answer.request_id
    assert example.messages == (Message("user", "What a day."),)
    assert (example.answer, example.source, example.tier) == ("bad", Source.CLOUD, "tier1")
    assert (example.task_id, example.options) == ("topics", ("good", "bad"))
    assert example.data_class is DataClass.PERSONAL
    assert example.device_answer in OPTIONS
    assert sum(example.probabilities) == pytest.approx(1)
    best = OPTIONS[max(range(2), key=lambda place: example.probabilities[place])]
    assert best == example.device_answer


@pytest.mark.parametrize(
    ("constraints", "why"),
    [
        (Constraints(never_train=True), "never_train"),
        (Constraints(data_class=DataClass.PUBLIC), "data_class"),
        (Constraints(data_class=DataClass.NEVER_LEAVE), "data_class"),
    ],
)
def test_nothing_of_what_is_never_trained_on_is_written(tiny, cluster, path, constraints, why):
    terms = Consent.to(never_train=[DataClass.PUBLIC, DataClass.NEVER_LEAVE])
    learning = Learning.open(path, consent=terms)
    with Device.open(
        tiny.path, trust=tiny.trust, policies=tiny.policies, cloud=cluster.profile, learn=learning
    ) as device:
        device.choose("Nobody may know.", OPTIONS, constraints=constraints)
        device.choose("Anybody may.", OPTIONS)
        (example,) = kept(learning)
        assert example.messages[0].content == "Anybody may."
        assert learning.lost == {why: 1}
        assert b"Nobody may know" not in bytes_of(learning.store)


class FindsNames:
    """Takes the word Ada for a name."""

    def find(self, text):
        start = text.find("Ada")
        return [PiiSpan(start, start + 3, "PERSON", 1.0)] if start >= 0 else []


def test_nothing_is_kept_of_personal_data_that_may_not_leave(tiny, path):
    privacy = Privacy(FindsNames(), never_leave=frozenset({"PERSON"}))
    learning = Learning.open(path, privacy=privacy)
    with Device.open(tiny.path, trust=tiny.trust, policies=tiny.policies, learn=learning) as device:
        device.choose("Ada is unwell.", OPTIONS)
        device.choose("It rains.", OPTIONS)
        assert [each.messages[0].content for each in kept(learning)] == ["It rains."]
        assert learning.lost == {"never_train": 1}


def test_the_devices_own_answer_waits_for_a_word_also_after_a_restart(tiny, path):
    def opened():
        return Device.open(
            tiny.path, trust=tiny.trust, policies=tiny.policies, learn=Learning.open(path)
        )

    with opened() as device:
        answers = [device.choose(f"Day {n}.", OPTIONS) for n in range(3)]
        device.feedback(answers[0], correct=True)
    with opened() as device:
        device.feedback(answers[1].request_id, correct=False, correction="bad")
        with pytest.raises(InvalidInput, match="none of the options"):
            device.feedback(answers[2], correct=False, correction="ugly")
        with pytest.raises(InvalidInput, match="correction: is not valid Unicode"):
            device.feedback(answers[2], correct=False, correction="\udcff")
        with pytest.raises(NotFound, match="nothing is kept of request"):
            device.feedback("another", correct=True)
    with ExampleStore(path) as store:
        found = {each.request_id: each for each in store.examples()}
    assert [found[each.request_id].source for each in answers] == [
        Source.CONFIRMATION,
        Source.CORRECTION,
        Source.DEVICE,
    ]
    assert found[answers[1].request_id].answer == "bad"


def test_the_monitor_and_the_store_both_hear_a_user(monitored, learning):
    device, monitor = monitored
    first, second = (device.choose(text, OPTIONS, task="topics") for text in ("One.", "Two."))
    device.feedback(first, correct=False)
    device.grade(second.request_id, correct=True)
    device.feedback(first, correct=False, correction="bad")  # the monitor heard it already
    (state,) = monitor.kept()
    assert (state.health.accepted.labels, state.health.accepted.errors) == (2, 1)
    found = {each.request_id: each.source for each in kept(learning)}
    assert found == {first.request_id: Source.CORRECTION, second.request_id: Source.CONFIRMATION}


def test_the_monitor_hears_a_user_also_where_the_store_is_damaged(monitored, learning, path):
    device, monitor = monitored
    first, second = (device.choose(text, OPTIONS, task="topics") for text in ("One.", "Two."))
    learning.settled()
    with pytest.raises(InvalidInput, match="none of the options"):
        device.feedback(first, correct=False, correction="ugly")  # to be called again
    learning.store.close()
    damage_pages(path)
    with pytest.raises(DamagedStore):
        device.feedback(first, correct=False)
    with pytest.raises(DamagedStore):
        device.grade(second.request_id, correct=False)
    (state,) = monitor.kept()
    assert (state.health.accepted.labels, state.health.accepted.errors) == (2, 1)
    assert second.request_id not in device.to_grade()


async def test_free_text_is_kept_with_its_conversation(tiny, cluster, path):
    learning = Learning.open(path, cipher=AesGcm(bytes(32)))
    async with AsyncDevice.open(
        tiny.path, trust=tiny.trust, policies=tiny.policies, cloud=cluster.profile, learn=learning
    ) as device:
        turns = (Message("system", "Be brief."), Message("user", "How was the day?"))
        events = [event async for event in device.ask(turns, max_tokens=4)]
        assert isinstance(events[-1], Final)
        (example,) = await asyncio.to_thread(kept, learning)
        assert example.messages == turns
        assert (example.answer, example.options, example.probabilities) == ("bad", (), ())
        assert b"How was the day" not in bytes_of(learning.store)


def test_an_answer_outside_of_the_set_or_cut_off_is_not_kept(tiny, path):
    with testing.cluster({"tier1": Script("neither")}) as cluster:
        learning = Learning.open(path)
        with Device.open(
            tiny.path,
            trust=tiny.trust,
            policies=tiny.policies,
            cloud=cluster.profile,
            learn=learning,
        ) as device:
            device.choose("What a day.", OPTIONS)
            assert all(each.source is not Source.CLOUD for each in kept(learning))
            cluster.play("tier1", Script("bad", fault=Fault("UNAVAILABLE", after=0)))
            answer = device.choose("And the night?", OPTIONS)
            assert answer.source == "device"
            assert [each.source for each in kept(learning)] == [Source.DEVICE]


def test_a_store_that_breaks_costs_no_answer(device, learning, path, caplog):
    device.choose("One.", OPTIONS)
    learning.settled()
    learning.store.close()
    damage_pages(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert device.choose("Two secrets.", OPTIONS).text == "bad"
        learning.settled()
    assert learning.lost == {"store": 3}
    (record,) = [each for each in caplog.records if "examples" in each.getMessage()]
    assert "is damaged" in record.getMessage()
    assert "secrets" not in caplog.text


@pytest.mark.parametrize("damage", ["garbage", "pages", "a name in the schema", "terms"])
def test_a_broken_store_does_not_keep_a_device_from_opening(tiny, path, caplog, damage):
    Learning.open(path).close()
    data = path.read_bytes()
    damaged = {
        "garbage": b"no database at all" * 1000,
        "pages": data[:4096] + b"\xff" * (len(data) - 4096),
        "a name in the schema": data.replace(b"TABLE retention", b"TABLE r\xdatention"),
        "terms": data.replace(b'"never_train"', b'"never_tra\xdan"'),
    }[damage]
    assert damaged != data
    path.write_bytes(damaged)
    learning = Learning.open(path)
    assert ("is no store" if damage == "garbage" else "is damaged") in caplog.text
    with Device.open(tiny.path, trust=tiny.trust, policies=tiny.policies, learn=learning) as device:
        assert device.choose("One.", OPTIONS).text in OPTIONS


def test_another_key_is_refused_when_the_device_is_opened(path):
    Learning.open(path, cipher=AesGcm(bytes(32))).close()
    with pytest.raises(InvalidInput, match="aes-256-gcm"):
        Learning.open(path)


async def test_an_answer_that_comes_after_the_end_is_no_error(tiny, path):
    learning = Learning.open(path)
    async with AsyncDevice.open(
        tiny.path, trust=tiny.trust, policies=tiny.policies, learn=learning
    ) as device:
        learning.close()
        answer = await device.choose("Late.", OPTIONS)
        with pytest.raises(InvalidInput, match="is closed"):
            await device.feedback(answer, correct=True)
    assert learning.lost == {"closed": 1}


def test_consent_that_was_withdrawn_stands(tiny, path, caplog):
    first = Learning.open(path)
    first.store.withdraw()
    first.close()
    learning = Learning.open(path)
    assert "consent was withdrawn" in caplog.text
    with Device.open(tiny.path, trust=tiny.trust, policies=tiny.policies, learn=learning) as device:
        device.choose("One.", OPTIONS)
        assert kept(learning) == []
        assert learning.lost == {"no_consent": 1}

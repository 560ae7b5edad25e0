"""Given a device that may stop writing, the controller escalates, and finishes where it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cascade.controller import Controller
from cascade.early_stop import Checkpoint, EarlyStop, TokenLists
from cascade.errors import RemoteError
from cascade.events import Event, Final, Superseded, Token
from cascade.local import CancelToken, LocalAnswer, ModelInfo, Prompt, TokenSignals
from cascade.policy import PolicyStore, Reason
from cascade.records.outcome import kept
from cascade.request import Constraints, DataClass, Message, Request
from cascade.sampling import GREEDY, Sampling
from cascade.signals import Signals
from cascade.signing import SigningKey, TrustStore
from cascade.task import free
from cascade.testing import TinyBundle
from edge import OnnxModel
from tests.cascade.test_controller import INFO, ScriptedCluster, gather, policy


@dataclass(frozen=True)
class Step:
    logprob: float
    entropy: float
    margin: float


@dataclass
class Writer:
    """A device that writes ten words, as sure of each as it is told to be."""

    logprob: float = -2.0
    decodes: int = 0
    prompts: list[Prompt] = field(default_factory=list)
    slow_from: int = 99

    @property
    def info(self) -> ModelInfo:
        return INFO

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = GREEDY,
        json_schema: str | None = None,
        regex: str | None = None,
        on_text: Callable[[str], bool | None] | None = None,
        on_token: Callable[[TokenSignals], bool | None] | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        import time

        self.decodes += 1
        words: list[str] = []
        finish = "stop"
        for word in range(10):
            while self.decodes >= self.slow_from and not (cancel and cancel.cancelled):
                time.sleep(0.005)
            if cancel and cancel.cancelled:
                finish = "cancelled"
                break
            words.append(f"w{word} ")
            stopped = on_token(Step(self.logprob, 1.0, 0.5)) if on_token else False
            if on_text:
                on_text(words[-1])
            if stopped:
                finish = "callback"
                break
        values = np.full(len(words), self.logprob, np.float32)
        signals = Signals(values, -values, np.full(len(words), 0.5, np.float32))
        return LocalAnswer("".join(words), signals, None, 5, len(words), 0.01, 0.02, finish)

    def choose(self, *args: object, **kwargs: object) -> LocalAnswer:
        raise AssertionError("nobody asks for a closed set here")


RULE = EarlyStop(
    0.5,
    None,
    (Checkpoint(3, (1.0, *[0.0] * 11), 0.0, 6.5),),
    cutoff=-1.0,
    certificate=policy(0.5).certificate,
)


@pytest.fixture
def policies(tmp_path) -> PolicyStore:
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    store = PolicyStore(tmp_path / "policies", trust)
    store.install(replace(policy(0.5), task=free("talk"), early_stop=RULE), key)
    return store


def question(**constraints: object) -> Request:
    return Request(
        (Message("user", "what a day"),),
        task_id="talk",
        max_tokens=48,
        constraints=Constraints(**constraints),
    )


def final(events: list[Event]):
    assert isinstance(events[-1], Final)
    return events[-1].answer


async def test_a_hopeless_answer_is_stopped_and_escalated(policies) -> None:
    device, cluster = Writer(), ScriptedCluster()
    answer = final(await gather(Controller(device, cluster, policies), question()))
    assert (answer.source, answer.text) == ("tier1", "bad")
    assert answer.reasons[0] == Reason.STOPPED_EARLY
    assert answer.local_tokens == 3
    assert answer.local_tokens_saved == 6.5
    # What was measured of a part is nobody's score or confidence.
    assert (answer.raw_score, answer.device_confidence) == (None, None)


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
        answer = final(await gather(Controller(device, remote, policies), question(**constraints)))
        assert (answer.source, answer.tokens, device.decodes) == ("device", 10, 1)
        assert answer.reasons[0] == Reason.UNSURE


async def test_an_answer_whose_cluster_fails_is_written_after_all(policies) -> None:
    device = Writer()
    cluster = ScriptedCluster((), RemoteError("UNAVAILABLE", "gone"))
    events = await gather(Controller(device, cluster, policies), question())
    answer = final(events)
    assert (answer.source, answer.tokens, answer.verified) == ("device", 10, False)
    assert answer.reasons == (Reason.STOPPED_EARLY, Reason.REMOTE_FAILED)
    assert answer.finish == "stop"
    assert answer.raw_score == pytest.approx(np.exp(-2.0))
    assert "".join(event.text for event in events if isinstance(event, Token)) == answer.text
    assert device.decodes == 2


async def test_shown_text_is_taken_back_before_it_is_written_anew(policies) -> None:
    device = Writer()
    cluster = ScriptedCluster((), RemoteError("UNAVAILABLE", "gone"))
    events = await gather(Controller(device, cluster, policies), question(), show="provisional")
    place = events.index(Superseded("device"))
    texts = [event.text for event in events if isinstance(event, Token)]
    assert texts[:3] == ["w0 ", "w1 ", "w2 "]
    assert place == 3
    assert texts[3:] == [final(events).text]


async def test_without_time_for_the_rest_the_part_comes_back_as_cut_off(policies) -> None:
    device = Writer(slow_from=2)
    cluster = ScriptedCluster((), RemoteError("UNAVAILABLE", "gone"))
    answer = final(await gather(Controller(device, cluster, policies), question(deadline_s=0.3)))
    assert (answer.source, answer.text, answer.verified) == ("device", "w0 w1 w2 ", False)
    assert answer.finish == "length"
    assert answer.raw_score is None


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

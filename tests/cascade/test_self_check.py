"""Self-checks: what is asked, what it counts, and what it costs; of a real engine too."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cascade.cli.record import _self_checks
from cascade.confidence import ConfidenceModel, Platt
from cascade.controller import Controller
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.errors import Cancelled, InvalidInput
from cascade.events import Token
from cascade.features import SELF_CHECKS, of_answer, of_records
from cascade.gain import GainModel
from cascade.local import CancelToken, LocalAnswer, ModelInfo
from cascade.policy import Policy, PolicyStore, Reason
from cascade.records import Header, Record, RecordSet, load, save
from cascade.records.ask import DeviceTier, Question
from cascade.request import Constraints, Message, Request
from cascade.sampling import GREEDY, Sampling
from cascade.scorer import Linear
from cascade.self_check import agreement, self_checked, self_verification
from cascade.signals import EMPTY_SIGNALS, OptionScores
from cascade.signing import SigningKey, TrustStore
from cascade.task import free
from cascade.testing import TinyBundle
from edge import OnnxModel
from tests.cascade.scripted import INFO, SIGNALS, ScriptedCluster, policy, question
from tests.cascade.scripted import answer as answered_by


@dataclass
class Doubter:
    """Says yes with a given probability, and draws the given texts in turn."""

    yes: float = 0.8
    texts: tuple[str, ...] = ("42", "It is 42.", "43", " 42!", "forty-two")
    asked: list[tuple[object, ...]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        return INFO

    def choose(
        self, prompt, options, *, prior_prompt=None, option_prefix="", mode=None, cancel=None
    ):
        self.asked.append((prompt, options, prior_prompt, mode))
        p = np.array([self.yes, 1 - self.yes])
        scores = OptionScores(options, np.log(p), np.zeros(2), p)
        return LocalAnswer("yes", EMPTY_SIGNALS, scores, 30, 1, 0.0, 0.0, "stop")

    def generate(self, prompt, *, max_tokens, stop=(), sampling, cancel=None):
        text = self.texts[len(self.samplings) % len(self.texts)]
        self.samplings.append(sampling)
        finish = "cancelled" if cancel is not None and cancel.cancelled else "stop"
        return LocalAnswer(text, EMPTY_SIGNALS, None, 10, 3, 0.0, 0.0, finish)


def test_self_verification_asks_yes_or_no_and_gives_the_probability_of_yes() -> None:
    model = Doubter()
    check = self_verification(model, "What is {answer}?", "42")
    assert (check.score, check.prompt_tokens, check.tokens) == (0.8, 30, 1)
    prompt, options, prior, mode = model.asked[0]
    assert "Question: What is {answer}?\nProposed answer: 42\n" in str(prompt)
    assert "Question: \nProposed answer: \n" in str(prior)
    assert (options, mode) == (("yes", "no"), "exact")
    self_verification(model, "?", "42", corrected=False)
    assert model.asked[1][2] is None


def test_agreement_is_the_share_of_samples_that_say_the_same() -> None:
    model = Doubter()
    check = agreement(model, "6 * 7?", "42", max_tokens=8, seed=7)
    assert (check.score, check.prompt_tokens, check.tokens) == (2 / 5, 50, 15)
    assert [sampling.seed for sampling in model.samplings] == [7, 8, 9, 10, 11]
    assert all(sampling.temperature > 0 for sampling in model.samplings)
    loose = agreement(
        Doubter(), "6 * 7?", "42", max_tokens=8, same=lambda drawn, answer: answer in drawn
    )
    assert loose.score == 3 / 5


def test_a_check_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"wording: does not contain \{answer\}"):
        self_verification(Doubter(), "?", "42", wording="Is {question} right?")
    with pytest.raises(InvalidInput, match="samples"):
        agreement(Doubter(), "?", "42", max_tokens=8, samples=0)
    with pytest.raises(InvalidInput, match="temperature 0"):
        agreement(Doubter(), "?", "42", max_tokens=8, sampling=Sampling())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        agreement(Doubter(), "?", "42", max_tokens=8, cancel=cancel)


def test_a_real_engine_checks_itself_the_same_way_every_time(tiny: TinyBundle) -> None:
    model = OnnxModel(tiny.bundle)
    one, two = (self_verification(model, "Where?", "Here.") for _ in range(2))
    assert one == two
    assert 0 < one.score < 1
    assert one.prompt_tokens > 10
    drawn = [
        agreement(model, "Where?", "Here.", max_tokens=4, samples=2, same=lambda *_: True)
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert (drawn[0].score, drawn[0].tokens) == (1.0, 8)


def sure_by(*names: str) -> ConfidenceModel:
    """As sure as the features are high."""
    ones = tuple(1.0 for _ in names)
    zeros = tuple(0.0 for _ in names)
    return ConfidenceModel(Platt(1.0, 0.0), scorer=Linear(names, zeros, ones, ones, 0.0))


TALK = replace(policy(0.5), task=free("talk"))


def talk(confidence: ConfidenceModel, threshold: float = 0.6) -> Policy:
    return replace(TALK, confidence=confidence, threshold=threshold)


@pytest.fixture
def shelf(tmp_path) -> Callable[[Policy], PolicyStore]:
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    store = PolicyStore(tmp_path / "policies", trust)

    def hold(held: Policy) -> PolicyStore:
        store.install(held, key)
        return store

    return hold


@dataclass
class Talker:
    """Writes an answer, and says yes to it with a given probability."""

    yes: float = 0.8
    slow: bool = False
    checked: int = 0
    drawn: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        return INFO

    def choose(
        self, prompt, options, *, prior_prompt=None, option_prefix="", mode=None, cancel=None
    ):
        self.checked += 1
        while self.slow:
            if cancel is not None and cancel.cancelled:
                raise Cancelled("stopped")
            time.sleep(0.002)
        p = np.array([self.yes, 1 - self.yes])
        scores = OptionScores(options, np.log(p), np.zeros(2), p)
        return LocalAnswer(options[0], SIGNALS, scores, 30, 1, 0.0, 0.0, "stop")

    def generate(
        self, prompt, *, max_tokens, stop=(), sampling=GREEDY, json_schema=None, regex=None,
        on_text=None, on_token=None, cancel=None,
    ):  # fmt: skip
        if not sampling.greedy:
            self.drawn.append(stop)
            word = "Oslo" if sampling.seed in (0, 1, 2) else "Rome"
            return LocalAnswer(word, SIGNALS, None, 10, 4, 0.0, 0.0, "stop")
        if on_text is not None:
            on_text("Oslo.")
        return LocalAnswer("Oslo.", SIGNALS, None, 10, 3, 0.0, 0.0, "stop")


def asked(**changes: object) -> Request:
    request = Request((Message("user", "The capital of Norway?"),), task_id="talk", max_tokens=9)
    return replace(request, **changes)


async def test_a_policy_has_the_checks_made_that_its_confidence_needs(shelf) -> None:
    model = Talker()
    store = shelf(talk(sure_by("self_verification", "agreement")))
    records: list[DecisionRecord] = []
    run = Controller(model, None, store, on_decision=records.append)
    answer = await answered_by(run, asked(stop=("\n",)))
    assert answer.confidence == pytest.approx(1 / (1 + np.exp(-0.8 - 0.6)))
    assert (answer.verified, answer.reasons) == (True, (Reason.CONFIDENT,))
    # Three tokens of its own, one of the question about it, five samples of four.
    assert (answer.tokens, answer.local_tokens) == (3, 24)
    assert model.drawn == [("\n",)] * 5
    read = DecisionRecord.from_bytes(records[0].to_bytes())
    assert replay_decision(read, talk(sure_by("self_verification", "agreement"))) == read.decision


async def test_nothing_is_asked_of_an_answer_whose_confidence_needs_nothing(shelf) -> None:
    model = Talker()
    answer = await answered_by(Controller(model, None, shelf(TALK)), asked())
    assert (model.checked, model.drawn, answer.local_tokens) == (0, [], 3)
    assert (await answered_by(Controller(model, None), asked())).local_tokens == 3
    assert model.checked == 0


async def test_a_gain_may_need_them_too(shelf) -> None:
    gain = GainModel(sure_by("self_verification"), ConfidenceModel(Platt(0.0, 0.0)))
    model = Talker()
    answer = await answered_by(Controller(model, None, shelf(replace(TALK, gain=gain))), asked())
    assert (model.checked, model.drawn) == (1, [])
    assert answer.expected_gain == pytest.approx(0.5 - 1 / (1 + np.exp(-0.8)))


async def test_an_answer_that_there_is_no_time_to_check_comes_back_unmeasured(shelf) -> None:
    model = Talker(slow=True)
    store = shelf(talk(sure_by("self_verification")))
    run = Controller(model, ScriptedCluster(), store)
    answer = await answered_by(run, asked(constraints=Constraints(deadline_s=0.5)))
    assert (answer.text, answer.source, answer.verified) == ("Oslo.", "device", False)
    assert answer.reasons == (Reason.UNMEASURED, Reason.DEADLINE_TOO_SHORT)
    assert model.checked == 1


async def test_leaving_ends_the_checks(shelf) -> None:
    model = Talker(slow=True)
    store = shelf(talk(sure_by("self_verification")))
    events = Controller(model, None, store).run(asked())
    assert await anext(events) == Token("Oslo.", "device", provisional=False)
    await asyncio.wait_for(events.aclose(), 10)


async def test_an_answer_in_a_form_has_no_agreement(shelf) -> None:
    model = Talker()
    run = Controller(model, None, shelf(talk(sure_by("agreement"))))
    answer = await answered_by(run, asked(regex="[A-Z].*"))
    assert answer.reasons == (Reason.UNMEASURED, Reason.NO_CLUSTER)
    assert model.drawn == []


async def test_an_answer_of_a_closed_set_may_be_verified(shelf) -> None:
    mood = replace(policy(0.6), confidence=sure_by("self_verification"))
    answer = await answered_by(Controller(Talker(0.9), None, shelf(mood)), question())
    assert answer.confidence == pytest.approx(1 / (1 + np.exp(-0.9)))
    assert (answer.verified, answer.local_tokens) == (True, 2)


def test_a_closed_set_has_no_agreement() -> None:
    needs = replace(policy(0.6), confidence=sure_by("agreement"))
    with pytest.raises(InvalidInput, match="agreement, which is of free answers"):
        needs.to_bytes()
    assert needs.self_checks == ("agreement",)
    assert talk(sure_by("agreement")).to_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_records_have_the_checks_that_a_device_would_make(tiny: TinyBundle, tmp_path, suffix):
    model = OnnxModel(tiny.bundle)
    tier = DeviceTier(model, self_checks=SELF_CHECKS)
    outcome = asyncio.run(tier.ask(Question("two words", max_tokens=6)))
    prompt = (Message("user", "two words"),)
    answer = self_checked(
        model,
        model.generate(prompt, max_tokens=6),
        SELF_CHECKS,
        question="two words",
        prompt=prompt,
        max_tokens=6,
    )
    assert outcome.completion_tokens == answer.tokens
    assert answer.check_tokens > 5
    path = tmp_path / f"records{suffix}"
    header = Header(tiers=(tier.info,))
    save(path, RecordSet.of(header, [Record("q", "q", "0" * 64, {"device": outcome})]))
    there = of_records(load(path), "device", SELF_CHECKS).values
    assert not np.isnan(there).any()
    np.testing.assert_allclose(there, of_answer(answer, SELF_CHECKS).values, atol=0.05)
    plain = asyncio.run(DeviceTier(model).ask(Question("two words", max_tokens=6)))
    assert (plain.self_verification, plain.agreement) == (None, None)


def test_a_check_that_does_not_exist_is_refused() -> None:
    answer = LocalAnswer("", SIGNALS, None, 1, 1, 0, 0, "stop")
    with pytest.raises(InvalidInput, match="'guess' is not one of"):
        self_checked(Talker(), answer, ["guess"], question="", prompt=None, max_tokens=1)
    assert _self_checks(argparse.Namespace(self_check="verification, agreement")) == SELF_CHECKS
    assert _self_checks(argparse.Namespace(self_check=None)) == ()
    with pytest.raises(InvalidInput, match="self-check: 'guess' is not one of"):
        _self_checks(argparse.Namespace(self_check="guess"))

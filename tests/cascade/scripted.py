"""Devices and clusters that behave in a scripted way, and what is asked of them."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cascade.certificate import Certificate, Promise
from cascade.confidence import ConfidenceModel, Feature, Platt
from cascade.controller import Controller
from cascade.errors import Cancelled, RemoteError
from cascade.events import Answer, Event, Final
from cascade.local import CancelToken, Finish, LocalAnswer, ModelInfo, Prompt, TokenSignals
from cascade.policy import Policy, PolicyStore
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Message, Request
from cascade.sampling import GREEDY, Sampling
from cascade.signals import OptionScores, ScoreMode, Signals
from cascade.signing import SigningKey, TrustStore
from cascade.task import Task

INFO = ModelInfo("tiny", "ab" * 32, "cd" * 32, "ef" * 32, 2048)
TASK = Task("mood", ("good", "bad"), "Review: {input}\nMood:", " ", "Good or bad? {input}")
SIGNALS = Signals(*(np.array([-0.1, -0.2], np.float32) for _ in range(3)))
WORDS = 10
FINISHED = Finished("stop", 12, 1, 1e-6, "tier1", "large", None, ("lowest_tier",), 0.01)


@dataclass
class ScriptedModel:
    """A device that answers "good" with a given probability, or writes two pieces of text."""

    probability: float = 0.9
    pause_s: float = 0.0
    problem: Exception | None = None
    finish: Finish = "stop"
    prompts: list[Prompt] = field(default_factory=list)
    forms: list[tuple[Sampling, str | None, str | None]] = field(default_factory=list)
    modes: list[ScoreMode | None] = field(default_factory=list)
    own_mode: ScoreMode = "exact"
    adapter_digest: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

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
        self._wait(prompt, cancel)
        self.forms.append((sampling, json_schema, regex))
        for piece in ("a b", " c"):
            if on_text:
                on_text(piece)
        return LocalAnswer("a b c", SIGNALS, None, 5, 2, 0.01, 0.02, self.finish)

    def choose(
        self,
        prompt: Prompt,
        options: tuple[str, ...],
        *,
        prior_prompt: Prompt | None = None,
        option_prefix: str = "",
        mode: ScoreMode | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        self._wait(prompt, cancel)
        p = np.array(
            [self.probability] + [(1 - self.probability) / (len(options) - 1)] * (len(options) - 1)
        )
        self.modes.append(mode)
        scores = OptionScores(
            options, np.log(p), np.zeros(len(options)), p, mode=mode or self.own_mode
        )
        best = options[scores.best]
        return LocalAnswer(
            best, SIGNALS, scores, 5, 1, 0.01, 0.0, "stop", adapter_digest=self.adapter_digest
        )

    def _wait(self, prompt: Prompt, cancel: CancelToken | None) -> None:
        self.prompts.append(prompt)
        if self.problem:
            raise self.problem
        end = time.monotonic() + self.pause_s
        try:
            while time.monotonic() < end:
                if cancel and cancel.cancelled:
                    raise Cancelled("stopped")
                time.sleep(0.005)
        finally:
            self.ended.set()


@dataclass(frozen=True)
class Step:
    token: int
    logprob: float
    entropy: float = 1.0
    margin: float = 0.5


@dataclass
class Writer:
    """A device that writes ten words, as sure of each as it is told to be, and counts its decodes.

    Arguments:
        pause_s: before each word.
        wait_at, may_go_on: the word before which it waits for the event.
        slow_from, slow_word: from that decode on it comes to rest at that word until it is
            cancelled.
    """

    logprob: float = -2.0
    pause_s: float = 0.0
    wait_at: int = 0
    may_go_on: threading.Event | None = None
    slow_from: int = 99
    slow_word: int = 0
    decodes: int = 0
    ended: int = 0
    words: int = 0

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
        self.decodes += 1
        words: list[str] = []
        finish: Finish = "stop"
        for word in range(WORDS):
            time.sleep(self.pause_s)
            if self.may_go_on is not None and word == self.wait_at:
                assert self.may_go_on.wait(30)
            slow = self.decodes >= self.slow_from and word >= self.slow_word
            while slow and not (cancel and cancel.cancelled):
                time.sleep(0.005)
            if cancel and cancel.cancelled:
                finish = "cancelled"
                break
            words.append(f"w{word} ")
            self.words += 1
            stopped = on_token(Step(100 + word, self.logprob)) if on_token else False
            if on_text:
                on_text(words[-1])
            if stopped:
                finish = "callback"
                break
        self.ended += 1
        values = np.full(len(words), self.logprob, np.float32)
        signals = Signals(values, -values, np.full(len(words), 0.5, np.float32))
        return LocalAnswer("".join(words), signals, None, 5, len(words), 0.01, 0.02, finish)

    def choose(self, *args: object, **kwargs: object) -> LocalAnswer:
        raise AssertionError("nobody asks for a closed set here")


@dataclass
class ScriptedCluster:
    """A cluster that sends given events, then perhaps fails."""

    events: tuple[RemoteEvent, ...] = (Accepted("tier1", "large"), Chunk("bad", 1), FINISHED)
    problem: RemoteError | None = None
    requests: list[Request] = field(default_factory=list)
    reports: list[DeviceReport] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    closed_early: bool = False

    async def answer(
        self, request: Request, report: DeviceReport, *, deadline_s: float, transfer: Transfer
    ) -> AsyncGenerator[RemoteEvent, None]:
        self.requests.append(request)
        self.reports.append(report)
        self.deadlines.append(deadline_s)
        transfer.bytes_up += 100
        try:
            for event in self.events:
                yield event
        except GeneratorExit:
            self.closed_early = True
            raise
        if self.problem:
            raise self.problem

    async def close(self) -> None:
        pass


def policy(threshold: float | None, feature: Feature = "raw_score") -> Policy:
    promise = Promise("selective_risk", 0.25, 0.0, 1.0, "clopper_pearson", 500, 0.1, 0.2, 0.01)
    certificate = Certificate(
        promises=(promise,),
        delta=0.1,
        n=1000,
        n_accepted=500,
        threshold=threshold or 0.0,
        family="fixed_sequence",
        starts=(0,),
        data_digest="0" * 64,
        grid_digest="1" * 64,
        grid_size=10,
    )
    return Policy(
        TASK,
        INFO.base_digest,
        "",
        ConfidenceModel(Platt(1.0, 0.0), feature),
        threshold,
        certificate if threshold is not None else None,
    )


def shelf(folder: Path, *installed: Policy) -> PolicyStore:
    key, trust = SigningKey.generate(), TrustStore(folder / "trust")
    trust.pin("me", key.public)
    store = PolicyStore(folder / "policies", trust)
    for each in installed:
        store.install(each, key)
    return store


def question(**changes: object) -> Request:
    request = Request((Message("user", "what a day"),), options=("good", "bad"), task_id="mood")
    return replace(request, **changes)


async def gather(controller: Controller, request: Request, **kwargs: object) -> list[Event]:
    return [event async for event in controller.run(request, **kwargs)]


async def answer(controller: Controller, request: Request) -> Answer:
    events = await gather(controller, request)
    assert isinstance(events[-1], Final)
    assert sum(isinstance(event, Final) for event in events) == 1
    return events[-1].answer

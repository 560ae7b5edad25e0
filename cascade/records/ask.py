"""Asking one tier one question, and what is measured then: the outcome, not yet graded.

The model on the device and the connection to the cluster come from outside, by the seams that the
controller uses: ``LocalModel`` and ``Remote``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.local import CancelToken, LocalAnswer, LocalModel
from cascade.records.outcome import Outcome, Scores, SignalSummary, kept
from cascade.records.record import TierInfo
from cascade.remote import DeviceReport, Finished, Remote, Transfer, whole_answer
from cascade.request import Constraints, DataClass, Message, Request
from cascade.self_check import self_checked
from cascade.signals import ScoreMode
from cascade.task import Task

# Nobody's answer will be any better: the key or the rights are wrong.
_HOPELESS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_TRIES = 4  # of a request that a full cluster puts off
_LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Question:
    """What every tier is asked.

    Arguments:
        task: the closed set and its wording; ``None`` asks for free text.
        max_tokens: upper bound on the tokens of a free answer.
    """

    prompt: str
    task: Task | None = None
    max_tokens: int = 256


class Tier(Protocol):
    """A tier that can be asked."""

    @property
    def info(self) -> TierInfo:
        """Who answers, as far as it is known by now."""
        ...

    @property
    def problems(self) -> Counter[str]:
        """Why it failed, in words, and how often."""
        ...

    async def ask(self, question: Question) -> Outcome:
        """One answer, not graded, with its text; or how the tier failed.

        Raises:
            CascadeError: no question will be answered, so there is no use in going on.
        """
        ...


class DeviceTier:
    """The model on the device. One question at a time, so that latencies can be compared.

    Arguments:
        mode: how a closed set is scored; ``None`` leaves it to the model.
        signals: whether the signals of each token are kept.
        self_checks: of ``SELF_CHECKS``, what the model is asked about each answer; latencies and
            tokens are without.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        name: str = "device",
        mode: ScoreMode | None = None,
        signals: bool = True,
        self_checks: tuple[str, ...] = (),
    ) -> None:
        self._model = model
        self._mode = mode
        self._signals = signals
        self._self_checks = self_checks
        self._turn = asyncio.Lock()
        self.problems: Counter[str] = Counter()
        info = model.info
        self.info = TierInfo(
            name=name,
            model=info.name,
            kind="device",
            bundle_digest=info.bundle_digest,
            base_digest=info.base_digest,
            adapter_digest=info.adapter_digest,
            input_usd_per_million_tokens=0.0,
            output_usd_per_million_tokens=0.0,
        )

    async def ask(self, question: Question) -> Outcome:
        """See ``Tier``."""
        async with self._turn:
            cancel = CancelToken()
            decode = asyncio.create_task(asyncio.to_thread(self._decode, question, cancel))
            try:
                answer, latency_s = await asyncio.shield(decode)
            except InvalidInput as problem:
                # Too long for its context, say: this input, not the next.
                self.problems[str(problem)] += 1
                return Outcome(status="INVALID_ARGUMENT")
            finally:
                cancel.cancel()
                if not decode.done():
                    with contextlib.suppress(CascadeError):
                        await asyncio.shield(decode)
            return self._outcome(answer, latency_s)

    def _decode(self, question: Question, cancel: CancelToken) -> tuple[LocalAnswer, float]:
        """The answer, and the seconds that it took."""
        started = time.perf_counter()
        answer = self._answer(question, cancel)
        latency_s = time.perf_counter() - started
        if not self._self_checks or not answer.whole:
            return answer, latency_s
        free = (Message("user", question.prompt),) if question.task is None else None
        checked = self_checked(
            self._model,
            answer,
            self._self_checks,
            question=question.prompt,
            prompt=free,
            max_tokens=question.max_tokens,
            cancel=cancel,
        )
        return checked, latency_s

    def _answer(self, question: Question, cancel: CancelToken) -> LocalAnswer:
        task = question.task
        if task is None:
            return self._model.generate(
                (Message("user", question.prompt),), max_tokens=question.max_tokens, cancel=cancel
            )
        return self._model.choose(
            task.for_device(question.prompt),
            task.options,
            prior_prompt=task.prior_prompt(),
            option_prefix=task.option_prefix,
            mode=self._mode,
            cancel=cancel,
        )

    def _outcome(self, answer: LocalAnswer, latency_s: float) -> Outcome:
        return Outcome(
            answer=answer.text,
            raw_score=min(1.0, max(0.0, answer.raw_score)),
            summary=SignalSummary.of(answer.signals),
            signals=kept(answer.signals) if self._signals else None,
            scores=Scores.of(answer.options) if answer.options else None,
            finish="length" if answer.finish == "length" else "stop",
            latency_s=latency_s,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.tokens,
            bytes_up=0,
            bytes_down=0,
            cost_usd=0.0,
            self_verification=answer.self_verification,
            agreement=answer.agreement,
        )


class CloudTier:
    """One tier of a cluster, asked alone: no other may answer in its place.

    Arguments:
        prices: dollars per million tokens read and written, in place of what the cluster charges.
    """

    def __init__(
        self,
        remote: Remote,
        name: str,
        *,
        deadline_s: float = 60.0,
        data_class: DataClass = DataClass.PERSONAL,
        prices: tuple[float, float] | None = None,
    ) -> None:
        self._remote = remote
        self._name = name
        self._constraints = Constraints(
            deadline_s=deadline_s, allowed_tiers=frozenset({name}), data_class=data_class
        )
        self._prices = prices
        self._model = ""
        self.problems: Counter[str] = Counter()

    @property
    def info(self) -> TierInfo:
        """See ``Tier``. The model is known from the first answer on."""
        prompt_usd, completion_usd = self._prices or (None, None)
        return TierInfo(
            name=self._name,
            model=self._model,
            kind="cloud",
            input_usd_per_million_tokens=prompt_usd,
            output_usd_per_million_tokens=completion_usd,
        )

    def expect(self, model: str) -> None:
        """Who answered in an earlier run; empty where that is not known. Another model's answers
        would be other records, and end the run."""
        self._model = model

    async def ask(self, question: Question) -> Outcome:
        """See ``Tier``. A full cluster is asked again after the pause that it names."""
        for attempt in range(1, _TRIES + 1):
            started, transfer = time.perf_counter(), Transfer()
            try:
                return await self._answer(question, transfer, started)
            except RemoteError as problem:
                if problem.status in _HOPELESS:
                    raise
                full = problem.status == "RESOURCE_EXHAUSTED" and problem.retry_after_s is not None
                if not full or attempt == _TRIES:
                    self.problems[str(problem)] += 1
                    return Outcome(
                        status=problem.status,
                        latency_s=time.perf_counter() - started,
                        bytes_up=transfer.bytes_up,
                        bytes_down=transfer.bytes_down,
                    )
                await asyncio.sleep(min(problem.retry_after_s or 0.0, _LONGEST_PAUSE_S))
        raise AssertionError("the last attempt returned nothing")

    async def _answer(self, question: Question, transfer: Transfer, started: float) -> Outcome:
        stream = self._remote.answer(
            self._request(question),
            DeviceReport(),
            deadline_s=self._constraints.deadline_s,
            transfer=transfer,
        )
        text, finished = await whole_answer(stream)
        self._note_model(finished.model)
        return Outcome(
            answer=text,
            finish=finished.reason,
            latency_s=time.perf_counter() - started,
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
            raw_score=finished.raw_score,
            bytes_up=transfer.bytes_up,
            bytes_down=transfer.bytes_down,
            cost_usd=self._cost_usd(finished),
        )

    def _request(self, question: Question) -> Request:
        task = question.task
        if task is None:
            return Request(
                messages=(Message("user", question.prompt),),
                max_tokens=question.max_tokens,
                constraints=self._constraints,
                score=True,
            )
        return Request(
            messages=task.for_cloud(question.prompt),
            options=task.options,
            constraints=self._constraints,
            score=True,
        )

    def _note_model(self, model: str) -> None:
        if self._model and model != self._model:
            raise CascadeError(
                f"{self._name} is {model} now and was {self._model}; start another file"
            )
        self._model = model

    def _cost_usd(self, finished: Finished) -> float:
        if self._prices is None:
            return finished.cost_usd
        prompt_usd, completion_usd = self._prices
        return (
            finished.prompt_tokens * prompt_usd + finished.completion_tokens * completion_usd
        ) / 1e6

"""One request from beginning to end: answer locally, judge, escalate if need be, and degrade well.

The controller owns the order of events and the deadline. It runs no model, speaks no protocol and
takes no decision of its own: those are ``LocalModel``, ``Remote`` and ``cascade.policy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal

from cascade.early_stop import StopWatch
from cascade.errors import Cancelled, CascadeError, DeadlineExceeded, InvalidInput, RemoteError
from cascade.events import DEVICE, Answer, Event, Final, Latency, Superseded, Token
from cascade.local import CancelToken, LocalAnswer, LocalClassifier, LocalModel, Unreadable
from cascade.monitor import Monitor
from cascade.monitor.opinion import whole_answer
from cascade.policy import (
    Decision,
    Policy,
    PolicyStore,
    Reason,
    decide,
    obstacle_to_escalation,
)
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, Remote, Transfer
from cascade.request import Request
from cascade.signals import ScoreBounds
from cascade.task import generic

Show = Literal["final", "provisional"]

# Kept back from the remote deadline so that a local answer can still be returned in time.
_RETURN_MARGIN_S = 0.05


class Controller:
    """Local first, escalate when unsure.

    Arguments:
        local: the model on the device, which reads text or tensors; ``None`` sends everything to
            the cluster.
        remote: the cluster; ``None`` keeps everything on the device.
        policies: where to find the policy of a request's task; ``None`` for no task at all.
        monitor: audits accepted answers and withdraws policies that fail; closed with this.
    """

    def __init__(
        self,
        local: LocalModel | LocalClassifier | None,
        remote: Remote | None,
        policies: PolicyStore | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        if local is None and remote is None:
            raise InvalidInput("local", "is None and so is remote; give at least one of them")
        self._local = local
        self._remote = remote
        self._policies = policies
        self._monitor = monitor

    async def run(self, request: Request, *, show: Show = "final") -> AsyncGenerator[Event, None]:
        """Answer ``request``. Closing the iterator cancels whatever is under way.

        Arguments:
            show: ``"final"`` holds local text back until it is accepted, unless nothing can take
                its place; ``"provisional"`` streams it at once, to be followed by ``Superseded``
                where another source takes over.

        Raises:
            InvalidInput: a field of the request is unusable.
            DeadlineExceeded: the deadline passed before there was any answer.
            RemoteError: the cluster failed and there is no local answer to fall back on.
            Tampered, UnknownPublisher: the task's policy must not be used.
        """
        request.check()
        state = _State(request)
        policy = self._policy(request)
        obstacle = obstacle_to_escalation(request, cluster=self._remote is not None)
        if self._local is not None and request.prefer == "device":
            async with contextlib.aclosing(
                self._try_locally(self._local, state, policy, show, alone=obstacle is not None)
            ) as pieces:
                async for event in pieces:
                    yield event
        else:
            state.reasons.append(Reason.CLOUD_PREFERRED if self._local else Reason.NO_LOCAL_MODEL)
        decision = self._judge(state, policy, obstacle)
        if decision.escalate and self._remote is not None:
            async with contextlib.aclosing(
                self._escalate(self._remote, state, policy, decision)
            ) as events:
                async for event in events:
                    yield event
            if state.answer is not None:
                yield Final(state.answer)
                return
        if state.stopped and self._local is not None:
            async for event in self._finish_locally(self._local, state, policy):
                yield event
        try:
            for event in self._answer_locally(state, decision):
                yield event
        finally:  # behind the last event, also where the reader leaves with it
            self._audit(state, policy, decision, obstacle)

    async def close(self) -> None:
        """Close the connection to the cluster, and the monitor."""
        if self._monitor is not None:
            await self._monitor.close()
        if self._remote is not None:
            await self._remote.close()

    def _policy(self, request: Request) -> Policy | None:
        if self._policies is None or self._local is None or not request.task_id:
            return None
        policy = self._policies.find(request.task_id, self._local.info)
        return policy if policy and policy.covers(request.options, self._local.info) else None

    async def _try_locally(
        self,
        local: LocalModel | LocalClassifier,
        state: _State,
        policy: Policy | None,
        show: Show,
        *,
        alone: bool,
    ) -> AsyncGenerator[Event, None]:
        """Let the device answer into ``state.local``; yields its text where it is shown already.

        Arguments:
            alone: nobody else can answer, so what the device writes stands.
        """
        cancel = CancelToken()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        # Only where somebody else is to answer instead.
        rule = policy.early_stop if policy is not None and not alone else None
        state.watch = rule.watch(state.request.max_tokens) if rule is not None else None
        decode = asyncio.create_task(
            asyncio.to_thread(
                _decode,
                local,
                state.request,
                policy,
                on_text=on_text,
                watch=state.watch,
                cancel=cancel,
            )
        )
        decode.add_done_callback(lambda _: pieces.put_nowait(None))
        expiry = loop.call_later(max(0.0, state.remaining_s()), cancel.cancel)
        try:
            while (text := await pieces.get()) is not None:
                if alone or show == "provisional":
                    state.shown = DEVICE
                    yield Token(text, DEVICE, provisional=not alone)
            state.local = await decode
            if state.local.finish == "cancelled":
                raise Cancelled("the local decode was stopped")
        except InvalidInput as problem:
            # A larger model may still be able to read what this one cannot.
            beyond = problem.field == "prompt" or isinstance(problem, Unreadable)
            if not beyond or self._remote is None:
                raise
            state.reasons.append(Reason.LOCAL_FAILED)
            state.local_problem = problem
        except CascadeError:
            if not cancel.cancelled:
                raise
            raise DeadlineExceeded(
                f"the deadline of {state.request.constraints.deadline_s:g} s passed before the "
                "device had an answer; allow more time"
            ) from None
        finally:
            expiry.cancel()
            cancel.cancel()
            if not decode.done():
                # The thread ends within one token; wait so that no decode outlives its request.
                with contextlib.suppress(CascadeError):
                    await asyncio.shield(decode)

    async def _finish_locally(
        self, local: LocalModel | LocalClassifier, state: _State, policy: Policy | None
    ) -> AsyncGenerator[Event, None]:
        """Write the whole answer after all, where the cluster did not come to replace it."""
        if state.shown == DEVICE:
            state.shown = None
            yield Superseded(DEVICE)
        cut_off, watch = state.local, state.watch
        try:
            async with contextlib.aclosing(
                self._try_locally(local, state, None, "final", alone=False)
            ) as pieces:
                async for event in pieces:
                    yield event
        except DeadlineExceeded:
            state.local, state.watch = cut_off, watch

    def _judge(self, state: _State, policy: Policy | None, obstacle: Reason | None) -> Decision:
        if state.local is not None and state.stopped and obstacle is None:
            return Decision(False, True, None, (Reason.STOPPED_EARLY,))
        if state.local is not None:
            if self._monitor is None or policy is None:
                return decide(policy, state.local, obstacle)
            demoted = self._monitor.demoted(policy)
            decision = decide(policy, state.local, obstacle, demoted=demoted)
            if Reason.UNCERTIFIED_MODE not in decision.reasons:  # other scores than the policy's
                score = state.local.raw_score
                self._monitor.answered(policy, score=score, accepted=decision.accept)
            return decision
        if obstacle is not None:
            if state.local_problem is not None:
                raise state.local_problem
            if obstacle is Reason.NO_CLUSTER:
                raise InvalidInput(
                    "prefer",
                    "is cloud, but no cluster is configured; give --cloud, or cloud=… in code",
                )
            raise InvalidInput(
                "constraints", f"forbid escalation ({obstacle}), and the device is not to answer"
            )
        return Decision(False, True, None, tuple(state.reasons))

    def _audit(
        self, state: _State, policy: Policy | None, decision: Decision, obstacle: Reason | None
    ) -> None:
        """Let the monitor audit an accepted answer, by the cluster where the request may leave."""
        if self._monitor is None or policy is None or state.local is None or not decision.accept:
            return
        ask = None
        if self._remote is not None and obstacle is None:
            stream = functools.partial(
                self._remote.answer,
                _for_cloud(state.request, policy),
                _report(self._local, state.local, decision),
                deadline_s=state.request.constraints.deadline_s,
            )

            async def ask() -> str:
                return await whole_answer(stream(transfer=Transfer()))

        self._monitor.accepted(policy, state.request, state.local.text, ask)

    async def _escalate(
        self, remote: Remote, state: _State, policy: Policy | None, decision: Decision
    ) -> AsyncGenerator[Event, None]:
        """Stream the cluster's answer; sets ``state.answer`` when it is complete."""
        started = time.perf_counter()
        request = _for_cloud(state.request, policy)
        deadline_s = state.remaining_s() - (_RETURN_MARGIN_S if state.local is not None else 0.0)
        source, model = "", ""
        text: list[str] = []
        try:
            if deadline_s <= 0:
                raise RemoteError("DEADLINE_EXCEEDED", "no time was left to ask the cluster")
            stream = remote.answer(
                request,
                _report(self._local, state.local, decision),
                deadline_s=deadline_s,
                transfer=state.transfer,
            )
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    match event:
                        case Accepted(tier, name):
                            if state.shown is not None:
                                state.shown = None
                                yield Superseded(tier)
                            source, model, text = tier, name, []
                        case Chunk(piece, _):
                            state.shown = source
                            text.append(piece)
                            yield Token(piece, source, provisional=False)
                        case Finished():
                            state.remote_s = time.perf_counter() - started
                            state.answer = state.remote_answer(
                                "".join(text), event, decision, model
                            )
        except RemoteError as problem:
            state.remote_s = time.perf_counter() - started
            if state.local is None:
                raise _without_answer(problem, state.request) from None
            state.remote_error = problem
        else:
            if state.answer is None:
                state.remote_error = RemoteError("INTERNAL", "the cluster ended without an answer")

    def _answer_locally(self, state: _State, decision: Decision) -> list[Event]:
        """The last events of a request that the device answers."""
        local = state.local
        if local is None:  # only after a remote failure, which then was raised
            raise state.remote_error or RemoteError("INTERNAL", "there is no answer")
        reasons: tuple[str, ...] = tuple(decision.reasons)
        if state.remote_error is not None:
            reasons += (Reason.REMOTE_FAILED,)
        events: list[Event] = []
        if state.shown not in (None, DEVICE):  # a broken remote answer
            events.append(Superseded(DEVICE))
        if state.shown != DEVICE and local.text:
            events.append(Token(local.text, DEVICE, provisional=False))
        events.append(Final(state.local_answer(local, decision, reasons, self._local)))
        return events


@dataclass(slots=True)
class _State:
    """What one request has gathered so far."""

    request: Request
    started: float = field(default_factory=time.perf_counter)
    reasons: list[Reason] = field(default_factory=list)
    local: LocalAnswer | None = None
    local_problem: InvalidInput | None = None
    watch: StopWatch | None = None
    transfer: Transfer = field(default_factory=Transfer)
    remote_s: float = 0.0
    remote_error: RemoteError | None = None
    shown: str | None = None  # source of the text that the application holds
    answer: Answer | None = None

    @property
    def stopped(self) -> bool:
        """Whether the local decode was stopped early, and not finished since."""
        return self.watch is not None and self.watch.fired

    @property
    def raw_score(self) -> float | None:
        """Of a whole local answer."""
        return self.local.raw_score if self.local and not self.stopped else None

    def remaining_s(self) -> float:
        return self.request.constraints.deadline_s - (time.perf_counter() - self.started)

    def latency(self) -> Latency:
        prefill_s, decode_s = (
            (self.local.prefill_s, self.local.decode_s) if self.local else (0.0, 0.0)
        )
        return Latency(time.perf_counter() - self.started, prefill_s, decode_s, self.remote_s)

    def bounds(self) -> ScoreBounds | None:
        return self.local.options.bounds if self.local and self.local.options else None

    def remote_answer(
        self, text: str, finished: Finished, decision: Decision, model: str
    ) -> Answer:
        return Answer(
            request_id=self.request.request_id,
            text=text,
            source=finished.tier,
            model=finished.model or model,
            confidence=finished.confidence,
            raw_score=self.raw_score,
            verified=True,
            reasons=(*decision.reasons, *finished.reasons),
            latency=self.latency(),
            tokens=finished.completion_tokens,
            local_tokens=self.local.tokens if self.local else 0,
            cloud_prompt_tokens=finished.prompt_tokens,
            cloud_completion_tokens=finished.completion_tokens,
            bytes_up=self.transfer.bytes_up,
            bytes_down=self.transfer.bytes_down,
            cost_usd=finished.cost_usd,
            device_confidence=decision.confidence,
            finish=finished.reason,
            bounds=self.bounds(),
            expected_gain=decision.gain,
            local_tokens_saved=self.watch.saved if self.watch else None,
        )

    def local_answer(
        self,
        local: LocalAnswer,
        decision: Decision,
        reasons: tuple[str, ...],
        model: LocalModel | LocalClassifier | None,
    ) -> Answer:
        error = self.remote_error
        return Answer(
            request_id=self.request.request_id,
            text=local.text,
            source=DEVICE,
            model=model.info.name if model else "",
            confidence=decision.confidence,
            raw_score=self.raw_score,
            verified=decision.accept,
            reasons=reasons,
            latency=self.latency(),
            tokens=local.tokens,
            local_tokens=local.tokens,
            bytes_up=self.transfer.bytes_up,
            bytes_down=self.transfer.bytes_down,
            device_confidence=decision.confidence,
            remote_error=error.message if error else None,
            remote_status=error.status if error else None,
            finish="length" if local.finish in ("length", "callback") else "stop",
            bounds=self.bounds(),
            expected_gain=decision.gain,
        )


def _decode(
    local: LocalModel | LocalClassifier,
    request: Request,
    policy: Policy | None,
    *,
    on_text: Callable[[str], None],
    watch: StopWatch | None,
    cancel: CancelToken,
) -> LocalAnswer:
    """Runs in a worker thread."""
    if request.tensors:
        if not isinstance(local, LocalClassifier):
            raise Unreadable("tensors", f"{local.info.name} on this device reads text alone")
        return local.classify(request.tensors, options=request.options, cancel=cancel)
    if not isinstance(local, LocalModel):
        raise Unreadable(
            "prompt", f"{local.info.name} on this device reads tensors alone; call classify"
        )
    if not request.options:
        return local.generate(
            request.messages,
            max_tokens=request.max_tokens,
            stop=request.stop,
            sampling=request.sampling,
            json_schema=request.json_schema,
            regex=request.regex,
            on_text=on_text,
            on_token=watch,
            cancel=cancel,
        )
    task = policy.task if policy else generic(request.options)
    # In the task's own order and wording: a calibration holds for nothing else.
    return local.choose(
        task.for_device(request.text),
        task.options,
        prior_prompt=task.prior_prompt(),
        option_prefix=task.option_prefix,
        mode=request.mode or (policy.confidence.mode if policy else None),
        cancel=cancel,
    )


def _without_answer(problem: RemoteError, request: Request) -> CascadeError:
    """What a failed call means where there is no local answer to fall back on."""
    if problem.status != "DEADLINE_EXCEEDED":
        return problem
    return DeadlineExceeded(
        f"the deadline of {request.constraints.deadline_s:g} s passed before the cluster had an "
        "answer; allow more time"
    )


def _for_cloud(request: Request, policy: Policy | None) -> Request:
    """The same request in the words for larger models. Tensors have no wording."""
    if request.tensors or not request.options:
        return request
    task = policy.task if policy else generic(request.options)
    messages = (*request.messages[:-1], *task.for_cloud(request.text))
    return dataclasses.replace(request, messages=messages)


def _report(
    local: LocalModel | LocalClassifier | None, answer: LocalAnswer | None, decision: Decision
) -> DeviceReport:
    if local is None or answer is None:
        return DeviceReport()
    return DeviceReport(
        confidence=decision.confidence,
        raw_score=answer.raw_score,
        base_digest=local.info.base_digest,
        adapter_digest=answer.adapter_digest,
        tokenizer_digest=local.info.tokenizer_digest,
        signals=answer.signals,
    )

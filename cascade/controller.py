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

from cascade.checks import Checks
from cascade.constraints import refusal
from cascade.decision_record import DecisionRecord
from cascade.egress import Egress, Passage
from cascade.errors import Cancelled, CascadeError, DeadlineExceeded, InvalidInput, RemoteError
from cascade.events import DEVICE, Answer, Event, Final, Latency, Superseded, Token
from cascade.local import CancelToken, LocalAnswer, LocalClassifier, LocalModel, Unreadable
from cascade.monitor import Monitor
from cascade.policy import (
    Decision,
    Policy,
    PolicyStore,
    Reason,
    conclude,
    decide,
    obstacles_to_escalation,
)
from cascade.remote import (
    Accepted,
    Chunk,
    DeviceReport,
    Finished,
    Remote,
    Transfer,
    whole_answer,
)
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
        egress: what a request passes on its way to the cluster; by default nothing but its own
            limits.
        checks: what the device's answers have to pass.
        on_decision: told about every decision, with all that it was made from.
    """

    def __init__(
        self,
        local: LocalModel | LocalClassifier | None,
        remote: Remote | None,
        policies: PolicyStore | None = None,
        monitor: Monitor | None = None,
        *,
        egress: Egress | None = None,
        checks: Checks | None = None,
        on_decision: Callable[[DecisionRecord], None] | None = None,
    ) -> None:
        if local is None and remote is None:
            raise InvalidInput("local", "is None and so is remote; give at least one of them")
        self._local = local
        self._remote = remote
        self._policies = policies
        self._monitor = monitor
        self._egress = egress or Egress()
        self._checks = checks or Checks()
        self._on_decision = on_decision

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
        self._checks.require(request.checks)
        state = _State(request)
        policy = self._policy(request)
        bound = bool(obstacles_to_escalation(request.constraints, cluster=self._remote is not None))
        if self._local is not None and request.prefer == "device":
            async with contextlib.aclosing(
                self._try_locally(self._local, state, policy, show, alone=bound)
            ) as pieces:
                async for event in pieces:
                    yield event
        else:
            state.reasons.append(Reason.CLOUD_PREFERRED if self._local else Reason.NO_LOCAL_MODEL)
        decision, passage = await self._judge(state, policy)
        if passage is not None and decision.escalate and self._remote is not None:
            async with contextlib.aclosing(
                self._escalate(self._remote, passage, state, policy, decision)
            ) as events:
                async for event in events:
                    yield event
            if state.answer is not None:
                yield Final(state.answer)
                return
        try:
            for event in self._answer_locally(state, decision):
                yield event
        finally:  # behind the last event, also where the reader leaves with it
            self._audit(state, policy, decision, bound)

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

        decode = asyncio.create_task(
            asyncio.to_thread(_decode, local, state.request, policy, on_text, cancel)
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

    async def _judge(self, state: _State, policy: Policy | None) -> tuple[Decision, Passage | None]:
        """The verdict, and the way out that was looked at unless the answer was accepted."""
        local, request = state.local, state.request
        unanswered = () if local else tuple(state.reasons)
        vetoes: tuple[str, ...] = ()
        if local is not None and self._checks.apply(request.task_id, request.checks):
            vetoes = await asyncio.to_thread(
                self._checks.vetoes, local.text, request.task_id, request.checks
            )

        demoted = policy is not None and self._monitor is not None and self._monitor.demoted(policy)

        def judged(obstacles: tuple[str, ...]) -> Decision:
            if local is None:
                return conclude(unanswered, None, (), obstacles)
            return decide(policy, local, obstacles, vetoes, demoted=demoted)

        decision, passage = judged(()), None
        if not decision.accept:
            judged_by = None if decision.confidence is None else local
            sent = _for_cloud(request, policy)
            passage = await self._egress.prepare(
                policy.onward(sent, judged_by) if policy else sent,
                remaining_s=state.remote_deadline_s(),
                cluster=self._remote is not None,
            )
            if not passage.obstacles:
                await self._egress.admit(passage)
            decision = judged(passage.obstacles)
        self._watch(policy, local, decision)
        if self._on_decision is not None:
            self._on_decision(
                DecisionRecord.of(
                    passage.request if passage else request,
                    policy,
                    local,
                    decision,
                    unanswered=unanswered,
                    vetoes=vetoes,
                    demoted=demoted,
                    situation=passage.situation if passage else None,
                )
            )
        if local is None and passage is not None and passage.obstacles:
            raise state.local_problem or refusal(passage.obstacles)
        return decision, passage

    def _watch(self, policy: Policy | None, local: LocalAnswer | None, decision: Decision) -> None:
        """Tell the monitor about an answer whose score is of the policy's own kind."""
        other = {Reason.UNCERTIFIED_TASK, Reason.UNCERTIFIED_MODE}
        if self._monitor is None or policy is None or local is None or other & {*decision.reasons}:
            return
        self._monitor.answered(policy, score=local.raw_score, accepted=decision.accept)

    def _audit(self, state: _State, policy: Policy | None, decision: Decision, bound: bool) -> None:
        """Let the monitor audit an accepted answer, by the cluster where the request may leave.

        Arguments:
            bound: it may not, whatever the situation is.
        """
        if self._monitor is None or policy is None or state.local is None or not decision.accept:
            return
        ask = None
        if self._remote is not None and not bound:
            ask = functools.partial(self._opinion, self._remote, state, policy, decision)
        self._monitor.accepted(policy, state.request, state.local.text, ask)

    async def _opinion(
        self, remote: Remote, state: _State, policy: Policy, decision: Decision
    ) -> str:
        """The cluster's answer to the same request, by the same way out as an escalation.

        Raises:
            CascadeError: the situation forbids to ask, or the call failed.
        """
        deadline_s = state.request.constraints.deadline_s
        passage = await self._egress.prepare(
            _for_cloud(state.request, policy), remaining_s=deadline_s, cluster=True
        )
        if not passage.obstacles:
            await self._egress.admit(passage)
        if passage.obstacles:
            raise refusal(passage.obstacles)
        text, _ = await whole_answer(
            self._egress.answer(
                remote,
                passage,
                _report(self._local, state.local, decision),
                deadline_s=deadline_s,
                transfer=Transfer(),
            )
        )
        return text

    async def _escalate(
        self,
        remote: Remote,
        passage: Passage,
        state: _State,
        policy: Policy | None,
        decision: Decision,
    ) -> AsyncGenerator[Event, None]:
        """Stream the cluster's answer; sets ``state.answer`` when it is complete."""
        started = time.perf_counter()
        deadline_s = state.remote_deadline_s()
        reply = _Reply()
        report = _report(self._local, state.local, decision)
        if policy is not None:
            report = policy.reported(report, state.local, decision)
        try:
            if deadline_s <= 0:
                raise RemoteError("DEADLINE_EXCEEDED", "no time was left to ask the cluster")
            stream = self._egress.answer(
                remote,
                passage,
                report,
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
                            reply = _Reply(tier, name, calls=reply.calls + 1)
                        case Chunk(piece, count):
                            state.shown = reply.source
                            reply.add(piece, count)
                            yield Token(piece, reply.source, provisional=False)
                        case Finished():
                            state.remote_s = time.perf_counter() - started
                            for shown in state.finish(reply, event, decision, self._local):
                                yield shown
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
        events = state.show_locally(local.text)
        events.append(Final(state.local_answer(local, decision, reasons, self._local)))
        return events


@dataclass(slots=True)
class _Reply:
    """What the cluster has said of the answer that it is at; ``calls`` counts the tiers so far."""

    source: str = ""
    model: str = ""
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    calls: int = 0

    @classmethod
    def of(cls, local: LocalAnswer, model: str) -> _Reply:
        """The device's own answer, which the cluster said is the one to take."""
        return cls(DEVICE, model, [local.text], local.tokens, calls=2)

    def add(self, piece: str, count: int) -> None:
        self.text.append(piece)
        self.tokens += count


@dataclass(slots=True)
class _State:
    """What one request has gathered so far."""

    request: Request
    started: float = field(default_factory=time.perf_counter)
    reasons: list[Reason] = field(default_factory=list)
    local: LocalAnswer | None = None
    local_problem: InvalidInput | None = None
    transfer: Transfer = field(default_factory=Transfer)
    remote_s: float = 0.0
    remote_error: RemoteError | None = None
    shown: str | None = None  # source of the text that the application holds
    answer: Answer | None = None

    def remaining_s(self) -> float:
        return self.request.constraints.deadline_s - (time.perf_counter() - self.started)

    def remote_deadline_s(self) -> float:
        """What the cluster may take of it."""
        return self.remaining_s() - (_RETURN_MARGIN_S if self.local is not None else 0.0)

    def latency(self) -> Latency:
        prefill_s, decode_s = (
            (self.local.prefill_s, self.local.decode_s) if self.local else (0.0, 0.0)
        )
        return Latency(time.perf_counter() - self.started, prefill_s, decode_s, self.remote_s)

    def finish(
        self,
        reply: _Reply,
        finished: Finished,
        decision: Decision,
        model: LocalModel | LocalClassifier | None,
    ) -> list[Event]:
        """Set ``answer``; the events before it, where it is the device's own that is to be taken.
        Such a one that the device does not have is no answer."""
        shown: list[Event] = []
        if finished.tier == DEVICE:
            if self.local is None:
                return shown
            reply = _Reply.of(self.local, _name(model))
            shown = self.show_locally(self.local.text)
        self.answer = self.remote_answer(reply, finished, decision)
        return shown

    def show_locally(self, text: str) -> list[Event]:
        """What brings the device's own text to the application, where it does not hold it yet."""
        events: list[Event] = []
        if self.shown not in (None, DEVICE):  # a broken remote answer
            events.append(Superseded(DEVICE))
        if self.shown != DEVICE and text:
            events.append(Token(text, DEVICE, provisional=False))
        self.shown = DEVICE
        return events

    def bounds(self) -> ScoreBounds | None:
        return self.local.options.bounds if self.local and self.local.options else None

    def remote_answer(self, reply: _Reply, finished: Finished, decision: Decision) -> Answer:
        return Answer(
            request_id=self.request.request_id,
            text="".join(reply.text),
            source=finished.tier,
            model=finished.model or reply.model,
            confidence=finished.confidence,
            raw_score=self.local.raw_score if self.local else None,
            verified=True,
            reasons=(*decision.reasons, *finished.reasons),
            latency=self.latency(),
            # Of several tiers, the cluster counts the tokens together.
            tokens=reply.tokens if reply.calls > 1 else finished.completion_tokens,
            local_tokens=self.local.tokens if self.local else 0,
            cloud_prompt_tokens=finished.prompt_tokens,
            cloud_completion_tokens=finished.completion_tokens,
            bytes_up=self.transfer.bytes_up,
            bytes_down=self.transfer.bytes_down,
            cost_usd=finished.cost_usd,
            device_confidence=decision.confidence,
            finish=finished.reason,
            bounds=self.bounds(),
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
            model=_name(model),
            confidence=decision.confidence,
            raw_score=local.raw_score,
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
            finish="length" if local.finish == "length" else "stop",
            bounds=self.bounds(),
        )


def _name(model: LocalModel | LocalClassifier | None) -> str:
    return model.info.name if model else ""


def _decode(
    local: LocalModel | LocalClassifier,
    request: Request,
    policy: Policy | None,
    on_text: Callable[[str], None],
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

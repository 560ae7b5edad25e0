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
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from cascade.checks import Checks
from cascade.constraints import refusal
from cascade.decision_record import DecisionRecord
from cascade.egress import Egress, Passage
from cascade.errors import CascadeError, DeadlineExceeded, InvalidInput, RemoteError
from cascade.events import DEVICE, Answer, Event, Final, Superseded, Token
from cascade.local import LocalAnswer, LocalClassifier, LocalModel, Unreadable
from cascade.local_decode import LocalDecode
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
    Finished,
    Remote,
    RemoteEvent,
    Transfer,
    Verified,
    whole_answer,
)
from cascade.request import Request
from cascade.request_state import Reply, RequestState
from cascade.task import OUT_OF_SCOPE, generic

Show = Literal["final", "provisional"]


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
        on_decision: told about every decision, with all that it was made from; of one that sends a
            draft once the call has ended, and what was kept is known.
        on_answer: told about every answer before it is given, with the device's own if it tried.
            Must be quick, and must not raise.
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
        on_answer: Callable[[Request, LocalAnswer | None, Answer], None] | None = None,
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
        self._on_answer = on_answer
        self._kept: Counter[str] = Counter()

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
        state = RequestState(request, self._local.info if self._local else None)
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
        try:
            async with contextlib.aclosing(self._answered(state, policy, bound=bound)) as events:
                async for event in events:
                    yield event
        finally:
            if state.decode is not None:
                await state.decode.leave()
            self._tell(state)  # of one whose call was left

    async def _answered(
        self, state: RequestState, policy: Policy | None, *, bound: bool
    ) -> AsyncGenerator[Event, None]:
        """What follows the device's own attempt."""
        decision, passage = await self._judge(state, policy)
        if passage is not None and decision.escalate and self._remote is not None:
            async with contextlib.aclosing(
                self._escalate(self._remote, passage, state, policy, decision)
            ) as events:
                async for event in events:
                    yield event
            if state.answer is not None:
                yield self._final(state, state.answer)
                return
        await self._leave(state)
        if state.went_on and state.shown == DEVICE and not state.cut:
            state.shown = None  # the application holds a part of what is there now
            yield Superseded(DEVICE)
        if state.cut and self._local is not None:
            async with contextlib.aclosing(self._finish_locally(self._local, state)) as events:
                async for event in events:
                    yield event
        if decision.accept:
            self._kept[state.request.task_id] += 1
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
        state: RequestState,
        policy: Policy | None,
        show: Show,
        *,
        alone: bool,
    ) -> AsyncGenerator[Event, None]:
        """Let the device answer into ``state.local``; yields its text where it is shown already.

        Arguments:
            alone: nobody else can answer, so what the device writes stands.
        """
        drafting = None if alone else state.drafting(policy)
        if drafting is not None:
            drafting = await self._egress.learned(state.request, drafting)
        decode = LocalDecode(
            local,
            state.request,
            policy,
            stops=not alone,
            drafting=drafting,
            goes_on=not self._egress.reads_first,
        )
        try:
            async with contextlib.aclosing(decode.pieces(state.remaining_s())) as pieces:
                async for text in pieces:
                    if alone or show == "provisional":
                        state.shown = DEVICE
                        yield Token(text, DEVICE, provisional=not alone)
        except InvalidInput as problem:
            # A larger model may still be able to read what this one cannot.
            beyond = problem.field == "prompt" or isinstance(problem, Unreadable)
            if not beyond or self._remote is None:
                raise
            state.reasons.append(Reason.LOCAL_FAILED)
            state.local_problem = problem
        else:
            state.local, state.fired, state.saved = decode.answer, decode.fired, decode.saved
            state.decode = decode

    async def _leave(self, state: RequestState) -> None:
        """End a decode that goes on as a draft; what it has written is the device's answer."""
        if state.decode is not None and state.local is not None:
            await state.decode.leave()
            state.local = state.decode.answer

    async def _finish_locally(
        self, local: LocalModel | LocalClassifier, state: RequestState
    ) -> AsyncGenerator[Event, None]:
        """Write the whole of an answer that was stopped, for nobody came to replace it; as much of
        it as time allows. Streams it: nothing can take its place."""
        part, spare_s = state.local, state.spare_s()
        if part is None or spare_s <= 0:
            return
        if state.shown is not None:
            state.shown = None
            yield Superseded(DEVICE)
        decode = LocalDecode(local, state.request, None, stops=False)
        with contextlib.suppress(DeadlineExceeded):
            async with contextlib.aclosing(decode.pieces(spare_s)) as pieces:
                async for text in pieces:
                    state.shown = DEVICE
                    yield Token(text, DEVICE, provisional=False)
        written = decode.answer
        if written is not None and (written.whole or written.tokens >= part.tokens):
            state.local = written
            state.thrown_away += part.tokens
            return
        state.thrown_away += written.tokens if written is not None else 0
        if state.shown is not None:
            state.shown = None
            yield Superseded(DEVICE)

    async def _judge(
        self, state: RequestState, policy: Policy | None
    ) -> tuple[Decision, Passage | None]:
        """The verdict, and the way out that was looked at unless the answer was accepted."""
        local, request = state.local, state.request
        unanswered = () if local else tuple(state.reasons)
        vetoes: tuple[str, ...] = ()
        wanted = self._checks.apply(request.task_id, request.checks)
        if local is not None and local.whole and wanted:
            vetoes = await asyncio.to_thread(
                self._checks.vetoes, local.text, request.task_id, request.checks
            )

        if policy is not None and local is not None and policy.task.is_outside(local.text):
            vetoes = (*vetoes, OUT_OF_SCOPE)
        demoted = policy is not None and self._monitor is not None and self._monitor.demoted(policy)

        def judged(obstacles: tuple[str, ...]) -> Decision:
            if local is None:
                return conclude(unanswered, None, (), obstacles)
            return decide(policy, local, obstacles, vetoes, demoted=demoted, stopped=state.fired)

        decision, passage = judged(()), None
        if not decision.accept:
            judged_by = None if decision.confidence is None else local
            sent = _for_cloud(request, policy)
            passage = await self._egress.prepare(
                policy.onward(sent, judged_by) if policy else sent,
                remaining_s=state.spare_s(),
                cluster=self._remote is not None,
            )
            # What stays here for its own sake takes no money and no turn of the cluster.
            if decision.escalate and not passage.obstacles:
                await self._egress.admit(passage)
            decision = judged(passage.obstacles)
        self._watch(policy, state, decision)
        state.untold = DecisionRecord.of(
            passage.request if passage else request,
            policy,
            local,
            decision,
            unanswered=unanswered,
            vetoes=vetoes,
            demoted=demoted,
            stopped=state.fired,
            situation=passage.situation if passage else None,
        )
        if not decision.escalate or state.draft(decision) is None:
            self._tell(state)
        if local is None and passage is not None and passage.obstacles:
            raise state.local_problem or refusal(passage.obstacles)
        return decision, passage

    def _tell(self, state: RequestState, draft_kept: int | None = None) -> None:
        """Tell of the decision, once."""
        record, state.untold = state.untold, None
        if record is not None and self._on_decision is not None:
            self._on_decision(
                dataclasses.replace(record, draft_tokens=state.drafted, draft_kept=draft_kept)
            )

    def _watch(self, policy: Policy | None, state: RequestState, decision: Decision) -> None:
        """Tell the monitor about an answer whose score is of the policy's own kind.

        One that the policy's rule stops has none, and is left out also where it was written to its
        end: or else whether somebody else can answer would change the scores that are watched.
        """
        local, other = state.local, {Reason.UNCERTIFIED_TASK, Reason.UNCERTIFIED_MODE}
        if self._monitor is None or policy is None or local is None or other & {*decision.reasons}:
            return
        if state.fired:
            return
        self._monitor.answered(policy, score=local.raw_score, accepted=decision.accept)

    def _audit(
        self, state: RequestState, policy: Policy | None, decision: Decision, bound: bool
    ) -> None:
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
        self, remote: Remote, state: RequestState, policy: Policy, decision: Decision
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
                state.report(decision),
                deadline_s=deadline_s,
                transfer=Transfer(),
            )
        )
        return text

    async def _escalate(
        self,
        remote: Remote,
        passage: Passage,
        state: RequestState,
        policy: Policy | None,
        decision: Decision,
    ) -> AsyncGenerator[Event, None]:
        """Stream the cluster's answer; sets ``state.answer`` when it is complete."""
        started = time.perf_counter()
        deadline_s = state.spare_s()
        reply = Reply()
        draft = state.proposed = state.draft(decision)
        report = state.reported(policy, decision)
        try:
            if deadline_s <= 0:
                raise RemoteError("DEADLINE_EXCEEDED", "no time was left to ask the cluster")
            task_id = state.request.task_id
            report = dataclasses.replace(report, kept=self._kept.pop(task_id, 0))
            stream = self._told(
                task_id,
                report.kept,
                self._egress.answer(
                    remote,
                    passage,
                    report,
                    deadline_s=deadline_s,
                    transfer=state.transfer,
                    draft=draft,
                ),
            )
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    match event:
                        case Accepted(tier, name):
                            state.stop_drafting()
                            if state.shown is not None:
                                state.shown = None
                                yield Superseded(tier)
                            reply = Reply(tier, name, calls=reply.calls + 1)
                        case Chunk(piece, count):
                            state.shown = reply.source
                            reply.add(piece, count)
                            yield Token(piece, reply.source, provisional=False)
                        case Verified(kept):
                            reply.draft_kept = kept
                        case Finished():
                            mine = event.tier == DEVICE
                            self._tell(state, None if mine else reply.draft_kept)
                            await self._leave(state)
                            state.remote_s = time.perf_counter() - started
                            for shown in state.finish(reply, event, decision):
                                yield shown
        except RemoteError as problem:
            state.remote_s = time.perf_counter() - started
            self._tell(state)
            if state.local is None:
                raise _without_answer(problem, state.request) from None
            state.remote_error = problem
        else:
            if state.answer is None:
                state.remote_error = RemoteError("INTERNAL", "the cluster ended without an answer")

    async def _told(
        self, task_id: str, kept: int, events: AsyncGenerator[RemoteEvent, None]
    ) -> AsyncGenerator[RemoteEvent, None]:
        """The cluster's events. Where there is none, what was kept is told the next time."""
        told = False
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    told = True
                    yield event
        finally:
            if not told:
                self._kept[task_id] += kept

    def _answer_locally(self, state: RequestState, decision: Decision) -> list[Event]:
        """The last events of a request that the device answers."""
        local = state.local
        if local is None:  # only after a remote failure, which then was raised
            raise state.remote_error or RemoteError("INTERNAL", "there is no answer")
        events = state.show_locally(local.text)
        events.append(self._final(state, state.local_answer(local, decision)))
        return events

    def _final(self, state: RequestState, answer: Answer) -> Final:
        if self._on_answer is not None:
            self._on_answer(state.request, state.local, answer)
        return Final(answer)


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

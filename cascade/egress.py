"""What stands between a decision to escalate and the network: it surveys, admits, and keeps watch.

``prepare`` measures the situation that the constraints look at (``cascade.constraints``) and words
the request as it may be sent; ``admit`` sets money aside; ``answer`` makes the call, puts personal
data back into what comes, and learns from how it ended. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, Self

from cascade import home
from cascade.breaker import CircuitBreaker
from cascade.budget import BudgetLedger, BudgetState, MoneyLimits, Reservation
from cascade.conditions import Conditions, ConditionsSource, LinuxConditions
from cascade.constraints import Situation, obstacles
from cascade.draft import Drafting, DraftTape
from cascade.draft_book import DraftBook, DraftOutcome
from cascade.errors import CascadeError, RemoteError
from cascade.events import DEVICE
from cascade.latency import LatencyBook
from cascade.privacy import Inspection, Privacy, StreamRestorer
from cascade.remote import (
    Accepted,
    Chunk,
    DeviceReport,
    Finished,
    Remote,
    RemoteEvent,
    Transfer,
    Verified,
)
from cascade.request import Message, Request

_FAILURES: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


@dataclass(slots=True)
class Passage:
    """One request on its way out.

    Arguments:
        request: as it may be sent.
        situation: what the constraints looked at.
        values: what each placeholder in ``request`` stands for.
    """

    request: Request
    situation: Situation
    values: dict[str, str]
    reservation: Reservation | None = None

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it may not be sent; empty when it may."""
        return obstacles(self.request.constraints, self.situation)


class Egress:
    """The way out of one device to one cluster. Every part may be left out; without any, only the
    request's own limits hold.

    Arguments:
        money: the ledger that pays for calls.
        latency: how long tiers take; calls are measured into it.
        drafts: what drafts bring; what becomes of them is noted in it.
        conditions: the device's state.
        breaker: leaves a failing cluster alone.
        privacy: finds and replaces personal data.
        commercial: this device is used commercially: each of its requests is.
        cluster: a name for the cluster, e.g. its address; latencies are kept by it.
    """

    def __init__(
        self,
        *,
        money: BudgetLedger | None = None,
        latency: LatencyBook | None = None,
        drafts: DraftBook | None = None,
        conditions: ConditionsSource | None = None,
        breaker: CircuitBreaker | None = None,
        privacy: Privacy | None = None,
        commercial: bool = False,
        cluster: str = "",
    ) -> None:
        self._money = money
        self._latency = latency
        self._drafts = drafts
        self._conditions = conditions
        self._breaker = breaker
        self._privacy = privacy
        self.commercial = commercial
        self._cluster = cluster

    @classmethod
    def usual(
        cls,
        cluster: str = "",
        *,
        money: MoneyLimits | None = None,
        conditions: ConditionsSource | None = None,
        privacy: Privacy | None = None,
        commercial: bool = False,
    ) -> Self:
        """What a device uses unless told otherwise: spending, latencies and what drafts bring kept
        under ``CASCADE_HOME``, a circuit breaker, and the conditions that Linux tells.

        Arguments:
            money: how much may be spent; ``None`` sets no limit.
            conditions: the device's state from another source.
        """
        return cls(
            money=BudgetLedger(home.budget_path(), money) if money else None,
            latency=LatencyBook(home.latency_path()),
            drafts=DraftBook(home.drafts_path()),
            conditions=conditions or LinuxConditions(),
            breaker=CircuitBreaker(),
            privacy=privacy,
            commercial=commercial,
            cluster=cluster,
        )

    async def prepare(self, request: Request, *, remaining_s: float, cluster: bool) -> Passage:
        """Survey the situation and word the request as it may be sent.

        Arguments:
            request: in the words for larger models.
            remaining_s: what is left of the deadline for the cluster.
            cluster: whether there is one.
        """
        if self.commercial:
            request = _limited(request, commercial=True)
        return await asyncio.to_thread(self._prepare, request, remaining_s, cluster)

    async def admit(self, passage: Passage) -> None:
        """Set money aside for a passage without obstacles. Another process may have been faster:
        look at ``passage.obstacles`` again."""
        if self._breaker is not None and not self._breaker.enter():
            passage.situation = dataclasses.replace(passage.situation, circuit_open=True)
            return
        if self._money is not None:
            await asyncio.to_thread(self._reserve, self._money, passage)
            if passage.obstacles and self._breaker is not None:
                self._breaker.leave(None)

    async def answer(
        self,
        remote: Remote,
        passage: Passage,
        report: DeviceReport,
        *,
        deadline_s: float,
        transfer: Transfer,
        draft: DraftTape | None = None,
    ) -> AsyncGenerator[RemoteEvent, None]:
        """Make the call of an admitted passage. Events and errors are those of ``Remote``.

        Arguments:
            draft: goes along where it may: with privacy, only one that is written and in which
                nothing was found.
        """
        call, asked = _Call(passage), passage.request
        try:
            if draft is None or not await asyncio.to_thread(self._may_send, passage, draft):
                stream = remote.answer(asked, report, deadline_s=deadline_s, transfer=transfer)
            else:
                call.draft = draft
                stream = remote.answer(
                    asked, report, deadline_s=deadline_s, transfer=transfer, draft=draft
                )
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    for told in call.told(event):
                        yield told
        except RemoteError as problem:
            call.problem = problem
            raise
        finally:
            call.ended()
            # Also where the caller went away: what the call cost must not depend on that.
            await asyncio.shield(asyncio.to_thread(self._learn, call))

    async def learned(self, request: Request, drafting: Drafting) -> Drafting:
        """``drafting`` with the numbers that drafts have shown, as far as there were any."""
        if self._drafts is None:
            return drafting
        allowed = request.constraints.allowed_tiers
        return await asyncio.to_thread(self._drafts.learned, self._cluster, drafting, allowed)

    @property
    def reads_first(self) -> bool:
        """Whether everything that leaves is looked into, so that it must be written by then."""
        return self._privacy is not None

    def _may_send(self, passage: Passage, draft: DraftTape) -> bool:
        """Whether a draft holds nothing that the request itself would be kept here for, or be
        worded otherwise. One to a request with placeholders was written without them."""
        if self._privacy is None:
            return True
        if passage.values or not draft.ended:
            return False
        found = self._privacy.inspect(Request((Message("user", draft.text),)))
        return not found.forbidden and not found.values

    def _prepare(self, request: Request, remaining_s: float, cluster: bool) -> Passage:
        inspection = Inspection((), request, {})
        if self._privacy is not None and cluster:
            inspection = self._privacy.inspect(request)
        budget, unreadable = self._peek(request)
        situation = Situation(
            cluster=cluster,
            remaining_s=remaining_s,
            p95_s=self._latency.p95(self._key(request)) if self._latency else {},
            conditions=self._conditions.read() if self._conditions else Conditions(),
            circuit_open=self._breaker is not None and self._breaker.blocks,
            budget=budget,
            budget_unreadable=unreadable,
            pii=inspection.forbidden,
        )
        sent = inspection.request
        if budget is not None:
            sent = _limited(sent, max_cost_usd=budget.needed_usd)
        return Passage(sent, situation, inspection.values)

    def _peek(self, request: Request) -> tuple[BudgetState | None, bool]:
        if self._money is None:
            return None, False
        needed_usd = self._money.limits.call_usd(request.constraints.max_cost_usd)
        if needed_usd is None:
            return None, False
        try:
            return self._money.peek(needed_usd), False
        except CascadeError:
            return None, True

    def _reserve(self, money: BudgetLedger, passage: Passage) -> None:
        budget = passage.situation.budget
        if budget is None:
            return
        try:
            state, passage.reservation = money.reserve(budget.needed_usd)
            passage.situation = dataclasses.replace(passage.situation, budget=state)
        except CascadeError:
            passage.situation = dataclasses.replace(passage.situation, budget_unreadable=True)

    def _learn(self, call: _Call) -> None:
        """Runs in a worker thread."""
        if self._breaker is not None:
            self._breaker.leave(call.outcome)
        if self._conditions is not None and call.outcome is not None:
            self._conditions.note_call(call.reached)
        if self._latency is not None and call.measured and call.tier:
            self._latency.record(self._key(call.passage.request) + call.tier, call.seconds)
        if self._drafts is not None and call.draft is not None:
            outcome = call.draft_outcome(call.draft)
            if outcome is not None:
                self._drafts.record(self._cluster, call.tier, call.draft.drafting, outcome)
        if call.passage.reservation is not None and call.cost_usd is not None:
            self._settle(call.passage.reservation, call.cost_usd)

    def _settle(self, reservation: Reservation, cost_usd: float) -> None:
        # Where the ledger cannot be written, the money stays spent, and the answer is not lost.
        if self._money is not None:
            with contextlib.suppress(CascadeError):
                self._money.settle(reservation, cost_usd)

    def _key(self, request: Request) -> str:
        """Answers of one form take about as long: one word of a set, or a text."""
        return f"{self._cluster} {'closed' if request.options else 'free'} "


class _Call:
    """What is learnt of one call while it goes on."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.problem: RemoteError | None = None
        self.seconds = 0.0
        self.draft: DraftTape | None = None  # that went along
        self._draft_kept: int | None = None
        self._started = time.perf_counter()
        self._accepted = ""
        self._finished: Finished | None = None
        self._restorer = StreamRestorer(passage.values)
        self._unsaid = 0

    def told(self, event: RemoteEvent) -> list[RemoteEvent]:
        """What the application is told of an event."""
        match event:
            case Accepted():
                self._accepted, self._draft_kept = event.tier, None
                self._restorer, self._unsaid = StreamRestorer(self.passage.values), 0
                return [event]
            case Chunk():
                self._unsaid += event.count
                return self._said(self._restorer.feed(event.text))
            case Verified():
                self._draft_kept = event.kept
                return [event]
            case Finished():
                self._finished = event
                return [*self._said(self._restorer.end()), event]

    def ended(self) -> None:
        """The call is over, in whatever way."""
        self.seconds = time.perf_counter() - self._started

    @property
    def outcome(self) -> bool | None:
        """Whether the cluster answered in some way; ``None`` where it was given no time to."""
        if self.problem is not None:
            return self.problem.status not in _FAILURES
        return True if self._accepted or self._finished else None

    @property
    def reached(self) -> bool:
        """Whether there was a connection."""
        return bool(self._accepted) or self.problem is None or self.problem.status != "UNAVAILABLE"

    @property
    def tier(self) -> str:
        """The tier that it was, or would have been, where one can tell."""
        if self._finished is not None and self._finished.tier != DEVICE:
            return self._finished.tier
        allowed = self.passage.request.constraints.allowed_tiers or frozenset()
        return self._accepted or (next(iter(allowed)) if len(allowed) == 1 else "")

    @property
    def measured(self) -> bool:
        """Whether ``seconds`` says something about the tier. A missed deadline says that it takes
        at least as long."""
        late = self.problem is not None and self.problem.status == "DEADLINE_EXCEEDED"
        return self._finished is not None or late

    def draft_outcome(self, draft: DraftTape) -> DraftOutcome | None:
        """What became of the draft; ``None`` where no tier has looked at it and answered."""
        finished, kept = self._finished, self._draft_kept
        if finished is None or finished.tier == DEVICE or kept is None:
            return None
        # With its last token an answer ends, and what the draft says of the next one is not asked.
        cut = finished.reason == "length" and finished.completion_tokens <= kept
        kept = min(kept, draft.sent)
        return DraftOutcome(kept, kept < draft.sent and not cut, finished.speed)

    @property
    def cost_usd(self) -> float | None:
        """What it cost, or ``None`` where one cannot tell: then all that was set aside stays spent.
        A call that was refused before a tier took it costs nothing."""
        if self._finished is not None:
            return self._finished.cost_usd
        late = self.problem is None or self.problem.status == "DEADLINE_EXCEEDED"
        return None if self._accepted or late else 0.0

    def _said(self, text: str) -> list[RemoteEvent]:
        if not text:
            return []
        count, self._unsaid = self._unsaid, 0
        return [Chunk(text, count)]


def _limited(request: Request, **limits: object) -> Request:
    constraints = dataclasses.replace(request.constraints, **limits)  # type: ignore[arg-type]
    return dataclasses.replace(request, constraints=constraints)

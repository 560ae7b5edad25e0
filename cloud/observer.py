"""What operators are told of requests: metrics, recent figures and spans.

It stands around the router and around each way to a tier, and changes nothing of what passes: how
requests are routed, climbed and hedged is no business of this module.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Final, Protocol

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput, RemoteError
from cascade.instruments import Bounded
from cascade.remote import DeviceReport, EventsAtOnce, Finished, RemoteEvent, Verified
from cascade.tracing import Span, start_span
from cascade.wire import Answerer, CallRecord, OpenRequest
from cloud import metrics
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.federation.figures import RoundFigures
from cloud.figures import Figures, Recent
from cloud.metrics import Meters
from cloud.policy_state import PolicyState
from cloud.tier import Refused, TierMessage

# What the caller, and not the cluster, is to blame for.
_NOT_FAILED: Final = frozenset({"OK", "CANCELLED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"})


class TierStream(Protocol):
    """How a tier is reached; see ``cloud.routing``."""

    def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]: ...


class Observer:
    """Observes one gateway. Use it on one event loop.

    Arguments:
        config: names the tiers, their prices, and the tasks that metrics may name.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.meters = Meters()
        self._tiers = config.tiers
        self._recent = {tier.name: Recent() for tier in config.tiers}
        self._replicas: dict[str, int] = {}
        wanted = config.gateway.metrics
        self._task = Bounded(wanted.tasks if wanted else ())
        self.meters.set(metrics.CAPACITY, config.gateway.max_concurrent_requests)
        for tier in config.tiers:  # from the start, so that the first call is a change
            self.meters.add(metrics.TIER_CALLS, 0, tier.name, "OK")
            self.meters.add(metrics.TIER_COST, 0, tier.name)
            self.meters.set(metrics.TIER_WAITING, 0, tier.name)
            self.meters.set(metrics.TIER_ANSWERING, 0, tier.name)

    def answerer(self, answerer: Answerer) -> Answerer:
        """The same, observed."""
        return _Answerer(answerer, self)

    def tiers(self, streams: Mapping[str, TierStream]) -> dict[str, TierStream]:
        """The same ways to the tiers, observed."""
        known = {tier.name: tier for tier in self._tiers}
        return {
            name: _Tier(known[name], stream, self.meters, self._recent[name])
            for name, stream in streams.items()
        }

    def called(self, record: CallRecord) -> None:
        """A call of the inference service has ended."""
        task = self._task(record.task_id)
        self.meters.add(metrics.REQUESTS, 1, record.status, task)
        self.meters.observe(metrics.REQUEST_SECONDS, record.seconds, record.status)

    def asked(self, request: OpenRequest) -> None:
        """A device sent a request."""
        task, report = self._task(request.task_id), request.report
        self.meters.add(metrics.ESCALATIONS, 1, task, _judged(report))
        self.meters.add(metrics.KEPT, report.kept, task)
        if report.confidence is not None:
            self.meters.observe(metrics.CONFIDENCE, report.confidence, task)

    def answered(self, finished: Finished) -> None:
        """A request has its answer."""
        # Told here alone: a tier that ignores a draft is not given it.
        if f"{finished.tier}:draft_ignored" in finished.reasons:
            self.meters.add(metrics.TIER_DRAFTS, 1, finished.tier, "ignored")

    def serving(self, replicas: Mapping[str, int], up: Mapping[str, bool]) -> None:
        """How many replicas of each tier run, and which tiers answer."""
        self._replicas = dict(replicas)
        for tier, serves in up.items():
            self.meters.set(metrics.TIER_UP, float(serves), tier)
            self.meters.set(metrics.TIER_REPLICAS, replicas.get(tier, 0), tier)

    def policies(self, state: PolicyState) -> None:
        """What the registry serves."""
        self.meters.replace(metrics.POLICY_RISK, state.risk)
        self.meters.replace(metrics.POLICY_DELTA, state.delta)
        self.meters.replace(metrics.POLICY_COVERAGE, state.coverage)
        self.meters.replace(metrics.POLICIES, state.served)
        self.meters.set(metrics.REGISTRY_READ, time.time())

    def federation(self, state: RoundFigures) -> None:
        """How federated rounds stand."""
        meters = self.meters
        meters.set(metrics.FEDERATION_DEVICES, state.devices)
        meters.replace(metrics.FEDERATION_ROUNDS, _labelled(state.rounds))
        meters.replace(metrics.FEDERATION_LEASES, _labelled(state.leases))
        meters.replace(metrics.FEDERATION_UPDATES, dict(state.updates.items()))
        meters.set(metrics.FEDERATION_BYTES, state.update_bytes)
        if state.aggregation_error is not None:
            meters.set(metrics.FEDERATION_ERROR, state.aggregation_error)
        meters.replace(metrics.FEDERATION_EPSILON, _labelled(state.epsilon))

    def figures(self) -> dict[str, Figures]:
        """Of each tier, as of now."""
        return {
            name: recent.figures(self._replicas.get(name, 0))
            for name, recent in self._recent.items()
        }


@dataclasses.dataclass(slots=True)
class _Way:
    """What is known of the request that the task at hand answers.

    Arguments:
        traceparent: of the gateway's own span.
        deciding: the span of choosing a tier, until one is asked.
    """

    traceparent: str
    deciding: Span | None

    def decided(self, tier: str) -> None:
        """A tier is asked, or nobody will be."""
        deciding, self.deciding = self.deciding, None
        if deciding is not None:
            deciding.note({"cascade.tier": tier or None})
            deciding.end("" if tier else "REFUSED")


_way: ContextVar[_Way | None] = ContextVar("way", default=None)


class _Answerer:
    """An ``Answerer`` that is observed."""

    def __init__(self, answerer: Answerer, observer: Observer) -> None:
        self._answerer = answerer
        self._observer = observer

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent | EventsAtOnce]:
        self._observer.asked(request)
        way = _Way(request.traceparent, start_span("ladder.decide", request.traceparent))
        # The call has a task of its own, and what it starts inherits this.
        _way.set(way)
        meters = self._observer.meters
        meters.add(metrics.UNDER_WAY, 1)
        try:
            async with aclosing(self._answerer.answer(request)) as events:
                async for told in events:
                    for event in told if isinstance(told, tuple) else (told,):
                        if isinstance(event, Finished):
                            self._observer.answered(event)
                    yield told
        finally:
            meters.add(metrics.UNDER_WAY, -1)
            way.decided("")


class _Tier:
    """A way to a tier that is observed."""

    def __init__(
        self, tier: TierConfig, stream: TierStream, meters: Meters, recent: Recent
    ) -> None:
        self._tier = tier
        self._stream = stream
        self._meters = meters
        self._recent = recent

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        if request.prefill:  # a part of the call that follows, and counted there
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    yield message
            return
        way = _way.get()
        if way is not None:
            way.decided(self._tier.name)
        span = start_span("tier.call", way.traceparent if way else "", kind="client")
        span.note({"cascade.tier": self._tier.name, "cascade.model": self._tier.model_name})
        request = dataclasses.replace(request, traceparent=span.traceparent)
        call = _Call(self._tier, self._meters, self._recent, request.draft)
        code = "CANCELLED"  # what a stream that is closed early ends with
        try:
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    call.heard(message)
                    yield message
            code = call.code or "UNAVAILABLE"
        except InvalidInput:
            code = "INVALID_ARGUMENT"
            raise
        except RemoteError as error:
            code = error.status
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            # A reader may leave as soon as it has the whole answer.
            call.ended(call.code or code)
            span.note(call.told())
            span.end("" if call.code == "OK" else call.code or code)


class _Call:
    """One call to a tier, while it goes on."""

    def __init__(
        self, tier: TierConfig, meters: Meters, recent: Recent, draft: DraftProposal | None
    ) -> None:
        self.code = ""  # once the tier has said how it ends
        self._draft = draft
        self._kept: int | None = None
        self._tier = tier
        self._meters = meters
        self._recent = recent
        self._began = time.monotonic()
        self._begun = False
        self._first_token_s: float | None = None
        self._done: Done | None = None
        self._seconds = 0.0
        self._prompt_tokens = self._written = 0
        recent.waiting += 1
        meters.add(metrics.TIER_WAITING, 1, tier.name)

    def heard(self, message: TierMessage) -> None:
        """The tier said something."""
        if isinstance(message, Refused):
            self.code = "INVALID_ARGUMENT" if message.field else message.status
            return
        if not self._begun:
            self._begun = True
            self._recent.waiting -= 1
            self._recent.answering += 1
            self._meters.add(metrics.TIER_WAITING, -1, self._tier.name)
            self._meters.add(metrics.TIER_ANSWERING, 1, self._tier.name)
        for event in message:
            match event:
                case Piece():
                    self._written += event.count
                    if self._first_token_s is None:
                        self._first_token_s = time.monotonic() - self._began
                case Started():
                    self._prompt_tokens = event.prompt_tokens or 0
                case Verified():
                    self._kept = event.kept
                case Done():
                    self._done, self.code = event, "OK"
                    self._seconds = time.monotonic() - self._began
                    self._prompt_tokens = event.prompt_tokens
                    self._written = event.completion_tokens

    def ended(self, code: str) -> None:
        """It is over."""
        name, meters = self._tier.name, self._meters
        if self._begun:
            self._recent.answering -= 1
            meters.add(metrics.TIER_ANSWERING, -1, name)
        else:
            self._recent.waiting -= 1
            meters.add(metrics.TIER_WAITING, -1, name)
        meters.add(metrics.TIER_CALLS, 1, name, code)
        if self._first_token_s is not None:
            meters.observe(metrics.TIER_FIRST_TOKEN, self._first_token_s, name)
        if self._done is not None:
            meters.observe(metrics.TIER_SECONDS, self._seconds, name)
            meters.add(metrics.TIER_CACHED, self._done.cached_tokens, name)
        # Also of what was broken off: it was computed, and is charged.
        meters.add(metrics.TIER_PROMPT, self._prompt_tokens, name)
        meters.add(metrics.TIER_COMPLETION, self._written, name)
        meters.add(metrics.TIER_COST, self._cost_usd, name)
        if self._draft is not None:
            self._draft_ended(self._draft)
        self._recent.ended(
            failed=code not in _NOT_FAILED,
            seconds=None if self._done is None else self._seconds,
            tokens=self._written,
            cost_usd=self._cost_usd,
        )

    def _draft_ended(self, draft: DraftProposal) -> None:
        """What became of the device's draft."""
        name, kept = self._tier.name, self._kept
        if kept is None:
            self._meters.add(metrics.TIER_DRAFTS, 1, name, "unjudged")
            return
        # A draft of text alone has no tokens that the device could count.
        outcome = "none" if kept == 0 else "all" if kept >= len(draft.tokens) else "some"
        self._meters.add(metrics.TIER_DRAFTS, 1, name, outcome)
        self._meters.add(metrics.TIER_DRAFT_SENT, len(draft.tokens), name)
        self._meters.add(metrics.TIER_DRAFT_KEPT, kept, name)

    def told(self) -> dict[str, str | int | float | bool | tuple[str, ...] | None]:
        """What the span of it says."""
        return {
            "cascade.first_token_s": self._first_token_s,
            "cascade.prompt_tokens": self._prompt_tokens,
            "cascade.cached_prompt_tokens": self._done.cached_tokens if self._done else None,
            "cascade.completion_tokens": self._written,
            "cascade.cost_usd": self._cost_usd,
            "cascade.draft_tokens": len(self._draft.tokens) if self._draft else None,
            "cascade.draft_kept": self._kept,
        }

    @property
    def _cost_usd(self) -> float:
        return self._tier.price.cost_usd(self._prompt_tokens, self._written)


def _judged(report: DeviceReport) -> str:
    if report.confidence is not None:
        return "certified"
    return "untried" if report.raw_score is None else "uncertified"


def _labelled(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}

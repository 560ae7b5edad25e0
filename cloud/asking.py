"""All calls that one request makes to tiers: who may still be asked, by whom it is hedged, and what
they cost together. ``max_remote_calls``, money and time are one budget for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from cascade.errors import RemoteError
from cascade.latency import LatencyBook
from cascade.remote import Finished
from cascade.wire import OpenRequest
from cloud.attempt import Attempt, TierStream
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece
from cloud.hedge import hedged
from cloud.ladder import draft_cost_usd, max_cost_usd, max_output_tokens, obstacle_to
from cloud.served_adapters import ServedAdapters

# Kept back from the deadline where there is an answer that can be given instead: for the way to the
# device, and for a busy machine.
_MARGIN_SHARE: Final = 0.1
_MOST_MARGIN_S: Final = 0.5


class Asking:
    """The calls of one request.

    Arguments:
        first_tokens: how long each tier takes to its first token; what is seen is added.
        arrived: when the request did, by ``time.monotonic``; by default now.
        adapters: what is known of those of the tiers.
    """

    def __init__(
        self,
        config: ClusterConfig,
        streams: Mapping[str, TierStream],
        request: OpenRequest,
        first_tokens: LatencyBook,
        *,
        arrived: float | None = None,
        adapters: ServedAdapters | None = None,
    ) -> None:
        self.request = request
        self.attempts: list[Attempt] = []
        self._tiers = {tier.name: tier for tier in config.tiers}
        self._streams = streams
        self._adapters = adapters or ServedAdapters()
        self._first_tokens = first_tokens
        self._arrived = time.monotonic() if arrived is None else arrived

    @property
    def calls_left(self) -> int:
        """Calls that this request may still make."""
        return self.request.constraints.max_remote_calls - len(self.attempts)

    @property
    def remaining_s(self) -> float:
        """What is left of the deadline."""
        return self.request.constraints.deadline_s - self._elapsed_s

    @property
    def margin_s(self) -> float:
        """What is kept back of the deadline where an answer is at hand."""
        return min(_MOST_MARGIN_S, _MARGIN_SHARE * self.request.constraints.deadline_s)

    def tier(self, name: str) -> TierConfig:
        """The tier of that name."""
        return self._tiers[name]

    def obstacle(self, tier: TierConfig) -> str | None:
        """Why ``tier`` may not be asked now, in a word; ``None`` where it may."""
        spent_usd = self._committed_usd()
        obstacle = obstacle_to(tier, self.request, self._adapters, spent_usd=spent_usd)
        if obstacle is not None:
            return obstacle
        if self.calls_left < 1:
            return "max_remote_calls"
        return "deadline" if self.remaining_s <= 0 else None

    async def ask(
        self,
        tier: TierConfig,
        *,
        score: bool,
        within_s: float | None = None,
        hedge_with: TierConfig | None = None,
    ) -> AsyncGenerator[tuple[Attempt, list[EngineEvent]]]:
        """Ask a tier, and another one beside it where it is slow to begin. An empty batch says that
        a call begins.

        Arguments:
            score: whether the answer's raw score is needed.
            within_s: seconds after which the tier is left; ``None`` leaves that to the caller.
            hedge_with: who is asked too, if it may be, once ``tier`` has not written anything for
                its own p95.

        Raises:
            InvalidInput, RemoteError: see ``Attempt.events``; DEADLINE_EXCEEDED after ``within_s``.
        """
        async with aclosing(self._calls(tier, score, hedge_with)) as calls:
            if within_s is None:
                async for item in calls:
                    yield item
                return
            ends = time.monotonic() + within_s
            while True:
                try:
                    async with asyncio.timeout(ends - time.monotonic()):
                        item = await anext(calls)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise RemoteError(
                        "DEADLINE_EXCEEDED", f"{tier.name} did not answer within {within_s:.3g} s"
                    ) from None
                yield item

    def finished(
        self,
        attempt: Attempt | None,
        *,
        reasons: tuple[str, ...],
        tier: str,
        model: str,
        confidence: float | None = None,
    ) -> Finished:
        """The last event, with the bill of all calls.

        Arguments:
            attempt: whose answer it is; ``None`` for the device's.
        """
        done = attempt.done if attempt else None
        return Finished(
            reason=done.reason if done else "stop",
            prompt_tokens=sum(each.prompt_tokens for each in self.attempts),
            completion_tokens=sum(each.completion_tokens for each in self.attempts),
            cost_usd=sum(each.cost_usd for each in self.attempts),
            tier=tier,
            model=model,
            confidence=confidence,
            reasons=reasons,
            server_s=self._elapsed_s,
            raw_score=done.raw_score if done and self.request.score else None,
            speed=attempt.speed if attempt else None,
        )

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._arrived

    def _committed_usd(self) -> float:
        """What ended calls have cost, and what those under way may."""
        return sum(
            each.cost_usd if each.over else each.most_usd(self.request) for each in self.attempts
        )

    def _attempt(self, tier: TierConfig, score: bool) -> Attempt:
        drafted = self.request.draft is not None and self._reads_draft(tier)
        request = _chat_request(tier, self.request, score=score, drafted=drafted)
        announced = self.request.drafting is not None
        attempt = Attempt(
            tier, self._streams[tier.name], request, ignores_draft=announced and not drafted
        )
        self.attempts.append(attempt)
        return attempt

    def _reads_draft(self, tier: TierConfig) -> bool:
        """Whether ``tier`` scores drafts, and may be paid for reading this one."""
        most_usd = self.request.constraints.max_cost_usd
        usd = max_cost_usd(tier, self.request) + draft_cost_usd(tier, self.request.draft)
        paid = most_usd is None or self._committed_usd() + usd <= most_usd
        return tier.scores_drafts and paid

    async def _calls(
        self, tier: TierConfig, score: bool, hedge_with: TierConfig | None
    ) -> AsyncGenerator[tuple[Attempt, list[EngineEvent]]]:
        first = self._attempt(tier, score)
        began = time.monotonic()
        after_s = self._hedge_after_s(tier) if hedge_with else None
        seen = False

        def second() -> Attempt | None:
            if hedge_with is None or self.obstacle(hedge_with) is not None:
                return None
            return self._attempt(hedge_with, score)

        calls = _alone(first) if after_s is None else hedged(first, second, after_s)
        async with aclosing(calls) as events:
            async for attempt, batch in events:
                if not seen and any(isinstance(event, Piece | Done) for event in batch):
                    seen = True
                    # Where the other one was faster, this one takes at least as long.
                    if tier.hedge is not None:
                        self._first_tokens.record(tier.name, time.monotonic() - began)
                yield attempt, batch

    def _hedge_after_s(self, tier: TierConfig) -> float | None:
        """How long ``tier`` may take to its first token; ``None`` where nobody can tell."""
        if tier.hedge is None:
            return None
        p95 = self._first_tokens.p95("").get(tier.name)
        return None if p95 is None else max(tier.hedge.least_s, p95)


async def _alone(attempt: Attempt) -> AsyncGenerator[tuple[Attempt, list[EngineEvent]]]:
    async with aclosing(attempt.events()) as events:
        async for batch in events:
            yield attempt, batch


def _chat_request(
    tier: TierConfig, request: OpenRequest, *, score: bool, drafted: bool
) -> ChatRequest:
    return ChatRequest(
        messages=request.messages,
        max_tokens=max_output_tokens(tier, request),
        options=request.options,
        json_schema=request.json_schema,
        regex=request.regex,
        stop=request.stop,
        sampling=request.sampling,
        tensors=request.tensors,
        score=score,
        adapter=request.adapter,
        draft=request.draft if drafted else None,
    )

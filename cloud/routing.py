"""A request's way through the cluster: admission, then one tier or the climb of a ladder.

Plain async Python over ``TierStream``; the gRPC server around it is ``gateway``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from cascade.errors import InvalidInput
from cascade.ladder import LadderPolicy
from cascade.latency import LatencyBook
from cascade.remote import Accepted, Chunk, EventsAtOnce, Finished, RemoteEvent, Verified
from cascade.tensor import total_bytes
from cascade.wire import OpenRequest
from cloud.asking import Asking
from cloud.attempt import Attempt, TierStream
from cloud.climb import Climb
from cloud.config import ClusterConfig
from cloud.engines import Done, Piece, Started
from cloud.errors import Overloaded
from cloud.ladder import Choice, choose_tier
from cloud.ladders import Ladders
from cloud.read_ahead import collected, reads_ahead
from cloud.served_adapters import ServedAdapters

RETRY_AFTER_S: Final = 1.0


class Router:
    """Answers requests with the tiers of a cluster; an ``Answerer`` for ``cascade.wire``.

    Arguments:
        tiers: how to reach each tier of ``config``, by name.
        ladders: what requests of their tasks climb by.
        adapters: what is known of those of the tiers; it may change.

    Raises:
        ConfigError: a ladder does not fit the tiers.
    """

    def __init__(
        self,
        config: ClusterConfig,
        tiers: Mapping[str, TierStream],
        ladders: Sequence[LadderPolicy] = (),
        adapters: ServedAdapters | None = None,
    ) -> None:
        self._config = config
        self._tiers = tiers
        self._adapters = adapters or ServedAdapters()
        self._ladders = Ladders(ladders, config.tiers)
        self._first_tokens = LatencyBook()
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """Requests that are being answered now."""
        return self._under_way

    def refusal(self) -> Overloaded | None:
        """Why a further request would be refused now, whatever it says; ``None`` where it would
        not."""
        if self._under_way < self._config.gateway.max_concurrent_requests:
            return None
        return Overloaded("the cluster answers as many requests as it may now", RETRY_AFTER_S)

    async def answer(self, request: OpenRequest) -> AsyncGenerator[EventsAtOnce]:
        """Events of one request; see ``Answerer.answer``."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        self._under_way += 1
        try:
            async with aclosing(await self._events(request)) as events:
                async for together in events:
                    yield together
        finally:
            self._under_way -= 1

    async def _events(self, request: OpenRequest) -> AsyncGenerator[EventsAtOnce]:
        began = time.monotonic()
        self._check_size(request)
        choice = choose_tier(self._config.tiers, request, self._adapters)
        followed = self._ladders.find(request)
        request = await self._with_draft(request, choice, climbs=followed is not None)
        asking = Asking(
            self._config,
            self._tiers,
            request,
            self._first_tokens,
            arrived=began,
            adapters=self._adapters,
        )
        climb = None if followed is None else Climb(asking, followed)
        return climb.events() if climb and climb.possible else _answered(asking, choice)

    async def _with_draft(
        self, request: OpenRequest, choice: Choice, *, climbs: bool
    ) -> OpenRequest:
        """The request with the device's draft, once all of it is there, where a tier that may be
        asked makes use of it; nobody waits for it otherwise. The tier reads the prompt by then."""
        asked = self._config.tiers if climbs else (choice.tier,)
        if not any(tier.scores_drafts for tier in asked):
            return request
        # Who a ladder asks first is not known yet.
        ahead = not climbs and reads_ahead(choice.tier)
        draft = await collected(request, self._tiers[choice.tier.name] if ahead else None)
        if not draft:
            return request
        most = self._config.gateway.max_prompt_chars
        size = sum(len(turn.content) for turn in request.messages) + len(draft.text)
        if size > most:
            raise InvalidInput(
                "draft", f"and prompt have {size} characters; this cluster reads at most {most}"
            )
        return dataclasses.replace(request, draft=draft)

    def _check_size(self, request: OpenRequest) -> None:
        most = self._config.gateway.max_prompt_chars
        size = sum(len(turn.content) for turn in request.messages)
        if size > most:
            raise InvalidInput(
                "prompt", f"has {size} characters; this cluster reads at most {most}"
            )
        most, size = self._config.gateway.max_tensor_bytes, total_bytes(request.tensors)
        if size > most:
            raise InvalidInput("tensors", f"hold {size} bytes; this cluster reads at most {most}")


async def _answered(asking: Asking, choice: Choice) -> AsyncGenerator[EventsAtOnce]:
    """The answer of the chosen tier, or of the one that it is hedged by. Its last words are told
    with its end, and the call of the tier is read on to its own end meanwhile."""
    first = choice.tier
    hedge_with = None if first.hedge is None else asking.tier(first.hedge.to)
    reasons, shown = choice.reasons, ""
    calls = asking.ask(first, score=asking.request.score, hedge_with=hedge_with)
    async with aclosing(calls) as batches:
        async for attempt, batch in batches:
            tier = attempt.tier
            told: list[RemoteEvent] = []
            if not batch:
                reasons += (f"{first.name}:slow",)
                shown = tier.name
                told.append(Accepted(tier.name, attempt.model_name))
            for event in batch:
                if isinstance(event, Started) and shown != tier.name:
                    shown = tier.name
                    told.append(Accepted(tier.name, attempt.model_name))
                elif isinstance(event, Piece):
                    told.append(Chunk(event.text, event.count))
                elif isinstance(event, Verified):
                    told.append(event)
                elif isinstance(event, Done):
                    told.append(_finished(asking, attempt, reasons))
            if told:
                yield tuple(told)


def _finished(asking: Asking, winner: Attempt, reasons: tuple[str, ...]) -> Finished:
    name = winner.tier.name
    if winner is not asking.attempts[0]:
        reasons += (f"{name}:hedge",)
    if winner.ignores_draft:
        reasons += (f"{name}:draft_ignored",)
    return asking.finished(winner, reasons=reasons, tier=name, model=winner.model_name)

"""A request's way through the cluster: admission, the ladder, one tier's stream, the bill.

Plain async Python over ``TierStream``; the gRPC server around it is ``gateway``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, Protocol

from cascade.errors import InvalidInput, RemoteError
from cascade.remote import Accepted, Chunk, Finished, RemoteEvent
from cascade.tensor import total_bytes
from cascade.wire import OpenRequest
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import EngineFailed, Overloaded, TierUnavailable
from cloud.ladder import choose_tier, max_output_tokens
from cloud.tier import Refused, TierMessage

RETRY_AFTER_S: Final = 1.0


class TierStream(Protocol):
    """How a tier is reached."""

    def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        """The tier's messages; closing the iterator stops the tier's work.

        Raises:
            Overloaded: the tier's queue is full.
            TierUnavailable: its replica was lost.
        """
        ...


class Router:
    """Answers requests with the tiers of a cluster; an ``Answerer`` for ``cascade.wire``.

    Arguments:
        tiers: how to reach each tier of ``config``, by name.
    """

    def __init__(self, config: ClusterConfig, tiers: Mapping[str, TierStream]) -> None:
        self._config = config
        self._tiers = tiers
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """Requests that are being answered now."""
        return self._under_way

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        """Events of one request; see ``Answerer.answer``."""
        limits = self._config.gateway
        if self._under_way >= limits.max_concurrent_requests:
            raise Overloaded("the cluster answers as many requests as it may now", RETRY_AFTER_S)
        self._under_way += 1
        try:
            async with aclosing(self._answer(request)) as events:
                async for event in events:
                    yield event
        finally:
            self._under_way -= 1

    async def _answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        arrived = time.monotonic()
        self._check_size(request)
        choice = choose_tier(self._config.tiers, request)
        tier = choice.tier
        messages = self._tiers[tier.name](_chat_request(tier, request))
        begun = finished = False
        async with aclosing(messages):
            async for message in messages:
                if isinstance(message, Refused):
                    raise _refusal(message)
                for event in message:
                    match event:
                        case Started():
                            begun = True
                            yield Accepted(tier.name, tier.model_name)
                        case Piece():
                            yield Chunk(event.text, event.count)
                        case Done():
                            yield Finished(
                                reason=event.reason,
                                prompt_tokens=event.prompt_tokens,
                                completion_tokens=event.completion_tokens,
                                cost_usd=tier.price.cost_usd(
                                    event.prompt_tokens, event.completion_tokens
                                ),
                                tier=tier.name,
                                model=tier.model_name,
                                confidence=None,
                                reasons=choice.reasons,
                                server_s=time.monotonic() - arrived,
                            )
                            # Not left here: a stream that is read to its end needs no cancelling.
                            finished = True
        if not finished:
            raise EngineFailed if begun else TierUnavailable(tier.name)

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


def _chat_request(tier: TierConfig, request: OpenRequest) -> ChatRequest:
    return ChatRequest(
        messages=request.messages,
        max_tokens=max_output_tokens(tier, request),
        options=request.options,
        json_schema=request.json_schema,
        regex=request.regex,
        stop=request.stop,
        sampling=request.sampling,
        tensors=request.tensors,
    )


def _refusal(message: Refused) -> Exception:
    if message.field:
        return InvalidInput(message.field, message.problem)
    return RemoteError(message.status, message.problem, message.retry_after_s)

"""One call of one tier: its events, and what they cost so far, whether or not it ends well."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from cascade.errors import InvalidInput, RemoteError
from cascade.wire import OpenRequest
from cloud.config import TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Speed, Started, Verified
from cloud.errors import EngineFailed, TierUnavailable
from cloud.ladder import draft_cost_usd, max_cost_usd
from cloud.tier import Refused, TierMessage


class TierStream(Protocol):
    """How a tier is reached."""

    def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        """The tier's messages; closing the iterator stops the tier's work.

        Raises:
            Overloaded: the tier's queue is full.
            TierUnavailable: its replica was lost.
        """
        ...


class Attempt:
    """A call that is made when ``events`` is read, once.

    Arguments:
        request: what the tier is asked.
        ignores_draft: the device has a draft, of which this tier makes no use.

    ``done`` is its last event once it is complete; ``over`` says that the call has ended somehow.
    """

    def __init__(
        self,
        tier: TierConfig,
        stream: TierStream,
        request: ChatRequest,
        *,
        ignores_draft: bool = False,
    ) -> None:
        self.tier = tier
        self.ignores_draft = ignores_draft
        self.verified: Verified | None = None
        self.speed: Speed | None = None
        self.done: Done | None = None
        self.over = False
        self._stream = stream
        self._request = request
        self._prompt_tokens = 0
        self._pieces: list[Piece] = []
        self._begun = False

    async def events(self) -> AsyncGenerator[list[EngineEvent]]:
        """The engine's events in batches, ``Done`` last. Closing the iterator stops the tier.

        Raises:
            InvalidInput: the tier cannot answer this; the field is named.
            RemoteError: the tier failed.
        """
        try:
            async with aclosing(self._stream(self._request)) as messages:
                async for message in messages:
                    if isinstance(message, Refused):
                        raise _refusal(message)
                    for event in message:
                        self._note(event)
                    yield message
                    # Not left at ``Done``: a stream that is read to its end needs no cancelling.
        finally:
            self.over = True
        if self.done is None:
            raise EngineFailed if self._begun else TierUnavailable(self.tier.name)

    @property
    def model_name(self) -> str:
        """What the answer is signed with."""
        adapter = self._request.adapter
        return f"{self.tier.model_name}:{adapter}" if adapter else self.tier.model_name

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(piece.text for piece in self._pieces)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the tier has read; 0 before it began."""
        return self.done.prompt_tokens if self.done else self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens that it has written."""
        return self.done.completion_tokens if self.done else self.written

    @property
    def written(self) -> int:
        """Tokens in ``text``."""
        return sum(piece.count for piece in self._pieces)

    @property
    def cost_usd(self) -> float:
        """What it has cost, also where it was broken off."""
        return self.tier.price.cost_usd(self.prompt_tokens, self.completion_tokens)

    def most_usd(self, request: OpenRequest) -> float:
        """What it may cost at most while it is under way."""
        draft = draft_cost_usd(self.tier, self._request.draft)
        return max_cost_usd(self.tier, request) + draft

    def _note(self, event: EngineEvent) -> None:
        match event:
            case Started():
                self._begun, self._prompt_tokens = True, event.prompt_tokens or 0
            case Piece():
                self._pieces.append(event)
            case Verified():
                self.verified = event
            case Speed():
                self.speed = event
            case Done():
                self.done = event


def _refusal(message: Refused) -> Exception:
    if message.field:
        return InvalidInput(message.field, message.problem)
    return RemoteError(message.status, message.problem, message.retry_after_s)

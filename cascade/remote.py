"""The seam between the decision and the tiers in the cluster.

``Remote`` is what the controller needs of the network; ``cascade.wire`` provides it over gRPC.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from cascade.draft import DraftTape
from cascade.errors import RemoteError
from cascade.request import Request
from cascade.signals import EMPTY_SIGNALS, Signals


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What the device tells the cluster about its own attempt: numbers and digests, never text.

    Arguments:
        confidence: calibrated P(right) in [0, 1], or ``None`` without a policy.
        raw_score: uncalibrated score in [0, 1], or ``None`` when the device did not try.
        ladder_digest: sha256 of the ladder that the device follows; empty where it follows none.
        answer_sha256: of the device's own answer, where the ladder may compare or take it; else
            empty.
        kept: requests of the same task that the device has answered itself, accepted by a policy,
            since it last told; ≥ 0.
    """

    confidence: float | None = None
    raw_score: float | None = None
    base_digest: str = ""
    adapter_digest: str = ""
    tokenizer_digest: str = ""
    ladder_digest: str = ""
    answer_sha256: str = ""
    signals: Signals = EMPTY_SIGNALS
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A tier took the request. A second one supersedes the text received so far."""

    tier: str
    model: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """More of the answer. ``count`` is the number of tokens in ``text``."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Verified:
    """How many tokens of the device's draft, from the first on, are a part of the answer."""

    kept: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a tier read a draft and wrote on behind it, in tokens of its own vocabulary.

    Arguments:
        read_tokens, read_s: tokens of the draft that were read, kept or not, and the seconds that
            took, ≥ 0.
        written_tokens, written_s: tokens that were written one at a time, likewise.
    """

    read_tokens: int
    read_s: float
    written_tokens: int
    written_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Arguments:
        prompt_tokens, completion_tokens: of all tiers that were asked, each in its own vocabulary.
        cost_usd: of all of them, by their price lists, ≥ 0.
        tier: who answered; ``"device"`` where the device's own answer is the one to take, and no
            text was sent.
        confidence: calibrated P(right) in [0, 1], or ``None`` where the tier has no policy.
        reasons: why this tier answered, fixed words.
        server_s: seconds from arrival at the gateway to this message.
        raw_score: the tier's uncalibrated score in [0, 1]; ``None`` where it does not tell.
        speed: of the tier that answered, where it looked at a draft; else ``None``.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    tier: str
    model: str
    confidence: float | None
    reasons: tuple[str, ...]
    server_s: float
    raw_score: float | None = None
    speed: Speed | None = None


RemoteEvent = Accepted | Chunk | Verified | Finished
EventsAtOnce = tuple[RemoteEvent, ...]
"""At least one, in order, none of which had to be waited for after the one before."""


@dataclass(slots=True)
class Transfer:
    """Bytes of serialised gRPC messages of one call, without HTTP/2 and TLS framing. Filled in as
    the call goes on."""

    bytes_up: int = 0
    bytes_down: int = 0


class Remote(Protocol):
    """The tiers in the cluster."""

    def answer(
        self,
        request: Request,
        report: DeviceReport,
        *,
        deadline_s: float,
        transfer: Transfer,
        draft: DraftTape | None = None,
    ) -> AsyncGenerator[RemoteEvent, None]:
        """Ask the cluster. The last event is ``Finished``. Closing the generator cancels the call.

        Arguments:
            draft: the device's own answer, sent while it is written.

        Raises:
            RemoteError: with the gRPC status, including ``DEADLINE_EXCEEDED`` after ``deadline_s``
                seconds and ``UNAVAILABLE`` when there is no connection.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


async def whole_answer(stream: AsyncGenerator[RemoteEvent, None]) -> tuple[str, Finished]:
    """The text that ``stream`` ends with, and its last event; closes it.

    Raises:
        RemoteError: it failed, or ended without an answer.
    """
    text: list[str] = []
    finished: Finished | None = None
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            match event:
                case Accepted():
                    text = []
                case Chunk(piece, _):
                    text.append(piece)
                case Finished():
                    finished = event
    if finished is None:
        raise RemoteError("INTERNAL", "the cluster ended without an answer")
    return "".join(text), finished

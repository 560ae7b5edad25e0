"""Tiers that do what a test tells them: answer, take their time, refuse, or break half-way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from cascade.errors import InvalidInput, RemoteError
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.tier import TierMessage

STATUSES = frozenset(
    {
        "FAILED_PRECONDITION",
        "INTERNAL",
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a scripted tier fails.

    Arguments:
        status: name of a gRPC status, one of ``STATUSES``.
        after: words of the answer that are sent before, ≥ 0; ``None`` fails before anything is.
        times: requests that fail before the tier recovers, ≥ 1; ``None`` fails for good.
        retry_after_s: what the device is told about coming back.

    Raises:
        InvalidInput: a field is out of range; it is named.
    """

    status: str
    after: int | None = None
    times: int | None = None
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidInput(
                "status", f"{self.status!r} is not one of {', '.join(sorted(STATUSES))}"
            )
        if self.after is not None and self.after < 0:
            raise InvalidInput("after", f"{self.after} is below 0")
        if self.times is not None and self.times < 1:
            raise InvalidInput("times", f"{self.times} is below 1")


@dataclass(frozen=True, slots=True)
class Script:
    """What a scripted tier does with every request.

    Arguments:
        answer: its text, sent word by word, or a function that writes it; by default the first
            option of a closed set, else ``"ok"``.
        pause_s: seconds before each word, ≥ 0.
        fault: how it fails; ``None`` answers.
        score: how sure it says that it is, in [0, 1], where it is asked, or a function that says
            it; ``None`` does not tell.
    """

    answer: str | Callable[[ChatRequest], str] | None = None
    pause_s: float = 0.0
    fault: Fault | None = None
    score: float | Callable[[ChatRequest], float] | None = None

    def text(self, request: ChatRequest) -> str:
        """What it answers to ``request``."""
        if self.answer is None:
            return request.options[0] if request.options else "ok"
        return self.answer if isinstance(self.answer, str) else self.answer(request)

    def sure(self, request: ChatRequest) -> float | None:
        """How sure it says that it is."""
        if not request.score:
            return None
        return self.score(request) if callable(self.score) else self.score


class ScriptedTier:
    """A ``TierStream`` that follows a script. A word counts as a token."""

    def __init__(self, script: Script) -> None:
        self.play(script)

    def play(self, script: Script) -> None:
        """Follow ``script`` from the next request on."""
        self._script, self._played = script, 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        """Play the script once."""
        script = self._script
        self._played += 1
        fault = script.fault
        if fault is not None and fault.times is not None and self._played > fault.times:
            fault = None
        if fault is not None and fault.after is None:
            raise _failure(fault)
        prompt_tokens = sum(len(turn.content.split()) for turn in request.messages)
        yield [Started(prompt_tokens)]
        words = re.findall(r"\s*\S+\s*$|\s*\S+", script.text(request))
        for word in words if fault is None else words[: fault.after]:
            await asyncio.sleep(script.pause_s)
            yield [Piece(word, 1)]
        if fault is not None:
            raise _failure(fault)
        yield [Done("stop", prompt_tokens, len(words), 0, script.sure(request))]


def _failure(fault: Fault) -> RemoteError:
    return RemoteError(fault.status, "as the test's script says", fault.retry_after_s)

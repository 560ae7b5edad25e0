"""What a tier needs of an engine. Plain async Python: engines are tested without a cluster.

An engine turns one chat request into pieces of text; which tier gets the request, what it costs and
how it travels is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput
from cascade.remote import Speed, Verified
from cascade.request import Message
from cascade.sampling import GREEDY, Sampling
from cascade.tensor import Tensor


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for an engine.

    Arguments:
        messages: the conversation, oldest first.
        max_tokens: upper bound on the tokens of the answer, ≥ 1.
        options: the answer is one of these, decoded greedily; empty for free text. With options,
            sampling and ``stop`` have no effect.
        json_schema, regex: what the answer has to keep; at most one of the three is given.
        stop: the answer ends before the first of these; none beside a schema or an expression.
        sampling: how tokens are chosen.
        tensors: a classifier's inputs, instead of messages; ``options`` are then its labels.
        traceparent: the W3C trace context of the call; empty begins a trace.
        score: whether ``Done`` shall tell how sure the model is.
        draft: the beginning of the answer as a device proposes it; an engine without draft scoring
            does not look at it.
        adapter: name of one of the tier's adapters; empty for the model alone.
        adapter_digest: what the name stands for where it is the registry's; the replica puts it in
            the name's place before the engine is asked.
        prefill: the prompt is only read, for a request that may follow: no piece comes of it. Of
            engines with draft scoring alone.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    traceparent: str = field(default="", compare=False, kw_only=True)
    options: tuple[str, ...] = ()
    json_schema: str | None = None
    regex: str | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    tensors: tuple[Tensor, ...] = ()
    score: bool = False
    adapter: str = ""
    adapter_digest: str = ""
    draft: DraftProposal | None = None
    prefill: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The engine took the request. ``prompt_tokens`` includes the chat template; ``None`` where it
    is only told at the end."""

    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """More text; ``count`` is the number of tokens in it, 0 where several share their bytes."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete.

    Arguments:
        prompt_tokens: tokens read: the prompt, and what was read of a draft and not kept.
        reason: ``"stop"`` at an end token, stop string or complete option, else ``"length"``.
        cached_tokens: prompt tokens that were not computed, because an earlier prompt began alike.
        raw_score: how sure the model is, uncalibrated, in [0, 1]: the largest probability of an
            option within its set, or the geometric mean probability of the answer's tokens;
            ``None`` where it was not asked for or cannot be told.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    raw_score: float | None = None


def geometric_mean(logprobs: Sequence[float]) -> float | None:
    """The raw score of a free answer by the log probabilities of its tokens; ``None`` without."""
    if not logprobs:
        return None
    return min(1.0, math.exp(math.fsum(logprobs) / len(logprobs)))


def check_adapter(adapter: str, there: Collection[str]) -> None:
    """Raise ``InvalidInput`` where a request names an adapter that the tier does not have."""
    if adapter and adapter not in there:
        known = ", ".join(there) or "none"
        raise InvalidInput("adapter", f"this tier has no {adapter!r}; adapters: {known}")


EngineEvent = Started | Piece | Verified | Speed | Done


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, beyond free text.

    Arguments:
        options: it answers with one of a closed set.
        json_schema, regex: its answers keep one.
        logprobs: it can report them.
        seeds: a seed fixes its draws.
        draft_scoring: it can say how far it agrees with a draft.
        context_tokens: prompt and answer together.
    """

    options: bool
    json_schema: bool
    regex: bool
    logprobs: bool
    seeds: bool
    context_tokens: int
    draft_scoring: bool = False


class Engine(Protocol):
    """A model that answers chat requests."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        ...

    async def start(self) -> None:
        """Load the model; the engine answers when this returns.

        Raises:
            CascadeError: the model cannot be loaded.
        """
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Answer: first ``Started``, then pieces, ``Done`` last, among the pieces one ``Verified``
        and behind them one ``Speed`` where there was a draft and it was looked at, in batches of
        what is at hand, so that a slow reader gets fewer and larger ones. Closing the iterator
        stops the computation within one step of the engine.

        Raises:
            InvalidInput: the prompt does not fit the context, or an option, a schema or an
                expression cannot be asked for.
            Overloaded, ProviderUnavailable: somebody else's API does not answer now.
            EngineFailed: anything else; the log has the cause.
        """
        ...

    async def reset_prefix_cache(self) -> int:
        """Forget every prompt, so that the next one is computed in full. Waits for answers that are
        under way. Returns the number of tokens forgotten."""
        ...

    async def close(self) -> None:
        """Free the model."""
        ...


class Swapping(Engine, Protocol):
    """An engine that takes further adapters while it answers."""

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Have requests ask for one more adapter.

        Raises:
            CascadeError: it is damaged, of an unknown publisher, or for another model.
        """
        ...

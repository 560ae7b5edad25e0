"""Models behind an API that speaks OpenAI's chat completions: OpenAI's own, and any other platform
or server that does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import openai
from openai import AsyncOpenAI

from cloud.engines.base import (
    Capabilities,
    ChatRequest,
    Done,
    EngineEvent,
    Piece,
    Started,
    geometric_mean,
)
from cloud.engines.provider import (
    ProviderEngine,
    Wanted,
    meaning,
    prompt_bytes,
    refuse_sampling,
    room,
    withheld,
)
from cloud.errors import EngineFailed

# Without one more try, a connection that the other side closed while idle is an error.
_RETRIES: Final = 1
_OWN: Final = "https://api.openai.com/v1"


class OpenAiEngine(ProviderEngine[AsyncOpenAI]):
    """An ``Engine`` over an OpenAI-compatible endpoint."""

    @property
    def capabilities(self) -> Capabilities:
        """By the operator's word: endpoints do not tell what they can do."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=False,
            logprobs=self._provider.logprobs,
            seeds=self._provider.sampling,
            context_tokens=self._context_tokens,
        )

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Answer ``request``; see ``Engine.stream``."""
        if self._client is None or self._key is None:
            raise EngineFailed
        wanted = Wanted.of(request)
        body = self._body(request, wanted)
        client = self._client.with_options(api_key=self._key.read())
        try:
            stream = await client.chat.completions.create(**body)
        except (openai.OpenAIError, ValueError) as error:
            raise meaning(error, "openai") from None
        yield [Started(None)]
        text, reason, usage, pieces = "", None, None, 0
        logprobs: list[float] = []
        try:
            async for chunk in stream:
                usage = getattr(chunk, "usage", None) or usage
                for choice in chunk.choices or ():
                    reason = choice.finish_reason or reason
                    told = choice.logprobs.content if choice.logprobs else None
                    # The end of the answer, which has no bytes, is no part of it.
                    logprobs += [each.logprob for each in told or () if each.bytes != []]
                    piece = choice.delta.content if choice.delta else None
                    if piece:
                        text, pieces = text + piece, pieces + 1
                        if not wanted.whole:
                            yield [Piece(piece, 1)]
        # Half a JSON, or a page of HTML, is a ValueError or an empty stream.
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise meaning(error, "openai") from None
        finally:
            await stream.close()
        if reason is None:
            raise meaning(EOFError("the answer has no end"), "openai")
        if reason == "content_filter":
            raise withheld("openai")
        read = usage.prompt_tokens if usage else prompt_bytes(request)
        written = usage.completion_tokens if usage else pieces
        if wanted.whole:
            yield [Piece(wanted.text(text, cut=reason == "length"), written)]
        details = usage.prompt_tokens_details if usage else None
        yield [
            Done(
                reason="length" if reason == "length" else "stop",
                prompt_tokens=read,
                completion_tokens=written,
                cached_tokens=(details.cached_tokens or 0) if details else 0,
                raw_score=geometric_mean(logprobs),
            )
        ]

    def _connected(self, key: str) -> AsyncOpenAI:
        return AsyncOpenAI(
            api_key=key,
            base_url=self._provider.base_url or _OWN,
            timeout=self._provider.timeout_s,
            max_retries=_RETRIES,
        )

    def _body(self, request: ChatRequest, wanted: Wanted) -> dict[str, Any]:
        refuse_sampling(request)
        provider, sampling = self._provider, request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            provider.max_tokens_field: room(request),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if provider.sampling:
            body["temperature"] = sampling.temperature
            body["top_p"] = sampling.top_p
            if sampling.seed is not None:
                body["seed"] = sampling.seed
        if request.score and provider.logprobs:
            body["logprobs"] = True
        if request.stop and not wanted.whole:
            body["stop"] = list(request.stop)
        if wanted.schema is not None:
            named = {"name": "answer", "schema": wanted.schema, "strict": bool(wanted.options)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

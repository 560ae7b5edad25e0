"""Claude, by Anthropic's messages API. It reports no log probabilities and takes no seed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final, Literal

import anthropic
import httpx2
from anthropic import AsyncAnthropic

from cloud.engines.base import Capabilities, ChatRequest, Done, EngineEvent, Piece, Started
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

_RETRIES: Final = 1
_CUT: Final = ("max_tokens", "model_context_window_exceeded")


class AnthropicEngine(ProviderEngine[AsyncAnthropic]):
    """An ``Engine`` over Anthropic's API, or an endpoint that speaks it.

    With ``provider.sampling`` it is sent a temperature and ``top_p``, which not every model takes;
    without, it draws as it is made to.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Options and schemas by structured output."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=False,
            logprobs=False,
            seeds=False,
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
            stream = await client.messages.create(**body)
        except (anthropic.AnthropicError, ValueError) as error:
            raise meaning(error, "anthropic") from None
        reader = _Reader(wanted, prompt_bytes(request))
        try:
            async for event in stream:
                events = reader.read(event)
                if events:
                    yield events
        # Half a JSON, or a page of HTML, is a ValueError or an empty stream. This SDK does not wrap
        # what the connection does behind its first byte.
        except (
            anthropic.AnthropicError,
            httpx2.HTTPError,
            ValueError,
            AttributeError,
            TypeError,
        ) as error:
            raise meaning(error, "anthropic") from None
        finally:
            await stream.close()
        yield reader.end()

    def _connected(self, key: str) -> AsyncAnthropic:
        return AsyncAnthropic(
            api_key=key,
            base_url=self._provider.base_url,
            timeout=self._provider.timeout_s,
            max_retries=_RETRIES,
        )

    def _body(self, request: ChatRequest, wanted: Wanted) -> dict[str, Any]:
        refuse_sampling(request)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [
                {"role": turn.role, "content": turn.content}
                for turn in request.messages
                if turn.role != "system"
            ],
            "max_tokens": room(request),
            "stream": True,
        }
        system = [turn.content for turn in request.messages if turn.role == "system"]
        if system:
            body["system"] = "\n\n".join(system)
        if self._provider.sampling:
            sampling = request.sampling
            body["extra_body"] = {"temperature": min(sampling.temperature, 1.0)}
            if sampling.top_p < 1:
                body["extra_body"]["top_p"] = sampling.top_p
        if request.stop and not wanted.whole:
            body["stop_sequences"] = list(request.stop)
        if wanted.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": wanted.schema}}
        return body


class _Reader:
    """Reads the events of one answer."""

    def __init__(self, wanted: Wanted, prompt_bytes: int) -> None:
        self._wanted = wanted
        self._prompt_tokens, self._cached_tokens = prompt_bytes, 0
        self._text, self._pieces = "", 0
        self._completion_tokens: int | None = None
        self._reason: str | None = None

    def read(self, event: Any) -> list[EngineEvent]:
        match event.type:
            case "message_start":
                usage = event.message.usage
                self._cached_tokens = usage.cache_read_input_tokens or 0
                new = usage.cache_creation_input_tokens or 0
                # Input tokens are those that no cache was read or written for.
                self._prompt_tokens = usage.input_tokens + self._cached_tokens + new
                return [Started(self._prompt_tokens)]
            case "content_block_delta" if event.delta.type == "text_delta":
                self._text += event.delta.text
                self._pieces += 1
                if not self._wanted.whole:
                    return [Piece(event.delta.text, 1)]
            case "message_delta":
                self._reason = event.delta.stop_reason or self._reason
                self._completion_tokens = event.usage.output_tokens
        return []

    def end(self) -> list[EngineEvent]:
        """The end of the answer.

        Raises:
            ProviderUnavailable: it was cut off.
            EngineFailed: it was withheld, or is not what was asked for.
        """
        if self._reason is None:
            raise meaning(EOFError("the answer has no end"), "anthropic")
        if self._reason == "refusal":
            raise withheld("anthropic")
        cut = self._reason in _CUT
        reason: Literal["stop", "length"] = "length" if cut else "stop"
        written = self._pieces if self._completion_tokens is None else self._completion_tokens
        events: list[EngineEvent] = []
        if self._wanted.whole:
            events.append(Piece(self._wanted.text(self._text, cut=cut), written))
        return [*events, Done(reason, self._prompt_tokens, written, self._cached_tokens)]

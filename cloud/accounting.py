"""What a call is held to account for, around the router and its tiers: the caller's quotas, and the
record of what goes to a provider.

Quotas of tokens and money, and the record, are kept at each call of a tier, and not at the request:
one request may climb, or ask two tiers.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from cascade.errors import CascadeError, RemoteError
from cascade.remote import EventsAtOnce, RemoteEvent
from cascade.wire import Answerer, Caller, OpenRequest, current_caller, status_of
from cloud.attempt import TierStream
from cloud.audit import AuditFile, Entry
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.errors import ConfigError
from cloud.front_door import GatewayFiles
from cloud.ladder import (
    choose_tier,
    draft_cost_usd,
    max_cost_usd,
    max_output_tokens,
    max_prompt_tokens,
)
from cloud.quotas import Hold, QuotaBook
from cloud.tier import Refused, TierMessage

_log = logging.getLogger(__name__)

WARM_UP_KEY: Final = "warm-up"
"""Name of the key with which a starting cluster tries its tiers; it has no quotas."""

_HOSTS: Final = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is being answered; ``ahead`` is what tiers, by name, have read of its prompt
    before they are asked, until the call that follows pays for it."""

    request: OpenRequest
    caller: Caller
    ahead: dict[str, _Ahead] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """``tokens`` and ``usd`` are what ``hold`` sets aside."""

    hold: Hold
    tokens: int
    usd: float
    use: _Use


_asked: ContextVar[_Asked] = ContextVar("asked")


class Accounting:
    """Quotas and audit of one gateway.

    Arguments:
        config: the cluster.
        files: where both are kept, unless ``config`` names other files.

    Raises:
        ConfigError: there is no file for what has to be kept.
    """

    def __init__(self, config: ClusterConfig, files: GatewayFiles) -> None:
        self._config = config
        quotas, audit = config.gateway.quotas, config.gateway.audit
        quota_file, audit_file = quotas.file or files.quotas, audit.file or files.audit
        if quotas.any and quota_file is None:
            raise ConfigError("gateway.quotas.file is missing; name one on every node's disk")
        if audit.required and audit_file is None:
            raise ConfigError("gateway.audit.file is missing, and audit.required is true")
        self._book = (
            QuotaBook(quotas, quota_file, shares=config.gateway.nodes)
            if quotas.any and quota_file
            else None
        )
        self._audit = (
            AuditFile(audit_file, max_bytes=audit.max_bytes, keep_files=audit.keep_files)
            if audit_file
            else None
        )

    def answerer(self, inner: Answerer) -> Answerer:
        """``inner``, for callers that have requests left."""
        return _Accounted(inner, self._book)

    def streams(self, tiers: Mapping[str, TierStream]) -> dict[str, TierStream]:
        """``tiers``, each call of which is paid for and, where it leaves, written down."""
        named = {tier.name: tier for tier in self._config.tiers}
        return {name: self._stream(named[name], stream) for name, stream in tiers.items()}

    def _stream(self, tier: TierConfig, stream: TierStream) -> TierStream:
        if self._book is not None:
            stream = _Paid(tier, stream, self._book)
        if tier.provider is not None and self._audit is not None:
            stream = _Recorded(tier, stream, self._audit, self._config)
        return stream


class _Accounted:
    def __init__(self, inner: Answerer, book: QuotaBook | None) -> None:
        self._inner = inner
        self._book = book

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent | EventsAtOnce]:
        by = current_caller()
        if self._book is not None and not _free(by):
            await asyncio.to_thread(self._book.admit, by.name)
        asked = _Asked(request, by)
        # Not reset: the context ends with the call.
        _asked.set(asked)
        try:
            async with aclosing(self._inner.answer(request)) as events:
                async for event in events:
                    yield event
        finally:
            for ahead in asked.ahead.values():  # no call followed
                await _settle(self._book, ahead.hold, ahead.use)


def _free(caller: Caller) -> bool:
    return caller == Caller(WARM_UP_KEY, "api_key")


class _Use:
    """What one call of a tier has used so far."""

    def __init__(self, tier: TierConfig, request: OpenRequest) -> None:
        self._tier = tier
        self._request = request
        self._begun = False
        self._prompt_tokens: int | None = None
        self._counted = 0
        self._done: Done | None = None
        self._refused = False
        self.status = "UNAVAILABLE"
        self.text: list[str] = []

    def note(self, message: TierMessage) -> None:
        """Take a message of the tier into account."""
        if isinstance(message, Refused):
            self._refused = True
            self.status = "INVALID_ARGUMENT" if message.field else message.status
            return
        for event in message:
            match event:
                case Started():
                    self._begun, self._prompt_tokens = True, event.prompt_tokens
                case Piece():
                    self._counted += event.count
                    self.text.append(event.text)
                case Done():
                    self._done, self.status = event, "OK"

    def failed(self, problem: BaseException) -> None:
        """It ends with an exception. One that is left early has been sent, and may be charged; one
        that was refused is left by everybody."""
        if self._refused:
            return
        if isinstance(problem, asyncio.CancelledError | GeneratorExit):
            self._begun = True
            self.status = "OK" if self._done else "CANCELLED"
        else:
            self.status = status_of(problem).code.name

    @property
    def complete(self) -> bool:
        """Whether the tier has answered to the end."""
        return self._done is not None

    @property
    def prompt_tokens(self) -> int:
        """As the tier counted them; an upper bound where it was left before it did."""
        if self._done is not None:
            return self._done.prompt_tokens
        if not self._begun:
            return 0
        if self._prompt_tokens is not None:
            return self._prompt_tokens
        return max_prompt_tokens(self._tier, self._request)

    @property
    def completion_tokens(self) -> int:
        """As the tier counted them, or as they came."""
        return self._counted if self._done is None else self._done.completion_tokens

    @property
    def cost_usd(self) -> float:
        """By the tier's price list."""
        return self._tier.price.cost_usd(self.prompt_tokens, self.completion_tokens)


class _Paid:
    """A tier whose calls are paid for out of the caller's quotas."""

    def __init__(self, tier: TierConfig, stream: TierStream, book: QuotaBook) -> None:
        self._tier = tier
        self._stream = stream
        self._book = book

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        asked = _asked.get()
        if _free(asked.caller):
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    yield message
            return
        tier, prompt_tokens = self._tier, max_prompt_tokens(self._tier, asked.request)
        if request.prefill:
            tokens, usd = prompt_tokens, tier.price.cost_usd(prompt_tokens, 0)
        else:
            tokens = prompt_tokens + max_output_tokens(tier, asked.request)
            tokens += request.draft.most_tokens if request.draft else 0
            usd = max_cost_usd(tier, asked.request) + draft_cost_usd(tier, request.draft)
        # What was read ahead is a part of this, and is set aside already.
        ahead = None if request.prefill else asked.ahead.get(tier.name)
        hold = await _reserve(
            self._book,
            asked.caller.name,
            tokens=tokens - (ahead.tokens if ahead else 0),
            usd=usd - (ahead.usd if ahead else 0.0),
        )
        use = _Use(tier, asked.request)
        if request.prefill:
            asked.ahead[tier.name] = _Ahead(hold, tokens, usd, use)
        elif ahead is not None:
            del asked.ahead[tier.name]
        try:
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    use.note(message)
                    yield message
        except BaseException as problem:
            use.failed(problem)
            raise
        finally:
            if not request.prefill:
                await _settle(self._book, hold, use)
            if ahead is not None:
                await _settle(self._book, ahead.hold, None)


async def _reserve(book: QuotaBook, caller: str, *, tokens: int, usd: float) -> Hold:
    """Set aside what a call may take, and nothing where it is left meanwhile."""
    work = asyncio.create_task(asyncio.to_thread(book.reserve, caller, tokens=tokens, usd=usd))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with suppress(CascadeError):
            await _settle(book, await asyncio.shield(work), None)
        raise


async def _settle(book: QuotaBook | None, hold: Hold, use: _Use | None) -> None:
    """Pay for what was used; for nothing where another hold pays."""
    if book is None:
        return
    tokens = use.prompt_tokens + use.completion_tokens if use else 0
    # A second cancellation must not leave the upper bound spent.
    usd = use.cost_usd if use else 0.0
    await asyncio.shield(asyncio.to_thread(book.settle, hold, tokens=tokens, usd=usd))


class _Recorded:
    """A provider's tier whose calls are written down: before they are made, and when they end."""

    def __init__(
        self, tier: TierConfig, stream: TierStream, audit: AuditFile, config: ClusterConfig
    ) -> None:
        self._tier = tier
        self._stream = stream
        self._audit = audit
        self._config = config

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        asked = _asked.get()
        about = self._about(asked, request)
        await self._write({**_now("sent"), **about})
        began = time.monotonic()
        use, written = _Use(self._tier, asked.request), False
        try:
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    use.note(message)
                    if use.complete:
                        # First written, then passed on: an answer that is not recorded is refused.
                        written = True
                        await self._end(about, use, time.monotonic() - began)
                    yield message
        except BaseException as problem:
            use.failed(problem)
            raise
        finally:
            if not written:
                await self._end(about, use, time.monotonic() - began)

    def _about(self, asked: _Asked, request: ChatRequest) -> Entry:
        tier, limits = self._tier, asked.request.constraints
        sent = [turn.content for turn in request.messages]
        sent += [*request.options, request.json_schema or ""]
        about: dict[str, str | int | float | list[str] | list[dict[str, str]] | None] = {
            "call": uuid.uuid4().hex,
            "request_id": asked.request.request_id,
            "caller": asked.caller.name,
            "auth": asked.caller.kind,
            "task_id": asked.request.task_id,
            "tier": tier.name,
            "model": tier.model,
            "host": provider_host(tier),
            "data_class": limits.data_class.value,
            "reasons": list(self._reasons(asked.request)),
            "device_confidence": asked.request.report.confidence,
            "bytes_up": sum(len(text.encode()) for text in sent),
            "max_cost_usd": max_cost_usd(tier, asked.request),
        }
        if self._config.gateway.audit.text:
            about["messages"] = [
                {"role": turn.role, "content": turn.content} for turn in request.messages
            ]
        return about

    def _reasons(self, request: OpenRequest) -> tuple[str, ...]:
        choice = choose_tier(self._config.tiers, request)
        if choice.tier.name == self._tier.name:
            return choice.reasons
        return (*choice.reasons, f"{choice.tier.name}:not_enough")

    async def _end(self, about: Entry, use: _Use, seconds: float) -> None:
        text = "".join(use.text)
        ended: Entry = {
            **_now("ended"),
            **{name: value for name, value in about.items() if name != "messages"},
            "status": use.status,
            "bytes_down": len(text.encode()),
            "prompt_tokens": use.prompt_tokens,
            "completion_tokens": use.completion_tokens,
            "cost_usd": use.cost_usd,
            "seconds": round(seconds, 3),
            **({"answer": text} if self._config.gateway.audit.text else {}),
        }
        await asyncio.shield(self._write(ended))

    async def _write(self, entry: Entry) -> None:
        try:
            await asyncio.to_thread(self._audit.write, entry)
        except OSError as problem:
            _log.error("a call to a provider is not recorded: %s", problem)
            if self._config.gateway.audit.required:
                raise RemoteError(
                    "UNAVAILABLE", "calls to this tier cannot be recorded now, so none is made"
                ) from None


def provider_host(tier: TierConfig) -> str:
    """Whose machine a provider's tier asks; empty for any other tier."""
    if tier.provider is None:
        return ""
    url = tier.provider.base_url
    return _HOSTS.get(tier.engine, tier.engine) if url is None else urlsplit(url).hostname or ""


def _now(event: str) -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return {"time": now, "event": event}

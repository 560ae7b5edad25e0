"""The cluster's side of the inference service: one typed answerer behind the gRPC machinery.

Order of messages, deadlines, cancellation, statuses and the record of each call live here; who may
call is in ``access``, and what answers is the ``Answerer``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.remote import EventsAtOnce, Finished, RemoteEvent
from cascade.tracing import TRACEPARENT_HEADER, Attribute, Span, start_span, trace_id
from cascade.v1 import inference_pb2 as pb
from cascade.wire.access import current_caller
from cascade.wire.convert import OpenRequest, event_messages, read_open
from cascade.wire.drafts import DraftInbox
from cascade.wire.status import status_of
from cascade.wire.writing import abort, write

_log = logging.getLogger(__name__)

INFERENCE_SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["InferenceService"].full_name)


class Answerer(Protocol):
    """What answers requests. Raise ``CascadeError`` for what the caller may be told."""

    def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent | EventsAtOnce]:
        """Events of one request, ``Finished`` last; together what is known at once. Closed early
        when the caller goes away or the deadline passes."""
        ...


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What the log keeps of one call: never its content.

    Arguments:
        caller: who called; ``""`` where nobody was asked, or it was not found out.
        auth: how that is known: ``"api_key"``, ``"jwt"``, ``"mtls"`` or ``""``.
        quota: which of the caller's limits refused the call, in a word; else ``""``.
        status: gRPC status name; ``"CANCELLED"`` when the caller went away.
        seconds: from arrival to the end.
        trace_id: 32 hex digits, the device's where it sent one.
    """

    request_id: str
    caller: str
    task_id: str
    status: str
    problem: str
    seconds: float
    tier: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    trace_id: str = ""
    auth: str = ""
    quota: str = ""


def add_answerer(
    server: grpc.aio.Server,
    answerer: Answerer,
    *,
    max_deadline_s: float = 600.0,
    first_message_s: float = 10.0,
    stalled_s: float = 30.0,
    draft_s: float = 10.0,
    on_call: Callable[[CallRecord], None] | None = None,
    admit: Callable[[float], RemoteError | None] | None = None,
) -> None:
    """Serve ``answerer`` as ``InferenceService``.

    Arguments:
        max_deadline_s: longer deadlines are cut to this; a call without a deadline is refused with
            INVALID_ARGUMENT.
        first_message_s: a call whose first message does not come in this time is refused with
            DEADLINE_EXCEEDED.
        stalled_s: a caller that takes nothing of its answer for this time is cut off. What it has
            not taken is one message and gRPC's own buffer, never more.
        draft_s: how long a tier that scores drafts waits for one; what has come by then is used.
        on_call: told about every call when it has ended.
        admit: asked about each call once its first message is there, with the seconds that it has
            left: why it is refused, or ``None``. What is refused here has not been read, and has no
            span: a server under overload does little else.
    """
    limits = _Limits(max_deadline_s, first_message_s, stalled_s, draft_s)
    servicer = _Servicer(
        answerer, limits, on_call or (lambda record: None), admit or (lambda deadline_s: None)
    )
    # Without a deserializer: messages of calls that are refused are not read.
    method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        cast(Any, servicer.Answer), response_serializer=pb.AnswerEvent.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(INFERENCE_SERVICE, {"Answer": method}),)
    )


@dataclass(frozen=True, slots=True)
class _Limits:
    """Seconds; see ``add_answerer``."""

    max_deadline_s: float
    first_message_s: float
    stalled_s: float
    draft_s: float


class _Servicer:
    def __init__(
        self,
        answerer: Answerer,
        limits: _Limits,
        on_call: Callable[[CallRecord], None],
        admit: Callable[[float], RemoteError | None],
    ) -> None:
        self._answerer = answerer
        self._limits = limits
        self._on_call = on_call
        self._admit = admit

    # The name is the contract's.
    async def Answer(
        self,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, pb.AnswerEvent],
    ) -> None:
        began = time.monotonic()
        parent = _traceparent(context)
        try:
            deadline_s = self._deadline(context)
            first = await self._first(requests, deadline_s)
            refusal = self._admit(deadline_s - (time.monotonic() - began))
            if refusal is not None:
                raise refusal
        except (Exception, asyncio.CancelledError) as caught:
            call = _Call(self._answerer, self._limits, parent)
            await self._end(context, call, began, caught)
            return
        span = start_span("gateway.answer", parent, kind="server")
        call = _Call(self._answerer, self._limits, span.traceparent)
        error: BaseException | None = None
        try:
            async with asyncio.timeout(deadline_s - (time.monotonic() - began)):
                await call.run(first, requests, context, deadline_s)
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        await self._end(context, call, began, error, span)

    async def _end(
        self,
        context: grpc.aio.ServicerContext[bytes, pb.AnswerEvent],
        call: _Call,
        began: float,
        error: BaseException | None,
        span: Span | None = None,
    ) -> None:
        """Tell everybody how a call ended, the caller last."""
        status = None if error is None else status_of(error)
        cancelled = isinstance(error, asyncio.CancelledError)
        if error is not None and status is not None and not cancelled:
            if status.code is grpc.StatusCode.INTERNAL:
                _log.error("request %s failed", call.request_id, exc_info=error)
            problem = str(error) if isinstance(error, CascadeError) else type(error).__name__
        else:
            problem = ""
        code = "CANCELLED" if cancelled else "OK" if status is None else status.code.name
        quota = getattr(error, "quota", "")
        record = call.record(code, problem, time.monotonic() - began, quota)
        if span is not None:
            span.note(_told(record, call.reasons))
            span.end("" if code == "OK" else code)
        self._on_call(record)
        if cancelled and error is not None:
            raise error
        if status is None:
            return
        if span is None:  # nothing was written that the status would have to wait for
            context.set_trailing_metadata(status.trailing_metadata)
            context.set_code(status.code)
            context.set_details(status.details)
        else:
            await abort(context, status)

    async def _first(self, requests: AsyncIterator[bytes], deadline_s: float) -> bytes:
        """The first message, unread."""
        wait_s = self._limits.first_message_s
        try:
            async with asyncio.timeout(min(wait_s, deadline_s)):
                first = await anext(requests, None)
        except TimeoutError:
            if wait_s >= deadline_s:
                raise
            raise RemoteError(
                "DEADLINE_EXCEEDED", f"no message came within {wait_s:g} s; send `open` first"
            ) from None
        if first is None:
            raise InvalidInput("open", "is missing; the call ended without a message")
        return first

    def _deadline(self, context: grpc.aio.ServicerContext[bytes, pb.AnswerEvent]) -> float:
        remaining_s = cast("float | None", context.time_remaining())
        if remaining_s is None:
            raise InvalidInput("deadline", "is required; set a gRPC deadline on the call")
        return min(remaining_s, self._limits.max_deadline_s)


class _Call:
    def __init__(self, answerer: Answerer, limits: _Limits, traceparent: str) -> None:
        self._answerer = answerer
        self._limits = limits
        self._traceparent = traceparent
        self._open: OpenRequest | None = None
        self._finished: Finished | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        return () if self._finished is None else self._finished.reasons

    @property
    def request_id(self) -> str:
        return "" if self._open is None else self._open.request_id

    async def run(
        self,
        first: bytes,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, pb.AnswerEvent],
        deadline_s: float,
    ) -> None:
        opened = read_open(_message(first), deadline_s=deadline_s, traceparent=self._traceparent)
        inbox = DraftInbox(
            (_message(data) async for data in requests),
            expected=opened.drafting is not None,
            tolerance=opened.drafting or 0.0,
            tokenizer_digest=opened.report.tokenizer_digest,
            wait_s=self._limits.draft_s,
        )
        if opened.drafting is not None:
            opened = replace(opened, incoming=inbox)
        self._open = opened
        rest = asyncio.create_task(inbox.run())
        try:
            async with aclosing(self._answerer.answer(opened)) as events:
                async for found in events:
                    if rest.done():
                        rest.result()
                    together = found if isinstance(found, tuple) else (found,)
                    if isinstance(together[-1], Finished):
                        self._finished = together[-1]
                    for message in event_messages(opened, together):
                        await write(context, message, self._limits.stalled_s)
        finally:
            rest.cancel()
            # Whatever the caller still sends does not change an answer that is already given.
            with suppress(asyncio.CancelledError, Exception):
                await rest

    def record(self, status: str, problem: str, seconds: float, quota: str = "") -> CallRecord:
        done, by = self._finished, current_caller()
        return CallRecord(
            request_id=self.request_id,
            caller=by.name,
            auth=by.kind,
            quota=quota,
            task_id="" if self._open is None else self._open.task_id,
            status=status,
            problem=problem,
            seconds=seconds,
            tier="" if done is None else done.tier,
            prompt_tokens=0 if done is None else done.prompt_tokens,
            completion_tokens=0 if done is None else done.completion_tokens,
            cost_usd=0.0 if done is None else done.cost_usd,
            trace_id=trace_id(self._traceparent),
        )


def _traceparent(context: grpc.aio.ServicerContext[bytes, pb.AnswerEvent]) -> str:
    """The caller's trace context; empty where it sent none."""
    for name, value in context.invocation_metadata() or ():
        if name == TRACEPARENT_HEADER:
            return str(value)
    return ""


def _message(data: bytes) -> pb.AnswerRequest:
    try:
        return pb.AnswerRequest.FromString(data)
    except DecodeError:
        raise InvalidInput("open", "is no AnswerRequest of cascade.v1") from None


def _told(record: CallRecord, reasons: tuple[str, ...]) -> dict[str, Attribute | None]:
    """What the span of a call says: never who called, nor of what."""
    return {
        "rpc.grpc.status": record.status,
        "cascade.request_id": record.request_id,
        "cascade.task_id": record.task_id,
        "cascade.tier": record.tier or None,
        "cascade.reasons": reasons,
        "cascade.prompt_tokens": record.prompt_tokens,
        "cascade.completion_tokens": record.completion_tokens,
        "cascade.cost_usd": record.cost_usd,
    }

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

from cascade.errors import CascadeError, InvalidInput
from cascade.remote import Finished, RemoteEvent
from cascade.tracing import TRACEPARENT_HEADER, Attribute, start_span, trace_id
from cascade.v1 import inference_pb2 as pb
from cascade.v1 import inference_pb2_grpc
from cascade.wire.access import caller
from cascade.wire.convert import OpenRequest, event_message, read_open
from cascade.wire.status import status_of

_log = logging.getLogger(__name__)

INFERENCE_SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["InferenceService"].full_name)


class Answerer(Protocol):
    """What answers requests. Raise ``CascadeError`` for what the caller may be told."""

    def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        """Events of one request, ``Finished`` last. Closed early when the caller goes away or the
        deadline passes."""
        ...


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What the log keeps of one call: never its content.

    Arguments:
        caller: name of the API key, ``""`` where none is asked for.
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


def add_answerer(
    server: grpc.aio.Server,
    answerer: Answerer,
    *,
    max_deadline_s: float = 600.0,
    on_call: Callable[[CallRecord], None] | None = None,
) -> None:
    """Serve ``answerer`` as ``InferenceService``.

    Arguments:
        max_deadline_s: longer deadlines are cut to this; a call without a deadline is refused with
            INVALID_ARGUMENT.
        on_call: told about every call when it has ended.
    """
    servicer = _Servicer(answerer, max_deadline_s, on_call or (lambda record: None))
    cast(Any, inference_pb2_grpc).add_InferenceServiceServicer_to_server(servicer, server)


class _Servicer:
    def __init__(
        self, answerer: Answerer, max_deadline_s: float, on_call: Callable[[CallRecord], None]
    ) -> None:
        self._answerer = answerer
        self._max_deadline_s = max_deadline_s
        self._on_call = on_call

    # The name is the contract's.
    async def Answer(
        self,
        requests: AsyncIterator[pb.AnswerRequest],
        context: grpc.aio.ServicerContext[pb.AnswerRequest, pb.AnswerEvent],
    ) -> None:
        span = start_span("gateway.answer", _traceparent(context), kind="server")
        call = _Call(self._answerer, span.traceparent)
        began = time.monotonic()
        error: BaseException | None = None
        try:
            deadline_s = self._deadline(context)
            async with asyncio.timeout(deadline_s):
                await call.run(requests, context, deadline_s)
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        status = None if error is None else status_of(error)
        cancelled = isinstance(error, asyncio.CancelledError)
        if error is not None and status is not None and not cancelled:
            if status.code is grpc.StatusCode.INTERNAL:
                _log.error("request %s failed", call.request_id, exc_info=error)
            problem = str(error) if isinstance(error, CascadeError) else type(error).__name__
        else:
            problem = ""
        code = "CANCELLED" if cancelled else "OK" if status is None else status.code.name
        record = call.record(code, problem, time.monotonic() - began)
        span.note(_told(record, call.reasons))
        span.end("" if code == "OK" else code)
        self._on_call(record)
        if cancelled and error is not None:
            raise error
        if status is not None:
            await context.abort_with_status(status)

    def _deadline(
        self, context: grpc.aio.ServicerContext[pb.AnswerRequest, pb.AnswerEvent]
    ) -> float:
        remaining_s = cast("float | None", context.time_remaining())
        if remaining_s is None:
            raise InvalidInput("deadline", "is required; set a gRPC deadline on the call")
        return min(remaining_s, self._max_deadline_s)


class _Call:
    def __init__(self, answerer: Answerer, traceparent: str) -> None:
        self._answerer = answerer
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
        requests: AsyncIterator[pb.AnswerRequest],
        context: grpc.aio.ServicerContext[pb.AnswerRequest, pb.AnswerEvent],
        deadline_s: float,
    ) -> None:
        first = await anext(requests, None)
        if first is None:
            raise InvalidInput("open", "is missing; the call ended without a message")
        opened = read_open(first, deadline_s=deadline_s)
        self._open = opened = replace(opened, traceparent=self._traceparent)
        rest = asyncio.create_task(_check_rest(requests))
        try:
            async with aclosing(self._answerer.answer(opened)) as events:
                async for event in events:
                    if rest.done():
                        rest.result()
                    if isinstance(event, Finished):
                        self._finished = event
                    await context.write(event_message(opened.request_id, event))
        finally:
            rest.cancel()
            # Whatever the caller still sends does not change an answer that is already given.
            with suppress(asyncio.CancelledError, Exception):
                await rest

    def record(self, status: str, problem: str, seconds: float) -> CallRecord:
        done = self._finished
        return CallRecord(
            request_id=self.request_id,
            caller=caller(),
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


def _traceparent(context: grpc.aio.ServicerContext[pb.AnswerRequest, pb.AnswerEvent]) -> str:
    """The caller's trace context; empty where it sent none."""
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get(TRACEPARENT_HEADER, ""))


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


async def _check_rest(requests: AsyncIterator[pb.AnswerRequest]) -> None:
    """Read drafts and feedback, which no tier uses yet, and refuse a second ``open``."""
    async for message in requests:
        if message.WhichOneof("kind") == "open":
            raise InvalidInput("open", "is sent twice; one call carries one request")

"""The device's side of the inference service: one channel to one cluster, one call per request.

Deadlines, the single retry, cancellation and the wording of failures live here; what the messages
mean is in ``convert``, and whether to call at all is the controller's decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cascade.draft import DraftTape
from cascade.errors import InvalidInput, RemoteError
from cascade.policy import obstacles_to_escalation
from cascade.remote import DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Request
from cascade.tracing import TRACEPARENT_HEADER, Span, start_span
from cascade.v1 import inference_pb2 as pb
from cascade.v1 import inference_pb2_grpc
from cascade.wire.connection import Connection, too_late
from cascade.wire.convert import open_message, read_events
from cascade.wire.drafts import draft_messages
from cascade.wire.profile import ClientProfile

_RETRY_PAUSE_S: Final = 0.2
_ATTEMPTS: Final = 2
# gRPC's own limit for a message that a server receives.
_MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024


class GrpcRemote:
    """The tiers of the cluster that ``profile`` describes; a ``cascade.remote.Remote``.

    Connects at the first call, and stays connected. Use one instance on one event loop, and close
    it there.
    """

    def __init__(self, profile: ClientProfile) -> None:
        self._connection = Connection(profile)

    async def answer(
        self,
        request: Request,
        report: DeviceReport,
        *,
        deadline_s: float,
        transfer: Transfer,
        draft: DraftTape | None = None,
    ) -> AsyncGenerator[RemoteEvent]:
        """Ask the cluster. The last event is ``Finished``. Closing the iterator cancels the call.

        UNAVAILABLE is retried once, before the first event, while ``deadline_s`` and
        ``request.constraints.max_remote_calls`` allow it. A request that may not leave the device
        is refused here with FAILED_PRECONDITION; nothing is sent.

        Arguments:
            deadline_s: seconds until the last event, retry included.
            transfer: grows by the size of every message sent and received.
            draft: sent behind the request, as it is written; a retry sends all of it again.

        Raises:
            RemoteError: with the gRPC status; ``message`` is safe to show.
        """
        obstacles = obstacles_to_escalation(request.constraints, cluster=True)
        if obstacles:
            raise RemoteError(
                "FAILED_PRECONDITION", f"may not leave the device: {', '.join(obstacles)}"
            )
        calls_left = request.constraints.max_remote_calls
        attempts = min(_ATTEMPTS, calls_left)
        end = time.monotonic() + deadline_s
        for attempt in range(attempts):
            opened = open_message(
                request,
                report,
                max_remote_calls=calls_left - attempt,
                drafting=draft.drafting if draft else None,
            )
            _check_size(opened)
            begun, status = False, "CANCELLED"
            span = start_span("cascade.call", request.traceparent, kind="client")
            try:
                # Closed here and now: left to the collector, a cancelled call would run on.
                async with aclosing(
                    self._attempt(opened, end, deadline_s, transfer, span, draft=draft)
                ) as events:
                    async for event in events:
                        begun = True
                        yield event
                status = ""
                return
            except RemoteError as error:
                status = error.status
                last = attempt + 1 == attempts or end - time.monotonic() <= _RETRY_PAUSE_S
                if begun or last or error.status != "UNAVAILABLE":
                    raise
            finally:
                span.note({"cascade.request_id": request.request_id, "cascade.attempt": attempt})
                span.end(status)
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def health(self, service: str = "", *, deadline_s: float = 5.0) -> str:
        """State of the cluster, or of one of its services, in the words of ``grpc.health.v1``.

        Arguments:
            service: ``""`` for the whole, ``"tier/NAME"`` for one tier.

        Raises:
            RemoteError: ``UNAVAILABLE`` without a connection, ``NOT_FOUND`` for an unknown service.
        """
        stub = health_pb2_grpc.HealthStub(self._connection.channel)
        question = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = await cast(Any, stub).Check(
                question, timeout=deadline_s, metadata=self._connection.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error, deadline_s) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    async def close(self) -> None:
        """Close the connection. Calls under way end with CANCELLED."""
        await self._connection.close()

    async def _attempt(
        self,
        opened: pb.AnswerRequest,
        end: float,
        deadline_s: float,
        transfer: Transfer,
        span: Span,
        *,
        draft: DraftTape | None,
    ) -> AsyncGenerator[RemoteEvent]:
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise too_late(deadline_s)
        stub = cast(Any, inference_pb2_grpc).InferenceServiceStub(self._connection.channel)
        metadata = (*self._connection.metadata, (TRACEPARENT_HEADER, span.traceparent))
        before = transfer.bytes_up
        transfer.bytes_up += opened.ByteSize()
        writing: asyncio.Task[None] | None = None
        if draft is None:
            call = stub.Answer(iter((opened,)), timeout=remaining_s, metadata=metadata)
        else:
            call = stub.Answer(timeout=remaining_s, metadata=metadata)
            writing = asyncio.create_task(_write(call, opened, draft, transfer))
        heard = finished = False
        try:
            async for message in call:
                heard = True
                transfer.bytes_down += message.ByteSize()
                for event in read_events(message, request_id=opened.open.request_id):
                    finished = isinstance(event, Finished)
                    yield event
        except grpc.aio.AioRpcError as error:
            if (
                not heard
                and self._connection.channel.get_state() is not grpc.ChannelConnectivity.READY
            ):
                transfer.bytes_up = before  # there was no connection to send it over
            raise self._connection.error(error, deadline_s) from None
        except InvalidInput as error:
            raise RemoteError("INTERNAL", f"the cluster broke the contract: {error}") from None
        finally:
            call.cancel()
            if writing is not None:
                writing.cancel()
                await asyncio.wait({writing})
        if not finished:
            raise RemoteError("INTERNAL", "the cluster ended the answer without a finish event")


async def _write(call: Any, opened: pb.AnswerRequest, draft: DraftTape, transfer: Transfer) -> None:
    """Send a request with its draft. Not left to an iterator of requests: grpc does not close one
    that waits for more when a call has ended."""
    # How the call ended is told where it is read.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(opened)
        async with aclosing(draft_messages(draft)) as messages:
            async for message in messages:
                transfer.bytes_up += message.ByteSize()
                await call.write(message)
        await call.done_writing()


def _check_size(opened: pb.AnswerRequest) -> None:
    size = opened.ByteSize()
    if size > _MAX_MESSAGE_BYTES:
        raise RemoteError(
            "INVALID_ARGUMENT",
            f"the request has {size:,} bytes; a cluster reads at most {_MAX_MESSAGE_BYTES:,}",
        )

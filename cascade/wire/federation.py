"""The federation service on the cluster's side: one typed source behind the gRPC machinery.

The order of an upload's messages, its deadlines and its statuses live here; what a lease is, and
which update counts, is the source's business. Devices use ``federation_client``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, cast

import grpc

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.federation.terms import (
    Abort,
    Challenge,
    CheckIn,
    CheckInReply,
    Committed,
    Enrolled,
    Enrolment,
    MetricsReport,
    PhaseMessage,
    PhaseReply,
    RetryWindow,
    UploadHeader,
    UploadState,
)
from cascade.federation.v1alpha1 import federation_pb2 as pb
from cascade.federation.v1alpha1 import federation_pb2_grpc
from cascade.wire import federation_convert as convert
from cascade.wire.status import status_of

_log = logging.getLogger(__name__)

FEDERATION_SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["FederationService"].full_name)

_DRAIN_S: Final = 2.0
_DRAINED_MESSAGES: Final = 64

_Context = grpc.aio.ServicerContext[Any, Any]
_Reply = TypeVar("_Reply")


class Upload(Protocol):
    """One stream of one update."""

    async def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        ...

    async def commit(self) -> Committed:
        """All bytes are there: check them and keep the update, once."""
        ...

    async def close(self) -> None:
        """The stream has ended; without a commit, keep what has come so far. Never raises."""
        ...


class FederationSource(Protocol):
    """What leads devices through rounds. Raise ``CascadeError`` for what the caller may be told;
    every other reply says when to call again."""

    async def challenge(self, public_key: bytes) -> Challenge:
        """A challenge for this key."""
        ...

    async def enrol(self, enrolment: Enrolment) -> Enrolled:
        """Make a device known."""
        ...

    async def check_in(self, check_in: CheckIn) -> CheckInReply:
        """A lease, or not now."""
        ...

    async def upload(self, header: UploadHeader) -> Upload:
        """Begin, or go on with, the update of a lease."""
        ...

    async def upload_state(self, device_id: str, lease_id: str) -> UploadState:
        """How far an upload is."""
        ...

    async def abort(self, abort: Abort) -> RetryWindow:
        """Take a lease back."""
        ...

    async def report(self, report: MetricsReport) -> RetryWindow:
        """Add a device's counts to the fleet's."""
        ...

    async def exchange(self, message: PhaseMessage) -> PhaseReply:
        """Take a message of secure aggregation, and give what came of its phase."""
        ...


def add_federation(
    server: grpc.aio.Server, source: FederationSource, *, stalled_s: float = 30.0
) -> None:
    """Serve ``source`` as ``FederationService``.

    Arguments:
        stalled_s: an upload that sends nothing for this time is ended; it may be resumed.
    """
    servicer = _Servicer(source, stalled_s)
    cast(Any, federation_pb2_grpc).add_FederationServiceServicer_to_server(servicer, server)


class _Servicer:
    def __init__(self, source: FederationSource, stalled_s: float) -> None:
        self._source = source
        self._stalled_s = stalled_s

    # The names are the contract's.
    async def Challenge(self, request: pb.ChallengeRequest, context: _Context) -> object:
        async def answer() -> pb.ChallengeResponse:
            given = await self._source.challenge(convert.public_key(request))
            return pb.ChallengeResponse(
                challenge=given.challenge,
                valid_s=given.valid_s,
                retry=convert.window_message(given.retry),
            )

        return await _answered(context, answer)

    async def Enrol(self, request: pb.EnrolRequest, context: _Context) -> object:
        async def answer() -> pb.EnrolResponse:
            known = await self._source.enrol(convert.enrolment(request))
            return pb.EnrolResponse(
                device_id=known.device_id,
                coordinator_id=known.coordinator_id,
                retry=convert.window_message(known.retry),
            )

        return await _answered(context, answer)

    async def CheckIn(self, request: pb.CheckInRequest, context: _Context) -> object:
        async def answer() -> pb.CheckInResponse:
            reply = await self._source.check_in(convert.check_in(request))
            return convert.check_in_reply_message(reply)

        return await _answered(context, answer)

    async def Upload(self, requests: AsyncIterator[pb.UploadRequest], context: _Context) -> object:
        async def answer() -> pb.UploadResponse:
            try:
                return await self._receive(requests)
            except CascadeError:
                await _drain(requests)
                raise

        return await _answered(context, answer)

    async def UploadWhole(self, request: pb.UploadWholeRequest, context: _Context) -> object:
        async def answer() -> pb.UploadWholeResponse:
            header, payload = convert.whole_upload(request)
            upload = await self._source.upload(header)
            try:
                await upload.add(payload)
                return convert.whole_committed_message(await upload.commit())
            finally:
                await upload.close()

        return await _answered(context, answer)

    async def UploadStatus(self, request: pb.UploadStatusRequest, context: _Context) -> object:
        async def answer() -> pb.UploadStatusResponse:
            state = await self._source.upload_state(*convert.lease_of(request))
            return convert.upload_state_message(state)

        return await _answered(context, answer)

    async def Abort(self, request: pb.AbortRequest, context: _Context) -> object:
        async def answer() -> pb.AbortResponse:
            retry = await self._source.abort(convert.abort_request(request))
            return pb.AbortResponse(retry=convert.window_message(retry))

        return await _answered(context, answer)

    async def ReportMetrics(self, request: pb.ReportMetricsRequest, context: _Context) -> object:
        async def answer() -> pb.ReportMetricsResponse:
            retry = await self._source.report(convert.report(request))
            return pb.ReportMetricsResponse(retry=convert.window_message(retry))

        return await _answered(context, answer)

    async def Exchange(self, request: pb.ExchangeRequest, context: _Context) -> object:
        async def answer() -> pb.ExchangeResponse:
            reply = await self._source.exchange(convert.phase_message(request))
            return convert.phase_reply_message(reply)

        return await _answered(context, answer)

    async def _receive(self, requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadResponse:
        first = await self._next(requests)
        if first is None or first.WhichOneof("kind") != "header":
            raise InvalidInput("header", "must be the first message of an upload")
        upload = await self._source.upload(convert.header(first.header))
        try:
            while (message := await self._next(requests)) is not None:
                match message.WhichOneof("kind"):
                    case "chunk":
                        await upload.add(convert.chunk(message.chunk))
                    case "commit":
                        return convert.committed_message(await upload.commit())
                    case "header":
                        raise InvalidInput("header", "is sent twice; one stream is one update")
                    case _:
                        raise InvalidInput("kind", "is not set")
        finally:
            # A broken stream may look like one that ended: without `commit` nothing counts.
            await upload.close()
        raise RemoteError("CANCELLED", "the upload ended without its commit; resume it")

    async def _next(self, requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadRequest | None:
        try:
            async with asyncio.timeout(self._stalled_s):
                return await anext(requests, None)
        except TimeoutError:
            raise RemoteError(
                "CANCELLED", f"nothing came for {self._stalled_s:g} s; resume the upload"
            ) from None


async def _drain(requests: AsyncIterator[pb.UploadRequest]) -> None:
    """Read on for a moment. A caller that finds the call ended while it writes reports a broken
    connection instead of the status (grpcio: "Internal error from Core")."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            for _ in range(_DRAINED_MESSAGES):
                if await anext(requests, None) is None:
                    return


async def _answered(context: _Context, answer: Callable[[], Awaitable[_Reply]]) -> _Reply | None:
    try:
        return await answer()
    except Exception as error:
        if not isinstance(error, CascadeError):
            _log.error("a call of the federation service failed", exc_info=error)
        await context.abort_with_status(status_of(error))
    return None

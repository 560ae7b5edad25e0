"""The federation service as a device calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from cascade.errors import RemoteError
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
from cascade.wire.artifacts import GrpcArtifacts
from cascade.wire.connection import Connection
from cascade.wire.profile import ClientProfile

_CHUNK = 1 << 16


class GrpcFederation:
    """The coordinator behind the cluster that ``profile`` describes. Use one instance on one event
    loop, and close it there.

    Every method raises ``RemoteError`` with the gRPC status; its ``retry_after_s`` says how long to
    stay away.

    Arguments:
        deadline_s: of each call but uploads.
    """

    def __init__(self, profile: ClientProfile, *, deadline_s: float = 30.0) -> None:
        self._profile = profile
        self._connection = Connection(profile)
        self._deadline_s = deadline_s
        self._takes_whole = True

    async def challenge(self, public_key: bytes) -> Challenge:
        """What to sign to enrol this key."""
        reply = await self._call("Challenge", pb.ChallengeRequest(public_key=public_key))
        return Challenge(reply.challenge, reply.valid_s, convert.window(reply.retry))

    async def enrol(self, enrolment: Enrolment) -> Enrolled:
        """Make this device known."""
        reply = await self._call("Enrol", convert.enrolment_message(enrolment))
        return Enrolled(reply.device_id, reply.coordinator_id, convert.window(reply.retry))

    async def check_in(self, check_in: CheckIn) -> CheckInReply:
        """A lease, or when to ask again."""
        return convert.check_in_reply(
            await self._call("CheckIn", convert.check_in_message(check_in))
        )

    async def upload(
        self, header: UploadHeader, payload: bytes, *, quiet_s: float = 60.0
    ) -> Committed:
        """Send a payload from ``header.offset`` on, and commit it; a short one as one message.

        Arguments:
            payload: the whole of it.
            quiet_s: how long to wait for each piece to be taken, and for the receipt.
        """
        if self._takes_whole and header.offset == 0 and len(payload) <= _CHUNK:
            try:
                return await self._upload_whole(header, payload, quiet_s)
            except RemoteError as error:
                if error.status != "UNIMPLEMENTED":
                    raise
                self._takes_whole = False  # a cluster of an earlier version
        stub = cast(Any, federation_pb2_grpc).FederationServiceStub(self._connection.channel)
        call = stub.Upload(metadata=self._connection.metadata)
        try:
            async for message in _messages(header, payload):
                async with asyncio.timeout(quiet_s):
                    await call.write(message)
            async with asyncio.timeout(quiet_s):
                await call.done_writing()
                return convert.committed(await call)
        except TimeoutError:
            raise RemoteError(
                "DEADLINE_EXCEEDED", f"the cluster took nothing for {quiet_s:g} s"
            ) from None
        except asyncio.InvalidStateError:
            # The call ended while there was more to write: its status says why.
            raise await self._ended(call, quiet_s) from None
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error, quiet_s) from None
        finally:
            call.cancel()

    async def upload_state(self, device_id: str, lease_id: str) -> UploadState:
        """How much of an upload is kept, and whether it was committed."""
        request = pb.UploadStatusRequest(device_id=device_id, lease_id=lease_id)
        return convert.upload_state(await self._call("UploadStatus", request))

    async def abort(self, abort: Abort) -> RetryWindow:
        """Give a lease back."""
        return convert.window((await self._call("Abort", convert.abort_message(abort))).retry)

    async def report(self, report: MetricsReport) -> RetryWindow:
        """Send counts."""
        reply = await self._call("ReportMetrics", convert.report_message(report))
        return convert.window(reply.retry)

    async def exchange(self, message: PhaseMessage) -> PhaseReply:
        """Send a message of secure aggregation, and take what came of its phase."""
        reply = await self._call("Exchange", convert.exchange_message(message))
        return convert.phase_reply(reply)

    def artifacts(self) -> GrpcArtifacts:
        """The cluster's artifacts over this connection: a second one would cost the cluster more
        than an adapter does."""
        return GrpcArtifacts(self._profile, over=self._connection)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _upload_whole(
        self, header: UploadHeader, payload: bytes, deadline_s: float
    ) -> Committed:
        request = convert.whole_upload_message(header, payload)
        return convert.committed(await self._call("UploadWhole", request, deadline_s))

    async def _call(self, method: str, request: object, deadline_s: float | None = None) -> Any:
        stub = cast(Any, federation_pb2_grpc).FederationServiceStub(self._connection.channel)
        deadline_s = deadline_s or self._deadline_s
        try:
            return await getattr(stub, method)(
                request, timeout=deadline_s, metadata=self._connection.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error, deadline_s) from None

    async def _ended(self, call: Any, quiet_s: float) -> RemoteError:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return self._connection.error(error, quiet_s)
        except asyncio.CancelledError:
            pass
        return RemoteError("UNAVAILABLE", "the cluster ended the upload")


async def _messages(header: UploadHeader, payload: bytes) -> AsyncIterator[pb.UploadRequest]:
    yield pb.UploadRequest(header=convert.header_message(header))
    for start in range(header.offset, len(payload), _CHUNK):
        yield pb.UploadRequest(chunk=payload[start : start + _CHUNK])
    yield pb.UploadRequest(commit=pb.UploadCommit())

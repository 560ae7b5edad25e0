"""The artifact service on both sides: what to run, and its files, piece by piece."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, cast

import grpc

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.v1 import artifact_pb2 as pb
from cascade.v1 import artifact_pb2_grpc
from cascade.wire.connection import Connection
from cascade.wire.profile import ClientProfile
from cascade.wire.status import status_of
from cascade.wire.writing import abort, write

ARTIFACT_SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["ArtifactService"].full_name)
MAX_CHUNK_BYTES: Final = 1 << 20

ArtifactKind = Literal["bundle", "adapter", "policy"]

_KINDS: Final[dict[ArtifactKind, pb.ArtifactKind]] = {
    "bundle": pb.ARTIFACT_KIND_BUNDLE,
    "adapter": pb.ARTIFACT_KIND_ADAPTER,
    "policy": pb.ARTIFACT_KIND_POLICY,
}
_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_HELD: Final = 1000
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class ArtifactQuery:
    """What a device asks with.

    Arguments:
        channel: "" means stable.
        device_id: a random name that the device gave itself; "" is never a canary.
        architecture: as the operating system names it.
        memory_bytes: that the application may use; 0 where it is not known.
        held: digests of artifacts that it has.
    """

    channel: str = ""
    device_id: str = ""
    sdk_version: str = ""
    architecture: str = ""
    memory_bytes: int = 0
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """Bytes with their detached ed25519 signature, 64 raw bytes."""

    data: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class OfferedArtifact:
    """An artifact that the device does not hold."""

    kind: ArtifactKind
    manifest: SignedBytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device is to run: the publisher's word on it, and what of it the device lacks."""

    release: SignedBytes
    artifacts: tuple[OfferedArtifact, ...]


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file of ``total_bytes``."""

    offset: int
    data: bytes
    total_bytes: int


class ArtifactSource(Protocol):
    """What serves artifacts. Raise ``CascadeError`` for what the caller may be told."""

    async def resolve(self, query: ArtifactQuery) -> Offer | None:
        """What this device is to run; ``None`` where the channel has nothing for it."""
        ...

    def download(self, sha256: str, offset: int) -> AsyncGenerator[FilePiece]:
        """A file from ``offset`` on, in pieces of at most ``MAX_CHUNK_BYTES``; one empty piece
        where nothing is left.

        Raises:
            NotFound: there is no such file.
            InvalidInput: the offset is beyond its end.
        """
        ...


def add_artifacts(
    server: grpc.aio.Server, source: ArtifactSource, *, stalled_s: float = 30.0
) -> None:
    """Serve ``source`` as ``ArtifactService``.

    Arguments:
        stalled_s: a caller that takes nothing of its file for this time is cut off; it may resume.
    """
    servicer = _Servicer(source, stalled_s)
    cast(Any, artifact_pb2_grpc).add_ArtifactServiceServicer_to_server(servicer, server)


class _Servicer:
    def __init__(self, source: ArtifactSource, stalled_s: float) -> None:
        self._source = source
        self._stalled_s = stalled_s

    # The names are the contract's.
    async def Resolve(
        self, request: pb.ResolveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ResolveResponse | None:
        try:
            return _resolved(await self._source.resolve(_query(request)))
        except CascadeError as error:
            await context.abort_with_status(status_of(error))
        return None

    async def Download(
        self, request: pb.DownloadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        try:
            if not _SHA256.fullmatch(request.sha256):
                raise InvalidInput("sha256", "must be 64 lower-case hex digits")
            async with aclosing(self._source.download(request.sha256, request.offset)) as pieces:
                async for piece in pieces:
                    message = pb.DownloadResponse(
                        offset=piece.offset, data=piece.data, total_bytes=piece.total_bytes
                    )
                    await write(context, message, self._stalled_s)
        except CascadeError as error:
            await abort(context, status_of(error))


class GrpcArtifacts:
    """The artifacts of the cluster that ``profile`` describes. Use one instance on one event loop,
    and close it there.

    Arguments:
        over: a connection of another client to the same cluster, which that one closes.
    """

    def __init__(self, profile: ClientProfile, *, over: Connection | None = None) -> None:
        self._connection = over or Connection(profile)
        self._own = over is None

    async def resolve(self, query: ArtifactQuery, *, deadline_s: float = 30.0) -> Offer | None:
        """What this device is to run; ``None`` where the channel has nothing for it. Nothing is
        verified here but the shape.

        Raises:
            RemoteError: with the gRPC status; ``message`` is safe to show.
        """
        stub = cast(Any, artifact_pb2_grpc).ArtifactServiceStub(self._connection.channel)
        request = pb.ResolveRequest(
            channel=query.channel,
            device=pb.DeviceProfile(
                sdk_version=query.sdk_version,
                architecture=query.architecture,
                memory_bytes=query.memory_bytes,
                held_digests=query.held,
                device_id=query.device_id,
            ),
        )
        try:
            reply = await stub.Resolve(
                request, timeout=deadline_s, metadata=self._connection.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error, deadline_s) from None
        return _offer(reply)

    async def download(
        self, sha256: str, offset: int = 0, *, quiet_s: float = 30.0
    ) -> AsyncGenerator[FilePiece]:
        """A file from ``offset`` on, in order and without gaps.

        Arguments:
            quiet_s: how long to wait for each piece.

        Raises:
            RemoteError: with the gRPC status; what came before it is good to resume from.
        """
        stub = cast(Any, artifact_pb2_grpc).ArtifactServiceStub(self._connection.channel)
        request = pb.DownloadRequest(sha256=sha256, offset=offset)
        call = stub.Download(request, metadata=self._connection.metadata)
        try:
            while True:
                async with asyncio.timeout(quiet_s):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    return
                if message.offset != offset or offset + len(message.data) > message.total_bytes:
                    raise RemoteError("INTERNAL", "the cluster sent a file out of order")
                offset += len(message.data)
                yield FilePiece(message.offset, message.data, message.total_bytes)
        except TimeoutError:
            raise RemoteError(
                "DEADLINE_EXCEEDED", f"no piece of the file came within {quiet_s:g} s"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error, quiet_s) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection, if it is this one's."""
        if self._own:
            await self._connection.close()


def _query(request: pb.ResolveRequest) -> ArtifactQuery:
    device = request.device
    for field, value in (("channel", request.channel), ("device.device_id", device.device_id)):
        if not _NAME.fullmatch(value):
            raise InvalidInput(field, "must be at most 64 characters of A-Z a-z 0-9 . _ -")
    if len(device.held_digests) > _MOST_HELD:
        raise InvalidInput("device.held_digests", f"has more than {_MOST_HELD} entries")
    for digest in device.held_digests:
        if not _SHA256.fullmatch(digest):
            raise InvalidInput("device.held_digests", "must be 64 lower-case hex digits each")
    return ArtifactQuery(
        channel=request.channel,
        device_id=device.device_id,
        sdk_version=device.sdk_version,
        architecture=device.architecture,
        memory_bytes=device.memory_bytes,
        held=tuple(device.held_digests),
    )


def _resolved(offer: Offer | None) -> pb.ResolveResponse:
    if offer is None:
        return pb.ResolveResponse()
    return pb.ResolveResponse(
        artifacts=[
            pb.Artifact(
                kind=_KINDS[item.kind],
                manifest=item.manifest.data,
                signature=item.manifest.signature,
            )
            for item in offer.artifacts
        ],
        release=pb.SignedRelease(manifest=offer.release.data, signature=offer.release.signature),
    )


def _offer(reply: pb.ResolveResponse) -> Offer | None:
    if not reply.HasField("release"):
        return None
    kinds = {number: kind for kind, number in _KINDS.items()}
    items = []
    for item in reply.artifacts:
        if item.kind not in kinds:
            raise RemoteError("INTERNAL", "the cluster offers what this SDK does not know; upgrade")
        items.append(OfferedArtifact(kinds[item.kind], _signed(item.manifest, item.signature)))
    return Offer(_signed(reply.release.manifest, reply.release.signature), tuple(items))


def _signed(data: bytes, signature: bytes) -> SignedBytes:
    if len(signature) != _SIGNATURE_BYTES:
        raise RemoteError("INTERNAL", "the cluster sent a signature that is none")
    return SignedBytes(data, signature)

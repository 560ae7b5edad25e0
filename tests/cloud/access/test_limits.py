"""Clients that are silent, slow, loud or large: refused or cut off, and nothing of them is left."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import grpc
import pytest

from cascade.remote import Accepted, Chunk, RemoteEvent
from cascade.v1 import artifact_pb2, artifact_pb2_grpc, inference_pb2_grpc
from cascade.v1 import inference_pb2 as pb
from cascade.wire import ArtifactQuery, FilePiece, Offer, OpenRequest
from cloud.config import GatewayConfig
from cloud.tls import TlsPaths
from tests.cloud.access.gate import FINISHED, KEY, call, gate, open_message, until


async def test_a_stream_without_a_first_message_is_refused(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path, first_message_s=0.2) as gated, gated.channel() as channel:
        stream = call(channel, None)
        with pytest.raises(grpc.aio.AioRpcError, match=r"no message came within 0\.2 s") as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (record,) = gated.records
        assert (record.status, record.caller, record.request_id) == (
            "DEADLINE_EXCEEDED",
            "tests",
            "",
        )


async def test_a_stranger_that_is_silent_is_refused_too(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated, gated.channel() as channel:
        stream = call(channel, None, metadata=())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_silence_after_the_first_message_is_fine(tls: TlsPaths, tmp_path: Path) -> None:
    async def slow(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        await asyncio.sleep(0.5)
        yield FINISHED

    async with gate(tls, tmp_path, slow, first_message_s=0.2) as gated, gated.channel() as channel:
        stream = call(channel, None)
        await stream.write(open_message())
        assert (await stream.read()).WhichOneof("kind") == "finish"
        await stream.done_writing()


async def test_a_reader_that_stalls_is_cut_off(tls: TlsPaths, tmp_path: Path) -> None:
    written = 0

    async def flood(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        nonlocal written
        yield Accepted("tier1", "model")
        while True:
            written += 1
            yield Chunk("x" * 100_000, 1)

    async with gate(tls, tmp_path, flood, stalled_s=0.5) as gated:
        # A window that grows by itself would only take longer to fill.
        async with gated.channel(("grpc.http2.bdp_probe", 0)) as channel:
            stream = call(channel, None, timeout=60.0)
            await stream.write(open_message())
            await stream.read()
            await until(lambda: bool(gated.records))
            assert gated.records[0].status == "CANCELLED"
            assert gated.records[0].problem.endswith("the caller took nothing for 0.5 s")
            assert gated.answering == 0
            # What waited for the reader was a few messages, and not the whole answer.
            assert written < 100
            # It may read what is left, and then hears why there is no more.
            with pytest.raises(grpc.aio.AioRpcError, match="took nothing") as cut:
                await _read_on(stream)
            assert cut.value.code() is grpc.StatusCode.CANCELLED
        async with gated.channel() as channel:  # and others are served
            stream = call(channel, None)
            await stream.write(open_message())
            assert (await stream.read()).WhichOneof("kind") == "accepted"
            stream.cancel()


async def test_a_reader_that_stalls_for_good_is_gone_with_its_connection(
    tls: TlsPaths, tmp_path: Path
) -> None:
    async def flood(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        while True:
            yield Chunk("x" * 100_000, 1)

    limits = {"stalled_s": 0.3, "max_deadline_s": 1.0, "connection_age_s": 1.0}
    async with gate(tls, tmp_path, flood, **limits) as gated, gated.channel() as channel:
        stream = call(channel, None, timeout=600.0)
        await stream.write(open_message())
        await stream.read()
        assert _connections(gated.door.port) == 1
        # Nothing is read any more; its own deadline is ten minutes away.
        await until(lambda: _connections(gated.door.port) == 0, within_s=30.0)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_a_message_above_the_limit_reaches_nobody(
    tls: TlsPaths, tmp_path: Path, compression: grpc.Compression | None
) -> None:
    limit = GatewayConfig(max_prompt_chars=1000, max_tensor_bytes=1000).max_message_bytes
    config = {"max_prompt_chars": 1000, "max_tensor_bytes": 1000}
    async with gate(tls, tmp_path, **config) as gated, gated.channel() as channel:
        large = open_message("x" * (limit + 1))
        metadata = (("x-api-key", KEY),)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stream = stub.Answer(
            iter([large]), timeout=10.0, metadata=metadata, compression=compression
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _read_on(stream)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert gated.answering == 0
        await until(lambda: len(gated.records) == 1)
        assert gated.records[0].status != "OK"


async def test_a_device_is_told_that_its_request_is_too_large(
    tls: TlsPaths, tmp_path: Path
) -> None:
    async with gate(tls, tmp_path, max_prompt_chars=1000, max_tensor_bytes=1000) as gated:
        refused = await gated.refused(prompt="x" * 1_000_000)
        assert (refused.status, refused.message) == (
            "INVALID_ARGUMENT",
            "the request is larger than this cluster reads",
        )


async def test_a_download_that_is_not_read_gives_its_place_back(
    tls: TlsPaths, tmp_path: Path
) -> None:
    sending = 0

    class Endless:
        async def resolve(self, query: ArtifactQuery) -> Offer | None:
            return None

        async def download(self, sha256: str, offset: int) -> AsyncGenerator[FilePiece]:
            nonlocal sending
            sending += 1
            try:
                while True:
                    yield FilePiece(0, b"x" * 100_000, 1 << 40)
            finally:
                sending -= 1

    async with (
        gate(tls, tmp_path, artifacts=Endless(), stalled_s=0.3) as gated,
        gated.channel() as channel,
    ):
        stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        request = artifact_pb2.DownloadRequest(sha256="0" * 64)
        stream = stub.Download(request, timeout=600.0, metadata=(("x-api-key", KEY),))
        await stream.read()
        assert sending == 1
        await until(lambda: sending == 0)


def test_the_limit_leaves_room_for_every_permitted_prompt() -> None:
    config = GatewayConfig(max_prompt_chars=2_000_000)
    widest = open_message("\N{GRINNING FACE}" * config.max_prompt_chars)
    assert widest.ByteSize() < config.max_message_bytes


async def test_streams_beyond_the_limit_of_a_connection_wait(tls: TlsPaths, tmp_path: Path) -> None:
    let_go = asyncio.Event()

    async def held(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        await let_go.wait()
        # grpcio loses the status of a call that ends while its first message is still being sent.
        await asyncio.sleep(0.1)
        yield FINISHED

    async def one(channel: grpc.aio.Channel) -> pb.AnswerEvent:
        stream = call(channel, None)
        await stream.write(open_message())
        return await stream.read()

    async with (
        gate(tls, tmp_path, held, max_streams_per_connection=3) as gated,
        gated.channel() as channel,
    ):
        await channel.channel_ready()  # it has been told the limit
        calls = [asyncio.create_task(one(channel)) for _ in range(8)]
        await until(lambda: gated.answering == 3)
        await asyncio.sleep(0.3)
        assert gated.answering == 3
        let_go.set()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        # The others may be refused where they come just as one ends (REFUSED_STREAM).
        assert sum(isinstance(end, pb.AnswerEvent) for end in ends) >= 3


async def test_a_client_that_pings_too_often_is_sent_away(tls: TlsPaths, tmp_path: Path) -> None:
    async def endless(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        yield Accepted("tier1", "model")
        await asyncio.sleep(60)

    async with gate(tls, tmp_path, endless) as gated:
        loud = (
            ("grpc.keepalive_time_ms", 50),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        async with gated.channel(*loud) as channel:
            stream = call(channel, iter([open_message()]), timeout=30.0)
            with pytest.raises(grpc.aio.AioRpcError, match=r"(?i)too.many.pings") as cut:
                await _read_on(stream)
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: gated.answering == 0)


async def test_an_idle_connection_is_closed_and_opens_again(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path, idle_connection_s=1.0) as gated, gated.channel() as channel:
        async for _ in call(channel, iter([open_message()])):
            pass
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        await until(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE)
        events = [event async for event in call(channel, iter([open_message()]))]
        assert events[-1].WhichOneof("kind") == "finish"


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_idle_connections_leave_room_for_a_request(
    tls: TlsPaths, tmp_path: Path
) -> None:
    async with gate(tls, tmp_path) as gated:
        before = _resident_bytes()
        context = idle_context(tls)
        idle: list[ssl.SSLSocket] = []
        for _ in range(50):
            each = (asyncio.to_thread(connect_idle, gated.address, context) for _ in range(20))
            idle += await asyncio.gather(*each)
        # Both ends together; docs/cluster.md has the server's alone.
        assert (_resident_bytes() - before) / len(idle) < 300_000
        assert await gated.ask() == "tests by api_key"
        for connection in idle:
            connection.close()


async def _read_on(stream: grpc.aio.StreamStreamCall) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


def _connections(port: int) -> int:
    """Connections that the server's end of this process holds."""
    tables = [Path(f"/proc/self/net/{name}").read_text() for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table.splitlines()[1:]]
    return sum(own.endswith(f":{port:04X}") and state == "01" for _, own, _, state, *_ in fields)


def idle_context(tls: TlsPaths) -> ssl.SSLContext:
    """What idle clients trust."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.set_alpn_protocols(["h2"])
    return context


def connect_idle(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection that has greeted (HTTP/2) and then says nothing."""
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)))
    connection = context.wrap_socket(plain, server_hostname=host)
    # Preface and an empty SETTINGS frame (RFC 9113, 3.4 and 6.5).
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    assert connection.recv(9)
    return connection


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_what_is_no_message_is_refused(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated, gated.channel() as channel:
        raw = channel.stream_stream("/cascade.v1.InferenceService/Answer")
        for data in (b"\xff" * 50, b"", pb.AnswerRequest().SerializeToString()):
            stream = raw(iter([data]), timeout=10.0, metadata=(("x-api-key", KEY),))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await _read_on(stream)
            assert refused.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.INTERNAL,
            )
            assert "Traceback" not in (refused.value.details() or "")

"""Real calls over TLS on the loopback: keys, deadlines, cancellation, the one retry, failures."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cascade.errors import InvalidInput, RemoteError
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Constraints, DataClass, Message, Request
from cascade.v1 import inference_pb2 as pb
from cascade.v1 import inference_pb2_grpc
from cascade.wire import (
    API_KEY_HEADER,
    INFERENCE_SERVICE,
    AccessInterceptor,
    ApiKeys,
    CallRecord,
    ClientProfile,
    GrpcRemote,
    KeyRing,
    OpenRequest,
    add_answerer,
)
from cloud.tls import TlsPaths, ensure_local_tls

KEY = "a-key-for-tests"
FINISHED = Finished("stop", 3, 1, 0.25, "tier1", "model", None, ("lowest_tier",), 0.01)


class Scripted:
    """An answerer that does what the prompt says."""

    def __init__(self) -> None:
        self.calls: list[OpenRequest] = []
        self.closed = asyncio.Event()

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        self.calls.append(request)
        match request.messages[-1].content.split():
            case ["unavailable", times] if len(self.calls) <= int(times):
                raise RemoteError("UNAVAILABLE", "tier1 lost its replica")
            case ["lost-halfway"]:
                yield Accepted("tier1", "model")
                raise RemoteError("UNAVAILABLE", "tier1 lost its replica")
            case ["busy"]:
                raise RemoteError("RESOURCE_EXHAUSTED", "no room", retry_after_s=1.5)
            case ["invalid"]:
                raise InvalidInput("prompt", "is not\nwanted")
            case ["broken"]:
                raise ZeroDivisionError("a secret of the inside")
            case ["unfinished"]:
                yield Accepted("tier1", "model")
                return
            case ["slow"]:
                try:
                    yield Accepted("tier1", "model")
                    await asyncio.sleep(60)
                finally:
                    self.closed.set()
        yield Accepted("tier1", "model")
        yield Chunk("yes", 1)
        yield FINISHED


class Cluster:
    """A server on a free port, the answerer behind it, and what it recorded."""

    def __init__(self, tls: TlsPaths) -> None:
        self.answerer = Scripted()
        self.records: list[CallRecord] = []
        ring = KeyRing().with_key("tests", KEY)
        self.server = grpc.aio.server(interceptors=[AccessInterceptor([ApiKeys(lambda: ring)])])
        add_answerer(self.server, self.answerer, on_call=self.records.append)
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.ca_pem = tls.ca.read_bytes()

    def profile(self, key: str = KEY) -> ClientProfile:
        return ClientProfile(f"127.0.0.1:{self.port}", self.ca_pem, key)

    def channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsPaths:
    return ensure_local_tls(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture
async def cluster(tls: TlsPaths) -> AsyncIterator[Cluster]:
    cluster = Cluster(tls)
    await cluster.server.start()
    yield cluster
    await cluster.server.stop(0)


@pytest.fixture
async def remote(cluster: Cluster) -> AsyncIterator[GrpcRemote]:
    remote = GrpcRemote(cluster.profile())
    yield remote
    await remote.close()


def asking(prompt: str, **limits: object) -> Request:
    constraints = Constraints(**limits)  # type: ignore[arg-type]
    return Request((Message("user", prompt),), constraints=constraints)


async def collect(
    remote: GrpcRemote, request: Request, *, deadline_s: float = 10.0
) -> list[RemoteEvent]:
    events = remote.answer(request, DeviceReport(), deadline_s=deadline_s, transfer=Transfer())
    return [event async for event in events]


async def refusal(remote: GrpcRemote, request: Request, *, deadline_s: float = 10.0) -> RemoteError:
    with pytest.raises(RemoteError) as refused:
        await collect(remote, request, deadline_s=deadline_s)
    assert "\n" not in str(refused.value)
    return refused.value


async def test_an_answer_arrives_event_by_event(cluster: Cluster, remote: GrpcRemote) -> None:
    transfer = Transfer()
    request = asking("hello")
    events = remote.answer(request, DeviceReport(), deadline_s=5.0, transfer=transfer)
    assert [event async for event in events] == [
        Accepted("tier1", "model"),
        Chunk("yes", 1),
        FINISHED,
    ]
    (asked,) = cluster.answerer.calls
    assert asked.messages == request.messages
    assert 4.0 < asked.constraints.deadline_s <= 5.0
    # A message of some dozen bytes each way; never less than the text in it.
    assert len("hello") < transfer.bytes_up < 200
    assert len("yes") < transfer.bytes_down < 300


async def test_a_call_is_recorded_without_its_content(cluster: Cluster, remote: GrpcRemote) -> None:
    request = asking("my secret question")
    await collect(remote, request)
    (record,) = cluster.records
    assert (record.request_id, record.caller, record.status) == (request.request_id, "tests", "OK")
    assert (record.tier, record.prompt_tokens, record.cost_usd) == ("tier1", 3, 0.25)
    assert "secret" not in repr(record)


async def test_a_wrong_key_is_unauthenticated(cluster: Cluster) -> None:
    # Several times: a refusal that came before the first message arrived was lost now and then.
    for key in ["wrong", ""] * 10:
        remote = GrpcRemote(cluster.profile(key))
        error = await refusal(remote, asking("hello"))
        assert error.status == "UNAUTHENTICATED"
        assert API_KEY_HEADER in error.message
        await remote.close()
    assert cluster.answerer.calls == []


async def test_the_deadline_ends_a_slow_answer_on_both_sides(
    cluster: Cluster, remote: GrpcRemote
) -> None:
    began = time.monotonic()
    error = await refusal(remote, asking("slow"), deadline_s=0.5)
    assert error.status == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 2.0
    await asyncio.wait_for(cluster.answerer.closed.wait(), 2.0)


async def test_an_expired_deadline_asks_nobody(cluster: Cluster, remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("hello"), deadline_s=0.0)
    assert error.status == "DEADLINE_EXCEEDED"
    assert cluster.answerer.calls == []


async def test_closing_the_iterator_stops_the_answerer(
    cluster: Cluster, remote: GrpcRemote
) -> None:
    events = remote.answer(asking("slow"), DeviceReport(), deadline_s=30.0, transfer=Transfer())
    assert await anext(events) == Accepted("tier1", "model")
    assert not cluster.answerer.closed.is_set()
    await events.aclose()
    await asyncio.wait_for(cluster.answerer.closed.wait(), 2.0)
    while not cluster.records:
        await asyncio.sleep(0.01)
    assert cluster.records[0].status == "CANCELLED"


async def test_cancelling_the_task_stops_the_answerer(cluster: Cluster, remote: GrpcRemote) -> None:
    task = asyncio.create_task(collect(remote, asking("slow"), deadline_s=30.0))
    while not cluster.answerer.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cluster.answerer.closed.wait(), 2.0)


async def test_unavailable_is_retried_once(cluster: Cluster, remote: GrpcRemote) -> None:
    assert (await collect(remote, asking("unavailable 1")))[-1] == FINISHED
    assert [call.constraints.max_remote_calls for call in cluster.answerer.calls] == [2, 1]


async def test_unavailable_twice_is_given_up(cluster: Cluster, remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("unavailable 9", max_remote_calls=16))
    assert (error.status, error.message) == ("UNAVAILABLE", "tier1 lost its replica")
    assert len(cluster.answerer.calls) == 2


async def test_a_call_that_a_closing_server_dropped_is_retried_once(tls: TlsPaths) -> None:
    """gRPC's core ends what reaches a server that shuts down with a bare CANCELLED."""
    calls = 0

    async def drop(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        nonlocal calls
        calls += 1
        await context.abort(grpc.StatusCode.CANCELLED)

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(cast(Any, drop))
    service = grpc.method_handlers_generic_handler(INFERENCE_SERVICE, {"Answer": method})
    server.add_generic_rpc_handlers((service,))
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    remote = GrpcRemote(ClientProfile(f"127.0.0.1:{port}", tls.ca.read_bytes(), KEY))
    try:
        error = await refusal(remote, asking("hello"))
        assert error.status == "UNAVAILABLE"
        assert "closed the connection" in error.message
        assert calls == 2
    finally:
        await remote.close()
        await server.stop(None)


async def test_one_allowed_call_is_not_retried(cluster: Cluster, remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("unavailable 1", max_remote_calls=1))
    assert error.status == "UNAVAILABLE"
    assert len(cluster.answerer.calls) == 1


async def test_nothing_is_retried_after_the_first_event(
    cluster: Cluster, remote: GrpcRemote
) -> None:
    error = await refusal(remote, asking("lost-halfway"))
    assert error.status == "UNAVAILABLE"
    assert len(cluster.answerer.calls) == 1


async def test_retry_after_is_read(cluster: Cluster, remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("busy"))
    assert (error.status, error.message, error.retry_after_s) == (
        "RESOURCE_EXHAUSTED",
        "no room",
        1.5,
    )


async def test_the_inside_of_a_failure_stays_inside(cluster: Cluster, remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("broken"))
    assert error.status == "INTERNAL"
    assert "secret" not in error.message
    assert cluster.records[0].problem == "ZeroDivisionError"


async def test_an_answer_without_finish_is_not_an_answer(remote: GrpcRemote) -> None:
    error = await refusal(remote, asking("unfinished"))
    assert error.status == "INTERNAL"
    assert "finish" in error.message


async def test_an_invalid_field_is_named_in_the_details(cluster: Cluster) -> None:
    async with cluster.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _raw(channel, [_open("invalid")], timeout=5.0)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refused.value)
    violations = error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(violations) for detail in status.details)
    assert violations.field_violations[0].field == "prompt"


async def test_a_call_without_a_deadline_is_refused(cluster: Cluster) -> None:
    async with cluster.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="deadline: is required") as refused:
            await _raw(channel, [_open("hello")], timeout=None)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert cluster.answerer.calls == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "open: is missing"),
        ([pb.AnswerRequest(draft_done=pb.DraftDone(tokens=1))], "open: is missing"),
    ],
)
async def test_a_call_must_begin_with_open(
    cluster: Cluster, messages: list[pb.AnswerRequest], problem: str
) -> None:
    async with cluster.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=problem):
            await _raw(channel, messages, timeout=5.0)


async def test_drafts_may_follow_open(cluster: Cluster) -> None:
    draft = pb.AnswerRequest(draft=pb.DraftChunk(text="perhaps"))
    done = pb.AnswerRequest(draft_done=pb.DraftDone(tokens=1))
    async with cluster.channel() as channel:
        events = await _raw(channel, [_open("hello"), draft, done], timeout=5.0)
    assert events[-1].WhichOneof("kind") == "finish"


async def test_a_closed_port_fails_fast(cluster: Cluster) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        remote = GrpcRemote(ClientProfile(address, cluster.ca_pem, KEY))
        began = time.monotonic()
        error = await refusal(remote, asking("hello"), deadline_s=30.0)
        assert time.monotonic() - began < 2.0
    assert error.status == "UNAVAILABLE"
    assert address in error.message
    await remote.close()


async def test_a_silent_address_fails_within_seconds(cluster: Cluster) -> None:
    with socket.socket() as silent:
        # Accepts connections and never says a word: the TLS handshake hangs.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        remote = GrpcRemote(ClientProfile(address, cluster.ca_pem, KEY))
        began = time.monotonic()
        request = asking("hello", max_remote_calls=1)
        error = await refusal(remote, request, deadline_s=30.0)
        assert time.monotonic() - began < 5.0
        assert error.status == "UNAVAILABLE"
        await remote.close()


async def test_another_authority_is_not_trusted(cluster: Cluster, tmp_path: Path) -> None:
    other = ensure_local_tls(tmp_path, "127.0.0.1").ca.read_bytes()
    remote = GrpcRemote(ClientProfile(f"127.0.0.1:{cluster.port}", other, KEY))
    error = await refusal(remote, asking("hello"))
    assert error.status == "UNAVAILABLE"
    assert "certificate" in error.message
    await remote.close()


@pytest.mark.parametrize(
    "request_",
    [
        asking("hello", data_class=DataClass.NEVER_LEAVE),
        asking("hello", allowed_tiers=frozenset()),
        asking("hello", max_remote_calls=0),
    ],
)
async def test_what_may_not_leave_is_not_sent(
    cluster: Cluster, remote: GrpcRemote, request_: Request
) -> None:
    transfer = Transfer()
    events = remote.answer(request_, DeviceReport(), deadline_s=5.0, transfer=transfer)
    with pytest.raises(RemoteError, match="FAILED_PRECONDITION"):
        await anext(events)
    assert transfer == Transfer()
    assert cluster.answerer.calls == []


def _open(prompt: str) -> pb.AnswerRequest:
    message = pb.AnswerRequest()
    message.open.request_id = "r-1"
    message.open.messages.messages.add(role=pb.ROLE_USER, content=prompt)
    return message


async def _raw(
    channel: grpc.aio.Channel, messages: list[pb.AnswerRequest], *, timeout: float | None
) -> list[pb.AnswerEvent]:
    answer: Callable[..., AsyncIterator[pb.AnswerEvent]]
    answer = inference_pb2_grpc.InferenceServiceStub(channel).Answer
    call = answer(iter(messages), timeout=timeout, metadata=((API_KEY_HEADER, KEY),))
    return [event async for event in call]

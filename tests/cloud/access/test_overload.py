"""What a gateway without room does: it refuses before it reads, and answers the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc
import pytest

from cascade.errors import RemoteError
from cascade.remote import RemoteEvent
from cascade.wire import OpenRequest
from cloud.tls import TlsPaths
from tests.cloud.access.gate import FINISHED, KEY, call, gate, open_message, until

FULL = RemoteError("RESOURCE_EXHAUSTED", "there is no room", 3.0)


async def test_a_call_for_which_there_is_no_room_is_refused_unread(
    tls: TlsPaths, tmp_path: Path
) -> None:
    left: list[float] = []

    def admit(deadline_s: float) -> RemoteError:
        left.append(deadline_s)
        return FULL

    async with gate(tls, tmp_path, admit=admit) as gated, gated.channel() as channel:
        refused = await gated.refused()
        assert (refused.status, refused.message, refused.retry_after_s) == (
            "RESOURCE_EXHAUSTED",
            "there is no room",
            3.0,
        )
        # Not even whether it is a message at all is looked at.
        raw = channel.stream_stream("/cascade.v1.InferenceService/Answer")
        stream = raw(iter([b"\xff" * 50]), timeout=10.0, metadata=(("x-api-key", KEY),))
        with pytest.raises(grpc.aio.AioRpcError, match="there is no room") as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(left) == 2
        assert all(0.0 < each <= 10.0 for each in left)
        records = gated.records
        assert [(each.caller, each.request_id, each.status) for each in records] == [
            ("tests", "", "RESOURCE_EXHAUSTED")
        ] * 2
        assert len(records[1].trace_id) in (0, 32)


async def test_a_stranger_learns_nothing_of_the_load(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path, admit=lambda deadline_s: FULL) as gated:
        assert (await gated.refused(gated.profile("wrong"))).status == "UNAUTHENTICATED"


async def test_what_is_no_message_is_named(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated, gated.channel() as channel:
        raw = channel.stream_stream("/cascade.v1.InferenceService/Answer")
        stream = raw(iter([b"\xff" * 50]), timeout=10.0, metadata=(("x-api-key", KEY),))
        with pytest.raises(grpc.aio.AioRpcError, match="is no AnswerRequest") as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert gated.answering == 0


async def test_a_later_message_that_is_none_ends_the_call(tls: TlsPaths, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def held(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        await go.wait()
        yield FINISHED

    async with gate(tls, tmp_path, held) as gated, gated.channel() as channel:
        raw = channel.stream_stream("/cascade.v1.InferenceService/Answer")
        stream = raw(timeout=10.0, metadata=(("x-api-key", KEY),))
        await stream.write(open_message().SerializeToString())
        await until(lambda: gated.answering == 1)
        await stream.write(b"\xff" * 50)
        await asyncio.sleep(0.1)
        go.set()
        with pytest.raises(grpc.aio.AioRpcError, match="is no AnswerRequest") as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: gated.answering == 0)


async def test_calls_beyond_what_memory_is_for_are_refused_whoever_is_silent(
    tls: TlsPaths, tmp_path: Path
) -> None:
    async with (
        gate(tls, tmp_path, max_open_calls=16, first_message_s=1.0) as gated,
        gated.channel() as channel,
    ):
        silent = [call(channel, None) for _ in range(16)]
        await asyncio.gather(*(each.wait_for_connection() for each in silent))
        await asyncio.sleep(0.3)
        late = call(channel, iter([open_message()]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late.read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: len(gated.records) == 16)  # their time is up
        assert await gated.ask() == "tests by api_key"

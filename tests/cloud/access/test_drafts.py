"""Drafts over real calls on the loopback: announced, streamed, waited for, and refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import grpc
import pytest

from cascade.draft import MAX_DRAFT_BYTES, MAX_DRAFT_TOKENS, Drafting, DraftProposal, DraftTape
from cascade.errors import RemoteError
from cascade.remote import Accepted, Chunk, DeviceReport, RemoteEvent, Transfer, Verified
from cascade.request import Constraints, DataClass, Message, Request
from cascade.v1 import inference_pb2 as pb
from cascade.wire import GrpcRemote, OpenRequest
from tests.cloud.access.gate import FINISHED, Gate, call, gate, open_message, until

DIGEST = "ab" * 32
ALL = Drafting("threshold", 0.25, acceptance=0.999, write_s=1.0, read_s=1e-6)


class Scorer:
    """Keeps half of every draft; fails as often as it is told to, before it answers."""

    def __init__(self) -> None:
        self.drafts: list[DraftProposal | None] = []
        self.failures = 0
        self.closed = 0

    async def __call__(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        try:
            draft = None if request.incoming is None else await request.incoming.whole()
            self.drafts.append(draft)
            if self.failures:
                self.failures -= 1
                raise RemoteError("UNAVAILABLE", "tier1 lost its replica")
            yield Accepted("tier1", "model")
            if draft is not None:
                yield Verified(len(draft.tokens) // 2)
            yield Chunk("yes", 1)
            yield FINISHED
        finally:
            self.closed += 1


@pytest.fixture
def scorer() -> Scorer:
    return Scorer()


@pytest.fixture
async def gated(tls, tmp_path: Path, scorer: Scorer) -> AsyncIterator[Gate]:
    async with gate(tls, tmp_path, scorer, draft_s=1.0) as opened:
        yield opened


@pytest.fixture
async def remote(gated: Gate) -> AsyncIterator[GrpcRemote]:
    remote = GrpcRemote(gated.profile())
    yield remote
    await remote.close()


def tape(*words: str, ends: bool = True) -> DraftTape:
    draft = DraftTape(ALL)
    for number, word in enumerate(words):
        draft.add_token(number)
        draft.add_text(word)
    if ends:
        draft.end(complete=True)
    return draft


def asking(**limits: object) -> Request:
    return Request((Message("user", "hello"),), constraints=Constraints(**limits))  # type: ignore[arg-type]


def answered(
    remote: GrpcRemote, draft: DraftTape | None, request: Request | None = None, **how: object
) -> AsyncGenerator[RemoteEvent]:
    report = DeviceReport(tokenizer_digest=DIGEST)
    options = {"deadline_s": 10.0, "transfer": Transfer()} | how
    return remote.answer(request or asking(), report, draft=draft, **options)  # type: ignore[arg-type]


async def test_a_draft_arrives_whole_and_what_is_kept_comes_back(
    remote: GrpcRemote, scorer: Scorer
) -> None:
    draft = tape("Grü", "ße", "", "!")
    transfer = Transfer()
    events = [event async for event in answered(remote, draft, transfer=transfer)]
    assert events == [Accepted("tier1", "model"), Verified(2), Chunk("yes", 1), FINISHED]
    (arrived,) = scorer.drafts
    assert arrived is not None
    assert arrived == DraftProposal(
        (0, 1, 2, 3), (4, 3, 0, 1), "Grüße!", True, arrived.tolerance, DIGEST
    )
    assert arrived.tolerance == pytest.approx(0.25)
    assert draft.sent == 4
    without = Transfer()
    _ = [event async for event in answered(remote, None, transfer=without)]
    assert transfer.bytes_up > without.bytes_up + len("Grüße!".encode())
    assert scorer.drafts[1] is None


async def test_a_draft_is_sent_while_it_is_written(remote: GrpcRemote, scorer: Scorer) -> None:
    draft = tape("one ", ends=False)
    answer = asyncio.create_task(_all(answered(remote, draft)))
    for number, word in enumerate(("two ", "three"), start=1):
        await asyncio.sleep(0.05)
        draft.add_token(number)
        draft.add_text(word)
    await until(lambda: draft.sent == 2)
    assert scorer.drafts == []
    draft.end(complete=False)
    assert Verified(1) in await answer
    (arrived,) = scorer.drafts
    assert arrived is not None
    assert (arrived.text, arrived.complete) == ("one two three", False)


async def test_a_draft_that_never_ends_is_waited_for_as_long_as_the_gateway_says(
    remote: GrpcRemote, scorer: Scorer
) -> None:
    draft = tape("one ", "two ", ends=False)
    began = time.monotonic()
    events = await _all(answered(remote, draft))
    assert time.monotonic() - began >= 1.0
    assert Chunk("yes", 1) in events
    (arrived,) = scorer.drafts
    assert arrived is not None
    assert (arrived.tokens, arrived.complete) == ((0,), False)
    assert not draft._readers  # the call has let go of it


async def test_a_retry_sends_the_draft_again(remote: GrpcRemote, scorer: Scorer) -> None:
    scorer.failures = 1
    assert Verified(1) in await _all(answered(remote, tape("a", "b")))
    first, second = scorer.drafts
    assert first == second
    assert second is not None
    assert second.tokens == (0, 1)


async def test_what_must_not_leave_sends_no_draft_either(
    remote: GrpcRemote, scorer: Scorer, gated: Gate
) -> None:
    draft, transfer = tape("a secret"), Transfer()
    request = asking(data_class=DataClass.NEVER_LEAVE)
    with pytest.raises(RemoteError, match="may not leave the device"):
        await _all(answered(remote, draft, request, transfer=transfer))
    assert (transfer.bytes_up, draft.sent, scorer.drafts, gated.records) == (0, 0, [], [])


async def test_a_lost_replica_and_a_deadline_while_the_draft_goes_on(
    remote: GrpcRemote, scorer: Scorer, gated: Gate
) -> None:
    scorer.failures = 2
    draft = tape("one ", "two", ends=False)
    with pytest.raises(RemoteError) as lost:
        await _all(answered(remote, draft))
    assert lost.value.status == "UNAVAILABLE"
    with pytest.raises(RemoteError) as late:
        await _all(answered(remote, draft, deadline_s=0.3))
    assert late.value.status == "DEADLINE_EXCEEDED"
    await until(lambda: gated.answering == 0 and scorer.closed == 3)
    assert not draft._readers


async def test_a_caller_that_leaves_while_it_drafts_leaves_nothing_behind(
    remote: GrpcRemote, scorer: Scorer, gated: Gate
) -> None:
    draft = tape("one ", "two", ends=False)
    answer = asyncio.create_task(_all(answered(remote, draft)))
    await until(lambda: gated.answering == 1)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await until(lambda: gated.answering == 0 and scorer.closed == 1)
    assert not draft._readers
    await until(lambda: len(gated.records) == 1)
    assert gated.records[0].status == "CANCELLED"


def chunk(offset: int, text: str, count: int = 1, **fields: object) -> pb.AnswerRequest:
    size = len(text.encode())
    lengths = [size] + [0] * (count - 1)
    given = {"offset": offset, "text": text, "tokens": [5] * count, "lengths": lengths}
    return pb.AnswerRequest(draft=pb.DraftChunk(**(given | fields)))  # type: ignore[arg-type]


def done(tokens: int) -> pb.AnswerRequest:
    return pb.AnswerRequest(draft_done=pb.DraftDone(tokens=tokens))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([chunk(1, "a")], "draft.offset: is 1 where 0"),
        ([chunk(0, "a"), chunk(0, "b")], "draft.offset: is 0 where 1"),
        ([chunk(0, "a", lengths=[2])], "draft.lengths"),
        ([chunk(0, "ab", lengths=[1, 1])], "draft.lengths"),
        ([chunk(0, "ab", lengths=[])], "draft.lengths"),
        ([chunk(0, "a"), done(2)], "draft_done.tokens: is 2 where 1"),
        ([done(0), chunk(0, "a")], "draft: follows draft_done"),
        ([done(0), done(0)], "draft_done: is sent twice"),
        ([chunk(0, "x", MAX_DRAFT_TOKENS + 1)], "draft: has more than"),
        ([chunk(0, "x" * (MAX_DRAFT_BYTES + 1))], "draft: has more than"),
        ([open_message()], "open: is sent twice"),
    ],
)
async def test_what_is_no_draft_is_refused_by_name(
    gated: Gate, messages: list[pb.AnswerRequest], problem: str
) -> None:
    opened = open_message()
    opened.open.drafting.tolerance = 0.0
    async with gated.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            _ = [event async for event in call(channel, iter((opened, *messages)))]
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in (refused.value.details() or "")


@pytest.mark.parametrize("tolerance", [1.0, -0.1, float("nan")])
async def test_a_tolerance_out_of_range_is_refused(gated: Gate, tolerance: float) -> None:
    opened = open_message()
    opened.open.drafting.tolerance = tolerance
    async with gated.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"drafting\.tolerance"):
            _ = [event async for event in call(channel, iter((opened,)))]


async def test_a_draft_for_a_closed_set_is_refused(gated: Gate) -> None:
    opened = open_message()
    opened.open.options.options.extend(["yes", "no"])
    opened.open.drafting.SetInParent()
    async with gated.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="drafting: is for free answers"):
            _ = [event async for event in call(channel, iter((opened,)))]


async def test_an_unannounced_draft_is_read_within_its_limits_and_not_kept(gated: Gate) -> None:
    async with gated.channel() as channel:
        messages = (open_message(), chunk(0, "a"), chunk(7, "b"), done(1))
        events = [event async for event in call(channel, iter(messages))]
        assert events[-1].WhichOneof("kind") == "finish"
        assert not any(event.WhichOneof("kind") == "verification" for event in events)


async def _all(events: AsyncGenerator[RemoteEvent]) -> list[RemoteEvent]:
    return [event async for event in events]

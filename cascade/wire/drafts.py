"""Drafts on the wire: what a device sends behind ``open``, and what a server makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from cascade.draft import (
    MAX_DRAFT_BYTES,
    MAX_DRAFT_TOKENS,
    DraftPiece,
    DraftProposal,
    DraftTape,
)
from cascade.errors import InvalidInput
from cascade.v1 import inference_pb2 as pb


async def draft_messages(draft: DraftTape) -> AsyncGenerator[pb.AnswerRequest]:
    """The messages of a draft, as it is written, ``draft_done`` last."""
    async for piece in draft.pieces():
        yield pb.AnswerRequest(
            draft=pb.DraftChunk(
                offset=piece.offset,
                text=piece.text,
                tokens=piece.tokens,
                lengths=piece.lengths,
            )
        )
    yield pb.AnswerRequest(draft_done=pb.DraftDone(tokens=draft.sent, complete=draft.complete))


class DraftInbox:
    """Reads what follows ``open`` on one call, and refuses what may not.

    Arguments:
        requests: the rest of the call's messages.
        expected: whether ``open`` announced a draft; another one is read and not kept.
        tolerance, tokenizer_digest: see ``DraftProposal``.
        wait_s: how long a draft may take from here on.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.AnswerRequest],
        *,
        expected: bool,
        tolerance: float,
        tokenizer_digest: str,
        wait_s: float,
    ) -> None:
        self._requests = requests
        self._expected = expected
        self._tolerance = tolerance
        self._tokenizer_digest = tokenizer_digest
        self._wait_s = wait_s
        self._pieces: list[DraftPiece] = []
        self._tokens = self._bytes = 0
        self._done: pb.DraftDone | None = None
        self._over = asyncio.Event()
        self._problem: InvalidInput | None = None

    async def run(self) -> None:
        """Read to the end of the call, whether or not anybody waits for a draft.

        Raises:
            InvalidInput: a message is out of place or out of its range.
        """
        try:
            async for message in self._requests:
                self._take(message)
        except InvalidInput as problem:
            self._problem = problem
            raise
        finally:
            self._over.set()

    async def whole(self) -> DraftProposal:
        """See ``IncomingDraft.whole``."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._over.wait()
        except TimeoutError:
            pass  # what has come by now is a draft as well
        if self._problem is not None:
            raise self._problem
        tokens = [token for piece in self._pieces for token in piece.tokens]
        lengths = [length for piece in self._pieces for length in piece.lengths]
        return DraftProposal(
            tuple(tokens),
            tuple(lengths),
            "".join(piece.text for piece in self._pieces),
            complete=self._done is not None and self._done.complete,
            tolerance=self._tolerance,
            tokenizer_digest=self._tokenizer_digest,
        )

    def _take(self, message: pb.AnswerRequest) -> None:
        kind = message.WhichOneof("kind")
        if kind == "open":
            raise InvalidInput("open", "is sent twice; one call carries one request")
        if kind == "draft":
            self._add(message.draft)
        elif kind == "draft_done":
            self._end(message.draft_done)

    def _add(self, sent: pb.DraftChunk) -> None:
        if self._done is not None:
            raise InvalidInput("draft", "follows draft_done; nothing may")
        if not self._expected:
            # Announced by nobody: of no use to any tier, and not to be remembered.
            self._count(len(sent.tokens), len(sent.text.encode()))
            return
        if sent.offset != self._tokens:
            raise InvalidInput(
                "draft.offset", f"is {sent.offset} where {self._tokens} tokens have come"
            )
        size = len(sent.text.encode())
        told = size if sent.tokens else 0  # a text without tokens has no lengths
        if len(sent.lengths) != len(sent.tokens) or sum(sent.lengths) != told:
            raise InvalidInput(
                "draft.lengths", "must be the bytes of text that each of the tokens completes"
            )
        self._count(len(sent.tokens), size)
        self._pieces.append(
            DraftPiece(sent.offset, sent.text, tuple(sent.tokens), tuple(sent.lengths))
        )

    def _count(self, tokens: int, size: int) -> None:
        self._tokens += tokens
        self._bytes += size
        if self._tokens > MAX_DRAFT_TOKENS or self._bytes > MAX_DRAFT_BYTES:
            raise InvalidInput(
                "draft", f"has more than {MAX_DRAFT_TOKENS} tokens or {MAX_DRAFT_BYTES} bytes"
            )

    def _end(self, sent: pb.DraftDone) -> None:
        if self._done is not None:
            raise InvalidInput("draft_done", "is sent twice")
        if self._expected and sent.tokens != self._tokens:
            raise InvalidInput(
                "draft_done.tokens", f"is {sent.tokens} where {self._tokens} tokens have come"
            )
        self._done = sent
        self._over.set()

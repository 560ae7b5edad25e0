"""A model that answers on one worker thread, as a stream of engine events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

from cascade.local import CancelToken, LocalAnswer
from cascade.remote import Speed, Verified
from cloud.engines.base import ChatRequest, Done, EngineEvent, Piece, Started

Put = Callable[[Piece | Verified | Speed], None]
"""Takes what is to be told next."""
Compute = Callable[[Put, CancelToken], LocalAnswer]
"""Answers in the worker thread."""


def answering(
    generate: Callable[..., LocalAnswer], choose: Callable[..., LocalAnswer], request: ChatRequest
) -> Compute:
    """What answers ``request`` by a model's two methods; see ``cascade.local.LocalModel``."""

    def compute(put: Put, cancel: CancelToken) -> LocalAnswer:
        if not request.options:
            return generate(
                request.messages,
                max_tokens=request.max_tokens,
                stop=request.stop,
                sampling=request.sampling,
                json_schema=request.json_schema,
                regex=request.regex,
                on_text=lambda text: put(Piece(text, 1)),
                cancel=cancel,
            )
        answer = choose(request.messages, request.options, cancel=cancel)
        put(Piece(answer.text, answer.tokens))
        return answer

    return compute


async def stream_answer(
    worker: ThreadPoolExecutor, request: ChatRequest, prompt_tokens: int, compute: Compute
) -> AsyncGenerator[list[EngineEvent]]:
    """Run ``compute`` and pass on what it puts; see ``Engine.stream``.

    A request that is cancelled while it waits never starts; one that is under way sees its token at
    most one step later. Prompt tokens that were at hand are not counted in ``cached_tokens``.
    """
    loop = asyncio.get_running_loop()
    cancel = CancelToken()
    pieces: asyncio.Queue[Piece | Verified | Speed | None] = asyncio.Queue()

    def put(piece: Piece | Verified | Speed) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def end(work: asyncio.Future[LocalAnswer]) -> None:
        pieces.put_nowait(None)
        if not work.cancelled():
            work.exception()  # asked for here, in case that nobody waits for it any more

    work = loop.run_in_executor(worker, compute, put, cancel)
    work.add_done_callback(end)
    try:
        yield [Started(prompt_tokens)]
        ended = False
        while not ended:
            batch = [await pieces.get()]
            while not pieces.empty():
                batch.append(pieces.get_nowait())
            ended = batch[-1] is None
            events: list[EngineEvent] = [piece for piece in batch if piece is not None]
            if events:
                yield events
        yield [_done(await work, request)]
    finally:
        # At most one step later the worker sees this, and is free for the next request.
        cancel.cancel()
        work.cancel()


def _done(answer: LocalAnswer, request: ChatRequest) -> Done:
    return Done(
        reason="length" if answer.finish == "length" else "stop",
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.tokens,
        cached_tokens=0,
        raw_score=min(1.0, answer.raw_score) if request.score else None,
    )

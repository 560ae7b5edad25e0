"""A tier reads a prompt while the draft of its answer is still being written.

Only where it can pay off: the tier keeps what it read last, and the call that follows goes to the
same replica because there is no other. Between the two the tier answers whom it likes; then the
prompt is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from cascade.draft import DraftProposal
from cascade.errors import CascadeError
from cascade.wire import OpenRequest
from cloud.attempt import TierStream
from cloud.config import TierConfig
from cloud.engines import ChatRequest

# A draft that is there when the call is opened has come by then, and its call reads the prompt.
_AT_HAND_S: Final = 0.05


def reads_ahead(tier: TierConfig) -> bool:
    """Whether ``tier`` may read a prompt before it is asked."""
    return tier.scores_drafts and tier.autoscaling.max_replicas == 1


async def collected(request: OpenRequest, stream: TierStream | None) -> DraftProposal | None:
    """The draft that ``request`` announced, once all of it is there; ``None`` where none was.

    Arguments:
        stream: the tier that reads the prompt meanwhile; stopped when the draft is there, for the
            call that then follows goes on with the rest.

    Raises:
        InvalidInput: the device sends something that is no draft.
    """
    if request.incoming is None:
        return None
    whole = asyncio.ensure_future(request.incoming.whole())
    try:
        await asyncio.wait({whole}, timeout=_AT_HAND_S)
        if whole.done() or stream is None:
            return await whole
        async with _reading(stream, request):
            return await whole
    finally:
        whole.cancel()
        await asyncio.wait({whole})


@asynccontextmanager
async def _reading(stream: TierStream, request: OpenRequest) -> AsyncGenerator[None]:
    """Have a tier read the prompt of ``request`` until the block ends."""
    ahead = ChatRequest(request.messages, 1, adapter=request.adapter, prefill=True)

    async def read() -> None:
        # What goes wrong here goes wrong again, and is told, where the tier is asked.
        with suppress(CascadeError):
            async with aclosing(stream(ahead)) as messages:
                async for _ in messages:
                    pass

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.wait({reading})

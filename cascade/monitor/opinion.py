"""The cluster's answer to an audited request, read to its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from cascade.errors import RemoteError
from cascade.remote import Accepted, Chunk, Finished, RemoteEvent


async def whole_answer(stream: AsyncGenerator[RemoteEvent, None]) -> str:
    """The text that ``stream`` ends with; closes it.

    Raises:
        RemoteError: it failed, or ended without an answer.
    """
    text: list[str] = []
    complete = False
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            match event:
                case Accepted():
                    text = []
                case Chunk(piece, _):
                    text.append(piece)
                case Finished():
                    complete = True
    if not complete:
        raise RemoteError("INTERNAL", "the cluster ended without an answer")
    return "".join(text)

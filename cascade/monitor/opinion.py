"""Asks the cluster what it would have answered, for an audit."""

from __future__ import annotations

import contextlib

from cascade.errors import RemoteError
from cascade.remote import Accepted, Chunk, DeviceReport, Remote, Transfer
from cascade.request import Request


async def second_opinion(remote: Remote, request: Request, report: DeviceReport) -> str:
    """The cluster's whole answer to ``request``, within the request's own limits.

    Raises:
        RemoteError: there was none.
    """
    text: list[str] = []
    complete = False
    stream = remote.answer(
        request, report, deadline_s=request.constraints.deadline_s, transfer=Transfer()
    )
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            match event:
                case Accepted():
                    text = []
                case Chunk(piece, _):
                    text.append(piece)
                case _:
                    complete = True
    if not complete:
        raise RemoteError("INTERNAL", "the cluster ended without an answer")
    return "".join(text)

"""Writing to callers that may not read: nothing waits for them for long."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from cascade.errors import RemoteError

_ABORT_S: Final = 1.0


async def write(
    context: grpc.aio.ServicerContext[Any, Any], message: Message, stalled_s: float
) -> None:
    """Send a message. It waits while gRPC's window of what was not read yet is full.

    Raises:
        RemoteError: CANCELLED, the caller took nothing for ``stalled_s``.
    """
    try:
        async with asyncio.timeout(stalled_s) as waiting:
            await context.write(message)
    except TimeoutError:
        if not waiting.expired():
            raise
        raise RemoteError("CANCELLED", f"the caller took nothing for {stalled_s:g} s") from None


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: grpc.Status) -> None:
    """End a call with a status. It stands behind what the caller has not taken yet, and is left
    with gRPC where that takes too long: the work of the call ends here in any case."""
    try:
        async with asyncio.timeout(_ABORT_S):
            await context.abort_with_status(status)
    except TimeoutError:
        raise asyncio.CancelledError from None

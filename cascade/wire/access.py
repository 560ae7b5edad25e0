"""Who may call: API keys, of which a server keeps only the sha256.

One line a key in the keys file: ``name sha256``. Names appear in the log; keys never do.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from cascade.errors import InvalidInput, RemoteError
from cascade.files import write_whole
from cascade.wire.connection import API_KEY_HEADER
from cascade.wire.status import status_of

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})[ \t]+([0-9a-f]{64})")
_FIRST_MESSAGE_S: Final = 2.0
_OPEN_TO_ALL: Final = ("/grpc.health.v1.Health/",)
_caller: ContextVar[str] = ContextVar("caller", default="")


def new_key() -> str:
    """A fresh API key with 256 bits of randomness."""
    return secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """What a server keeps of a key: lower-case hex sha256. A random key needs no salt."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys that may call.

    Arguments:
        hashes: sha256 of each key, by the name under which it appears in the log.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a keys file; a missing one is an empty ring, which lets nobody in.

        Raises:
            InvalidInput: naming the line that is not ``name sha256``.
        """
        hashes: dict[str, str] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            parts = _LINE.fullmatch(text)
            if parts is None:
                raise InvalidInput("api_keys_file", f"{path} line {number} is not `name sha256`")
            hashes[parts[1]] = parts[2]
        return cls(hashes)

    def save(self, path: Path) -> None:
        """Write a keys file, readable by the owner alone."""
        lines = [f"{name} {digest}\n" for name, digest in sorted(self._hashes.items())]
        write_whole(path, "".join(lines).encode(), private=True)

    def with_key(self, name: str, key: str) -> KeyRing:
        """This ring and ``key``, which replaces an earlier key of that name."""
        return KeyRing({**self._hashes, name: key_hash(key)})

    def owner(self, key: str) -> str | None:
        """Name of the key, or ``None`` for an unknown one. Takes the same time for every key."""
        found: str | None = None
        digest = key_hash(key)
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def caller() -> str:
    """Name of the API key of the call that is being answered; ``""`` outside of one."""
    return _caller.get()


if TYPE_CHECKING:
    Method = grpc.RpcMethodHandler[Any, Any]


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets only calls with a known ``x-api-key`` through; health checks need none."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Method | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Method | None:
        """Route the call, or answer it with UNAUTHENTICATED."""
        method = await continuation(handler_call_details)
        if handler_call_details.method.startswith(_OPEN_TO_ALL):
            return method
        metadata = dict(handler_call_details.invocation_metadata or ())
        owner = self._keys.owner(str(metadata.get(API_KEY_HEADER, "")))
        if owner is None:
            return _refuse(method)
        _caller.set(owner)
        return method


def _refuse(method: Method | None) -> Method:
    # An unknown method is refused like a known one: strangers learn nothing.
    streams_in = method is None or bool(method.request_streaming)
    streams_out = method is None or bool(method.response_streaming)
    kinds: dict[tuple[bool, bool], Callable[..., Method]] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[streams_in, streams_out](_unauthenticated)


async def _unauthenticated(
    request: object, context: grpc.aio.ServicerContext[Any, Any]
) -> NoReturn:
    if isinstance(request, AsyncIterator):
        # A caller whose first message finds the call already ended reports a broken connection
        # instead of the status (grpcio: "Internal error from Core").
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                await anext(request, None)
    refusal = RemoteError(
        "UNAUTHENTICATED",
        f"the API key in `{API_KEY_HEADER}` is missing or unknown to this cluster; "
        "copy its client profile (client.json) again, or set CASCADE_API_KEY",
    )
    await context.abort_with_status(status_of(refusal))

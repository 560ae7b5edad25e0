"""Who calls: every call shows a credential before anything answers it.

A credential is looked at by an ``Authenticator``; API keys and client certificates are here, tokens
of an identity provider are the cluster's own. Names appear in logs; credentials never do.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, cast

import grpc

from cascade.errors import RemoteError
from cascade.wire.connection import API_KEY_HEADER
from cascade.wire.keys import KeyRing
from cascade.wire.status import status_of

_FIRST_MESSAGE_S: Final = 2.0
_OPEN_TO_ALL: Final = ("/grpc.health.v1.Health/",)
_CALLER_NAME = re.compile(r"[\x21-\x7e]{1,128}")

AuthKind = Literal["", "api_key", "jwt", "mtls"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how that is known.

    Arguments:
        name: of the API key, in the token or in the certificate; ``""`` where nobody was asked.
    """

    name: str = ""
    kind: AuthKind = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a call came with.

    Arguments:
        metadata: of the call; names in lower case.
        peer: what TLS says of the other side, by gRPC's names.
    """

    metadata: Mapping[str, str]
    peer: Mapping[str, Sequence[bytes]]


class Authenticator(Protocol):
    """Looks at one kind of credential."""

    @property
    def wanted(self) -> str:
        """What it looks for, in words for a caller that showed nothing."""
        ...

    async def caller(self, shown: Shown) -> Caller | None:
        """Whose credential it is; ``None`` where the call shows none of this kind.

        Raises:
            RemoteError: UNAUTHENTICATED, with what is wrong with it in words that are safe to show.
        """
        ...


class ApiKeys:
    """Keys in ``x-api-key``.

    Arguments:
        rings: the keys as they are now.
    """

    def __init__(self, *rings: Callable[[], KeyRing]) -> None:
        self._rings = rings

    wanted = f"an API key in `{API_KEY_HEADER}`"

    async def caller(self, shown: Shown) -> Caller | None:
        """See ``Authenticator``."""
        sent = shown.metadata.get(API_KEY_HEADER, "")
        if not sent:
            return None
        known = [found for ring in self._rings if (found := ring().find(sent)) is not None]
        now = datetime.datetime.now(datetime.UTC)
        for key in known:
            if not key.expired(now):
                return Caller(key.name, "api_key")
        what = "has expired" if known else "is unknown to this cluster"
        raise unauthenticated(
            f"the API key in `{API_KEY_HEADER}` {what}; "
            "copy its client profile (client.json) again, or set CASCADE_API_KEY"
        )


class ClientCertificates:
    """Certificates that the TLS layer has verified already.

    Arguments:
        name: where the caller's name stands: the common name of the subject, or the first of the
            subject's alternative names.
    """

    def __init__(self, name: Literal["subject", "san"] = "subject") -> None:
        self._field = {"subject": "x509_common_name", "san": "x509_subject_alternative_name"}[name]
        self._what = {"subject": "common name", "san": "subject alternative name"}[name]

    wanted = "a client certificate"

    async def caller(self, shown: Shown) -> Caller | None:
        """See ``Authenticator``."""
        if not shown.peer.get("x509_pem_cert"):
            return None
        names = shown.peer.get(self._field) or (b"",)
        return Caller(caller_name(names[0].decode(errors="replace"), f"the {self._what}"), "mtls")


def unauthenticated(message: str) -> RemoteError:
    """The refusal of a credential."""
    return RemoteError("UNAUTHENTICATED", message)


def caller_name(text: str, what: str) -> str:
    """``text``, if a caller may be called so.

    Arguments:
        what: where it stands, for the message.

    Raises:
        RemoteError: UNAUTHENTICATED; it is empty, too long, or would spoil a log.
    """
    if not _CALLER_NAME.fullmatch(text):
        raise unauthenticated(f"{what} of this credential is not a name of 1 to 128 characters")
    return text


_caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - it is frozen


def current_caller() -> Caller:
    """Who made the call that is being answered."""
    return _caller.get()


def caller() -> str:
    """Name of who made the call that is being answered; ``""`` outside of one."""
    return _caller.get().name


if TYPE_CHECKING:
    Method = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets only calls with a good credential through; health checks need none.

    The first authenticator that finds its credential in a call decides: a bad token is not made up
    for by a good certificate.

    Arguments:
        on_refused: told why, for each call that was refused.
    """

    def __init__(
        self,
        authenticators: Sequence[Authenticator],
        on_refused: Callable[[RemoteError], None] | None = None,
    ) -> None:
        self._authenticators = tuple(authenticators)
        self._on_refused = on_refused
        self._known: dict[str, Method] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Method | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Method | None:
        """Route the call, with its credential checked before the method begins."""
        name = handler_call_details.method
        known = self._known.get(name)
        if known is not None:
            return known
        method = await continuation(handler_call_details)
        if name.startswith(_OPEN_TO_ALL):
            return method
        guarded = self._guarded(method)
        if method is not None:  # strangers must not fill the memory with names
            self._known[name] = guarded
        return guarded

    def _guarded(self, method: Method | None) -> Method:
        # An unknown method is refused like a known one: strangers learn nothing.
        streams_in = method is None or bool(method.request_streaming)
        streams_out = method is None or bool(method.response_streaming)
        inner: Callable[..., Any] = _unimplemented if method is None else _behaviour(method)

        async def enter(request: object, context: Context) -> None:
            try:
                shown = Shown(_metadata(context), _peer(context))
                _caller.set(await self._identify(shown))
            except RemoteError as refusal:
                if self._on_refused is not None:
                    self._on_refused(refusal)
                await _refuse(request, context, refusal)

        async def answered(request: object, context: Context) -> object:
            await enter(request, context)
            return await inner(request, context)

        async def streamed(request: object, context: Context) -> AsyncIterator[object]:
            await enter(request, context)
            async for message in inner(request, context):
                yield message

        kinds: dict[tuple[bool, bool], Callable[..., Method]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return kinds[streams_in, streams_out](
            streamed if inspect.isasyncgenfunction(inner) else answered,
            method and method.request_deserializer,
            method and method.response_serializer,
        )

    async def _identify(self, shown: Shown) -> Caller:
        for authenticator in self._authenticators:
            found = await authenticator.caller(shown)
            if found is not None:
                return found
        wanted = " or ".join(each.wanted for each in self._authenticators)
        raise unauthenticated(
            f"the call shows no credential; this cluster wants {wanted}: use the client profile "
            "(client.json) that its operator gave you"
        )


def _behaviour(method: Method) -> Callable[..., Any]:
    return cast(
        "Callable[..., Any]",
        method.unary_unary or method.unary_stream or method.stream_unary or method.stream_stream,
    )


def _metadata(context: Context) -> Mapping[str, str]:
    return {str(key): str(value) for key, value in context.invocation_metadata() or ()}


def _peer(context: Context) -> Mapping[str, Sequence[bytes]]:
    return cast("Mapping[str, Sequence[bytes]]", context.auth_context())


async def _unimplemented(request: object, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")


async def _refuse(request: object, context: Context, refusal: RemoteError) -> NoReturn:
    if isinstance(request, AsyncIterator):
        # A caller whose first message finds the call already ended reports a broken connection
        # instead of the status (grpcio: "Internal error from Core").
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                await anext(request, None)
    await context.abort_with_status(status_of(refusal))

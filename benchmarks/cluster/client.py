"""The callers as a child: ``python -m benchmarks.cluster.client``. Every caller has a connection
of its own. Where it does not say otherwise, it has no retry policy, so that every failure is seen;
what a server never looked at gRPC itself sends again, as every client's does."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import grpc

from benchmarks.child import Fields, serve
from benchmarks.cluster.engine import ONE_WAY
from cascade.errors import RemoteError
from cascade.remote import Chunk, DeviceReport, Transfer
from cascade.request import Message, Request
from cascade.v1 import inference_pb2 as pb
from cascade.wire import API_KEY_HEADER, INFERENCE_SERVICE, ClientProfile, GrpcRemote
from cascade.wire.convert import open_message

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_500),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_PROMPT = "Is it warmer in the kitchen than outside? " * 5
_HURRY_S = 1.0
_OTHER_FILES = 64


@dataclass(frozen=True, slots=True)
class Target:
    """A server.

    Arguments:
        ca: PEM of its authority; empty connects without TLS.
        one_way: its RPC takes one request, and no stream of them.
        application: of Ray Serve's, for its own proxy.
    """

    address: str
    ca: str = ""
    key: str = ""
    one_way: bool = False
    application: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call: when it began and ended (monotonic seconds), the status name, and what came."""

    began: float
    ended: float
    status: str
    tokens: int
    problem: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Caller:
    """One connection to ``target``; ``close`` it."""

    def __init__(self, target: Target) -> None:
        if target.ca:
            credentials = grpc.ssl_channel_credentials(target.ca.encode())
            self._channel = grpc.aio.secure_channel(target.address, credentials, _OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, _OPTIONS)
        name, make = (
            (f"/{ONE_WAY}/AnswerOne", self._channel.unary_stream)
            if target.one_way
            else (f"/{INFERENCE_SERVICE}/Answer", self._channel.stream_stream)
        )
        self._one_way = target.one_way
        self._answer: Any = make(
            name,
            request_serializer=pb.AnswerRequest.SerializeToString,
            response_deserializer=pb.AnswerEvent.FromString,
        )
        self._metadata = tuple(
            (name, value)
            for name, value in ((API_KEY_HEADER, target.key), ("application", target.application))
            if value
        )

    async def call(self, opened: pb.AnswerRequest, deadline_s: float) -> Outcome:
        """Ask, and read the answer to its end."""
        began = time.monotonic()
        tokens = 0
        status, problem = "OK", ""
        call = self._answer(
            opened if self._one_way else iter((opened,)),
            timeout=deadline_s,
            metadata=self._metadata,
        )
        try:
            async for event in call:
                tokens += event.tokens.count + sum(each.tokens.count for each in event.following)
        except grpc.aio.AioRpcError as error:
            status, problem = error.code().name, error.details() or ""
        return Outcome(began, time.monotonic(), status, tokens, problem)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class DeviceCaller:
    """The client that devices have, on one connection to ``target``: what a cluster that was gone
    or going did not begin to answer is sent again, once."""

    def __init__(self, target: Target) -> None:
        self._remote = GrpcRemote(ClientProfile(target.address, target.ca.encode(), target.key))

    async def call(self, tokens: int, deadline_s: float) -> Outcome:
        """Ask, and read the answer to its end."""
        began = time.monotonic()
        seen = 0
        status, problem = "OK", ""
        events = self._remote.answer(
            _request(tokens), DeviceReport(), deadline_s=deadline_s, transfer=Transfer()
        )
        try:
            async for event in events:
                seen += event.count if isinstance(event, Chunk) else 0
        except RemoteError as error:
            status, problem = error.status, error.message
        return Outcome(began, time.monotonic(), status, seen, problem)

    async def close(self) -> None:
        """Close the connection."""
        await self._remote.close()


class RawCaller:
    """One connection to ``target`` for many calls of one request: what is sent was serialised once,
    what comes back is not read, and nothing is sent again. On the wire it is the same call, a
    message with the end of the caller's half; it costs the machine, which also has to answer, the
    least that grpcio can do."""

    def __init__(self, target: Target, opened: pb.AnswerRequest) -> None:
        credentials = grpc.ssl_channel_credentials(target.ca.encode())
        options = (*_OPTIONS, ("grpc.enable_retries", 0))
        self._channel = grpc.aio.secure_channel(target.address, credentials, options)
        self._answer: Any = self._channel.unary_stream(f"/{INFERENCE_SERVICE}/Answer")
        self._metadata = ((API_KEY_HEADER, target.key),)
        self._request = opened.SerializeToString()

    async def call(self, deadline_s: float) -> Outcome:
        """Ask, and read the answer to its end."""
        began = time.monotonic()
        status, problem = "OK", ""
        call = self._answer(self._request, timeout=deadline_s, metadata=self._metadata)
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            status, problem = error.code().name, error.details() or ""
        return Outcome(began, time.monotonic(), status, 0, problem)

    async def ready(self) -> None:
        """Connect."""
        await self._channel.channel_ready()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class Callers:
    """What the parent may ask for; every method answers with a JSON object. ``target`` has the
    fields of a ``Target``."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Fields]], Fields]) -> None:
        self._run = run
        self._idle: list[ssl.SSLSocket] = []

    def closed_loop(
        self,
        target: Fields,
        *,
        callers: int,
        seconds: float,
        tokens: int = 1,
        deadline_s: float = 30.0,
        devices: bool = False,
    ) -> Fields:
        """``callers`` ask again and again, each as soon as it has its answer; ``devices`` through
        the client that devices have."""
        return self._run(
            _closed(Target(**target), callers, seconds, tokens, deadline_s, devices=devices)
        )

    def open_loop(
        self,
        target: Fields,
        *,
        rate: float,
        seconds: float,
        connections: int,
        tokens: int = 1,
        deadline_s: float = 10.0,
    ) -> Fields:
        """``rate`` requests a second, evenly, whether or not earlier ones have been answered, over
        TLS connections that stand already. Tokens are not counted."""
        return self._run(
            _opened(
                Target(**target),
                rate=rate,
                seconds=seconds,
                connections=connections,
                tokens=tokens,
                deadline_s=deadline_s,
            )
        )

    def count(
        self,
        target: Fields,
        callers: int,
        requests: int,
        deadline_s: float,
        anew: bool = False,
    ) -> Fields:
        """So many requests of one token, shared out among ``callers``; ``anew`` has them connect
        again for each one."""
        return self._run(_counted(Target(**target), callers, requests, deadline_s, anew))

    def together(
        self, target: Fields, callers: int, tokens: int, deadline_s: float, apart_s: float = 0.0
    ) -> Fields:
        """One call of each caller, ``apart_s`` after each other: ``outcomes`` has them all."""
        return self._run(_together(Target(**target), callers, tokens, deadline_s, apart_s))

    def open_idle(self, target: Fields, connections: int) -> Fields:
        """Open connections that say nothing, and keep them; ``open`` is how many there are."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        wanted = Target(**target)
        context = ssl.create_default_context(cadata=wanted.ca)
        context.set_alpn_protocols(["h2"])
        host, _, port = wanted.address.rpartition(":")
        # Beside each other: the first ones must not be old when the last ones come.
        with ThreadPoolExecutor(8) as workers:
            found = workers.map(
                lambda _: _greeted(host, int(port), context),
                range(min(connections, hard - _OTHER_FILES)),
            )
            self._idle += found
        return {"open": len(self._idle)}

    def close_idle(self, target: Fields) -> Fields:
        """Close them."""
        while self._idle:
            self._idle.pop().close()
        return {}

    def until_answered(self, target: Fields, seconds: float) -> Fields:
        """Ask with a deadline of a second until there is an answer; ``at`` is when (monotonic)."""
        return self._run(_until(Target(**target), seconds))


def _greeted(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection that has said who it is (RFC 9113, 3.4 and 6.5), and will say no more."""
    connection = context.wrap_socket(
        socket.create_connection((host, port), timeout=30.0), server_hostname=host
    )
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    connection.recv(9)
    return connection


async def _closed(
    target: Target, callers: int, seconds: float, tokens: int, deadline_s: float, *, devices: bool
) -> Fields:
    opened = _opening(tokens)
    connected = [DeviceCaller(target) if devices else Caller(target) for _ in range(callers)]

    async def repeat(caller: DeviceCaller | Caller, end: float) -> list[Outcome]:
        outcomes = []
        while time.monotonic() < end:
            match caller:
                case DeviceCaller():
                    outcome = await caller.call(tokens, deadline_s)
                case Caller():
                    outcome = await caller.call(opened, deadline_s)
            outcomes.append(outcome)
            if outcome.status != "OK":
                await asyncio.sleep(0.05)  # what refuses at once must not be asked without end
        return outcomes

    try:
        cpu, began = time.process_time(), time.monotonic()
        parts = await asyncio.gather(*(repeat(each, began + seconds) for each in connected))
        took = time.monotonic() - began
        return {
            **_summary([outcome for part in parts for outcome in part], took),
            "cpu_s": time.process_time() - cpu,
        }
    finally:
        await asyncio.gather(*(each.close() for each in connected))


async def _opened(
    target: Target, *, rate: float, seconds: float, connections: int, tokens: int, deadline_s: float
) -> Fields:
    connected = [RawCaller(target, _opening(tokens)) for _ in range(connections)]
    calls: list[asyncio.Task[Outcome]] = []
    try:
        await asyncio.gather(*(each.ready() for each in connected))
        cpu, began = time.process_time(), time.monotonic()
        for number in range(round(rate * seconds)):
            # A machine that pauses must not thin the load out: what is late is sent at once.
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            caller = connected[number % connections]
            calls.append(asyncio.create_task(caller.call(deadline_s)))
        sent = time.monotonic() - began
        outcomes = await asyncio.gather(*calls)
        took = max(seconds, time.monotonic() - began)
        in_time = [
            each for each in outcomes if each.status == "OK" and each.ended < began + seconds
        ]
        return {
            **_summary(outcomes, took),
            "sent_s": sent,
            "in_time": len(in_time),
            "cpu_s": time.process_time() - cpu,
        }
    finally:
        await asyncio.gather(*(each.close() for each in connected))


async def _counted(
    target: Target, callers: int, requests: int, deadline_s: float, anew: bool
) -> Fields:
    opened = _opening(1)
    connected = [Caller(target) for _ in range(callers)]
    left = iter(range(requests))

    async def share(caller: Caller) -> list[Outcome]:
        return [await (one_call() if anew else caller.call(opened, deadline_s)) for _ in left]

    async def one_call() -> Outcome:
        caller = Caller(target)
        try:
            return await caller.call(opened, deadline_s)
        finally:
            await caller.close()

    try:
        began = time.monotonic()
        parts = await asyncio.gather(*(share(each) for each in connected))
        outcomes = [outcome for part in parts for outcome in part]
        return _summary(outcomes, time.monotonic() - began)
    finally:
        await asyncio.gather(*(each.close() for each in connected))


async def _together(
    target: Target, callers: int, tokens: int, deadline_s: float, apart_s: float
) -> Fields:
    opened = _opening(tokens)
    connected = [Caller(target) for _ in range(callers)]
    calls: list[asyncio.Task[Outcome]] = []
    try:
        for caller in connected:
            calls.append(asyncio.create_task(caller.call(opened, deadline_s)))
            await asyncio.sleep(apart_s)
        return {"outcomes": [asdict(outcome) for outcome in await asyncio.gather(*calls)]}
    finally:
        await asyncio.gather(*(each.close() for each in connected))


async def _until(target: Target, seconds: float) -> Fields:
    end = time.monotonic() + seconds
    longest = 0.0
    while True:
        caller = Caller(target)
        outcome = await caller.call(_opening(1), _HURRY_S)
        await caller.close()
        longest = max(longest, outcome.seconds)
        if outcome.status == "OK":
            return {"answered": True, "at": outcome.ended, "longest_s": longest}
        if time.monotonic() > end:
            return {
                "answered": False,
                "at": outcome.ended,
                "longest_s": longest,
                "problem": f"{outcome.status} {outcome.problem}"[:300],
            }
        await asyncio.sleep(0.05)


def _request(tokens: int) -> Request:
    return Request((Message("user", _PROMPT),), max_tokens=tokens)


def _opening(tokens: int) -> pb.AnswerRequest:
    request = _request(tokens)
    limits = replace(request.constraints, max_remote_calls=1)
    return open_message(replace(request, constraints=limits), DeviceReport(), max_remote_calls=1)


def _summary(outcomes: Sequence[Outcome], wall_s: float) -> Fields:
    good = [outcome for outcome in outcomes if outcome.status == "OK"]
    refused = [each.seconds for each in outcomes if each.status == "RESOURCE_EXHAUSTED"]
    return {
        "wall_s": wall_s,
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        "problem": next((each.problem for each in outcomes if each.problem), ""),
        "failed": len(outcomes) - len(good),
        "requests": len(good),
        "tokens": sum(outcome.tokens for outcome in good),
        "seconds": _quantiles([outcome.seconds for outcome in good]),
        "refused_seconds": _quantiles(refused),
        "longest_s": max((outcome.seconds for outcome in outcomes), default=0.0),
        "quickest_s": min((outcome.seconds for outcome in good), default=None),
    }


def _quantiles(seconds: Sequence[float]) -> Fields:
    """Median and 95th percentile; ``None`` where there are too few."""
    if len(seconds) < 2:
        return {"p50": None, "p95": None}
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def main() -> None:
    """Serve until standard input ends."""
    with asyncio.Runner() as runner:
        callers = Callers(runner.run)
        requests = (
            callers.closed_loop,
            callers.open_loop,
            callers.count,
            callers.together,
            callers.until_answered,
            callers.open_idle,
            callers.close_idle,
        )
        handlers: dict[str, Callable[..., Fields]] = {each.__name__: each for each in requests}
        serve(lambda: handlers)


if __name__ == "__main__":
    main()

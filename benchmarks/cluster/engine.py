"""What stands behind the ingresses: an engine that takes a fixed time, as a tier of ours and as a
deployment behind Ray Serve's own gRPC proxy. Only benchmarks run it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from cascade.v1 import inference_pb2 as pb
from cloud.config import TierConfig
from cloud.engines import Capabilities, ChatRequest, Done, EngineEvent, Piece, Started
from cloud.session import FOLDER_VARIABLE
from cloud.tier import Tier, TierMessage, messages

ONE_WAY = "cascade.benchmarks.OneWay"
"""The peer's service without an upstream: one request, a stream of the same events."""
_WORD = "word "
_SPANS = "engine-seconds"


@dataclass(frozen=True, slots=True)
class Script:
    """How the engine answers.

    Arguments:
        per_message: tokens in one message, ≥ 1.
        pause_s: seconds before each message, ≥ 0; the service time of an answer of one message.
        slots: answers that are computed at one time; others wait in the engine.
    """

    per_message: int = 1
    pause_s: float = 0.0
    slots: int = 1 << 20

    def save(self, path: Path) -> None:
        """Write to ``path``, which takes the place of a model file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read what ``save`` wrote."""
        return cls(**json.loads(path.read_text()))


class FixedEngine:
    """An ``Engine`` that writes ``max_tokens`` words in the time that its script says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._slots = asyncio.Semaphore(script.slots)

    @property
    def capabilities(self) -> Capabilities:
        """Free text alone."""
        return Capabilities(False, False, False, False, False, context_tokens=1 << 20)

    async def start(self) -> None:
        """There is nothing to load."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """One batch a message, ``Done`` in the last one."""
        batch: list[EngineEvent] = [Started(1)]
        async with self._slots:
            for left in range(request.max_tokens, 0, -self._script.per_message):
                if self._script.pause_s:
                    await asyncio.sleep(self._script.pause_s)
                count = min(left, self._script.per_message)
                batch.append(Piece(_WORD * count, count))
                if left == count:
                    batch.append(Done("length", 1, request.max_tokens, 0))
                yield batch
                batch = []

    async def reset_prefix_cache(self) -> int:
        """It keeps no prompts."""
        return 0

    async def close(self) -> None:
        """There is nothing to free."""


class FixedTier(Tier):
    """A tier around the fixed engine.

    Arguments:
        model_file: its script.
    """

    def made(self, config: TierConfig, model_file: str, backend: object | None) -> FixedEngine:
        """The fixed engine."""
        return FixedEngine(Script.load(Path(model_file)))


class TimedTier(Tier):
    """A tier as it is, which also notes how long its engine took for each answer."""

    async def answer(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        """As the tier's own."""
        began = time.perf_counter()
        async with aclosing(messages(self._engine, request)) as answer:
            async for message in answer:
                # The engine's work ends here, before the message is on its way.
                took = time.perf_counter() - began
                yield message
        with (Path(os.environ[FOLDER_VARIABLE]) / _SPANS).open("a") as spans:
            spans.write(f"{took!r}\n")


def engine_seconds(folder: Path) -> list[float]:
    """What a ``TimedTier`` noted, in order."""
    file = folder / _SPANS
    return [float(line) for line in file.read_text().splitlines()] if file.exists() else []


class Peer:
    """The same answers behind Ray Serve's own gRPC proxy: no TLS, no keys, no first and last event.

    Methods have the names of the RPCs; Serve pairs them.
    """

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Answer(self, requests: Any) -> AsyncGenerator[pb.AnswerEvent]:
        """Our own contract: a stream in, a stream out."""
        request = await anext(aiter(requests))
        for event in self._events(request):
            yield event

    async def AnswerOne(self, request: pb.AnswerRequest) -> AsyncGenerator[pb.AnswerEvent]:
        """One request in, a stream out: less work for Serve."""
        for event in self._events(request):
            yield event

    def _events(self, request: pb.AnswerRequest) -> list[pb.AnswerEvent]:
        opened, most = request.open, self._script.per_message
        return [
            pb.AnswerEvent(
                request_id=opened.request_id,
                tokens=pb.TokenChunk(text=_WORD * min(left, most), count=min(left, most)),
            )
            for left in range(opened.sampling.max_tokens, 0, -most)
        ]


def add_one_way(servicer: Any, server: grpc.Server) -> None:
    """Serve ``AnswerOne`` as the service ``ONE_WAY``; Ray Serve calls this by its import path."""
    method = grpc.unary_stream_rpc_method_handler(
        servicer.AnswerOne,
        request_deserializer=pb.AnswerRequest.FromString,
        response_serializer=pb.AnswerEvent.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(ONE_WAY, {"AnswerOne": method}),)
    )

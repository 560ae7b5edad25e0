"""One tier as a Ray Serve deployment around an engine.

Turns engine events into messages that survive the way between processes; expected refusals travel
as messages, because an exception loses its type on that way.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cascade.errors import InvalidInput, RemoteError
from cascade.tracing import Span, export_spans, flush_spans, start_span
from cloud.adapter_source import in_registry
from cloud.config import TierConfig
from cloud.engines import ChatRequest, Done, Engine, EngineEvent, Started, Swapping, make_engine
from cloud.errors import EngineFailed

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from cloud.replica_adapters import ReplicaAdapters

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Refused:
    """The request cannot be answered.

    Arguments:
        field: what is wrong with it; empty where something else is.
        problem: safe to show.
        status: the gRPC status name, where ``field`` is empty.
    """

    field: str
    problem: str
    status: str = "INTERNAL"
    retry_after_s: float | None = None


TierMessage = list[EngineEvent] | Refused


class Tier:
    """One replica of a tier: one engine.

    Arguments:
        config: the tier.
        model_file: the model on this machine.
        backend: Ray's handle to the deployment of ray.serve.llm, where that computes.
        registry: where adapters of the registry are fetched from.
        digests: of those when the cluster was built, by name; later ones come with requests.
    """

    # Ray Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self,
        config: TierConfig,
        model_file: str,
        backend: DeploymentHandle[object] | None = None,
        registry: str | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self._name = config.name
        export_spans("cascade-tier")
        self._adapters: ReplicaAdapters | None = None
        if registry is None or not any(map(in_registry, config.adapters.values())):
            self._engine = self.made(config, model_file, backend)
            await self._engine.start()
            return
        # Loaded where it is needed: it brings the runtime of devices.
        from cloud.replica_adapters import ReplicaAdapters
        from cloud.tier_adapters import start_with

        self._scratch = tempfile.TemporaryDirectory(prefix="cascade-adapters-")
        scratch = Path(self._scratch.name)
        config = await asyncio.to_thread(start_with, config, digests or {}, registry, scratch)
        engine = self._engine = self.made(config, model_file, backend)
        await engine.start()
        there = config.adapters.keys()
        self._adapters = ReplicaAdapters(cast(Swapping, engine), there, registry, scratch)

    def made(
        self, config: TierConfig, model_file: str, backend: DeploymentHandle[object] | None
    ) -> Engine:
        """The engine, not started."""
        if backend is None:
            return make_engine(config, model_file)
        from cloud.engines.vllm import RayHandle

        return make_engine(config, model_file, RayHandle(backend))

    async def answer(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        """The engine's messages; see ``messages``."""
        answering = messages(self._engine, request, self._adapters)
        async with aclosing(traced(answering, request, self._name)) as answer:
            async for message in answer:
                yield message

    async def reset_prefix_cache(self) -> int:
        """Forget every prompt; returns the number of tokens forgotten."""
        return await self._engine.reset_prefix_cache()

    async def __del__(self) -> None:
        # Ray Serve awaits this when it retires a replica; the engine is missing if loading failed.
        engine, scratch = getattr(self, "_engine", None), getattr(self, "_scratch", None)
        if engine is not None:
            await engine.close()
            await asyncio.to_thread(flush_spans)
        if scratch is not None:
            scratch.cleanup()


async def messages(
    engine: Engine, request: ChatRequest, adapters: ReplicaAdapters | None = None
) -> AsyncGenerator[TierMessage]:
    """Batches of engine events; the last batch ends with ``Done``, or is ``Refused``."""
    try:
        if adapters is not None:
            request = await adapters.known(request)
        async with aclosing(engine.stream(request)) as batches:
            async for batch in batches:
                yield batch
    except InvalidInput as error:
        yield Refused(error.field, error.problem)
    except RemoteError as error:
        yield Refused("", error.message, error.status, error.retry_after_s)
    except Exception:
        _log.exception("the engine broke")
        failed = EngineFailed()
        yield Refused("", failed.message, failed.status)


async def traced(
    messages: AsyncGenerator[TierMessage], request: ChatRequest, tier: str
) -> AsyncGenerator[TierMessage]:
    """What a replica says, as a span of its own with another one up to the first token."""
    span = start_span("tier.answer", request.traceparent, kind="server")
    span.note({"cascade.tier": tier})
    opening: Span | None = start_span("engine.first_token", span.traceparent)
    status = "CANCELLED"
    try:
        async with aclosing(messages):
            async for message in messages:
                if isinstance(message, Refused):
                    status = "INVALID_ARGUMENT" if message.field else message.status
                elif message and not isinstance(message[-1], Started):
                    if opening is not None:
                        opening.end()
                        opening = None
                    if isinstance(message[-1], Done):
                        status = ""
                yield message
    finally:
        if opening is not None:
            opening.end(status)
        span.end(status)

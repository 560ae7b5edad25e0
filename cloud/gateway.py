"""The cluster's front door: our own gRPC server inside a Ray Serve deployment.

TLS, API keys, health, reflection and drain live here; the way of a request is ``routing``. Serve's
own gRPC proxy is not used: it has no TLS, no interceptors and no health service.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cascade.wire import (
    INFERENCE_SERVICE,
    ApiKeyInterceptor,
    CallRecord,
    KeyRing,
    add_answerer,
)
from cloud.config import ClusterConfig
from cloud.engines import ChatRequest
from cloud.errors import Overloaded, TierUnavailable
from cloud.routing import RETRY_AFTER_S, Router, TierStream
from cloud.tier import TierMessage

_log = logging.getLogger("ray.serve")

APP_NAME: Final = "cascade"
_WATCH_PERIOD_S: Final = 1.0
_LOG_BYTES: Final = 10_000_000
_SERVER_OPTIONS: Final = (
    # The old and the new replica of a redeploy share the port while one drains.
    ("grpc.so_reuseport", 1),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    """What the gateway reads and writes on its machine.

    Arguments:
        certificate, key: PEM files of the server.
        api_keys: keys file, ``name sha256`` a line.
        request_log: one JSON line a request; ``None`` for the replica's own log.
    """

    certificate: Path
    key: Path
    api_keys: Path
    request_log: Path | None = None


class Gateway:
    """One replica of the gateway.

    Arguments:
        config: the cluster.
        files: certificate, keys and log.
        tiers: handle of each tier's deployment, by the tier's name.
    """

    # Ray Serve awaits it, on the event loop that the server then runs on.
    async def __init__(  # type: ignore[misc]
        self, config: ClusterConfig, files: GatewayFiles, **tiers: DeploymentHandle[object]
    ) -> None:
        self._config = config
        self._router = Router(config, _streams(tiers))
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ApiKeyInterceptor(KeyRing.load(files.api_keys))], options=_SERVER_OPTIONS
        )
        add_answerer(
            self._server,
            self._router,
            max_deadline_s=config.gateway.max_deadline_s,
            on_call=_request_log(files.request_log),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{config.gateway.host}:{config.gateway.port}"
        self._server.add_secure_port(address, _credentials(files))
        await self._watch_once(_nothing_runs)
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())

    async def drain(self) -> None:
        """Take no new calls, wait up to ``drain_s`` for those under way, then stop the server."""
        self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._config.gateway.drain_s)

    async def check_health(self) -> None:
        """Ray Serve replaces this replica when this raises."""
        if self._watching.done() and not self._watching.cancelled():
            self._watching.result()

    async def __del__(self) -> None:
        # Serve knows nothing of the calls on our server: it awaits this before the replica ends.
        if hasattr(self, "_watching"):
            await self.drain()

    async def _watch(self) -> None:
        while True:
            await self._watch_once(_running_tiers)
            await asyncio.sleep(_WATCH_PERIOD_S)

    async def _watch_once(self, running: Callable[[], Awaitable[frozenset[str]]]) -> None:
        up = await running()
        ready = True
        for tier in self._config.tiers:
            # A tier that may sleep is ready: its first request wakes it up.
            serving = tier.name in up or tier.autoscaling.min_replicas == 0
            ready = ready and serving
            await self._set_health(f"tier/{tier.name}", serving)
        for service in ("", INFERENCE_SERVICE):
            await self._set_health(service, ready)

    async def _set_health(self, service: str, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if ready else states.NOT_SERVING)


def deployment_name(tier: str) -> str:
    """Name of a tier's deployment within the application."""
    return f"tier-{tier}"


async def _nothing_runs() -> frozenset[str]:
    return frozenset()


async def _running_tiers() -> frozenset[str]:
    try:
        status = await asyncio.to_thread(serve.status)
    except RayError:
        _log.warning("the state of the tiers is unknown", exc_info=True)
        return frozenset()
    app = status.applications.get(APP_NAME)
    deployments = {} if app is None else app.deployments
    return frozenset(
        name.removeprefix(deployment_name(""))
        for name, deployment in deployments.items()
        if any(state == "RUNNING" and n > 0 for state, n in deployment.replica_states.items())
    )


def _streams(tiers: Mapping[str, DeploymentHandle[object]]) -> dict[str, TierStream]:
    return {name: _HandleStream(name, handle) for name, handle in tiers.items()}


class _HandleStream:
    """A ``TierStream`` over a deployment handle."""

    def __init__(self, tier: str, handle: DeploymentHandle[object]) -> None:
        self._tier = tier
        self._handle = handle.options(method_name="answer", stream=True)

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        messages = cast("DeploymentResponseGenerator[TierMessage]", self._handle.remote(request))
        try:
            async for message in messages:
                yield message
        except BackPressureError:
            raise Overloaded(f"{self._tier} has no room in its queue", RETRY_AFTER_S) from None
        except (RayError, DeploymentUnavailableError):
            _log.warning("%s lost a replica", self._tier, exc_info=True)
            raise TierUnavailable(self._tier) from None
        except (asyncio.CancelledError, GeneratorExit):
            # Without this the replica computes a cancelled answer to its end.
            with suppress(RayError, RayServeException):
                cast(Any, messages).cancel()
            raise


def _credentials(files: GatewayFiles) -> grpc.ServerCredentials:
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair])


def _request_log(path: Path | None) -> Callable[[CallRecord], None]:
    log = logging.getLogger("cloud.requests")
    log.setLevel(logging.INFO)
    if path is not None:
        with suppress(OSError):
            target = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=3)
            target.setFormatter(logging.Formatter("%(message)s"))
            log.handlers = [target]
            log.propagate = False

    def write(record: CallRecord) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        log.info(json.dumps({"time": now, **asdict(record)}))

    return write

"""The cluster's front door: a gRPC server with TLS, API keys, health, reflection and drain.

Plain async Python over an ``Answerer``; the Ray Serve deployment around it is ``gateway``.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cascade.wire import (
    ARTIFACT_SERVICE,
    INFERENCE_SERVICE,
    Answerer,
    ApiKeyInterceptor,
    ArtifactSource,
    CallRecord,
    KeyRing,
    add_answerer,
    add_artifacts,
)

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
        request_log: one JSON line a request; ``None`` for the process's own log.
    """

    certificate: Path
    key: Path
    api_keys: Path
    request_log: Path | None = None


class FrontDoor:
    """A server in front of ``answerer``; opened by ``open``, on the event loop that calls it.

    Arguments:
        address: ``host:port`` to listen on; port 0 takes a free one.
        max_deadline_s: longer deadlines are cut to this.
        artifacts: what devices are given to run; ``None`` has no artifact service.
        on_call: told about every call when it has ended; by default it is logged.
        observer: told likewise, beside ``on_call``.
    """

    def __init__(
        self,
        answerer: Answerer,
        files: GatewayFiles,
        *,
        address: str,
        max_deadline_s: float = 600.0,
        artifacts: ArtifactSource | None = None,
        on_call: Callable[[CallRecord], None] | None = None,
        observer: Callable[[CallRecord], None] | None = None,
    ) -> None:
        on_call = _both(on_call or _request_log(files.request_log), observer)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ApiKeyInterceptor(KeyRing.load(files.api_keys))], options=_SERVER_OPTIONS
        )
        add_answerer(
            self._server,
            answerer,
            max_deadline_s=max_deadline_s,
            on_call=on_call,
        )
        names = [INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if artifacts is not None:
            add_artifacts(self._server, artifacts)
            names.append(ARTIFACT_SERVICE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(tuple(names), self._server)
        self._port = self._server.add_secure_port(address, _credentials(files))

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    async def open(self) -> None:
        """Take calls."""
        await self._server.start()

    async def set_tiers(self, serving: Mapping[str, bool]) -> None:
        """Tell the health service which tiers serve; the whole serves when all of them do."""
        for tier, up in serving.items():
            await self._set_health(f"tier/{tier}", up)
        for service in ("", INFERENCE_SERVICE):
            await self._set_health(service, all(serving.values()))

    async def close(self, drain_s: float) -> None:
        """Take no new calls, wait up to ``drain_s`` for those under way, then stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(drain_s)

    async def _set_health(self, service: str, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if ready else states.NOT_SERVING)


def _credentials(files: GatewayFiles) -> grpc.ServerCredentials:
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair])


def _both(
    first: Callable[[CallRecord], None], second: Callable[[CallRecord], None] | None
) -> Callable[[CallRecord], None]:
    def tell(record: CallRecord) -> None:
        first(record)
        if second is not None:
            second(record)

    return tell


def _request_log(path: Path | None) -> Callable[[CallRecord], None]:
    # Below Ray Serve's own logger: without a path, what it writes goes into the replica's log.
    log = logging.getLogger("ray.serve.requests")
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

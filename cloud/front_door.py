"""The cluster's front door: a gRPC server with TLS, credentials, health, reflection and drain.

Plain async Python over an ``Answerer``; the Ray Serve deployment around it is ``gateway``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cascade.errors import RemoteError
from cascade.wire import (
    ARTIFACT_SERVICE,
    FEDERATION_SERVICE,
    INFERENCE_SERVICE,
    AccessInterceptor,
    Answerer,
    ApiKeys,
    ArtifactSource,
    Authenticator,
    CallRecord,
    ClientCertificates,
    FederationSource,
    KeyFile,
    add_answerer,
    add_artifacts,
    add_federation,
)
from cloud.config import GatewayConfig
from cloud.request_log import RequestLog
from cloud.token_memory import TokenMemory

_PICK_UP_S: Final = 0.1
_HANDSHAKE_MS: Final = 10_000
# A device that vanished without a word is noticed after a minute and a half.
_PING_MS: Final = 60_000
_PONG_MS: Final = 30_000
# A client that pings more often is sent away; devices ping every 20 s.
_LEAST_BETWEEN_PINGS_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    """What the gateway reads and writes on its machine.

    Arguments:
        certificate, key: PEM files of the server.
        api_keys: keys file; see ``cascade.wire.keys``.
        ca: certificate of this machine's own authority, whose client certificates count beside
            those of ``tls.client_ca``.
        quotas, audit: where the configuration names no other file; ``None`` keeps none.
        request_log: one JSON line a request; ``None`` for the process's own log.
    """

    certificate: Path
    key: Path
    api_keys: Path
    request_log: Path | None = None
    ca: Path | None = None
    quotas: Path | None = None
    audit: Path | None = None


class FrontDoor:
    """A server in front of ``answerer``; opened by ``open``, on the event loop that calls it.

    Arguments:
        address: ``host:port`` to listen on; port 0 takes a free one.
        config: who may call, and the limits of a call; of its tiers nothing is known here.
        artifacts: what devices are given to run; ``None`` has no artifact service.
        federation: what leads devices through federated rounds; ``None`` has no such service.
        on_call: told about every call when it has ended; by default it is logged.
        observer: told likewise, beside ``on_call``.
        admit: asked for each call, with the seconds that it has, before its message is read: why it
            is refused, or ``None`` to go on.

    Raises:
        InvalidInput, ConfigError: a file of keys cannot be read.
    """

    def __init__(
        self,
        answerer: Answerer,
        files: GatewayFiles,
        *,
        address: str,
        config: GatewayConfig | None = None,
        artifacts: ArtifactSource | None = None,
        federation: FederationSource | None = None,
        on_call: Callable[[CallRecord], None] | None = None,
        observer: Callable[[CallRecord], None] | None = None,
        admit: Callable[[float], RemoteError | None] | None = None,
    ) -> None:
        config = config or GatewayConfig()
        self._log = None if on_call is not None else RequestLog(files.request_log)
        on_call = _all(on_call, self._log, observer)
        self._health = health.aio.HealthServicer()
        server = grpc.aio.server(
            interceptors=[AccessInterceptor(_authenticators(config, files), _refusals(on_call))],
            options=_options(config),
            maximum_concurrent_rpcs=config.max_open_calls,
        )
        add_answerer(
            server,
            answerer,
            max_deadline_s=config.max_deadline_s,
            first_message_s=config.first_message_s,
            stalled_s=config.stalled_s,
            draft_s=config.draft_s,
            on_call=on_call,
            admit=admit,
        )
        names = [INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if artifacts is not None:
            add_artifacts(server, artifacts, stalled_s=config.stalled_s)
            names.append(ARTIFACT_SERVICE)
        if federation is not None:
            add_federation(server, federation, stalled_s=config.stalled_s)
            names.append(FEDERATION_SERVICE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(tuple(names), server)
        tls = config.tls
        clients = None if tls.client_ca is None else _trusted(tls.client_ca, files.ca)
        everywhere = clients if tls.client_port is None else None
        self._port = server.add_secure_port(address, _credentials(files, everywhere))
        if clients is not None and tls.client_port is not None:
            host = address.rpartition(":")[0]
            server.add_secure_port(f"{host}:{tls.client_port}", _credentials(files, clients))
        self._server: grpc.aio.Server | None = server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    async def open(self) -> None:
        """Take calls."""
        assert self._server is not None, "it was closed"
        await self._server.start()

    async def set_tiers(self, serving: Mapping[str, bool]) -> None:
        """Tell the health service which tiers serve; the whole serves when all of them do."""
        for tier, up in serving.items():
            await self._set_health(f"tier/{tier}", up)
        for service in ("", INFERENCE_SERVICE):
            await self._set_health(service, all(serving.values()))

    async def close(self, drain_s: float) -> None:
        """Take no new calls, wait up to ``drain_s`` for those under way, then stop; for good."""
        await self._health.enter_graceful_shutdown()
        # gRPC cancels what has arrived and nobody has picked up; this loop may have been kept busy.
        await asyncio.sleep(_PICK_UP_S)
        # With the last of its objects gRPC takes its poller away. Only here, in the loop's own
        # thread, no event can be under way: elsewhere that ended in a traceback now and then.
        server, self._server = self._server, None
        if server is not None:
            await server.stop(drain_s)
        if self._log is not None:
            self._log.flush()

    async def _set_health(self, service: str, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if ready else states.NOT_SERVING)


def _options(config: GatewayConfig) -> list[tuple[str, int]]:
    return [
        # The old and the new replica of a redeploy share the port while one drains.
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        ("grpc.max_connection_idle_ms", round(config.idle_connection_s * 1000)),
        ("grpc.max_connection_age_ms", round(config.connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(config.max_deadline_s * 1000)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PONG_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_BETWEEN_PINGS_MS),
    ]


def _authenticators(config: GatewayConfig, files: GatewayFiles) -> list[Authenticator]:
    """Those that the configuration asks for: tokens, keys, certificates."""
    keys = [KeyFile(path).ring for path in (files.api_keys, config.api_keys_file) if path]
    found: list[Authenticator] = [ApiKeys(*keys)]
    if config.jwt is not None:
        from cloud.tokens import Tokens

        file = config.quotas.file or files.quotas
        found.insert(0, Tokens(config.jwt, None if file is None else TokenMemory(file)))
    if config.tls.client_ca is not None:
        found.append(ClientCertificates(config.tls.client_name))
    return found


def _trusted(client_ca: Path, own: Path | None) -> bytes:
    return b"\n".join(path.read_bytes() for path in (client_ca, own) if path)


def _credentials(files: GatewayFiles, clients: bytes | None) -> grpc.ServerCredentials:
    """Of the server; with ``clients``, every connection must show a certificate of these."""
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], clients, clients is not None)


def _refusals(on_call: Callable[[CallRecord], None]) -> Callable[[RemoteError], None]:
    def refused(refusal: RemoteError) -> None:
        on_call(CallRecord("", "", "", refusal.status, refusal.message, 0.0))

    return refused


def _all(*told: Callable[[CallRecord], None] | None) -> Callable[[CallRecord], None]:
    present = [each for each in told if each is not None]

    def tell(record: CallRecord) -> None:
        for each in present:
            each(record)

    return tell

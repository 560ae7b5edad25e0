"""A cluster inside this process: the gateway's own server and ladder on the loopback, without Ray.

Devices reach it as they reach a real one: gRPC, TLS with an authority of its own, an API key.
Behind the ladder stand scripted tiers, bundles that really compute, or any other engine. Of the
extra ``cloud`` it loads what reads the configuration, and neither Ray nor llama.cpp.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cascade.errors import InvalidInput
from cascade.ladder import LadderPolicy
from cascade.testing.scripted import Script, ScriptedTier
from cascade.testing.tiny import TinyBundle
from cascade.wire import (
    ArtifactSource,
    CallRecord,
    ClientProfile,
    FederationSource,
    KeyRing,
    new_key,
)
from cloud.accounting import Accounting
from cloud.attempt import TierStream
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest, Engine
from cloud.engines.onnx import OnnxBundle
from cloud.front_door import FrontDoor, GatewayFiles
from cloud.observer import Observer
from cloud.routing import Router
from cloud.tier import TierMessage, messages, traced
from cloud.tls import ensure_local_tls
from edge.portal import Portal

_CALLER: Final = "testing"
# Lets idle connections part in peace: of each that is cut off, gRPC prints a line.
_DRAIN_S: Final = 0.1


Behind = Script | TinyBundle | Engine
"""What can stand behind a tier's name."""


@contextmanager
def cluster(
    tiers: Mapping[str, Behind] | None = None,
    *,
    config: ClusterConfig | None = None,
    ladders: Sequence[LadderPolicy] = (),
    artifacts: ArtifactSource | None = None,
    federation: FederationSource | None = None,
) -> Iterator[Cluster]:
    """A cluster that runs until the ``with`` block ends.

    Arguments:
        tiers: what stands behind each tier's name, from the lowest to the highest; by default one
            scripted ``"tier1"``. An engine, e.g. of ``cloud.engines.make_engine``, is given not
            started, and is closed with the cluster.
        config: prices, regions, data classes, limits; its tiers must have the names of ``tiers``.
            Its address, engines, models and files of ladders are not looked at.
        ladders: what requests of their tasks climb by.
        artifacts: what devices are given to run, e.g. ``cloud.registry.Delivery``; by default
            nothing.
        federation: what leads devices through rounds, e.g. ``cloud.federation.desk.Desk``; by
            default there are none.

    Raises:
        InvalidInput: ``config`` names other tiers than ``tiers``.
        ConfigError: a ladder does not fit the tiers.
    """
    tiers = {"tier1": Script()} if tiers is None else tiers
    if config is None:
        config = ClusterConfig(
            tiers=tuple(TierConfig(name=name, model=_model_name(tiers[name])) for name in tiers)
        )
    if {tier.name for tier in config.tiers} != set(tiers):
        raise InvalidInput("config", f"its tiers are not {', '.join(tiers)}")
    with tempfile.TemporaryDirectory(prefix="cascade-testing-") as folder:
        running = Cluster(
            config,
            tiers,
            Path(folder),
            ladders=ladders,
            artifacts=artifacts,
            federation=federation,
        )
        try:
            running.start()
            yield running
        finally:
            running.close()


class Cluster:
    """A running cluster; made by ``cluster``. Use it from any thread."""

    def __init__(
        self,
        config: ClusterConfig,
        tiers: Mapping[str, Behind],
        folder: Path,
        *,
        ladders: Sequence[LadderPolicy] = (),
        artifacts: ArtifactSource | None = None,
        federation: FederationSource | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._federation = federation
        self._config = config
        tls = ensure_local_tls(folder, "localhost")
        self._key = new_key()
        self._files = GatewayFiles(
            tls.certificate,
            tls.key,
            folder / "api-keys",
            ca=tls.ca,
            quotas=folder / "quotas.sqlite",
            audit=folder / "audit.jsonl",
        )
        KeyRing().with_key(_CALLER, self._key).save(self._files.api_keys)
        self._ca_pem = tls.ca.read_bytes()
        self._port = 0
        self._scripted = {
            name: ScriptedTier(tier) for name, tier in tiers.items() if isinstance(tier, Script)
        }
        self._engines = {
            tier.name: _engine(behind, tier)
            for tier in config.tiers
            if not isinstance(behind := tiers[tier.name], Script)
        }
        self._streams = {
            **{name: _Noted(name, tier) for name, tier in self._scripted.items()},
            **{name: _Noted(name, _EngineStream(each)) for name, each in self._engines.items()},
        }
        self._observer = Observer(config)
        accounting = Accounting(config, self._files)
        streams = self._observer.tiers(accounting.streams(self._streams))
        self._answerer = self._observer.answerer(
            accounting.answerer(Router(config, streams, ladders))
        )
        self._records: list[CallRecord] = []
        self._door: FrontDoor | None = None
        self._portal = Portal()

    @property
    def profile(self) -> ClientProfile:
        """What a device needs to reach it: ``Device.open(..., cloud=cluster.profile)``."""
        return ClientProfile(f"127.0.0.1:{self._port}", self._ca_pem, self._key)

    @property
    def records(self) -> tuple[CallRecord, ...]:
        """What the gateway's log would have of each call that has ended, oldest first."""
        return tuple(self._records)

    @property
    def metrics(self) -> str:
        """What the gateway would show to Prometheus now."""
        return self._portal.call(self._metrics())

    def asked(self, tier: str) -> tuple[ChatRequest, ...]:
        """The requests that reached ``tier``, oldest first."""
        return tuple(self._streams[tier].requests)

    def play(self, tier: str, script: Script) -> None:
        """From the next request on, let a scripted tier follow ``script``.

        Raises:
            InvalidInput: ``tier`` is not a scripted tier.
        """
        if tier not in self._scripted:
            raise InvalidInput("tier", f"{tier!r} is not a scripted tier of this cluster")
        self._scripted[tier].play(script)

    def start(self) -> None:
        """Take calls; after a ``stop``, on the same address."""
        self._portal.call(self._start())

    def stop(self) -> None:
        """Cut off what is under way, and refuse connections until ``start``."""
        self._portal.call(self._stop())

    def close(self) -> None:
        """Stop for good. May be called again."""
        if not self._portal.closed:
            self._portal.call(self._close())
            self._portal.close()

    async def _metrics(self) -> str:
        from prometheus_client import generate_latest

        return generate_latest(self._observer.meters.registry).decode()

    async def _start(self) -> None:
        if self._door is not None:
            return
        for engine in self._engines.values():
            await engine.start()
        door = FrontDoor(
            self._answerer,
            self._files,
            address=f"127.0.0.1:{self._port}",
            config=self._config.gateway,
            artifacts=self._artifacts,
            federation=self._federation,
            on_call=self._records.append,
            observer=self._observer.called,
        )
        await door.set_tiers(dict.fromkeys(self._streams, True))
        await door.open()
        self._door, self._port = door, door.port

    async def _stop(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            await door.close(_DRAIN_S)

    async def _close(self) -> None:
        await self._stop()
        for engine in self._engines.values():
            await engine.close()


class _Noted:
    """A ``TierStream`` that keeps the requests it gets."""

    def __init__(self, name: str, tier: TierStream) -> None:
        self._name = name
        self._tier = tier
        self.requests: list[ChatRequest] = []

    def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.requests.append(request)
        return traced(self._tier(request), request, self._name)


class _EngineStream:
    """A ``TierStream`` over an engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        return messages(self._engine, request)


def _engine(behind: TinyBundle | Engine, tier: TierConfig) -> Engine:
    if isinstance(behind, TinyBundle):
        return OnnxBundle(behind.path, trust=behind.trust, context_tokens=tier.context_tokens)
    return behind


def _model_name(tier: Behind) -> str:
    if isinstance(tier, TinyBundle):
        return tier.bundle.manifest.name
    return "scripted" if isinstance(tier, Script) else "engine"

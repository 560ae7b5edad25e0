"""The gateway as a Ray Serve deployment: the front door, and handles to the tiers behind it.

The server itself is ``front_door``, the way of a request ``routing``. Serve's own gRPC proxy is not
used: it has no TLS, no interceptors and no health service.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import ApplicationStatus, DeploymentStatusOverview

from cascade.errors import CascadeError
from cascade.ladder import LadderPolicy
from cascade.tracing import export_spans, flush_spans
from cloud.accounting import Accounting
from cloud.adapter_watch import LOOK_PERIOD_S, AdapterWatch, by_digest
from cloud.attempt import TierStream
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest
from cloud.errors import Overloaded, TierUnavailable
from cloud.federation.desk import open_desk
from cloud.front_door import FrontDoor, GatewayFiles
from cloud.metrics import Exposition
from cloud.observer import Observer
from cloud.policy_state import policy_state
from cloud.registry import Delivery, Registry
from cloud.routing import RETRY_AFTER_S, Router
from cloud.served_adapters import ServedAdapters
from cloud.tier import TierMessage
from cloud.waiting_room import WaitingRooms

_log = logging.getLogger("ray.serve")

APP_NAME: Final = "cascade"
GATEWAY: Final = "gateway"
REPLACEMENT_S: Final = 30.0
"""Longest that an old replica waits for a new one to listen."""
_WATCH_PERIOD_S: Final = 1.0
_POLICIES_PERIOD_S: Final = 60.0
_ROUNDS_PERIOD_S: Final = 15.0
_REPLACEMENT_POLL_S: Final = 0.1
_FIRST_LOOK_S: Final = 10.0


class Gateway:
    """One replica of the gateway.

    Arguments:
        config: the cluster.
        files: certificate, keys and log.
        ladders: what requests of their tasks climb by.
        _coordinator: of federated rounds, which is deployed beside; its state is in the store.
        _adapters: what those of ``config`` stood for when the cluster was built.
        tiers: handle of each tier's deployment, by the tier's name.
    """

    # Ray Serve awaits it, on the event loop that the server then runs on.
    async def __init__(  # type: ignore[misc]
        self,
        config: ClusterConfig,
        files: GatewayFiles,
        ladders: tuple[LadderPolicy, ...],
        _coordinator: DeploymentHandle[object] | None = None,
        _adapters: ServedAdapters | None = None,
        **tiers: DeploymentHandle[object],
    ) -> None:
        self._config = config
        gateway = config.gateway
        export_spans("cascade-gateway")
        self._observer = observer = Observer(config)
        self._registry = Registry(gateway.registry) if gateway.registry else None
        accounting = Accounting(config, files)
        rooms = WaitingRooms(config)
        self._served = adapters = _adapters or ServedAdapters()
        self._adapters = AdapterWatch(config, adapters)
        # One that hangs must not keep the door shut: what the cluster was built with serves then.
        first_look = asyncio.create_task(asyncio.to_thread(self._adapters.look))
        await asyncio.wait({first_look}, timeout=_FIRST_LOOK_S)
        handed = by_digest(_streams(config, tiers), adapters)
        # Who waits for a place has reserved nothing, and is in no audit.
        streams = observer.tiers(rooms.streams(accounting.streams(handed)))
        self._router = router = Router(config, streams, ladders, adapters)
        self._desk = (
            open_desk(config.federation, self._registry)
            if config.federation is not None and self._registry is not None
            else None
        )
        self._door = FrontDoor(
            observer.answerer(accounting.answerer(router)),
            files,
            address=f"{gateway.host}:{gateway.port}",
            config=gateway,
            artifacts=Delivery(self._registry, commercial=config.commercial)
            if self._registry
            else None,
            federation=self._desk,
            observer=observer.called,
            admit=lambda deadline_s: router.refusal() or rooms.refusal(deadline_s),
        )
        await self._watch_once(_nothing_runs)
        metrics = gateway.metrics
        self._exposition = Exposition(metrics, observer.meters.registry) if metrics else None
        # What is loaded by now stays: a collection that looks at all of it stops every call for a
        # tenth of a second.
        gc.collect()
        gc.freeze()
        await self._door.open()
        self._watching = asyncio.create_task(self._watch())
        self._reading = asyncio.create_task(self._read_policies())
        self._counting = asyncio.create_task(self._read_rounds())
        self._following = asyncio.create_task(self._follow_channels())

    async def drain(self) -> None:
        """Take no new calls, wait up to ``drain_s`` for those under way, then stop the server."""
        self._watching.cancel()
        self._reading.cancel()
        self._counting.cancel()
        self._following.cancel()
        await self._door.close(self._config.gateway.drain_s)
        if self._desk is not None:
            await asyncio.to_thread(self._desk.close)
        await asyncio.to_thread(flush_spans)
        exposition, self._exposition = self._exposition, None
        if exposition is not None:
            await asyncio.to_thread(exposition.close)

    async def figures(self) -> dict[str, dict[str, object]]:
        """What this replica knows of the last minute, by tier; see ``Figures``."""
        return {name: each.to_json() for name, each in self._observer.figures().items()}

    async def state(self) -> dict[str, object]:
        """This replica, as ``cascade cluster status`` tells of it: ``pid``, ``under_way``,
        ``metrics``, where Prometheus finds it, empty where it shows nothing, and ``adapters``, what
        those of a registry stand for now."""
        metrics = self._config.gateway.metrics
        address = f"{metrics.host}:{self._exposition.port}" if metrics and self._exposition else ""
        return {
            "pid": os.getpid(),
            "under_way": self._router.under_way,
            "metrics": address,
            "adapters": self._served.state(),
        }

    async def check_health(self) -> None:
        """Ray Serve replaces this replica when this raises."""
        if self._watching.done() and not self._watching.cancelled():
            self._watching.result()

    async def __del__(self) -> None:
        # Serve knows nothing of the calls on our server: it awaits this before the replica ends.
        if hasattr(self, "_watching"):
            if not self._watching.done():
                await _until_replaced()
            await self.drain()

    async def _watch(self) -> None:
        while True:
            await self._watch_once(_running_tiers)
            if self._exposition is not None:
                await asyncio.to_thread(self._exposition.settle)
            await asyncio.sleep(_WATCH_PERIOD_S)

    async def _watch_once(self, running: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        replicas = await running()
        # A tier that may sleep is ready: its first request wakes it up.
        up = {
            tier.name: replicas.get(tier.name, 0) > 0 or tier.autoscaling.min_replicas == 0
            for tier in self._config.tiers
        }
        self._observer.serving(replicas, up)
        await self._door.set_tiers(up)

    async def _read_policies(self) -> None:
        while self._registry is not None:
            try:
                self._observer.policies(await asyncio.to_thread(policy_state, self._registry))
            except (CascadeError, OSError):
                _log.warning("the registry's policies cannot be read", exc_info=True)
            await asyncio.sleep(_POLICIES_PERIOD_S)

    async def _follow_channels(self) -> None:
        while self._adapters.channels:
            await asyncio.sleep(LOOK_PERIOD_S)
            await asyncio.to_thread(self._adapters.look)

    async def _read_rounds(self) -> None:
        while self._desk is not None and self._exposition is not None:
            try:
                self._observer.federation(await self._desk.figures())
            except CascadeError:
                _log.warning("the store of federated rounds cannot be read", exc_info=True)
            await asyncio.sleep(_ROUNDS_PERIOD_S)


def deployment_name(tier: str) -> str:
    """Name of a tier's deployment within the application."""
    return f"tier-{tier}"


async def _nothing_runs() -> Mapping[str, int]:
    return {}


async def _running_tiers() -> Mapping[str, int]:
    """How many replicas of each tier run."""
    try:
        deployments = await asyncio.to_thread(_deployments)
    except (RayError, RayServeException):
        _log.warning("the state of the tiers is unknown", exc_info=True)
        return {}
    prefix = deployment_name("")
    return {
        name.removeprefix(prefix): sum(
            replica["state"] == "RUNNING" for replica in deployment["replicas"]
        )
        for name, deployment in deployments.items()
        if name.startswith(prefix)
    }


def _deployments() -> Mapping[str, Any]:
    """What Serve knows of our deployments, as it comes: `serve.status()` makes models of all of it,
    and pickles the code of Serve's router on the way, which takes 50 ms of every second."""
    client = cast(Any, _get_global_client())
    app = client.get_serve_details()["applications"].get(APP_NAME) or {}
    return cast("Mapping[str, Any]", app.get("deployments") or {})


def _runs(deployment: DeploymentStatusOverview) -> bool:
    return any(state == "RUNNING" and n > 0 for state, n in deployment.replica_states.items())


async def _until_replaced() -> None:
    """Wait for the next version of the gateway, where one is being deployed: Serve stops the last
    replica of the old one before the new one listens, and callers would find a closed port."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REPLACEMENT_S):
            while await asyncio.to_thread(_replacement_starts):
                await asyncio.sleep(_REPLACEMENT_POLL_S)


def _replacement_starts() -> bool:
    try:
        app = serve.status().applications.get(APP_NAME)
    except (RayError, RayServeException):
        return False
    if app is None or app.status != ApplicationStatus.DEPLOYING:
        return False
    gateway = app.deployments.get(GATEWAY)
    return gateway is not None and not _runs(gateway)


def _streams(
    config: ClusterConfig, tiers: Mapping[str, DeploymentHandle[object]]
) -> dict[str, TierStream]:
    return {tier.name: _HandleStream(tier, tiers[tier.name]) for tier in config.tiers}


class _HandleStream:
    """A ``TierStream`` over a deployment handle."""

    def __init__(self, tier: TierConfig, handle: DeploymentHandle[object]) -> None:
        self._tier = tier.name
        # On this event loop: with a thread of its own for Serve's router, as is its default, every
        # message waits for the other thread to let go of the interpreter.
        handle._init(_run_router_in_separate_loop=False)
        # By value: messages go straight to the replica and back. By reference each one is an object
        # in Ray's store, which costs more than half of the tokens a second. Limit: 4 MiB a message.
        # Messages are our own classes, which every replica can import: plain pickle, in C, will do.
        self._handle = handle.options(
            method_name="answer",
            stream=True,
            _by_reference=False,
            request_serialization="pickle",
            response_serialization="pickle",
        )

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

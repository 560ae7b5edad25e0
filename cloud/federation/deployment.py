"""The coordinator as a Ray Serve deployment beside the gateway.

Gateways and the coordinator never call each other: what they share is the store, so that either may
be killed, moved or replaced at any instant while the other goes on.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from cascade.errors import CascadeError
from cascade.home import home, keys_dir, trust_dir
from cascade.signing import SigningKey, TrustStore
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.gate.gate import BehaviourGate
from cloud.federation.rollout.rollout import Rollout
from cloud.federation.seams import Gate, NeedsApproval
from cloud.registry import Registry

_log = logging.getLogger("ray.serve")

COORDINATOR: Final = "coordinator"
_PERIOD_S: Final = 0.5
_PAUSE_S: Final = 5.0
_PUBLISHER: Final = "local"
"""As `cascade tune` pins this machine's own key."""


class FederationCoordinator:
    """One replica, which ticks.

    Arguments:
        registry: URL of the registry.
        gate: who lets candidates through; by default the one of the configuration, else the
            operator.
    """

    # Ray Serve awaits it, on the event loop on which it then ticks.
    async def __init__(  # type: ignore[misc]
        self, config: FederationConfig, registry: str, gate: Gate | None = None
    ) -> None:
        self._database = Database(config.store_url)
        key = signing_key(config.signing_key)
        self._behaviour = None if gate else _gate(config, self._database, Registry(registry), key)
        self._coordinator = Coordinator(
            self._database,
            Adapters(Registry(registry), key),
            config,
            gate or self._behaviour or NeedsApproval(),
        )
        await self._coordinator.start()
        self._rollout = None
        if config.rollout is not None:
            first = await asyncio.to_thread(Adapters(Registry(registry)).read, config.adapter)
            self._rollout = Rollout(
                config.rollout,
                self._database,
                Registry(registry),
                key,
                base_digest=first.manifest.base_digest,
            )
        self._ticking = asyncio.create_task(self._tick())

    async def check_health(self) -> None:
        """Ray Serve replaces this replica when this raises."""
        if self._ticking.done() and not self._ticking.cancelled():
            self._ticking.result()

    async def __del__(self) -> None:
        if hasattr(self, "_ticking"):
            self._ticking.cancel()
            if self._behaviour is not None:
                await self._behaviour.close()
            await asyncio.to_thread(self._database.close)

    async def _tick(self) -> None:
        while True:
            pause_s = _PERIOD_S
            try:
                if await self._coordinator.tick():
                    pause_s = 0.0  # what has come meanwhile may be the next round's
                if self._rollout is not None:
                    await self._rollout.tick()
            except (CascadeError, OSError):
                # The store or the registry is away: nothing is lost, and it is asked again.
                _log.warning("the rounds stand still", exc_info=True)
                pause_s = _PAUSE_S
            await asyncio.sleep(pause_s)


def _gate(
    config: FederationConfig, database: Database, registry: Registry, key: SigningKey
) -> BehaviourGate | None:
    if config.gate is None:
        return None
    return BehaviourGate(
        config.gate,
        database,
        registry,
        key,
        first=config.adapter,
        folder=home() / "federation" / "gate",
        trust=trust_dir(),
    )


def signing_key(path: Path | None) -> SigningKey:
    """The key of candidates: that of a file, or this machine's own, which is pinned here."""
    if path is not None:
        return SigningKey.load(path)
    key = SigningKey.load_or_create(keys_dir() / "publisher.key")
    TrustStore(trust_dir()).pin(_PUBLISHER, key.public)
    return key

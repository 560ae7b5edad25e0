"""The cluster's side of a simulation: registry, store, gateway and coordinator, as the product has
them, on the loopback of this machine, with the simulation's clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cascade.errors import RemoteError
from cascade.remote import RemoteEvent
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile, KeyRing, OpenRequest, new_key
from cloud.federation.account import account
from cloud.federation.adapters import Adapters, parts_of
from cloud.federation.budget import standing_still
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database, Transaction
from cloud.federation.desk import Desk
from cloud.federation.phases import Standing, standing
from cloud.federation.refusals import counters
from cloud.federation.rounds import Round, collecting, in_state, latest, recent
from cloud.federation.seams import Gate
from cloud.fleet.checkpoint import STORE
from cloud.fleet.device import seeded_key
from cloud.fleet.plan import FleetPlan
from cloud.fleet.served import Weights
from cloud.front_door import FrontDoor, GatewayFiles
from cloud.registry import Delivery, Registry
from cloud.tls import ensure_local_tls
from edge.adapter import write_adapter
from edge.bundle import Bundle
from edge.portal import Portal


class FleetCluster:
    """Runs from its making to ``close``.

    Arguments:
        folder: of the simulation.
        start: what the first round starts from, or its digest where it is in the registry.
        gate: made of this cluster.
        now: the simulation's clock.
    """

    def __init__(
        self,
        folder: Path,
        plan: FleetPlan,
        bundle: Bundle,
        start: Weights | str,
        *,
        gate: Callable[[FleetCluster], Gate],
        now: Callable[[], float],
    ) -> None:
        publisher = seeded_key(plan.seed, "publisher")
        self.trust = folder / "trust"
        trust = TrustStore(self.trust)
        trust.pin("fleet", publisher.public)
        self._registry = Registry(str(folder / "registry"))
        if not isinstance(start, str):
            path = write_adapter(
                folder / "start",
                start.pairs,
                name="start",
                base_digest=bundle.manifest.base_digest,
                signing_key=publisher,
                head=start.head,
            )
            start = self._registry.publish(path, trust).artifact.digest
        self.start = start
        self._config = plan.federation(start, str(folder / STORE))
        with ExitStack() as opened:
            self._open(opened, folder, plan, publisher, gate=gate, now=now)
            self._opened = opened.pop_all()

    def _open(
        self,
        opened: ExitStack,
        folder: Path,
        plan: FleetPlan,
        publisher: SigningKey,
        *,
        gate: Callable[[FleetCluster], Gate],
        now: Callable[[], float],
    ) -> None:
        self._database = Database(self._config.store_url)
        opened.callback(self._database.close)
        self._adapters = Adapters(self._registry, publisher)
        self._coordinator = Coordinator(
            self._database,
            self._adapters,
            self._config,
            gate(self),
            now=now,
            noise=lambda of: np.random.default_rng([plan.seed, 6, of.number]),
        )
        desk = Desk(self._database, Adapters(self._registry), self._config, now=now)
        tls = ensure_local_tls(folder / "tls", "localhost")
        key = new_key()
        files = GatewayFiles(tls.certificate, tls.key, folder / "api-keys", ca=tls.ca)
        KeyRing().with_key("fleet", key).save(files.api_keys)
        self._portal = Portal()
        opened.callback(self._portal.close)
        door = self._portal.call(_opened(files, desk, Delivery(self._registry)))
        opened.callback(lambda: self._portal.call(door.close(0.2)))
        self.profile = ClientProfile(f"localhost:{door.port}", tls.ca.read_bytes(), key)
        self._portal.call(self._coordinator.start())

    def tick(self) -> None:
        """Let the coordinator do what is due."""
        self._portal.call(self._coordinator.tick())

    def served(self) -> tuple[int, str]:
        """Version and digest of the adapter that devices start from."""
        approved = self._database.do_now(lambda tx: in_state(tx, "approved"))
        if not approved or approved[-1].candidate_digest is None:
            return 1, self.start
        return approved[-1].candidate_version or 0, approved[-1].candidate_digest

    def weights(self, digest: str) -> Weights:
        """An adapter's."""
        adapter = self._adapters.read(digest)
        return Weights(*parts_of(adapter.tensors, adapter.manifest.head))

    def counters(self) -> Mapping[str, int]:
        """What the coordinator and the desk have counted."""
        return self._database.do_now(counters)

    def rounds_since(self, number: int) -> list[Round]:
        """The coordinator's rounds from ``number`` on that have ended, oldest first."""
        found = self._database.do_now(lambda tx: recent(tx, 1000))
        return [r for r in reversed(found) if r.number >= number and r.state != "collecting"]

    def next_round(self) -> int:
        """Number of the coordinator's round that collects now, or of the next."""
        found = self._database.do_now(latest)
        if found is None:
            return 1
        return found.number if found.state == "collecting" else found.number + 1

    def masking(self, number: int) -> Standing | None:
        """Where the coordinator's round of this number is, while it collects under masks."""

        def look(tx: Transaction) -> Standing | None:
            current = collecting(tx)
            return standing(tx, number) if current and current.number == number else None

        return self._database.do_now(look)

    def cost(self) -> tuple[float, float] | None:
        """ε of all rounds so far, and its δ; ``None`` where no noise is added."""
        history = self._database.do_now(account)
        spent = history.spent()
        return None if spent is None or history.delta is None else (spent, history.delta)

    def ended(self) -> str:
        """Why the coordinator opens no further round; empty where it does."""
        return self._database.do_now(standing_still) or ""

    def close(self) -> None:
        """Stop taking calls, and close the store."""
        self._opened.close()


async def _opened(files: GatewayFiles, desk: Desk, delivery: Delivery) -> FrontDoor:
    door = FrontDoor(
        _NoTiers(),
        files,
        address="127.0.0.1:0",
        artifacts=delivery,
        federation=desk,
        on_call=lambda _: None,
    )
    await door.open()
    return door


class _NoTiers:
    """Simulated devices are taught by their data, and ask nothing."""

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        raise RemoteError("UNIMPLEMENTED", "a simulated cluster has no tiers")
        yield

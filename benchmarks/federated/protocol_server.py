"""The cluster with federated rounds as a child: ``python -m benchmarks.federated.protocol_server
FOLDER``. Gateway and coordinator are the product's own replicas on Ray Serve."""

from __future__ import annotations

import numpy as np

from benchmarks.child import Fields
from benchmarks.cluster.engine import FixedTier, Script
from benchmarks.cluster.server import TIER, Server, cpu_s, main, resident_bytes
from cascade.federation.plan import RoundPlan
from cascade.signing import SigningKey, TrustStore
from cloud.config import ClusterConfig, GatewayConfig, TierConfig
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig
from cloud.federation.database import Database
from cloud.federation.refusals import counters
from cloud.federation.rounds import recent
from cloud.registry import Registry
from edge.adapter import LoraPair, write_adapter

BASE = "b" * 64
_WIDTHS = {"q_proj": (576, 576), "v_proj": (576, 192)}
"""Inputs and outputs of SmolLM2-135M's linears that adapters change."""


class FederatedServer(Server):
    """A ``Server`` whose cluster also leads rounds."""

    def deploy_rounds(
        self,
        *,
        goal: int,
        devices: int,
        layers: int,
        rank: int,
        bits: int,
        upload_memory: int,
        widths: dict[str, list[int]] | None = None,
    ) -> Fields:
        """Deploy gateway, coordinator and a tier that nobody asks.

        Arguments:
            goal: updates that end a round.
            devices: that may hold a lease at one time.
            layers, rank: of the adapter, all of whose B are trained.
            bits: of each number sent.
            upload_memory: bytes of all uploads under way.
            widths: inputs and outputs of each layer's linears; by default those of SmolLM2-135M.
        """
        from ray import serve as ray_serve

        import cloud.app
        from cloud.gateway import APP_NAME

        publisher = SigningKey.generate()
        trust = TrustStore(self._folder / "trust")
        trust.pin("benchmarks", publisher.public)
        publisher.save(self._folder / "publisher.key")
        draw = np.random.default_rng(0)
        pairs = {
            f"layers.{layer}.{name}": LoraPair(
                draw.normal(size=(inputs, rank)).astype(np.float32),
                np.zeros((rank, outputs), np.float32),
            )
            for layer in range(layers)
            for name, (inputs, outputs) in (widths or _WIDTHS).items()
        }
        folder = write_adapter(
            self._folder / "adapter", pairs, name="start", base_digest=BASE, signing_key=publisher
        )
        registry = Registry(str(self._folder / "registry"))
        digest = registry.publish(folder, trust).artifact.digest
        plan = {"layers": layers, "bits": bits, "clip_norm": 1000.0}
        self._rounds = FederationConfig.model_validate(
            {
                "adapter": digest,
                "store": str(self._folder / "rounds.sqlite3"),
                "signing_key": str(self._folder / "publisher.key"),
                "goal": goal,
                "minimum": goal,
                "cohort": 2 * devices,
                "max_gap": 1000,
                "min_separation_s": 0.0,
                "retry_s": [0.0, 0.5],
                "upload_memory_bytes": upload_memory,
                "start_from": "candidate",
                "plan": plan,
            }
        )
        config = ClusterConfig(
            gateway=GatewayConfig(port=self._port, registry=registry.url),
            tiers=(TierConfig.model_validate({"name": TIER, "model": "fixed.gguf"}),),
            federation=self._rounds,
        )
        script = self._folder / "script.json"
        Script().save(script)
        app = cloud.app.build_app(config, self._files, {TIER: script}, tier_class=FixedTier)
        ray_serve.run(app, name=APP_NAME, route_prefix=None)
        shapes = Adapters(registry).read(digest).shapes
        size = RoundPlan(**{**self._rounds.plan.model_dump()}).payload_bytes(shapes)
        return {"payload_bytes": size, "shapes": {name: list(s) for name, s in shapes.items()}}

    def federated_usage(self) -> Fields:
        """CPU seconds and resident bytes of the gateway and the coordinator so far; CPU seconds of
        all that is below this process."""
        parts = {name: self._replicas(name) for name in ("gateway", "coordinator")}
        return {
            "gateway_cpu_s": sum(cpu_s(pid) for pid in parts["gateway"]),
            "coordinator_cpu_s": sum(cpu_s(pid) for pid in parts["coordinator"]),
            "gateway_rss": sum(resident_bytes(pid) for pid in parts["gateway"]),
            "coordinator_rss": sum(resident_bytes(pid) for pid in parts["coordinator"]),
            "all_cpu_s": float(self.usage()["cpu_s"]),
            "store_bytes": sum(
                path.stat().st_size for path in self._folder.glob("rounds.sqlite3*")
            ),
        }

    def counted(self) -> Fields:
        """What the store says: updates, how many of them are counted in a round that has ended,
        rounds that have ended, and the counters."""
        database = Database(self._rounds.store_url)
        try:
            rows = database.do_now(
                lambda tx: tx.all("SELECT lease, counted_in, payload IS NULL FROM updates")
            )
            ended = database.do_now(lambda tx: recent(tx, 100_000))
            counts = database.do_now(counters)
        finally:
            database.close()
        return {
            "updates": len(rows),
            "leases": len({str(row[0]) for row in rows}),
            "counted": sum(row[1] is not None and bool(row[2]) for row in rows),
            "sum_of_rounds": sum(each.counted for each in ended if each.candidate_digest),
            "rounds": sum(each.candidate_digest is not None for each in ended),
            "counters": counts,
        }


if __name__ == "__main__":
    main(FederatedServer, "deploy_rounds", "federated_usage", "counted")

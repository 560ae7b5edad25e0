"""A Ray cluster of three nodes on this machine, run as a program by ``test_placement``:
``python -m tests.cloud.ray_nodes FOLDER`` leaves what was seen there as one JSON object."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from pathlib import Path

from benchmarks.cluster.engine import FixedTier, Script
from cascade.cli import main as cascade
from cascade.errors import RemoteError
from cascade.remote import DeviceReport, Transfer
from cascade.request import Constraints, Message, Request
from cascade.wire import ClientProfile, GrpcRemote, KeyRing, new_key
from cloud import processes
from cloud.config import ClusterConfig
from cloud.front_door import GatewayFiles
from cloud.tls import ensure_local_tls
from tests.ports import free_port

SEEN = "seen.json"
NEAR = {"resources": {"near": 1}}
FAR = {"labels": {"zone": "in(b,c)", "disk": "!slow"}}
NOWHERE = {"resources": {"near": 2}, "labels": {"zone": "b"}}


class Placed(FixedTier):
    """A tier that says where it runs."""

    async def node(self) -> str:
        """Id of Ray's node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


def configured(port: int) -> ClusterConfig:
    """One tier for each kind of node, and one that sleeps."""
    return ClusterConfig.model_validate(
        {
            "gateway": {"port": port},
            "tiers": [
                {"name": "near", "model": "a/m.gguf", "placement": NEAR},
                {"name": "far", "model": "a/m.gguf", "placement": FAR},
                {
                    "name": "asleep",
                    "model": "a/m.gguf",
                    "placement": FAR,
                    "autoscaling": {"min_replicas": 0, "max_replicas": 1},
                },
            ],
        }
    )


def run(folder: Path) -> dict[str, object]:
    """Start the nodes, look at them, deploy, and ask."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=str(folder))
    os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from cloud.app import build_app
    from cloud.gateway import APP_NAME, deployment_name

    store = {"object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            **store,
        },
    )
    cluster.add_node(num_cpus=2, resources={"near": 1}, labels={"zone": "a"}, **store)
    cluster.add_node(num_cpus=2, labels={"zone": "b"}, **store)
    config = configured(free_port())
    bad = folder / "bad.yaml"
    tiers = [*config.tiers, config.tiers[0].model_copy(update={"name": "nowhere"})]
    plain = config.model_copy(update={"tiers": tuple(tiers)}).model_dump(mode="json")
    plain["tiers"][-1]["placement"] = NOWHERE
    bad.write_text(json.dumps(plain))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cascade(["cluster", "check", str(bad), "--ray", cluster.address, "--json"])
    seen: dict[str, object] = {"check": code, "plan": json.loads(said.getvalue())}

    ray.init(address=cluster.address, log_to_driver=False)
    zones = {node["NodeID"]: node["Labels"].get("zone", "") for node in ray.nodes()}
    serve.start(proxy_location="Disabled")
    tls = ensure_local_tls(folder / "tls", "127.0.0.1")
    key = new_key()
    KeyRing().with_key("tests", key).save(folder / "api-keys")
    files = GatewayFiles(tls.certificate, tls.key, folder / "api-keys")
    script = folder / "script.json"
    Script(pause_s=0.01).save(script)
    models = dict.fromkeys((tier.name for tier in config.tiers), script)
    serve.run(build_app(config, files, models, tier_class=Placed), name=APP_NAME, route_prefix=None)
    profile = ClientProfile(f"127.0.0.1:{config.gateway.port}", tls.ca.read_bytes(), key)
    # A sleeping tier holds what comes: to its deadline, or until it has woken up.
    seen["early"] = asyncio.run(ask(profile, "asleep", deadline_s=0.3))
    seen["woken"] = asyncio.run(ask(profile, "asleep", deadline_s=60.0))
    seen["zones"] = {
        tier.name: zones[
            serve.get_deployment_handle(deployment_name(tier.name), APP_NAME).node.remote().result()
        ]
        for tier in config.tiers
    }
    return seen


async def ask(profile: ClientProfile, tier: str, *, deadline_s: float) -> str:
    """``OK``, or the status of the refusal."""
    remote = GrpcRemote(profile)
    request = Request(
        (Message("user", "hello"),),
        max_tokens=1,
        constraints=Constraints(allowed_tiers=frozenset({tier}), max_remote_calls=1),
    )
    try:
        events = remote.answer(request, DeviceReport(), deadline_s=deadline_s, transfer=Transfer())
        async for _ in events:
            pass
    except RemoteError as refusal:
        return refusal.status
    finally:
        await remote.close()
    return "OK"


if __name__ == "__main__":
    processes.adopt_orphans()
    try:
        # Not printed: Ray writes to standard output too.
        (Path(sys.argv[1]) / SEEN).write_text(json.dumps(run(Path(sys.argv[1]))))
    finally:
        processes.end_descendants(frozenset(), grace_s=0.0)

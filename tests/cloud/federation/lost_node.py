"""Rounds whose coordinator's node is killed, in a Ray cluster of three nodes on this machine.

``python -m tests.cloud.federation.lost_node FOLDER URL`` leaves what was seen there as one JSON
object. First of rounds in the clear, in SQLite; then, when the lost node has been replaced, of one
under masks, in PostgreSQL. The registry is in a folder that all nodes share; the gateway is here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud import processes
from cloud.federation import rounds
from cloud.federation.refusals import counters
from tests.cloud.federation.federated import BareDevice, Federation, payload
from tests.cloud.federation.test_masked import (
    DEVICES,
    MASKED,
    Learner,
    World,
    mean,
    step_of,
)

SEEN = "seen.json"
GOAL = 4
_WITHIN_S = 240.0


@dataclass(frozen=True)
class Nodes:
    """The cluster, and one coordinator on it."""

    cluster: Any
    app: str

    def deploy(self, federation: Federation) -> None:
        from ray import serve

        from cloud.app import coordinator_deployment

        # A whole CPU keeps it away from the head, which outlives the test.
        placed = coordinator_deployment().options(ray_actor_options={"num_cpus": 1})
        bound = placed.bind(federation.config, federation.registry.url)
        serve.run(bound, name=self.app, route_prefix=None)

    def lose(self) -> str:
        """Kill the coordinator's node; its id."""
        (replica,) = self.replicas()
        (lost,) = (node for node in self.cluster.worker_nodes if node.node_id == replica["node_id"])
        self.cluster.remove_node(lost, allow_graceful=False)
        while _runs(int(replica["pid"])):  # it ends when it finds its node gone
            time.sleep(0.05)
        return str(replica["node_id"])

    async def moved(self, before: str) -> list[str]:
        """Where the coordinator is, once it is no longer there."""
        await _until(lambda: [each for each in self.replicas() if each["node_id"] != before])
        return [str(each["node_id"]) for each in self.replicas()]

    def replicas(self) -> list[dict[str, Any]]:
        """The coordinator's replicas that run, as Serve knows them."""
        from ray.serve.context import _get_global_client

        details: dict[str, Any] = _get_global_client().get_serve_details()
        found = details["applications"][self.app]["deployments"]["coordinator"]["replicas"]
        return [each for each in found if each["state"] == "RUNNING"]


def run(folder: Path, postgresql: str) -> dict[str, object]:
    """Start the nodes, deploy a coordinator, and kill the node that it is on; twice."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=str(folder))
    os.environ.update(RAY_raylet_start_wait_time_s="180")  # a busy machine takes its time
    os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 0, "include_dashboard": False, **store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    in_clear = asyncio.run(_in_the_clear(folder / "clear", Nodes(cluster, "clear")))
    serve.delete("clear")
    cluster.add_node(num_cpus=1, **store)
    masked = asyncio.run(_under_masks(folder / "masked", postgresql, Nodes(cluster, "masked")))
    return {"clear": in_clear, "masked": masked}


async def _in_the_clear(folder: Path, nodes: Nodes) -> dict[str, object]:
    federation = Federation.made(
        folder, goal=GOAL, minimum=GOAL, cohort=2 * GOAL, start_from="candidate"
    )
    await asyncio.to_thread(nodes.deploy, federation)
    async with federation.gateway() as port:
        await _until(lambda: _states(federation) == ["collecting"])
        devices = [BareDevice(federation.profile(port)) for _ in range(2 * GOAL)]
        receipts = 0
        for place, device in enumerate(devices):
            await device.enrol()
            data = payload(float(place))
            done = await device.service.upload(device.header(await device.lease(), data), data)
            receipts += done.receipt.round > 0
            if place == GOAL - 2:  # one short of a round
                before = await asyncio.to_thread(nodes.lose)
            if place == GOAL - 1:
                # Nobody is there to end it until the coordinator is on another node.
                await _until(lambda: _states(federation)[0] in ("waiting", "approved"))
        await _until(lambda: _states(federation)[1:2] in (["waiting"], ["approved"]))
        for device in devices:
            await device.close()
    after = await nodes.moved(before)
    return {"before": before, "after": after, "receipts": receipts, **_read(federation)}


async def _under_masks(folder: Path, postgresql: str, nodes: Nodes) -> dict[str, object]:
    """The node is lost when all keys are there; what was said before it went is in the store."""
    long = {"secure_aggregation": {"phase_s": 600.0}, "round_s": 600.0}
    world = World(Federation.made(folder, store=postgresql, **{**MASKED, **long}))
    await asyncio.to_thread(nodes.deploy, world.federation)
    async with world.federation.gateway() as world.port:
        await _until(lambda: _states(world.federation) == ["collecting"])
        world.learners = [Learner(world, number) for number in range(DEVICES)]
        told = await world.all_step()
        before = await asyncio.to_thread(nodes.lose)
        left = list(world.learners)
        end = time.monotonic() + _WITHIN_S
        while left and time.monotonic() < end:
            left = [each for each in left if (await each.step()).outcome != "sent"]
            await asyncio.sleep(0.2)
        await _until(lambda: _states(world.federation)[0] in ("waiting", "approved"))
        for learner in world.learners:
            await learner.participant.close()
    off = np.abs(world.served(1) - mean(world, tuple(range(DEVICES)))).max()
    return {
        "before": before,
        "after": await nodes.moved(before),
        "told": told,
        "trained": [each.trained for each in world.learners],
        "off": float(off / step_of(world)),
        **_read(world.federation),
    }


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _states(federation: Federation) -> list[str]:
    return list(_read(federation)["states"])  # type: ignore[call-overload]


def _read(federation: Federation) -> dict[str, object]:
    database = federation.database()
    try:
        found = database.do_now(lambda tx: rounds.recent(tx, 10))[::-1]
        counts = database.do_now(counters)
    finally:
        database.close()
    digest = found[0].candidate_digest if found else None
    made = None if digest is None else federation.adapters().read(digest).tensors
    return {
        "states": [each.state for each in found],
        "counted": [each.counted for each in found],
        "committed": counts.get("committed", 0),
        "dropped": counts.get("dropped", 0),
        "first": None if made is None else float(made["layers.0.q_proj.b"][0, 0]),
    }


async def _until(what: Callable[[], object]) -> None:
    end = time.monotonic() + _WITHIN_S
    while not await asyncio.to_thread(what):
        if time.monotonic() > end:
            raise TimeoutError("nothing came of it")
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    processes.adopt_orphans()
    try:
        # Not printed: Ray writes to standard output too.
        (Path(sys.argv[1]) / SEEN).write_text(json.dumps(run(Path(sys.argv[1]), sys.argv[2])))
    finally:
        processes.end_descendants(frozenset(), grace_s=0.0)

"""A Ray cluster of three nodes on this machine, of which the coordinator's is killed in the middle
of a round: ``python -m tests.cloud.federation.lost_node FOLDER`` leaves what was seen there as one
JSON object. Store and registry are in a folder that all nodes share; the gateway is here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud import processes
from cloud.federation import rounds
from cloud.federation.refusals import counters
from tests.cloud.federation.federated import BareDevice, Federation, payload

SEEN = "seen.json"
APP = "rounds"
GOAL = 4
_WITHIN_S = 240.0


def run(folder: Path) -> dict[str, object]:
    """Start the nodes, deploy the coordinator, and kill the node that it is on."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=str(folder))
    os.environ.update(RAY_raylet_start_wait_time_s="180")  # a busy machine takes its time
    os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from cloud.app import coordinator_deployment

    store = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 0, "include_dashboard": False, **store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    federation = Federation.made(
        folder / "rounds", goal=GOAL, minimum=GOAL, cohort=2 * GOAL, start_from="candidate"
    )
    # A whole CPU keeps it away from the head, which outlives the test.
    placed = coordinator_deployment().options(ray_actor_options={"num_cpus": 1})
    serve.run(placed.bind(federation.config, federation.registry.url), name=APP, route_prefix=None)

    def lose() -> str:
        (replica,) = _replicas()
        (lost,) = (node for node in nodes if node.node_id == replica["node_id"])
        cluster.remove_node(lost, allow_graceful=False)
        while _runs(int(replica["pid"])):  # it ends when it finds its node gone
            time.sleep(0.05)
        return str(replica["node_id"])

    return asyncio.run(_rounds(federation, lose))


async def _rounds(federation: Federation, lose: Callable[[], str]) -> dict[str, object]:
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
                before = await asyncio.to_thread(lose)
            if place == GOAL - 1:
                # Nobody is there to end it until the coordinator is on another node.
                await _until(lambda: _states(federation)[0] in ("waiting", "approved"))
        await _until(lambda: _states(federation)[1:2] in (["waiting"], ["approved"]))
        for device in devices:
            await device.close()
    await _until(lambda: [each for each in _replicas() if each["node_id"] != before])
    after = [str(each["node_id"]) for each in _replicas()]
    return {"before": before, "after": after, "receipts": receipts, **_read(federation)}


def _replicas() -> list[dict[str, Any]]:
    """The coordinator's replicas that run, as Serve knows them."""
    from ray.serve.context import _get_global_client

    details: dict[str, Any] = _get_global_client().get_serve_details()
    found = details["applications"][APP]["deployments"]["coordinator"]["replicas"]
    return [each for each in found if each["state"] == "RUNNING"]


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
        (Path(sys.argv[1]) / SEEN).write_text(json.dumps(run(Path(sys.argv[1]))))
    finally:
        processes.end_descendants(frozenset(), grace_s=0.0)

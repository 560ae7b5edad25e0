"""Gateway and coordinator as the product deploys them, on Ray Serve, each killed in turn."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from benchmarks.child import Fields
from benchmarks.cluster.subject import Cluster
from cascade.errors import RemoteError
from cascade.federation import encode
from cascade.wire import ClientProfile
from tests.cloud.federation.federated import BareDevice, until_served

pytestmark = pytest.mark.processes

GOAL = 3


async def take_part(profile: ClientProfile, shapes: dict[str, list[int]]) -> None:
    """A device that insists until it has a receipt."""
    change = {
        name: np.full(shape, 0.1, np.float32)
        for name, shape in shapes.items()
        if name.endswith(".b")
    }
    data = encode(change, 8, np.random.default_rng(0))
    device = BareDevice(profile)
    lease = None
    try:
        async with asyncio.timeout(120):
            while True:
                try:
                    await device.enrol()
                    reply = await device.check_in()
                    lease = reply.lease or lease
                    if lease is not None:
                        await device.service.upload(device.header(lease, data), data)
                        return
                except RemoteError as problem:
                    if problem.status == "ALREADY_EXISTS":
                        return
                    if problem.status != "UNAVAILABLE":
                        raise
                await asyncio.sleep(0.2)
    finally:
        await device.close()


async def test_rounds_go_on_when_a_replica_is_killed() -> None:
    with Cluster(server="benchmarks.federated.protocol_server") as cluster:
        told = cluster.server.ask(
            "deploy_rounds",
            goal=GOAL,
            devices=20,
            layers=1,
            rank=1,
            bits=8,
            upload_memory=10_000_000,
        )
        shapes = told["shapes"]
        ours = cluster.ours
        profile = ClientProfile(ours["address"], str(ours["ca"]).encode(), ours["key"])
        await until_served(profile)
        for number, part in enumerate(("coordinator", "gateway", "coordinator")):
            await asyncio.gather(*(take_part(profile, shapes) for _ in range(GOAL)))
            cluster.kill(part)
            await rounds(cluster, number + 1)
        await asyncio.gather(*(take_part(profile, shapes) for _ in range(GOAL)))
        seen = await rounds(cluster, 4)
    assert (seen["updates"], seen["counted"], seen["sum_of_rounds"]) == (12, 12, 12)


async def rounds(cluster: Cluster, wanted: int) -> Fields:
    """What the store says once so many rounds have ended."""
    end = time.monotonic() + 120
    while (seen := cluster.server.ask("counted"))["rounds"] < wanted:
        assert time.monotonic() < end, seen
        await asyncio.sleep(0.2)
    return seen

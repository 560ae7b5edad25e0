"""SIGKILL at any instant: gateway and coordinator in processes of their own, devices that never
stop asking, and every update that a device has a receipt for counted exactly once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from cascade.errors import RemoteError
from cascade.federation.terms import Receipt
from cloud.federation import rounds
from cloud.federation.database import Database
from tests.cloud.federation.federated import (
    BareDevice,
    Federation,
    kill,
    payload,
    until_served,
)
from tests.ports import free_port

pytestmark = pytest.mark.processes

DEVICES, KILLS, GOAL = 8, 4, 5
_TRY_AGAIN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


@dataclass
class Load:
    """What devices were told."""

    receipts: list[Receipt] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


async def take_part(device: BareDevice, load: Load, number: int) -> None:
    """One device: a lease, an update, a receipt, again and again."""
    await insist(device.enrol)
    draw = random.Random(number)
    while not load.stopped.is_set():
        reply = await insist(device.check_in)
        if reply.lease is None:
            await asyncio.sleep(0.02)
            continue
        lease, value = reply.lease, draw.uniform(-1, 1)
        # The same lease may come again, after a crash: it is one update all the same.
        value = load.values.setdefault(lease.lease_id, value)
        data = payload(value)
        header = device.header(lease, data)
        while True:
            try:
                done = await device.service.upload(header, data)
                load.receipts.append(done.receipt)
                break
            except RemoteError as problem:
                if problem.status not in _TRY_AGAIN:
                    break
            await asyncio.sleep(0.05)
            state = await insist(
                lambda lease=lease: device.service.upload_state(device.device_id, lease.lease_id)
            )
            if state is not None and state.receipt is not None:
                load.receipts.append(state.receipt)
                break


async def insist(call):  # type: ignore[no-untyped-def]
    """Ask until there is an answer; ``None`` for one that says no."""
    while True:
        try:
            return await call()
        except RemoteError as problem:
            if problem.status not in _TRY_AGAIN:
                return None
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", [0])
async def test_killed_at_any_instant_every_committed_update_counts_once(
    tmp_path: Path, seed: int, store: str | None
) -> None:
    federation = Federation.made(tmp_path, store=store, goal=GOAL, cohort=2 * DEVICES, max_gap=1000)
    port = free_port()
    parts = {part: federation.process(part, port) for part in ("gateway", "coordinator")}
    load, draw = Load(), random.Random(seed)
    devices = [BareDevice(federation.profile(port)) for _ in range(DEVICES)]
    try:
        await until_served(federation.profile(port))
        tasks = [
            asyncio.create_task(take_part(device, load, i)) for i, device in enumerate(devices)
        ]
        database = federation.database()
        for number in range(KILLS):
            # Not before there is something to lose.
            have = len(load.receipts)
            await more_receipts(load, have + GOAL)
            await asyncio.sleep(draw.uniform(0, 0.3))
            part = ("gateway", "coordinator")[number % 2]
            await asyncio.to_thread(kill, parts[part])
            parts[part] = federation.process(part, port)
        await more_receipts(load, len(load.receipts) + 4 * GOAL)
        load.stopped.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        # The coordinator counts what is left of whole rounds.
        await counted(database, len(load.receipts) // GOAL * GOAL)
        check(federation, database, load)
        database.close()
    finally:
        for process in parts.values():
            await asyncio.to_thread(kill, process)
        for device in devices:
            await device.close()


def check(federation: Federation, database: Database, load: Load) -> None:
    rows = database.do_now(
        lambda tx: tx.all("SELECT lease, counted_in FROM updates ORDER BY place")
    )
    committed = {str(lease): in_round for lease, in_round in rows}
    promised = [receipt.lease_id for receipt in load.receipts]
    assert len(set(promised)) == len(promised), "one lease was promised twice"
    assert set(promised) == set(committed), "a receipt without an update, or the other way round"
    ended = [
        each
        for each in database.do_now(lambda tx: rounds.recent(tx, 10_000))[::-1]
        if each.candidate_digest is not None
    ]
    assert len(ended) >= KILLS
    adapters = federation.adapters()
    versions = [each.candidate_version for each in ended]
    assert versions == sorted(set(versions)), "two candidates of one version"
    for each in ended:
        mine = [lease for lease, in_round in committed.items() if in_round == each.number]
        assert len(mine) == each.counted == GOAL
        start = adapters.read(each.adapter_digest).tensors["layers.0.q_proj.b"]
        end = adapters.read(each.candidate_digest or "").tensors["layers.0.q_proj.b"]
        gaps = database.do_now(
            lambda tx, mine=mine: [
                tx.one("SELECT adapter_version FROM updates WHERE lease = ?", lease)[0]  # type: ignore[index]
                for lease in mine
            ]
        )
        change = sum(
            np.float32(load.values[lease]) / (1 + np.sqrt(max(0, each.adapter_version - began)))
            for lease, began in zip(mine, gaps, strict=True)
        )
        np.testing.assert_allclose(end - start, change / GOAL, atol=1e-5)


async def more_receipts(load: Load, wanted: int) -> None:
    async with asyncio.timeout(60):
        while len(load.receipts) < wanted:
            await asyncio.sleep(0.01)


async def counted(database: Database, wanted: int) -> None:
    async with asyncio.timeout(60):
        while True:
            row = await database.do(
                lambda tx: tx.one(
                    "SELECT COUNT(*) FROM updates WHERE counted_in IS NOT NULL AND payload IS NULL"
                )
            )
            if row is not None and row[0] >= wanted:
                return
            await asyncio.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> str | None:
    """URL of a store of its own; ``None`` for a SQLite file."""
    if request.param == "sqlite":
        return None
    return str(request.getfixturevalue("postgresql_url"))


async def test_an_upload_survives_the_gateway(tmp_path: Path) -> None:
    federation = Federation.made(tmp_path, layers=300, max_payload_bytes=10_000_000, goal=2)
    layers = 300
    port = free_port()
    data = payload(0.5, layers)
    gateway = federation.process("gateway", port)
    coordinator = federation.process("coordinator")
    device = BareDevice(federation.profile(port))
    try:
        await until_served(federation.profile(port))
        await device.enrol()
        async with asyncio.timeout(30):
            while (reply := await device.check_in()).lease is None:
                await asyncio.sleep(0.1)
        header = device.header(reply.lease, data)
        # Half of it, and a connection that breaks.
        await half(device, header, data[: len(data) // 2])
        async with asyncio.timeout(30):
            while True:
                state = await device.service.upload_state(device.device_id, header.lease_id)
                if state.offset:
                    break
                await asyncio.sleep(0.05)
        await asyncio.to_thread(kill, gateway)
        gateway = federation.process("gateway", port)
        await until_served(federation.profile(port))
        state = await device.service.upload_state(device.device_id, header.lease_id)
        assert state.offset == len(data) // 2
        done = await device.service.upload(replace(header, offset=state.offset), data)
        assert done.receipt.payload_sha256 == header.payload_sha256
    finally:
        await device.close()
        for process in (gateway, coordinator):
            await asyncio.to_thread(kill, process)


async def half(device: BareDevice, header: object, data: bytes) -> None:
    """Send some bytes, then break off."""
    from cascade.federation.v1alpha1 import federation_pb2 as pb
    from cascade.federation.v1alpha1 import federation_pb2_grpc
    from cascade.wire import federation_convert as convert

    connection = device.service._connection
    stub = federation_pb2_grpc.FederationServiceStub(connection.channel)
    call = stub.Upload(metadata=connection.metadata)
    await call.write(pb.UploadRequest(header=convert.header_message(header)))  # type: ignore[arg-type]
    await call.write(pb.UploadRequest(chunk=data))
    await asyncio.sleep(0.2)
    call.cancel()

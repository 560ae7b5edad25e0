"""Updates that must not count, sent over real sockets to a real desk: one device for each."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cascade import testing
from cascade.errors import RemoteError
from cascade.federation import Tensors, UpdateStatement, encode, sign_update, statements
from cascade.federation.terms import CheckIn, Enrolment, Lease, UploadHeader
from cascade.files import sha256_bytes
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile, GrpcFederation
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.desk import Desk
from cloud.federation.refusals import counters
from cloud.federation.seams import NeedsApproval
from cloud.registry import Registry
from edge.adapter import LoraPair, write_adapter

BASE: Final = "b" * 64
RANK: Final = 2
WIDE: Final = 16
_NAME: Final = "layers.0.q_proj"


class Attacker:
    """A device that signs whatever it likes."""

    def __init__(self, profile: ClientProfile) -> None:
        self.key = SigningKey.generate()
        self.service = GrpcFederation(profile)
        self.device_id = self.key.public.key_id

    async def lease(self) -> Lease:
        """Enrol and check in, as every device does."""
        given = await self.service.challenge(self.key.public.raw)
        proof = self.key.sign_raw(statements.enrolment(given.challenge))
        await self.service.enrol(Enrolment(self.key.public.raw, given.challenge, proof))
        request = os.urandom(16)
        signature = self.key.sign_raw(statements.check_in(self.device_id, request, BASE, ""))
        reply = await self.service.check_in(
            CheckIn(self.device_id, request, BASE, "", 0, signature)
        )
        assert reply.lease is not None, reply
        return reply.lease

    def header(self, lease: Lease, payload: bytes, **changed: Any) -> UploadHeader:
        """A header, signed for what it says."""
        header = UploadHeader(
            device_id=self.device_id,
            lease_id=lease.lease_id,
            payload_bytes=len(payload),
            payload_sha256=sha256_bytes(payload),
            offset=0,
            base_digest=lease.base_digest,
            adapter_version=lease.adapter_version,
            examples=1,
            signature=b"\0" * 64,
        )
        header = replace(header, **changed)
        said = UpdateStatement(
            header.lease_id, lease.round, header.base_digest, header.payload_sha256
        )
        return replace(header, signature=changed.get("signature") or sign_update(self.key, said))


def update(value: float, *, rank: int = RANK, wide: int = WIDE) -> bytes:
    """An update of B with one number everywhere."""
    tensors: Tensors = {f"{_NAME}.b": np.full((rank, wide), value, np.float32)}
    return encode(tensors, 32, np.random.default_rng(0))


def _poisoned(value: float) -> bytes:
    """A good update with one number replaced by what no encoder writes."""
    good = update(0.5)
    at = good.index(np.float32(0.5).tobytes())
    return good[:at] + np.float32(value).tobytes() + good[at + 4 :]


Sends = Callable[[Attacker, Lease], tuple[UploadHeader, bytes]]


def _plain(payload: bytes, **changed: Any) -> Sends:
    return lambda device, lease: (device.header(lease, payload, **changed), payload)


MALFORMED: Final[dict[str, Sends]] = {
    "NaN": _plain(_poisoned(np.nan)),
    "infinite": _plain(_poisoned(np.inf)),
    "wrong base": _plain(update(0.1), base_digest="c" * 64),
    "wrong adapter version": _plain(update(0.1), adapter_version=7),
    "rank bomb": _plain(update(0.1, rank=4096)),
    "wrong shape": _plain(update(0.1, rank=WIDE, wide=RANK)),
    "too long": _plain(update(0.1, rank=1, wide=400_000)),
    "truncated": lambda device, lease: (
        device.header(lease, update(0.1)[:-8]),
        update(0.1)[:-8],
    ),
    "no update at all": _plain(b"\xff" * len(update(0.1))),
    "another digest": lambda device, lease: (
        device.header(lease, update(0.1)),
        update(0.2),
    ),
    "not signed": _plain(update(0.1), signature=b"\1" * 64),
    "a lease that there is not": lambda device, lease: (
        device.header(replace(lease, lease_id=f"{lease.lease_id[:-4]}ffff"), update(0.1)),
        update(0.1),
    ),
    "a lease of another coordinator": lambda device, lease: (
        device.header(
            replace(lease, lease_id=f"{'0' * 16}.{lease.lease_id.partition('.')[2]}"), update(0.1)
        ),
        update(0.1),
    ),
}
"""Updates that are refused on sight."""


async def refused(each: int) -> dict[str, tuple[int, int]]:
    """How many of ``each`` updates of every kind were refused, and how many were sent; ``counted``
    says how many the store holds beside the good ones that replays begin with."""
    with tempfile.TemporaryDirectory(prefix="cascade-hostile-") as folder:
        async with _desk(Path(folder)) as (desk, database, profile, later):
            outcomes = {
                name: (sum([await _refused(profile, sends) for _ in range(each)]), each)
                for name, sends in MALFORMED.items()
            }
            outcomes["replay"] = (sum([await _replayed(profile) for _ in range(each)]), each)
            stale = []
            for _ in range(each):
                device = Attacker(profile)
                stale.append((device, await device.lease()))
            later()
            turned = 0
            for device, lease in stale:
                turned += await _turned_away(device, *_plain(update(0.1))(device, lease))
                await device.service.close()
            outcomes["after its lease's time"] = (turned, each)
            kept = await database.do(counters)
            outcomes["counted"] = (int(kept.get("committed", 0)) - each, 0)
            del desk
    return outcomes


@asynccontextmanager
async def _desk(
    folder: Path,
) -> AsyncIterator[tuple[Desk, Database, ClientProfile, Callable[[], None]]]:
    """A federation of one round, and a way to let its leases grow old."""
    publisher, trust = SigningKey.generate(), TrustStore(folder / "trust")
    trust.pin("benchmark", publisher.public)
    a = np.random.default_rng(0).normal(size=(WIDE, RANK)).astype(np.float32)
    path = write_adapter(
        folder / "adapter",
        {_NAME: LoraPair(a, np.zeros((RANK, WIDE), np.float32))},
        name="start",
        base_digest=BASE,
        signing_key=publisher,
    )
    registry = Registry(str(folder / "registry"))
    config = FederationConfig(
        adapter=registry.publish(path, trust).artifact.digest,
        store=str(folder / "rounds.sqlite3"),
        goal=1000,
        minimum=1,
        cohort=100_000,
        lease_s=3600.0,
        min_separation_s=0.0,
        plan=PlanConfig(layers=1, bits=32),
    )
    now = [1_000_000.0]
    database, adapters = Database(config.store_url), Adapters(registry, publisher)
    desk = Desk(database, adapters, config, now=lambda: now[0])
    coordinator = Coordinator(database, adapters, config, NeedsApproval(), now=lambda: now[0])
    try:
        await coordinator.start()
        await coordinator.tick()
        with testing.cluster(federation=desk) as cluster:
            yield desk, database, cluster.profile, lambda: now.__setitem__(0, now[0] + 7200.0)
    finally:
        await asyncio.to_thread(database.close)


async def _refused(profile: ClientProfile, sends: Sends) -> bool:
    device = Attacker(profile)
    try:
        lease = await device.lease()
        return await _turned_away(device, *sends(device, lease))
    finally:
        await device.service.close()


async def _replayed(profile: ClientProfile) -> bool:
    """A good update, then another one for the same lease."""
    device = Attacker(profile)
    try:
        lease = await device.lease()
        await device.service.upload(device.header(lease, update(0.1)), update(0.1))
        return await _turned_away(device, device.header(lease, update(0.3)), update(0.3))
    finally:
        await device.service.close()


async def _turned_away(device: Attacker, header: UploadHeader, payload: bytes) -> bool:
    try:
        await device.service.upload(header, payload)
    except RemoteError as problem:
        return problem.status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")
    return False

"""Devices as a child: each with a key, a connection and a precomputed update of its own."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.child import Fields, serve
from benchmarks.federated.protocol_server import BASE
from cascade.errors import RemoteError
from cascade.federation import UpdateStatement, encode, sign_update, statements
from cascade.federation.terms import CheckIn, Enrolment, Lease, UploadHeader
from cascade.files import sha256_bytes
from cascade.signing import SigningKey
from cascade.wire import ClientProfile, GrpcFederation
from edge.adapter import AdapterManifest

_DEADLINE_S = 60.0


@dataclass(frozen=True)
class _Device:
    key: SigningKey
    payload: bytes
    digest: str


Work = Callable[[GrpcFederation, _Device], Awaitable[None]]


class Fleet:
    """What the parent may ask for; every method answers with a JSON object."""

    def __init__(self) -> None:
        self._devices: list[_Device] = []
        self._again = 0

    def prepare(
        self, target: Fields, devices: int, shapes: dict[str, list[int]], bits: int
    ) -> Fields:
        """Make keys and updates.

        Arguments:
            target: address, authority and key of the gateway.
            shapes: of the adapter; its B are sent.
        """
        self._profile = ClientProfile(
            target["address"], str(target["ca"]).encode(), str(target["key"])
        )
        draw = np.random.default_rng(0)
        self._devices = []
        for _ in range(devices):
            change = {
                name: (draw.random(tuple(shape)) / 100).astype(np.float32)
                for name, shape in shapes.items()
                if name.endswith(".b")
            }
            data = encode(change, bits, draw)  # type: ignore[arg-type]
            self._devices.append(_Device(SigningKey.generate(), data, sha256_bytes(data)))
        return {"payload_bytes": len(self._devices[0].payload)}

    def enrol(self, at_once: int) -> Fields:
        """Enrol every device, on a connection of its own."""
        return asyncio.run(self._all(self._enrol, at_once))

    def take_part(self, at_once: int, fetch: bool = False) -> Fields:
        """One round of every device: connect, check in, upload, have a receipt, disconnect.

        Arguments:
            fetch: download the adapter that the round starts from, too.
        """
        return asyncio.run(self._all(partial(self._take_part, fetch=fetch), at_once))

    async def _all(self, work: Work, at_once: int) -> Fields:
        gate, statuses = asyncio.Semaphore(at_once), Counter[str]()
        began, cpu = time.monotonic(), time.process_time()

        async def one(device: _Device) -> float:
            async with gate:
                start = time.monotonic()
                statuses[await self._insist(work, device)] += 1
                return time.monotonic() - start

        seconds = await asyncio.gather(*(one(device) for device in self._devices))
        return {
            "statuses": dict(statuses),
            "wall_s": time.monotonic() - began,
            "cpu_s": time.process_time() - cpu,
            "again": self._again,
            "seconds": {str(q): float(np.percentile(seconds, q)) for q in (50, 95, 100)},
        }

    async def _insist(self, work: Work, device: _Device) -> str:
        """Do something on a connection of its own; the status that it ends with."""
        while True:
            service = GrpcFederation(self._profile, deadline_s=_DEADLINE_S)
            try:
                await work(service, device)
            except RemoteError as problem:
                if problem.status not in ("UNAVAILABLE", "ABORTED"):
                    return f"{problem.status}: {problem.message}"
                # A connection that could not be made in time, or more updates than the coordinator
                # keeps waiting for their rounds: come back, as any device does.
                self._again += 1
                await asyncio.sleep(random.uniform(0.1, 1.0))
            else:
                return "OK"
            finally:
                await service.close()

    async def _enrol(self, service: GrpcFederation, device: _Device) -> None:
        public = device.key.public.raw
        given = await service.challenge(public)
        proof = device.key.sign_raw(statements.enrolment(given.challenge))
        await service.enrol(Enrolment(public, given.challenge, proof))

    async def _take_part(self, service: GrpcFederation, device: _Device, *, fetch: bool) -> None:
        name, draw = device.key.public.key_id, random.Random()
        while True:
            request = os.urandom(16)
            statement = statements.check_in(name, request, BASE, "")
            signature = device.key.sign_raw(statement)
            reply = await service.check_in(CheckIn(name, request, BASE, "", 0, signature))
            if reply.lease is not None:
                break
            await asyncio.sleep(reply.retry.draw(draw))
        lease = reply.lease
        if fetch:
            await self._fetch(service, lease)
        said = UpdateStatement(lease.lease_id, lease.round, lease.base_digest, device.digest)
        header = UploadHeader(
            device_id=name,
            lease_id=lease.lease_id,
            payload_bytes=len(device.payload),
            payload_sha256=device.digest,
            offset=0,
            base_digest=lease.base_digest,
            adapter_version=lease.adapter_version,
            examples=1,
            signature=sign_update(device.key, said),
        )
        await service.upload(header, device.payload)

    async def _fetch(self, service: GrpcFederation, lease: Lease) -> None:
        """The adapter's weights, as ``edge.federation`` fetches them."""
        wanted = AdapterManifest.from_bytes(lease.adapter_manifest).weights_sha256
        content = b"".join([piece.data async for piece in service.artifacts().download(wanted)])
        if sha256_bytes(content) != wanted:
            raise RemoteError("DATA_LOSS", "the adapter is not the one of its digest")


def main() -> None:
    """Serve until standard input ends."""
    fleet = Fleet()
    serve(
        lambda: {
            "prepare": fleet.prepare,
            "enrol": fleet.enrol,
            "take_part": fleet.take_part,
        }
    )


if __name__ == "__main__":
    main()

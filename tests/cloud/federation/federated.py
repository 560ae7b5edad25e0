"""A federation to test with: a real registry, store and gateway, in this process or in others, and
a bare device that says exactly what a test wants said."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade.federation import Tensors, UpdateStatement, encode, shapes_of, sign_update, statements
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import (
    Abort,
    CheckIn,
    CheckInReply,
    Enrolment,
    Lease,
    UploadHeader,
)
from cascade.files import sha256_bytes, write_whole
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile, GrpcFederation, KeyRing, new_key
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.desk import Desk
from cloud.federation.rounds import Round
from cloud.federation.seams import Verdict
from cloud.front_door import FrontDoor, GatewayFiles
from cloud.registry import Delivery, Registry
from cloud.tls import ensure_local_tls
from edge.adapter import LoraPair, write_adapter
from edge.head import Head

BASE = "b" * 64
RANK, WIDE = 2, 8
ROOT = Path(__file__).parents[3]


class Approves:
    """A gate that lets everything through."""

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        return "approved", "a test says so"


class Nobody:
    async def answer(self, request: object) -> AsyncIterator[object]:
        raise AssertionError("nothing is asked here")
        yield


@dataclass
class Federation:
    """Files of a federation; open parts of it with ``gateway`` and ``coordinator``."""

    folder: Path
    config: FederationConfig
    registry: Registry
    publisher: SigningKey
    key: str
    files: GatewayFiles
    desk: Desk | None = None

    @classmethod
    def made(
        cls,
        folder: Path,
        store: str | None = None,
        layers: int = 1,
        head: Head | None = None,
        **given: Any,
    ) -> Federation:
        publisher = SigningKey.generate()
        trust = TrustStore(folder / "trust")
        trust.pin("tests", publisher.public)
        registry = Registry(str(folder / "registry"))
        draw = np.random.default_rng(0)
        pairs = {
            f"layers.{layer}.q_proj": LoraPair(
                draw.normal(size=(WIDE, RANK)).astype(np.float32),
                np.zeros((RANK, WIDE), np.float32),
            )
            for layer in range(layers)
        }
        path = write_adapter(
            folder / "adapter",
            pairs,
            name="start",
            base_digest=BASE,
            signing_key=publisher,
            head=head,
        )
        digest = registry.publish(path, trust).artifact.digest
        tls = ensure_local_tls(folder / "tls", "localhost")
        key = new_key()
        files = GatewayFiles(tls.certificate, tls.key, folder / "api-keys", ca=tls.ca)
        KeyRing().with_key("tests", key).save(files.api_keys)
        publisher.save(folder / "publisher.key")
        config = FederationConfig(
            **{
                "adapter": digest,
                "store": store or str(folder / "rounds.sqlite3"),
                "signing_key": folder / "publisher.key",
                "goal": 3,
                "minimum": 2,
                "min_separation_s": 0.0,
                "retry_s": (0.0, 0.1),
                "plan": PlanConfig(layers=layers, bits=32, clip_norm=1000.0),
                **given,
            }
        )
        write_whole(folder / "federation.json", config.model_dump_json().encode())
        return cls(folder, config, registry, publisher, key, files)

    @classmethod
    def opened(cls, folder: Path) -> Federation:
        """What another process made."""
        config = FederationConfig.model_validate_json((folder / "federation.json").read_bytes())
        tls = ensure_local_tls(folder / "tls", "localhost")
        files = GatewayFiles(tls.certificate, tls.key, folder / "api-keys", ca=tls.ca)
        publisher = SigningKey.load(folder / "publisher.key")
        return cls(folder, config, Registry(str(folder / "registry")), publisher, "", files)

    @property
    def trust(self) -> TrustStore:
        return TrustStore(self.folder / "trust")

    def database(self) -> Database:
        return Database(self.config.store_url)

    def profile(self, port: int) -> ClientProfile:
        ca = self.files.ca
        assert ca is not None
        return ClientProfile(f"localhost:{port}", ca.read_bytes(), self.key)

    def adapters(self) -> Adapters:
        return Adapters(self.registry, self.publisher)

    @asynccontextmanager
    async def gateway(self, port: int = 0, **given: Any) -> AsyncIterator[int]:
        """A gateway in this process; its port."""
        database = self.database()
        self.desk = desk = Desk(database, Adapters(self.registry), self.config, **given)
        door = FrontDoor(
            Nobody(),  # type: ignore[arg-type]
            self.files,
            address=f"127.0.0.1:{port}",
            artifacts=Delivery(self.registry),
            federation=desk,
        )
        await door.open()
        try:
            yield door.port
        finally:
            await door.close(0.2)
            database.close()

    @asynccontextmanager
    async def coordinator(self, **given: Any) -> AsyncIterator[Coordinator]:
        """A coordinator that ticks when it is told to."""
        database = self.database()
        made = Coordinator(
            database, self.adapters(), self.config, given.pop("gate", Approves()), **given
        )
        try:
            await made.start()
            yield made
        finally:
            database.close()

    def process(self, part: str, port: int = 0) -> subprocess.Popen[bytes]:
        """A part of it as a process of its own: ``gateway`` or ``coordinator``."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.cloud.federation.federated",
                part,
                str(self.folder),
                str(port),
            ],
            cwd=ROOT,
            start_new_session=True,
        )


class BareDevice:
    """A device without a training loop. Every message can be changed before it is sent."""

    def __init__(self, profile: ClientProfile) -> None:
        self.key = SigningKey.generate()
        self.service = GrpcFederation(profile)
        self.device_id = self.key.public.key_id

    async def enrol(self) -> None:
        given = await self.service.challenge(self.key.public.raw)
        proof = self.key.sign_raw(statements.enrolment(given.challenge))
        await self.service.enrol(Enrolment(self.key.public.raw, given.challenge, proof))

    async def check_in(self, request: bytes | None = None, base: str = BASE) -> CheckInReply:
        request = request or os.urandom(16)
        signature = self.key.sign_raw(statements.check_in(self.device_id, request, base, ""))
        return await self.service.check_in(CheckIn(self.device_id, request, base, "", 0, signature))

    async def lease(self) -> Lease:
        reply = await self.check_in()
        assert reply.lease is not None, reply
        return reply.lease

    def header(self, lease: Lease, payload: bytes, **changed: Any) -> UploadHeader:
        digest = sha256_bytes(payload)
        statement = UpdateStatement(lease.lease_id, lease.round, lease.base_digest, digest)
        header = UploadHeader(
            device_id=self.device_id,
            lease_id=lease.lease_id,
            payload_bytes=len(payload),
            payload_sha256=digest,
            offset=0,
            base_digest=lease.base_digest,
            adapter_version=lease.adapter_version,
            examples=1,
            signature=sign_update(self.key, statement),
        )
        return replace(header, **changed)

    async def give_back(self, lease: Lease) -> None:
        signature = self.key.sign_raw(statements.abort(self.device_id, lease.lease_id))
        await self.service.abort(Abort(self.device_id, lease.lease_id, signature))

    async def close(self) -> None:
        await self.service.close()


def change(value: float, layers: int = 1) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """An update of B alone, with one number everywhere."""
    return {
        f"layers.{layer}.q_proj.b": np.full((RANK, WIDE), value, np.float32)
        for layer in range(layers)
    }


def payload(value: float, layers: int = 1, bits: int = 32) -> bytes:
    return encode(change(value, layers), bits, np.random.default_rng(0))  # type: ignore[arg-type]


def trained(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes of what the plan of ``Federation`` trains."""
    return RoundPlan(layers=1).shapes(shapes_of(tensors))


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait for the end."""
    process.send_signal(signal.SIGKILL)
    process.wait()


async def until_served(profile: ClientProfile, within_s: float = 30.0) -> None:
    from cascade.errors import RemoteError

    end = asyncio.get_running_loop().time() + within_s
    device = BareDevice(profile)
    try:
        while True:
            try:
                await device.service.challenge(device.key.public.raw)
            except RemoteError as problem:
                if problem.status != "UNAVAILABLE" or asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.1)
            else:
                return
    finally:
        await device.close()


async def _serve(part: str, folder: Path, port: int) -> None:
    federation = Federation.opened(folder)
    if part == "gateway":
        async with federation.gateway(port):
            await asyncio.Event().wait()
    async with federation.coordinator() as coordinator:
        while True:
            await coordinator.tick()
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))

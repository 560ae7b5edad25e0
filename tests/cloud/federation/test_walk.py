"""The whole loop on a real Ray cluster: rounds over gRPC, the gate as a Ray task on a real bundle,
canaries, promotion, the way back, and a candidate that is turned away. Simulated in it: what
devices have learned, so that the verdicts are known."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloud
from cascade.cli import main
from cascade.federation.plan import RoundPlan
from cascade.request import Constraints
from cascade.signing import TrustStore
from cascade.testing import TinyBundle, tiny_bundle
from cascade.wire import ClientProfile
from cloud.config import ClusterConfig, GatewayConfig, TierConfig
from cloud.federation.config import FederationConfig, PlanConfig
from cloud.federation.rollout.config import BoundsConfig, RolloutConfig
from cloud.registry import Needs
from edge import Device, Renewal, set_up
from edge.federation import AdapterCounts, Limits, Participant, StartingPoint, Step, Trained
from tests.cloud.federation.gated import OPTIONS, Gated, words
from tests.ports import free_port

pytestmark = pytest.mark.processes

DEVICES, REQUESTS = 3, 60
HERE = Constraints(max_remote_calls=0)
BOUNDS = BoundsConfig(
    escalations=0.9, corrections=None, audit_errors=None, load_failures=None, slow=None
)


@dataclass
class Walker:
    """A device with a ``CASCADE_HOME`` of its own."""

    home: Path
    profile: ClientProfile
    base: str
    patch: pytest.MonkeyPatch

    @contextmanager
    def here(self) -> Iterator[None]:
        with self.patch.context() as patch:
            patch.setenv("CASCADE_HOME", str(self.home))
            yield

    def takes_part(self, size: float) -> Step:
        """One step of a round; B moves at random by ``size``."""

        def trained(plan: RoundPlan, start: StartingPoint) -> Trained:
            shapes = plan.shapes({name: each.shape for name, each in start.tensors.items()})
            draw = np.random.default_rng(1)
            change = {
                name: (size * draw.normal(size=shape)).astype(np.float32)
                for name, shape in shapes.items()
            }
            return Trained(change, examples=10)

        async def step() -> Step:
            device = Participant(self.profile, self.base, trained, limits=Limits(clip_norm=1000.0))
            try:
                return await device.step()
            finally:
                await device.close()

        with self.here():
            return asyncio.run(step())

    def works(self, *, renewing: bool) -> tuple[str, Renewal | None]:
        """Renew if asked to, answer requests, report counts; the adapter that ran."""
        running: list[Device] = []

        def adapter() -> str:
            info = running[0].info
            return "" if info is None else info.adapter_digest

        async def report(counts: AdapterCounts) -> None:
            participant = Participant(self.profile, self.base, _never)
            try:
                assert await participant.report(counts)
            finally:
                await participant.close()

        counts = AdapterCounts(adapter)
        with self.here(), Device.open(cloud=self.profile, observers=[counts]) as device:
            running.append(device)
            renewal = device.renew(self.profile) if renewing else None
            for text in words(7, REQUESTS):
                device.choose(text, OPTIONS, task="colours", constraints=HERE)
            assert device.info is not None
            asyncio.run(report(counts))
            return device.info.adapter_digest, renewal


def _never(plan: RoundPlan, start: StartingPoint) -> Trained:
    raise AssertionError("it only reports")


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


@pytest.fixture
def gated(patch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """The operator's home, short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cascade-walk-"))
    patch.setenv("CASCADE_HOME", str(folder))
    tiny: TinyBundle = tiny_bundle(folder / "tiny")
    yield Gated.made(folder, tiny, share=0.6)
    shutil.rmtree(folder)


@pytest.fixture
def cluster(gated: Gated) -> Iterator[ClientProfile]:
    registry = gated.registry
    known = {
        digest: registry.artifact(digest).artifact for digest in (gated.config.bundle, gated.first)
    }
    channel = registry.channel("stable")
    for artifact in known.values():
        channel, _ = channel.with_artifact(artifact, known, needs=Needs(), percent=None)
    registry.save(channel.as_one_change(0), gated.key)
    gated.key.save(gated.folder / "gate.key")
    tier = TierConfig(
        name="tier1",
        engine="onnx",
        model=str(gated.tiny.path),
        context_tokens=256,
        commercial_use=True,
    )
    rounds = FederationConfig(
        adapter=gated.first,
        signing_key=gated.folder / "gate.key",
        mode="synchronous",
        goal=DEVICES,
        minimum=DEVICES,
        min_separation_s=0.0,
        retry_s=(0.0, 0.1),
        plan=PlanConfig(layers=100, bits=8, clip_norm=1000.0),
        gate=gated.config,
        rollout=RolloutConfig(
            percent=99, minimum_devices=DEVICES, minimum_s=0.0, delta=0.4, bounds=BOUNDS
        ),
    )
    config = ClusterConfig(
        gateway=GatewayConfig(port=free_port(), registry=registry.url),
        tiers=(tier,),
        federation=rounds,
    )
    try:
        cloud.up_detached(config, on_progress=lambda line: None)
        yield ClientProfile.load()
    finally:
        cloud.down()


def test_from_devices_to_devices_and_back(
    gated: Gated,
    cluster: ClientProfile,
    patch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def operator(*said: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["federation", *said, "--json"]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    def until(wanted: Callable[[dict[str, Any]], bool], *said: str) -> dict[str, Any]:
        end = time.monotonic() + 120
        while not wanted(told := operator(*said)):
            assert time.monotonic() < end, told
            time.sleep(0.3)
        return told

    base = gated.tiny.bundle.manifest.base_digest
    devices = [Walker(gated.folder / f"device-{n}", cluster, base, patch) for n in range(DEVICES)]
    for device in devices:
        trust = TrustStore(device.home / "trust")
        trust.pin("tiny", gated.tiny.key.public)
        trust.pin("gate", gated.key.public)
        with device.here():
            assert asyncio.run(set_up(cluster)).adapter == gated.first

    # They work with the first adapter, take part, and the gate lets the candidate through.
    assert {device.works(renewing=False)[0] for device in devices} == {gated.first}
    until(lambda told: bool(told["rounds"]), "rounds")
    assert [device.takes_part(1e-4).outcome for device in devices] == ["sent"] * DEVICES
    approved = until(lambda told: told["state"] in ("approved", "rejected"), "show", "1")
    assert (approved["state"], approved["counted"]) == ("approved", DEVICES), approved["note"]
    candidate = approved["candidate_digest"]

    # Canaries renew and report; what they report promotes it.
    canary = until(lambda told: told["state"] != "starting", "rollout", "show")
    assert (canary["state"], canary["candidate_digest"]) == ("canary", candidate)
    assert len(canary["policies"]) == 1, "certified anew for it"
    for device in devices:
        runs, renewal = device.works(renewing=True)
        assert renewal is not None
        assert (runs, renewal.outcome) == (candidate, "applied"), renewal
    promoted = until(lambda told: told["state"] not in ("canary", "promoting"), "rollout", "show")
    assert promoted["state"] == "promoted", promoted["note"]
    assert promoted["candidate"]["devices"] == DEVICES

    # What devices learn next answers otherwise: it is examined, and turned away with a reason.
    assert [device.takes_part(3.0).outcome for device in devices] == ["sent"] * DEVICES
    rejected = until(lambda told: told["state"] in ("approved", "rejected"), "show", "2")
    assert rejected["state"] == "rejected"
    assert "accuracy" in rejected["note"]
    assert not all(each["passed"] for each in rejected["findings"])
    assert operator("rollout", "show")["round"] == 1, "nothing of it was published"

    # The operator takes the first one back, and the devices with it.
    operator("rollout", "rollback", "--note", "users complain")
    until(lambda told: told["state"] == "rolled_back", "rollout", "show")
    for device in devices:
        assert device.works(renewing=True)[0] == gated.first
    assert operator("show", "1")["state"] == "rejected", "with every round that started from it"

"""The whole way: a candidate is examined, approved with its policy, and served to canaries."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cascade.testing.tiny import TinyBundle
from cloud.federation import rounds
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.gate.gate import BehaviourGate
from cloud.federation.rollout import rollouts
from cloud.federation.rollout.config import RolloutConfig
from cloud.federation.rollout.rollout import Rollout
from cloud.registry import Device, Needs
from tests.cloud.federation.gated import Gated
from tests.cloud.federation.test_gate import in_a_thread


async def test_what_the_gate_approves_is_served_with_what_it_certified(
    tmp_path: Path, tiny: TinyBundle
) -> None:
    gated = Gated.made(tmp_path, tiny, share=0.6)
    registry, key = gated.registry, gated.key
    known = {
        digest: registry.artifact(digest).artifact for digest in (gated.config.bundle, gated.first)
    }
    channel = registry.channel("stable")
    for artifact in known.values():
        channel, _ = channel.with_artifact(artifact, known, needs=Needs(), percent=None)
    registry.save(channel.as_one_change(0), key)
    database = Database(tmp_path / "rounds.sqlite3")
    config = FederationConfig(adapter=gated.first, store="unused", goal=1, minimum=1)
    gate = BehaviourGate(
        gated.config,
        database,
        registry,
        key,
        first=gated.first,
        folder=tmp_path / "gate",
        trust=tmp_path / "trust",
        examiner=in_a_thread,
    )
    coordinator = Coordinator(database, Adapters(registry, key), config, gate)
    base = tiny.bundle.manifest.base_digest
    rollout = Rollout(RolloutConfig(percent=50), database, registry, key, base_digest=base)
    try:
        await coordinator.start()
        await coordinator.tick()
        for number, size in ((1, 3.0), (2, 1e-4)):
            candidate = gated.candidate(size, version=number + 1)
            await database.do(
                lambda tx, candidate=candidate, number=number: tx.run(
                    "UPDATE rounds SET state = 'waiting', candidate_digest = ?, "
                    "candidate_version = ? WHERE number = ?",
                    candidate,
                    number + 1,
                    number,
                )
            )
            async with asyncio.timeout(120):
                while True:
                    await coordinator.tick()
                    await rollout.tick()
                    found = await database.do(
                        lambda tx, number=number: rounds.round_numbered(tx, number)
                    )
                    assert found is not None
                    if found.state != "waiting":
                        break
                    await asyncio.sleep(0.02)
            assert found.state == ("rejected" if number == 1 else "approved"), found.note
        assert "accuracy" in (await database.do(lambda tx: rounds.in_state(tx, "rejected")))[0].note
        for _ in range(3):
            await rollout.tick()
        current = await database.do(rollouts.active)
        assert current is not None
        assert (current.round, current.state) == (2, "canary")
        releases = {registry.channel("stable").resolve(Device(f"d{n}")) for n in range(50)}
        (canary,) = releases - {(gated.config.bundle, gated.first)}
        adapter, policy = (registry.artifact(digest).artifact for digest in canary[1:])
        assert adapter.digest == candidate
        assert (policy.task_id, policy.adapter_digest) == ("colours", candidate)
        opened = await database.do(rounds.collecting)
        assert opened is not None
        assert opened.adapter_digest == candidate, "the next round starts from it"
    finally:
        await gate.close()
        database.close()

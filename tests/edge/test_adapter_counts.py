"""What a device counts by the adapter that it runs, and how it is told once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade import testing
from cascade.errors import RemoteError
from cascade.events import Answer, Latency
from cascade.federation import fleet
from cascade.request import Message, Request
from cascade.signing import SigningKey, TrustStore
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database, Transaction
from cloud.federation.desk import Desk
from cloud.federation.rollout import counts as kept
from cloud.federation.seams import NeedsApproval
from cloud.registry import Registry
from edge.adapter import LoraPair, write_adapter
from edge.federation import AdapterCounts, Participant, StartingPoint, Trained

ADAPTER = "a" * 64
REQUEST = Request((Message("user", "Hello"),))


def answered(source: str = "device", total_s: float = 0.3) -> Answer:
    return Answer(
        request_id="1",
        text="x",
        source=source,
        model="m",
        confidence=None,
        raw_score=None,
        verified=True,
        reasons=(),
        latency=Latency(total_s),
        tokens=1,
    )


def test_requests_are_counted_by_the_adapter_that_ran() -> None:
    running = [ADAPTER]
    counts = AdapterCounts(lambda: running[0])
    assert counts.take() is None
    for answer in (answered(), answered("tier1", 2.5), answered(total_s=60.0)):
        counts.answered(REQUEST, answer)
    running[0] = ""
    counts.failed(REQUEST, RemoteError("UNAVAILABLE", "away"))
    counts.applied(ADAPTER, failed=True)
    counted = counts.take()
    assert counted is not None
    found = fleet.measured(counted.counters, counted.histograms)
    mine = fleet.short(ADAPTER)
    assert found[mine, "escalations"] == (3, 1)
    assert found[mine, "load_failures"] == (1, 1)
    assert found["base", "escalations"] == (1, 1)
    assert found[mine, fleet.slower_than(2.0)] == (3, 2)
    assert counts.take() is counted, "the same until it has arrived"
    counts.answered(REQUEST, answered())
    counts.sent(counted)
    later = counts.take()
    assert later is not None
    assert later.report_id != counted.report_id
    assert dict(later.counters) == {fleet.metric("", fleet.REQUESTS): 1}


async def test_a_lost_reply_counts_nothing_twice(tmp_path: Path, empty_home: Path) -> None:
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("maker", key.public)
    pair = LoraPair(np.ones((8, 2), np.float32), np.zeros((2, 8), np.float32))
    path = write_adapter(
        tmp_path / "adapter",
        {"layers.0.q_proj": pair},
        name="start",
        base_digest="b" * 64,
        signing_key=key,
    )
    registry = Registry(str(tmp_path / "registry"))
    config = FederationConfig(
        adapter=registry.publish(path, trust).artifact.digest,
        store=str(tmp_path / "rounds.sqlite3"),
        goal=1,
        minimum=1,
    )
    database, adapters = Database(config.store_url), Adapters(registry, key)
    desk = Desk(database, adapters, config)

    try:
        await Coordinator(database, adapters, config, NeedsApproval()).start()
        await database.do(compared)
        with testing.cluster(federation=desk) as cluster:
            device = Participant(cluster.profile, "b" * 64, _never, trust=trust)
            counts = AdapterCounts(lambda: ADAPTER)
            assert not await device.report(counts)
            for _ in range(4):
                counts.answered(REQUEST, answered("tier1"))
            counted = counts.take()
            assert await device.report(counts)
            # The reply was lost, say: the device still holds the report, and sends it again.
            counts._unsent = counted
            assert await device.report(counts)
            await device.close()
        found = await database.do(lambda tx: kept.of(tx, ADAPTER))
        assert found["escalations"] == (4, 4)
        assert await database.do(lambda tx: kept.devices(tx, ADAPTER)) == 1
    finally:
        database.close()


def compared(tx: Transaction) -> None:
    """A rollout of the adapter: what nobody compares is not kept."""
    tx.run(
        "INSERT INTO rollouts (round, state, channel, candidate_digest, parent_digest, policies, "
        "percent, started_at) VALUES (1, 'canary', 'stable', ?, '', '[]', 10, 0.0)",
        ADAPTER,
    )


def _never(plan: object, start: StartingPoint) -> Trained:
    raise AssertionError("nothing is trained here")

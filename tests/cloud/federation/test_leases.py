"""Leases in the store: a device has one at a time, and one update in a round, whatever the clocks
of gateways say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascade.federation.terms import CheckIn, Receipt, UploadHeader
from cascade.files import sha256_bytes
from cloud.federation import leases, rounds
from cloud.federation.config import FederationConfig
from cloud.federation.database import Database
from cloud.federation.leases import Granted, NotNow, StoredLease
from cloud.federation.refusals import Refused, counters
from cloud.federation.rounds import Start
from cloud.federation.schema import migrate

FIRST = Start("a" * 64, 1, b"")
BASE, DEVICE = "b" * 64, "d" * 64
SYNCHRONOUS: dict[str, Any] = {"mode": "synchronous", "round_s": 100.0}
MODES = pytest.mark.parametrize("store", [{}, SYNCHRONOUS], indirect=True)


class Store:
    """A store with a round that was opened at 0, of which every gateway has a clock of its own."""

    def __init__(self, path: Path, **given: Any) -> None:
        self.config = FederationConfig(
            adapter="a" * 64, goal=3, minimum=2, lease_s=20.0, min_separation_s=0.0, **given
        )
        self.database = Database(path)
        self.database.do_now(migrate)
        self.open(FIRST)

    def open(self, start: Start) -> None:
        synchronous = self.config.mode == "synchronous"
        closes_at = self.config.round_s if synchronous else None
        self.database.do_now(
            lambda tx: rounds.open_round(tx, BASE, start, "{}", now=0.0, closes_at=closes_at)
        )

    def check_in(self, now: float) -> Granted | NotNow:
        asked = CheckIn(DEVICE, os.urandom(16), BASE, "", 0, b"")
        return self.database.do_now(lambda tx: leases.check_in(tx, asked, self.config, "here", now))

    def leased(self, now: float) -> StoredLease:
        given = self.check_in(now)
        assert isinstance(given, Granted), given
        return given.lease

    def commit(self, lease: StoredLease, now: float) -> Receipt:
        digest = sha256_bytes(lease.lease_id.encode())
        header = UploadHeader(
            DEVICE, lease.lease_id, 1, digest, 0, BASE, lease.adapter_version, 1, b""
        )
        return self.database.do_now(lambda tx: leases.commit(tx, header, b"u", self.config, now))

    def turned_away(self) -> None:
        """The round under way ends, with a candidate that is rejected."""
        self.run("UPDATE rounds SET state = 'rejected' WHERE state = 'collecting'")

    def run(self, sql: str, *values: object) -> None:
        self.database.do_now(lambda tx: tx.run(sql, *values))


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "rounds.sqlite3", **getattr(request, "param", {}))
    yield made
    made.database.close()


@MODES
def test_a_lease_is_void_once_its_device_has_another(store: Store) -> None:
    first = store.leased(0.0)
    store.database.do_now(
        lambda tx: leases.keep(tx, first.lease_id, sha256="s", start=0, data=b"u", now=1.0)
    )
    second = store.leased(20.5)
    assert second.lease_id != first.lease_id
    assert store.database.do_now(lambda tx: leases.kept(tx, first.lease_id)).offset == 0
    with pytest.raises(Refused, match="expired_lease"):
        store.commit(first, 18.5)  # by the clock of a gateway that is behind
    assert store.commit(second, 20.5).lease_id == second.lease_id
    assert store.database.do_now(counters)["expired"] == 1


@MODES
def test_a_device_has_one_update_in_a_round(store: Store) -> None:
    """Noise hides what one of each changes, and goal and minimum count devices."""
    first, second = store.leased(0.0), store.leased(30.0)
    store.run("UPDATE leases SET state = 'open', expires_at = 90")  # as an older version left them
    store.commit(first, 30.0)
    with pytest.raises(Refused, match="used_lease"):
        store.commit(second, 30.0)
    waiting = store.database.do_now(lambda tx: tx.all("SELECT lease FROM updates"))
    assert [row[0] for row in waiting] == [first.lease_id]


@pytest.mark.parametrize("store", [{"max_gap": 1}], indirect=True)
def test_an_update_is_as_far_behind_as_versions_were_served_since(store: Store) -> None:
    """A version that was rejected has a number, and no device ever began with it."""
    lease = store.leased(0.0)
    for _ in range(5):
        store.turned_away()
        store.open(FIRST)
    assert store.leased(1.0) == lease
    store.turned_away()
    store.open(Start("c" * 64, 7, b""))
    assert store.leased(1.0) == lease
    store.commit(lease, 1.0)
    assert store.database.do_now(lambda tx: rounds.drop_stale(tx, 1)) == 0
    store.run("UPDATE updates SET counted_in = 7")
    (update,) = store.database.do_now(lambda tx: rounds.counted(tx, 7))
    assert (update.adapter_version, update.gap) == (1, 1)
    store.run("UPDATE updates SET counted_in = NULL")
    store.turned_away()
    store.open(Start("e" * 64, 9, b""))
    assert store.database.do_now(lambda tx: rounds.drop_stale(tx, 1)) == 1
    store.run("UPDATE leases SET state = 'open'")
    with pytest.raises(Refused, match="stale"):
        store.commit(lease, 1.0)
    assert store.leased(1.0).round == 8


@pytest.mark.parametrize("store", [SYNCHRONOUS], indirect=True)
def test_a_round_past_its_deadline_gives_no_leases(store: Store) -> None:
    """Its coordinator may be away: what is trained for it would be late."""
    assert store.leased(99.0).expires_at == 100.0
    assert store.check_in(100.0) == NotNow("no_round")
